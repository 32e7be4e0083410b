"""Models that do not fit are refused before one of them is opened, with what would fit; nothing that fits is."""

from dataclasses import replace
from pathlib import Path

import pytest
import toys

import limbeck as lb
from limbeck import kinds, room
from limbeck.errors import RecipeError
from limbeck.room import MARGIN, free_memory_bytes, resting_bytes, see_room


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> lb.Recipe:
    """A teacher of 20 times the student's weights, most of them in 20 layers of 128 channels."""
    home = tmp_path_factory.mktemp("toys")
    student, teacher = toys.folder(home / "student", seed=1), toys.folder(home / "teacher", seed=2, layers=20, width=128)
    data = [lb.Data(toys.jsonl(home / "train.jsonl", toys.rows(8)))]
    return lb.kd(lb.Student(student, dtype="float32"), lb.Local(teacher, dtype="float32"), data, steps=2)


def test_what_is_counted_is_what_the_weights_take(made: lb.Recipe) -> None:
    from limbeck.machine import Opening
    from limbeck.models import open_model

    sizes = [open_model(each, Opening("float32")).parameters_total for each in (made.student.model, made.teacher.model)]
    assert resting_bytes(made) == {"student": 4 * sizes[0], "gradients": 4 * sizes[0], "moments": 8 * sizes[0], "teacher": 4 * sizes[1]}


def test_a_teacher_too_large_is_refused_before_anything_is_opened(made: lb.Recipe, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(kinds, "open_kind", None)  # would fail
    taken = resting_bytes(made)
    monkeypatch.setattr(room, "free_memory_bytes", lambda: sum(taken.values()) - taken["teacher"] // 3)
    with pytest.raises(RecipeError) as said:
        lb.distill(made, tmp_path / "run")
    assert "the models need about 0.0 GB (student 0.0, gradients 0.0, moments 0.0, teacher 0.0), and 0.0 GB are free" in str(said.value)
    ways = str(said.value).partition("would fit: ")[2].split("; ")
    assert ways == ["teacher.dtype: bfloat16", "teacher.quantization: 4bit", "teacher.offload: disk", "a teacher on a server: Endpoint(url, model)"]
    for change in ({"dtype": "bfloat16"}, {"quantization": "4bit"}, {"offload": "disk"}):
        see_room(replace(made, teacher=replace(made.teacher, **change)))


def test_only_what_would_fit_is_said(made: lb.Recipe, monkeypatch) -> None:
    taken = resting_bytes(made)
    monkeypatch.setattr(room, "free_memory_bytes", lambda: sum(taken.values()) - int(0.8 * taken["teacher"]))
    with pytest.raises(RecipeError, match=r"would fit: teacher.quantization: 4bit; teacher.offload: disk; a teacher on a server"):
        see_room(made)


def test_there_is_a_margin_and_what_is_not_known_is_not_refused(made: lb.Recipe, monkeypatch) -> None:
    whole = sum(resting_bytes(made).values())
    monkeypatch.setattr(room, "free_memory_bytes", lambda: int(whole / (1 + MARGIN)) + 1)
    see_room(made)
    monkeypatch.setattr(room, "free_memory_bytes", lambda: int(whole / (1 + MARGIN)) - 1)
    with pytest.raises(RecipeError):
        see_room(made)
    monkeypatch.setattr(room, "free_memory_bytes", lambda: 0)
    see_room(replace(made, student=replace(made.student, model="someone/on-the-hub"), teacher=lb.Local("someone/else-on-the-hub")))


def test_several_processes_hold_copies_or_shares(made: lb.Recipe, monkeypatch) -> None:
    alone = resting_bytes(made)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(room.distributed, "ranks", lambda: 2)
    assert resting_bytes(made) == {what: 2 * value for what, value in alone.items()}
    monkeypatch.setattr(room.distributed, "is_sharded", lambda: True)
    assert resting_bytes(made) == alone
    packed = replace(made, teacher=replace(made.teacher, offload="disk"))  # whole in each
    assert resting_bytes(packed)["teacher"] < alone["teacher"] and resting_bytes(packed)["student"] == alone["student"]


def test_every_teacher_below_counts(made: lb.Recipe) -> None:
    twice = replace(made, teacher=lb.Mixture({"a": made.teacher, "b": made.teacher}))
    assert resting_bytes(twice)["teacher"] == 2 * resting_bytes(made)["teacher"]


def test_a_container_counts_files_kept_in_memory_as_free(tmp_path: Path) -> None:
    for name, text in (("memory.max", "1000\n"), ("memory.current", "900\n"), ("memory.stat", "anon 500\ninactive_file 250\nactive_file 100\n")):
        (tmp_path / name).write_text(text)
    assert room._container_free_bytes(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert room._container_free_bytes(tmp_path) > 2**60 and free_memory_bytes() > 10**8
