"""In which order rows come: by what makes them hard, as many as the student is ready for, or as it needs them; the same after a resume."""

import collections
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
import toys
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import limbeck as lb
from limbeck.errors import DataError, LimbeckError, RecipeError
from limbeck.files import read_jsonl
from limbeck.sources import Share

COUNT = 24


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("curriculum")
    rows = [{**row, "level": (7 * n) % COUNT, "category": "ab"[n % 3 == 0], "n": n} for n, row in enumerate(toys.rows(COUNT))]
    return {
        "student": toys.folder(home / "student", seed=1),
        "teacher": toys.folder(home / "teacher", seed=2),
        "data": toys.jsonl(home / "train.jsonl", rows),
        "bare": toys.jsonl(home / "bare.jsonl", [{"prompt": row["prompt"]} for row in rows]),
    }


def corpus(toy: dict[str, str], sequences: int = 4) -> lb.Corpus:
    return lb.Corpus(toy["data"], sequences=sequences)


def opened(toy: dict[str, str]) -> tuple[lb.Student, lb.Teacher]:
    student = lb.Student(toy["student"], dtype="float32").load(50)
    return student, lb.Local(toy["teacher"], dtype="float32").load(student)


def levels(batch, name: str = "level") -> list:
    return [columns[name] for columns in batch.columns_B]


@settings(max_examples=15, deadline=None)
@given(steps=st.integers(1, 30), start=st.floats(0.05, 1), root=st.sampled_from([1.0, 2.0, 3.0]), hardest=st.booleans(), step=st.integers(0, 40))
def test_the_easiest_share_is_drawn_from(toy, steps, start, root, hardest, step) -> None:
    student, _ = opened(toy)
    made = lb.Curriculum(corpus(toy), "level", steps, start, root, hardest_first=hardest).load(student.live.vocabulary, Share(3))
    competence = min(1.0, (start**root + (1 - start**root) * step / steps) ** (1 / root))  # the paper's equation
    known = max(1, int(np.ceil(competence * COUNT - 1e-6)))
    drawn = levels(made.draw(step, student))
    assert all(level >= COUNT - known if hardest else level < known for level in drawn)
    assert len(set(drawn)) == min(len(drawn), known)  # none twice while there are enough
    assert levels(made.draw(step, student)) == drawn


def test_every_row_comes_in_the_end(toy) -> None:
    student, _ = opened(toy)
    made = lb.Curriculum(corpus(toy), "level", steps=5).load(student.live.vocabulary, Share(0))
    counts = collections.Counter(level for step in range(5, 305) for level in levels(made.draw(step, student)))
    assert set(counts) == set(range(COUNT))
    assert max(counts.values()) < 2 * 1200 / COUNT  # 50 expected, 100 is 7 standard deviations away


def test_length_counts_what_is_to_be_written(toy, tmp_path) -> None:
    student, _ = opened(toy)
    rows = [{"prompt": "p" * (9 - n), "completion": "c" * (1 + n), "n": n} for n in range(6)]
    path = toys.jsonl(tmp_path / "rows.jsonl", rows)
    made = lb.Curriculum(lb.Corpus(path, sequences=1), steps=6, start=1 / 6, root=1).load(student.live.vocabulary, Share(0))
    assert [max(levels(made.draw(step, student), "n") * 1) <= step for step in range(6)] == [True] * 6
    asked = toys.jsonl(tmp_path / "asked.jsonl", [{"prompt": row["prompt"], "n": row["n"]} for row in rows])
    own = lb.Curriculum(lb.OnPolicy(asked, sequences=1, sampling=lb.Sampling(2)), steps=6, start=1 / 6, root=1)
    assert levels(own.load(student.live.vocabulary, Share(0)).draw(0, student), "n") == [5]  # the shortest prompt


def test_how_sure_the_teacher_is(toy) -> None:
    """Against entropies from its logits, in float64."""
    student, teacher = opened(toy)
    made = lb.Curriculum(corpus(toy, 1), "teacher_entropy", steps=COUNT, start=1 / COUNT, root=1).load(
        student.live.vocabulary, Share(0, teacher=teacher)
    )
    expected = []
    for row in read_jsonl(Path(toy["data"])):
        (text,) = student.live.vocabulary.texts(row, lb.Data(toy["data"]), 256)
        with torch.no_grad():
            logits_SV = teacher.opened.module(torch.tensor([text.tokens])).logits[
                0, [place - 1 for place in text.places], : student.live.vocabulary.size
            ]
        log_p_NV = oracles.log_softmax(logits_SV.double().numpy())
        expected.append(float(-(np.exp(log_p_NV) * log_p_NV).sum(-1).mean()))
    assert levels(made.draw(0, student), "n") == [int(np.argmin(expected))]
    hard = lb.Curriculum(corpus(toy, 1), "teacher_entropy", steps=COUNT, start=1 / COUNT, root=1, hardest_first=True)
    assert levels(hard.load(student.live.vocabulary, Share(0, teacher=teacher)).draw(0, student), "n") == [int(np.argmax(expected))]


