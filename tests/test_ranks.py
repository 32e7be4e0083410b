"""Two and three processes do what one does: gradients, metrics, evaluations and written text, for every named recipe."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import toys
from safetensors.torch import load_file
from test_runs import recipe

import limbeck as lb
from limbeck.files import read_jsonl
from limbeck.methods import METHODS as EVERY

HERE = Path(__file__).parent
HOWS = ("copies", "shares")
"""Of two processes; three hold shares."""

METHODS = {name: method for name, method in EVERY.items() if name != "distilbert"}
"""Those of causal models."""
OTHERS = ["running", "one-row", "projected", "layer-alone", "adapters", "checkpointed", "narrow", "in-4-bits"]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Every recipe run by one process, by two and by three, started once for all of them."""
    work = tmp_path_factory.mktemp("ranks")
    toy = {"student": toys.folder(work / "student", seed=1), "teacher": toys.folder(work / "teacher", seed=2, layers=3, sharp=8.0),
           "data": toys.jsonl(work / "train.jsonl", toys.rows(24)), "prompts": toys.jsonl(work / "prompts.jsonl", toys.rows(24, seed=1)),
           "reward": "test_runs:many_vowels"}  # fmt: skip
    heldout = toys.jsonl(work / "heldout.jsonl", toys.rows(11, seed=2))
    evaluations = [lb.Likelihood(heldout), lb.Likelihood(heldout, name="own", own_text=True, sampling=lb.Sampling(max_tokens=6))]
    for method in METHODS:
        made = recipe(method, toy, evaluations=evaluations, tokens_per_pass=100, steps=3)
        save(made if method == "distillm" else sized(made, 7), work, method)  # 7 rows over 2 ranks: uneven
    baseline = sized(recipe("gkd_rl", toy), 5)
    save(replace(baseline, source=replace(baseline.source, group=1, baseline="running")), work, "running")
    save(sized(recipe("kd", toy), 1), work, "one-row")  # the second rank has nothing
    wide = toy | {"teacher": toys.folder(work / "wide", seed=3, layers=3, width=48)}
    save(sized(recipe("tinybert", wide), 7), work, "projected")
    save(replace(sized(recipe("fitnets", wide), 1), objective=lb.HiddenStates({0: 1})), work, "layer-alone")  # others' weights wait for nothing
    small = lb.Student(toy["student"], lb.AdamW(3e-3), dtype="float32")
    for name, student, teacher in (
        ("adapters", replace(small, lora=lb.LoRA(rank=2)), lb.Local(toy["teacher"], dtype="float32")),
        ("checkpointed", replace(small, gradient_checkpointing=True), lb.Local(toy["teacher"], dtype="float32")),
        ("narrow", replace(small, dtype="bfloat16"), lb.Local(toy["teacher"], dtype="bfloat16")),
        ("in-4-bits", small, lb.Local(toys.folder(work / "packed", seed=4, width=128), dtype="float32", quantization="4bit")),
    ):
        save(replace(sized(recipe("kd", toy, tokens_per_pass=100), 7), student=student, teacher=teacher), work, name)
    launch(work, 2)
    for how in HOWS:
        shutil.copytree(work / f"stopped-{how}", work / f"onwards-{how}")
    launch(work, 3)
    return work


def sized(made: lb.Recipe, sequences: int) -> lb.Recipe:
    def shrink(source):
        if isinstance(source, lb.Mix):
            return lb.Mix(source.fraction, shrink(source.first), shrink(source.second))
        return replace(source, sequences=sequences)

    return replace(made, source=shrink(made.source))


def save(made: lb.Recipe, work: Path, name: str) -> None:
    (work / f"{name}.yaml").write_text(made.yaml)
    lb.distill(made, work / f"{name}-one")


def launch(work: Path, ranks: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), str(HERE / "ranks.py"), str(work)]
    where = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    ended = subprocess.run(command, env=where, capture_output=True, text=True, timeout=150)
    assert ended.returncode == 0, "\n".join(line for line in ended.stderr.splitlines() if "left" not in line)[-6000:]  # without the progress


