"""Parts as plain data: three spellings of one part, there and back, and every slip in one line."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import limbeck.condensing
import limbeck.methods
from limbeck import pipeline, shrink  # noqa: F401  # parts of theirs are known once they are read
from limbeck.config import Part, build, import_object, override, part, plain, to_yaml
from limbeck.data import Data
from limbeck.decoding import Sampling
from limbeck.divergence import JSD, ForwardKL, ReverseKL, SkewKL
from limbeck.errors import DataError, LimbeckError, RecipeError
from limbeck.objective import CrossEntropy, CustomTerm, Objective, Term
from limbeck.recipe import Recipe
from limbeck.rollouts import OnPolicy
from limbeck.sources import Corpus, Mix, Source
from limbeck.student import Student
from limbeck.teachers import Local, Silent, Teacher

NEEDED = {"model": "a/b", "data": "a.jsonl", "prompts": "p.jsonl", "path": "a.jsonl", "function": "mod:f", "fraction": 0.25, "student": "a/b",
          "terms": [ForwardKL()], "first": OnPolicy("p.jsonl"), "second": Corpus("a.jsonl"), "source": Corpus("a.jsonl"),
          "folder": "teacher-scores", "teachers": {"one": Local("a"), "two": Local("b")}, "base_url": "http://127.0.0.1/v1",
          "teacher": Local("a"), "writer": Local("a"), "seeds": "seeds.jsonl", "count": 5, "verifier": "Number()",
          "scale": 1.5, "hint": "{answer}", "rows": 3, "method": "Herding('a/b', rows=3)",
          "stages": {"one": Recipe(Student("a/b"), Corpus("a.jsonl"))}}  # fmt: skip
"""A value for each setting that has no default."""
EITHER = {"Regex": {"pattern": "a"}, "JsonSchema": {"schema": {"type": "object"}}, "Order": {"prompts": Data("p.jsonl")}, "Shape": {"layers": 2}}
"""What parts need of which one or the other is enough."""


def concrete() -> list[type[Part]]:
    return [Part.registry[name] for name in Part.known() if Part.registry[name].__module__.startswith("limbeck.")]


def minimal(cls: type[Part]) -> Part:
    fields = dataclasses.fields(cls)
    bare = (dataclasses.MISSING, dataclasses.MISSING)
    needed = {f.name: NEEDED[f.name] for f in fields if f.init and (f.default, f.default_factory) == bare}
    return cls(**needed, **EITHER.get(cls.__name__, {}))


def refused(spelling: object, base: type[Part]) -> str:
    with pytest.raises(LimbeckError) as caught:
        build(spelling, base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "made, mapping, call",
    [
        (ForwardKL(temperature=2), {"type": "ForwardKL", "temperature": 2}, "ForwardKL(temperature=2)"),
        (JSD(0.3), {"type": "JSD", "beta": 0.3}, "JSD(0.3)"),
        (JSD(), {"type": "JSD"}, "JSD"),
        (2 * JSD(0.3).on("student"), {"type": "JSD", "beta": 0.3, "weight": 2, "writer": "student"}, 'JSD(0.3).on("student") * 2'),
        (Local("a/b", dtype="float32"), {"type": "Local", "model": "a/b", "dtype": "float32"}, 'Local("a/b", dtype="float32")'),
        (Silent(), {"type": "Silent"}, "Silent()"),
        (Corpus("a.jsonl", sequences=4), {"type": "Corpus", "data": "a.jsonl", "sequences": 4}, "Corpus('a.jsonl', sequences=4)"),
        (Corpus([Data("a", weight=2), Data("b")]), {"type": "Corpus", "data": [{"path": "a", "weight": 2}, "b"]},
         'Corpus([{"path": "a", "weight": 2}, "b"])'),
        (Mix(0.5, OnPolicy("p"), Corpus("a")),
         {"type": "Mix", "fraction": 0.5, "first": {"type": "OnPolicy", "prompts": "p"}, "second": "Corpus('a')"},
         "Mix(0.5, OnPolicy('p'), Corpus('a'))"),
        (OnPolicy("p", sampling=Sampling(8, top_k=None)), {"type": "OnPolicy", "prompts": "p", "sampling": {"max_tokens": 8}},
         "OnPolicy('p', sampling=Sampling(8, top_k=null))"),
        (Student("a/b", dtype="float32"), {"model": "a/b", "dtype": "float32"}, "Student('a/b', dtype='float32')"),
        (Data("a", streaming=True), {"path": "a", "streaming": True}, "Data('a', streaming=true)"),
    ],
)  # fmt: skip
def test_a_call_a_mapping_and_python_mean_the_same(made: Part, mapping: dict, call: str) -> None:
    base = next(cls for cls in (Term, Teacher, Source, Student, Data) if isinstance(made, cls))
    assert build(mapping, base) == build(yaml.safe_load(yaml.safe_dump(mapping)), base) == build(call, base) == made


@pytest.mark.parametrize(
    "call, made",
    [
        ("ReverseKL() + 0.5 * JSD(0.3)", ReverseKL() + 0.5 * JSD(0.3)),
        ("2 * (ReverseKL() + JSD())", 2 * (ReverseKL() + JSD())),
        ("ForwardKL(temperature=2 * 2 - 1)", Objective([ForwardKL(temperature=3)])),
        ("[ForwardKL(), -1 * JSD()]", ForwardKL() + -1 * JSD()),
        ([{"type": "ForwardKL"}, "JSD(0.1)"], ForwardKL() + JSD(0.1)),
        ({"type": "Objective", "terms": ["ForwardKL"]}, Objective([ForwardKL()])),
        (SkewKL(), Objective([SkewKL()])),
    ],
)
def test_sums_of_terms(call: object, made: Objective) -> None:
    assert build(call, Objective) == made


@pytest.mark.parametrize("cls", concrete(), ids=lambda cls: cls.__name__)
def test_every_part_survives_yaml(cls: type[Part]) -> None:
    made = minimal(cls)
    assert build(yaml.safe_load(to_yaml(made)), cls) == made
    assert made.fresh() == made


METHODS = {
    "sft": {"data": "a.jsonl"},
    "kd": {"teacher": "t", "data": ["a.jsonl", Data("b", weight=3)], "temperature": 2.0, "alpha": 0.25},
    "gkd": {"teacher": "t", "prompts": "p.jsonl", "data": "a.jsonl", "objective": SkewKL(0.2)},
    "on_policy": {"teacher": Local("t", dtype="float32"), "prompts": "p.jsonl", "seed": 3},
    "distillm": {"teacher": "t", "prompts": "p.jsonl", "data": "a.jsonl", "steps": 7},
    "gkd_rl": {"teacher": "t", "prompts": "p.jsonl", "reward": "mod:judge"},
    "skd": {"teacher": "t", "prompts": "p.jsonl", "k": 7, "gamma": 3},
    "distillspec": {"teacher": "t", "prompts": "p.jsonl", "objective": "ForwardKL()"},
    "fitnets": {"teacher": "t", "data": "a.jsonl", "layers": {2: 5}, "weight": 0.1},
    "tinybert": {"teacher": "t", "data": "a.jsonl", "attentions": 10.0},
    "uld": {"teacher": "t", "data": "a.jsonl", "weight": 0.5},
    "alm": {"teacher": "t", "data": "a.jsonl"},
    "gold": {"teacher": "t", "prompts": "p.jsonl", "data": "a.jsonl"},
    "distilbert": {"teacher": "t", "data": "a.jsonl", "mlm": 1.0},
}


@pytest.mark.parametrize("name", limbeck.methods.METHODS)
def test_every_method_survives_yaml(name: str, tmp_path: Path) -> None:
    made = limbeck.methods.METHODS[name]("s", **METHODS[name])
    path = tmp_path / "recipe.yaml"
    path.write_text(made.yaml)
    assert Recipe.read(path) == made
    assert Recipe.read(path).yaml == made.yaml


@settings(deadline=None)
@given(st.floats(0.01, 0.99), st.floats(0.1, 10), st.floats(-5, 5), st.sampled_from([None, "student", "teacher"]))
def test_numbers_survive_yaml_to_the_last_bit(beta: float, temperature: float, weight: float, writer: str | None) -> None:
    made = JSD(beta, temperature=temperature, weight=weight, writer=writer)
    assert build(yaml.safe_load(to_yaml(made)), Term) == made
    assert build(repr(made), Term) == made


@pytest.mark.parametrize("text", ["a: b", "- x", "üñ\n two", "null", "1e-4", "JSD()", "  pad ", "'quoted\""])
def test_text_survives_yaml(text: str) -> None:
    made = Local(text)
    assert build(yaml.safe_load(to_yaml(made)), Teacher) == made


SETTINGS = {"student": {"model": "a"}, "objective": "ReverseKL() + JSD(0.3)", "source": {"data": ["a", {"path": "b"}]}, "steps": 1}


@pytest.mark.parametrize(
    "assignment, path, value",
    [
        ("steps=5", ["steps"], 5),
        ("student.model=a=b", ["student", "model"], "a=b"),
        ("student.optimizer.learning_rate=1e-3", ["student", "optimizer", "learning_rate"], "1e-3"),
        ("student.lora=null", ["student", "lora"], None),
        ("source.data.1.weight=2.5", ["source", "data", 1, "weight"], 2.5),
        ("source.data.0=c", ["source", "data", 0], "c"),
        ("source.data=[x, {path: y}]", ["source", "data"], ["x", {"path": "y"}]),
        ("objective.1.temperature=2", ["objective", 1, "temperature"], 2),
        ("objective=JSD(0.1)", ["objective"], "JSD(0.1)"),
        ("student.model=[a", ["student", "model"], "[a"),
    ],
)
def test_an_override_sets_one_thing(assignment: str, path: list, value: object) -> None:
    before = repr(SETTINGS)
    changed: object = override(SETTINGS, [assignment])
    assert {key: changed[key] for key in SETTINGS if key != path[0]} == {key: SETTINGS[key] for key in SETTINGS if key != path[0]}
    for step in path:
        changed = changed[step]
    assert changed == value
    assert repr(SETTINGS) == before


def test_an_override_into_a_call_keeps_its_other_settings() -> None:
    changed = override(SETTINGS, ["objective.1.temperature=2", "objective.1.weight=0.5"])
    assert build(changed["objective"], Objective) == ReverseKL() + 0.5 * JSD(0.3, temperature=2)


@pytest.mark.parametrize(
    "assignment, said",
    [
        ("steps", "write it like objective.temperature=2"),
        ("=5", "write it like objective.temperature=2"),
        ("steps.x=1", '"x" stands below 1, which has no settings'),
        ("source.data.2.weight=1", 'there is no "2" in a list of 2'),
        ("source.data.-1.weight=1", 'there is no "-1" in a list of 2'),
    ],
)
def test_an_override_that_leads_nowhere(assignment: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        override(SETTINGS, [assignment])
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spelling, base, said",
    [
        ("ForwardKL(temprature=2)", Term, 'ForwardKL has no setting "temprature"; did you mean "temperature"?'),
        ("forwardkl()", Term, 'did you mean "ForwardKL"?'),
        ({"type": "ReverseLK"}, Term, 'there is no Term "ReverseLK"; did you mean "ReverseKL"?'),
        ({"type": "JSD\n"}, Teacher, 'there is no Teacher "JSD"; known: '),
        ({"type": "xyz\nxyz"}, Teacher, 'there is no Teacher "xyz xyz"; known: '),
        ("Corpus({'path': 'a', 'wieght': 1})", Source, 'Data has no setting "wieght"; did you mean "weight"?'),
        ({"type": "JSD", 3: 1}, Term, 'JSD has no setting "3"'),
        ({"model": "a", "optimizer": {"lerning_rate": 1}}, Student, 'AdamW has no setting "lerning_rate"; did you mean "learning_rate"?'),
        ({"type": "Local"}, Teacher, "Local needs model"),
        ({"model": "a"}, Teacher, "a Teacher needs its type; one of: "),
        ("JSD()", Teacher, "a Teacher was asked for, found JSD("),
        (["a\nb"], Teacher, "a Teacher was asked for"),
        ({"type": "JSD", "beta": "x\ny"}, Term, "JSD.beta: input should be a valid number"),
        ("JSD(1.0)", Term, "use ReverseKL()"),
        ("Term()", Term, 'there is no Part "Term"'),
        ("Divergence()", Term, 'there is no Part "Divergence"'),
        ("ReverseKL(2)", Term, "takes its settings by name (weight, writer, temperature)"),
        ("ReverseKL() + ReverseKL()", Objective, "two terms of one name"),
        ("JSD(beta=0.1, beta=0.2)", Term, "each setting once"),
        ("Local('a', dtype='float31')", Teacher, "'auto', 'float32' or 'bfloat16', found 'float31'"),
        ("Corpus(Data('a', weight=0))", Source, "a: a weight of 0.0 would never be drawn"),
    ],
)  # fmt: skip
def test_a_slip_is_told_in_one_line(spelling: object, base: type[Part], said: str) -> None:
    assert said in refused(spelling, base)


def test_an_error_of_the_data_stays_one() -> None:
    with pytest.raises(DataError, match="would never be drawn"):
        Data("a", weight=-1)


@pytest.mark.parametrize(
    "text",
    [
        '__import__("os")', '__import__("os").system("true")', "JSD.registry", "JSD().rows", "JSD().fresh()", "lambda: 1", "[x for x in (1,)]",
        "JSD(**{'beta': 0.1})", "JSD(*[0.1])", "{**{}}", "f'{JSD()}'", "(x := 1)", "1 if 2 else 3", "JSD() @ JSD()", "2 ** 9", "not JSD",
        "JSD()[0]", "-JSD()", "JSD() - JSD()", "1 + 'a'", "'a' * 1000000000000", "[1] * 1000000000000", "JSD() * 'a'", "[1].on('x')", "JSD().on()",
        "JSD().on(writer='student')", "JSD(", "", "  ", "a b", "a/b", "\x00", "'\ud800'", "-" * 3000 + "1", "(" * 300 + "1" + ")" * 300, "...", "1",
        "JSD(\n0.1,\nx)",
    ],
)  # fmt: skip
def test_nothing_in_an_expression_runs(text: str) -> None:
    assert refused(text, Objective)


@settings(deadline=None)
@given(st.text(st.sampled_from("JSD()+*-.,=[]{}:'\"1e \n_ax"), max_size=30))
def test_no_expression_raises_another_kind(text: str) -> None:
    try:
        assert isinstance(build(text, Objective), Objective)
    except LimbeckError as error:
        assert "\n" not in str(error)


@part
class Parrot(Teacher):
    """A user's own."""

    words: int = 1

    def score(self, parts):
        return iter(())


