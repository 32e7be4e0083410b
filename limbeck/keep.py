"""What is kept of a teacher's distributions: how it is taken, laid out as columns of a table, and read back as targets.

Axes: N completion tokens of a pass or of one sequence, C rows of a chunk, V vocabulary, S draws, E entries of all tokens end
to end (their number differs from token to token), K entries of one token after padding. A sequence is one row of the table;
its columns hold flat arrays: [N] for what there is once a token, [E] for what there is once an entry.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, cast

import numpy as np

from limbeck.errors import ModelError, RecipeError, did_you_mean
from limbeck.head import Head
from limbeck.lazy import Tensor, torch
from limbeck.targets import Dense, Logits, Sampled, Targets, TopK, Whole

Array = np.ndarray[Any, Any]
Columns = dict[str, Array]
"""The arrays of one sequence, or of several end to end, by name."""

CHUNK_ELEMENTS = 2**22
"""Logits that are worked on at once."""
ENTROPY_STEP, LOGSUMEXP_STEP, LOG_P_STEP = 2.0**-12, 2.0**-10, 2.0**-9
"""Nats to which stored numbers are rounded: what is not stored needs no bytes. The largest error is half of each."""
NEVER = -(2.0**20)
"""Nats at which an outcome of no probability stands among the likeliest: a number, and far below what exp() can tell from 0."""


@dataclass(frozen=True)
class Seen:
    """A teacher's distributions at C tokens, at one temperature: exponentials [C, V] of logits less their largest, and sums."""

    shifted_CV: Tensor
    exp_CV: Tensor
    cumulative_CV: Tensor
    logsumexp_C: Tensor

    @staticmethod
    def of(logits_CV: Tensor, temperature: float) -> "Seen":
        """Sums are taken in float64: a float32 sum over a large vocabulary is off by more than the rarest outcomes."""
        largest_C1 = logits_CV.amax(-1, keepdim=True)
        shifted_CV = (logits_CV - largest_C1).div_(temperature)
        exp_CV = shifted_CV.exp()
        cumulative_CV = exp_CV.cumsum(-1, dtype=torch.float64)
        return Seen(shifted_CV, exp_CV, cumulative_CV, cumulative_CV[:, -1].log() + largest_C1[:, 0].double() / temperature)

    @property
    def total_C(self) -> Tensor:
        """Sums of the exponentials, float64."""
        return self.cumulative_CV[:, -1]

    @property
    def entropy_C(self) -> Tensor:
        """Nats, float64: `log(sum e) - sum(e * shifted) / sum(e)`; an outcome of weight 0 adds nothing."""
        weighted_C = torch.nan_to_num(self.exp_CV * self.shifted_CV, nan=0.0).sum(-1, dtype=torch.float64)
        return self.total_C.log() - weighted_C / self.total_C

    @property
    def log_p_CV(self) -> Tensor:
        """Log-probabilities in nats."""
        return self.shifted_CV - self.total_C.log()[:, None].to(self.shifted_CV)


