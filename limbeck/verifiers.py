"""Verifiers: what a completion is worth, found by rule. They serve rewards, selection and evaluation alike.

Rules give 1.0 or 0.0, and read what stands after the thinking (`</think>`). No completion can stop them: what cannot be read is wrong.
"""

import ast
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any, Self, cast

import regex

from limbeck import sandbox
from limbeck.answers import parted
from limbeck.config import part
from limbeck.errors import DataError, RecipeError
from limbeck.licensed import Licensed
from limbeck.readings import fenced, first_of, folded, json_of, last_of, number, number_pairs, stated
from limbeck.reward import verifier


class Verifier(Licensed, ABC):
    """Base of all who say how good a completion is: rules here, models in `judges.py`."""

    @classmethod
    def adopt(cls, value: object) -> object:
        """`module:function` may stand for a function of the user's."""
        return Function(value) if isinstance(value, str) and ":" in value and "(" not in value else value

    def load(self) -> Self:
        """The verifier alive; most have nothing to open."""
        return self

    def through(self, wrap: Callable[[Any], Any]) -> "Verifier":
        """The same, the teacher that it asks wrapped, such as in a ledger; most ask none."""
        return self

    @abstractmethod
    def judge(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[float]:
        """How good each completion is. rows: the columns of its row, with `prompt` as text."""

    def said(self, completion: str) -> str | None:
        """What a completion answers, in one spelling, for votes; None where it answers nothing, or this verifier reads no answers."""
        return None


@part
class Function(Verifier):
    """A user's own, `module:function`, called with (completion, row), returning a finite number."""

    function: str

    def load(self) -> Self:
        """Find the function."""
        verifier(self.function)
        return self

    def judge(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[float]:
        """What the function says of each."""
        found = verifier(self.function)
        return [found(completion, row) for completion, row in zip(completions, rows, strict=True)]


class Rule(Verifier, ABC):
    """Base of the rules: a completion is right or wrong."""

    def judge(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[float]:
        """1.0 for each that is right, 0.0 for each that is wrong. Raises DataError for a row without what is compared."""
        return [float(self.right(parted(completion)[1], row)) for completion, row in zip(completions, rows, strict=True)]

    @abstractmethod
    def right(self, completion: str, row: dict[str, Any]) -> bool:
        """Whether a completion, less its thinking, is right."""


@part
class Number(Rule):
    """The number stated after `####`, in `\\boxed{}` or after "the answer is", else the last of all, against that of the row's column.

    The last of these marks counts, where a number follows it without words between, or after `=`. Read are signs, decimals, thousands
    (`1,234`, `1 234` with a no-break space), fractions, `\\frac`, `1 1/2`, `½`, `1e3`, `2 \\times 10^3`, currencies and units; not read:
    decimal commas, words, powers. A percentage equals its numeral, and its hundredth: `50%` is `50` and `0.5`.
    tolerance: how far off a number may be, in its own unit; 0 compares exactly, as fractions.
    """

    column: str = "answer"
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < float("inf"):
            raise RecipeError(f"Number.tolerance must be at least 0 and finite, found {self.tolerance}")

    def right(self, completion: str, row: dict[str, Any]) -> bool:
        """Whether the numbers are equal."""
        given = _given(row, self.column, "a number")
        wanted = None if isinstance(given, bool) else number(str(given))
        if wanted is None:
            raise DataError(f"a number was asked for in the column {self.column}, found {str(given)[:80]!r}")
        found = number(completion)
        return found is not None and any(abs(one - other) <= Fraction(str(self.tolerance)) for one, other in number_pairs(found, wanted))

    def said(self, completion: str) -> str | None:
        """The number, as a whole or a fraction in lowest terms, without its percent sign."""
        found = number(parted(completion)[1])
        return None if found is None else str(found[0])


@part
class Exact(Rule):
    """The completion's text against the row's column: what stands after `####`, in `\\boxed{}` or after "the answer is", else all of it.

    normalise: compare without regard to case, spaces, quotes and stars around, and points at the end (Unicode's NFKC, case folded);
    false compares all of the completion, character by character.
    """

    column: str = "answer"
    normalise: bool = True

    def right(self, completion: str, row: dict[str, Any]) -> bool:
        """Whether the texts are equal."""
        given = str(_given(row, self.column, "a text"))
        wanted = self._read(given)
        if not wanted:
            raise DataError(f"a text was asked for in the column {self.column}, found {given[:80]!r}")
        return self._read(completion) == wanted

    def said(self, completion: str) -> str | None:
        """The answer as it is compared."""
        return self._read(parted(completion)[1]) or None

    def _read(self, text: str) -> str:
        return folded(stated(text) or text) if self.normalise else text


@part
class Regex(Rule):
    """Whether a regular expression is found in the completion; full: whether it is all of it. Given by pattern, or by a row's column.

    seconds: for one completion; where matching takes longer, it is no match.
    """

    pattern: str | None = None
    column: str | None = None
    full: bool = False
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if (self.pattern is None) == (self.column is None):
            raise RecipeError("Regex needs either a pattern or the column that holds one; give one of them")
        if not self.seconds > 0:
            raise RecipeError(f"Regex.seconds must be above 0, found {self.seconds}")
        if self.pattern is not None:
            self._compiled(self.pattern)

    def right(self, completion: str, row: dict[str, Any]) -> bool:
        """Whether it matches."""
        compiled = self._compiled(self.pattern if self.column is None else str(_given(row, self.column, "a regular expression")))
        try:
            return (compiled.fullmatch if self.full else compiled.search)(completion, timeout=self.seconds) is not None
        except TimeoutError:
            return False

    def _compiled(self, pattern: str | None) -> "regex.Pattern[str]":
        try:
            return regex.compile(pattern or "")
        except regex.error as error:
            blame = RecipeError if self.column is None else DataError
            raise blame(f"{str(pattern)[:80]!r} is no regular expression: {error}") from None


@part
class MultipleChoice(Rule):
    """The letter of an option, the last that is stated, or an option's text where the row has `choices`; against the row's column.

    Read in this order: after the last of "the answer is", `####`, `\\boxed{`; the last `(B)`, `**B**`, `B.` or "option B" of all; an
    option's text; a letter alone. The column holds the letter, the option's text, or its place, counted from 0.
    choices: the letters, in the options' order. A row's `choices`: the options' texts, or a mapping with them as `text`.
    """

    column: str = "answer"
    choices: str = "ABCD"

    def __post_init__(self) -> None:
        self.choices = self.choices.upper()
        if len(set(self.choices)) != len(self.choices) or len(self.choices) < 2 or not self.choices.isalnum():
            raise RecipeError(f'MultipleChoice.choices must be two or more different letters, such as "ABCD", found "{self.choices}"')

    def right(self, completion: str, row: dict[str, Any]) -> bool:
        """Whether the letter is the row's."""
        options = self._options(row)
        return self._letter(completion, options) == self._wanted(_given(row, self.column, "an option"), options)

    def said(self, completion: str) -> str | None:
        """The letter, where one is stated."""
        return self._letter(parted(completion)[1], {})

    def _options(self, row: dict[str, Any]) -> dict[str, str]:
        """The letter of each option's text."""
        given: Any = row.get("choices")
        texts: Any = cast(Mapping[str, Any], given).get("text") if isinstance(given, Mapping) else given
        if texts is None:
            return {}
        if not isinstance(texts, list | tuple) or len(cast(list[Any], texts)) > len(self.choices):
            raise DataError(f"up to {len(self.choices)} options were asked for in the column choices, found {str(given)[:80]!r}")
        return {folded(str(text)): letter for letter, text in zip(self.choices, cast(list[Any], texts), strict=False) if folded(str(text))}

    def _wanted(self, given: Any, options: dict[str, str]) -> str:
        if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(self.choices):
            return self.choices[given]
        text = folded(str(given))
        letter = text.strip("().:").upper()
        found = letter if len(letter) == 1 and letter in self.choices else options.get(text)
        if found is None:
            raise DataError(f"one of {self.choices} was asked for in the column {self.column}, found {str(given)[:80]!r}")
        return found

    def _letter(self, completion: str, options: dict[str, str]) -> str | None:
        letters = self.choices + self.choices.lower()
        strong = (
            rf"[(\[]\s?([{letters}])\s?[)\]]|\*\*\s?([{self.choices}])\s?(?:[).:]|\*\*)|(?<![\w'’.])([{self.choices}])[).:](?!\w)"
            rf"|(?i:\b(?:option|choice))\s([{self.choices}])(?!\w)|\A\W{{0,4}}([{letters}])\W{{0,4}}\Z"
        )
        weak = rf"(?<![\w'’])([{self.choices}])(?![\w'’])"
        line = stated(completion)
        if line is not None:
            found = first_of(strong, line) or _option(line, options) or first_of(weak, line)
            if found is not None:
                return found
        return last_of(strong, completion) or _option(completion, options) or last_of(rf"{weak}(?!(?<=[AI])\s[a-z])", completion)


@part
class JsonSchema(Rule):
    """Whether the completion is JSON, bare or in its last code fence, that fits a JSON Schema, given here or in a row's column.

    A schema's own patterns are matched without a limit of time; references to other files are not followed.
    """

    schema: dict[str, Any] | None = None
    column: str | None = None

    def __post_init__(self) -> None:
        if (self.schema is None) == (self.column is None):
            raise RecipeError("JsonSchema needs either a schema or the column that holds one; give one of them")

    def load(self) -> Self:
        """See that the library is there, and that the schema is one."""
        _validator(self.schema or {}, RecipeError)
        return self

    def right(self, completion: str, row: dict[str, Any]) -> bool:
        """Whether it fits."""
        validator = self._validator(row)
        found = json_of(completion)
        try:
            return bool(found) and validator.is_valid(found[0])
        except (RecursionError, OverflowError):  # an instance too deep, or a number too large
            return False
        except Exception as error:
            if "Unresolvable" not in {cls.__name__ for cls in type(error).__mro__}:
                raise
            raise (DataError if self.column else RecipeError)(f"the schema refers to what is not in it: {error}") from None

    def said(self, completion: str) -> str | None:
        """The JSON with its keys in order, without spaces."""
        found = json_of(parted(completion)[1])
        return json.dumps(found[0], sort_keys=True, separators=(",", ":")) if found else None

    def _validator(self, row: dict[str, Any]) -> Any:
        if self.column is None:
            return _validator(self.schema, RecipeError)
        given = _given(row, self.column, "a JSON Schema")
        try:
            return _validator(json.loads(given) if isinstance(given, str) else given, DataError)
        except json.JSONDecodeError:
            raise DataError(f"a JSON Schema was asked for in the column {self.column}, found {str(given)[:80]!r}") from None


@part
class UnitTests(Verifier):
    """Whether the completion's Python passes the row's tests, in a sandbox (`limbeck/sandbox.py` says what holds there, and what does not).

    The code: every block fenced as Python, else every fenced block, else all of it. The tests: a column of statements, or a list of them;
    functions `test_*` and unittests in them are run too. Where the row has `entry_point`, as in HumanEval (arXiv 2107.03374), `prompt`
    stands before the code if it is Python, and the tests' `check` is called with the function of that name.
    seconds: for one completion, by the clock. memory_mb: in MiB. As many run side by side as there are cores.
    """

    column: str = "test"
    seconds: float = 5.0
    memory_mb: int = 512

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 3600 or not 64 <= self.memory_mb <= 2**20:
            why = f"found {self.seconds} seconds and {self.memory_mb} MiB"
            raise RecipeError(f"UnitTests needs above 0 and up to 3600 seconds, and from 64 MiB up to 1 TiB, {why}")

    def load(self) -> Self:
        """See that programs can be run here. Raises RecipeError where they cannot."""
        sandbox.probe()
        return self

    def judge(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[float]:
        """1.0 for each that passes its tests in time. Raises DataError for a row without tests."""
        tests = [self._tests(row) for row in rows]
        programs = [_program(parted(completion)[1], row) for completion, row in zip(completions, rows, strict=True)]
        self.load()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            passed = pool.map(lambda program, test: sandbox.passes(program, test, self.seconds, self.memory_mb), programs, tests)
            return [float(each) for each in passed]

    def _tests(self, row: dict[str, Any]) -> str:
        """The statements that must run to their end."""
        given: Any = _given(row, self.column, "tests")
        tests = "\n".join(map(str, cast(list[Any], given))) if isinstance(given, list | tuple) else str(given)
        if not tests.strip():
            raise DataError(f"tests were asked for in the column {self.column}, found none; every program would pass")
        if not re.search(r"^def check\(", tests, re.MULTILINE):
            return tests
        return f"{tests}\n\ncheck({_given(row, 'entry_point', 'the name of the function that the tests check')})\n"


def _given(row: Mapping[str, Any], column: str, asked: str) -> Any:
    if row.get(column) is None:
        raise DataError(f"{asked} was asked for in the column {column}, found columns {', '.join(map(str, row)) or 'none'}; name the column")
    return row[column]


def _option(text: str, options: dict[str, str]) -> str | None:
    """The letter of the option whose text comes last in a text."""
    longest = "|".join(map(re.escape, sorted(options, key=len, reverse=True)))
    found = re.findall(rf"(?<!\w)(?:{longest})(?!\w)", folded(text)) if options else []
    return options[found[-1]] if found else None


def _program(completion: str, row: Mapping[str, Any]) -> str:
    """The Python to be tested: the completion's, after the prompt's where that is Python and the row names the function in it."""
    blocks = fenced(completion)
    marked = [content for mark, content in blocks if mark in ("python", "py", "python3")]
    code = "\n\n".join(marked or [content for _, content in blocks]) if blocks else completion
    prompt, name = str(row.get("prompt") or ""), str(row.get("entry_point") or "")
    if not name or not _is_python(prompt):
        return code
    whole = re.search(rf"^(?:async )?def {re.escape(name)}\b", code, re.MULTILINE)
    return f"{prompt}\n    pass\n\n{code}" if whole else prompt + code


def _is_python(prompt: str) -> bool:
    """Whether a prompt is the head of a function, its body still to be written."""
    try:
        ast.parse(f"{prompt}\n    pass\n")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _validator(schema: Any, blame: type[DataError] | type[RecipeError]) -> Any:
    try:
        from jsonschema import SchemaError, validators
        from referencing import Registry
    except ImportError:
        raise RecipeError("JsonSchema needs jsonschema; pip install 'limbeck[verifiers]'") from None
    try:
        made = validators.validator_for(schema, default=validators.Draft202012Validator)
        made.check_schema(schema)
    except SchemaError as error:
        raise blame(f"what was given is no JSON Schema: {error.message[:200]}") from None
    return made(schema, registry=Registry())
