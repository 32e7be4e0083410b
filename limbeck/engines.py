"""Who writes the student's text in its place, with its weights: vLLM, as servers or inside this process.

`vllms.py` is vLLM as we speak with it, `handover.py` how weights get there.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

import numpy as np

from limbeck import distributed
from limbeck.batch import Batch, Text
from limbeck.config import Part, live, part
from limbeck.decoding import Sampling, Written
from limbeck.errors import EndpointError, LimbeckError, RecipeError
from limbeck.handover import Folder, Transfer, on_gpu, way
from limbeck.objective import CrossEntropy, Objective
from limbeck.privacy import expanded
from limbeck.student import Student
from limbeck.targets import Nothing
from limbeck.vllms import HERE, Inside, Served
from limbeck.vocabulary import Vocabulary

MISMATCH, EXCESS = "writer/mismatch_nats", "writer/excess_nats"
"""In metrics.jsonl: how far the log-probabilities that it reports of its tokens are from the student's own, and by how much they are above them."""
ALARM_NATS = {"bfloat16": 0.1, "float32": 1e-3}
"""Of the mean distance. Found between vLLM and the same weights here: 0.041 and 0.00001 nats a token (benchmarks/endpoint_agreement.py)."""
SIGNED_SHARE, SIGNED_SPREAD = 0.25, 3.5
"""Rounding has no sign, and text of other weights has: the mean may be this share of the alarm, or, of few tokens, so much of it over the root
of their count, which is five standard errors: one token's rounding was found to spread by 0.7 of the alarm."""


class Figures(NamedTuple):
    """What a comparison found: sums over tokens, and their count."""

    distance: float
    excess: float
    tokens: int


class Engine(Part, ABC):
    """Base of those who write with the student's weights, and are not the student."""

    @classmethod
    def adopt(cls, value: object) -> object:
        """The word "vllm" stands for the engine with its settings as they are."""
        return VLLM() if value == "vllm" else value

    @abstractmethod
    def load(self, vocabulary: Vocabulary) -> Self:
        """The engine found, and seen to mean the same by a token."""

    @property
    @abstractmethod
    def described(self) -> str:
        """Who it is, in words, once it is loaded."""

    @abstractmethod
    def write(self, student: Student, prompts: Sequence[list[int]], sampling: Sampling, seed: int, step: int, rows: Sequence[int]) -> list[Written]:
        """Complete prompts, as `Student.write` does. Every rank must call, one without prompts too."""

    @abstractmethod
    def figures(self) -> dict[str, tuple[float, float]]:
        """What was found about the text since last asked: sums and counts by name, the same names on every rank."""