class Keep(ABC):
    """Base of all that can be kept: `sampled:50`, `stratified:50`, `top:64`, `hidden`, `dense`."""

    word: ClassVar[str]
    says: ClassVar[frozenset[str]]
    tempered: ClassVar[bool] = True
    """Whether it holds for the temperature it was taken at alone."""
    types: ClassVar[dict[str, str]]
    """Columns by name, each with the Arrow type of one element ("binary" for one blob a sequence)."""

    def __str__(self) -> str:
        return self.word

    def fit(self, vocabulary: int) -> None:
        """See that it can be taken of so many outcomes. Raises RecipeError where it cannot."""
        assert vocabulary > 0

    @abstractmethod
    def take(self, seen: Seen, uniform_CS: Array) -> Columns:
        """The columns of a chunk's tokens."""

    def of(self, said: Targets, rows: int, temperature: float, uniform_NS: Array) -> Columns:
        """The columns of a whole pass: entropy and logsumexp of every token, and what is kept."""
        parts = list[Columns]()
        for chunk, logits_CV in _chunks(said, rows):
            seen = Seen.of(logits_CV, temperature)
            if not bool(seen.total_C.isfinite().all()):
                raise ModelError("the teacher says nan where probabilities should be, and nothing of this pass is kept; open it with dtype float32")
            parts.append({
                "entropy": _rounded(seen.entropy_C, ENTROPY_STEP),
                "logsumexp": _rounded(seen.logsumexp_C, LOGSUMEXP_STEP),
                **self.take(seen, uniform_NS[chunk]),
            })  # fmt: skip
        return {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}

    def uniforms(self, draws: np.random.Generator, tokens: int) -> Array:
        """The random numbers of a sequence [N, S], ascending, float64; most keep without any."""
        return np.empty((tokens, 0))

    def entries(self, columns: Columns) -> dict[str, Array]:
        """How many elements of each column each token has [N]; one, unless said otherwise."""
        return {}

    @abstractmethod
    def targets(self, columns: Columns, head: Head | None, fingerprint: str, temperature: float) -> Targets:
        """What was said, of the columns of a pass, its sequences end to end."""

    def cut(self, columns: Columns, tokens_B: Sequence[int]) -> Iterator[Columns]:
        """The columns of each sequence of a pass."""
        per_token = self.entries(columns)
        starts_B = np.concatenate([[0], np.cumsum(tokens_B)])
        ends = {name: np.concatenate([[0], np.cumsum(counts_N)]) for name, counts_N in per_token.items()}
        for start, stop in pairwise(starts_B):
            yield {
                name: array[ends[name][start] : ends[name][stop]] if name in ends else array[start:stop]
                for name, array in columns.items()
            }  # fmt: skip


