"""A real vLLM, as a teacher and as the student's pen; only where `python benchmarks/vllm_server.py` has made its environment."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import toys
import wire_double

from limbeck import Student
from limbeck.batch import Batch, Text
from limbeck.decoding import Sampling, write
from limbeck.endpoint import Endpoint
from limbeck.engines import MISMATCH
from limbeck.errors import EndpointError, ModelError
from limbeck.files import read_jsonl
from limbeck.machine import Opening
from limbeck.models import open_model
from limbeck.quickstart import HELDOUT, converted, packaged_teacher

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
agreement, vllm_server, vllm_writer = (importlib.import_module(name) for name in ("endpoint_agreement", "vllm_server", "vllm_writer"))
sys.path.pop(0)

pytestmark = pytest.mark.skipif(vllm_server.python() is None, reason="no vLLM; python benchmarks/vllm_server.py makes its environment")
QUESTIONS = [row["prompt"] for row in read_jsonl(HELDOUT)[:8]]


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def there(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[SimpleNamespace]:
    """A server of SmolLM2-135M-Instruct, the same model here in the same arithmetic, and a live endpoint."""
    try:
        folder = str(converted(packaged_teacher()))
    except ModelError as error:
        pytest.skip(str(error))
    models = {"here": open_model(folder, Opening(request.param)), "float32": open_model(folder, Opening("float32"))}
    with vllm_server.serving(folder, tmp_path_factory.mktemp("vllm") / "log", request.param) as url:
        endpoint = Endpoint(url, "teacher", tokenizer=folder, seconds=600).load(Student(folder).load(1))
        yield SimpleNamespace(endpoint=endpoint, models=models, folder=folder, exact=request.param == "float32")


def prompts(there: Any) -> list[list[int]]:
    return [there.models["here"].vocabulary.prompt({"prompt": text}, agreement.ASKED) for text in QUESTIONS]


def test_it_scores_as_the_model_here_does(there: Any) -> None:
    own = write(there.models["here"], prompts(there), Sampling(48), 0, 0, range(len(QUESTIONS)))
    texts = [Text.answered(prompt, new.tokens, {}) for prompt, new in zip(prompts(there), own, strict=True)]
    found = agreement.scores(there.endpoint, there.models, Batch.of(texts, "student").split(256))
    apart = found["tokens_apart"]["server and here"]
    assert found["tokens"] == sum(len(new.tokens) for new in own)
    mean, p99, tail = (1e-4, 1e-3, 1e-5) if there.exact else (agreement.MEAN_NATS, agreement.P99_NATS, 0.02)
    assert apart["mean"] <= mean and apart["p99"] <= p99
    assert found["tail_mass_apart"]["server and here"] < tail


def test_greedy_text_parts_only_at_ties(there: Any) -> None:
    """In bfloat16 logits of this size stand 0.125 nats apart, so that ties are as wide as what arithmetic changes of a score."""
    found = agreement.greedy(there.endpoint, there.models, prompts(there), 32)
    assert found["answers"] == len(QUESTIONS)
    assert found["widest_float32"] < (agreement.TIE_NATS if there.exact else 2 * agreement.P99_NATS), found["partings"]


def test_it_answers_through_the_chat_interface(there: Any) -> None:
    found = agreement.written(there.endpoint, QUESTIONS, 16)
    assert found["answers"] == found["nonempty"] == 2 * len(QUESTIONS)
    assert 2 * len(QUESTIONS) <= found["completion_tokens"] <= 16 * found["answers"]
    assert found["prompt_tokens"] > 0


def test_more_than_the_server_was_started_for_is_refused(there: Any) -> None:
    more = Endpoint(there.endpoint.base_url, "teacher", top=30, tokenizer=there.folder).load(Student(there.folder).load(1))
    with pytest.raises(EndpointError, match="30"):
        list(more.score([Batch.of([Text.answered([1, 2], [3], {})], "corpus")]))
    long = Batch.of([Text.answered([1], [5] * 1023, {})], "corpus")
    with pytest.raises(EndpointError, match="takes 1023 tokens of a text"):
        list(there.endpoint.score([long]))


# The student's pen


@pytest.fixture(scope="module")
def model() -> str:
    """SmolLM2-135M-Instruct, as a folder."""
    try:
        return str(converted(packaged_teacher()))
    except ModelError as error:
        pytest.skip(str(error))


def test_it_writes_with_new_weights_after_each_step_and_is_caught_where_not(model: str, tmp_path: Path) -> None:
    """Three steps of a student of four layers; then reloads are left out."""
    folder, data = vllm_writer.shrunk(model, 4, tmp_path / "student"), vllm_writer.asked(tmp_path, 32)
    with vllm_server.serving(vllm_writer.served(folder, tmp_path / "served"), tmp_path / "log", "bfloat16", name="student") as url:
        loop = vllm_writer.begun(folder, model, data, url, 2)
        rows, said = vllm_writer.agreement(loop, 2), vllm_writer.planted(loop, ("stale weights",), 3)
    assert all(row["now"]["mean"] < 0.05 and abs(row["now"]["signed"]) < 0.025 for row in rows)
    assert all(row["a step before"]["mean"] > 0.1 for row in rows[1:]), "the comparison could not have told"
    assert "are apart by" in said["stale weights"]["said"]


def test_a_prompt_remembered_from_older_weights_is_caught(model: str, tmp_path: Path) -> None:
    """Of the whole model, which reads its prompt: the reset of the prefix cache is left out."""
    found = vllm_writer.remembered(model, tmp_path)
    assert [found[name]["stops"] for name in ("as it was", "moved, the reset left out", "the same, and reset")] == [False, True, False]


# A run in vLLM's own environment, with vLLM inside the process, and by vLLM's own transfer


def learnt(where: Path, model: str, engine: dict[str, Any], script: list[str], variables: dict[str, str]) -> list[dict[str, Any]]:
    """Three large steps of `limbeck distill` there; its metrics, step by step."""
    student, data = vllm_writer.shrunk(model, 2, where / "student"), vllm_writer.asked(where, 8)
    toys.licensed(where)
    toys.licensed(where / "student")
    recipe = {
        "student": {"model": student, "dtype": "float32", "optimizer": "AdamW(learning_rate=1e-3, schedule='constant', warmup=0)"},
        "source": {"type": "OnPolicy", "prompts": data.path, "sequences": 8, "sampling": "Sampling(16)", "engine": {"dtype": "float32", **engine}},
        "teacher": {"type": "Local", "model": model, "dtype": "float32"}, "objective": "ReverseKL()", "steps": 3,
    }  # fmt: skip
    (where / "recipe.yaml").write_text(json.dumps(recipe))
    done = subprocess.run([str(vllm_server.python()), *script, "distill", str(where / "recipe.yaml"), "--out", str(where / "run")],
                          text=True, capture_output=True, check=False, env={**vllm_server.environment(), **variables})  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert (where / "run" / "student" / "model.safetensors").exists()
    return [row for row in read_jsonl(where / "run" / "metrics.jsonl") if MISMATCH in row]


INSIDE = {"max_model_len": 1024, "enforce_eager": True, "enable_chunked_prefill": False}


def test_a_run_with_vllm_inside_its_process(model: str, tmp_path: Path) -> None:
    """Weights that stayed behind by one such step would be seen: they are compared at each."""
    rows = learnt(tmp_path, model, {"type": "VLLM", "options": INSIDE}, ["-m", "limbeck"], {"PYTHONPATH": str(ROOT)})
    assert len(rows) == 3 and all(row[MISMATCH] < 1e-3 for row in rows)


@pytest.mark.parametrize(("backend", "inside"), [("nccl", False), ("ipc", False), ("ipc", True)])
def test_weights_come_by_vllms_own_transfer(backend: str, inside: bool, model: str, tmp_path: Path) -> None:
    """vLLM's own code on both sides, but for the wire: there is no GPU here. By NCCL into two servers."""
    sent, script = tmp_path / "sent", ["-m", "wire_double"]
    path = os.pathsep.join([wire_double.plugin(tmp_path / "plugin"), str(ROOT)])
    variables = {"PYTHONPATH": path, wire_double.SENT: str(sent)}
    insecure = {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    more = ["--weight-transfer-config", json.dumps({"backend": backend})]
    with ExitStack() as stack:
        if inside:
            engine: dict[str, Any] = {"type": "VLLM", "options": INSIDE}
        else:
            (tmp_path / "first").mkdir()
            folder = vllm_writer.served(vllm_writer.shrunk(model, 2, tmp_path / "first" / "student"), tmp_path / "served", "float32")
            urls = [stack.enter_context(vllm_server.serving(folder, tmp_path / f"log-{n}", "float32", "student", more, {**variables, **insecure}))
                    for n in range(2 if backend == "nccl" else 1)]  # fmt: skip
            engine = {"type": "VLLM", "servers": urls, "model": "student"}
        rows = learnt(tmp_path, model, engine, script, variables)
    assert len(rows) == 3 and all(row[MISMATCH] < 1e-3 for row in rows)
    noted = sent.read_text().split("\n")
    assert noted.count("nccl 3") >= 9 if backend == "nccl" else noted.count("ipc") == (2 if inside else 3)
