"""Caches: the same lesson as the live teacher's, found by content alone, and whose it is."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
import transformers
from caches import ROWS, Whole, asking, copied, counted, small, stored, toy, whole  # noqa: F401

import limbeck as lb
from limbeck.annotate import annotate
from limbeck.batch import Batch, Span, Text
from limbeck.cache import Cache, Manifest
from limbeck.data import Data
from limbeck.errors import CacheError, RecipeError, VocabularyError
from limbeck.evaluate import evaluate
from limbeck.files import read_json, read_jsonl, write_json
from limbeck.keep import kept
from limbeck.places import fingerprint
from limbeck.student import Student
from limbeck.teachers import Cached, Local

# Learning from it


def learning(toy: dict[str, str], teacher: Any, objective: Any = "ForwardKL()", **more: Any) -> lb.Recipe:
    """Another order, other sizes of pass, and a part of the data."""
    student = lb.Student(toy["student"], lb.AdamW(3e-3), dtype="float32")
    heldout = lb.Likelihood(toy["heldout"], rows=10, tokens_per_pass=100)
    settings = {"steps": 4, "tokens_per_pass": 150, "evaluations": [heldout], "evaluate_every": 2} | more
    return lb.Recipe(student, lb.Corpus(toy["some"], sequences=5), teacher, objective, **settings)


def figures(made: lb.Recipe, out: Path) -> list[dict[str, Any]]:
    lb.distill(made, out)
    return read_jsonl(out / "metrics.jsonl")


@pytest.mark.parametrize(("keep", "objective", "nats"), [("hidden", "ForwardKL(temperature=2)", 1e-5), ("hidden", "JSD()", 1e-5),
                                                         ("dense", "ReverseKL()", 5e-3), ("top:257", "ForwardKL()", 2e-3)])  # fmt: skip
def test_a_cache_teaches_what_the_live_teacher_does(
    keep: str, objective: str, nats: float, toy: dict[str, str], whole: Whole, tmp_path: Path
) -> None:
    live = figures(learning(toy, Local(toy["teacher"], dtype="float32"), objective), tmp_path / "live")
    cached = figures(learning(toy, Cached(str(whole(keep))), objective), tmp_path / "cached")
    assert len(live) == len(cached) and {name for row in live for name in row} >= {"step", "loss_nats"}
    for one, two in zip(live, cached, strict=True):
        assert one.keys() == two.keys()
        assert all(two[name] == pytest.approx(value, rel=10 * nats, abs=nats) for name, value in one.items() if isinstance(value, float)), (one, two)


def test_a_student_of_draws_learns_and_is_measured_on_all_outcomes(toy: dict[str, str], whole: Whole, tmp_path: Path) -> None:
    lb.distill(learning(toy, Cached(str(whole("sampled:50"))), steps=12, evaluate_every=12), tmp_path / "run")
    live = evaluate(*learning(toy, Local(toy["teacher"], dtype="float32")).open_pair(), [lb.Likelihood(toy["heldout"], rows=10)])
    found = read_json(tmp_path / "run" / "evaluations.json")
    before, after = (found[step]["heldout"] for step in ("0", "12"))
    for name in ("kl_nats", "reverse_kl_nats", "ce_nats"):
        assert before[name] == pytest.approx(live["heldout"][name], rel=1e-5)
    assert after["kl_nats"] < 0.95 * before["kl_nats"]


def test_draws_of_a_cache_are_the_teachers(toy: dict[str, str], whole: Whole) -> None:
    """Entropies and logsumexps of each token are the live teacher's; shares near its probabilities: 50 draws each."""
    student = Student(toy["student"], dtype="float32").load(1)
    batch, sampled, live = texts(toy, student), Cached(str(whole("sampled:50"))).load(student), Local(toy["teacher"], dtype="float32").load(student)
    rows = next(sampled.score([batch])).rows(slice(None))
    p_NV = next(live.score([batch])).rows(slice(None)).block(slice(None)).at().prob.double().numpy()
    share_NV = np.zeros_like(p_NV)
    np.add.at(share_NV, (np.arange(len(p_NV))[:, None], rows.ids_CK.numpy()), rows.share_CK.numpy())
    assert abs(rows.entropy_C.numpy() + (p_NV * np.log(p_NV)).sum(-1)).max() < 2e-4
    noise = ((share_NV - p_NV) ** 2).sum() / ((1 - (p_NV**2).sum(-1)) / 50).sum()
    assert len(p_NV) > 400 and noise == pytest.approx(1, abs=0.15)


def texts(toy: dict[str, str], student: Student, data: str = "data") -> Batch:
    rows, read = Data(toy[data]).rows(), student.live.vocabulary.texts
    return Batch.of([text for row in rows for text in read(row, Data(toy[data]), 1024)], "corpus")


