"""Toy caches: how they are filled, what stands in them, who was asked; and bits turned over."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import toys

from limbeck.annotate import Annotation, annotate, verify
from limbeck.cache import Cache
from limbeck.data import Data
from limbeck.keep import ENTROPY_STEP, LOG_P_STEP, LOGSUMEXP_STEP
from limbeck.teachers import Local

ROWS = 48
Whole = Callable[..., Path]


@contextmanager
def small_pieces() -> Iterator[None]:
    """Several shards of few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.annotate.PIECE_ROWS", 16)
        patch.setattr("limbeck.annotate.PILOT_ROWS", 4)
        yield


def furnish(home: Path) -> dict[str, str]:
    """Toy models and text."""
    rows = toys.rows(ROWS)
    return {
        "student": toys.folder(home / "student", seed=1, width=16),
        "teacher": toys.folder(home / "teacher", seed=2, width=16, sharp=8.0),
        "data": toys.jsonl(home / "data.jsonl", rows),
        "some": toys.jsonl(home / "some.jsonl", rows[30:4:-2]),
        "heldout": toys.jsonl(home / "heldout.jsonl", toys.rows(10, seed=2)),
        "unseen": toys.jsonl(home / "unseen.jsonl", [{"prompt": "never", "completion": "seen"}, *rows]),
    }


def asking(toy: dict[str, str], keep: str = "sampled:50", **more: Any) -> Annotation:
    return Annotation(Local(toy["teacher"], dtype="float32"), Data(toy["data"]), keep, **more)


def fill_once(home: Path, toy: dict[str, str]) -> Callable[[str], Path]:
    """A cache that nothing befell, by what is kept; with held-out text."""
    made = dict[str, Path]()

    def cache(keep: str) -> Path:
        if keep not in made:
            made[keep] = home / keep.replace(":", "-")
            annotate(asking(toy, keep, held_out=Data(toy["heldout"])), made[keep])
        return made[keep]

    return cache


def stored(out: Path) -> list[dict[str, Any]]:
    """Every row in every shard that should be there, by key; a row that is there twice is here twice."""
    shards = Cache.open(out).shards
    rows = [row for name in shards.entered() for row in pq.read_table(out / "shards" / name).to_pylist()]
    return sorted(rows, key=lambda row: row["key"])


STEPS = {"entropy": ENTROPY_STEP, "logsumexp": LOGSUMEXP_STEP, "log_tail": LOG_P_STEP}


def same_rows(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Each row once, and alike: the same outcomes, and numbers to a step, since a pass of other sequences rounds otherwise."""
    assert [row["key"] for row in found] == [row["key"] for row in wanted] and len({row["key"] for row in wanted}) == len(wanted)
    for row, other in zip(found, wanted, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            if isinstance(value, bytes) and name != "key":
                dtype = np.float16 if name == "log_p" else np.float32
                np.testing.assert_allclose(np.frombuffer(value, dtype), np.frombuffer(other[name], dtype), rtol=2e-3, atol=1e-5)
            elif name in STEPS:
                np.testing.assert_allclose(value, other[name], rtol=0, atol=1.001 * STEPS[name])
            elif name in ("ids", "drops"):
                same_likeliest(row, other)
            else:
                assert value == other[name], name


def same_likeliest(row: dict[str, Any], other: dict[str, Any]) -> None:
    """The same outcomes, each within a step; two that are almost as likely may change places."""
    for each in (row, other):
        assert len(each["ids"]) == len(each["drops"])
    pieces = [np.split(np.array(each[name]), len(each["log_tail"])) for each in (row, other) for name in ("ids", "drops")]
    for ids, drops, other_ids, other_drops in zip(*pieces, strict=True):
        here, there = (dict(zip(i.tolist(), d.cumsum().tolist(), strict=True)) for i, d in ((ids, drops), (other_ids, other_drops)))
        assert here.keys() == there.keys() and max(abs(here[i] - there[i]) for i in here) <= 1


def everything(out: Path) -> dict[bytes, dict[str, bytes]]:
    """All that a reader reads."""
    cache = Cache.open(out)
    rows = {key: cache._row(key) for key in sorted(cache._places)}
    assert cache.head is not None or cache.manifest.keep != "hidden"
    return {key: {name: array.tobytes() for name, array in row.items()} for key, row in rows.items()}


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many sequences the teacher is asked about, pass by pass."""
    real, asked = Local.score, list[int]()

    def score(self: Local, parts: Any) -> Iterator[Any]:
        for batch in parts:
            asked.append(len(batch))
            yield from real(self, [batch])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Local, "score", score)
        yield asked


def remade(asked: Annotation, out: Path, rows: int, wanted: Path) -> None:
    """The same command asks about so many rows, and leaves what an unbroken one leaves."""
    with counted() as counts:
        annotate(asked, out)
    assert sum(counts) == rows
    assert verify(out) == []
    same_rows(stored(out), stored(wanted))


def flipped(path: Path, draw: np.random.Generator) -> bytes:
    """A bit of a file turned over; what stood there before."""
    data = bytearray(path.read_bytes())
    before = bytes(data)
    data[int(draw.integers(len(data)))] ^= 1 << int(draw.integers(8))
    path.write_bytes(data)
    return before


# Fixtures of whoever imports them


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    with small_pieces():
        yield


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return furnish(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def whole(toy: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return fill_once(tmp_path_factory.mktemp("whole"), toy)


@pytest.fixture
def copied(whole: Whole, tmp_path: Path) -> Whole:
    """A copy of it, to be damaged."""
    return lambda keep="sampled:50": Path(shutil.copytree(whole(keep), tmp_path / "copy"))
