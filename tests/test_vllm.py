"""A real vLLM, as a teacher and as the student's pen; only where `python benchmarks/vllm_server.py` has made its environment."""

import importlib
import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from limbeck import Student
from limbeck.batch import Batch, Text
from limbeck.decoding import Sampling, write
from limbeck.endpoint import Endpoint
from limbeck.errors import EndpointError, ModelError
from limbeck.files import read_jsonl
from limbeck.machine import Opening
from limbeck.models import open_model
from limbeck.quickstart import HELDOUT, converted, packaged_teacher

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
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


def said_of(output: str) -> list[Any]:
    """The answer among what vLLM prints itself."""
    return json.loads(next(line for line in output.splitlines() if line.startswith("[[[[")))


def test_inside_the_process_it_takes_in_new_weights(model: str, tmp_path: Path) -> None:
    """vLLM's interpreter has an older transformers, so that the engine's own part runs there, and the student here."""
    student = Student(vllm_writer.shrunk(model, 2, tmp_path / "small"), dtype="float32").load(1)
    folders, vocabulary = [tmp_path / "one", tmp_path / "two"], student.live.vocabulary
    prompts = [vocabulary.prompt({"prompt": text * 8}, agreement.ASKED) for text in QUESTIONS]
    said, batches = list[torch.Tensor](), list[Batch]()
    for folder in folders:
        folder.mkdir()
        student.hand_over(folder)
        for weight in student.live.module.parameters():
            weight.data.mul_(1.05)
    options = {"max_model_len": 1024, "enforce_eager": True, "enable_chunked_prefill": False}
    order = {"dtype": "float32", "options": options, "folders": [str(folder) for folder in folders],
             "prompts": prompts, "max_tokens": 24, "ends": sorted(vocabulary.end_ids)}  # fmt: skip
    root, script = Path(__file__).resolve().parents[1], Path(__file__).with_name("inside_vllm.py")
    done = subprocess.run([str(vllm_server.python()), str(script)], input=json.dumps(order), text=True, capture_output=True, check=False,
                          env={**vllm_server.environment(), "PYTHONPATH": str(root)})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for folder, written in zip(folders, said_of(done.stdout), strict=True):
        pairs = zip(prompts, written, strict=True)
        batches.append(Batch.of([Text.answered(prompt, tokens, {}, logp) for prompt, (tokens, logp) in pairs], "student"))
        said.append(vllm_writer.token_nats(Student(str(folder), dtype="float32").load(1), batches[-1]))
    apart = [float((batch.logp_N - said_N).abs().mean()) for batch, said_N in zip(batches, said, strict=True)]
    assert max(apart) < 1e-3, apart
    stale_N = vllm_writer.token_nats(Student(str(folders[0]), dtype="float32").load(1), batches[1])
    assert (batches[1].logp_N - stale_N).abs().mean() > 0.01
