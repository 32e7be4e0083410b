"""A task that tiny models learn on a CPU, with an exact verifier: a sum whose operands may be added in any order.

A problem is digits and `=`; an answer adds them one at a time, and then says the sum. A number is one token:

    4 8 2 7 3 6 =        4  8 12  7 19  2 21  6 27  3 30  = 30       (an operand, then each operand and the sum so far)

Any order is right, so that a problem of 6 digits has up to 720 right answers: what a model knows shows in how often the sum
is right, how many ways it keeps in the orders it takes. `reward` looks at the sum alone, as verifiers of mathematics do;
`sound` at every step, so that a right sum by wrong steps (a false positive) is seen.
A problem's digits, read as a number, are taken modulo 17: those of one remainder are for development, on which every setting
was chosen, those of another are the test, for what is published; neither is ever learnt from.
"""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import limbeck as lb
from limbeck.decoding import write
from limbeck.evaluate import Evaluation
from limbeck.evaluate.verified import one_of
from limbeck.files import new_folder, write_text
from limbeck.machine import Opening
from limbeck.models import Model, open_model
from limbeck.student import Student
from limbeck.teachers import Teacher

SHORT, LONG = 6, 10
"""Operands of a problem."""
MODULUS, REMAINDERS = 17, {"development": 0, "test": 1}
END = "<end>"
VOCABULARY = {token: n for n, token in enumerate([*map(str, range(9 * LONG + 1)), "=", END, "?"])}

Row = dict[str, Any]


def prompt_tokens(size: int) -> int:
    """Of a problem of so many operands: they and `=`."""
    return size + 1


def answer_tokens(size: int) -> int:
    """Of a well-formed answer: operands and running sums, `=`, the result, the end."""
    return 2 * size + 2


def operands(problem: str) -> list[int]:
    """Its numbers."""
    return [int(word) for word in problem.split()[:-1]]


def solution(problem: str, draw: random.Random) -> str:
    """A right answer, operands in a random order."""
    numbers = operands(problem)
    draw.shuffle(numbers)
    said, total = [numbers[0]], numbers[0]
    for number in numbers[1:]:
        total += number
        said += [number, total]
    return f"{' '.join(map(str, said))} = {total}"


def reward(completion: str, row: Row) -> float:
    """1 where the sum is right, however it was reached."""
    before, _, said = completion.rpartition("=")
    return float(said.strip() == str(sum(operands(row["prompt"]))) and "=" not in before)


def sound(completion: str, problem: str) -> bool:
    """Whether every step is right and every operand was taken once."""
    steps, _, said = completion.partition(" = ")
    if not steps or not all(word.isdigit() for word in [*steps.split(), said]):
        return False
    first, *rest = map(int, steps.split())
    taken, totals = [first, *rest[::2]], [first, *rest[1::2]]
    adds_up = totals == list(accumulate(taken))
    return adds_up and sorted(taken) == sorted(operands(problem)) and int(said) == totals[-1]


def whole(completion: str, row: Row) -> float:
    """1 where every step is right, not the sum alone."""
    return float(sound(completion, row["prompt"]))


def part_of(problem: str) -> str:
    """What it is for: learning, development or the test."""
    remainder = int("".join(problem.split()[:-1])) % MODULUS
    return next((part for part, theirs in REMAINDERS.items() if theirs == remainder), "learning")


def problems(count: int, seed: int, part: str = "learning", size: int = SHORT) -> list[str]:
    """Different problems of so many operands."""
    draw, found = random.Random(f"{seed} {part}"), dict[str, None]()
    while len(found) < count:
        problem = " ".join(f"{draw.randrange(10**size):0{size}d}") + " ="
        if part_of(problem) == part:
            found[problem] = None
    return list(found)


def license_in(folder: Path) -> None:
    """Say that what lies there may be learnt from."""
    write_text(folder / "README.md", "---\nlicense: apache-2.0\n---\n")


def write_rows(path: Path, rows: Sequence[Row]) -> str:
    """Rows as JSONL, under the licence of this program, which made them; the path, as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    license_in(path.parent)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def solved(count: int, seed: int, size: int) -> list[Row]:
    """Problems with right answers."""
    draw = random.Random(seed)
    return [{"prompt": problem, "completion": solution(problem, draw)} for problem in problems(count, seed, size=size)]


@dataclass(frozen=True)
class Size:
    """How large a model is."""

    layers: int
    width: int
    heads: int = 4

    def folder(self, path: Path, seed: int) -> str:
        """A random model with the task's tokenizer."""
        torch.manual_seed(seed)
        end = VOCABULARY[END]
        config = LlamaConfig(vocab_size=len(VOCABULARY), hidden_size=self.width, intermediate_size=2 * self.width, num_hidden_layers=self.layers,
                             num_attention_heads=self.heads, num_key_value_heads=self.heads, max_position_embeddings=64, bos_token_id=None,
                             eos_token_id=end, pad_token_id=end)  # fmt: skip
        with new_folder(path) as made:
            LlamaForCausalLM(config).save_pretrained(made)
            tokenizer().save_pretrained(made)
            license_in(made)
        return str(path)


def tokenizer() -> PreTrainedTokenizerFast:
    """Every number a token."""
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([END])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=END, unk_token="?")


def opened(folder: Path | str) -> Model:
    """A model for asking."""
    return open_model(str(folder), Opening("float32"))


def student(folder: Path | str, learning_rate: float, schedule: Literal["cosine", "constant"] = "cosine") -> Student:
    """A model for learning."""
    return lb.Student(str(folder), lb.AdamW(learning_rate, schedule), dtype="float32")


