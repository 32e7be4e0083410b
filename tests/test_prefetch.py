"""Drawing ahead: with which weights, that a resumed run takes draws under way with it, and what a ratio corrects."""

import json
import os
import signal
import threading
from dataclasses import fields, replace

import numpy as np
import oracles
import pytest
import torch
import toys
import yaml
from safetensors.torch import load_file

import limbeck as lb
from limbeck.batch import Batch, Span, Text
from limbeck.divergence import SampledReverseKL
from limbeck.errors import RecipeError, Stopped
from limbeck.files import read_json
from limbeck.objective import PolicyGradient, TokenRows
from limbeck.pen import Pen
from limbeck.prefetch import as_plain, from_plain
from limbeck.run import Run
from limbeck.sources import Share, settled
from limbeck.targets import Logits


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("prefetch")
    return {
        "student": toys.folder(home / "student", seed=1),
        "teacher": toys.folder(home / "teacher", seed=2),
        "data": toys.jsonl(home / "train.jsonl", toys.rows(24)),
        "prompts": toys.jsonl(home / "prompts.jsonl", toys.rows(24, seed=1)),
    }


def many_vowels(completion: str, row: dict) -> float:
    return sum(letter in "aeiou" for letter in completion) / 10


def own(toy: dict[str, str], **more) -> lb.OnPolicy:
    return lb.OnPolicy(toy["prompts"], sequences=6, sampling=lb.Sampling(max_tokens=8), **more)


def opened(toy: dict[str, str], steps: int = 9, **more) -> lb.Student:
    torch.manual_seed(0)  # adapters begin at random
    return lb.Student(toy["student"], dtype=more.pop("dtype", "float32"), **more).load(steps)


def move(student: lb.Student) -> None:
    """As a step does: other weights."""
    with torch.no_grad():
        for weight in student.live.module.parameters():
            if weight.requires_grad:
                weight.mul_(1.05).add_(0.01)


def same(one: Batch, two: Batch) -> bool:
    return json.dumps(as_plain(one)) == json.dumps(as_plain(two))


def drawn(source: lb.Source, student: lb.Student, steps: int) -> list[Batch]:
    found = list[Batch]()
    for step in range(steps):
        found.append(source.draw(step, student))
        move(student)
    return found


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("how", ["float32", "bfloat16", "adapters"])
def test_a_step_is_written_with_the_weights_of_so_many_steps_before(ahead: int, how: str, toy) -> None:
    more = {"lora": lb.LoRA(4)} if how == "adapters" else {"dtype": how}
    source, fresh = (each.load(opened(toy).live.vocabulary, Share()) for each in (lb.Prefetch(own(toy), ahead), own(toy)))
    found = drawn(source, opened(toy, **more), 6)
    student = opened(toy, **more)
    for past in range(6):
        for step in range(6):
            if past == max(0, step - ahead):
                assert same(found[step], fresh.draw(step, student)), step
        move(student)
    assert not same(found[5], fresh.draw(5, opened(toy, **more)))


def test_it_draws_beside_the_learning_and_no_further_than_the_last_step(toy) -> None:
    at = list[tuple[int, str]]()
    source = lb.Prefetch(own(toy), 2).load(opened(toy).live.vocabulary, Share())
    real = source.source.draw
    source.source.draw = lambda step, student: at.append((step, threading.current_thread().name)) or real(step, student)
    drawn(source, opened(toy, steps=4), 4)
    assert [step for step, _ in at] == [0, 1, 2, 3]
    assert all(name.startswith("prefetch") for _, name in at)


def test_what_moves_is_copied_and_what_does_not_is_shared(toy) -> None:
    student = opened(toy, lora=lb.LoRA(4))
    aside = student.aside(Pen(apart=True))
    for mine, theirs in zip(student.live.module.parameters(), aside.live.module.parameters(), strict=True):
        assert (mine is theirs) == (not mine.requires_grad) and not theirs.requires_grad and torch.equal(mine, theirs)
    assert all(mine is not theirs for mine, theirs in zip(*(each.live.module.parameters() for each in _two(toy)), strict=True))


def _two(toy) -> tuple[lb.Student, lb.Student]:
    student = opened(toy)
    return student, student.aside(Pen(apart=True))


def test_a_batch_survives_json_to_the_last_bit() -> None:
    texts = [Text([1, 2, 3, 4], [Span(1, 3)], {"a": None, "b": [1, {"c": "ü"}]}, [-0.1, -1e-7]), Text([5, 6], [Span(1, 2)], {}, [float("nan")])]
    batch = replace(Batch.of(texts, "student"), credit_B=torch.tensor([1 / 3, -2.0]), left_out=2, figures={"reward": (0.1 + 0.2, 3)})
    again = from_plain(json.loads(json.dumps(as_plain(batch))))
    for field in fields(Batch):
        one, two = getattr(batch, field.name), getattr(again, field.name)
        assert one.dtype == two.dtype and torch.equal(one.nan_to_num(7), two.nan_to_num(7)) if isinstance(one, torch.Tensor) else one == two
    assert from_plain(as_plain(replace(batch, credit_B=None))).credit_B is None


