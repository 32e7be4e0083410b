"""Rules of right and wrong: what is read in a completion, and what is refused."""

import sys
import time
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from limbeck.config import build, plain
from limbeck.errors import DataError, LimbeckError, RecipeError
from limbeck.verifiers import Exact, JsonSchema, MultipleChoice, Number, Regex, UnitTests, Verifier


def one(verifier: Verifier, completion: str, **row: object) -> float:
    [mark] = verifier.judge([completion], [{"prompt": "?", **row}])
    return mark


STATED = [
    ("3 + 4 = 7\n#### 7", "7"),
    ("#### $1,234.50", "2469/2"),
    ("#### 5 apples", "5"),
    ("The answer is 42. I checked it 3 times.", "42"),
    ("**Final Answer:** 42", "42"),
    ("**Answer**: $42$", "42"),
    ("Answer: 3 + 4 = 7.", "7"),
    ("answer is x = -5", "-5"),
    ("The answer is:\n\n42\n\nI had 7 tries.", "42"),
    (r"so \boxed{\frac{3}{4}}, found in 9 steps", "3/4"),
    (r"\boxed{-\dfrac12}", "-1/2"),
    (r"\boxed{1\tfrac{1}{2}}", "3/2"),
    (r"\boxed{1{,}234\text{ cm}^2}", "1234"),
    (r"\boxed{5} then \boxed{6}", "6"),
    (r"The answer is \boxed{x = 2 \times 10^{3}}", "2000"),
    (r"\boxed{45^\circ}", "45"),
    (r"\boxed{50\%}", "50"),
    (r"\boxed{\$12}", "12"),
    (r"\boxed{5 m^2}", "5"),
    ("Answer: each of 5 children has 3 apples. So there are 15.", "15"),
    ("#### Step 1: add\nThat gives 42", "42"),
    ("#### 42\nI hope that helps with all 3 questions!", "42"),
    ("it is 5.", "5"),
    ("between 10-15", "15"),
    ("x-3", "3"),
    ("it is −7", "-7"),
    ("it costs -$5", "-5"),
    ("it costs $-5", "-5"),
    ("- 5 apples", "5"),
    ("1½", "3/2"),
    ("minus one half: -½", "-1/2"),
    ("of .5", "1/2"),
    ("let us see...42", "42"),
    ("1\u202f234\u202f567 euros", "1234567"),
    ("12,34,567 rupees", "1234567"),
    ("1,2,3", "3"),
    ("1.5e3", "1500"),
    ("12/4 = 3", "3"),
    ("٤٢", "42"),
    ("2^10", None),
    ("1/0", None),
    ("many", None),
    ("", None),
    ("9" * 5000, None),
    ("<think>it may be 41</think>", None),
    ("<think>it may be 41, or 43", None),
    ("<think>it may be 41</think>So it is 42", "42"),
]


@pytest.mark.parametrize(("completion", "said"), STATED)
def test_the_number_that_is_stated(completion: str, said: str | None) -> None:
    assert Number().said(completion) == said
    assert one(Number(), completion, answer=said or 1) == float(said is not None)
    assert one(Number(), completion, answer="987654.25") == 0.0


STYLES = [
    lambda n: f"{n}",
    lambda n: f"{n:,}",
    lambda n: f"{n}.00",
    lambda n: f"${n:,}",
    lambda n: f"{n:,}".replace("-", "−"),
    lambda n: f"{n:,}".replace(",", "\u202f"),
    lambda n: f"{n:,}".replace(",", "{,}"),
    lambda n: f"{n:,} €",
    lambda n: f"**{n}**",
    lambda n: f"${n}$",
    lambda n: f"{n}0e-1",
    lambda n: f"{2 * n}/2",
    lambda n: rf"\frac{{{3 * n}}}{{3}}",
]
FRAMES = [
    "{}",
    "It took 3 tries; it is {}.",
    "2 + 2 = 4, and so\n#### {}",
    r"\boxed{{{}}} (see page 12)",
    "The answer is {}. Checked 2 times.",
    "answer: {}\n7",
]


@given(st.integers(-(10**12), 10**12), st.sampled_from(STYLES), st.sampled_from(FRAMES))
def test_a_number_is_read_back_however_it_is_written(value: int, style, frame: str) -> None:
    text = frame.format(style(value))
    assert one(Number(), text, answer=value) == 1.0, text
    assert one(Number(), text, answer=f"some reason\n#### {value:,}") == 1.0
    assert one(Number(), text, answer=value + 1) == 0.0


def decimals(most: int, places: int):
    return st.decimals(-most, most, allow_nan=False, places=places)