def test_categories_come_in_proportion_to_their_gaps(toy) -> None:
    student, teacher = opened(toy)
    made = lb.Curriculum(corpus(toy), by="student_gap", every=1000).load(student.live.vocabulary, Share(0, teacher=teacher))
    first = made.draw(0, student)
    assert len(first) == 4
    gaps = made.state()["gaps"]
    assert set(gaps) == {"a", "b"}
    assert min(gaps.values()) > 0
    made.restore({**made.state(), "gaps": {"a": 0.3, "b": 0.1}})
    drawn = collections.Counter(category for step in range(1, 401) for category in levels(made.draw(step, student), "category"))
    assert abs(drawn["a"] / 1600 - 0.75) < 0.045  # four standard deviations
    made.restore({**made.state(), "gaps": {"a": 0.0, "b": 0.0}})
    assert set(levels(made.draw(2, student), "category")) <= {"a", "b"}


def test_the_gap_is_what_the_student_lacks(toy) -> None:
    """Measured by hand on the same rows; and nothing where the student is the teacher."""
    student, teacher = opened(toy)
    for who, is_zero in ((teacher, False), (lb.Local(toy["student"], dtype="float32").load(student), True)):
        made = lb.Curriculum(corpus(toy, 8), by="student_gap").load(student.live.vocabulary, Share(0, teacher=who))
        made.draw(0, student)
        gaps = made.state()["gaps"]
        if is_zero:
            assert max(map(abs, gaps.values())) < 1e-6
            continue
        rows = [row for row in read_jsonl(Path(toy["data"])) if row["category"] == "b"]
        nats = []
        for row in rows:
            (text,) = student.live.vocabulary.texts(row, lb.Data(toy["data"]), 256)
            places = [place - 1 for place in text.places]
            with torch.no_grad():
                size = student.live.vocabulary.size
                log_p, log_q = (oracles.log_softmax(model.module(torch.tensor([text.tokens])).logits[0, places, :size].double().numpy())
                                for model in (who.opened, student.live))  # fmt: skip
            nats.append((np.exp(log_p) * (log_p - log_q)).sum(-1))
        assert gaps["b"] == pytest.approx(np.concatenate(nats).mean(), abs=1e-5)  # all eight rows, once each


def recipe(toy: dict[str, str], **more) -> lb.Recipe:
    source = lb.Curriculum(lb.OnPolicy(toy["data"], sequences=4, sampling=lb.Sampling(6)), by="student_gap", every=3)
    return lb.Recipe(lb.Student(toy["student"], dtype="float32"), source, lb.Local(toy["teacher"], dtype="float32"), lb.ReverseKL(),
                     save_every=2, steps=7, **more)  # fmt: skip


def test_a_resumed_run_has_the_gaps_that_it_had(toy, tmp_path, monkeypatch) -> None:
    lb.distill(recipe(toy), tmp_path / "whole")
    monkeypatch.setattr("limbeck.student.Student.step", stops_at(5))
    with pytest.raises(KeyboardInterrupt):
        lb.distill(recipe(toy), tmp_path / "cut")
    monkeypatch.undo()
    lb.distill(recipe(toy), tmp_path / "cut")
    assert (tmp_path / "cut" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


def stops_at(last: int):
    step_of = lb.Student.step

    def step(self: lb.Student, step: int) -> dict[str, float]:
        if step == last:
            raise KeyboardInterrupt
        return step_of(self, step)

    return step


def test_round_trip_and_methods(toy) -> None:
    made = recipe(toy)
    assert lb.Recipe.of(yaml.safe_load(made.yaml)) == made


@pytest.mark.parametrize(("make", "message"), [
    (lambda toy: lb.Curriculum(lb.Mix(0.5, corpus(toy), corpus(toy))), "Mix draws none by itself; put it around Corpus or OnPolicy"),
    (lambda toy: lb.Curriculum(corpus(toy), start=0.0), "start is a share above 0"),
    (lambda toy: lb.Curriculum(corpus(toy), steps=0), "must be at least 1, found 0"),
    (lambda toy: lb.Prefetch(lb.Curriculum(corpus(toy), by="student_gap")), "Curriculum asks the student how it does"),
])  # fmt: skip
def test_refused_when_made(toy, make, message) -> None:
    with pytest.raises(RecipeError, match=message):
        make(toy)


@pytest.mark.parametrize(("made", "teacher", "message"), [
    (lambda toy: lb.Curriculum(corpus(toy), by="levle"), None, 'by "levle" needs that column in every row; found .*level'),
    (lambda toy: lb.Curriculum(corpus(toy), by="prompt"), None, "orders numbers, and a row has"),
    (lambda toy: lb.Curriculum(corpus(toy), by="teacher_entropy"), None, "needs a teacher that says whole distributions"),
    (lambda toy: lb.Curriculum(lb.OnPolicy(toy["bare"]), by="teacher_entropy"), "teacher", 'order prompts by "length"'),
    (lambda toy: lb.Curriculum(lb.OnPolicy(toy["bare"]), by="student_gap"), "teacher", '"category" needs that column'),
    (lambda toy: lb.Curriculum(corpus(toy), by="student_gap"), None, "which this teacher cannot say"),
    (lambda toy: lb.Curriculum(lb.Corpus(lb.Data(toy["data"], streaming=True))), None, "leave streaming out"),
])  # fmt: skip
def test_refused_when_opened(toy, made, teacher, message) -> None:
    student, who = opened(toy)
    with pytest.raises((DataError, LimbeckError), match=message):
        made(toy).load(student.live.vocabulary, Share(0, teacher=who if teacher else None))
