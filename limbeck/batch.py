"""Text on its way from who writes to who learns.

Axes: B sequences; T all tokens of them, end to end; N completion tokens, flat and ragged. Row n of every `_N` array is
about completion token n, whichever sequence and turn it stands in. No padding, no masks, no shifted labels: those are
the business of `models.py` alone.
"""

# pyright: reportUnknownMemberType=false
# (torch leaves split and tolist half typed)

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

from limbeck.lazy import Tensor, torch
from limbeck.targets import Targets

WRITERS = ("corpus", "teacher", "student")
"""Who may have written a token; `writers_N` holds places in this tuple."""


@dataclass(frozen=True)
class Span:
    """One stretch of completion tokens inside a sequence: `tokens[start:stop]`."""

    start: int
    stop: int


@dataclass(frozen=True)
class Text:
    """One sequence before it is put into a batch: its tokens and which stretches of them are completions."""

    tokens: list[int]
    spans: list[Span]
    columns: dict[str, Any] = field(default_factory=dict[str, Any])
    logp: list[float] | None = None
    """Log-probability, in nats, under which each completion token was written; None where nobody knows."""

    @staticmethod
    def answered(prompt: Sequence[int], answer: Sequence[int], columns: dict[str, Any], logp: list[float] | None = None) -> "Text":
        """A prompt and its one completion."""
        return Text([*prompt, *answer], [Span(len(prompt), len(prompt) + len(answer))], columns, logp)

    @property
    def places(self) -> list[int]:
        """Where its completion tokens stand."""
        return [place for span in self.spans for place in range(span.start, span.stop)]


