"""Text that the student proposes and a teacher verifies while it is written: SKD. The teacher's scores come with it."""

from collections.abc import Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, Self

from limbeck.batch import WRITERS, Batch, Text
from limbeck.config import live, part
from limbeck.data import Pool, other_columns
from limbeck.decoding import Sampling, Written, write
from limbeck.distributed import is_sharded
from limbeck.errors import RecipeError
from limbeck.head import Head
from limbeck.lazy import torch
from limbeck.sources import DataSets, RowSource, Share, check_sizes
from limbeck.speculative import InTopK, Rule, Speculative
from limbeck.student import Student
from limbeck.targets import Dense
from limbeck.teachers import Local, Teacher
from limbeck.vocabulary import Vocabulary

if TYPE_CHECKING:
    from limbeck.models import Model


@part
class Interleaved(RowSource):
    """Speculative knowledge distillation (Xu et al. 2024, arXiv 2410.11325): the student writes, and what the teacher finds unlikely it replaces.

    sequences: prompts of a step, over all ranks. verifier: "@teacher" is the recipe's, which must be a `Local`; another `Local` only
    writes. accept: what of the student's may stand; gamma: how many of its tokens are verified at once, which changes no rule, only how
    long is waited. sampling: of both. The verifying passes have scored the text: the recipe's teacher says nothing twice.
    Departs: 1) nothing is decoded to text and tokenised anew; 2) the first token is verified too.
    """

    prompts: DataSets
    sequences: int = 16
    sampling: Sampling = field(default_factory=Sampling)
    max_prompt: int = 1024
    verifier: Teacher | str = "@teacher"
    accept: Rule = field(default_factory=InTopK)
    gamma: int = 5

    _pool: Any = live()
    _vocabulary: Any = live()
    _share: Any = live()
    _by: Any = live()

    def __post_init__(self) -> None:
        check_sizes(self.sequences, self.max_prompt)
        if self.gamma < 1:
            raise RecipeError(f"Interleaved.gamma, how many tokens the student proposes at once, must be at least 1, found {self.gamma}")
        if isinstance(self.verifier, str) and self.verifier != "@teacher":
            raise RecipeError(f'Interleaved.verifier is "@teacher" or a teacher of its own, found "{self.verifier}"; write Local("{self.verifier}")')

    @property
    def writers(self) -> frozenset[str]:
        """Both."""
        return frozenset({"student", "teacher"})

    @property
    def leaves_out(self) -> str:
        """Prompts that leave no room."""
        return f"prompts longer than max_prompt={self.max_prompt} or a model's context"

    def load(self, vocabulary: Vocabulary, share: Share) -> Self:
        """Open the prompts, and find who verifies."""
        made = self.fresh()
        by = share.teacher if isinstance(self.verifier, str) else self.verifier.writing()
        if not isinstance(by, Local) or by.model == "@student":
            raise RecipeError(f"Interleaved is verified token by token as it is written, which {type(by).__name__} cannot; give a Local(model)")
        made._pool, made._vocabulary, made._share, made._by = Pool(self.prompts, share.seed), vocabulary, share, by
        return made

    def draw(self, step: int, student: Student) -> Batch:
        """Take prompts, let both write."""
        taken = self._pool.take(step * self.sequences, self.sequences)
        mine = self._share.rows(self.sequences)
        asked = [(g, row, self._vocabulary.prompt(row, data)) for g, (data, row) in enumerate(taken) if g in mine]
        longest = min(self.max_prompt, student.live.context - 1, self._by.opened.context - 1)
        fitting = [each for each in asked if len(each[2]) <= longest]
        numbers, prompts = [g for g, _, _ in fitting], [ids for _, _, ids in fitting]
        written, head = student.lend(lambda pen: self._by.lend(lambda verifier: self._write(prompts, step, numbers, verifier, pen)))
        texts = [Text.answered(ids, each.tokens, other_columns(row), each.logp) for (_, row, ids), each in zip(fitting, written, strict=True)]
        batch = replace(Batch.of(texts, "student"), left_out=len(asked) - len(fitting))
        return self._scored(batch, written, head)

    def _write(self, prompts: list[list[int]], step: int, rows: list[int], verifier: "Model", pen: "Model") -> tuple[list[Written], Head]:
        """Both write; the texts, and the head that its hidden states have yet to meet."""
        decoder = Speculative(verifier, pen, self.sampling, self.accept, self.gamma, scores=True)
        written = write(verifier, prompts, self.sampling, self._share.seed, step, rows, decoder=decoder)
        return written, verifier.head.apart() if is_sharded() else verifier.head

    def _scored(self, batch: Batch, written: Sequence[Written], head: Head) -> Batch:
        """With who wrote each token, and what the verifier said of it on the way; of no token too: on all ranks the teacher is asked, or on none."""
        student, teacher = WRITERS.index("student"), WRITERS.index("teacher")
        who = [student if place < each.kept else teacher for one in written for each in one.rounds for place in range(each.took)]
        none_0D = head.weight_VD.new_empty(0, head.weight_VD.shape[1])
        hidden_ND = torch.cat([none_0D, *(hidden for one in written for hidden in one.hidden)])
        return replace(batch, writers_N=torch.tensor(who, dtype=torch.uint8), said=Dense(hidden_ND, head, self._by.model))
