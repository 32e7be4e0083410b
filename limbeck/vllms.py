"""vLLM as it writes for us: on servers, or inside this process. What is told them is vLLM's own interface; nothing here knows a student."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Protocol
from urllib.parse import urlsplit

from limbeck.balance import Place
from limbeck.decoding import Sampling, Written
from limbeck.errors import EndpointError, LimbeckError, RecipeError
from limbeck.server import Server, drawn
from limbeck.vocabulary import PROBE_TEXT, Vocabulary

HERE = {"127.0.0.1", "localhost", "::1"}
"""Hosts that are this machine, and see its folders."""
FORGETS = 10
"""So often a server is asked to forget prompts: it cannot while the last calls are being put away."""


class Vllm(Protocol):
    """What a vLLM does for us, wherever it runs."""

    @property
    def backend(self) -> str | None:
        """By what it was started to take weights from a trainer's memory, in vLLM's word for it; None: it was not."""
        ...

    @property
    def host(self) -> str:
        """This machine, as its workers reach it."""
        ...

    @property
    def worlds(self) -> list[int]:
        """How many workers there are, on each server."""
        ...

    def client(self) -> Any:
        """What the trainer's side of vLLM's transfer speaks with: vLLM's `VLLMWeightSyncClient`."""
        ...

    def take(self, folder: str) -> None:
        """Take in the weights of a folder."""
        ...

    def forget(self) -> None:
        """Forget what it remembers of prompts."""
        ...

    def complete(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], ends: Sequence[int]) -> list[Written]:
        """Complete prompts."""
        ...


class Served:
    """vLLM as servers of one model. seconds: for one call."""

    def __init__(self, urls: Sequence[str], model: str, vocabulary: Vocabulary, concurrency: int, seconds: float) -> None:
        self.server, self.seconds = Server(list(urls), model, concurrency=concurrency, seconds=seconds), seconds
        self.model, self.longest = model, self.server.see_served()
        self._prove(vocabulary)
        self.backend = self._backend()

    def _prove(self, vocabulary: Vocabulary) -> None:
        """See that a server cuts a text as the student does, and tells token ids."""
        body = {"model": self.model, "prompt": PROBE_TEXT, "max_tokens": 1, "return_token_ids": True, "add_special_tokens": False}
        theirs = self.server.post("completions", body, lambda found: found["choices"][0]["prompt_token_ids"])
        if theirs != vocabulary.ids(PROBE_TEXT):
            raise EndpointError(
                f"{self.server.base_url} ({self.model}) cuts a text into other tokens than the student does; serve the student's own model"
            )

    def _backend(self) -> str | None:
        """As all of them were started. Raises EndpointError where they differ."""
        found = {place.url: _backend_of(place) for place in self.server.places}
        if len(set(found.values())) > 1:
            said = ", ".join(f"{url}: {backend or 'none'}" for url, backend in found.items())
            raise EndpointError(f"servers were started to take weights in different ways ({said}); start all with one --weight-transfer-config")
        return next(iter(found.values()))

    @property
    def host(self) -> str:
        """This machine, as its workers reach it."""
        from vllm.utils.network_utils import get_ip  # pyright: ignore[reportMissingImports]

        hosts = {urlsplit(place.url).hostname for place in self.server.places}
        return "127.0.0.1" if hosts <= HERE else get_ip()

    @cached_property
    def worlds(self) -> list[int]:
        """How many workers there are, on each server; asked once."""
        found = [place.ask("get_world_size") for place in self.server.places]
        if silent := [place.url for place, said in zip(self.server.places, found, strict=True) if not said]:
            raise EndpointError(f"{silent[0]} does not say how many workers it has; see that it runs, with VLLM_SERVER_DEV_MODE=1")
        return [int(said["world_size"]) for said in found if said]

    def client(self) -> Any:
        """All servers as one, each of whose workers has a rank of its own."""
        from vllm.distributed.weight_transfer import HTTPVLLMWeightSyncClient  # pyright: ignore[reportMissingImports]

        return AllAtOnce([HTTPVLLMWeightSyncClient(place.root, timeout=self.seconds) for place in self.server.places], self.worlds)

    def take(self, folder: str) -> None:
        """Every server; each must be in its development mode, where it can be told to."""
        for place in self.server.places:
            if why := place.tell("collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}}):
                raise EndpointError(
                    f"{place.url} did not take in the weights in {folder} ({why}); start it with VLLM_SERVER_DEV_MODE=1, and give a folder "
                    "that it sees by this path: VLLM(folder=...)"
                )

    def forget(self) -> None:
        """Every server."""
        for place in self.server.places:
            if why := _forgotten(place):
                raise EndpointError(f"{place.url} does not forget the prompts that it remembers ({why}); start it with VLLM_SERVER_DEV_MODE=1")

    def complete(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], ends: Sequence[int]) -> list[Written]:
        """Many calls side by side."""
        found = dict(self.server.each(range(len(prompts)), lambda n: self._one(prompts[n], sampling, seeds[n], ends)))
        return [found[n] for n in range(len(prompts))]

    def _one(self, prompt: list[int], sampling: Sampling, seed: int, ends: Sequence[int]) -> Written:
        room = _room(sampling, self.longest, prompt)
        body = {"model": self.model, "prompt": prompt, "max_tokens": room, "seed": seed, "logprobs": 0, "return_token_ids": True,
                "stop_token_ids": list(ends), **drawn(sampling)}  # fmt: skip
        return self.server.post("completions", body, lambda found: _written(found["choices"][0]))


