"""GGUF that was written here says what the model says: read by transformers, and by a real llama.cpp."""

import json
import math
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import students
import torch
import toys
from llamas import needs_llama, reading

import limbeck as lb
from limbeck import llamacpp
from limbeck.errors import ModelError
from limbeck.gguf_writer import ROUNDED, About, interleaved, write_gguf
from limbeck.licences import of_model
from limbeck.machine import Opening
from limbeck.models import Model, module_of, open_model
from limbeck.quickstart import converted, packaged_teacher
from limbeck.vocabulary import Vocabulary

SPREAD = {"f32": 1e-9, "f16": 1e-3, "bf16": 0.05, "q8_0": 0.05, "q5_1": 0.4, "q5_0": 0.4, "q4_1": 1.5, "q4_0": 1.5}
"""Nats (mean KL) that the rounding may cost a toy, whose sharp random weights are hard to round."""


def logp(module, ids: list[int], size: int) -> torch.Tensor:
    """Of each next token [S, V], the padding of the head left out."""
    with torch.no_grad():
        return module(input_ids=torch.tensor([ids])).logits[0, :, :size].double().log_softmax(-1)


def kl(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.exp() * (one - other)).sum(-1).mean())


@pytest.fixture(scope="module", params=list(students.KINDS))
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Model]:
    place = students.folder(tmp_path_factory.mktemp("toy") / "student", request.param, begins=request.param == "llama-3")
    return request.param, place, open_model(str(place), Opening("float32"))


def test_transformers_reads_the_same_model_and_tokens(toy, tmp_path) -> None:
    """Llama 3's slower turns are in a tensor of their own, which transformers does not read: llama.cpp tells of that one below."""
    kind, place, model = toy
    made = lb.export(place, tmp_path / "out", quantize="f32")
    file = next(made.folder.glob("*.gguf"))
    read = open_model(str(file), Opening("float32"))
    ids = model.vocabulary.ids(students.AWKWARD[0])
    assert read.vocabulary.ids(students.AWKWARD[0]) == ids
    assert read.vocabulary.template == model.vocabulary.template
    size = model.vocabulary.size
    assert len(read.head.weight_VD) == size < len(model.head.weight_VD)
    if kind != "llama-3":
        assert torch.equal(logp(read.module, ids, size), logp(model.module, ids, size))


@pytest.mark.parametrize("kind", [kind for kind in ROUNDED if kind != "f32"])
def test_rounding_costs_little(kind: str, tmp_path) -> None:
    place = students.folder(tmp_path / "student")
    file = next(lb.export(place, tmp_path / "out", quantize=kind).folder.glob("*.gguf"))
    words = open_model(str(place), Opening("float32")).vocabulary
    one, other = (logp(module_of(str(name), Opening("float32")), words.ids(students.AWKWARD[0]), words.size) for name in (place, file))
    assert 0 < kl(one, other) < SPREAD[kind]


def composed(text: str) -> str:
    """Accents one with their letters, which Qwen's tokenizer sees to and llama.cpp leaves to whoever asks."""
    return unicodedata.normalize("NFC", text)


@needs_llama
def test_llama_cpp_reads_the_same_tokens_and_says_the_same(toy, tmp_path) -> None:
    _, place, model = toy
    file = next(lb.export(place, tmp_path / "out", quantize="f32").folder.glob("*.gguf"))
    dialogue = [{"role": "user", "content": "one two"}]
    with reading(file) as llama:
        for text in map(composed, students.AWKWARD):
            assert llama.ids(text) == model.vocabulary.ids(text)
            assert llama.ids(text, around=True) == model.vocabulary.tokenizer(text)["input_ids"]
        asked = llama.ids(llama.rendered(dialogue), around=True)
        assert asked == model.vocabulary.ids(model.vocabulary.chat(dialogue, prompt=True))
        for text in students.AWKWARD:
            ids = model.vocabulary.ids(text)
            here = logp(model.module, ids, model.vocabulary.size)[-1]
            there = torch.tensor(llama.next_logp(ids, model.vocabulary.size), dtype=torch.float64)
            seen = there > -math.inf  # what is less likely than float32 can say has no logarithm there
            assert float(here[~seen].exp().sum()) < 1e-6
            assert abs(float((here.exp() * (here - there))[seen].sum())) < 1e-3  # keys and values are kept in float16 there
            assert int(here.argmax()) == int(there.argmax())


