"""Write what the program knows about itself into the pages and the schema: help texts, settings, methods, refusals.

A page says where, between `<!-- generated: NAME -->` and `<!-- end -->`. `make docs` runs this; a test fails where a page or the
schema is stale.
"""

import dataclasses
import inspect
import json
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
from pydantic import TypeAdapter

from limbeck import condensing, pipeline, shrink  # noqa: F401  # their parts are no parts of a recipe, and known by name once they are read
from limbeck.cli import app
from limbeck.config import Part, plain, settings_of
from limbeck.corpus import Teachers
from limbeck.errors import LimbeckError
from limbeck.methods import METHODS, named
from limbeck.objective import Objective, Term
from limbeck.recipe import Names, Recipe
from limbeck.sources import DataSets
from limbeck.transfer.edits import edits

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))
import measured  # noqa: E402
import measured_arithmetic  # noqa: E402
import measured_condense  # noqa: E402
import measured_engines  # noqa: E402
import measured_exercises  # noqa: E402
import measured_gaps  # noqa: E402
import measured_layers  # noqa: E402
import measured_tasks  # noqa: E402
from measured import table  # noqa: E402

SCHEMA = ROOT / "limbeck" / "assets" / "recipe.schema.json"
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
    text, asked = inspect.cleandoc(cls.__doc__ or ""), _asked_types(cls)
    rows = [[f"`{name}`", _type(asked[name]), _default(field)] for name, field in _fields(cls).items()]
    return text + "\n\n" + table(["setting", "type", "default"], rows) if rows else f"{text}\n\nNo settings."


def _fields(cls: type[Part]) -> "dict[str, dataclasses.Field[Any]]":
    """The settings of a part by name, in the order in which they may stand without one."""
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    return {name: fields[name] for name in settings_of(cls)}


@cache
def _asked_types(cls: type[Part]) -> dict[str, Any]:
    """What each field asks for, as types: a field itself may know its type as text only. How a value is read is left out."""
    found = typing.get_type_hints(cls, include_extras=True)
    read = {name: typing.get_origin(asked) is typing.Annotated and asked != DataSets for name, asked in found.items()}
    return {name: typing.get_args(asked)[0] if read[name] else asked for name, asked in found.items()}


def _type(asked: Any) -> str:
    """A field's type as a writer of recipes reads it."""
    if asked == Teachers:
        return "`Teacher`, or a list of them"
    if asked == DataSets:
        return "`Data`, or a list of them"
    if asked == Names:
        return "text, or a list of it"
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
    "skd": [{"prompts": "prompts.jsonl"}],
    "distillspec": [{"prompts": "prompts.jsonl"}],
    "fitnets": [{"data": "train.jsonl"}],
    "tinybert": [{"data": "train.jsonl"}],
    "uld": [{"data": "train.jsonl"}],
    "alm": [{"data": "train.jsonl"}],
    "gold": [{"prompts": "prompts.jsonl"}],
    "distilbert": [{"data": "train.jsonl"}],
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
    return table(["method", "who writes", "who scores", "how far", "command"], rows)


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
    ("the student as it is now, and nothing more", {"teacher": "Itself()"}),
    ("a hint that says nothing", {"teacher": "Privileged('@student', ' ')"}),
    ("a hint of nobody", {"teacher": "Privileged(Silent(), 'think')"}),
    ("layers of a server's model", {"teacher": "Endpoint('http://localhost/v1', 'model')", "objective": "HiddenStates()"}),
    ("attention to another prompt", {"teacher": "Privileged('teacher', 'Think.')", "objective": "Attentions()"}),
    ("layers that there cannot be", {"objective": "HiddenStates({0: -1})"}),
    ("terms across vocabularies, and a teacher over one", {"objective": "SpanLikelihood()"}),
    ("a divergence, and a teacher of another vocabulary", {"teacher": "Aligned('teacher')"}),
    ("distributions of a server's, across vocabularies", {"teacher": "Aligned(Endpoint('http://localhost/v1', 'model'))", "objective": "ULD()"}),
    ("guidance of truncated scores", {"teacher": "Guided(Endpoint('http://localhost/v1', 'model'), 2)"}),
    (
        "a reward's gradient on text of older weights",
        {"source": "Prefetch(OnPolicy('prompts.jsonl', reward='my_module:my_reward', group=2))", "objective": "PolicyGradient()"},
    ),
    ("text ahead of a source that takes turns", {"source": "Mix(0.5, Prefetch(OnPolicy('prompts.jsonl')), Corpus('train.jsonl'))"}),
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
    return table(["asked for", "as", "the message"], rows)


