"""What rounding a student for llama.cpp costs: nats to the float32 student and bytes, as transformers and llama.cpp read the file.

    LIMBECK_LLAMACPP=/path/to/python python benchmarks/export_gguf.py      # an interpreter that has llama-cpp-python

SmolLM2-135M-Instruct stands for a student; the text is its own answers to held-out prompts. KL(float32 || rounded), a token.
"""

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import limbeck as lb
from limbeck.batch import Text
from limbeck.decoding import Sampling, write
from limbeck.files import read_jsonl, write_json
from limbeck.machine import Opening
from limbeck.models import Model, module_of, open_model
from limbeck.quickstart import HELDOUT, converted, packaged_teacher

KINDS = ("q8_0", "q6_k", "q4_k_m", "q4_0")
SEQUENCES, TOKENS, DRAWS = 8, 32, 10_000
RESULTS = Path(__file__).parent / "results" / "export_gguf.json"
THERE = """
import json, sys
import llama_cpp, numpy
file, texts, out = sys.argv[1:]
model = llama_cpp.Llama(file, n_ctx=512, logits_all=True, verbose=False, n_threads=1)
kept = []
for text in json.loads(open(texts).read()):
    model.reset()
    model.eval(text["ids"])
    kept.append(numpy.array(model.scores[text["prompt"] - 1 : len(text["ids"]) - 1], dtype=numpy.float32))
numpy.save(out, numpy.concatenate(kept))
print(llama_cpp.__version__)
"""


def answered(model: Model) -> list[Text]:
    """The model's own answers, drawn at temperature 1."""
    data = lb.Data(str(HELDOUT))
    prompts = [model.vocabulary.prompt(row, data) for row in read_jsonl(HELDOUT)[:SEQUENCES]]
    return [Text.answered(prompt, new.tokens, {}) for prompt, new in
            zip(prompts, write(model, prompts, Sampling(TOKENS), 0, 0, range(len(prompts))), strict=True)]  # fmt: skip


def logp(module: Any, texts: Sequence[Text]) -> np.ndarray[Any, Any]:
    """Log-probabilities [N, V] of each completion token's place."""
    found = []
    with torch.no_grad():
        for text in texts:
            (span,) = text.spans
            logits = module(input_ids=torch.tensor([text.tokens])).logits[0, span.start - 1 : span.stop - 1]
            found.append(logits.double().log_softmax(-1).float().numpy())
    return np.concatenate(found)


def told(kl_N: np.ndarray[Any, Any], counts: Sequence[int]) -> dict[str, Any]:
    """The mean over tokens, with a bootstrap over texts."""
    sums = np.array([part.sum() for part in np.split(kl_N, np.cumsum(counts)[:-1])])
    drawn = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
    means = sums[drawn].sum(1) / np.array(counts)[drawn].sum(1)
    return {"kl_nats": float(kl_N.mean()), "interval": [float(each) for each in np.quantile(means, [0.025, 0.975])]}


def kl(here_NV: np.ndarray[Any, Any], there_NV: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """KL(here || there) [N], a row at a time in float64."""
    pairs = ((one.astype(np.float64), other.astype(np.float64)) for one, other in zip(here_NV, there_NV, strict=True))
    return np.array([float((np.exp(one) * (one - other)).sum()) for one, other in pairs])


def in_llama_cpp(file: Path, texts: Sequence[Text], home: Path) -> tuple[np.ndarray[Any, Any], str]:
    """The same log-probabilities by llama.cpp, and its package's version."""
    asked = [{"ids": text.tokens, "prompt": text.spans[0].start} for text in texts]
    (home / "texts.json").write_text(json.dumps(asked))
    command = [os.environ["LIMBECK_LLAMACPP"], "-c", THERE, str(file), str(home / "texts.json"), str(home / "out.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    logits_NV = np.load(home / "out.npy").astype(np.float64)
    highest_N1 = logits_NV.max(-1, keepdims=True)
    return logits_NV - highest_N1 - np.log(np.exp(logits_NV - highest_N1).sum(-1, keepdims=True)), done.stdout.strip()


def main() -> None:
    """Measure every kind, and write what was found."""
    folder = converted(packaged_teacher())
    model = open_model(str(folder), Opening("float32"))
    texts = answered(model)
    counts = [text.spans[0].stop - text.spans[0].start for text in texts]
    here_NV, rows, package = logp(model.module, texts), dict[str, Any](), ""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for kind in ("f32", *KINDS):
            file = next(lb.export(folder, home / kind, quantize=kind).folder.glob("*.gguf"))
            by_transformers = told(kl(here_NV, logp(module_of(str(file), Opening("float32")), texts)), counts)
            there_NV, package = in_llama_cpp(file, texts, home)
            rows[kind] = {"MB": file.stat().st_size / 1e6, "bits_a_weight": 8 * file.stat().st_size / model.parameters_total,
                          "transformers": by_transformers, "llama.cpp": told(kl(here_NV, there_NV), counts),
                          "same_likeliest": float((here_NV.argmax(-1) == there_NV.argmax(-1)).mean())}  # fmt: skip
            print(kind, json.dumps(rows[kind]), flush=True)
    machine = {"system": f"{platform.system()} {platform.machine()}", "transformers": version("transformers"), "gguf": version("gguf"),
               "llama-cpp-python": package}  # fmt: skip
    write_json(RESULTS, {"machine": machine, "texts": len(texts), "tokens": sum(counts), "kinds": rows})


if __name__ == "__main__":
    main()
