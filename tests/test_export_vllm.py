"""A folder made for vLLM is served as it is; only where `python benchmarks/vllm_server.py` has made its environment."""

import importlib
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck as lb
from limbeck.errors import ModelError
from limbeck.machine import Opening
from limbeck.models import open_model
from limbeck.quickstart import converted, packaged_teacher

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
vllm_server = importlib.import_module("vllm_server")
sys.path.pop(0)

pytestmark = pytest.mark.skipif(vllm_server.python() is None, reason="no vLLM; python benchmarks/vllm_server.py makes its environment")
TIE_NATS = 0.5
"""How far in float32 a token that bfloat16 writes may be behind the likeliest: logits of this size stand 0.125 nats apart."""


def asked(url: str, path: str, **what: Any) -> Any:
    request = urllib.request.Request(f"{url}{path}", json.dumps({"model": "teacher", **what}).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def test_vllm_serves_the_folder_as_it_is(tmp_path: Path) -> None:
    try:
        start = converted(packaged_teacher())
    except ModelError as error:
        pytest.skip(str(error))
    made = lb.export(start, tmp_path / "served", "vllm")
    model = open_model(str(made.folder), Opening("float32"))
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    with vllm_server.serving(str(made.folder), tmp_path / "log", "auto") as url:
        told = asked(url, "/chat/completions", messages=messages, max_tokens=24, temperature=0)["choices"][0]
        ids = model.vocabulary.ids(model.vocabulary.chat(messages, prompt=True))
        plain = asked(url, "/completions", prompt=ids, max_tokens=24, temperature=0)["choices"][0]
    assert "dtype=torch.bfloat16" in (tmp_path / "log").read_text(), "the arithmetic is not the folder's own"
    assert told["finish_reason"] == plain["finish_reason"] == "stop", "the end of a turn was not known as an end"
    assert told["message"]["content"] == plain["text"], "the chat template is another"
    new = [*model.vocabulary.ids(plain["text"]), *model.vocabulary.end_ids]
    with torch.no_grad():
        rows = model.module(input_ids=torch.tensor([ids + new])).logits[0, len(ids) - 1 : -1].double().log_softmax(-1)
    behind = [float(row.max() - row[token]) for row, token in zip(rows, new, strict=True)]
    assert len(new) > 4 and max(behind) < TIE_NATS, f"{plain['text']}: {behind}"