def _asked(asked: dict[str, Any]) -> str:
    return ", ".join(f"`{name}: {spelled(value) if not isinstance(value, dict) else _flow(value)}`" for name, value in asked.items())


def _flow(value: Any) -> str:
    return "{" + ", ".join(f"{k}: {_flow(v) if isinstance(v, dict) else v}" for k, v in value.items()) + "}"


ASKED = "What makes the tides rise and fall twice a day, and who measured it in 1845?"


def prompt_edits() -> str:
    """Every edit of a prompt with one example; the longer context is cut to 12 words here, and a line's end shown as such."""
    rows = [[f"`{edit.name}`", f"`{edit.kind}`", edit.what, edit.edited(ASKED, 0, 0).replace("\n", " ⏎ ")]
            for edit in edits(12, lambda text: len(text.split())).values()]  # fmt: skip
    return table(["edit", "kind", "what", "example"], rows).replace("12 tokens of unrelated", "tokens of unrelated")


def block(name: str) -> str:
    """The text of a generated block. Raises KeyError for a name that is none."""
    what, _, which = name.partition(" ")
    makers: dict[str, Callable[[], str]] = {
        "methods": methods, "signatures": signatures, "refusals": refusals,
        "loss_head": measured.loss_head, "steps": measured.steps, "start": measured.start,
        "cache_bytes": measured.cache_bytes, "cache_steps": measured.cache_steps, "cache_gradient": measured.cache_gradient,
        "cache_students": measured.cache_students, "writing": measured.writing, "endpoint_agreement": measured.endpoint_agreement,
        "across_tokenizers": measured.across_tokenizers, "across_terms": measured.across_terms,
        "guidance": measured.guidance, "speculation": measured.speculation,
        "layers": measured.layers, "digits_condense": measured_condense.digits_condense, "interleaved_cost": measured.interleaved_cost,
        "digits": measured.digits, "export_gguf": measured.export_gguf, "plan": measured.plan, "published": measured.published,
        "tasks": measured_tasks.tasks, "transfer_time": measured_tasks.transfer_time,
        "edits": prompt_edits,
        **measured_arithmetic.TABLES,
        **measured_gaps.TABLES,
        **measured_layers.TABLES,
        **measured_exercises.TABLES,
        "vllm_writer": measured_engines.vllm_writer, "vllm_speed": measured_engines.vllm_speed,
    }  # fmt: skip
    if what == "help" and which in commands():
        return help_of(which)
    if what == "settings":
        return settings({part.__name__: part for part in parts()}[which])
    return makers[name]()


def filled(page: str) -> str:
    """A page with every generated block as it should be."""
    return MARKED.sub(lambda found: f"{found[1]}{block(found[2])}\n<!-- end -->", page)


Schema = dict[str, Any]
CALL: Schema = {"type": "string", "description": "A call, such as Name(setting=value); for data a path, for a student a name."}
OWN: Schema = {
    "type": "object",
    "description": "A part of your own, module:Class.",
    "properties": {"type": {"type": "string", "pattern": r"^[\w.]+:\w+$"}},
    "required": ["type"],
}


