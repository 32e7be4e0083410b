"""A real vLLM server as a teacher; only where `python benchmarks/vllm_server.py` has made its environment."""

import importlib
import sys
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

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
agreement, vllm_server = (importlib.import_module(name) for name in ("endpoint_agreement", "vllm_server"))
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
