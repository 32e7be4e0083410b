"""What the ranks of a job have in common, and how a model lies on them. One process is a job of one rank.

`accelerate launch` or `torchrun` start the ranks. Each has a copy of the models (DDP), or, where FSDP is asked for
(`accelerate launch --use_fsdp --fsdp_version 2`), a share of each layer (FSDP2).
"""

import os
import re
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar, cast

from limbeck.batch import Batch
from limbeck.errors import LimbeckError
from limbeck.interrupt import Interrupted, in_force
from limbeck.lazy import Tensor, torch

T = TypeVar("T")


def start() -> None:
    """Join the other ranks, where a launcher started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or torch.distributed.is_initialized():
        return
    from accelerate import PartialState

    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise LimbeckError("FSDP 1 was asked for, and only FSDP 2 is known; give accelerate launch --fsdp_version 2")
    try:
        PartialState()
    except torch.distributed.DistNetworkError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if "EADDRINUSE" in str(error):
            raise LimbeckError(f"the processes cannot meet at {place}, which is in use; set another MASTER_PORT") from None
        raise LimbeckError(f"the processes cannot meet at {place} ({_first_line(error)}); see to MASTER_ADDR and MASTER_PORT") from None


def leave(code: int = 0) -> None:
    """Part from the other ranks, at the end of all, and end the process; alone, do nothing."""
    if _is_started():
        try:
            wait()  # nobody goes while another needs them; the group is not taken down, which aborts the process now and then
        except RuntimeError as error:  # whoever is gone already needs nobody
            if not is_lost(error):
                raise
    break_off(code)


def break_off(code: int) -> None:
    """End the process without a word to the other ranks, who will see it; alone, do nothing.

    At once: threads of gloo's abort the interpreter's own end now and then, when all is done. Only the first, who without torchrun keeps
    the place where the others ask whether they are to speak, waits a moment after a failure.
    """
    if _is_started():
        if code == 2 and not rank() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(2)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def speaks() -> bool:
    """Whether it is for this rank to say what ends the job: for the first that asks, since the others fail by it."""
    if not _is_started():
        return os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        return torch.distributed.distributed_c10d._get_default_store().add("limbeck/said", 1) == 1
    except RuntimeError:  # where the ranks met there is nobody any more
        return True


LOST = r"[Cc]onnection (closed|reset|refused)|Broken pipe|[Tt]imed out|heartbeat|remote process (has )?(exited|terminated)|unhandled system error"
"""How gloo and NCCL say that a rank does not answer."""


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another rank is gone."""
    return ranks() > 1 and isinstance(error, RuntimeError) and re.search(LOST, str(error)) is not None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]


def _is_started() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and torch.distributed.is_initialized()


def rank() -> int:
    """Which of the ranks this is."""
    return torch.distributed.get_rank() if _is_started() else 0


def ranks() -> int:
    """How many there are."""
    return torch.distributed.get_world_size() if _is_started() else 1


