"""Text for a masked model, other tokens of it hidden in each epoch."""

from typing import Any, Self

from limbeck.batch import Batch
from limbeck.config import live, part
from limbeck.data import Pool, other_columns
from limbeck.errors import RecipeError
from limbeck.masking import SHARE, MaskedVocabulary
from limbeck.sources import DataSets, Share, Source, batch_of, check_sizes
from limbeck.student import Student
from limbeck.vocabulary import Vocabulary


@part
class Masked(Source):
    """Ready text of which some tokens are to be told by what stands around them (BERT, arXiv 1810.04805; anew in each epoch: arXiv 1907.11692).

    Of a sequence `max(1, round(share * tokens))` are hidden: 80 % are read as the mask, 10 % as a token drawn at random, 10 % as
    they are. Which is a function of seed, step, row and place. sequences: rows of a step, over all ranks. max_tokens: longer text is cut
    into several sequences. Departs: 1) the share is of single tokens, never of words; 2) a sequence is one row's text, not two put together.
    """

    data: DataSets
    share: float = SHARE
    sequences: int = 16
    max_tokens: int = 512

    _pool: Any = live()
    _vocabulary: Any = live()
    _run: Any = live()

    def __post_init__(self) -> None:
        check_sizes(self.sequences, self.max_tokens)
        if not 0 < self.share <= 1:
            raise RecipeError(f"Masked.share is a share of the tokens, above 0 and at most 1, found {self.share}")

    def load(self, vocabulary: Vocabulary, share: Share) -> Self:
        """Open the data. Raises RecipeError for a student that is no masked model."""
        if not isinstance(vocabulary, MaskedVocabulary):
            raise RecipeError("Masked hides tokens from a masked model, and the student is none; give Corpus(data)")
        made = self.fresh()
        made._pool, made._vocabulary, made._run = Pool(self.data, share.seed), vocabulary, share
        return made

    @property
    def leaves_out(self) -> str:
        """Empty ones."""
        return "those without a token to hide"

    def draw(self, step: int, student: Student) -> Batch:
        """The next rows of the shuffled line."""
        rows, longest = self._pool.take(step * self.sequences, self.sequences), min(self.max_tokens, student.live.context)
        texts = list[list[Any]]()
        for place in self._run.rows(self.sequences):
            data, row = rows[place]
            pieces = self._vocabulary.pieces(row, data, longest)
            keys = ([self._run.seed, step, place, number] for number in range(len(pieces)))
            columns = other_columns(row)
            texts.append([text for piece, key in zip(pieces, keys, strict=True) for text in self._vocabulary.hidden(piece, self.share, key, columns)])
        return batch_of(texts, "corpus")
