"""What a teacher said about each completion token. Nobody changes it.

Axes: N completion tokens of a pass, C rows of a chunk of them, V vocabulary, K kept entries, D hidden width.
Targets cover a whole pass; `rows(chunk)` gives what was said about a few of its tokens, made only then.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property

from limbeck.head import Head
from limbeck.insides import Features
from limbeck.lazy import Tensor


class Distribution:
    """`softmax(logits / T)` at C tokens: `log` in nats and `prob`, each [C, V], made when asked for. Nobody changes them."""

    def __init__(self, logits_CV: Tensor, temperature: float) -> None:
        # Not torch.log_softmax: in float32 on a CPU it loses the small terms of a long sum, up to 1e-3 nats at V = 262,144.
        # The maximum goes before the temperature, whose division rounds large logits.
        shifted_CV = logits_CV - logits_CV.amax(-1, keepdim=True)
        shifted_CV = shifted_CV if temperature == 1.0 else shifted_CV.div_(temperature)
        self._shifted_CV, self._exp_CV = shifted_CV, shifted_CV.exp()
        self._sum_C1 = self._exp_CV.sum(-1, keepdim=True)

    @cached_property
    def log(self) -> Tensor:
        """Log-probabilities, made when first asked for in the place of what they are made of."""
        return self._shifted_CV.sub_(self._sum_C1.log())

    def log_at(self, ids_CK: Tensor) -> Tensor:
        """Log-probabilities of a few outcomes of each token, without those of all others."""
        if "log" in self.__dict__:
            return self.log.gather(1, ids_CK)
        return self._shifted_CV.gather(1, ids_CK).sub_(self._sum_C1.log())

    @cached_property
    def prob(self) -> Tensor:
        """Probabilities, made when first asked for of the exponentials that were needed for the sum."""
        return self._exp_CV.div_(self._sum_C1)


@dataclass
class Logits:
    """Scores of every outcome at C tokens, of a student or a teacher. Log-probabilities are logits too.

    What a head's product left, in its dtype, where `head` is given: its scale and cap are still to come.
    """

    logits_CV: Tensor
    head: Head | None = None
    _at: dict[float, Distribution] = field(default_factory=dict[float, Distribution])

    def at(self, temperature: float = 1.0) -> Distribution:
        """The distribution at a temperature, made once for each."""
        if temperature not in self._at:
            self._at[temperature] = Distribution(self.logits_CV, temperature)
        return self._at[temperature]

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        """`log softmax(logits / T)` [C, V], in nats."""
        return self.at(temperature).log

    def block(self, rows: slice) -> "Logits":
        """A few of these tokens, in float32 (float64 stays)."""
        part_CV = self.logits_CV[rows]
        return Logits(part_CV if self.head is None else self.head.finished(part_CV))


@dataclass(frozen=True)
class TopKRows:
    """What a truncated teacher said of C tokens: K outcomes, and the mass of all the others as one more.

    ids_CK: int64. log_p_CK, log_tail_C: nats, at `temperature`; -inf for a tail without mass.
    """

    ids_CK: Tensor
    log_p_CK: Tensor
    log_tail_C: Tensor
    temperature: float

    def block(self, rows: slice) -> "TopKRows":
        """A few of these tokens."""
        return TopKRows(self.ids_CK[rows], self.log_p_CK[rows], self.log_tail_C[rows], self.temperature)


@dataclass(frozen=True)
class SampledRows:
    """What a sampled teacher said of C tokens: K outcomes and the share of the draws that fell on each, at `temperature`.

    ids_CK: int64, each outcome once. share_CK: counts over draws, 0 where a token has fewer outcomes than K.
    entropy_C: nats, of the whole distribution.
    """

    ids_CK: Tensor
    share_CK: Tensor
    entropy_C: Tensor
    temperature: float

    def block(self, rows: slice) -> "SampledRows":
        """A few of these tokens."""
        return SampledRows(self.ids_CK[rows], self.share_CK[rows], self.entropy_C[rows], self.temperature)


@dataclass(frozen=True)
class TokenLogpRows:
    """What a teacher said of C tokens alone: the log-probability of each, log_p_C, in nats, at temperature 1."""

    log_p_C: Tensor

    def block(self, rows: slice) -> "TokenLogpRows":
        """A few of these tokens."""
        return TokenLogpRows(self.log_p_C[rows])


class OtherRows(ABC):
    """What a teacher of another vocabulary said of C tokens; see `spans.SpanRows`."""

    @abstractmethod
    def block(self, rows: slice) -> "OtherRows":
        """A few of these tokens."""


Rows = Logits | TopKRows | SampledRows | TokenLogpRows | OtherRows | None
"""What can be said of a chunk of tokens; None where nothing is."""


class Targets(ABC):
    """What was said about each of N completion tokens, and by whom (`fingerprint`)."""

    fingerprint: str
    features: Features | None = None
    """What stood inside the one who said it, where that was laid open."""

    @property
    def says(self) -> frozenset[str]:
        """Which of what a term may need: "distribution", "top k", "sampled", "tokens", "spans", "pairs"."""
        return frozenset()

    @abstractmethod
    def rows(self, chunk: slice) -> Rows:
        """What was said of these tokens."""

    @abstractmethod
    def select(self, rows_N: Tensor) -> "Targets":
        """The same about these tokens only."""


@dataclass(frozen=True)
class Nothing(Targets):
    """Nobody said anything: the text itself is the lesson."""

    fingerprint: str = "silent"

    def rows(self, chunk: slice) -> Rows:
        """Nothing."""
        return None

    def select(self, rows_N: Tensor) -> Targets:
        """Nothing, still."""
        return self


@dataclass(frozen=True)
class Dense(Targets):
    """The whole distribution, kept as the teacher's last hidden states [N, D] and its head: [N, V] never exists at once."""

    hidden_ND: Tensor
    head: Head
    fingerprint: str
    features: Features | None = None

    @cached_property
    def _prepared(self) -> Head:
        return self.head.prepared(self.hidden_ND.dtype)

    @property
    def says(self) -> frozenset[str]:
        """Every outcome's probability."""
        return frozenset({"distribution"})

    def rows(self, chunk: slice) -> Logits:
        """The teacher's logits at these tokens."""
        return Logits(self._prepared.product(self.hidden_ND[chunk]), self._prepared)

    def select(self, rows_N: Tensor) -> "Dense":
        """The same about these tokens only; what was laid open belongs to a whole pass, and is left out."""
        return replace(self, hidden_ND=self.hidden_ND[rows_N], features=None)


