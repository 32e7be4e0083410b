"""How weights go to vLLM: which way, and what is told of them. A real vLLM takes them in tests/test_vllm.py."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import toys

import limbeck as lb
from limbeck import handover
from limbeck.errors import EndpointError, RecipeError
from limbeck.handover import Folder, Transfer, Weights, way
from limbeck.vllms import AllAtOnce


class Told:
    """A vLLM that says how it was started. `worlds` and `host` as the transfer asks for them."""

    host, worlds = "127.0.0.1", [1]

    def __init__(self, backend: str | None) -> None:
        self.backend = backend


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_told_of_weights_is_what_comes(tied: bool, tmp_path: Path) -> None:
    """Names, dtypes and shapes in the order of the weights, which are those of a folder; a head that is the embedding is there twice."""
    folder = toys.folder(tmp_path / "model", rows=258, seed=0, tie_word_embeddings=tied)
    student = lb.Student(folder, dtype="bfloat16").load(1)
    told, came = Weights(student).metadata(), list(Weights(student))
    assert [(each.name, each.dtype, each.shape) for each in told] == [(name, weight.dtype, tuple(weight.shape)) for name, weight in came]
    assert {each.dtype for each in told} == {torch.bfloat16}
    (tmp_path / "handed").mkdir()
    student.hand_over(tmp_path / "handed")
    again = lb.Student(str(tmp_path / "handed"), dtype="float32").load(1)
    assert not again.live.causal.config.tie_word_embeddings
    assert {name: weight.float().sum().item() for name, weight in came} == {name: float(weight.sum()) for name, weight in again.handed()}
    assert student.live.causal.config.tie_word_embeddings is tied


def test_the_way_is_the_one_that_vllm_was_started_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder: Any = Folder(tmp_path / "weights")
    model = toys.folder(tmp_path / "model", rows=258, seed=0)
    student, adapted = lb.Student(model).load(1), lb.Student(model, lora=lb.LoRA(rank=2)).load(1)
    assert way(student, Told(None), folder) is folder  # pyright: ignore[reportArgumentType]
    assert way(adapted, Told("nccl"), folder) is folder  # pyright: ignore[reportArgumentType]
    with pytest.raises(RecipeError, match="the student is on none; start it without"):
        way(student, Told("nccl"), folder)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RecipeError, match="by sharded_rdt; start it with nccl or ipc"):
        way(student, Told("sharded_rdt"), folder)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(handover, "on_gpu", lambda: True)
    monkeypatch.setattr(Transfer, "_begun", staticmethod(lambda student, vllm: f"{vllm.backend} begun"))
    found: Any = way(student, Told("ipc"), folder)  # pyright: ignore[reportArgumentType]
    assert found._engine == "ipc begun"


def test_what_stands_in_the_way_of_a_transfer_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(student: Any, vllm: Any) -> None:
        raise RuntimeError("NCCL error:\n  unhandled system error")

    monkeypatch.setattr(Transfer, "_begun", staticmethod(broken))
    with pytest.raises(EndpointError, match=r"by nccl \(RuntimeError: NCCL error: unhandled system error\); see to it, or start vLLM without"):
        Transfer(lb.Student(toys.folder(tmp_path / "model", rows=258, seed=0)), Told("nccl"))  # pyright: ignore[reportArgumentType]


def test_several_servers_are_called_at_once_and_their_workers_numbered_apart() -> None:
    """A broadcast begins when everybody is there: calls that came one after the other would wait for ever."""
    everybody, heard = threading.Barrier(3), list[tuple[int, str, Any]]()

    class Client:
        def __init__(self, number: int) -> None:
            self.number = number

        def __getattr__(self, name: str) -> Any:
            return lambda *given: (everybody.wait(timeout=10), heard.append((self.number, name, *(given or (None,)))))

    servers = AllAtOnce([Client(number) for number in range(3)], [2, 1, 4])
    servers.init_weight_transfer_engine({"rank_offset": 1, "world_size": 8})
    assert sorted((number, given["rank_offset"]) for number, _, given in heard) == [(0, 1), (1, 3), (2, 4)]
    heard.clear()
    servers.start_weight_update()
    servers.update_weights({"names": ["a"]})
    servers.finish_weight_update()
    assert sorted(heard, key=str) == sorted(
        ((number, name, given) for number in range(3) for name, given in (
            ("start_weight_update", None), ("update_weights", {"names": ["a"]}), ("finish_weight_update", None))), key=str)  # fmt: skip