class AllAtOnce:
    """Several servers as one `VLLMWeightSyncClient`: each call goes to all of them at once, as a broadcast waits for everybody in it."""

    def __init__(self, clients: Sequence[Any], worlds: Sequence[int]) -> None:
        self.clients, self.before = clients, [sum(worlds[:n]) for n in range(len(worlds))]

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Where workers have ranks, those of a server come after those of the servers before it."""
        ranked = [{**init_info, "rank_offset": init_info["rank_offset"] + before} if "rank_offset" in init_info else init_info
                  for before in self.before]  # fmt: skip
        self._each("init_weight_transfer_engine", ranked)

    def start_weight_update(self) -> None:
        """See vLLM's."""
        self._each("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        """See vLLM's."""
        self._each("update_weights", [update_info] * len(self.clients))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """See vLLM's."""
        self._each("finish_weight_update")

    def _each(self, what: str, given: Sequence[Any] | None = None) -> None:
        with ThreadPoolExecutor(len(self.clients)) as at_once:
            calls = [at_once.submit(getattr(client, what), *([] if given is None else [given[n]])) for n, client in enumerate(self.clients)]
            for call in calls:
                call.result()


def _backend_of(place: Place) -> str | None:
    """What a server in its development mode says of its transfer."""
    said = place.ask("server_info?config_format=json") or {}
    config = said.get("vllm_config")
    transfer = config.get("weight_transfer_config") if isinstance(config, dict) else None
    return transfer.get("backend") if isinstance(transfer, dict) else None


def _forgotten(place: Place) -> str | None:
    """Have a server forget prompts; None where it did, else why not."""
    why = None
    for _ in range(FORGETS):
        if (why := place.tell("reset_prefix_cache")) is None:
            return None
        time.sleep(0.1)
    return why


def _room(sampling: Sampling, longest: int | None, prompt: list[int]) -> int:
    """How many tokens may follow a prompt."""
    room = sampling.max_tokens if longest is None else min(sampling.max_tokens, longest - len(prompt))
    if room < 1:
        raise EndpointError(f"vLLM was started for {longest} tokens, and a prompt has {len(prompt)}; start it with a larger --max-model-len, "
                            "or lower max_prompt")  # fmt: skip
    return room


def _written(choice: dict[str, Any]) -> Written:
    """A completion with the nats of its tokens. Raises ValueError where they do not fit each other."""
    made = Written()
    made.tokens, made.logp = [int(each) for each in choice["token_ids"]], [float(each) for each in choice["logprobs"]["token_logprobs"]]
    if len(made.tokens) != len(made.logp) or not made.tokens:
        raise ValueError(f"{len(made.tokens)} tokens, {len(made.logp)} log-probabilities")
    return made


class Inside:
    """vLLM in this process, opened with the first weights. options: of `vllm.LLM`."""

    host, worlds = "127.0.0.1", [1]

    def __init__(self, dtype: str, options: dict[str, Any]) -> None:
        try:
            import vllm  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise RecipeError(
                "vLLM is not installed here; pip install 'limbeck[vllm]', or start servers and name them: VLLM(servers=[URL], model=NAME)"
            ) from None
        self.vllm: Any = vllm
        self.dtype, self.options, self.llm = dtype, options, None

    @property
    def backend(self) -> str | None:
        """None as long as it is not open: the first weights are those that it is opened with."""
        transfer = self.llm and self.llm.llm_engine.vllm_config.weight_transfer_config
        return transfer.backend if transfer else None

    def client(self) -> Any:
        """The same, as the trainer's side calls it."""
        return _Called(self.llm)

    def take(self, folder: str) -> None:
        """The first time it is opened with them."""
        if self.llm is None:
            if (self.options.get("weight_transfer_config") or {}).get("backend") == "ipc":
                os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # handles of memory cross to vLLM's own process, which we begin
            self.llm: Any = self.vllm.LLM(model=folder, dtype=self.dtype, generation_config="vllm", **self.options)
        else:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})

    def forget(self) -> None:
        """Raises LimbeckError where it does not."""
        if not self.llm.reset_prefix_cache():
            raise LimbeckError("vLLM does not forget the prompts that it remembers; open it with options={'enable_prefix_caching': False}")

    def complete(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], ends: Sequence[int]) -> list[Written]:
        """All in one call."""
        longest: int = self.llm.llm_engine.model_config.max_model_len
        settings = {"logprobs": 0, "stop_token_ids": list(ends), **drawn(sampling)}
        rooms = [_room(sampling, longest, prompt) for prompt in prompts]
        asked = [self.vllm.SamplingParams(max_tokens=room, seed=seed, **settings) for room, seed in zip(rooms, seeds, strict=True)]
        found = self.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], asked, use_tqdm=False)
        return [self._read(each.outputs[0]) for each in found]

    @staticmethod
    def _read(output: Any) -> Written:
        made = Written()
        made.tokens = list(output.token_ids)
        made.logp = [float(said[token].logprob) for token, said in zip(made.tokens, output.logprobs, strict=True)]
        return made


class _Called:
    """A `vllm.LLM` as a `VLLMWeightSyncClient`: it takes the same in wrappings."""

    def __init__(self, llm: Any) -> None:
        self.start_weight_update, self.finish_weight_update = llm.start_weight_update, llm.finish_weight_update
        self.init_weight_transfer_engine = lambda init_info: llm.init_weight_transfer_engine({"init_info": init_info})
        self.update_weights = lambda update_info: llm.update_weights({"update_info": update_info})
