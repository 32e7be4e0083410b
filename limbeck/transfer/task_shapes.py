"""Tasks: prompts whose answers a rule can verify, read from files whose columns say what they are.

`FILE` is recognised by its columns, `FILE:VERIFIER` is judged by any verifier, `lm_eval:NAME` is a task of lm-evaluation-harness.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

from limbeck import judges, verifiers  # noqa: F401  # judges are verifiers too, and known by name once they are read
from limbeck.config import build, find
from limbeck.data import Data, Row, asked_of
from limbeck.errors import DataError, LimbeckError, RecipeError
from limbeck.readings import NUMBER
from limbeck.verifiers import Exact, Function, MultipleChoice, Number, Rule, UnitTests, Verifier

Template = Literal["auto", "chat", "plain"]
FILE = re.compile(r"(?P<path>.+?\.(?:jsonl|json|parquet))(?::(?P<verifier>.+))?", re.DOTALL)
HARNESS = "lm_eval:"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
STOPS = re.compile(r"\n(?:class|def|#|if|print)")
"""Where a function that a model goes on with has ended (arXiv 2107.03374, section 2)."""
TO_COMPLETE = "Complete this Python function. Answer with the whole function, in one block of code.\n\n```python\n{}\n```"


@dataclass(frozen=True)
class Shape:
    """A kind of rows. needs: its columns. asked: what a model is asked, by whether it is rendered as a chat. verifier: of all rows.

    fits: whether a row is one of these, beyond its columns; `wants` says it in words. goes_on: without a chat, answers go on with the prompt.
    """

    name: str
    needs: tuple[str, ...]
    wants: str
    asked: Callable[[Row, bool], str]
    verifier: Callable[[Sequence[Row]], Verifier]
    fits: Callable[[Row], bool] = lambda row: True
    goes_on: bool = False

    def lacks(self, row: Row) -> str | None:
        """What a row misses of this shape, in words."""
        missing = [name for name in self.needs if row.get(name) is None or row[name] == ""]
        if missing:
            return f"no {missing[0]}, found columns {', '.join(map(str, row)) or 'none'}"
        return None if self.fits(row) else f"{self.wants} was asked for, found {_brief(row, self.needs)}"


def _brief(row: Row, needs: Sequence[str]) -> str:
    return ", ".join(f"{name} {str(row[name])[-40:]!r}" for name in needs[-2:])


def _options(row: Row) -> list[str]:
    """The options' texts; none where they cannot be read."""
    given: Any = row.get("choices")
    texts = cast(Any, given).get("text") if isinstance(given, dict) else given
    return [str(each) for each in cast(list[Any], texts)] if isinstance(texts, list | tuple) else []


def _choices(row: Row, chat: bool) -> str:
    """A question of MMLU as its paper asks it (arXiv 2009.03300), without examples."""
    options = [f"{letter}. {text}" for letter, text in zip(LETTERS, _options(row), strict=False)]
    return "\n".join([str(row["question"]).strip(), *options, "Answer:"])


def _own(rows: Sequence[Row]) -> Verifier:
    """Number where every answer is one, else Exact."""
    numbers = all(not isinstance(row["answer"], bool) and NUMBER.fullmatch(str(row["answer"]).strip()) for row in rows)
    return Number() if numbers else Exact()


SHAPES = (
    Shape("HumanEval", ("prompt", "test", "entry_point"), "a program and its tests",
          lambda row, chat: TO_COMPLETE.format(str(row["prompt"]).strip("\n")) if chat else str(row["prompt"]),
          lambda rows: UnitTests(), goes_on=True),
    Shape("MMLU", ("question", "choices", "answer"), "2 to 26 choices", _choices,
          lambda rows: MultipleChoice(choices=LETTERS[: max(len(_options(row)) for row in rows)]),
          lambda row: 2 <= len(_options(row)) <= len(LETTERS)),
    Shape("GSM8K", ("question", "answer"), "an answer with `#### 42` at its end",
          lambda row, chat: str(row["question"]), lambda rows: Number(), lambda row: "####" in str(row["answer"])),
    Shape("own", ("prompt", "answer"), "a prompt and its answer", lambda row, chat: str(row["prompt"]), _own),
)  # fmt: skip
"""Those that are recognised, the narrower before the wider."""
PROMPTS = ("prompt", "messages", "conversations", "prompt_ids")