def near(one: dict, two: dict, exact: float = 1e-5) -> None:
    """Two rows of metrics, to 1e-5; bounds of intervals are quantiles of resamples, and jump where two of those change places."""
    assert one.keys() == two.keys()
    for key, value in one.items():
        bound = 1e-3 if key.endswith("_interval") else exact
        assert two[key] == (pytest.approx(value, rel=bound, abs=1e-7) if isinstance(value, float | list) else value), key


@pytest.mark.parametrize("how", [*HOWS, "three"])
@pytest.mark.parametrize("name", [*METHODS, *OTHERS])
def test_several_ranks_do_what_one_does(name: str, how: str, work: Path) -> None:
    one, two = (read_jsonl(work / f"{name}-{run}" / "metrics.jsonl") for run in ("one", how))
    assert len(one) == len(two) > 2
    for row, other in zip(one, two, strict=True):
        near(row, other, 2e-2 if name == "narrow" else 1e-5)
    assert (work / f"{name}-one" / "recipe.yaml").read_text() == (work / f"{name}-{how}" / "recipe.yaml").read_text()
    if (work / f"{name}-one" / "samples.jsonl").exists():
        assert (work / f"{name}-one" / "samples.jsonl").read_text() == (work / f"{name}-{how}" / "samples.jsonl").read_text()
    if name != "narrow":
        same_student(work / f"{name}-one", work / f"{name}-{how}")


def same_student(one: Path, two: Path) -> None:
    a, b = (load_file(run / "student" / "model.safetensors") for run in (one, two))
    assert a.keys() == b.keys()
    for name, weight in a.items():
        assert (weight - b[name]).abs().max() < 1e-4, name  # Adam divides rounding by rounding where gradients vanish


def test_shares_are_shares(work: Path) -> None:
    """Each rank's file holds half of the weights and moments."""
    files = sorted((work / "kd-shares" / "checkpoints").rglob("*.safetensors"))
    whole = next((work / "kd-copies" / "checkpoints").rglob("*.safetensors")).stat().st_size
    assert [file.name for file in files] == [f"shard-0000{n}-model-00001-of-00001.safetensors" for n in (1, 2)]
    assert all(0.4 * whole < file.stat().st_size < 0.6 * whole for file in files)


@pytest.mark.parametrize("how", HOWS)
def test_two_ranks_stop_together_and_one_goes_on(how: str, work: Path) -> None:
    """One rank is asked to stop; both save after the same step; one process goes on from what two saved."""
    run = work / f"stopped-{how}"
    said = [(work / f"stopped-{how}-{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1] == f"{run}: stopped by SIGTERM after 2 of 3 steps, which are saved; the same command goes on from there"
    lb.distill(lb.Recipe.read(work / "gkd_rl.yaml"), run)
    as_one(work / "gkd_rl-one", run)


@pytest.mark.parametrize("how", HOWS)
def test_three_go_on_in_shares_from_what_two_saved(how: str, work: Path) -> None:
    as_one(work / "gkd_rl-one", work / f"onwards-{how}")


def as_one(one: Path, other: Path) -> None:
    for row, again in zip(read_jsonl(one / "metrics.jsonl"), read_jsonl(other / "metrics.jsonl"), strict=True):
        near(row, again)
    same_student(one, other)


def test_a_share_that_is_missing_is_said(work: Path, tmp_path: Path) -> None:
    run = work / "sft-shares"
    next((run / "checkpoints").rglob("shard-00002-*.safetensors")).unlink()
    with pytest.raises(lb.LimbeckError, match=r"1 of 2 files are there; shard-00002-model-00001-of-00001\.safetensors is not"):
        lb.distill(lb.Recipe.read(work / "sft.yaml"), run)


def test_layers_are_gathered_in_the_dtype_of_their_arithmetic(work: Path) -> None:
    """Each rank keeps a part of float32 weights, and meets a layer whole in bfloat16."""
    said = [(work / f"narrow-{rank}").read_text().split() for rank in range(3)]
    assert all(each[:2] == ["torch.float32", "torch.bfloat16"] for each in said)
    assert sum(int(each[2]) for each in said) == int(said[0][3]) and all(int(each[2]) < int(each[3]) for each in said)
