"""Calls to an OpenAI-compatible server: many at once, tried again where that helps, none answered twice."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar
from urllib.parse import urlsplit

from limbeck.answers import Answer, Bill, Draw, Finish, Given, Purse, Question, Told, arithmetic, parted
from limbeck.balance import Place, Places
from limbeck.decoding import Sampling
from limbeck.errors import EndpointError, LimbeckError, did_you_mean
from limbeck.interrupt import in_force

T = TypeVar("T")
R = TypeVar("R")

FINISH: dict[str, Finish] = {"stop": "end", "length": "length", "tool_calls": "tools", "content_filter": "filter"}
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""Statuses that may be others a moment later."""
LOOK_SECONDS = 0.1
"""So often those who wait for calls look whether they are to stop."""


class Server:
    """A server by its base URL (up to /v1) and the name of a model on it; or several of the same model, between which calls are balanced.

    key_env: the environment variable with the key; none is needed on this machine. seconds: for one call. tries: of one
    call; between them it waits as long as the server asks, else `wait_seconds`, doubled each time, up to a minute.
    usd_in, usd_out: US dollars for a million tokens. parameters: of the model, for FLOPs. A response that is cut, malformed or
    of another model counts as failed.
    """

    def __init__(self, base_url: str | Sequence[str], model: str, key_env: str | None = None, concurrency: int = 8, seconds: float = 120.0,
                 tries: int = 8, usd_in: float = 0.0, usd_out: float = 0.0, parameters: float = 0.0, wait_seconds: float = 0.5) -> None:  # fmt: skip
        urls = [url.rstrip("/") for url in ([base_url] if isinstance(base_url, str) else base_url)]
        self.base_url, self.model, self.concurrency, self.tries = " and ".join(urls), model, concurrency, tries
        self.usd_in, self.usd_out, self.parameters, self.wait_seconds = usd_in, usd_out, parameters, wait_seconds
        self._reported: str | None = None
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._places = Places([Place(url, _client(url, _key(url, key_env), seconds)) for url in urls])

    @property
    def places(self) -> Sequence[Place]:
        """Each server by itself."""
        return self._places.all

    def get(self, path: str, place: Place | None = None) -> dict[str, Any]:
        """What a server says of itself: a certain one, or whichever answers."""
        places = self._places if place is None else Places([place])
        return self._call(lambda client: client.get(f"/{path}", cast_to=object), f"GET {path}", _mapping, places)

    def see_served(self) -> int | None:
        """Tokens that fit into the context, where the servers say so: the fewest. Raises EndpointError where one has no such model."""
        found = [self._served(place) for place in self.places]
        return min((each for each in found if each is not None), default=None)

    def _served(self, place: Place) -> int | None:
        served = {str(each.get("id")): each for each in self.get("models", place).get("data", [])}
        if self.model not in served:
            raise EndpointError(f'{place.url} does not serve "{self.model}"{did_you_mean(self.model, served)}')
        return served[self.model].get("max_model_len")

    def post(self, path: str, body: dict[str, Any], read: Callable[[Any], Any] = lambda found: found) -> Any:
        """One call. `read` takes what is wanted of the response, and raises ValueError, KeyError or TypeError where it is malformed."""
        return self._call(lambda client: client.post(f"/{path}", cast_to=object, body=body), f"POST {path}", lambda found: read(_mapping(found)),
                          self._places)  # fmt: skip

    def _call(self, send: Callable[[Any], Any], what: str, read: Callable[[Any], Any], places: Places) -> Any:
        import openai

        why = "nothing"
        for tried in range(1, self.tries + 1):
            place, failed = places.take(), True
            try:
                found = read(send(place.client))
                failed = False
                return found
            except openai.APIStatusError as error:
                if error.status_code not in AGAIN:
                    failed = False  # it lives, and says no
                    raise EndpointError(self._refused(place, error.status_code, error.response.text, what)) from None
                why, asked = f"status {error.status_code}", error.response.headers.get("retry-after")
            except (openai.APIConnectionError, openai.APIResponseValidationError) as error:
                why, asked = type(error.__cause__ or error).__name__, None
            except LimbeckError:
                raise
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                why, asked = f"a malformed response ({type(error).__name__}: {str(error)[:80]})", None
            finally:
                places.give_back(place, failed)
            if self._closing.is_set() or tried == self.tries:
                break
            if places.none_lives:
                self._closing.wait(self._pause(tried, asked))
        raise EndpointError(f"{self.base_url} did not answer {what} in {self.tries} tries, the last time with {why}; see to the server, and give "
                            "the same command again: what was answered is kept")  # fmt: skip

    def _pause(self, tried: int, asked: str | None) -> float:
        if asked is not None and asked.replace(".", "", 1).isdecimal():
            return float(asked)
        return min(60.0, self.wait_seconds * 2 ** (tried - 1)) * random.uniform(0.5, 1.0)

    def _refused(self, place: Place, status: int, text: str, what: str) -> str:
        said = " ".join(text.split())[:160]
        match status:
            case 401 | 403:
                return f"{place.url} refuses the key (status {status}); set the right one in the environment, and name it: key_env"
            case 404:
                return f'{place.url} has no {what} for "{self.model}"{self._models(place)}'
            case _:
                return f"{place.url} refuses {what} with status {status}: {said}; mend the request"

    def _models(self, place: Place) -> str:
        """What it does serve, as far as it tells."""
        import openai

        try:
            found: Any = place.client.get("/models", cast_to=object)
            return did_you_mean(self.model, [str(each["id"]) for each in found["data"]])
        except (openai.OpenAIError, KeyError, TypeError):
            return "; see to base_url and model"

    def each(self, jobs: Iterable[T | None], work: Callable[[T], R], stop: Callable[[], bool] = lambda: False) -> Iterator[tuple[T, R]]:
        """Do jobs side by side, each result as it comes. Jobs are taken as there is room; None says that there is none until a result has come.

        Where one fails, no more are begun, those under way are given, and then the failure is raised. stop: the same without a
        failure, from when it is true on; then nothing is tried again either, and what fails so is not told.
        """
        self._closing.clear()
        waiting, failed, going = iter(jobs), list[BaseException](), dict[Future[R], T]()
        try:
            while True:
                if stopping := stop():
                    self._closing.set()
                while not failed and not stopping and len(going) < self.concurrency and (job := next(waiting, None)) is not None:
                    going[_begun(work, job)] = job
                if not going:
                    break
                for done in wait(going, LOOK_SECONDS, FIRST_COMPLETED).done:
                    job = going.pop(done)
                    if (error := done.exception()) is not None:
                        failed.append(error)
                    else:
                        yield job, done.result()
        finally:
            self._closing.set()  # nobody waits for another try of what nobody will hear
        if failed and not stopping:
            raise failed[0]

    def answers(self, questions: Iterable[Question], sampling: Sampling, purse: Purse, told: Told = lambda tokens: None) -> Iterator[Given]:
        """Answer each question as often as it wants, one call an answer; ends early when the purse refuses.

        A signal waits for the calls under way, which are paid for. Raises EndpointError where there is a limit and no price is
        known in its unit, or the server reports another model on the way.
        """
        self._see_priced(purse)
        with (interrupts := in_force()).held():
            draws = purse.afford((draw, draw.worst) for draw in self._draws(questions, sampling))
            for draw, (answer, bill) in self.each(draws, lambda draw: self._answer(draw, sampling), lambda: interrupts.asked is not None):
                purse.settle(draw.worst, bill)
                told(bill.completion_tokens)
                yield Given(draw.question, draw.sample, answer, bill)

    def _see_priced(self, purse: Purse) -> None:
        priced, sized = purse.limit_usd is not None and (self.usd_in or self.usd_out), purse.limit_flops is not None and self.parameters
        if purse.limits and not priced and not sized:
            needs = "the price of {}; give usd_in and usd_out for a million tokens" if purse.limit_usd else "the size of {}; give its parameters"
            raise EndpointError(f"a budget ({purse.limits}) needs {needs.format(self.model)}")

    def _draws(self, questions: Iterable[Question], sampling: Sampling) -> Iterator[Draw]:
        """What is to be asked, and what it may cost: a prompt has no more tokens than bytes, and a few for its frame."""
        for question in questions:
            size = len(str(question.messages or question.row["prompt"]).encode()) + 64
            worst = self._bill(size, sampling.max_tokens)
            yield from (Draw(question, sample, worst) for sample in question.samples)

    def _bill(self, read: int, written: int, seconds: float = 0.0) -> Bill:
        usd = (self.usd_in * read + self.usd_out * written) / 1e6
        return Bill(read, written, usd, arithmetic(self.parameters, read + written), seconds)

    def _answer(self, draw: Draw, sampling: Sampling) -> tuple[Answer, Bill]:
        question = draw.question
        body = _body(question, draw.sample, sampling, self.model)
        began = time.monotonic()

        def read(found: dict[str, Any]) -> tuple[Answer, int, int]:
            (choice,) = found["choices"]
            self._same_model(str(found["model"]))
            return _read(choice), int(found["usage"]["prompt_tokens"]), int(found["usage"]["completion_tokens"])

        answer, asked, written = self.post("completions" if question.messages is None else "chat/completions", body, read)
        return answer, self._bill(asked, written, time.monotonic() - began)

    def _same_model(self, reported: str) -> None:
        with self._lock:
            self._reported = self._reported or reported
            if reported != self._reported:
                raise EndpointError(f"{self.base_url} answered as {self._reported}, and now as {reported}: two teachers under one name; "
                                    "name one version as the model")  # fmt: skip


def _begun(work: Callable[[T], R], job: T) -> "Future[R]":
    """A job in a thread of its own, for which the end of the process does not wait: a second signal ends it at once."""
    future = Future[R]()

    def run() -> None:
        try:
            future.set_result(work(job))
        except BaseException as error:  # whatever it is, somebody waits for it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


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


def drawn(sampling: Sampling) -> dict[str, Any]:
    """How tokens are drawn, as servers name it; what is at its default is left out."""
    told = {"top_p": sampling.top_p if sampling.top_p < 1 else None, "top_k": sampling.top_k, "min_p": sampling.min_p or None}
    return {"temperature": sampling.temperature, **{name: value for name, value in told.items() if value is not None}}


def _body(question: Question, sample: int, sampling: Sampling, model: str) -> dict[str, Any]:
    """The request: settings that are at their defaults are left to the server, which may not know them."""
    asked: dict[str, Any] = {"model": model, "max_tokens": sampling.max_tokens, **drawn(sampling),
                             "seed": (question.seed + sample) % 2**31}  # fmt: skip
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
