"""Whoever writes with the student's weights in its place: that the weights are new, and that it is noticed where they are not."""

import json
import math
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
import yaml
from pen_double import Pen, writing

import limbeck as lb
from limbeck import Sampling, engines
from limbeck.batch import Batch, Text
from limbeck.check import Line, check
from limbeck.config import build, to_yaml
from limbeck.engines import EXCESS, MISMATCH, VLLM, Engine
from limbeck.errors import EndpointError, LimbeckError, RecipeError
from limbeck.files import read_jsonl
from limbeck.objective import CrossEntropy, Objective
from limbeck.pen import Pen as Copies
from limbeck.sources import Share
from limbeck.targets import Nothing


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = tmp_path_factory.mktemp("engines")
    names = {"student": 2, "teacher": 3}
    return {name: toys.folder(made / name, rows=258, seed=seed) for name, seed in names.items()} | {
        "prompts": toys.jsonl(made / "asked.jsonl", [{"prompt": row["prompt"]} for row in toys.rows(4)])
    }


def alive(folders: dict[str, str], urls: list[str], student: lb.Student | None = None, **settings: Any) -> tuple[lb.OnPolicy, lb.Student]:
    """A source whose text comes from servers, and a student in float32."""
    student = student or lb.Student(folders["student"], lb.AdamW(learning_rate=1e-2, warmup=0), dtype="float32").load(50)
    engine = VLLM(urls, "toy", dtype="float32", **settings)
    source = lb.OnPolicy(folders["prompts"], sequences=4, sampling=Sampling(8), engine=engine)
    return source.load(student.live.vocabulary, Share()), student


def nats(student: lb.Student, batch: Batch) -> torch.Tensor:
    objective = Objective([CrossEntropy()])
    return -student.measure(batch, Nothing(), objective)[objective.terms[0].name]


def learn(student: lb.Student, batch: Batch, step: int) -> None:
    student.learn(batch, Nothing(), Objective([CrossEntropy()]), scale=1 / len(batch.tokens_N))
    student.step(step)


def test_text_comes_from_the_weights_of_each_step(folders: dict[str, str]) -> None:
    """What the server says of its tokens is what the student says, and not what it said a step before."""
    pen = Pen(folders["student"])
    with writing(pen) as url:
        source, student = alive(folders, [url])
        before = None
        for step in range(4):
            batch = source.draw(step, student)
            assert (batch.logp_N - nats(student, batch)).abs().max() < 1e-4
            assert batch.figures[MISMATCH][0] / batch.figures[MISMATCH][1] < 1e-5 and batch.figures[MISMATCH][1] == len(batch.tokens_N)
            if before is not None:
                assert (batch.logp_N - nats(before, batch)).abs().mean() > 0.01
            before = student.aside(Copies(apart=True))
            learn(student, batch, step)
    assert pen.told == ["collective_rpc", "reset_prefix_cache"] * 4


@pytest.mark.parametrize("ignored", ["collective_rpc", "reset_prefix_cache"])
def test_weights_and_prompts_of_a_step_before_are_noticed(folders: dict[str, str], ignored: str) -> None:
    """A server that says to have taken in weights, or to have forgotten prompts, and has not."""
    with writing(Pen(folders["student"], ignores=[ignored])) as url:
        source, student = alive(folders, [url])
        learn(student, source.draw(0, student), 0)
        with pytest.raises(LimbeckError, match=r"are apart by .* nats a token.*other weights, remembers prompts of older ones"):
            source.draw(4, student)  # the same prompts again


def test_a_shift_too_small_for_the_distance_is_noticed_by_its_sign(folders: dict[str, str]) -> None:
    with writing(Pen(folders["student"], off_nats=0.0008)) as url:
        source, student = alive(folders, [url])
        with pytest.raises(LimbeckError, match=r"\+0.0008 nats a token on average, more than rounding"):
            source.draw(0, student)
    with writing(Pen(folders["student"], off_nats=0.0008)) as url:
        source, student = alive(folders, [url], alarm_nats=0.1)
        assert source.draw(0, student).figures[EXCESS][0] > 0


def test_between_new_weights_text_is_older_and_its_ratio_says_so(folders: dict[str, str]) -> None:
    pen = Pen(folders["student"])
    with writing(pen) as url:
        source, student = alive(folders, [url], every=2)
        for step in range(4):
            batch = source.draw(step, student)
            gap = float((batch.logp_N - nats(student, batch)).abs().mean())
            assert gap < 1e-4 if step % 2 == 0 else gap > 0.01
            assert (batch.figures[MISMATCH][1] > 0) == (step % 2 == 0)
            learn(student, batch, step)
    assert pen.told.count("collective_rpc") == 2


def test_a_row_is_seeded_by_run_step_and_row(folders: dict[str, str]) -> None:
    with writing(Pen(folders["student"])) as url:
        source, student = alive(folders, [url], checked=0)
        one, again, other = (source.draw(step, student).tokens_N.tolist() for step in (1, 1, 5))
    assert one == again != other


