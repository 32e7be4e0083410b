"""Recipe files: whatever is wrong in one is told in one line, with the file and the line of it."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck import methods
from limbeck.config import build_file, read_yaml, to_yaml
from limbeck.errors import DataError, LimbeckError, RecipeError
from limbeck.recipe import Recipe
from limbeck.settings_file import open_settings, yaml_of
from limbeck.student import Student

HEAD = "student: s\nsource: Corpus('a')\nteacher: Local('t')\n"
"""Three lines of a recipe that needs no more."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files") / "recipe.yaml"


def refused(file: Path, text: str | bytes) -> str:
    """What is said of a file, from its name on."""
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(LimbeckError) as caught:
        Recipe.read(file)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(file)), str(caught.value)
    return file.name + str(caught.value).removeprefix(str(file))


@pytest.mark.parametrize(
    "text, said",
    [
        (HEAD + "objective: ForwardKL(temprature=2)\n", 'line 4: ForwardKL has no setting "temprature"; did you mean "temperature"?'),
        (HEAD + "\n# how far\nobjective:\n  ForwardKL(\n    temprature=2)\n", 'line 7: ForwardKL has no setting "temprature"'),
        (HEAD + "objective: >\n  ForwardKL()\n  + JDS()\n", 'line 4: there is no Part "JDS"; did you mean "JSD"?'),
        (HEAD + "objective:\n- JSD\n- type: ForwardKL\n  weight: 2\n  temprature: 2\n", 'line 8: ForwardKL has no setting "temprature"'),
        (HEAD + "objective:\n- JSD\n- ForwardKL(temprature=2)\n", 'line 6: ForwardKL has no setting "temprature"'),
        (HEAD + "objective:\n  type: Objective\n  terms:\n  - JSD\n  -\n    type: JDS\n", 'line 9: there is no Term "JDS"'),
        (HEAD + "objective:\n  weight: 2\n  type: JDS\n", 'line 6: there is no Term "JDS"'),
        (HEAD + "objective: JSD + JSD\n", "line 4: an objective with two terms of one name"),
        (HEAD + "objective: []\n", "line 4: an objective needs a term"),
        (HEAD + "evaluations:\n- Likelihood('h')\n- {type: Likelihood,\n   data: h,\n   rows: x}\n", "line 8: Likelihood.rows: input should be"),
        (HEAD + "evaluations: JSD\n", "line 4: Recipe.evaluations: input should be a valid list"),
        (HEAD + "trackers:\n- wandb\n- wanda\n", "line 6: Recipe.trackers.1: input should be"),
        (HEAD + "stepps: 3\n", 'line 4: Recipe has no setting "stepps"; did you mean "steps"?'),
        (HEAD + "self: 3\n", 'line 4: Recipe has no setting "self"'),
        (HEAD + "seed: 1\n\nsteps: many\n", "line 6: Recipe.steps: input should be a valid integer"),
        ("student: s\nsource:\n  type: Corpus\n  data:\n    path: a\n    wieght: 3\n", 'line 6: Data has no setting "wieght"'),
        ("student: s\nsource:\n  type: Corpus\n  data:\n  - a\n  - wieght: 3\n    path: a\n", 'line 6: Data has no setting "wieght"'),
        ("student: s\nsource:\n  type: OnPolicy\n", "line 2: OnPolicy needs prompts"),
        ("student: s\nsource:\nsteps: 3\n", "line 2: a Source was asked for, found None"),
        ("source: Corpus('a')\nstudent: {model: s, lora: {targets: [\na,\n1]}}\n", "line 4: LoRA.targets"),
        ("source: Corpus('a')\nstudent:\n  model: s\n  optimizer:\n    warmup: 2\n", "line 4: warmup is a share of the steps"),
        ("source: Corpus('a')\nstudent:\n  model: s\n  optimizer: &o {clip: 1}\n  lora: *o\n", 'line 4: LoRA has no setting "clip"'),
        ("student: s\n", "recipe.yaml: Recipe needs source: give it a value"),
        (HEAD + "objective: ForwardKL()\nkeep: best\n", "recipe.yaml: keeping the best and stopping early need"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_line(text: str, said: str, file: Path) -> None:
    assert said in refused(file, text)


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "recipe.yaml is empty; a recipe needs at least"),
        ("# nothing yet\n", "recipe.yaml is empty; a recipe needs at least"),
        ("- a\n- b\n", "recipe.yaml holds a list where a mapping of settings was expected"),
        ("only words\n", "recipe.yaml holds text where a mapping of settings was expected"),
        (HEAD + "steps: 1\nseed: 2\n'steps': 1\n", 'line 6: "steps" is given twice, first in line 4; keep one'),
        ("source:\n  {type: Corpus, data: a,\n   data: b}\nstudent: s\n", 'line 3: "data" is given twice, first in line 2; keep one'),
        (HEAD + "evaluations:\n- type: Likelihood\n  data: {path: a,\n    path: b}\n", 'line 7: "path" is given twice, first in line 6'),
        (HEAD + "1: 2\n", 'line 4: the key "1" is read as a number, and names of settings are text; put it in quotes'),
        (HEAD + "null: 2\n", 'line 4: the key "null" is read as null'),
        (HEAD + "yes: 2\n", 'line 4: the key "yes" is read as true or false'),
        (HEAD + "true: 2\n", 'line 4: the key "true" is read as true or false'),
        (HEAD + "1e-4: 2\n", 'line 4: the key "1e-4" is read as a number'),
        (HEAD + "?\n: 2\n", 'line 4: the key "" is read as null'),
        (HEAD + "? [a]\n: 2\n", "line 4: a key is read as a list"),
        ("student: {model: {{name}}}\n", "line 1: a key is read as a mapping"),
        (HEAD + "\tsteps: 3\n", "line 4: no YAML (found character '\\t' that cannot start any token); indent with spaces"),
        (HEAD + "steps: [3\nseed: 1\n", "line 5: no YAML (while parsing a flow sequence begun in line 4, expected"),
        ("student: a: b\n", 'line 1: no YAML (mapping values are not allowed here); put text that holds ": " in quotes'),
        ("source: Corpus('a')\nstudent: @a\n", "line 2: no YAML (found character '@' that cannot start any token); put the text in quotes"),
        ("student: 'a\n\n\nb", "line 4: no YAML (while scanning a quoted scalar begun in line 1"),
        ("a: 1\nb: \x07\n", "line 2: no YAML (special characters are not allowed: #x0007); remove the character"),
        (HEAD + "---\nstudent: s\n", "line 4: no YAML (expected a single document"),
        ("student: s\nsource: !!python/object/apply:os.system [true]\n", "line 2: no YAML (the tag '!!python/object/apply:os.system' is unknown)"),
        ("student: !own s\n", "line 1: no YAML (the tag '!own' is unknown); write plain values"),
        ("student: *b\n", "line 1: no YAML (found undefined alias 'b')"),
        ("a: 1\nsource: &a\n  first: {first: *a}\n", "line 2: an anchor that stands within itself has no end; write it out"),
        ("student:\n  <<: 3\n", "line 2: no YAML (while constructing a mapping begun in line 2, expected a mapping"),
        ("steps: !!int x\n", "recipe.yaml: no YAML (invalid literal for int()"),
        ("[" * 2000, "recipe.yaml nests deeper than any recipe"),
        ("student: s".encode("utf-16"), "recipe.yaml: not UTF-8 at byte 0; save the file as UTF-8"),
    ],
)  # fmt: skip
def test_a_file_that_says_nothing_clear(text: str | bytes, said: str, file: Path) -> None:
    assert said in refused(file, text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no recipe file .*none\.yaml; give a YAML file or a method's name"):
        read_yaml(tmp_path / "none.yaml")


def test_an_error_of_the_data_stays_one(file: Path) -> None:
    file.write_text("student: s\nsource:\n  type: Corpus\n  data: {path: a, weight: 0}\n")
    with pytest.raises(DataError, match=r"recipe\.yaml, line 4: a: a weight of 0\.0 would never be drawn"):
        Recipe.read(file)


FULL = methods.gkd("s", "t", prompts=["p", "q"], data="d", objective="ForwardKL() + 0.5 * JSD(0.3)", evaluations=["Likelihood('h')"]).yaml
"""A recipe of many parts with every setting spelled out, one a line."""
KEY = re.compile(r"^([\s-]*)(\w+):(.*)$")
LINES = [(number, KEY.match(line)) for number, line in enumerate(FULL.splitlines(), 1)]
KEYS = [(number, *found.groups()) for number, found in LINES if found]


def changed(number: int, *lines: str) -> str:
    """The recipe with one of its lines replaced."""
    before = FULL.splitlines()
    return "\n".join([*before[: number - 1], *lines, *before[number:]])


def test_every_key_that_is_misspelt_is_found_in_its_line(file: Path) -> None:
    for number, indent, key, value in KEYS:
        if key != "type":
            said = refused(file, changed(number, f"{indent}{key}_:{value}"))
            assert said.startswith(f"recipe.yaml, line {number}: ") and f'has no setting "{key}_"; did you mean "{key}"?' in said


def test_every_value_that_is_wrong_is_found_in_its_line(file: Path) -> None:
    for number, indent, key, value in KEYS:
        if value:
            assert f"recipe.yaml, line {number}: " in refused(file, changed(number, f"{indent}{key}: [[]]"))


def test_every_key_that_is_given_twice_is_found_with_both_lines(file: Path) -> None:
    for number, indent, key, value in KEYS:
        if value:
            again = f"{re.sub('-', ' ', indent)}{key}:{value}"
            said = f'recipe.yaml, line {number + 1}: "{key}" is given twice, first in line {number}; keep one'
            assert refused(file, changed(number, f"{indent}{key}:{value}", again)) == said


def test_the_recipe_of_these_tests_has_something_of_everything() -> None:
    assert len(KEYS) > 60 and {"type", "data", "prompts", "sampling", "terms", "learning_rate"} - {key for _, _, key, _ in KEYS} == {"terms"}


@pytest.mark.parametrize(
    "text, settings",
    [
        ("learning_rate: 1e-4\nclip: 2E+3\nwarmup: -.5e-1", {"learning_rate": 1e-4, "clip": 2000.0, "warmup": -0.05}),
        ("a: '1e-4'\nb: 1e-4x\nc: e-4\nd: 1e", {"a": "1e-4", "b": "1e-4x", "c": "e-4", "d": "1e"}),
        ("a: 2024-07-26\nb: 2024-02-31", {"a": "2024-07-26", "b": "2024-02-31"}),
        ("\ufeffa: 1", {"a": 1}),
        ("%YAML 1.2\n---\na: ü 字\r\n...\n", {"a": "ü 字"}),
        ("a: &x {k: 1}\nb: *x\nc: {<<: *x, l: 2}\nd: {<<: *x, k: 3}", {"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1, "l": 2}, "d": {"k": 3}}),
        ("a: [yes, off, ~, 0x10]", {"a": [True, False, None, 16]}),
    ],
)  # fmt: skip
def test_what_people_write_is_read_as_they_mean_it(text: str, settings: dict[str, Any], file: Path) -> None:
    file.write_text(text, newline="")
    assert read_yaml(file) == settings


def test_a_learning_rate_in_powers_of_ten_is_a_number(file: Path) -> None:
    file.write_text("model: s\noptimizer: {learning_rate: 3e-5}\nlora: {options: {lora_bias: 1e-1}}\n")
    student = build_file(file, Student)
    assert student.optimizer.learning_rate == 3e-5
    assert student.lora is not None and student.lora.options == {"lora_bias": 0.1}


ODD = st.sampled_from(
    ["1e-4", "-.5E3", "2024-07-26", "yes", "null", "~", "0o7", "1:30", "<<", "=", "", " a", "a: b", "a #b", "@a", "é\n\tb", "\ufeff"]
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | ODD, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)
@given(made=st.dictionaries(st.text(max_size=5) | ODD, PLAIN, max_size=4))
def test_what_is_written_is_read_again(file: Path, made: dict[str, Any]) -> None:
    file.write_text(yaml_of(made), encoding="utf-8", newline="")
    assert made == (read_yaml(file) if made else {})


@settings(deadline=None)
@given(text=st.text(st.sampled_from("ab:-[]{},&*!'\"|>#%@? \n\t\u00e9\x00<~1."), max_size=40) | st.binary(max_size=20))
def test_no_file_raises_another_kind(file: Path, text: str | bytes) -> None:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    try:
        assert isinstance(read_yaml(file), dict)
    except RecipeError as error:
        assert "\n" not in str(error) and "recipe.yaml" in str(error)


def test_a_place_that_a_file_does_not_spell_out_is_the_nearest_that_it_does(file: Path) -> None:
    file.write_text("a:\n  b: c\n  d:\n  - e\n  - f: g\n")
    opened = open_settings(file)
    places = {(): "", ("x",): "", ("a",): ", line 1", ("a", 0, "b"): ", line 2", ("a", "x"): ", line 1", ("a", "d", 1, "f", "x"): ", line 5",
              ("a", "d", 7): ", line 3", ("a", "d", -1): ", line 3", ("a", "b", "b"): ", line 2"}  # fmt: skip
    assert {steps: opened.place(steps) for steps in places} == {steps: f"{file}{where}" for steps, where in places.items()}


def test_a_text_that_looks_like_a_number_stays_text(file: Path) -> None:
    made = Student("1e-4", attention="2024-07-26")
    file.write_text(to_yaml(made))
    assert build_file(file, Student) == made