def is_sharded() -> bool:
    """Whether each rank is to hold a share of the models only."""
    return ranks() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Each value summed over all ranks, in float64."""
    if ranks() == 1:
        return list(values)
    from limbeck.machine import device

    total = torch.tensor(values, dtype=torch.float64, device=device())
    torch.distributed.all_reduce(total)
    return total.tolist()


def gathered(value: T) -> list[T]:
    """What each rank has, in their order."""
    if ranks() == 1:
        return [value]
    found: list[Any] = [None] * ranks()
    torch.distributed.all_gather_object(found, value)
    return found


def first_says(value: T) -> T:
    """What the first rank has; the others only ask."""
    return gathered(value if rank() == 0 else cast(T, None))[0]


def agree() -> None:
    """Stop here, on all ranks, if any of them was asked to. Alone, the signal itself has seen to it."""
    if ranks() == 1:
        return
    from limbeck.machine import device

    asked = torch.tensor(in_force().asked or 0, device=device())
    torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
    if asked:
        raise Interrupted(int(asked))


def ended_together(lend: Callable[[Callable[[Any], Any]], Any], work: Callable[[Any], T]) -> T:
    """Lend a model for work that each rank does by itself, as writing is; one that is asked to stop does so, and then all do."""
    if ranks() == 1:
        return lend(work)

    def attempt(model: Any) -> T | None:
        try:
            return work(model)
        except Interrupted:  # told to the others below
            return None

    found = lend(attempt)
    agree()
    return cast(T, found)


def wait() -> None:
    """Go on when all ranks are here."""
    gathered(None)


def evenly(parts: list[Batch], batch: Batch) -> list[Batch]:
    """As many parts of the batch on every rank, empty ones too: the ranks meet in every pass. What was said already is said of none, too."""
    most = max(gathered(len(parts)))
    return parts + [batch.select([])] * (most - len(parts))


class Passes:
    """A model's passes, each made as one forward of a module, so that whoever copies or shards it has it whole when it is needed.

    whole: on every rank even where shares are asked for: weights of 4 or 8 bits, and those that lie elsewhere, cannot be cut.
    """

    def __init__(self, model: Any, learns: bool, whole: bool = False) -> None:
        self._module: Any = _wrapped(model)
        self._copies: Any = None
        self._learns, self._shares = learns, is_sharded() and not whole
        if self._shares:
            _shard(self._module, model)
        elif ranks() > 1 and learns:
            self._copies = torch.nn.parallel.DistributedDataParallel(self._module, forward_sync_buffers=False)

    def join(self, other: Any) -> None:
        """Have another module learn with the model, before the first pass: in its copies, or sharded, each of its linear maps by itself."""
        if self._shares:
            from torch.distributed.fsdp import fully_shard

            for each in [each for each in other.modules() if isinstance(each, torch.nn.Linear)]:
                fully_shard(each)
        self._module.other = other
        if self._copies is not None:
            self._copies = None  # lets go of the weights first
            self._copies = torch.nn.parallel.DistributedDataParallel(self._module, forward_sync_buffers=False)

    def run(self, work: Callable[[Any], T]) -> T:
        """Do something with the model."""
        found = self._module(work)
        if self._shares and self._learns:  # the group of embedding and head stays whole without a backward pass, and would miss the next step
            self._module.reshard()
        return found

    def run_whole(self, work: Callable[[Any], T]) -> T:
        """Do something with the model, all its weights here: as in writing, whose passes differ between ranks."""

        def all_here(model: Any) -> T:
            with self._whole():
                return work(model)

        return self.run(all_here)

    def learn(self, work: Callable[[Any], tuple[Tensor, T]], last: bool) -> T:
        """Do something that gives a loss first, and its backward pass; ranks average their gradients, copies in the `last` pass of a step."""
        copies = self._copies
        with copies.no_sync() if copies is not None and not last else nullcontext():
            loss, other = (copies or self._module)(work)
            loss.backward()
        return other

    @contextmanager
    def _whole(self) -> Generator[None]:
        if not self._shares:
            yield
            return
        shards = [each for each in self._module.modules() if hasattr(each, "unshard")]
        for each in shards:
            each.set_reshard_after_forward(False, recurse=False)
            each.unshard()
        try:
            yield
        finally:
            for each in shards:
                each.reshard()
                each.set_reshard_after_forward(each is not self._module, recurse=False)


def _wrapped(model: Any) -> Any:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = model.module

        def forward(self, work: Callable[[Any], Any]) -> Any:
            return work(model)

    return Wrapped()


def _shard(module: Any, model: Any) -> None:
    """Shard each layer by itself; embedding, head and all the rest are one group, whole from a pass's beginning to its end.

    Where the arithmetic is narrower than the weights, layers are gathered narrow, which is half the bytes and leaves no
    copy of autocast's behind; gradients are summed in float32. Adapters are folded into whole weights, which are gathered as they are.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    weights = list(model.causal.parameters())
    narrow = all(weight.requires_grad and weight.dtype == torch.float32 for weight in weights) and model.compute != torch.float32
    policy = (
        MixedPrecisionPolicy(param_dtype=model.compute, reduce_dtype=torch.float32, cast_forward_inputs=False) if narrow else MixedPrecisionPolicy()
    )
    layers = set(getattr(model.causal, "_no_split_modules", None) or [])
    for each in list(model.causal.modules()):
        if type(each).__name__ in layers:
            fully_shard(each, reshard_after_forward=True, mp_policy=policy)
    fully_shard(module, reshard_after_forward=False)


def is_share(tensor: Tensor) -> bool:
    """Whether a tensor is one of which each rank holds a share."""
    return hasattr(tensor, "full_tensor")


def whole_tensor(tensor: Any) -> Tensor:
    """All of a tensor, of which this rank may hold a share; every rank must ask."""
    return tensor.full_tensor() if is_share(tensor) else tensor


def room_like(known: Tensor, like: Any) -> Tensor:
    """Room for a tensor of this shape and dtype, laid out as `like` is where that has its shape."""
    if like is not None and known.shape == like.shape:
        return torch.empty_like(like, dtype=known.dtype, requires_grad=False)
    return torch.empty(known.shape, dtype=known.dtype, device="cpu" if not known.ndim or like is None else like.device)
