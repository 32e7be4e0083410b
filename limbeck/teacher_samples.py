"""A teacher's own answers as text to learn from, written while the student learns."""

from dataclasses import field, replace
from typing import Any, Self

from limbeck.answers import Purse, Question
from limbeck.batch import Batch
from limbeck.choose import Tally, chosen, selected
from limbeck.config import live, part
from limbeck.data import Pool
from limbeck.decoding import Sampling
from limbeck.errors import RecipeError
from limbeck.sources import DataSets, RowSource, Share, batch_of, check_sizes
from limbeck.student import Student
from limbeck.teachers import Teacher
from limbeck.verifiers import Verifier
from limbeck.vocabulary import Vocabulary


@part
class TeacherSamples(RowSource):
    """What a teacher answers to prompts, some of it chosen: sequence-level distillation (Kim & Rush 2016, arXiv 1606.07947).

    Text passes as text, so that no vocabulary has to match. sequences: prompts of a step, over all ranks, each answered
    `samples` times. keep: of the answers to one prompt, as `limbeck write --keep` has it. inline: what was thought stands
    before the answer. Departs: 1) samples, where the paper takes the best of a beam. Each step asks anew, and pays anew
    after a resumed step: what costs money is better written once, with `limbeck write`.
    """

    prompts: DataSets
    writer: Teacher
    sequences: int = 16
    samples: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    keep: str = "all"
    verifier: Verifier | None = None
    above: float = 0.0
    inline: bool = False
    max_tokens: int = 1024

    _pool: Any = live()
    _vocabulary: Any = live()
    _share: Any = live()

    def __post_init__(self) -> None:
        check_sizes(self.sequences, self.max_tokens, self.samples)
        if chosen(self.keep, self.above).needs and self.verifier is None:
            raise RecipeError(f"TeacherSamples(keep={self.keep}) needs a verifier, which says how good an answer is; give one: Number()")

    @property
    def writers(self) -> frozenset[str]:
        """The teacher that writes."""
        return frozenset({"teacher"})

    @property
    def leaves_out(self) -> str:
        """Answers that were cut or not chosen, and what leaves no room."""
        return f"answers cut at {self.sampling.max_tokens} tokens, empty or not chosen, and those longer than max_tokens={self.max_tokens}"

    def load(self, vocabulary: Vocabulary, share: Share) -> Self:
        """Open the prompts, the writer and the verifier."""
        made = replace(self, writer=self.writer.writing(), verifier=self.verifier and self.verifier.load())
        made._pool, made._vocabulary, made._share = Pool(self.prompts, share.seed), vocabulary, share
        return made

    def draw(self, step: int, student: Student) -> Batch:
        """Ask about the next prompts; answers to one that comes again are drawn anew."""
        taken = self._pool.take(step * self.sequences, self.sequences)
        samples = tuple(range(step * self.samples, (step + 1) * self.samples))
        mine = self._share.rows(self.sequences)
        asked = [Question(row, data, samples, self._share.seed) for g, (data, row) in enumerate(taken) if g in mine]
        given = sorted(self.writer.answers(asked, self.sampling, Purse()), key=lambda each: (asked.index(each.question), each.sample))
        kept = selected(given, chosen(self.keep, self.above), self.verifier, Tally())
        longest = min(self.max_tokens, student.live.context)
        rows = [self._vocabulary.texts(each.question.taught(each.answer, self.inline), each.question.data, longest) for each in kept]
        return replace(batch_of(rows, "teacher"), left_out=len(asked) * self.samples - sum(map(bool, rows)))