@given(decimals(10**6, 4), decimals(10, 3))
def test_decimals_are_compared_exactly_unless_told_otherwise(value, far) -> None:
    assert one(Number(), f"it is {value}", answer=float(value)) == 1.0
    assert one(Number(), f"it is {value + 1}", answer=float(value)) == 0.0
    assert one(Number(tolerance=0.3), f"it is {value + far}", answer=str(value)) == float(abs(far) <= Decimal("0.3"))
    assert one(Number(tolerance=0.3), f"it is {value + Decimal('0.3')}", answer=str(value)) == 1.0


def test_a_percentage_is_its_numeral_or_its_hundredth() -> None:
    marks = {(said, row): one(Number(), said, answer=row) for said in ("50%", "50", "0.5", "0.5%") for row in ("50%", "50", "0.5")}
    assert {pair for pair, mark in marks.items() if mark == 0.0} == {("50", "0.5"), ("0.5", "50"), ("0.5%", "50%"), ("0.5%", "50")}


EXACT = [
    ("Paris", "paris", 1.0),
    ("  **Paris**.\n", "Paris", 1.0),
    ("The answer is “New  York”.", "new york", 1.0),
    (r"\boxed{x^{2} + 1}", "x^{2} + 1", 1.0),
    ("ﬁne", "fine", 1.0),
    ("It rains.\n#### Paris", "Berlin is out.\n#### Paris", 1.0),
    ("<think>Paris</think>Berlin", "Paris", 0.0),
    ("Paris, or Berlin", "Paris", 0.0),
    ("", "Paris", 0.0),
]


@pytest.mark.parametrize(("completion", "answer", "mark"), EXACT)
def test_exact(completion: str, answer: str, mark: float) -> None:
    assert one(Exact(), completion, answer=answer) == mark
    assert one(Exact(normalise=False), completion, answer=answer) == 0.0
    assert one(Exact(normalise=False), answer, answer=answer) == 1.0


CHOICE = [
    ("B", "B"),
    ("(b)", "B"),
    ("b.", "B"),
    ("B) because it rains", "B"),
    ("Answer: B", "B"),
    ("**B**", "B"),
    (r"\boxed{\text{(B)}}", "B"),
    ("The answer is (B), not (C).", "B"),
    ("(A) is too small and (C) is too large, so (B)", "B"),
    ("A train is faster. I choose option B", "B"),
    ("The answer is B because vitamin C does not help", "B"),
    ("A train is fast. I would say B", "B"),
    ("I think so", None),
    ("A train is fast", None),
    ("The answer is a dog", None),
    ("Bees", None),
    ("", None),
]


@pytest.mark.parametrize(("completion", "letter"), CHOICE)
def test_multiple_choice(completion: str, letter: str | None) -> None:
    assert MultipleChoice().said(completion) == letter
    assert one(MultipleChoice(), completion, answer="B") == float(letter == "B")
    assert one(MultipleChoice(), completion, answer=1) == float(letter == "B")
    assert one(MultipleChoice(), completion, answer="D") == 0.0


def test_an_option_may_be_told_by_its_text() -> None:
    row = {"choices": ["a cat", "vitamin C", "a black cat", "a dog"], "answer": "A Black Cat"}
    assert one(MultipleChoice(), "The answer is a black cat.", **row) == 1.0
    assert one(MultipleChoice(), "The answer is a cat.", **row) == 0.0
    assert one(MultipleChoice(), "Not a black cat: the answer is vitamin C", **{**row, "answer": "B"}) == 1.0
    assert one(MultipleChoice(choices="1234"), "(3)", **{**row, "choices": {"text": row["choices"], "label": list("1234")}}) == 1.0


def test_patterns() -> None:
    assert one(Regex(r"\d{2}"), "it is 42.") == 1.0
    assert one(Regex(r"\d{2}", full=True), "it is 42.") == 0.0
    assert one(Regex(column="wanted"), "it is 42.", wanted="4.") == 1.0
    began = time.monotonic()
    assert one(Regex(r"(a|a)+\1b$", seconds=0.2), "a" * 60) == 0.0
    assert time.monotonic() - began < 5


SCHEMA = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer"}, "next": {"$ref": "#"}}}
JSON = [
    ('{"age": 4}', 1.0),
    ('Here:\n```json\n{"age": 4}\n```\nas asked.', 1.0),
    ('```\n{"age": "x"}\n```\nno:\n```\n{"age": 4}', 1.0),
    ('<think>{"age": "x"}</think>{"age": 4}', 1.0),
    ('Here: {"age": 4}', 0.0),
    ('{"age": "4"}', 0.0),
    ('{"age": NaN}', 0.0),
    ('{"age": ' + "9" * 5000 + "}", 0.0),
    ('{"age": 1, "next": ' * 400 + "1" + "}" * 400, 0.0),
    ("[" * 100_000, 0.0),
    ("", 0.0),
]