@dataclass(frozen=True)
class Task:
    """Rows of a file, what is asked in them, and who judges the answers. first: the number of the first row, for messages."""

    name: str
    spec: str
    path: str
    shape: Shape
    verifier: Verifier
    rows: list[dict[str, Any]]

    def data(self, template: Template) -> Data:
        """How its prompts are rendered."""
        return Data(self.path, template=template)

    def asked(self, row: Row, chat: bool) -> dict[str, Any]:
        """A row as models are asked it."""
        turns = {name: value for name, value in row.items() if name in (*PROMPTS, "tools") and value is not None}
        return turns if self.shape.name == "own" and turns else {"prompt": self.shape.asked(row, chat)}

    def told(self, row: Row) -> dict[str, Any]:
        """A row as its verifier is told it."""
        return {**row, "prompt": row.get("prompt") or asked_of(self.asked(row, True))}

    def read(self, completion: str, chat: bool) -> str:
        """What of a completion is judged: where it goes on with its prompt, the part that belongs to it."""
        return STOPS.split(completion)[0] if self.shape.goes_on and not chat and "```" not in completion else completion

    @property
    def letters(self) -> str:
        """Of the options, where their likelihood can be compared."""
        return self.verifier.choices if self.shape.name == "MMLU" and isinstance(self.verifier, MultipleChoice) else ""

    def options(self, row: Row) -> list[str]:
        """The options' texts of a row."""
        return _options(row)

    def wanted(self, row: Row) -> Any:
        """The answer, for people to read."""
        return row.get("canonical_solution") if self.shape.goes_on else row.get(getattr(self.verifier, "column", None) or "answer")


def read_tasks(specs: Sequence[str], rows: int) -> list[Task]:
    """The tasks of files, in their order; see the module. rows: how many of each are taken.

    Raises RecipeError for what is no task, and DataError for rows that cannot be judged.
    """
    repeated = sorted({spec for spec in specs if specs.count(spec) > 1})
    if repeated:
        raise RecipeError(f"the task {repeated[0]} was given {specs.count(repeated[0])} times; give it once")
    return [_task(spec, name, rows) for spec, name in names(specs).items() if not spec.startswith(HARNESS)]


def names(specs: Sequence[str]) -> dict[str, str]:
    """Each task's name: that of its file without its end, or all that was given where two are called the same."""
    short = [_short(spec) for spec in specs]
    return {spec: name if short.count(name) == 1 else spec for spec, name in zip(specs, short, strict=True)}


def _short(spec: str) -> str:
    found = FILE.fullmatch(spec)
    name = spec.removeprefix(HARNESS)
    return Path(found["path"]).stem if found and not spec.startswith(HARNESS) else Path(name).stem if name.endswith((".yaml", ".yml")) else name


def _task(spec: str, name: str, count: int) -> Task:
    found = FILE.fullmatch(spec)
    if found is None:
        raise RecipeError(f'a task is a file such as math.jsonl, math.jsonl:VERIFIER, or lm_eval:NAME; found "{spec}"')
    path, verifier = found["path"], found["verifier"] and named(found["verifier"])
    rows = [dict(row) for row in islice(Data(path).stream(), count)]
    if not rows:
        raise DataError(f"{path} holds no rows; give it at least one")
    shape = _shape(path, rows[0], verifier is not None)
    for number, row in enumerate(rows, 1):
        if lacking := shape.lacks(row):
            raise DataError(f"{path}, row {number}: {lacking}; a task of the shape {shape.name} needs {', '.join(shape.needs)} in every row")
    task = Task(name, spec, path, shape, verifier or shape.verifier(rows), rows)
    _see_answers(task)
    return task


def named(text: str) -> Verifier:
    """The verifier that a task names. Raises RecipeError for one that does not exist, with what may be meant."""
    if name := re.match(r"\s*(\w+)\s*(?:\(|$)", text):
        find(name[1], Verifier)
    return build(text, Verifier)


def _shape(path: str, row: Row, judged: bool) -> Shape:
    """The first shape whose columns a row has. judged: a verifier was named, so that a prompt alone will do."""
    found = next((shape for shape in (SHAPES[:-1] if judged else SHAPES) if shape.lacks(row) is None), None)
    if found is None and any(row.get(name) is not None for name in PROMPTS) and (judged or row.get("answer") is not None):
        needs = (next(name for name in PROMPTS if row.get(name) is not None), *(() if judged else ("answer",)))
        return Shape("own", needs, "a prompt", lambda row, chat: asked_of(row), _own)
    if found is None and judged and row.get("question") is not None:
        return Shape("questions", ("question",), "a question", lambda row, chat: str(row["question"]), _own)
    if found is None:
        known = ", ".join(f"{shape.name} ({', '.join(shape.needs)}{'; ' + shape.wants if shape.name == 'GSM8K' else ''})" for shape in SHAPES)
        raise DataError(f"{path}: found columns {', '.join(map(str, row)) or 'none'}, which are no task; recognised are {known}; "
                        f"with a prompt in each row, name a verifier: {path}:VERIFIER")  # fmt: skip
    return found


def _see_answers(task: Task) -> None:
    """See, before anybody writes, that every row has what its verifier compares, and that the verifier can run here."""
    if isinstance(task.verifier, Rule | UnitTests | Function):
        task.verifier.load()
    if not isinstance(task.verifier, Rule | UnitTests):
        return
    column = getattr(task.verifier, "column", None)
    for number, row in enumerate(task.rows, 1):
        if column is not None and row.get(column) in (None, "", []):
            raise DataError(f"{task.path}, row {number}: no answer in the column {column}, found columns {', '.join(map(str, row))}; "
                            "give every row one, or name the column in the verifier")  # fmt: skip
        try:
            if not isinstance(task.verifier, UnitTests):
                task.verifier.judge([""], [task.told(row)])
        except LimbeckError as error:
            raise type(error)(f"{task.path}, row {number}: {error}") from None