class Unmarked(Silent):
    """Not marked @part."""


@part
class Odd(Part):
    """Refuses by a plain ValueError."""

    value: object = None

    def __post_init__(self) -> None:
        raise ValueError("No\ngood")


for own in (Parrot, Odd):  # other tests in this process are to see our parts alone
    del Part.registry[own.__name__]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (Parrot, Odd):
        monkeypatch.setitem(Part.registry, cls.__name__, cls)


@pytest.mark.usefixtures("registered")
def test_a_part_of_ones_own() -> None:
    made = build({"type": f"{__name__}:Parrot", "words": 3}, Teacher)
    assert made == build("Parrot(3)", Teacher) == Parrot(3)
    assert plain(made) == {"type": f"{__name__}:Parrot", "words": 3}
    assert build(yaml.safe_load(to_yaml(made)), Teacher) == made


def test_a_part_of_ones_own_is_found_again_by_another_program(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from limbeck.config import Part, part\n@part\nclass Mine(Part):\n    n: int = 1\n@part\nclass Data(Part):\n    n: int = 1\n"
    )
    write = "import mine; from limbeck.config import to_yaml; print(to_yaml(mine.Mine(4)), end='')"
    read = (
        "import sys, yaml; from limbeck.config import Part, build; print(build(yaml.safe_load(sys.argv[1]), Part).n); "
        "import limbeck.data, mine; print(Part.registry['Data'].__module__)"
    )
    run = lambda *args: subprocess.run([sys.executable, "-c", *args], cwd=tmp_path, capture_output=True, text=True, check=True).stdout  # noqa: E731
    written = run(write)
    assert written == "type: mine:Mine\nn: 4\n"
    assert run(read, written).split() == ["4", "limbeck.data"]  # and no part of ours is replaced by another of its name