def test_a_state_is_waited_for_only_where_it_is_saved(toy) -> None:
    source = lb.Prefetch(own(toy)).load(opened(toy).live.vocabulary, Share())
    go, real = threading.Event(), source.source.draw
    source.source.draw = lambda step, student: (step == 0 or go.wait(30)) and real(step, student)
    student = opened(toy)
    source.draw(0, student)
    state = source.state()  # step 1 is under way and stands still
    go.set()
    move(student)
    later = settled(state)
    assert list(later["drawn"]) == ["1"]
    again = lb.Prefetch(own(toy)).load(student.live.vocabulary, Share())
    again.restore(json.loads(json.dumps(later)))
    assert same(again.draw(1, student), source.draw(1, student))
    move(student)
    assert same(again.draw(2, student), source.draw(2, student))


SOURCES = {
    "on policy": lambda toy: lb.Prefetch(own(toy)),
    "three ahead": lambda toy: lb.Prefetch(own(toy), 3),
    "mixed": lambda toy: lb.Prefetch(lb.Mix(0.5, own(toy), lb.Corpus(toy["data"], sequences=6))),
    "rewarded": lambda toy: lb.Prefetch(own(toy, reward="test_prefetch:many_vowels", baseline="running")),
}
OBJECTIVES = {"rewarded": "ReverseKL() + 0.5 * PolicyGradient(ratio=2)"}


def recipe(toy: dict[str, str], name: str, **more) -> lb.Recipe:
    student = lb.Student(toy["student"], dtype="float32", optimizer=lb.AdamW(3e-3))
    teacher = lb.Local(toy["teacher"], dtype="float32")
    return lb.Recipe(student, SOURCES[name](toy), teacher, OBJECTIVES.get(name, "ReverseKL()"), steps=6, tokens_per_pass=256, **more)