def sample(model: Model, asked: Sequence[str], temperature: float = 1.0, each: int = 1, seed: int = 0) -> tuple[list[list[str]], int]:
    """`each` answers to every problem, all of one size, and how many tokens were written."""
    prompts = [model.vocabulary.ids(problem) for problem in asked for _ in range(each)]
    sampling = lb.Sampling(max_tokens=answer_tokens(len(operands(asked[0]))), temperature=temperature)
    written = write(model, prompts, sampling, seed, 0, range(len(prompts)), at_once=1024)
    texts = [model.vocabulary.text(new.tokens) for new in written]
    return [texts[n : n + each] for n in range(0, len(texts), each)], sum(len(new.tokens) for new in written)


def coverage(right_P: Sequence[int], each: int, k: int) -> np.ndarray[Any, Any]:
    """Chance that one of k answers is right, of each problem [P]."""
    return np.array([one_of(k, each, right) for right in right_P])


def interval(values: Sequence[float] | np.ndarray[Any, Any], seed: int = 0) -> list[float]:
    """95 % percentile bootstrap of a mean."""
    values = np.asarray(values, dtype=float)
    means = values[np.random.default_rng(seed).integers(0, len(values), (2000, len(values)))].mean(1)
    return [round(float(bound), 4) for bound in np.percentile(means, [2.5, 97.5])]


def looked_at(model: Model, asked: Sequence[str], each: int = 16, seed: int = 0) -> dict[str, Any]:
    """What a model does with held-out problems: greedily, and in `each` draws at temperature 1.

    sound: greedy answers right in every step. distinct: different sound answers among the draws of a problem.
    false_positives: of draws with the right result, those with a wrong step. entropy_nats: of a whole answer, by its draws.
    """
    texts_PK, _ = sample(model, asked, each=each, seed=seed)
    greedy_P, _ = sample(model, asked, temperature=0)
    pairs = list(zip(asked, texts_PK, strict=True))
    right_P = [sum(reward(text, {"prompt": problem}) for text in texts) for problem, texts in pairs]
    sound_P = [len({text for text in texts if sound(text, problem)}) for problem, texts in pairs]
    sound_draws = sum(sound(text, problem) for problem, texts in pairs for text in texts)
    hit_P = [reward(text, {"prompt": problem}) for problem, (text,) in zip(asked, greedy_P, strict=True)]
    found = {
        "accuracy": sum(hit_P) / len(hit_P),
        "sound": sum(sound(text, problem) for problem, (text,) in zip(asked, greedy_P, strict=True)) / len(asked),
        **{f"pass@{k}": float(coverage([int(right) for right in right_P], each, k).mean()) for k in (1, 4, 16) if k <= each},
        "distinct": sum(sound_P) / len(asked),
        "false_positives": 1 - sound_draws / max(1.0, sum(right_P)),
        "first_operand_nats": sum(_entropy([text.split(" ", 1)[0] for text in texts]) for texts in texts_PK) / len(asked),
    }
    return {name: round(value, 4) for name, value in found.items()}


def _entropy(texts: Sequence[str]) -> float:
    """Of an empirical distribution, in nats."""
    shares = np.array(list(Counter(texts).values())) / len(texts)
    return float(-(shares * np.log(shares)).sum())


@lb.part
class Solved(Evaluation):
    """On held-out problems, along a run: reward, the share of draws at temperature 1 whose sum is right, or (whole) every step."""

    rows: int = 500
    part: str = "test"
    size: int = SHORT
    whole: bool = False
    name: str = "solved"

    def run(self, student: Student, teacher: Teacher) -> dict[str, Any]:
        """Ask the student."""
        asked = problems(self.rows, 1, self.part, self.size)
        drawn, _ = sample(student.live, asked, each=4)
        verify = whole if self.whole else reward
        right = [verify(text, {"prompt": problem}) for problem, texts in zip(asked, drawn, strict=True) for text in texts]
        return {"reward": sum(right) / len(right)}


@dataclass(frozen=True)
class Role:
    """A model of the cast: its size, and how long it was taught from nothing, by cross-entropy on right answers."""

    size: Size
    steps: int
    seed: int
    learning_rate: float = 3e-3
    operands: int = SHORT

    def made(self, work: Path, name: str) -> str:
        """Its folder, trained where it is not there."""
        folder = work / "cast" / name
        if not (folder / "student").exists():
            data = write_rows(work / "cast" / f"{name}.jsonl", solved(60000, 1000 + self.seed, self.operands))
            source = lb.Corpus(data, sequences=64)
            taught = student(self.size.folder(work / "cast" / f"{name}-untaught", self.seed), self.learning_rate)
            lb.distill(lb.Recipe(taught, source, steps=self.steps, tokens_per_pass=8192, save_every=None, seed=self.seed), folder)
        return str(folder / "student")


CAST = {
    "strong": Role(Size(4, 128), 800, 1, 2e-3),
    "weak": Role(Size(3, 64), 700, 2),
    "student": Role(Size(2, 64), 600, 3),
    "master": Role(Size(3, 96), 2400, 1, 2e-3, LONG),
    "novice": Role(Size(2, 64), 940, 3, operands=LONG),
    "beginner": Role(Size(2, 64), 1000, 3, operands=LONG),
    "infant": Role(Size(2, 64), 150, 3),
}
"""The strong teacher, the weak and cheap one, and the student, who has only begun to learn; for long problems, a teacher and two starts; and
a student who can do nothing yet."""