@part
class VLLM(Engine):
    """vLLM writes, with the student's weights as they were at the last step whose number `every` divides.

    servers: base URLs up to /v1 of servers of the student's model that were started with VLLM_SERVER_DEV_MODE=1, between which
    calls are balanced; none: inside this process, where vllm is installed. model: its name there. folder: where weights are
    handed over, unless vLLM was started with a transfer of its own, by one run at a time; every server must see it by this path;
    by default a temporary one on this machine.
    dtype: of vLLM's arithmetic. every: with more than 1, text is written by weights that are up to every - 1 steps older, and
    keeps their log-probabilities: terms of single tokens correct for it by their `ratio`. checked: of so many sequences of the
    first draw after new weights the student's own log-probabilities are compared, one forward pass over them (0: none).
    alarm_nats: beyond this mean distance a run stops; by default 0.1 in bfloat16 and 0.001 in float32. concurrency: calls at
    once. seconds: for one call. options: more of vllm.LLM's settings, inside this process.

    Random numbers are vLLM's own, seeded for each row: text is the same again on the same machine as far as vLLM's is. A run that
    is resumed begins with new weights, also between two multiples of `every`.
    """

    servers: list[str] | None = None
    model: str | None = None
    folder: str | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    every: int = 1
    checked: int = 4
    alarm_nats: float | None = None
    concurrency: int = 64
    seconds: float = 600.0
    options: dict[str, Any] | None = None

    _pen: Any = live()
    _vocabulary: Any = live()
    _handed: Any = live()
    _found: Any = live()
    _folder: Any = live()
    _way: Any = live()

    def __post_init__(self) -> None:
        if min(self.every, self.concurrency) < 1 or self.checked < 0:
            raise RecipeError(f"VLLM needs every and concurrency of at least 1, checked of at least 0; found {self.every}, {self.concurrency}, "
                              f"{self.checked}")  # fmt: skip
        if self.servers is not None and (not self.servers or self.model is None):
            raise RecipeError("VLLM.servers are base URLs up to /v1, and need the model's name on them: VLLM(servers=[URL], model=NAME)")
        if self.servers and self.options:
            raise RecipeError("VLLM.options are for vLLM inside this process; a server was started with its own")
        if self.alarm_nats is not None and not 0 < self.alarm_nats < math.inf:
            raise RecipeError(f"VLLM.alarm_nats must be above 0 and finite, found {self.alarm_nats}")

    def bound(self, student: Student) -> float:
        """Beyond which mean distance something is wrong: that of the coarser arithmetic of the two."""
        if self.alarm_nats is not None:
            return self.alarm_nats
        return max(ALARM_NATS[self.dtype], ALARM_NATS.get(str(student.live.compute).removeprefix("torch."), 0.0))

    def load(self, vocabulary: Vocabulary) -> Self:
        """Find the servers; inside this process vLLM begins with the first weights. Raises LimbeckError in one line for what stands in the way."""
        made = self.fresh()
        made._vocabulary, made._handed, made._found = vocabulary, None, Figures(0.0, 0.0, 0)
        made._way = made._folder = Folder(expanded(self.folder) if self.folder else None)
        if self.servers:
            made._pen = Served(self.servers, self.model or "", vocabulary, self.concurrency, self.seconds)
            self._see_folder(made._pen.backend)
        elif distributed.ranks() > 1:
            raise RecipeError(
                f"vLLM inside each of {distributed.ranks()} processes would share their GPUs; start servers: VLLM(servers=[URL], model=NAME)"
            )
        else:
            own = {"weight_transfer_config": {"backend": "ipc"}} if on_gpu() else {}
            made._pen = Inside(self.dtype, {**own, **(self.options or {})})
        return made

    @property
    def described(self) -> str:
        """Where it runs, and how weights reach it."""
        if not self.servers:
            return f"vLLM inside this process, in {self.dtype}"
        ways = f"by {self._pen.backend}" if self._pen.backend else "through a folder"
        return f"vLLM at {' and '.join(self.servers)}, which takes weights {ways}"

    def _see_folder(self, backend: str | None) -> None:
        """Raise RecipeError where a server of another machine takes weights from a folder, and none is named that both see."""
        away = [url for url in self.servers or () if urlsplit(url).hostname not in HERE]
        if away and self.folder is None and backend is None:
            raise RecipeError(f"{away[0]} is another machine: name a folder that it and this one see by the same path: VLLM(folder=...), or "
                              "start it with --weight-transfer-config")  # fmt: skip

    def write(self, student: Student, prompts: Sequence[list[int]], sampling: Sampling, seed: int, step: int, rows: Sequence[int]) -> list[Written]:
        """Hand over the weights where it is time, let vLLM complete, and compare where they are fresh."""
        fresh = self._handed is None or (step != self._handed and step % self.every == 0)
        if fresh:
            self._hand_over(student)
            self._handed = step
        written = self._complete(prompts, sampling, [_number(seed, step, row) for row in rows], student.live.context) if prompts else []
        if fresh and self.checked:
            self._compare(student, prompts, written)
        return written

    def _hand_over(self, student: Student) -> None:
        """Every rank brings its share; then what is remembered of prompts is older weights'."""
        if student.quantization:
            raise RecipeError(f"vLLM takes whole weights, and those of a {student.quantization} student are not; drop quantization, or engine")
        if not isinstance(self._way, Transfer):
            self._way = way(student, self._pen, self._folder)
        self._way.send(student, self._pen)
        if distributed.rank() == 0:
            self._pen.forget()
        distributed.wait()

    def _complete(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], context: int) -> list[Written]:
        """Those with room; a prompt that fills the context gets no token."""
        asked = [n for n, prompt in enumerate(prompts) if len(prompt) < context]
        ends = sorted(self._vocabulary.end_ids)
        written = self._pen.complete([prompts[n] for n in asked], sampling, [seeds[n] for n in asked], ends)
        if beyond := max((token for new in written for token in new.tokens if token >= self._vocabulary.size), default=None):
            raise EndpointError(f"vLLM wrote token {beyond} of a vocabulary of {self._vocabulary.size}: padding of the head; cut it from the model")
        there, done = set(asked), iter(written)
        return [next(done) if n in there else Written() for n in range(len(prompts))]

    def _compare(self, student: Student, prompts: Sequence[list[int]], written: Sequence[Written]) -> None:
        """What vLLM said of its tokens beside what the student says. Raises LimbeckError beyond the bound."""
        pairs = [pair for pair in zip(prompts, written, strict=True) if pair[1].tokens][: self.checked]
        batch = Batch.of([Text.answered(prompt, new.tokens, {}, new.logp) for prompt, new in pairs], "student")
        objective = Objective([CrossEntropy()])
        nats_N = student.measure(batch, Nothing(), objective)[objective.terms[0].name]
        apart_N = batch.logp_N.double() + nats_N.double().cpu()
        self._found = Figures(float(apart_N.abs().sum()), float(apart_N.sum()), len(apart_N))
        distance, excess, tokens = distributed.sum_over_ranks(self._found)
        if tokens:
            self._see(Figures(distance, excess, int(tokens)), self.bound(student))

    def _see(self, found: Figures, bound: float) -> None:
        """Whether the two are the same model's."""
        distance, excess = found.distance / found.tokens, found.excess / found.tokens
        signed = abs(excess) > bound * max(SIGNED_SHARE, SIGNED_SPREAD / math.sqrt(found.tokens))
        if distance <= bound and not signed:
            return
        above = f"{excess:+.3g} nats a token on average, more than rounding" if signed else f"{distance:.3g} nats a token, beyond {bound:g}"
        raise LimbeckError(
            f"what vLLM says of its text and what the student says are apart by {above} (over {found.tokens} tokens): it writes with other "
            "weights, remembers prompts of older ones, or computes otherwise; see that it takes in new weights, is started in VLLM.dtype and "
            "without quantisation, or raise alarm_nats"
        )

    def figures(self) -> dict[str, tuple[float, float]]:
        """Distance and excess of the draw, where they were compared."""
        found, self._found = self._found, Figures(0.0, 0.0, 0)
        return {MISMATCH: (found.distance, found.tokens), EXCESS: (found.excess, found.tokens)}


def _number(seed: int, step: int, row: int) -> int:
    """A row's own seed, below 2^31."""
    return int(np.random.Generator(np.random.Philox(key=[seed, (step << 32) + row])).integers(2**31))