@dataclass(frozen=True)
class Batch:
    """Sequences with their completion tokens.

    tokens_T: int64, the tokens of all sequences end to end. lengths_B: int64. places_N: int64, ascending, where in
    `tokens_T` each completion token stands; never at the start of a sequence, since nothing predicts that one.
    writers_N: uint8, see WRITERS. logp_N: float32, nats, the log-probability of each token under the model that wrote
    it, before temperature and top-p; NaN where unknown. credit_B: float32, reward less its baseline, put there by the
    source before any cut. columns_B: what else the rows of the data said. left_out: rows that the source drew and could not use.
    figures: of the draw, for the records: a sum and a count by name, such as the rewards of all answers before any was dropped.
    """

    tokens_T: Tensor
    lengths_B: Tensor
    places_N: Tensor
    writers_N: Tensor
    logp_N: Tensor
    columns_B: list[dict[str, Any]]
    credit_B: Tensor | None = None
    said: Targets | None = None
    left_out: int = 0
    figures: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    @staticmethod
    def of(texts: Sequence[Text], writer: str) -> "Batch":
        """Lay sequences end to end, all written by `writer`."""
        starts = _starts([len(text.tokens) for text in texts])
        places = [start + place for start, text in zip(starts, texts, strict=True) for place in text.places]
        logp = [value for text in texts for value in (text.logp or [float("nan")] * len(text.places))]
        assert all(span.start > 0 for text in texts for span in text.spans), "nothing predicts a sequence's first token"
        assert len(logp) == len(places) and all(a < b for a, b in pairwise(places))
        return Batch(
            tokens_T=torch.tensor([token for text in texts for token in text.tokens], dtype=torch.int64),
            lengths_B=torch.tensor([len(text.tokens) for text in texts], dtype=torch.int64),
            places_N=torch.tensor(places, dtype=torch.int64),
            writers_N=torch.full((len(places),), WRITERS.index(writer), dtype=torch.uint8),
            logp_N=torch.tensor(logp, dtype=torch.float32),
            columns_B=[text.columns for text in texts],
        )

    def __len__(self) -> int:
        return len(self.lengths_B)

    @property
    def tokens_N(self) -> Tensor:
        """The completion tokens themselves, int64."""
        return self.tokens_T[self.places_N]

    @property
    def starts_B(self) -> Tensor:
        """Where in `tokens_T` each sequence starts."""
        return self.lengths_B.cumsum(0) - self.lengths_B

    @property
    def sequence_N(self) -> Tensor:
        """Which sequence each completion token stands in."""
        return torch.searchsorted(self.lengths_B.cumsum(0), self.places_N, right=True)

    @property
    def credit_N(self) -> Tensor:
        """The credit of each token's sequence. A part asking for it where no source gave any is our mistake."""
        assert self.credit_B is not None, "no source put credit on this batch"
        return self.credit_B[self.sequence_N]

    def sequences(self) -> list[Tensor]:
        """The tokens of each sequence."""
        return list(cast(tuple[Tensor, ...], self.tokens_T.split(cast(list[int], self.lengths_B.tolist()))))

    @property
    def before_B(self) -> Tensor:
        """How many tokens of each sequence stand before its first completion token; all of them where it has none."""
        ends_B = self.lengths_B.cumsum(0)
        rows_B = torch.searchsorted(self.places_N, self.starts_B)
        first_B = torch.cat([self.places_N, ends_B[-1:]])[rows_B]
        return torch.minimum(first_B, ends_B) - self.starts_B

    def prompts(self) -> list[list[int]]:
        """The tokens of each sequence before its first completion token."""
        before_B = cast(list[int], self.before_B.tolist())
        return [cast(list[int], tokens[:before].tolist()) for tokens, before in zip(self.sequences(), before_B, strict=True)]

    def with_prompts(self, prompts: Sequence[Sequence[int]]) -> "Batch":
        """The same completions after other prompts: row n stays row n.

        All that stands before a sequence's first completion token is replaced; what follows it, other turns too, stays. What
        was said of the text as it was is left out.
        """
        if not len(self):
            return replace(self, said=None)
        cut = zip(self.sequences(), cast(list[int], self.before_B.tolist()), prompts, strict=True)
        made = [torch.cat([torch.tensor(prompt, dtype=torch.int64), tokens[before:]]) for tokens, before, prompt in cut]
        assert all(len(prompt) for prompt in prompts), "nothing predicts a sequence's first token"
        lengths_B = torch.tensor([len(tokens) for tokens in made], dtype=torch.int64)
        places_N = self.places_N + (lengths_B - self.lengths_B).cumsum(0)[self.sequence_N]
        return replace(self, tokens_T=torch.cat(made), lengths_B=lengths_B, places_N=places_N, said=None)

    def select(self, chosen: Sequence[int]) -> "Batch":
        """The batch of these sequences, in this order."""
        starts_B = self.starts_B
        ends_N = cast(list[int], torch.bincount(self.sequence_N, minlength=len(self)).cumsum(0).tolist())
        kept = [torch.arange(int(starts_B[b]), int(starts_B[b] + self.lengths_B[b])) for b in chosen]
        rows = [torch.arange(ends_N[b - 1] if b else 0, ends_N[b]) for b in chosen]
        where_T = torch.cat(kept) if kept else torch.empty(0, dtype=torch.int64)
        rows_N = torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64)
        lengths_B = self.lengths_B[list(chosen)]
        shift_B = lengths_B.cumsum(0) - lengths_B - starts_B[list(chosen)]
        counts = [len(row) for row in rows]
        return replace(
            self,
            tokens_T=self.tokens_T[where_T],
            lengths_B=lengths_B,
            places_N=self.places_N[rows_N] + shift_B.repeat_interleave(torch.tensor(counts, dtype=torch.int64)),
            writers_N=self.writers_N[rows_N],
            logp_N=self.logp_N[rows_N],
            columns_B=[self.columns_B[b] for b in chosen],
            credit_B=None if self.credit_B is None else self.credit_B[list(chosen)],
            said=None if self.said is None else self.said.select(rows_N),
        )

    def split(self, tokens_per_pass: int) -> list["Batch"]:
        """Cut into parts of like lengths whose padded size (sequences x longest) stays within `tokens_per_pass`.

        A sequence longer than that is a part of its own. The parts hold every sequence once, longest first, so that the
        pass that needs most memory comes first.
        """
        return [self.select(cut) for cut in self.cuts(tokens_per_pass)]

    def cuts(self, tokens_per_pass: int) -> list[list[int]]:
        """Which sequences stand in each part of `split`."""
        order = cast(list[int], torch.argsort(self.lengths_B, descending=True, stable=True).tolist())
        cuts: list[list[int]] = []
        for b in order:
            if cuts and (len(cuts[-1]) + 1) * int(self.lengths_B[cuts[-1][0]]) <= tokens_per_pass:
                cuts[-1].append(b)
            else:
                cuts.append([b])
        return cuts


def _starts(lengths: list[int]) -> list[int]:
    starts, total = list[int](), 0
    for length in lengths:
        starts.append(total)
        total += length
    return starts