@pytest.mark.parametrize(
    "path, said",
    [
        (f"{__name__}:Unmarked", "mark it @part"),
        ("os:getcwd", '"os:getcwd" is no Teacher'),
        ("nowhere_at_all:X", "No module named 'nowhere_at_all'"),
        (f"{__name__}:Parot", "has no attribute 'Parot'"),
        (":X", "write it like my_module:my_function"),
        ("x:", "write it like my_module:my_function"),
        ("..a:b", "write it like my_module:my_function"),
    ],
)
def test_a_part_of_ones_own_that_is_not_there(path: str, said: str) -> None:
    assert said in refused({"type": path}, Teacher)


@pytest.mark.usefixtures("registered")
def test_a_users_own_refusal_is_one_line() -> None:
    assert refused({"type": "Odd", "value": "a"}, Part).startswith("Odd: no good")


def test_objects_are_imported_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_function_here.py").write_text("def f():\n    return 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert import_object("own_function_here:f")() == 7


@pytest.mark.parametrize(
    "spelling, base, path",
    [
        ({"student": "a", "source": {"type": "Mix", "fraction": "x", "first": 1}}, Recipe, ("source", "fraction")),
        ({"student": "a", "source": {"type": "Corpus", "data": ["a", {"path": "a", "wieght": 1}]}}, Recipe, ("source", "data", 1, "wieght")),
        ({"objective": ["JSD", {"type": "JDS"}], "student": "a", "source": "Corpus('a')"}, Recipe, ("objective", "terms", 1, "type")),
        ({"objective": {"type": "JSD", "bta": 1}, "student": "a", "source": "Corpus('a')"}, Recipe, ("objective", "bta")),
        (["JSD", "JSD"], Objective, ()),
        ("Corpus('a', sequences='x')", Source, ("sequences",)),
        ("Corpus('a', 'x')", Source, ("sequences",)),
    ],
)
def test_an_error_knows_its_place(spelling: object, base: type[Part], path: tuple[str | int, ...]) -> None:
    with pytest.raises(LimbeckError) as caught:
        build(spelling, base)
    assert caught.value.path == path


@pytest.mark.parametrize("spelling", [{"model": "a", "self": 1}, {"model": "a", "cls": 1}])
def test_no_key_is_taken_for_an_argument_of_ours(spelling: object) -> None:
    assert "Local has no setting" in refused({"type": "Local", **spelling}, Teacher)


def test_keys_that_no_file_would_give_back_are_refused() -> None:
    with pytest.raises(RecipeError, match="the key 1 is no text, and files of settings have no others; write '1'"):
        to_yaml(Data("a", template_arguments={"a": {1: 2}}))


def test_live_attributes_are_no_settings() -> None:
    made = Local("a")
    made._open = object()
    assert "_open" not in plain(made) and made == Local("a") and made.fresh()._open is None
    assert "_open" in refused({"type": "Local", "model": "a", "_open": 1}, Teacher)


def test_terms_of_ones_own_are_named_by_their_function() -> None:
    assert (CrossEntropy() + CustomTerm("mod:mine").on("corpus")).terms[1].name == "mine@corpus"
