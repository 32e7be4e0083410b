"""The moving average of the student as a teacher: against the average in float64, and through a stop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from safetensors.torch import load_file

import limbeck as lb
from limbeck import checkpoint
from limbeck.batch import Batch, Span, Text
from limbeck.errors import RecipeError
from limbeck.pen import Pen
from limbeck.run import Run
from limbeck.shadow import Shadow

DECAY = 0.9


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("toys")
    return {"student": toys.folder(home / "student", seed=1, width=16), "data": toys.jsonl(home / "train.jsonl", toys.rows(24))}


def recipe(toy: dict[str, str], teacher: lb.Teacher | None = None, **more: Any) -> lb.Recipe:
    """Mean teacher: the text and the average."""
    own = lb.Student(toy["student"], lb.AdamW(1e-2), dtype="float32", lora=more.pop("lora", None))
    objective = more.pop("objective", lb.CrossEntropy() + 0.5 * lb.ForwardKL())
    source = lb.Corpus(toy["data"], sequences=8)
    return lb.Recipe(own, source, teacher or lb.Average(DECAY), objective, **{"steps": 6, "save_every": 1, "keep_last": 9, **more})


def oracle(weights: list[np.ndarray], decay: float) -> np.ndarray:
    """The average after the last of these weights, the first being the start: in float64, from the sum and not the recursion."""
    steps = len(weights) - 1
    shares = [decay**steps, *((1 - decay) * decay ** (steps - t) for t in range(1, steps + 1))]
    return sum(share * weight.astype(np.float64) for share, weight in zip(shares, weights, strict=True))


def saved(out: Path, step: int) -> dict[str, torch.Tensor]:
    return checkpoint.restore(checkpoint.place(out / "checkpoints", step))[0].whole()


@pytest.mark.parametrize("lora", [None, lb.LoRA(rank=2)])
def test_the_average_is_that_of_all_weights_so_far(toy, tmp_path, lora) -> None:
    lb.distill(recipe(toy, lora=lora), tmp_path / "run")
    states = [saved(tmp_path / "run", step) for step in range(1, 7)]
    start = lb.Student(toy["student"], dtype="float32").load(1).state() if lora is None else None
    names = [name.removeprefix("weight.") for name in states[0] if name.startswith("weight.")]
    assert names and {f"average.{DECAY}.{name}" for name in names} == {name for name in states[0] if name.startswith("average.")}
    for name in names:
        followed = [state[f"weight.{name}"].numpy() for state in states]
        if start is None:  # adapters begin at random: what is known is how the average moved from the first step on
            first, followed = states[0][f"average.{DECAY}.{name}"].numpy(), followed[1:]
        else:
            first = start[f"weight.{name}"].numpy()
        wanted = oracle([first, *followed], DECAY)
        found = states[-1][f"average.{DECAY}.{name}"].numpy()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * max(1.0, float(np.abs(wanted).max())))
        assert np.abs(found - followed[-1]).max() > 1e-4, "the average is the student: the test could not fail"


def test_it_says_what_a_model_of_the_averaged_weights_says(toy, tmp_path) -> None:
    student = lb.Student(toy["student"], lb.AdamW(1e-2), dtype="float32").load(4)
    teacher = lb.Average(DECAY).load(student)
    batch = Batch.of([Text(list(range(3, 15)), [Span(1, 12)])], "corpus")
    for step in range(3):
        student.learn(batch, next(iter(teacher.score([batch]))), recipe(toy).objective, 1.0 / 11)
        student.step(step)
    said = teacher.about(batch).rows(slice(0, 11)).log_probs()
    network = toys.network(seed=1, width=16)
    state = {name.removeprefix(f"average.{DECAY}."): value for name, value in student.state().items() if name.startswith("average.")}
    assert network.load_state_dict(state, strict=False).unexpected_keys == []
    with torch.no_grad():
        wanted = torch.log_softmax(network(torch.arange(3, 15)[None]).logits[0, :-1, :258], -1)
    torch.testing.assert_close(said, wanted, atol=1e-5, rtol=0)
    own = torch.log_softmax(student.live.causal(torch.arange(3, 15)[None]).logits[0, :-1, :258], -1)
    assert (own - said).abs().max() > 1e-2


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(toy, tmp_path, monkeypatch) -> None:
    lb.distill(recipe(toy), tmp_path / "whole")
    log_step = Run.log_step

    def failing(self, at, moved):
        log_step(self, at, moved)
        if at == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log_step", failing)
        with pytest.raises(KeyboardInterrupt):
            lb.distill(recipe(toy), tmp_path / "broken")
    lb.distill(recipe(toy), tmp_path / "broken")
    one, two = tmp_path / "whole", tmp_path / "broken"
    assert (one / "metrics.jsonl").read_text() == (two / "metrics.jsonl").read_text()
    assert all(torch.equal(value, saved(two, 6)[name]) for name, value in saved(one, 6).items())


def test_a_run_that_forgot_its_average_would_be_seen(toy, tmp_path, monkeypatch) -> None:
    """The test above can fail: an average that is not taken back changes the metrics."""
    lb.distill(recipe(toy), tmp_path / "whole")
    lb.distill(recipe(toy), tmp_path / "broken")
    checkpoint.prune(tmp_path / "broken" / "checkpoints", 9, None)
    for step in (4, 5, 6):
        for file in checkpoint.place(tmp_path / "broken" / "checkpoints", step).glob("*"):
            file.unlink()
        checkpoint.place(tmp_path / "broken" / "checkpoints", step).rmdir()
    (tmp_path / "broken" / "student").rename(tmp_path / "dropped")
    real = Shadow.state
    monkeypatch.setattr(Shadow, "state", lambda self: {name: value.clone() for name, value in real(self).items()})  # read into what is dropped
    lb.distill(recipe(toy), tmp_path / "broken")
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() != (tmp_path / "broken" / "metrics.jsonl").read_text()


def test_the_average_moves_apart_from_the_student_and_is_not_learnt(toy, tmp_path) -> None:
    lb.distill(recipe(toy, evaluations=[lb.Likelihood(toy["data"], rows=8)]), tmp_path / "run")
    from limbeck.files import read_json

    found = read_json(tmp_path / "run" / "evaluations.json")
    assert found["0"]["heldout"]["kl_nats"] == pytest.approx(0, abs=1e-6) and found["6"]["heldout"]["kl_nats"] > 1e-3


def test_alone_it_is_refused_and_beside_text_or_with_a_hint_it_is_not(toy) -> None:
    with pytest.raises(RecipeError, match="a moving average begins as the student and says the same, so ForwardKL alone has no gradient"):
        recipe(toy, objective=lb.ForwardKL())
    assert recipe(toy, objective=lb.ForwardKL() + lb.CrossEntropy())
    assert recipe(toy, lb.Privileged(lb.Average(0.99), "Think."), objective=lb.ForwardKL())


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 1.5])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(RecipeError, match=r"Average\.decay must lie between 0 and 1"):
        lb.Average(decay)


def test_a_student_that_ranks_share_is_refused(toy, monkeypatch) -> None:
    student = lb.Student(toy["student"], dtype="float32").load(1)
    monkeypatch.setattr("limbeck.shadow.is_sharded", lambda: True)
    with pytest.raises(RecipeError, match="launch without --use_fsdp"):
        lb.Average().load(student)


def test_two_averages_keep_apart_and_one_decay_is_kept_once(toy) -> None:
    student = lb.Student(toy["student"], dtype="float32").load(1)
    mixture = lb.Mixture({"slow": lb.Average(0.99), "fast": lb.Average(0.5), "same": lb.Average(0.5)}).load(student)
    kept = {name.rsplit(".model", 1)[0].split(".model")[0] for name in student.state() if name.startswith("average.")}
    assert len({name.split(".model.")[0] for name in kept}) >= 2
    slow, fast, same = (each.opened for each in mixture.teachers.values())
    assert fast is same and fast is not slow


def test_with_adapters_only_what_moves_is_copied(toy) -> None:
    student = lb.Student(toy["student"], dtype="float32", lora=lb.LoRA(rank=2)).load(1)
    teacher = lb.Average().load(student)
    assert teacher.opened is not None
    pairs = list(zip(teacher.opened.module.parameters(), student.live.module.parameters(), strict=True))
    assert all((mine is theirs) == (not theirs.requires_grad) for mine, theirs in pairs)
    assert len(pairs) > 2 and Pen().of(student.live) is student.live and replace(teacher) == lb.Average()
    assert load_file(Path(toy["student"]) / "model.safetensors")
