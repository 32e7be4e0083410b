"""Calls to an OpenAI-compatible server: many at once, tried again where that helps, none answered twice."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar
from urllib.parse import urlsplit

from limbeck.answers import Answer, Bill, Finish, Given, Purse, Question, Told, parted
from limbeck.decoding import Sampling
from limbeck.errors import EndpointError, LimbeckError, did_you_mean

T = TypeVar("T")
R = TypeVar("R")

FINISH: dict[str, Finish] = {"stop": "end", "length": "length", "tool_calls": "tools", "content_filter": "filter"}
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""Statuses that may be others a moment later."""


class Server:
    """A server by its base URL (up to /v1) and the name of a model on it.

    key_env: the environment variable with the key; none is needed on this machine. seconds: for one call. tries: of one
    call; between them it waits as long as the server asks, else `wait_seconds`, doubled each time, up to a minute.
    usd_in, usd_out: US dollars for a million tokens. A response that is cut, malformed or of another model counts as failed.
    """

    def __init__(self, base_url: str, model: str, key_env: str | None = None, concurrency: int = 8, seconds: float = 120.0, tries: int = 8,
                 usd_in: float = 0.0, usd_out: float = 0.0, wait_seconds: float = 0.5) -> None:  # fmt: skip
        self.base_url, self.model, self.concurrency, self.tries = base_url.rstrip("/"), model, concurrency, tries
        self.usd_in, self.usd_out, self.wait_seconds = usd_in, usd_out, wait_seconds
        self._reported: str | None = None
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._client = _client(self.base_url, _key(self.base_url, key_env), seconds)

    def get(self, path: str) -> dict[str, Any]:
        """What the server says of itself."""
        return self._call(lambda: self._client.get(f"/{path}", cast_to=object), f"GET {path}", _mapping)

    def post(self, path: str, body: dict[str, Any], read: Callable[[Any], Any] = lambda found: found) -> Any:
        """One call. `read` takes what is wanted of the response, and raises ValueError, KeyError or TypeError where it is malformed."""
        return self._call(lambda: self._client.post(f"/{path}", cast_to=object, body=body), f"POST {path}", lambda found: read(_mapping(found)))

    def _call(self, send: Callable[[], Any], what: str, read: Callable[[Any], Any]) -> Any:
        import openai

        why = "nothing"
        for tried in range(1, self.tries + 1):
            try:
                return read(send())
            except openai.APIStatusError as error:
                if error.status_code not in AGAIN:
                    raise EndpointError(self._refused(error.status_code, error.response.text, what)) from None
                why, asked = f"status {error.status_code}", error.response.headers.get("retry-after")
            except (openai.APIConnectionError, openai.APIResponseValidationError) as error:
                why, asked = type(error.__cause__ or error).__name__, None
            except LimbeckError:
                raise
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                why, asked = f"a malformed response ({type(error).__name__}: {str(error)[:80]})", None
            if self._closing.is_set() or tried == self.tries:
                break
            self._closing.wait(self._pause(tried, asked))
        raise EndpointError(f"{self.base_url} did not answer {what} in {self.tries} tries, the last time with {why}; see to the server, and give "
                            "the same command again: what was answered is kept")  # fmt: skip

    def _pause(self, tried: int, asked: str | None) -> float:
        if asked is not None and asked.replace(".", "", 1).isdecimal():
            return float(asked)
        return min(60.0, self.wait_seconds * 2 ** (tried - 1)) * random.uniform(0.5, 1.0)

    def _refused(self, status: int, text: str, what: str) -> str:
        said = " ".join(text.split())[:160]
        match status:
            case 401 | 403:
                return f"{self.base_url} refuses the key (status {status}); set the right one in the environment, and name it: key_env"
            case 404:
                return f'{self.base_url} has no {what} for "{self.model}"{self._models()}'
            case _:
                return f"{self.base_url} refuses {what} with status {status}: {said}; mend the request"

    def _models(self) -> str:
        """What it does serve, as far as it tells."""
        import openai

        try:
            found: Any = self._client.get("/models", cast_to=object)
            return did_you_mean(self.model, [str(each["id"]) for each in found["data"]])
        except (openai.OpenAIError, KeyError, TypeError):
            return "; see to base_url and model"

    def each(self, jobs: Iterable[T], work: Callable[[T], R]) -> Iterator[tuple[T, R]]:
        """Do jobs side by side, each result as it comes; jobs are taken as threads fall free.

        Where one fails, no more are begun, those under way are given, and then the failure is raised.
        """
        self._closing.clear()
        waiting, failed = iter(jobs), list[BaseException]()
        with ThreadPoolExecutor(self.concurrency) as pool:
            going = dict[Future[R], T]()
            try:
                while True:
                    while not failed and len(going) < self.concurrency and (job := next(waiting, _NONE)) is not _NONE:
                        going[pool.submit(work, job)] = job  # pyright: ignore[reportArgumentType]
                    if not going:
                        break
                    for done in wait(going, return_when=FIRST_COMPLETED).done:
                        job = going.pop(done)
                        if (error := done.exception()) is not None:
                            failed.append(error)
                        else:
                            yield job, done.result()
            finally:
                self._closing.set()  # nobody waits for another try of what nobody will hear
        if failed:
            raise failed[0]

    def answers(self, questions: Iterable[Question], sampling: Sampling, purse: Purse, told: Told = lambda tokens: None) -> Iterator[Given]:
        """Answer each question as often as it wants, one call an answer; ends early when the purse refuses.

        Raises EndpointError where dollars are limited and no price is known, or the server reports another model on the way.
        """
        if purse.limit_usd is not None and not (self.usd_in or self.usd_out):
            raise EndpointError(f"a budget in US dollars needs the price of {self.model}; give usd_in and usd_out for a million tokens")
        for (question, sample, worst), (answer, bill) in self.each(
            self._paid(questions, sampling, purse), lambda job: self._answer(job[0], job[1], sampling)
        ):
            purse.settle(worst, bill)
            told(bill.completion_tokens)
            yield Given(question, sample, answer, bill)

    def _paid(self, questions: Iterable[Question], sampling: Sampling, purse: Purse) -> Iterator[tuple[Question, int, Bill]]:
        """What is still to be asked, as long as it can be paid for. A prompt has no more tokens than bytes, and a few for its frame."""
        for question in questions:
            size = len(str(question.messages or question.row["prompt"]).encode()) + 64
            worst = Bill(usd=(self.usd_in * size + self.usd_out * sampling.max_tokens) / 1e6)
            for sample in question.samples:
                if not purse.take(worst):
                    return
                yield question, sample, worst

    def _answer(self, question: Question, sample: int, sampling: Sampling) -> tuple[Answer, Bill]:
        body = _body(question, sample, sampling, self.model)
        began = time.monotonic()

        def read(found: dict[str, Any]) -> tuple[Answer, int, int]:
            (choice,) = found["choices"]
            self._same_model(str(found["model"]))
            return _read(choice), int(found["usage"]["prompt_tokens"]), int(found["usage"]["completion_tokens"])

        answer, asked, written = self.post("completions" if question.messages is None else "chat/completions", body, read)
        usd = (self.usd_in * asked + self.usd_out * written) / 1e6
        return answer, Bill(asked, written, usd=usd, seconds=time.monotonic() - began)

    def _same_model(self, reported: str) -> None:
        with self._lock:
            self._reported = self._reported or reported
            if reported != self._reported:
                raise EndpointError(f"{self.base_url} answered as {self._reported}, and now as {reported}: two teachers under one name; "
                                    "name one version as the model")  # fmt: skip


