"""A teacher with another vocabulary: it reads the same text in its own tokens, and says what spans of bytes both cut."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, cast

from limbeck.alignment import Alignment
from limbeck.batch import Batch
from limbeck.config import live, part
from limbeck.endpoint import Endpoint
from limbeck.errors import DataError, RecipeError
from limbeck.guidance import Scorer
from limbeck.licences import Licence
from limbeck.pieces import Pieces
from limbeck.spans import PAIRS, SPANS, Spans
from limbeck.student import Student
from limbeck.targets import Targets
from limbeck.teachers import Local, Teacher
from limbeck.vocabulary import Vocabulary

if TYPE_CHECKING:
    from limbeck.opened import OpenModel

SAYS = SPANS | PAIRS


def beside(student: Vocabulary, teacher: Vocabulary) -> str:
    """Two vocabularies in a few words. Raises VocabularyError where the tokens of one cannot be brought to bytes."""
    common, _ = Alignment(Pieces(student, "the student"), Pieces(teacher, "the teacher")).common
    return f"{student.size:,} tokens beside the teacher's {teacher.size:,}, {len(common):,} of the same bytes in both"


class _Reader:
    """What the teacher inside meets in place of a student: it takes the teacher's vocabulary, and proves nothing equal."""

    vocabulary: Vocabulary | None = None

    def share_vocabulary(self, theirs: Vocabulary) -> None:
        """Take it."""
        self.vocabulary = theirs


@part
class Aligned(Teacher):
    """A teacher whose vocabulary is not the student's: for `SpanLikelihood()`, `ULD()` and `Gold()`, and no divergence over one vocabulary.

    teacher: a model's name, Local, or an Endpoint that scores tokens (it says spans alone). It reads each completion in its own tokens,
    chosen for the bytes of the student's. A prompt that the student's chat template rendered is rendered anew by the teacher's own; any
    other it reads as it stands. Each answer of a dialogue is a sequence of its own, after the dialogue before it.
    """

    teacher: Scorer

    _alignment: Any = live()

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, Local | Endpoint) or (isinstance(self.teacher, Local) and self.teacher.model == "@student"):
            found = "the student itself" if isinstance(self.teacher, Local) else type(self.teacher).__name__
            raise RecipeError(
                f"Aligned reads text in a teacher's own tokens, and {found} has none of its own; give Local(model) or Endpoint(url, model)"
            )
        if isinstance(self.teacher, Endpoint) and self.teacher.top:
            self.teacher = replace(self.teacher, top=0)  # other outcomes are of no use: spans are made of the tokens' own probabilities

    @property
    def says(self) -> frozenset[str]:
        """Spans; of a model on this machine pairs of distributions too."""
        return SAYS if "distribution" in self.teacher.says else SPANS

    @property
    def name(self) -> str:
        """The teacher's."""
        return self.teacher.name

    @property
    def units(self) -> frozenset[str]:
        """The teacher's."""
        return self.teacher.units

    @property
    def opened(self) -> "OpenModel | None":
        """That of the teacher inside."""
        return self.teacher.opened

    @property
    def described(self) -> dict[str, Any]:
        """The teacher, in its own tokens."""
        return {"in its own tokens": self.teacher.described}

    @property
    def licences(self) -> list[Licence]:
        """Those of the teacher inside."""
        return self.teacher.licences

    def load(self, student: Student) -> Self:
        """The teacher alive, its vocabulary beside the student's.

        Raises VocabularyError where the tokens of either cannot be brought to bytes, RecipeError where the student was to take its template.
        """
        if student.chat_template == "teacher":
            raise RecipeError('chat_template: teacher renders by tokens that a student of another vocabulary may not have; set it to "own"')
        reader = _Reader()
        inside = self.teacher.load(cast(Student, reader))
        assert reader.vocabulary is not None, "a teacher that shares no vocabulary"
        made = replace(self, teacher=inside)
        made._alignment = Alignment(Pieces(student.live.vocabulary, student.model), Pieces(reader.vocabulary, inside.name))
        return made

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """What the teacher says of each part in its own tokens. Raises DataError where they do not fit into its context."""
        aligned = [self._alignment.of(batch) for batch in parts]
        for each in aligned:
            self._see_room(each.theirs)
        for each, said in zip(aligned, self.teacher.score([each.theirs for each in aligned]), strict=True):
            tokens_M = each.theirs.tokens_N
            yield Spans(said, tokens_M, each.ends_N, each.row_M, each.pair_N, self._alignment.common, f"{said.fingerprint} in its own tokens")

    def _see_room(self, theirs: Batch) -> None:
        inner, longest = self.teacher.opened, int(theirs.lengths_B.max()) if len(theirs) else 0
        if inner is not None and longest > inner.context:
            raise DataError(
                f"in the tokens of {inner.name} a row has {longest:,}, and its context is {inner.context:,}; give shorter text, or lower max_tokens"
            )
