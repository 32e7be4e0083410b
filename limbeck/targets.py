"""What a teacher said about each completion token. Nobody changes it.

Axes: N completion tokens of a pass, C rows of a chunk of them, V vocabulary, K kept entries, D hidden width.
Targets cover a whole pass; `rows(chunk)` gives what was said about a few of its tokens, made only then.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from limbeck.head import Head


@dataclass
class Logits:
    """Scores of every outcome at C tokens, of a student or a teacher. Log-probabilities are logits too."""

    logits_CV: Tensor
    _log_probs: dict[float, Tensor] = field(default_factory=dict[float, Tensor])

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        """`log softmax(logits / T)` [C, V], in nats, made once per temperature."""
        if temperature not in self._log_probs:
            # Not torch.log_softmax: in float32 on a CPU it loses the small terms of a long sum, up to 1e-3 nats at V = 262,144.
            # The maximum goes before the temperature, whose division rounds large logits.
            shifted_CV = self.logits_CV - self.logits_CV.amax(-1, keepdim=True)
            shifted_CV = shifted_CV if temperature == 1.0 else shifted_CV.div_(temperature)
            self._log_probs[temperature] = shifted_CV.sub_(shifted_CV.exp().sum(-1, keepdim=True).log_())
        return self._log_probs[temperature]


@dataclass(frozen=True)
class TopKRows:
    """What a truncated teacher said of C tokens: K outcomes, and the mass of all the others as one more.

    ids_CK: int64. log_p_CK, log_tail_C: nats, at `temperature`; -inf for a tail without mass.
    """

    ids_CK: Tensor
    log_p_CK: Tensor
    log_tail_C: Tensor
    temperature: float


Rows = Logits | TopKRows | None
"""What can be said of a chunk of tokens; None where nothing is."""


class Targets(ABC):
    """What was said about each of N completion tokens, and by whom (`fingerprint`)."""

    fingerprint: str

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

    @cached_property
    def _prepared(self) -> Head:
        return self.head.prepared(self.hidden_ND.dtype)

    def rows(self, chunk: slice) -> Logits:
        """The teacher's logits at these tokens, in float32."""
        return Logits(self._prepared.logits(self.hidden_ND[chunk]))

    def select(self, rows_N: Tensor) -> "Dense":
        """The same about these tokens only."""
        return replace(self, hidden_ND=self.hidden_ND[rows_N])


@dataclass(frozen=True)
class TopK(Targets):
    """The K likeliest outcomes of each token with their true log-probabilities, and the tail's: never renormalised.

    ids_NK: int64 [N, K]. log_p_NK: nats. log_tail_N: nats, the log of one less their sum, by logsumexp over the rest.
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

    def rows(self, chunk: slice) -> TopKRows:
        """The kept entries and the tail at these tokens."""
        return TopKRows(self.ids_NK[chunk], self.log_p_NK[chunk], self.log_tail_N[chunk], self.temperature)

    def select(self, rows_N: Tensor) -> "TopK":
        """The same about these tokens only."""
        return replace(self, ids_NK=self.ids_NK[rows_N], log_p_NK=self.log_p_NK[rows_N], log_tail_N=self.log_tail_N[rows_N])