@pytest.mark.parametrize("name", SOURCES)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(name: str, toy, tmp_path) -> None:
    """*Resume*: six steps in one go, or four of them, the fourth lost, and the same command again: with the draws under way."""
    made = recipe(toy, name, save_every=3)
    lb.distill(made, tmp_path / "whole")
    lb.distill(made, tmp_path / "twin")
    real = Run.log_step

    def failing(self, at, moved):
        real(self, at, moved)
        if at == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log_step", failing)
        with pytest.raises(KeyboardInterrupt):
            lb.distill(made, tmp_path / "broken")
    lb.distill(made, tmp_path / "broken")
    lines = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "twin", "broken")]
    assert lines[0] == lines[1] == lines[2]
    a, b = (load_file(tmp_path / run / "student" / "model.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(a[key], b[key]) for key in a)


CALLS = {"left": 0}


def stopping(completion: str, row: dict) -> float:
    """A verifier in whose midst, once, somebody asks the run to stop: while a draw is under way, and a step too."""
    CALLS["left"] -= 1
    if CALLS["left"] == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return many_vowels(completion, row)


def test_a_signal_while_a_draw_is_under_way_loses_nothing(toy, tmp_path) -> None:
    """In the thread that draws the fifth step: the run saves the draw once it is made, and goes on with it."""
    made = recipe(toy, "rewarded", save_every=100)
    made = replace(made, source=lb.Prefetch(own(toy, reward="test_prefetch:stopping", baseline="running")))
    CALLS["left"] = -1
    lb.distill(made, tmp_path / "whole")
    CALLS["left"] = 4 * 6 + 3
    with pytest.raises(Stopped, match="which are saved"):
        lb.distill(made, tmp_path / "broken")
    kept = [read_json(path) for path in (tmp_path / "broken" / "checkpoints").glob("*/state.json")]
    assert [list(each["source"]["drawn"]) for each in kept] in ([["3"]], [["4"]])
    lb.distill(made, tmp_path / "broken")
    assert (tmp_path / "broken" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_several_processes_are_refused(toy) -> None:
    with pytest.raises(RecipeError, match="in one process alone, beside its learning, and there are 2; launch one"):
        lb.Prefetch(own(toy)).load(opened(toy).live.vocabulary, Share(ranks=2))


REFUSED = {
    "Prefetch(OnPolicy('p', reward='a:b', group=2))": ("PolicyGradient()", "ratio=2"),
    "Prefetch(OnPolicy('p'), 3)": ("SampledReverseKL()", "ratio=2"),
    "Mix(0.5, Prefetch(OnPolicy('p')), Corpus('d'))": ("ReverseKL()", "Prefetch(Mix(...))"),
    "Prefetch(Prefetch(OnPolicy('p')))": ("ReverseKL()", "Prefetch(Prefetch(...))"),
    "OnPolicy('p', reward='a:b', group=2)": ("PolicyGradient(ratio=0)", "null weighs nothing"),
    "Prefetch(OnPolicy('p'), 0)": ("ReverseKL()", "learnt from"),
}


@pytest.mark.parametrize("source", REFUSED)
def test_what_is_refused_ends_with_what_can(source: str) -> None:
    objective, end = REFUSED[source]
    with pytest.raises(RecipeError) as caught:
        lb.Recipe.of({"student": "s", "teacher": "Local('t')", "source": source, "objective": objective})
    assert str(caught.value).endswith(end)


def test_it_goes_through_yaml(toy) -> None:
    made = recipe(toy, "rewarded")
    assert lb.Recipe.of(yaml.safe_load(made.yaml)) == made
    endless = replace(made, objective=PolicyGradient(ratio=float("inf")))
    assert lb.Recipe.of(yaml.safe_load(endless.yaml)) == endless


# The ratio, every outcome of a token enumerated: gradients are on the weights of a small softmax model, in float64

V, D, CONTEXTS = 6, 3, 4


def model(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, D, generator=random, dtype=torch.float64) for rows in (CONTEXTS, V))


HIDDEN_CD, NOW_VD = model(0)
THEN_VD = NOW_VD + 0.3 * model(1)[1]
TEACHER_CV = torch.randn(CONTEXTS, V, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
CREDIT_CV = torch.randn(CONTEXTS, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def expected(term: lb.Term, written_VD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats and gradient on the weights, each token of each context weighed by how likely it was to be written."""
    log_then_CV = (HIDDEN_CD @ written_VD.T).log_softmax(-1)
    tokens = torch.arange(V).repeat(CONTEXTS)
    rows = TokenRows(tokens, CREDIT_CV.flatten(), log_then_CV.flatten())
    hidden = HIDDEN_CD.repeat_interleave(V, 0)
    nats, gradient = term.rows(Logits(hidden @ NOW_VD.T), Logits(TEACHER_CV.repeat_interleave(V, 0)), rows)
    chance = log_then_CV.flatten().exp()
    return chance @ nats, (gradient * chance[:, None]).T @ hidden


@pytest.mark.parametrize("kind", [PolicyGradient, SampledReverseKL])
def test_stale_tokens_teach_as_fresh_ones_do_by_their_ratio_and_not_without(kind: type[lb.Term]) -> None:
    nats, gradient = expected(kind(), NOW_VD)
    with_ratio, without, short = (expected(kind(ratio=ratio), THEN_VD) for ratio in (float("inf"), None, 2.0))
    torch.testing.assert_close(with_ratio[1], gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(with_ratio[0], nats, rtol=1e-12, atol=1e-12)
    assert (without[1] - gradient).norm() > 0.1 * gradient.norm()
    assert 0 < (short[1] - gradient).norm() < (without[1] - gradient).norm(), "truncation is a bias, and a smaller one"
    torch.testing.assert_close(expected(kind(ratio=2), NOW_VD)[1], gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, float("inf")])
def test_the_ratio_is_its_formula(ratio: float) -> None:
    random = np.random.default_rng(0)
    s, z, then, credit = random.normal(size=(7, V)), random.normal(size=(7, V)), random.normal(size=7) - 2, random.normal(size=7)
    tokens = random.integers(0, V, 7)
    rows = TokenRows(torch.tensor(tokens), torch.tensor(credit), torch.tensor(then))
    for term, (nats, slope) in [
        (PolicyGradient(ratio=ratio), oracles.cross_entropy(tokens, s)),
        (SampledReverseKL(ratio=ratio), oracles.sampled_reverse_kl(tokens, z, s)),
    ]:
        weight = oracles.importance(tokens, s, then, ratio) * (credit if isinstance(term, PolicyGradient) else 1)
        found_nats, found_slope = term.rows(Logits(torch.tensor(s)), Logits(torch.tensor(z)), rows)
        np.testing.assert_allclose(found_nats, weight * nats, rtol=1e-12)
        np.testing.assert_allclose(found_slope, weight[:, None] * slope, rtol=1e-10, atol=1e-14)


def test_tokens_of_nobody_known_weigh_one() -> None:
    """Others' tokens in a mixed batch: a term that does not count them must not make a number of no number."""
    rows = TokenRows(torch.tensor([0, 1]), torch.ones(2), torch.tensor([float("nan"), -1.0]))
    nats, gradient = PolicyGradient(ratio=2).rows(Logits(torch.zeros(2, V)), None, rows)
    assert nats[0] == pytest.approx(np.log(V)) and bool(gradient.isfinite().all())
