"""A model behind an OpenAI-compatible server as a teacher: it writes, and vLLM's scores too.

Axes: N completion tokens of a pass, V vocabulary, K outcomes that the server names of a token: the `top` likeliest and the token itself.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from limbeck.answers import Given, Purse, Question, Told
from limbeck.batch import Batch
from limbeck.config import live, part
from limbeck.decoding import Sampling
from limbeck.errors import EndpointError, ModelError, RecipeError
from limbeck.lazy import Tensor, torch
from limbeck.licences import Licence, of_endpoint
from limbeck.machine import Opening
from limbeck.server import Server
from limbeck.student import Student
from limbeck.targets import Nothing, Targets, TokenLogp, TopK
from limbeck.teachers import Teacher
from limbeck.vocabulary import PROBE_TEXT, Vocabulary

ROUNDING_NATS = 1e-3
"""By so much the logarithm of a sum of rounded probabilities may pass 0; beyond it they are no probabilities. Found: 2e-6 of vLLM's."""


@part
class Endpoint(Teacher):
    """A model behind an OpenAI-compatible server. Any can write; to score, it must say `prompt_logprobs` of token ids, as vLLM's does.

    base_url: up to /v1; or several of the same model, between which calls are balanced, and one that dies is left out. top: of so many
    outcomes of each token the probability is asked, beside the token's own; vLLM allows 20 unless started with
    --max-logprobs; 0 asks of the token alone. tokenizer: hub name or folder of the model's, where
    `model`, its name on the server, is none. key_env: the environment variable that holds the key. concurrency: calls at
    once. seconds: for one call. usd_in, usd_out: US dollars for a million tokens read and written. parameters: how many the
    model has, for FLOPs, where it has a size and no price.

    What the server scores stays at temperature 1. Of a sum of rounded probabilities that passes 1 the tail is empty: both
    are within ROUNDING_NATS of the truth. A head's padding beyond the vocabulary counts as tail, where `Local` cuts it away.
    """

    base_url: str | list[str]
    model: str
    top: int = 20
    tokenizer: str | None = None
    key_env: str | None = None
    concurrency: int = 8
    seconds: float = 120.0
    usd_in: float = 0.0
    usd_out: float = 0.0
    parameters: float = 0.0

    _server: Any = live()
    _vocabulary: Any = live()
    _longest: Any = live()

    def __post_init__(self) -> None:
        if not self.base_url:
            raise RecipeError("Endpoint.base_url is a URL up to /v1, or a list of them; found none")
        if self.top < 0 or self.concurrency < 1:
            raise RecipeError(f"Endpoint needs top >= 0 and concurrency >= 1, found {self.top} and {self.concurrency}")
        if not 0 < self.seconds < math.inf:
            raise RecipeError(f"Endpoint.seconds must be above 0 and finite, found {self.seconds}")
        if not 0 <= min(self.usd_in, self.usd_out, self.parameters) <= max(self.usd_in, self.usd_out, self.parameters) < math.inf:
            found = f"{self.usd_in}, {self.usd_out} and {self.parameters}"
            raise RecipeError(f"Endpoint's usd_in, usd_out and parameters must be at least 0 and finite, found {found}")

    @property
    def urls(self) -> list[str]:
        """Of each server."""
        return [self.base_url] if isinstance(self.base_url, str) else self.base_url

    @property
    def where(self) -> str:
        """The server, or several, in words."""
        return " and ".join(self.urls)

    @property
    def name(self) -> str:
        """The model's on the server."""
        return self.model

    @property
    def units(self) -> frozenset[str]:
        """Where a price or a size is known."""
        return frozenset(unit for unit, known in {"usd": self.usd_in or self.usd_out, "flops": self.parameters}.items() if known)

    @property
    def says(self) -> frozenset[str]:
        """The likeliest outcomes with the tail, and the tokens' own probabilities."""
        return frozenset({"tokens", "top k"}) if self.top else frozenset({"tokens"})

    @property
    def temperature_kept(self) -> float:
        """A server scores at temperature 1."""
        return 1.0

    @property
    def described(self) -> str:
        """Which model, where, and what it is asked for."""
        asked = f"the {self.top} likeliest outcomes" if self.top else "the tokens alone"
        return f"{self.model} at {self.where}, {asked}"

    @property
    def identity(self) -> Any:
        """The model by its name there."""
        return [self.base_url, self.model]

    @property
    def licences(self) -> list[Licence]:
        """The provider's terms, and the model's own where it is served by others."""
        return list(dict.fromkeys(each for url in self.urls for each in of_endpoint(url, self.tokenizer or self.model)))

    def load(self, student: Student | None) -> Self:
        """Find the server; for a student, see that it can score and means the same by a token. A writer alone needs no student.

        Raises EndpointError, VocabularyError, or RecipeError where nobody knows the model's tokenizer.
        """
        made = self.fresh()
        made._server = Server(self.urls, self.model, key_env=self.key_env, concurrency=self.concurrency,
                              seconds=self.seconds, usd_in=self.usd_in, usd_out=self.usd_out, parameters=self.parameters)  # fmt: skip
        made._longest = made._server.see_served()
        if student is not None:
            made._vocabulary = made._own_vocabulary()
            student.share_vocabulary(made._vocabulary)
            made._prove_served()
        return made

    def writing(self) -> Self:
        """The server found."""
        return self.load(None)

    def answers(self, questions: Iterable[Question], sampling: Sampling, purse: Purse, told: Told = lambda tokens: None) -> Iterator[Given]:
        """Written by the server, several at once."""
        return self._server.answers(questions, sampling, purse, told)

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        """What the server says of each part. Calls for later parts go out while the student learns from earlier ones."""
        waiting: dict[int, list[_Scores | None]] = {}

        def asked() -> Iterator[_Asked]:
            for number, batch in enumerate(parts):
                waiting[number] = [None] * len(batch)
                yield from _asked_of(batch, number)

        ready = 0
        for job, scores in self._server.each(asked(), self._ask):
            waiting[job.part][job.row] = scores
            while ready in waiting and all(each is not None for each in waiting[ready]):
                yield self._targets(waiting.pop(ready))
                ready += 1
        for number in sorted(waiting):  # what is left is empty: nothing was asked of it
            yield self._targets(waiting.pop(number))

    def _targets(self, rows: "list[_Scores | None]") -> Targets:
        """Scores of a part's sequences as targets."""
        from limbeck.machine import device

        scored = [each for each in rows if each is not None]
        assert len(scored) == len(rows)
        if not scored:
            return Nothing()
        ids_NK, log_p_NK = (torch.cat([getattr(each, name) for each in scored]) for name in ("ids_NK", "log_p_NK"))
        fingerprint = f"{self.model} at {self.where}"
        if not self.top:
            return TokenLogp(log_p_NK[:, 0].float().to(device()), fingerprint)
        log_tail_N = log_rest(log_p_NK)
        return TopK(ids_NK.to(device()), log_p_NK.float().to(device()), log_tail_N.float().to(device()), fingerprint)

    def _ask(self, job: "_Asked") -> "_Scores":
        """Ask of one sequence."""
        if self._longest is not None and len(job.ids) >= self._longest:
            raise EndpointError(
                f"{self.model} takes {self._longest - 1} tokens of a text, beside the one that it must write, and a sequence has {len(job.ids)}; "
                "lower max_tokens, or start the server with a larger --max-model-len"
            )
        entries = self._prompt_logprobs(job.ids, self.top)
        return _Scores.of([self._entry(entries[place], job.ids[place]) for place in job.places], self.top + 1)

    def _prompt_logprobs(self, prompt: list[int] | str, top: int) -> list[dict[str, Any] | None]:
        """What the server says of each token of a text: outcomes by their number, None of the first."""
        body = {"model": self.model, "prompt": prompt, "prompt_logprobs": top, "max_tokens": 1, "temperature": 0, "add_special_tokens": False}
        answer = self._server.post("completions", body)
        choices = answer.get("choices") or [{}]
        entries = choices[0].get("prompt_logprobs")
        if not isinstance(entries, list):
            raise self._fault("gave no prompt_logprobs, and cannot score; serve the model with vLLM, or let it write and learn with CrossEntropy()")
        if isinstance(prompt, list) and len(entries) != len(prompt):
            raise self._fault(f"scored {len(entries)} tokens of {len(prompt)}; no proxy may shorten a text")
        return entries

    def _entry(self, entry: Any, token: int) -> list[tuple[int, float]]:
        """Outcomes of one token, itself first, with their log-probabilities; padding of the head left out."""
        try:
            found = {int(number): float(each["logprob"]) for number, each in entry.items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            raise self._fault(f"scored a token with {str(entry)[:80]!r}, which is not vLLM's form; serve the model with vLLM") from None
        if token not in found:
            raise self._fault(f"was asked about token {token} and scored {', '.join(map(str, list(found)[:4]))}; no proxy may cut a text anew")
        if not self.top <= len(found) <= self.top + 1 or not all(log_p <= ROUNDING_NATS for log_p in found.values()):
            raise self._fault(
                f"named {len(found)} outcomes where {self.top} were asked, the likeliest at {max(found.values()):.4g} nats; serve log-probabilities"
            )
        first = (token, found.pop(token))
        return [first, *((number, log_p) for number, log_p in found.items() if number < self._vocabulary.size)]

    def _fault(self, what: str) -> EndpointError:
        return EndpointError(f"{self.where} ({self.model}) {what}")

    def _own_vocabulary(self) -> Vocabulary:
        """That of the model on the server, from its tokenizer's files."""
        from limbeck.models import open_vocabulary

        try:
            vocabulary = open_vocabulary(self.tokenizer or self.model, Opening())
        except ModelError as error:
            if self.tokenizer:
                raise
            raise RecipeError(
                f'"{self.model}" at {self.where} is scored by token ids, and its tokenizer is not known by that name ({error}); '
                "say where it lies: Endpoint(tokenizer=FOLDER or hub name)"
            ) from None
        if self.top + 1 >= vocabulary.size:
            raise RecipeError(f"Endpoint(top={self.top}) is as much as the vocabulary of {vocabulary.size:,} tokens; ask for fewer")
        return vocabulary

    def _prove_served(self) -> None:
        """See that the server's tokenizer is the one whose files were read: it cuts an awkward text alike."""
        entries, mine = self._prompt_logprobs(PROBE_TEXT, 0), self._vocabulary.ids(PROBE_TEXT)
        theirs = [int(next(iter(entry))) for entry in entries[1:] if entry]  # of the first token nothing is said
        if theirs != mine[1:]:
            raise RecipeError(
                f"{self.tokenizer or self.model} is not the tokenizer of {self.model} at {self.where}: they cut a text into "
                f"{len(mine)} and {len(entries)} tokens, or other ones; name the right one: Endpoint(tokenizer=...)"
            )


@dataclass(frozen=True)
class _Asked:
    """A sequence whose tokens at `places` are to be scored: which row of which part."""

    part: int
    row: int
    ids: list[int]
    places: list[int]


@dataclass(frozen=True)
class _Scores:
    """What was said of the completion tokens of a sequence: see `TopK`; log_p_NK in float64."""

    ids_NK: Tensor
    log_p_NK: Tensor

    @staticmethod
    def of(entries: list[list[tuple[int, float]]], width: int) -> "_Scores":
        """Outcomes of each token, filled up to `width` with its first at -inf."""
        filled = [[*entry, *[(entry[0][0], -math.inf)] * (width - len(entry))] for entry in entries]
        ids_NK = torch.tensor([[number for number, _ in entry] for entry in filled], dtype=torch.int64)
        return _Scores(ids_NK, torch.tensor([[log_p for _, log_p in entry] for entry in filled], dtype=torch.float64))


def _asked_of(batch: Batch, number: int) -> Iterator[_Asked]:
    """One question for each sequence, which ends with its last completion token."""
    sequence_N = batch.sequence_N
    for row, (tokens, start) in enumerate(zip(batch.sequences(), batch.starts_B.tolist(), strict=True)):
        places = (batch.places_N[sequence_N == row] - start).tolist()
        yield _Asked(number, row, tokens[: places[-1] + 1].tolist(), places)


def log_rest(log_p_NK: Tensor) -> Tensor:
    """The log of one less a sum of probabilities [N], in nats, from their float64 logarithms; -inf where the sum is 1.

    The others cannot be summed themselves, as nobody names them, so it is no surer than the rounding of what is
    named: a sum past 1 by no more than that leaves nothing. Raises EndpointError for one that passes 1 by more.
    """
    total_N = log_p_NK.logsumexp(-1)
    most = float(total_N.max())
    if not most <= ROUNDING_NATS:
        raise EndpointError(
            f"the probabilities that a server gave of one token add up to {math.exp(most):.6g}; serve them at temperature 1, unprocessed"
        )
    return torch.where(total_N < 0, (-torch.expm1(total_N)).log(), -math.inf)
