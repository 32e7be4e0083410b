"""By text alone: SmolLM2-135M-Instruct teaches a student that has another tokenizer, and was nothing before.

    python benchmarks/across_tokenizers.py --work FOLDER

The teacher answers the quickstart's prompts (`limbeck write`); a tokenizer of 2,048 pieces is made of its answers; a student of two
million weights, drawn at random, learns from them by cross-entropy, and is measured on the teacher's answers to other prompts, in bits
a byte, since tokens of two vocabularies do not compare. Beside it: the student before, the frequencies of its tokens alone (what
it would know without context), and the teacher on its own text. A seed is another draw of weights and another order of rows.
Writes `benchmarks/results/across_tokenizers.json` and `.svg`.
"""

import argparse
import json
import math
import os
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arith_lab import t_interval
from measure import bars, machine
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import limbeck as lb
from limbeck.corpus import Order, write_corpus
from limbeck.data import Data, Row
from limbeck.errors import LimbeckError
from limbeck.evaluate.statistics import interval
from limbeck.files import new_folder, read_jsonl, write_json, write_text
from limbeck.quickstart import HELDOUT, PROMPTS, converted, packaged_teacher

RESULTS = Path(__file__).parent / "results"
PIECES, STEPS, SEQUENCES, RATE, SEEDS = 2048, 300, 16, 3e-3, 3
ANSWER = lb.Sampling(max_tokens=256, temperature=0.7)
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")  # fmt: skip


def written(teacher: str, prompts: Path, out: Path) -> list[Row]:
    """What the teacher answers, as a corpus."""
    if not (out / "corpus.jsonl").exists():
        write_corpus(Order(lb.Local(teacher), Data(str(prompts)), sampling=ANSWER, accept_license=["apache-2.0"]), out)
    return read_jsonl(out / "corpus.jsonl")


def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Pieces of bytes that are frequent in these texts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=PIECES, special_tokens=["<|im_start|>", "<|im_end|>"],
                                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=CHATML)


def untaught(path: Path, cut: PreTrainedTokenizerFast, seed: int) -> str:
    """A random student with this tokenizer."""
    torch.manual_seed(seed)
    end = cut.convert_tokens_to_ids("<|im_end|>")
    config = LlamaConfig(vocab_size=len(cut), hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
                         num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None, eos_token_id=end,
                         pad_token_id=end)  # fmt: skip
    with new_folder(path) as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        cut.save_pretrained(folder)
    return str(path)


def bytes_of(rows: list[Row]) -> int:
    """Of all answers."""
    return sum(len(row["messages"][-1]["content"].encode()) for row in rows)


def bits_a_byte(found: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    """From nats a token, for all answers together; the interval is the bootstrap's over sequences."""
    factor = found["tokens"] / bytes_of(rows) / math.log(2)
    return {"bits_a_byte": round(factor * found["ce_nats"], 4), "interval": [round(factor * bound, 4) for bound in found["ce_nats_interval"]]}


def measured(model: str, held_out: Path, rows: list[Row]) -> dict[str, Any]:
    """A model on the teacher's answers."""
    student = lb.Student(model, dtype="float32").load(1)
    return bits_a_byte(lb.Likelihood(str(held_out), rows=len(rows)).run(student, lb.Silent()), rows)


def without_context(cut: PreTrainedTokenizerFast, learnt: list[Row], rows: list[Row]) -> dict[str, Any]:
    """Bits a byte of each token by its frequency among those learnt from, each counted once more."""
    counts = Counter(token for row in learnt for token in cut(row["messages"][-1]["content"])["input_ids"])
    total = sum(counts.values()) + len(cut)
    nats = [sum(-math.log((counts[token] + 1) / total) for token in cut(row["messages"][-1]["content"])["input_ids"]) for row in rows]
    sizes = [float(len(row["messages"][-1]["content"].encode())) for row in rows]
    bound = interval([each / math.log(2) for each in nats], sizes)
    return {"bits_a_byte": round(sum(nats) / math.log(2) / sum(sizes), 4), "interval": [round(each, 4) for each in bound]}


def refused(student: str, teacher: str, corpus: str) -> str:
    """What is said to one who asks for divergences all the same."""
    try:
        lb.Recipe(lb.Student(student), lb.Corpus(corpus), lb.Local(teacher), lb.ForwardKL()).open_pair()
    except LimbeckError as error:
        return str(error)
    raise AssertionError("two vocabularies were taken for one")


def main() -> None:
    """Write, learn, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, help="folder of text and runs; what is there is not made again")
    work = parser.parse_args().work
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    teacher = str(converted(packaged_teacher()))
    learnt, rows = written(teacher, PROMPTS, work / "corpus"), written(teacher, HELDOUT, work / "held-out")
    cut = tokenizer([row["messages"][-1]["content"] for row in learnt])
    corpus, held_out = str(work / "corpus" / "corpus.jsonl"), work / "held-out" / "corpus.jsonl"
    card = json.loads((work / "corpus" / "card.json").read_text())
    seeds = list[dict[str, Any]]()
    for seed in range(SEEDS):
        before = untaught(work / f"untaught-{seed}", cut, seed)
        source = lb.Corpus(corpus, sequences=SEQUENCES, written_by="teacher")
        lb.distill(
            lb.Recipe(lb.Student(before, lb.AdamW(RATE), dtype="float32"), source, steps=STEPS, seed=seed, tokens_per_pass=4096), work / f"run-{seed}"
        )
        seeds.append({"before": measured(before, held_out, rows), "after": measured(str(work / f"run-{seed}" / "student"), held_out, rows)})
        print(seed, seeds[-1], flush=True)
    after = [each["after"]["bits_a_byte"] for each in seeds]
    found = {
        "teacher": measured(teacher, held_out, rows), "frequencies": without_context(cut, learnt, rows), "seeds": seeds,
        "after": {"mean": round(statistics.mean(after), 4), "interval_over_seeds": t_interval(after)},
        "pieces_an_answer": round(float(np.mean([len(cut(row["messages"][-1]["content"])["input_ids"]) for row in rows])), 1),
    }  # fmt: skip
    settings = {"pieces": PIECES, "steps": STEPS, "sequences": SEQUENCES, "learning_rate": RATE, "answers": len(learnt),
                "held_out_answers": len(rows), "tokens_written": card["took"]["completion_tokens"], "dropped": card["dropped"]}  # fmt: skip
    said = refused(str(work / "untaught-0"), teacher, corpus)
    write_json(RESULTS / "across_tokenizers.json", {"machine": machine(), "settings": settings, **found, "divergence_refused": said})
    shown = {"student before": seeds[0]["before"]["bits_a_byte"], "token frequencies": found["frequencies"]["bits_a_byte"],
             "student taught by text": found["after"]["mean"], "teacher": found["teacher"]["bits_a_byte"]}  # fmt: skip
    write_text(
        RESULTS / "across_tokenizers.svg",
        bars({"bits a byte, teacher's answers, held out": shown}, "bits", "From SmolLM2 by text to another tokenizer"),
    )


if __name__ == "__main__":
    main()