REFUSED: dict[str, tuple[str, Callable[[dict[str, str], str], Any], str]] = {
    "reverse": ("sampled:50", lambda toy, out: learning(toy, Cached(out), "ReverseKL()"), "ReverseKL needs .* Cached says sampled; give ForwardKL"),
    "jsd": ("top:64", lambda toy, out: learning(toy, Cached(out), "JSD()"), "JSD needs .* Cached says top k; give ForwardKL"),
    "sum": ("sampled:50", lambda toy, out: learning(toy, Cached(out), lb.ForwardKL() + lb.TotalVariation()), "TotalVariation needs a teacher"),
    "hotter": ("sampled:50", lambda toy, out: learning(toy, Cached(out), "ForwardKL(temperature=2)"), r"\(temperature=2\) of .* temperature 1:"),
    "hotter top": ("top:64", lambda toy, out: learning(toy, Cached(out), "ForwardKL(temperature=2)"), "cannot be re-tempered; annotate at 2"),
    "not kept": ("sampled:50", lambda toy, out: learning(toy, Cached(out, temperature=3.0)), "temperature 1, not 3; annotate at it too"),
    "own words": ("hidden", lambda toy, out: lb.Recipe(lb.Student(toy["student"]), lb.OnPolicy(toy["some"]), Cached(out), "ReverseKL()"),
                  r"Cached cannot have seen text that the student has yet to write .*Local\(model\)"),
    "own text": ("hidden", lambda toy, out: learning(toy, Cached(out), evaluations=[lb.Likelihood(toy["heldout"], own_text=True)]),
                 "Cached cannot have seen text that the student has yet to write"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_made_of_it_is_refused_before_anything_is_read(name: str, toy: dict[str, str], whole: Whole) -> None:
    keep, make, line = REFUSED[name]
    with pytest.raises((RecipeError, CacheError), match=line) as refused:
        make(toy, str(whole(keep)))
    assert "\n" not in str(refused.value)


def test_several_temperatures_are_told_apart(toy: dict[str, str], tmp_path: Path) -> None:
    """In one pass of the teacher; and one that comes later asks again, and keeps what was there."""
    with counted() as counts:
        annotate(asking(toy, temperatures=[2.0, 1.0]), tmp_path)
    rows = sum(counts)
    first = stored(tmp_path)
    assert [sum(row["temperature"] == each for row in first) for each in (1.0, 2.0)] == [rows, rows]
    with pytest.raises(CacheError, match=r"holds scores at temperature 1, 2; say which: Cached\(folder, temperature=1\)"):
        learning(toy, Cached(str(tmp_path)))
    learning(toy, Cached(str(tmp_path), temperature=2.0), "ForwardKL(temperature=2)")
    annotate(asking(toy, temperatures=[3.0]), tmp_path)
    assert Manifest.read(tmp_path).temperatures == [1.0, 2.0, 3.0]
    assert sum(row["temperature"] == 3 for row in stored(tmp_path)) == rows and len(stored(tmp_path)) == 3 * rows


def test_a_temperature_that_is_added_stores_none_of_the_others_again(toy: dict[str, str], tmp_path: Path) -> None:
    annotate(asking(toy), tmp_path)
    before = stored(tmp_path)
    annotate(asking(toy, temperatures=[1.0, 2.0]), tmp_path)
    assert [row for row in stored(tmp_path) if row["temperature"] == 1] == before
    assert len(stored(tmp_path)) == 2 * len(before)


def test_a_row_that_nobody_annotated_is_named(toy: dict[str, str], whole: Whole, tmp_path: Path) -> None:
    unseen = replace(learning(toy, Cached(str(whole("hidden"))), "ForwardKL()", tokens_per_pass=10_000), source=lb.Corpus(toy["unseen"], ROWS + 1))
    with pytest.raises(CacheError, match=rf"has not seen 1 of {ROWS + 1} rows of a pass; .*'user\\nnever\\nassistant\\nseen.*limbeck cache"):
        lb.distill(unseen, tmp_path / "run")


def test_other_spans_are_named_and_fewer_are_found(toy: dict[str, str], whole: Whole) -> None:
    student = Student(toy["student"], dtype="float32").load(1)
    teacher = Cached(str(whole("hidden"))).load(student)
    batch = texts(toy, student, "some")
    said = next(teacher.score([batch]))
    spans = [np.flatnonzero(np.isin(np.arange(int(length)) + int(start), batch.places_N)) for length, start in zip(batch.lengths_B, batch.starts_B)]  # noqa: B905
    fewer = [Text(tokens.tolist(), [Span(int(places[1]), int(places[-1]))]) for tokens, places in zip(batch.sequences(), spans, strict=True)]
    found = next(teacher.score([Batch.of(fewer, "corpus")]))
    inside = np.isin(batch.places_N, Batch.of(fewer, "corpus").places_N)
    assert np.array_equal(found.hidden_ND, said.hidden_ND[inside]) and 0 < inside.sum() < len(inside)
    more = [Text(text.tokens, [Span(1, len(text.tokens))]) for text in fewer]
    with pytest.raises(CacheError, match=r"[\d,]+ of [\d,]+ completion tokens lie outside the completions that were annotated"):
        next(teacher.score([Batch.of(more, "corpus")]))


def test_a_student_must_mean_the_same_by_a_token(toy: dict[str, str], whole: Whole, tmp_path: Path) -> None:
    teacher = Cached(str(whole("sampled:50")))
    Path(shutil.copytree(toy["student"], tmp_path / "other"))
    other = toys.tokenizer()
    other.add_tokens(["zebra"])
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(VocabularyError, match=r"the vocabularies of student \(259 tokens\) and teacher \(258\) differ"):
        teacher.load(Student(str(tmp_path / "other"), dtype="float32").load(1))
    terse = toys.folder(tmp_path / "terse", width=16, template=toys.CHATML.replace("<|im_start|>assistant", "<|im_start|>model"))
    toys.tokenizer(toys.CHATML.replace("\n{{", "{{")).save_pretrained(terse)
    with pytest.raises(VocabularyError, match=r"the chat templates differ: .*set student.chat_template=teacher"):
        teacher.load(Student(terse, dtype="float32").load(1))
    teacher.load(Student(terse, dtype="float32", chat_template="teacher").load(1))


def test_a_student_without_a_template_takes_the_caches(toy: dict[str, str], whole: Whole, tmp_path: Path) -> None:
    bare = toys.folder(tmp_path / "bare", seed=1, width=16, template=None)
    lb.distill(learning({**toy, "student": bare}, Cached(str(whole("hidden"))), steps=2), tmp_path / "run")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / "student").chat_template == toys.CHATML


# Whose it is


def test_a_teacher_is_known_by_its_files_wherever_they_lie(toy: dict[str, str], copied: Whole, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(toy["teacher"], tmp_path / "elsewhere")
    config = read_json(Path(elsewhere) / "config.json")
    write_json(Path(elsewhere) / "config.json", {**config, "transformers_version": "0.0"})
    out = copied()
    with counted() as counts:
        annotate(replace(asking(toy), teacher=Local(str(elsewhere), dtype="float32")), out)
    assert counts == [] and fingerprint(str(elsewhere)) == fingerprint(toy["teacher"])
    write_json(Path(elsewhere) / "config.json", {**config, "rms_norm_eps": 0.1})
    assert len({fingerprint(str(elsewhere)), fingerprint(toy["teacher"]), fingerprint(toy["student"])}) == 3


def test_adapters_are_known_with_what_they_stand_on(toy: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "adapter_model.safetensors").write_bytes(b"weights")
    found = list[str]()
    for base in ("teacher", "student"):
        write_json(tmp_path / "adapters" / "adapter_config.json", {"base_model_name_or_path": toy[base], "r": 16})
        found.append(fingerprint(str(tmp_path / "adapters")))
    assert len({*found, fingerprint(toy["teacher"]), fingerprint(toy["student"])}) == 4


def test_every_setting_makes_another_caches_keys() -> None:
    traits = {"tokens": 258, "map": "a", "cut": "b", "rendered": "c", "template": "d", "end_ids": [1]}
    made = Manifest({"model": "m", "fingerprint": "f", "arithmetic": "float32", "quantization": None}, traits, "sampled:50", [1.0])
    others = [replace(made, keep="sampled:51"), replace(made, seed=1), replace(made, vocabulary={**traits, "rendered": "C"})]
    others += [replace(made, teacher={**made.teacher, name: "other"}) for name in ("fingerprint", "arithmetic", "quantization")]
    same = [replace(made, temperatures=[1.0, 2.0], text={"data": "x"}), replace(made, teacher={**made.teacher, "model": "elsewhere"})]
    assert len({each.identity for each in (made, *others)}) == 7 and {each.identity for each in same} == {made.identity}
    keys = [Cache(Path("x"), each, known=False).key([1, 2, 3], 1.0) for each in (made, *others)]
    cache = Cache(Path("x"), made, known=False)
    assert len({*keys, cache.key([1, 2, 3], 2.0), cache.key([1, 2], 1.0)}) == 9
    hidden = Cache(Path("x"), replace(made, keep="hidden"), known=False)
    assert hidden.key([1], 1.0) == hidden.key([1], 2.0) and not kept("hidden").tempered