def test_calls_go_to_all_servers_and_one_that_dies_is_left_out(folders: dict[str, str]) -> None:
    """Every server takes in each student's weights; no answer is lost or asked for twice."""
    pens = [Pen(folders["student"]) for _ in range(3)]
    with ExitStack() as there:
        source, student = alive(folders, [there.enter_context(writing(pen)) for pen in pens])
        alone = source.draw(0, student)
        assert all(pen.told == ["collective_rpc", "reset_prefix_cache"] for pen in pens)
        assert sum(pen.answered for pen in pens) == 5  # one that proves the tokenizer
        pens[1].dies_after = pens[1].answered
        engine = source.engine
        engine._handed = 0
        assert source.draw(0, student).tokens_N.tolist() == alone.tokens_N.tolist()
        assert sum(pen.answered for pen in pens) == 9
        with pytest.raises(EndpointError, match=r"did not take in the weights"):
            source.draw(1, student)


def asks_again(messages: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """A world that always asks for more."""
    return [{"role": "user", "content": "more"}]


def test_several_turns_and_draws_ahead_have_one_hand_over_a_step(folders: dict[str, str]) -> None:
    """A dialogue's later turns are of the same weights; what is drawn ahead is compared with the weights that it was given."""
    pen = Pen(folders["student"], context=256)
    student = lb.Student(folders["student"], lb.AdamW(learning_rate=1e-2, warmup=0), dtype="float32").load(3)
    with writing(pen) as url:
        engine = VLLM([url], "toy", dtype="float32")
        source = lb.OnPolicy(folders["prompts"], sequences=4, sampling=Sampling(64), environment="test_engines:asks_again", engine=engine)
        ahead = lb.Prefetch(source).load(student.live.vocabulary, Share())
        for step in range(3):
            batch = ahead.draw(step, student)
            assert batch.figures[MISMATCH][0] < 1e-4 * batch.figures[MISMATCH][1]
            learn(student, batch, step)
    assert pen.told == ["collective_rpc", "reset_prefix_cache"] * 3


def test_adapters_are_folded_in(folders: dict[str, str]) -> None:
    with writing(Pen(folders["student"])) as url:
        student = lb.Student(folders["student"], lb.AdamW(learning_rate=1e-1, warmup=0), lora=lb.LoRA(rank=2), dtype="float32").load(3)
        source, _ = alive(folders, [url], student)
        for step in range(2):
            batch = source.draw(step, student)
            learn(student, batch, step)
    assert batch.figures[MISMATCH][1] and batch.figures[MISMATCH][0] < 1e-4 * batch.figures[MISMATCH][1]


def test_a_head_that_is_the_embedding_becomes_one_of_its_own(tmp_path: Path) -> None:
    """Others keep what they made of a shared one; the student itself stays as it is."""
    student = lb.Student(toys.folder(tmp_path / "tied", "llama-tied", rows=258), dtype="float32").load(1)
    (tmp_path / "made").mkdir()
    student.hand_over(tmp_path / "made")
    again, batch = lb.Student(str(tmp_path / "made"), dtype="float32").load(1), Batch.of([Text.answered([1, 2], [3, 4], {})], "student")
    assert len(list(again.live.module.parameters())) == len(list(student.live.module.parameters())) + 1
    assert student.live.causal.config.tie_word_embeddings and torch.equal(nats(student, batch), nats(again, batch))


def test_in_a_whole_run_the_mismatch_is_in_the_records(folders: dict[str, str], tmp_path: Path) -> None:
    with writing(Pen(folders["student"])) as url:
        engine = {"type": "VLLM", "servers": [url], "model": "toy", "dtype": "float32", "every": 2}
        source = lb.OnPolicy(folders["prompts"], sequences=4, sampling=Sampling(8), engine=engine)
        recipe = lb.Recipe(lb.Student(folders["student"], dtype="float32"), source, lb.Local(folders["teacher"], dtype="float32"),
                           Objective([lb.ReverseKL()]), steps=4)  # fmt: skip
        assert build(yaml.safe_load(to_yaml(recipe)), lb.Recipe) == recipe
        lb.distill(recipe, tmp_path / "run")
    rows = [row for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "loss_nats" in row or MISMATCH in row]
    assert [MISMATCH in row for row in rows if "gradient_norm" in row] == [True, False, True, False]
    assert all(row[MISMATCH] < 1e-4 and abs(row[EXCESS]) < 1e-4 for row in rows if MISMATCH in row)


def test_a_word_stands_for_the_engine(folders: dict[str, str]) -> None:
    assert isinstance(lb.OnPolicy(folders["prompts"], engine="vllm").engine, VLLM)
    assert isinstance(VLLM(), Engine) and VLLM() == replace(VLLM(), every=1)


WAYS = {"one": (1, False), "copies": (2, False), "shares": (2, True)}
"""Processes, and whether each holds a share of the weights."""


def test_two_processes_have_the_text_of_one(folders: dict[str, str], tmp_path: Path) -> None:
    """Each draws its own rows, the weights are handed over once, and the records are those of one process."""
    found = dict[str, list[dict[str, Any]]]()
    for way, (ranks, sharded) in WAYS.items():
        pen, out = Pen(folders["student"]), tmp_path / way
        with writing(pen) as url:
            (tmp_path / "given.json").write_text(json.dumps({"folders": folders, "url": url, "out": str(out)}))
            script = [str(Path(__file__).with_name("pen_ranks.py")), str(tmp_path / "given.json")]
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
            variables = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_FSDP": str(sharded).lower()}
            done = subprocess.run([sys.executable, *launch, *script], capture_output=True, text=True, check=False, env=variables)
        assert done.returncode == 0, done.stderr[-2000:]
        assert pen.told == ["collective_rpc", "reset_prefix_cache"] * 2
        found[way] = [row for row in read_jsonl(out / "metrics.jsonl") if "gradient_norm" in row]
    for way in ("copies", "shares"):
        for one, two in zip(found["one"], found[way], strict=True):
            assert one.keys() == two.keys()
            assert all(two[name] == pytest.approx(one[name], abs=1e-5) for name in one if name not in (MISMATCH, EXCESS)), way


# Bad input


@pytest.mark.parametrize("settings, said", [
    ({"every": 0}, "every and concurrency of at least 1"),
    ({"checked": -1}, "checked of at least 0"),
    ({"servers": []}, "need the model's name"),
    ({"servers": ["http://h/v1"]}, "need the model's name"),
    ({"servers": ["http://h/v1"], "model": "toy", "options": {"seed": 1}}, "options are for vLLM inside"),
    ({"alarm_nats": 0.0}, "alarm_nats must be above 0"),
    ({"alarm_nats": math.nan}, "alarm_nats must be above 0"),
])  # fmt: skip
def test_nonsense_is_refused_when_it_is_made(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        VLLM(**settings)


def test_a_server_far_away_needs_a_folder_or_a_transfer(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "HERE", set[str]())
    pen = Pen(folders["student"])
    with writing(pen) as url:
        with pytest.raises(RecipeError, match=r"is another machine: name a folder .* or start it with --weight-transfer-config"):
            alive(folders, [url])
        pen.backend = "nccl"
        with pytest.raises(RecipeError, match="by nccl, from a GPU, and the student is on none"):
            source, student = alive(folders, [url])
            source.draw(1, student)


def test_servers_that_take_weights_in_different_ways_are_refused(folders: dict[str, str]) -> None:
    by_ipc, by_folder = Pen(folders["student"]), Pen(folders["student"])
    by_ipc.backend = "ipc"
    with writing(by_ipc) as one, writing(by_folder) as two, pytest.raises(EndpointError, match=r"in different ways \(.*: ipc, .*: none\)"):
        alive(folders, [one, two])


def test_check_looks_for_it(folders: dict[str, str], tmp_path: Path) -> None:
    with writing(Pen(folders["student"])) as url:
        lines = list[Line]()
        for name in ("toy", "toi"):
            source = lb.OnPolicy(folders["prompts"], engine=VLLM([url], name))
            recipe = lb.Recipe(lb.Student(folders["student"]), source, lb.Local(folders["teacher"]), Objective([lb.ReverseKL()]), steps=1)
            lines += [line for line in check(recipe, tmp_path) if line.what == "engine"]
    assert [line.verdict for line in lines] == ["ok", "problem"]
    assert lines[0].found == f"vLLM at {url}, which takes weights through a folder"
    assert 'does not serve "toi"; did you mean "toy"' in lines[1].found


def test_without_vllm_it_says_what_to_do(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RecipeError, match=r"vLLM is not installed here; .* VLLM\(servers="):
        VLLM().load(lb.Student(folders["student"], dtype="float32").load(1).live.vocabulary)


def test_a_server_that_cannot_be_told_is_named(folders: dict[str, str]) -> None:
    with writing(Pen(folders["student"], developing=False)) as url:
        source, student = alive(folders, [url])
        with pytest.raises(EndpointError, match=r"collective_rpc: status 404.*VLLM_SERVER_DEV_MODE=1"):
            source.draw(0, student)


def test_a_folder_that_holds_something_else_is_left_alone(folders: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with writing(Pen(folders["student"])) as url:
        source, student = alive(folders, [url], folder=str(tmp_path / "mine"))
        with pytest.raises(RecipeError, match=r"no weights that were handed over"):
            source.draw(0, student)


def test_a_server_of_another_model_or_vocabulary_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    student = lb.Student(folders["student"], dtype="float32").load(1)
    with writing(Pen(folders["student"])) as url, pytest.raises(EndpointError, match='does not serve "toys"; did you mean'):
        VLLM([url], "toys").load(student.live.vocabulary)
    pen = Pen(folders["student"])
    pen.tokenizer = lambda text, add_special_tokens: {"input_ids": [1, 2, 3]}
    with writing(pen) as url, pytest.raises(EndpointError, match=r"cuts a text into other tokens"):
        VLLM([url], "toy").load(student.live.vocabulary)


def test_a_prompt_longer_than_the_server_takes_is_one_line(folders: dict[str, str]) -> None:
    with writing(Pen(folders["student"], context=4)) as url:
        source, student = alive(folders, [url])
        with pytest.raises(EndpointError, match=r"larger --max-model-len"):
            source.draw(0, student)
