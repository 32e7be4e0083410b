"""What a verifier makes of a student's answers to held-out prompts: the verifiers of rewards and selection, as an evaluation."""

from dataclasses import field
from math import comb
from typing import Any

from limbeck.config import part
from limbeck.data import Pool, asked_of
from limbeck.decoding import Sampling
from limbeck.distributed import rank, ranks
from limbeck.errors import DataError, RecipeError
from limbeck.evaluate.likelihood import Evaluation, all_ranks
from limbeck.evaluate.statistics import interval
from limbeck.progress import Progress
from limbeck.sources import DataSets
from limbeck.student import Student
from limbeck.teachers import Teacher
from limbeck.verifiers import Verifier


@part
class Verified(Evaluation):
    """The mean reward of a student's answers, with a 95 % bootstrap interval over prompts; always with the same random numbers.

    rows: prompts, in the data's order. each: answers to a prompt. sampling: greedy by default. above: an answer with a greater reward
    counts as right in `pass@k`, the chance that one of k is (unbiased, arXiv 2107.03374, eq. 1), given for k = each where each > 1.
    """

    data: DataSets
    verifier: Verifier
    name: str = "verified"
    rows: int = 64
    each: int = 1
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=256, temperature=0))
    above: float = 0.0
    samples: int = 3

    def __post_init__(self) -> None:
        if min(self.rows, self.each) < 1 or self.samples < 0:
            raise RecipeError(f"evaluation {self.name}: rows and each must be at least 1, samples at least 0")
        if self.each > 1 and self.sampling.temperature == 0:
            raise RecipeError(f"evaluation {self.name}: {self.each} greedy answers to a prompt are one; give sampling a temperature, or each: 1")

    @property
    def writes(self) -> bool:
        """Answers, always."""
        return True

    def run(self, student: Student, teacher: Teacher) -> dict[str, Any]:
        """Figures: `reward`, `right` (the share of answers above the bound), `pass@k`, `cut` (the share that max_tokens ended)."""
        rewards, texts, cut = self._answered(student)
        count = len(rewards) * self.each
        right = [sum(each > self.above for each in some) for some in rewards]
        figures: dict[str, Any] = {"prompts": len(rewards), "reward": sum(map(sum, rewards)) / count, "right": sum(right) / count,
                                   "cut": sum(cut) / count}  # fmt: skip
        sizes = [float(self.each)] * len(rewards)
        figures["reward_interval"] = interval([sum(each) for each in rewards], sizes)
        figures["right_interval"] = interval([float(each) for each in right], sizes)
        if self.each > 1:
            figures[f"pass@{self.each}"] = sum(one_of(self.each, self.each, one) for one in right) / len(right)
        return {**figures, "samples": texts[: self.samples]}

    def _answered(self, student: Student) -> tuple[list[list[float]], list[dict[str, Any]], list[int]]:
        """Rewards of each prompt's answers, texts, and how many answers of each prompt were cut; of all ranks."""
        pool = Pool(self.data, seed=0, shuffle=False)
        rows = pool.take(0, self.rows if pool.streamed else min(self.rows, len(pool)))
        vocabulary, longest = student.live.vocabulary, student.live.context - 1
        asked = [(g, row, ids) for g, (data, row) in enumerate(rows) if len(ids := vocabulary.prompt(row, data)) <= longest]
        if not asked:
            raise DataError(f"evaluation {self.name}: no prompt is within the student's context of {longest + 1} tokens; give others")
        mine = asked[rank() :: ranks()]
        prompts, numbers = [ids for _, _, ids in mine for _ in range(self.each)], [g * self.each + n for g, _, _ in mine for n in range(self.each)]
        with Progress(f"{self.name}: writing", len(prompts) * self.sampling.max_tokens).showing() as progress:
            written = student.write(prompts, self.sampling, seed=0, step=0, rows=numbers, told=lambda n: progress.advance(n, n))
        texts = [vocabulary.text(each.tokens) for each in written]
        told = [{**row, "prompt": asked_of(row)} for _, row, _ in mine for _ in range(self.each)]
        rewards = self.verifier.load().judge(texts, told) if texts else []
        ended = [bool(each.tokens) and each.tokens[-1] in vocabulary.end_ids for each in written]
        groups = [slice(n * self.each, (n + 1) * self.each) for n in range(len(mine))]
        found = [(rewards[group], {"prompt": told[group.start]["prompt"], "completion": texts[group.start], "reward": rewards[group.start]},
                  self.each - sum(ended[group])) for group in groups]  # fmt: skip
        every = all_ranks(found)
        return [each for each, _, _ in every], [text for _, text, _ in every], [cut for _, _, cut in every]


def one_of(k: int, n: int, right: int) -> float:
    """The chance that one of k answers is right, unbiased, of n answers of which `right` are (arXiv 2107.03374, eq. 1)."""
    return 1 - comb(n - right, k) / comb(n, k)