@pytest.mark.parametrize(("completion", "mark"), JSON)
def test_json(completion: str, mark: float) -> None:
    assert one(JsonSchema(SCHEMA), completion) == mark
    assert one(JsonSchema(column="schema"), completion, schema=SCHEMA) == mark
    assert JsonSchema(SCHEMA).said(completion) == '{"age":4}' or mark == 0.0


def test_json_needs_its_library(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(RecipeError, match=r"pip install 'limbeck\[verifiers\]'"):
        JsonSchema(SCHEMA).load()


AWKWARD = [
    *("#### " * 20_000, r"\boxed{" * 20_000, "answer is " * 20_000, "1,11" * 30_000, "1 " * 60_000, "1/" * 60_000, "9" * 100_000, "-" * 100_000),
    *(
        "$ " * 50_000,
        r"\frac{" * 20_000,
        "(" * 100_000,
        "**" * 50_000,
        "```\n" * 30_000,
        " " * 100_000,
        "\n" * 100_000,
        "1e999 × 10^999",
        "\ud800 \0 B",
    ),
    *("<think>" * 10_000, "</think>" * 10_000, "A " * 50_000, "\\" * 100_000, "1." * 50_000, "=1" * 50_000, "{" * 100_000),
]
RULES = [Number(), Exact(), MultipleChoice(), JsonSchema(SCHEMA), Regex("x{3}")]
ROW = {"answer": "B", "choices": ["1", "7", "a cat"]}


@pytest.mark.parametrize("text", AWKWARD, ids=lambda text: ascii(text[:8]))
def test_no_completion_is_long_in_the_reading(text: str) -> None:
    began = time.process_time()
    for rule in RULES:
        assert one(rule, text, **{**ROW, "answer": "77" if rule == Number() else "B"}) in (0.0, 1.0)
        rule.said(text)
    assert time.process_time() - began < 2


@given(st.text(st.sampled_from("19.,-−$%/ ^{}()\\=AbB*`#\n½e:") | st.characters(), max_size=60))
@example("#### \\boxed{")
@settings(max_examples=300)
def test_no_completion_is_refused(text: str) -> None:
    for rule in RULES:
        assert one(rule, text, **{**ROW, "answer": "7" if rule == Number() else "B"}) in (0.0, 1.0)
        said = rule.said(text)
        assert said is None or rule.said(said) == said or rule in (Exact(), JsonSchema(SCHEMA)), "an answer is its own answer"


REFUSED = [
    (Number(), {"solution": "42"}, "a number was asked for in the column answer, found columns prompt, solution"),
    (Number("solution"), {"solution": "none"}, "a number was asked for in the column solution, found 'none'"),
    (Number(), {"answer": True}, "found 'True'"),
    (Number(), {"answer": float("nan")}, "found 'nan'"),
    (Exact(), {"answer": " . "}, "a text was asked for"),
    (MultipleChoice(), {"answer": "E"}, "one of ABCD was asked for in the column answer, found 'E'"),
    (MultipleChoice(), {"answer": 4}, "found '4'"),
    (MultipleChoice(), {"answer": "A", "choices": list("abcde")}, "up to 4 options"),
    (Regex(column="wanted"), {"wanted": "("}, "is no regular expression"),
    (JsonSchema(column="schema"), {"schema": "{"}, "a JSON Schema was asked for"),
    (JsonSchema(column="schema"), {"schema": {"type": "age"}}, "is no JSON Schema"),
    (JsonSchema(column="schema"), {"schema": {"$ref": "http://127.0.0.1:9/x.json"}}, "refers to what is not in it"),
    (UnitTests(), {"tests": "assert True"}, "tests was asked for in the column test, found columns prompt, tests"),
    (UnitTests(), {"test": []}, "every program would pass"),
    (UnitTests(), {"test": "def check(f): pass"}, "the name of the function that the tests check was asked for in the column entry_point"),
]


@pytest.mark.parametrize(("verifier", "row", "why"), REFUSED)
def test_rows_without_what_is_compared_are_refused(verifier: Verifier, row: dict, why: str) -> None:
    with pytest.raises(DataError, match=why):
        one(verifier, "1", **row)


@pytest.mark.parametrize(
    "text",
    [
        "Number(tolerance=-1)",
        "MultipleChoice(choices='AA')",
        "Regex()",
        "Regex('a', column='b')",
        "Regex('(')",
        "JsonSchema()",
        "UnitTests(memory_mb=1)",
    ],
)
def test_nonsense_is_refused_when_read(text: str) -> None:
    with pytest.raises(LimbeckError):
        build(text, Verifier)
    assert build(plain(Number(tolerance=1)), Verifier) == Number(tolerance=1)