def schema() -> str:
    """The JSON schema of a recipe file, draft 2020-12: what an editor completes, explains and marks as wrong."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Limbeck recipe"}
    defined = {cls.__name__: _part_schema(cls) for cls in sorted(below(Recipe), key=lambda cls: cls.__name__)}
    return json.dumps(head | _object(Recipe) | {"$defs": {"call": CALL, "own": OWN} | defined}, indent=1, ensure_ascii=False) + "\n"


def below(root: type[Part]) -> set[type[Part]]:
    """Every part that may be named in a `root`, abstract and concrete."""
    found, left = set[type[Part]](), [root]
    while left:
        cls = left.pop()
        if cls not in found:
            found.add(cls)
            left += [part for part in parts() if issubclass(part, cls)]
            left += [part for name in (_fields(cls) if cls in parts() else ()) for part in _parts_in(_asked_types(cls)[name])]
    return found - {root}


def _parts_in(asked: Any) -> list[type[Part]]:
    """The parts that a setting's type speaks of."""
    if isinstance(asked, type) and issubclass(asked, Part):
        return [asked]
    return [part for inner in typing.get_args(asked) for part in _parts_in(inner)]


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _part_schema(cls: type[Part]) -> Schema:
    """All that may stand for a part: a call, its own settings or those of the parts below it, what it adopts, a user's own."""
    if _is_choice(cls):
        return _object(cls)
    below = [_ref(part.__name__) for part in parts() if issubclass(part, cls)] if cls not in parts() else [_object(cls)]
    terms = [_ref("Term"), {"type": "array", "items": _ref("Term"), "minItems": 1}] if cls is Objective else []
    return {"description": _doc(cls), "anyOf": [_ref("call"), *below, *terms, _ref("own")]}


def _is_choice(cls: type[Part]) -> bool:
    """Whether it is one concrete part of several that may stand in its place, and so must be named."""
    return cls in parts() and any(inspect.isabstract(base) for base in cls.__mro__)


def _object(cls: type[Part]) -> Schema:
    """The mapping of a concrete part; its type may be left out where only one class can stand."""
    fields, asked, told = _fields(cls), _asked_types(cls), _told(cls)
    properties: Schema = {"type": {"const": cls.__name__}}
    for name, field in fields.items():
        properties[name] = _value_schema(asked[name]) | ({"description": told[name]} if name in told else {}) | _default_schema(field)
    needed = [name for name, field in fields.items() if _default_schema(field) == {}]
    named = ["type"] if _is_choice(cls) else []
    return {"type": "object", "description": _doc(cls), "properties": properties, "required": named + needed, "additionalProperties": False}


def _default_schema(field: "dataclasses.Field[Any]") -> Schema:
    if field.default is not dataclasses.MISSING:
        return {"default": plain(field.default)}
    return {"default": plain(field.default_factory())} if field.default_factory is not dataclasses.MISSING else {}


def _value_schema(asked: Any) -> Schema:
    """What may stand for a setting of this type."""
    if asked == DataSets:
        return {"anyOf": [_ref("Data"), {"type": "array", "items": _ref("Data"), "minItems": 1}]}
    if asked == Names:
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    if not _parts_in(asked):
        return TypeAdapter(asked).json_schema()
    if typing.get_origin(asked) in (typing.Union, types.UnionType):
        return {"anyOf": [_value_schema(choice) for choice in typing.get_args(asked)]}
    if typing.get_origin(asked) is list:
        return {"type": "array", "items": _value_schema(typing.get_args(asked)[0])}
    return _ref(asked.__name__)


def _doc(cls: type[Part]) -> str:
    """The docstring of a part, each paragraph one line."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(cls.__doc__ or "").split("\n\n"))


def _told(cls: type[Part]) -> dict[str, str]:
    """What a docstring says of single settings: `name: ...` or `name, name: ...`, up to the next of them."""
    name = "|".join(settings_of(cls))
    pieces = re.split(rf"(?:^|(?<=[.;] ))((?:(?:{name})(?:, )?)+): ", " ".join(_doc(cls).split())) if name else [""]
    return {each: text.strip() for names, text in zip(pieces[1::2], pieces[2::2], strict=True) for each in names.split(", ")}


def main() -> None:
    """Write all pages and the schema anew."""
    if not SCHEMA.exists() or SCHEMA.read_text(encoding="utf-8") != schema():
        SCHEMA.write_text(schema(), encoding="utf-8")
        print(f"wrote {SCHEMA.relative_to(ROOT)}")
    for page in pages():
        before = page.read_text(encoding="utf-8")
        if (after := filled(before)) != before:
            page.write_text(after, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