def test_pairs_that_turn_are_neighbours() -> None:
    weight = torch.arange(2 * 8 * 3, dtype=torch.float32).reshape(16, 3)
    found = interleaved(weight, 2)
    for head in range(2):
        for pair in range(4):
            assert torch.equal(found[8 * head + 2 * pair], weight[8 * head + pair])
            assert torch.equal(found[8 * head + 2 * pair + 1], weight[8 * head + pair + 4])


@pytest.mark.parametrize(("change", "says"), [
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ({"attention_bias": True}, "attention_bias True"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_type 'yarn'"),
])  # fmt: skip
def test_what_was_not_proven_is_refused(change: dict, says: str, tmp_path) -> None:
    made = students.network("llama")
    vocabulary = Vocabulary(students.tokenizer())
    for key, value in change.items():
        setattr(made.config, key, value)
    with pytest.raises(ModelError, match=says):
        write_gguf(made, vocabulary, tmp_path / "x.gguf", "f32", About("x"))
    assert not (tmp_path / "x.gguf").exists()


def test_other_architectures_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"is a CohereForCausalLM.*LlamaForCausalLM, Qwen2ForCausalLM.*convert_hf_to_gguf"):
        lb.export(toys.folder(tmp_path / "student", "cohere"), tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


def _spec(change) -> Vocabulary:
    """A tokenizer, something changed in how its library writes it down."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    spec = json.loads(students.tokenizer().backend_tokenizer.to_str())
    change(spec)
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), eos_token="<|im_end|>"))


@pytest.mark.parametrize(("change", "says"), [
    (lambda spec: spec["model"].update(merges=[]), "no merges"),
    (lambda spec: spec["model"].update(byte_fallback=True), "SentencePiece"),
    (lambda spec: spec["model"].update(ignore_merges=True), "ignores merges"),
    (lambda spec: spec["pre_tokenizer"].update(use_regex=False), "cuts text in a way that has no name here \\(bytes\\)"),
    (lambda spec: spec["pre_tokenizer"].update(add_prefix_space=True), "no name here"),
    (lambda spec: spec.update(normalizer={"type": "Lowercase"}), "changes text.*Lowercase"),
    (lambda spec: spec["added_tokens"][0].update(lstrip=True), "takes the space around it"),
])  # fmt: skip
def test_tokenizers_that_llama_cpp_would_read_otherwise_are_refused(change, says: str, tmp_path) -> None:
    with pytest.raises(ModelError, match=says):
        write_gguf(students.network("llama"), _spec(change), tmp_path / "x.gguf", "f32", About("x"))


def test_numbers_that_cannot_be_kept_are_refused(tmp_path) -> None:
    made, vocabulary = students.network("llama"), Vocabulary(students.tokenizer())
    with torch.no_grad():
        made.lm_head.weight[3, 3] = 1e6
    with pytest.raises(ModelError, match=r"too large for float16.*1e\+06.*bf16"):
        write_gguf(made, vocabulary, tmp_path / "x.gguf", "f16", About("x"))
    with torch.no_grad():
        made.lm_head.weight[3, 3] = math.nan
    with pytest.raises(ModelError, match="not all finite"):
        write_gguf(made, vocabulary, tmp_path / "y.gguf", "q8_0", About("x"))


def test_the_file_alone_says_under_what_licences_it_is(tmp_path) -> None:
    place = students.folder(tmp_path / "student")
    (place / "README.md").write_text("---\nlicense: [apache-2.0, mit]\n---\n")
    made = lb.export(place, tmp_path / "out", "gguf")
    (made.folder / "student-q8_0.gguf").rename(tmp_path / "alone.gguf")
    assert [each.name for each in of_model(str(tmp_path / "alone.gguf"))] == ["apache-2.0", "mit"]


# Mixtures that llama.cpp makes


def test_a_mixture_without_llama_cpp_is_refused_before_anything_is_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(llamacpp, "command", lambda: None)
    place = students.folder(tmp_path / "student")
    with pytest.raises(ModelError, match=r"q4_k_m was asked for.*llama-quantize.*limbeck\[llamacpp\].*q8_0"):
        lb.export(place, tmp_path / "out", quantize="q4_k_m")
    assert not (tmp_path / "out").exists()


def test_what_the_quantiser_says_is_told_in_one_line(tmp_path, monkeypatch) -> None:
    tool = tmp_path / "llama-quantize"
    tool.write_text("#!/bin/sh\necho hello\necho 'main: failed to quantize model' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    place = students.folder(tmp_path / "student")
    with pytest.raises(lb.LimbeckError, match=r"llama.cpp cannot make q4_k_m .main: failed to quantize model"):
        lb.export(place, tmp_path / "out", quantize="q4_k_m")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@needs_llama
@pytest.mark.skipif(llamacpp.command() is None, reason="no llama.cpp that quantises; pip install llama-cpp-python, or name it in LIMBECK_LLAMACPP")
def test_a_mixture_of_llama_cpps_own_answers(tmp_path) -> None:
    place = students.folder(tmp_path / "student", width=256)
    model = open_model(str(place), Opening("float32"))
    ids = model.vocabulary.ids(students.AWKWARD[0])
    costs = {}
    for kind in ("q6_k", "q4_k_m", "q2_k"):
        made = lb.export(place, tmp_path / kind, quantize=kind)
        assert {name for name, _ in made.files} == {"README.md", f"student-{kind}.gguf"}
        with reading(made.folder / f"student-{kind}.gguf") as llama:
            there = np.array(llama.next_logp(ids, model.vocabulary.size))
        here = logp(model.module, ids, model.vocabulary.size)[-1].numpy()
        costs[kind] = float((np.exp(here) * np.where(np.isfinite(there), here - there, 0)).sum())
    assert costs["q6_k"] < costs["q4_k_m"] < costs["q2_k"]


# The real one


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    try:
        folder = converted(packaged_teacher())
    except ModelError as error:
        pytest.skip(str(error))
    place = tmp_path_factory.mktemp("real")
    lb.export(folder, place / "smol", quantize="q8_0")
    yield next((place / "smol").glob("*.gguf")), open_model(str(folder), Opening("float32"))
    shutil.rmtree(place)


@needs_llama
def test_llama_cpp_answers_with_the_real_model(real) -> None:
    """q8_0 against float32: 0.01 nats apart at most, 0.005 in the mean of these; greedy text the same but where two tokens are as likely."""
    file, model = real
    questions = ["What is the capital of France?", "Name three colours.", "Qu'est-ce qu'un père Noël ? 🎅", "東京はどこですか。"]
    apart = []
    with reading(file) as llama:
        assert len(llama.chat(questions[0], 12)) > 10
        for text in [*students.AWKWARD, *questions]:
            assert llama.ids(text) == model.vocabulary.ids(text)
        for question in questions:
            ids = model.vocabulary.ids(model.vocabulary.chat([{"role": "user", "content": question}], prompt=True))
            with torch.no_grad():
                here = model.module(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
            there = torch.tensor(llama.next_logp(ids, model.vocabulary.size), dtype=torch.float64)
            seen = there > -math.inf
            apart.append(float((here.exp() * (here - there))[seen].sum()))
            new = llama.greedy(ids, 12)
            with torch.no_grad():
                rows = model.module(input_ids=torch.tensor([ids + new])).logits[0, len(ids) - 1 : -1].double().log_softmax(-1)
            behind = [float(row.max() - row[token]) for row, token in zip(rows, new, strict=True)]
            assert len(new) > 2 and max(behind) < 0.5, f"{question}: {model.vocabulary.text(new)}, {behind}"
    assert max(apart) < 0.05, apart
