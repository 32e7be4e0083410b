"""The work of a run: FLOPs against torch's own count, seconds against hand counts, the parts of recipes, the measurement."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st
from plans import LAYERS, actor, by_hand, kd, made, scene
from torch.utils.flop_counter import FlopCounterMode

from limbeck import models
from limbeck.anatomy import Anatomy, anatomy
from limbeck.batch import Batch
from limbeck.decoding import Sampling
from limbeck.divergence import ForwardKL
from limbeck.endpoint import Endpoint
from limbeck.errors import RecipeError
from limbeck.machine import Opening
from limbeck.methods import METHODS
from limbeck.objective import CrossEntropy, Objective
from limbeck.planning import calibrate, flops
from limbeck.planning.priced import drawn, of_step, scored
from limbeck.planning.scene import made_up, rounds
from limbeck.planning.work import Asking, Heads, Learning, Moving, Piece, Reading, Stepping, Storing, Writing
from limbeck.rollouts import OnPolicy
from limbeck.sources import Corpus, Mix
from limbeck.student import Student
from limbeck.teachers import Teacher

SEQUENCES, TOKENS = 2, 24


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("home"))


# FLOPs


@pytest.mark.parametrize("kind", ["llama", "llama-tied"])
def test_flops_are_those_that_torch_counts(home: Path, tmp_path: Path, kind: str) -> None:
    toys.folder(tmp_path / "model", kind, layers=LAYERS)
    model = models.open_model(str(tmp_path / "model"), Opening("float32", "eager"))  # torch counts no attention that is fused on a CPU
    found = anatomy("model", tmp_path / "model")
    batch = Batch.of([made_up(TOKENS - 5, 5)] * SEQUENCES, "corpus")
    with FlopCounterMode(display=False) as forward:
        outputs = model.forward(batch)
    assert forward.get_total_flops() == pytest.approx(flops.read_flops(found, SEQUENCES, TOKENS), rel=1e-3)  # positions are a product too
    with FlopCounterMode(display=False) as head:
        outputs.hidden_ND @ model.head.weight_VD.T
    assert head.get_total_flops() == flops.head_flops(found, 5 * SEQUENCES)
    with FlopCounterMode(display=False) as both:
        model.forward(batch).hidden_ND.sum().backward()
    assert both.get_total_flops() == pytest.approx(flops.learn_flops(found, SEQUENCES, TOKENS), rel=2e-3)


def test_experts_count_as_often_as_a_token_meets_them() -> None:
    shapes: dict[str, tuple[int, ...]] = {f"model.layers.0.mlp.experts.{n}.up_proj.weight": (8, 4) for n in range(4)}
    model = Anatomy("moe", {"num_experts": 4, "num_experts_per_tok": 2, "hidden_size": 4}, {**shapes, "model.layers.0.q_proj.weight": (4, 4)})
    assert flops.body_weights(model) == 2 * 32 + 16


def test_adapters_learn_with_fewer_products_and_checkpoints_with_more(home: Path) -> None:
    found = anatomy("t", home / "teacher")
    once = flops.read_flops(found, 1, 10)
    assert flops.learn_flops(found, 1, 10) == 3 * once and flops.learn_flops(found, 1, 10, again=True) == 4 * once
    assert flops.learn_flops(found, 1, 10, adapters=7) == 2 * once + 6 * 7 * 10


# Seconds


def test_seconds_are_counted_by_the_formulas(home: Path) -> None:
    machine, who = by_hand(), actor(home, Student("s"))
    read = flops.read_flops(who.anatomy, 2, 16)
    assert machine.seconds(Reading("score", who, 2, 16)) == pytest.approx(0.1 + 2 * 0.01 + read / 1e9)
    assert machine.seconds(Learning("learn", who, 2, 16, times=2)) == pytest.approx(2 * (0.3 + 2 * 0.03 + 3 * read / 5e8))
    heads = Heads("learn", who, Objective([ForwardKL()]), 10, who)
    assert heads.flops == 2 * 10 * who.anatomy.head_rows * 32 * (3 + 1)
    assert machine.seconds(heads) == pytest.approx(heads.flops / 1e9)
    more = 2 * 4 * 4 * (30 - 10) * who.anatomy.keys_values / 1e8
    assert machine.seconds(Writing("write", who, 4, 7, 30)) == pytest.approx(7 * (2 * (0.002 + more) + 0.05))
    assert machine.seconds(Stepping("step", who)) == pytest.approx(who.moving / 1e6)
    assert machine.seconds(Moving("write", 5e8)) == 5 and machine.seconds(Storing("save", 3e6)) == 3
    assert machine.seconds(Asking("beforehand", 100, 4000, at_once=8)) == 10


def test_writing_that_nobody_measured_is_bound_by_bytes_or_flops(home: Path) -> None:
    who, machine = actor(home), by_hand()
    bytes_ = 4 * (flops.body_weights(who.anatomy) + 272 * 32) + 4 * 3 * 50 * 2 * who.anatomy.keys_values
    assert machine.seconds(Writing("write", who, 3, 1, 50)) == pytest.approx(bytes_ / 1e8 + 2 * 0.01)
    slow = by_hand(bytes_per_second=1e18)
    assert slow.seconds(Writing("write", who, 3, 1, 50)) == pytest.approx(flops.write_flops(who.anatomy, 3, 1, 50) / 1e9 + 2 * 0.01)


@given(st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3), st.integers(0, 7))
def test_a_line_is_found_again_and_never_below_nothing(factors: list[float], zero: int) -> None:
    wished = np.array([0.0 if zero >> n & 1 else factor for n, factor in enumerate(factors)])
    rows = np.array([[1, depth, size * depth] for depth, size in itertools.product((1, 3), (2.0, 7.0))])
    if (wished > 0).any():
        found = calibrate.not_negative(rows, rows @ wished)
        assert rows @ found == pytest.approx(rows @ wished, rel=1e-6) and min(found) >= 0
    assert min(calibrate.not_negative(rows, np.array([4.0, 1.0, 3.0, 1.0]))) >= 0


def test_rounds_of_proposals_are_simulated() -> None:
    assert rounds(5, 20, 5, 1.0, lossless=False) == (4, 5.0)
    assert rounds(5, 20, 4, 1.0, lossless=True) == (4, 5.0)
    assert rounds(3, 20, 5, 0.0, lossless=True) == (20, 3.0)
    calls, going = rounds(2000, 1000, 5, 0.6, lossless=True)
    kept = sum(0.6**n for n in range(6))
    assert calls * going / 2000 == pytest.approx(1000 / kept, rel=0.01)  # 0.6 of a proposal's variance over 2,000 rows: 0.1 %


# The work of parts


def test_text_is_drawn_as_the_run_draws_it(home: Path) -> None:
    recipe = kd(home)
    student, _ = recipe.open_pair()
    source = recipe.source.load(student.live.vocabulary, scene(recipe).share)
    for step, draw in enumerate(drawn(recipe.source, scene(recipe))):
        assert draw.batch.tokens_T.tolist() == source.draw(step, student).tokens_T.tolist()


def test_a_step_holds_a_pass_of_each_model_for_each_pass(home: Path) -> None:
    recipe = kd(home, tokens_per_pass=64)
    pieces = of_step(recipe, scene(recipe))
    reads = sum(piece.times * piece.sequences for piece in pieces if type(piece) is Reading)
    learns = sum(piece.times * piece.sequences for piece in pieces if isinstance(piece, Learning))
    assert reads == pytest.approx(4) and learns == pytest.approx(4)
    rows = sum(piece.times * piece.rows for piece in pieces if isinstance(piece, Heads))
    assert rows == pytest.approx(sum(len(draw.batch.places_N) for draw in drawn(recipe.source, scene(recipe))) / 6)


def test_answers_are_written_as_long_as_they_may_be_or_are_said_to_be(home: Path) -> None:
    own = OnPolicy(str(home / "train.jsonl"), 4, Sampling(max_tokens=20), group=3)
    recipe = kd(home, own)
    (first, *_), (told, *_) = drawn(own, scene(recipe)), drawn(own, scene(recipe, answer_tokens=8))
    assert len(first.batch) == 12 and len(first.batch.places_N) == 12 * 20 and len(told.batch.places_N) == 12 * 8
    read, written = (next(piece for piece in first.pieces if type(piece) is kind) for kind in (Reading, Writing))
    assert read.sequences == 4 and written.rows == 12 and written.steps == 20  # prompts are read once each
    mixed = drawn(Mix(0.25, own, Corpus(str(home / "train.jsonl"))), scene(recipe))
    assert sum(draw.share for draw in mixed if draw.pieces) == pytest.approx(0.25) and sum(draw.share for draw in mixed) == pytest.approx(1)


def test_what_interleaving_scored_is_not_scored_again(home: Path) -> None:
    recipe = METHODS["skd"](str(home / "student"), str(home / "teacher"), prompts=str(home / "train.jsonl"))
    stages = {piece.stage for piece in of_step(recipe, scene(recipe))}
    assert stages == {"write", "learn", "step"}


def test_ranks_share_the_rows(home: Path) -> None:
    recipe = kd(home, OnPolicy(str(home / "train.jsonl"), 8, Sampling(max_tokens=9)))
    assert len(drawn(recipe.source, scene(recipe, ranks=4))[0].batch) == 2


def test_a_part_that_nobody_told_of_is_refused(home: Path) -> None:
    class Mute(Teacher):
        def score(self, parts: Any) -> Any:
            raise NotImplementedError

    with pytest.raises(RecipeError, match=r"what Mute takes is not known; tell it with limbeck\.planning\.priced\.scored\.register"):
        scored(Mute(), [], scene(kd(home)))


def test_this_machine_is_measured_once_for_a_shape(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def once(work: Any, seconds: float = 0.0, most: int = 0) -> float:
        said = work()
        return said if isinstance(said, float) else 1e-3

    monkeypatch.setattr(calibrate, "median_seconds", once)
    who = actor(home, Student("s", dtype="float32"))
    heads = Heads("learn", who, Objective([CrossEntropy()]), 10)
    kept, live = (Heads("learn", who, Objective([ForwardKL()]), 10, scorer) for scorer in (None, who))
    pieces: list[Piece] = [Learning("learn", who, 2, 16), heads, kept, live, Writing("write", who, 2, 5, 20), Writing("write", who, 2, 3, 20, 4)]
    machine = calibrate.here(folder=tmp_path)
    machine.prepare(pieces)
    assert all(0 < machine.seconds(piece) < math.inf for piece in pieces[:2])
    (found,) = machine.measured.values()
    assert set(found.writing) == {"2x1", "2x4"} and set(found.heads) == {"CrossEntropy", "ForwardKL of a teacher"}
    again = calibrate.here(folder=tmp_path)
    assert again.measured == machine.measured
    monkeypatch.setattr(calibrate, "shallow", None)  # nothing is left to be measured, whatever the depth
    again.prepare([replace(piece, actor=replace(who, anatomy=anatomy("deep", home / "teacher"))) for piece in pieces if isinstance(piece, Writing)])


def test_an_endpoint_that_scores_is_paid_for_what_it_reads(home: Path) -> None:
    teacher = Endpoint("http://localhost/v1", "m", usd_in=1.0, usd_out=3.0)
    parts = [Batch.of([made_up(5, 5)] * 3, "student")]
    pieces, who = scored(teacher, parts, scene(kd(home)))
    assert who is None and sum(piece.usd for piece in pieces) == pytest.approx((30 * 1.0 + 3 * 3.0) / 1e6)
