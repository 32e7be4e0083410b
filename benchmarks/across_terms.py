"""Across vocabularies, by what: text alone, or with what SmolLM2-135M-Instruct says of it in its own tokens.

    python benchmarks/across_terms.py --work FOLDER [--steps 150]

The student, its tokenizer of 2,048 pieces and the teacher's answers are those of `across_tokenizers.py`, whose folder --work may be
a copy of. Every objective has as many steps, the same order of rows and the same weights before; weights and temperatures are
the papers', none was tuned. Measured in bits a byte on the teacher's answers to other prompts; a seed is another draw of weights and
another order. What the teacher says of a sequence is kept from its first pass on, as much of it as can matter, so that no time is told here.
Writes `benchmarks/results/across_terms.json` and `.svg`.
"""

import argparse
import os
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from across_tokenizers import PIECES, RATE, SEEDS, measured, tokenizer, untaught, written
from arith_lab import t_interval
from measure import bars, machine

import limbeck as lb
from limbeck.batch import Batch
from limbeck.files import write_json, write_text
from limbeck.objective import Objective
from limbeck.quickstart import HELDOUT, PROMPTS, converted, packaged_teacher
from limbeck.spans import Spans
from limbeck.targets import Distribution, Logits, Targets

RESULTS = Path(__file__).parent / "results"
STEPS, SEQUENCES = 150, 4
KEPT: dict[tuple[int, ...], dict[str, torch.Tensor]] = {}
OBJECTIVES: dict[str, Objective] = {
    "text alone": Objective([lb.CrossEntropy()]),
    "spans alone": Objective([lb.SpanLikelihood()]),
    "text and spans": lb.CrossEntropy() + lb.SpanLikelihood(),
    "text and ULD": lb.CrossEntropy() + 1.5 * lb.ULD(),
    "text and GOLD": lb.CrossEntropy() + lb.Gold(),
}


class Few(Logits):
    """Log-probabilities of some outcomes, which are all that matters of a distribution: nothing is renormalised."""

    def at(self, temperature: float = 1.0) -> Distribution:
        """As they are."""
        made = Distribution.__new__(Distribution)
        made.__dict__["log"], made.__dict__["prob"] = self.logits_CV, self.logits_CV.exp()
        return made

    def block(self, rows: slice) -> Logits:
        """A few of these tokens."""
        return Few(self.logits_CV[rows])


@dataclass(frozen=True)
class Kept(Targets):
    """What of a distribution can matter to ULD and to Gold: the tokens that both have, and of the others as many as the student has tokens,
    the likeliest. What is left out is a constant in both values, and nothing in a gradient."""

    log_p_PF: torch.Tensor
    fingerprint: str = "kept"
    says = frozenset({"distribution"})

    def rows(self, chunk: slice) -> Logits:
        """Of these rows."""
        return Few(self.log_p_PF[chunk])

    def select(self, rows_N: torch.Tensor) -> "Kept":
        """The same about these rows only."""
        return replace(self, log_p_PF=self.log_p_PF[rows_N])


@lb.part
class Remembering(lb.Aligned):
    """A teacher that is asked about each sequence once."""

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """What was said of each sequence, end to end."""
        for batch in parts:
            said = [self._of(batch.select([b]), tuple(tokens.tolist())) for b, tokens in enumerate(batch.sequences())]
            before = torch.tensor([0, *(len(each["ends_N"]) for each in said)]).cumsum(0).tolist()
            ends_N = torch.cat([torch.where(each["ends_N"] >= 0, each["ends_N"] + n, -1) for each, n in zip(said, before, strict=False)])
            in_pairs_N = torch.cat([each["in_pairs_N"] for each in said])
            pair_N = torch.where(in_pairs_N, in_pairs_N.cumsum(0) - 1, -1)
            kept = Kept(torch.cat([each["log_p_PF"] for each in said]))
            common = (self._alignment.common[0], torch.arange(len(self._alignment.common[0])))
            spans = Spans(kept, torch.zeros(0), ends_N, torch.zeros(0), pair_N, common, "kept")
            spans.__dict__["log_p_N"] = torch.cat([each["log_p_N"] for each in said])
            yield spans

    def _of(self, one: Batch, key: tuple[int, ...]) -> dict[str, torch.Tensor]:
        if key not in KEPT:
            (said,) = super().score([one])
            assert isinstance(said, Spans)
            whole, theirs = said.rows(slice(0, len(one.tokens_N))), said.common[1]
            log_p_PW = whole.theirs.log_probs()
            others_PF = log_p_PW.scatter(1, theirs.expand(len(log_p_PW), -1), -torch.inf).topk(PIECES).values
            KEPT[key] = {
                "ends_N": said.ends_N, "log_p_N": said.log_p_N, "in_pairs_N": said.pair_N >= 0,
                "log_p_PF": torch.cat([log_p_PW[:, theirs], others_PF], 1), "teacher_tokens": torch.tensor(len(said.tokens_M)),
            }  # fmt: skip
        return KEPT[key]


