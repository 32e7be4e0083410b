"""Write what the program knows about itself into the pages: help texts, settings, methods, refusals.

A page says where, between `<!-- generated: NAME -->` and `<!-- end -->`. `make docs` runs this; a test fails where a page is stale.
"""

import dataclasses
import inspect
import os
import re
import subprocess
import sys
import types
import typing
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import typer

from limbeck.cli import app
from limbeck.config import Part, settings_of
from limbeck.errors import LimbeckError
from limbeck.methods import METHODS, named
from limbeck.objective import Objective, Term
from limbeck.recipe import Recipe
from limbeck.sources import DataSets

ROOT = Path(__file__).parent.parent
WIDTH = 100
MARKED = re.compile(r"(<!-- generated: (.+?) -->\n).*?(\n?<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Every page of the documentation, the first screen among them."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def parts() -> list[type[Part]]:
    """The concrete parts of the package, and none of a user's."""
    found = [Part.registry[name] for name in Part.known()]
    return [part for part in found if part.__module__.partition(".")[0] == "limbeck"]


def commands() -> list[str]:
    """The verbs of the command line, in its order."""
    return list(typing.cast(Any, typer.main.get_command(app)).commands)


@cache
def help_of(command: str) -> str:
    """What `limbeck COMMAND --help` prints, 100 columns wide and without colour."""
    kept = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "CLICOLOR_FORCE")}
    fixed = {"TERMINAL_WIDTH": str(WIDTH), "COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
    start = "import sys; sys.argv[0] = 'limbeck'; from limbeck.cli import main; main()"
    asked = [sys.executable, "-c", start, command, "--help"]
    printed = subprocess.run(asked, env=kept | fixed, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True).stdout
    return "```text\n" + "\n".join(line.rstrip() for line in printed.strip("\n").splitlines()).strip() + "\n```"


def settings(cls: type[Part]) -> str:
    """The docstring of a part and a table of its settings."""
    text = inspect.cleandoc(cls.__doc__ or "")
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    rows = [[f"`{name}`", _type(fields[name].type), _default(fields[name])] for name in settings_of(cls)]
    return text + "\n\n" + _table(["setting", "type", "default"], rows) if rows else f"{text}\n\nNo settings."


def _type(asked: Any) -> str:
    """A field's type as a writer of recipes reads it."""
    if asked is DataSets:
        return "`Data`, or a list of them"
    if typing.get_origin(asked) is Literal:
        return " or ".join(f"`{choice}`" for choice in typing.get_args(asked))
    if typing.get_origin(asked) in (typing.Union, types.UnionType):
        return " or ".join(_type(choice) for choice in typing.get_args(asked))
    if typing.get_origin(asked) is list:
        return f"list of {_type(typing.get_args(asked)[0])}"
    if typing.get_origin(asked) is dict or asked is dict:
        return "mapping"
    known: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", type(None): "`null`"}
    return known.get(asked) or f"`{asked.__name__}`"


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{spelled(field.default)}`"
    return f"`{spelled(field.default_factory())}`" if field.default_factory is not dataclasses.MISSING else "needed"


def spelled(value: Any) -> str:
    """A value as a recipe writes it; of a part, only what is not its default."""
    if isinstance(value, Objective):
        return " + ".join(spelled(term) for term in value.terms)
    if isinstance(value, Term) and value.weight != 1:
        return f"{value.weight:g} * {spelled(dataclasses.replace(value, weight=1.0))}"
    if isinstance(value, Part):
        return f"{type(value).__name__}({', '.join(_changed(value))})"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(spelled, value))}]"
    return str(value)


def _changed(part: Any) -> list[str]:
    """The settings of a part that are not its defaults; those of text and models are left out."""
    fields = {field.name: field for field in dataclasses.fields(part)}
    shown = list[str]()
    for name in settings_of(type(part)):
        value, field = getattr(part, name), fields[name]
        bare = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        usual = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if name in ("data", "prompts", "model") or (not bare and value == usual):
            continue
        shown.append(spelled(value) if bare or isinstance(value, Part) else f"{name}={spelled(value)}")
    return shown


EXAMPLES: dict[str, list[dict[str, str]]] = {
    "sft": [{"data": "train.jsonl"}],
    "kd": [{"data": "train.jsonl"}],
    "gkd": [{"prompts": "prompts.jsonl"}, {"prompts": "prompts.jsonl", "data": "train.jsonl"}],
    "on_policy": [{"prompts": "prompts.jsonl"}],
    "distillm": [{"prompts": "prompts.jsonl", "data": "train.jsonl"}],
    "gkd_rl": [{"prompts": "prompts.jsonl", "reward": "my_module:my_reward"}],
}
"""What each named method is given beside its models."""


def methods() -> str:
    """The table of named methods, each made and read back."""
    rows = list[list[str]]()
    for method in METHODS:
        models = {"student": "student"} | ({"teacher": "teacher"} if "teacher" in inspect.signature(METHODS[method]).parameters else {})
        for given in EXAMPLES[method]:
            recipe = named(method, **models, **given)
            command = f"limbeck distill {method} " + " ".join(f"--{name} {value}" for name, value in (models | given).items())
            who = [spelled(part).replace("()", "") for part in (recipe.source, recipe.teacher, recipe.objective)]
            rows.append([method, *(f"`{one}`" for one in [*who, command])])
    return _table(["method", "who writes", "who scores", "how far", "command"], rows)


def signatures() -> str:
    """What each named method takes, and its docstring."""
    shown = list[str]()
    for name, method in METHODS.items():
        taken = [p for p in inspect.signature(method).parameters.values() if p.kind is not p.VAR_KEYWORD]
        call = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in taken)
        shown.append(f"`{name}({call}, ...)`\n\n{inspect.getdoc(method)}")
    return "\n\n".join(shown)


BASE: dict[str, Any] = {"student": "student", "teacher": "Local('teacher')", "source": "Corpus('train.jsonl')", "objective": "ForwardKL()"}
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("a divergence, and nobody who scores", {"teacher": "Silent()"}),
    ("a reward's gradient on somebody else's text", {"objective": "PolicyGradient()"}),
    ("a reward's gradient without a reward", {"source": "OnPolicy('prompts.jsonl')", "objective": "PolicyGradient()"}),
    ("fine-tuning on the student's own unchosen words", {"source": "OnPolicy('prompts.jsonl')", "objective": "CrossEntropy()"}),
    ("a term on tokens that nobody writes", {"objective": "ForwardKL().on('student')"}),
    ("a writer that there is not", {"objective": "ForwardKL().on('pupil')"}),
    ("a teacher that is the student", {"teacher": "Local('student')"}),
    ("a group's baseline with one answer", {"source": "OnPolicy('prompts.jsonl', reward='my_module:my_reward')"}),
    ("answers chosen without a verifier", {"source": "OnPolicy('prompts.jsonl', keep_above=0)"}),
    ("an end of a Jensen-Shannon divergence", {"objective": "JSD(0)"}),
    ("an end of a skewed divergence", {"objective": "SkewKL(1)"}),
    ("an end of an alpha divergence", {"objective": "AlphaDivergence(alpha=1)"}),
    ("no temperature", {"objective": "ForwardKL(temperature=0)"}),
    ("a term twice", {"objective": "ForwardKL() + ForwardKL()"}),
    ("4-bit weights that learn", {"student": {"model": "student", "quantization": "4bit"}}),
    ("the best, and nothing to tell it by", {"keep": "best"}),
    ("a misspelt setting", {"stepps": 10}),
    ("a misspelt part", {"objective": "ForwardKl()"}),
    ("a call that runs something", {"objective": "__import__('os').getcwd()"}),
    ("text of no weight", {"source": {"type": "Corpus", "data": {"path": "train.jsonl", "weight": 0}}}),
    ("sampling that chooses nothing", {"source": "OnPolicy('prompts.jsonl', sampling=Sampling(top_p=0))"}),
]
"""What is asked for, in words and in settings."""


def refusals() -> str:
    """The table of what is refused, each message as it is really given."""
    rows = list[list[str]]()
    for words, asked in REFUSED:
        try:
            Recipe.of({**BASE, **asked})
        except LimbeckError as error:
            rows.append([words, _asked(asked), str(error)])
        else:
            raise AssertionError(f"{words} is not refused any more: {asked}")
    return _table(["asked for", "as", "the message"], rows)


def _asked(asked: dict[str, Any]) -> str:
    return ", ".join(f"`{name}: {spelled(value) if not isinstance(value, dict) else _flow(value)}`" for name, value in asked.items())


def _flow(value: Any) -> str:
    return "{" + ", ".join(f"{k}: {_flow(v) if isinstance(v, dict) else v}" for k, v in value.items()) + "}"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *escaped])


def block(name: str) -> str:
    """The text of a generated block. Raises KeyError for a name that is none."""
    what, _, which = name.partition(" ")
    makers: dict[str, Callable[[], str]] = {"methods": methods, "signatures": signatures, "refusals": refusals}
    if what == "help" and which in commands():
        return help_of(which)
    if what == "settings":
        return settings({part.__name__: part for part in parts()}[which])
    return makers[name]()


def filled(page: str) -> str:
    """A page with every generated block as it should be."""
    return MARKED.sub(lambda found: f"{found[1]}{block(found[2])}\n<!-- end -->", page)


def main() -> None:
    """Write all pages anew."""
    for page in pages():
        before = page.read_text(encoding="utf-8")
        if (after := filled(before)) != before:
            page.write_text(after, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