@dataclass(frozen=True)
class TopK(Targets):
    """The K likeliest outcomes of each token with their true log-probabilities, and the tail's: never renormalised.

    ids_NK: int64 [N, K]. log_p_NK: nats. log_tail_N: nats, the log of one less their sum, by logsumexp over the rest.
    Where a token has fewer than K, its first stands again in the places left, at -inf.
    """

    ids_NK: Tensor
    log_p_NK: Tensor
    log_tail_N: Tensor
    fingerprint: str
    temperature: float = 1.0

    @staticmethod
    def of(log_p_NV: Tensor, k: int, fingerprint: str, temperature: float = 1.0) -> "TopK":
        """Truncate whole distributions. The tail is summed over what is left out, never taken as 1 - sum."""
        log_p_NK, ids_NK = log_p_NV.topk(k, dim=-1)
        rest_NV = log_p_NV.scatter(-1, ids_NK, float("-inf"))
        return TopK(ids_NK, log_p_NK, rest_NV.logsumexp(-1), fingerprint, temperature)

    @property
    def says(self) -> frozenset[str]:
        """The likeliest outcomes and the rest."""
        return frozenset({"top k"})

    def rows(self, chunk: slice) -> TopKRows:
        """The kept entries and the tail at these tokens."""
        return TopKRows(self.ids_NK[chunk], self.log_p_NK[chunk], self.log_tail_N[chunk], self.temperature)

    def select(self, rows_N: Tensor) -> "TopK":
        """The same about these tokens only."""
        return replace(self, ids_NK=self.ids_NK[rows_N], log_p_NK=self.log_p_NK[rows_N], log_tail_N=self.log_tail_N[rows_N])


@dataclass(frozen=True)
class Sampled(Targets):
    """Outcomes drawn from the teacher with replacement, and the share of the draws each got (random-sampling KD, arXiv 2503.16870).

    ids_NK: int64 [N, K], each outcome of a token once. share_NK: counts over draws [N, K], 0 where there are fewer than K;
    its expectation is the teacher's distribution, whatever the number of draws. entropy_N: nats, of the whole distribution.
    """

    ids_NK: Tensor
    share_NK: Tensor
    entropy_N: Tensor
    fingerprint: str
    temperature: float = 1.0

    @property
    def says(self) -> frozenset[str]:
        """Draws."""
        return frozenset({"sampled"})

    def rows(self, chunk: slice) -> SampledRows:
        """The drawn outcomes at these tokens."""
        return SampledRows(self.ids_NK[chunk], self.share_NK[chunk], self.entropy_N[chunk], self.temperature)

    def select(self, rows_N: Tensor) -> "Sampled":
        """The same about these tokens only."""
        return replace(self, ids_NK=self.ids_NK[rows_N], share_NK=self.share_NK[rows_N], entropy_N=self.entropy_N[rows_N])


@dataclass(frozen=True)
class TokenLogp(Targets):
    """The log-probability of the tokens themselves, log_p_N, in nats, at temperature 1; of other outcomes nothing."""

    log_p_N: Tensor
    fingerprint: str

    @property
    def says(self) -> frozenset[str]:
        """The tokens alone."""
        return frozenset({"tokens"})

    def rows(self, chunk: slice) -> TokenLogpRows:
        """Of these tokens."""
        return TokenLogpRows(self.log_p_N[chunk])

    def select(self, rows_N: Tensor) -> "TokenLogp":
        """The same about these tokens only."""
        return replace(self, log_p_N=self.log_p_N[rows_N])


@dataclass(frozen=True)
class Whole(Targets):
    """The whole distribution as log-probabilities in nats [N, V], stored ones for example."""

    log_p_NV: Tensor
    fingerprint: str

    @property
    def says(self) -> frozenset[str]:
        """Every outcome's probability."""
        return frozenset({"distribution"})

    def rows(self, chunk: slice) -> Logits:
        """Log-probabilities, which are logits too."""
        return Logits(self.log_p_NV[chunk].float())

    def select(self, rows_N: Tensor) -> "Whole":
        """The same about these tokens only."""
        return replace(self, log_p_NV=self.log_p_NV[rows_N])