def _chunks(said: Targets, rows: int) -> Iterator[tuple[slice, Tensor]]:
    """Logits of a pass, a few tokens at a time, in float32 (float64 stays)."""
    first = said.rows(slice(0, 1))
    assert isinstance(first, Logits), "only whole distributions can be cut down"
    size = max(1, CHUNK_ELEMENTS // first.logits_CV.shape[-1])
    for start in range(0, rows, size):
        chunk = slice(start, min(start + size, rows))
        yield chunk, cast(Logits, said.rows(chunk)).block(slice(0, size)).logits_CV


def _rounded(value: Tensor, step: float) -> Array:
    """Rounded to a multiple of a power of two, float32 on the CPU."""
    return (value / step).round_().mul_(step).float().cpu().numpy()


@dataclass(frozen=True)
class Counted(Keep):
    """A number of entries for each token."""

    count: int = 50

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 1000:
            raise RecipeError(f"keep {self.word}:{self.count}: give a number from 1 to 1000")

    def __str__(self) -> str:
        return f"{self.word}:{self.count}"


@dataclass(frozen=True)
class Draws(Counted):
    """`sampled:50`: that many draws with replacement, as the outcomes that were drawn and how often each was."""

    word: ClassVar[str] = "sampled"
    says: ClassVar[frozenset[str]] = frozenset({"sampled"})
    types: ClassVar[dict[str, str]] = {"unique": "int32", "id_gaps": "int32", "counts": "int32"}

    def uniforms(self, draws: np.random.Generator, tokens: int) -> Array:
        """Independent, sorted."""
        return np.sort(draws.random((tokens, self.count)), -1)

    def take(self, seen: Seen, uniform_CS: Array) -> Columns:
        """Draw by the inverse of the cumulative sums: an outcome is drawn exactly as often as its probability says."""
        places_CS = torch.from_numpy(uniform_CS).to(seen.total_C) * seen.total_C[:, None]
        below_CS = torch.minimum(places_CS, torch.nextafter(seen.total_C, torch.zeros_like(seen.total_C))[:, None])  # a product may round up
        ids_CS = torch.searchsorted(seen.cumulative_CV, below_CS.contiguous(), right=True).cpu().numpy()
        first_CS = np.concatenate([np.ones_like(ids_CS[:, :1], bool), ids_CS[:, 1:] != ids_CS[:, :-1]], 1)
        (where_E,) = first_CS.ravel().nonzero()
        unique_C = first_CS.sum(1)
        counts_E = np.diff(where_E, append=ids_CS.size)
        return {"unique": unique_C.astype(np.int32), "id_gaps": _gaps(ids_CS.ravel()[where_E], unique_C), "counts": counts_E.astype(np.int32)}

    def entries(self, columns: Columns) -> dict[str, Array]:
        """As many as were unique."""
        return {"id_gaps": columns["unique"], "counts": columns["unique"]}

    def targets(self, columns: Columns, head: Head | None, fingerprint: str, temperature: float) -> Sampled:
        """Outcomes and their shares, tokens with fewer outcomes filled up with shares of 0."""
        unique_N = columns["unique"]
        there_NK = np.arange(unique_N.max(initial=1)) < unique_N[:, None]
        ids_NK, share_NK = np.zeros(there_NK.shape, np.int64), np.zeros(there_NK.shape, np.float32)
        ids_NK[there_NK] = _ids(columns["id_gaps"], unique_N)
        share_NK[there_NK] = columns["counts"] / self.count
        ids, share, entropy = (torch.from_numpy(each) for each in (ids_NK, share_NK, columns["entropy"]))
        return Sampled(ids, share, entropy, fingerprint, temperature)


@dataclass(frozen=True)
class Strata(Draws):
    """`stratified:50`: one draw from each of that many equal slices of the distribution: as unbiased, with less noise."""

    word: ClassVar[str] = "stratified"

    def uniforms(self, draws: np.random.Generator, tokens: int) -> Array:
        """One in each slice."""
        return (np.arange(self.count) + draws.random((tokens, self.count))) / self.count


@dataclass(frozen=True)
class Top(Counted):
    """`top:64`: the likeliest outcomes with their log-probabilities, and that of all others together."""

    count: int = 64

    word: ClassVar[str] = "top"
    says: ClassVar[frozenset[str]] = frozenset({"top k"})
    types: ClassVar[dict[str, str]] = {"ids": "int32", "drops": "int32", "log_tail": "float"}

    def fit(self, vocabulary: int) -> None:
        """Of all outcomes there is no rest."""
        if self.count >= vocabulary:
            raise RecipeError(f"keep {self}: the vocabulary has {vocabulary:,} tokens; give fewer, or keep dense")

    def take(self, seen: Seen, uniform_CS: Array) -> Columns:
        """Likeliest first, each by how far it falls below the one before: small numbers; the tail is summed over what is left out."""
        log_p_CV = seen.log_p_CV
        log_p_CK, ids_CK = log_p_CV.topk(self.count, dim=-1)
        log_tail_C = log_p_CV.scatter(-1, ids_CK, float("-inf")).double().logsumexp(-1)
        steps_CK = (log_p_CK.double().clamp(min=NEVER) / LOG_P_STEP).round().long()
        drops_CK = -steps_CK.diff(prepend=torch.zeros_like(steps_CK[:, :1]))
        entries = (each.flatten().int().cpu().numpy() for each in (ids_CK, drops_CK))
        return {**dict(zip(("ids", "drops"), entries, strict=True)), "log_tail": _rounded(log_tail_C, LOG_P_STEP)}

    def entries(self, columns: Columns) -> dict[str, Array]:
        """The same number for every token."""
        kept_N = np.full(len(columns["log_tail"]), self.count)
        return {"ids": kept_N, "drops": kept_N}

    def targets(self, columns: Columns, head: Head | None, fingerprint: str, temperature: float) -> TopK:
        """Outcomes, log-probabilities and tails."""
        ids_NK, drops_NK = (torch.from_numpy(columns[name]).reshape(-1, self.count) for name in ("ids", "drops"))
        log_p_NK = drops_NK.cumsum(-1).mul(-LOG_P_STEP).float()
        return TopK(ids_NK.long(), log_p_NK, torch.from_numpy(columns["log_tail"]), fingerprint, temperature)


@dataclass(frozen=True)
class Hidden(Keep):
    """`hidden`: the last hidden states, which with the teacher's head give every probability at any temperature."""

    word: ClassVar[str] = "hidden"
    says: ClassVar[frozenset[str]] = frozenset({"distribution"})
    tempered: ClassVar[bool] = False
    types: ClassVar[dict[str, str]] = {"hidden": "binary"}

    def take(self, seen: Seen, uniform_CS: Array) -> Columns:
        """Nothing of a chunk."""
        return {}

    def of(self, said: Targets, rows: int, temperature: float, uniform_NS: Array) -> Columns:
        """The states as they are, bytes [N, bytes of D], beside entropy and logsumexp."""
        if not isinstance(said, Dense):
            raise RecipeError("keep hidden needs a teacher on this machine, whose states can be seen")
        states_N = said.hidden_ND.contiguous().cpu().view(torch.uint8).numpy()
        return {**super().of(said, rows, temperature, uniform_NS), "hidden": states_N}

    def targets(self, columns: Columns, head: Head | None, fingerprint: str, temperature: float) -> Dense:
        """States and head, as a live teacher says them."""
        assert head is not None
        return Dense(torch.from_numpy(columns["hidden"]).view(head.weight_VD.dtype), head, fingerprint)


@dataclass(frozen=True)
class All(Keep):
    """`dense`: every log-probability, as float16."""

    word: ClassVar[str] = "dense"
    says: ClassVar[frozenset[str]] = frozenset({"distribution"})
    tempered: ClassVar[bool] = False
    types: ClassVar[dict[str, str]] = {"log_p": "binary"}

    def take(self, seen: Seen, uniform_CS: Array) -> Columns:
        """Bytes [C, 2 V]."""
        return {"log_p": seen.log_p_CV.half().contiguous().cpu().view(torch.uint8).numpy()}

    def targets(self, columns: Columns, head: Head | None, fingerprint: str, temperature: float) -> Whole:
        """Log-probabilities [N, V]."""
        return Whole(torch.from_numpy(columns["log_p"]).view(torch.float16), fingerprint)


KEEPS: dict[str, type[Keep]] = {kind.word: kind for kind in (Draws, Strata, Top, Hidden, All)}


def kept(words: str) -> Keep:
    """What `sampled:50` and its like stand for. Raises RecipeError for what stands for nothing."""
    word, _, number = words.partition(":")
    if word not in KEEPS:
        raise RecipeError(f'keep "{words}" is not known{did_you_mean(word, KEEPS)} Give sampled:50, stratified:50, top:64, hidden or dense')
    kind = KEEPS[word]
    if issubclass(kind, Counted) and not number.isdecimal():
        raise RecipeError(f'keep "{words}" needs a number; give {kind()}')
    if number and not issubclass(kind, Counted):
        raise RecipeError(f'keep "{words}" takes no number; give {word}')
    return kind(int(number)) if issubclass(kind, Counted) else kind()


def _gaps(ids_E: Array, per_token_N: Array) -> Array:
    """Ascending ids of each token as differences, its first one as it is: small numbers need few bytes."""
    gaps_E = np.diff(ids_E, prepend=0)
    starts_N = (np.cumsum(per_token_N) - per_token_N)[per_token_N > 0]
    gaps_E[starts_N] = ids_E[starts_N]
    return gaps_E.astype(np.int32)


def _ids(gaps_E: Array, per_token_N: Array) -> Array:
    """The ids again, int64."""
    sums_E = np.cumsum(gaps_E, dtype=np.int64)
    starts_N = np.cumsum(per_token_N) - per_token_N
    before_N = np.where(starts_N > 0, sums_E[np.maximum(starts_N, 1) - 1], 0) if len(sums_E) else starts_N
    return sums_E - np.repeat(before_N, per_token_N)