_NONE: Any = object()


def _client(base_url: str, key: str, seconds: float) -> Any:
    try:
        import openai
    except ImportError:
        raise EndpointError("servers are called with the openai client; pip install 'limbeck[endpoint]'") from None
    return openai.OpenAI(base_url=base_url, api_key=key, timeout=seconds, max_retries=0)


def _key(base_url: str, key_env: str | None) -> str:
    """The key, from the environment alone. Raises EndpointError where one is named, or OpenAI's needed, and not there."""
    name = key_env or ("OPENAI_API_KEY" if urlsplit(base_url).hostname == "api.openai.com" else None)
    if name is None:
        return "none"
    if not os.environ.get(name):
        raise EndpointError(f"{base_url} needs a key, and the environment has no {name}; set it, or name another variable: key_env")
    return os.environ[name]


def _mapping(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise TypeError(f"no object: {str(found)[:40]!r}")
    return found


def _body(question: Question, sample: int, sampling: Sampling, model: str) -> dict[str, Any]:
    """The request: settings that are at their defaults are left to the server, which may not know them."""
    told = {"top_p": sampling.top_p if sampling.top_p < 1 else None, "top_k": sampling.top_k, "min_p": sampling.min_p or None}
    asked: dict[str, Any] = {"model": model, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature,
                             "seed": (question.seed + sample) % 2**31}  # fmt: skip
    asked |= {name: value for name, value in told.items() if value is not None}
    if question.messages is None:
        return {**asked, "prompt": str(question.row["prompt"])}
    tools = {"tools": question.row["tools"]} if question.row.get("tools") else {}
    return {**asked, "messages": question.messages, **tools}


def _read(choice: dict[str, Any]) -> Answer:
    """An answer of a choice. Raises KeyError, TypeError or ValueError for one that is not whole."""
    finish = FINISH[choice["finish_reason"]]
    message: dict[str, Any] = choice["message"] if "message" in choice else {"content": choice["text"]}
    calls = message.get("tool_calls") or []
    content = message.get("content")
    if not isinstance(content, str) and not (content is None and (calls or finish == "filter")):
        raise ValueError(f"content is {type(content).__name__}")
    apart = message.get("reasoning_content") or message.get("reasoning") or ""
    reasoning, text = (apart, content or "") if apart else parted(content or "")
    return Answer(text, finish, reasoning, list(calls))