def recipe(before: str, teacher: str, corpus: str, objective: Objective, seed: int, steps: int = STEPS) -> lb.Recipe:
    """One run."""
    source = lb.Corpus(corpus, sequences=SEQUENCES, written_by="teacher")
    asked = Remembering(lb.Local(teacher)) if objective.needs else lb.Silent()
    return lb.Recipe(lb.Student(before, lb.AdamW(RATE), dtype="float32"), source, asked, objective, steps=steps, seed=seed, tokens_per_pass=4096)


def cut_alike(before: str, teacher: str, held_out: str) -> dict[str, float]:
    """How the two cut the held-out answers."""
    made = replace(recipe(before, teacher, held_out, OBJECTIVES["text and GOLD"], 0), teacher=lb.Aligned(lb.Local(teacher)))
    student, asked = made.open_pair()
    batch = lb.Corpus(held_out, sequences=56).load(student.live.vocabulary, lb.sources.Share(0, 0, 1, asked)).draw(0, student)
    (said,) = asked.score([batch])
    assert isinstance(said, Spans)
    count = len(batch.tokens_N)
    ends = int((said.ends_N == torch.arange(count)).sum())
    return {
        "tokens": count, "teacher_tokens": len(said.tokens_M), "spans": ends, "tokens_both_have": len(said.common[0]),
        "share_in_pairs": round(float((said.pair_N >= 0).float().mean()), 3),
        "nats_a_token_of_the_teacher": round(float(-said.log_p_N.sum()) / len(said.tokens_M), 3),
    }  # fmt: skip


def main() -> None:
    """Learn and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, help="folder of text and runs; what is there is not made again")
    parser.add_argument("--steps", default=STEPS, type=int, help="of each run")
    work, steps = parser.parse_args().work, parser.parse_args().steps
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    teacher = str(converted(packaged_teacher()))
    learnt, rows = written(teacher, PROMPTS, work / "corpus"), written(teacher, HELDOUT, work / "held-out")
    cut = tokenizer([row["messages"][-1]["content"] for row in learnt])
    corpus, held_out = str(work / "corpus" / "corpus.jsonl"), work / "held-out" / "corpus.jsonl"
    settings = {"steps": steps, "sequences": SEQUENCES, "learning_rate": RATE, "answers": len(learnt), "held_out_answers": len(rows)}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in OBJECTIVES}
    alike = dict[str, float]()
    for seed in range(SEEDS):
        before = untaught(work / f"terms-untaught-{seed}", cut, seed)
        alike = alike or cut_alike(before, teacher, str(held_out))
        for name, objective in OBJECTIVES.items():
            out = work / f"terms-{name.replace(' ', '-')}-{seed}"
            lb.distill(recipe(before, teacher, corpus, objective, seed, steps), out)
            found[name].append(measured(str(out / "student"), held_out, rows))
            print(seed, name, found[name][-1], flush=True)
        write({"machine": machine(), "settings": settings, "cut": alike, "objectives": table(found)})


def table(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means over seeds, and what each objective gained on text alone, seed by seed."""
    plain = [each["bits_a_byte"] for each in found["text alone"]]
    return {
        name: {"bits_a_byte": round(statistics.mean(each["bits_a_byte"] for each in runs), 4),
               "interval_over_seeds": t_interval([each["bits_a_byte"] for each in runs]),
               "less_than_text": t_interval([p - each["bits_a_byte"] for p, each in zip(plain, runs, strict=True)]) if name != "text alone" else None,
               "seeds": runs}
        for name, runs in found.items()
    }  # fmt: skip


def write(made: dict[str, Any]) -> None:
    """As numbers and as a picture."""
    write_json(RESULTS / "across_terms.json", made)
    shown = {name: each["bits_a_byte"] for name, each in made["objectives"].items()}
    write_text(
        RESULTS / "across_terms.svg", bars({"bits a byte, teacher's answers, held out": shown}, "bits", "From SmolLM2 to another tokenizer, by what")
    )


if __name__ == "__main__":
    main()
