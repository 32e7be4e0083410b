"""Teacher scores on disk: a folder of shards, and a manifest that says all that is needed to read them.

A row holds what was kept of one sequence at one temperature. It is found by its content: the key is a hash of the token
ids and the temperature, salted with the cache's identity (teacher, tokenizer and template, what is kept, seed), so that
order, batch sizes and subsets of the data are free, and another teacher's rows are never taken for this one's.

Axes: N completion tokens of a pass, B its sequences.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from limbeck.batch import Batch
from limbeck.errors import CacheError
from limbeck.files import read_json, write_bytes, write_json
from limbeck.head import Head
from limbeck.keep import Array, Columns, Keep, kept
from limbeck.shards import AGAIN, Shards
from limbeck.targets import Targets

FORMAT = 1
HELD_OUT = "held-out"
"""The folder inside a cache that holds text to evaluate on, annotated densely."""
HELD_BYTES = 2**30
"""Of rows read before that stay in memory, a group of a shard at a time."""
LISTS = {"int32": pa.list_(pa.int32()), "float": pa.list_(pa.float32()), "binary": pa.large_binary()}
MEANING = {
    "key": "blake2b-128 of the token ids (int32, little endian) and the temperature (float64), keyed with the identity",
    "temperature": "the distribution is softmax(logits / temperature); 1 where any can be made of what is kept",
    "starts": "where each completion begins in the sequence", "stops": "where it ends; the columns below go on over all completions",
    "entropy": "nats, of the whole distribution, one a token", "logsumexp": "nats, of logits / temperature, one a token",
    "unique": "how many outcomes were drawn, one a token", "id_gaps": "ids of a token's outcomes, ascending: its first id, then differences",
    "counts": "how often each outcome was drawn", "log_p": "nats of every outcome, float16, little endian, one vector a token",
    "ids": "the likeliest outcomes of a token, likeliest first", "drops": "2^-9 nats by which each falls below the one before, the first below 0",
    "log_tail": "nats of all other outcomes together",
    "hidden": "last hidden states, one vector a token, little endian; head.safetensors makes logits of them",
}  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """What a cache says of itself. teacher: model, fingerprint and arithmetic, and its licences. vocabulary: see `Vocabulary.traits`."""

    teacher: dict[str, Any]
    vocabulary: dict[str, Any]
    keep: str
    temperatures: list[float]
    seed: int = 0
    text: dict[str, Any] = field(default_factory=dict[str, Any])
    head: dict[str, Any] | None = None
    licences: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    format: int = FORMAT

    @property
    def identity(self) -> str:
        """A name for all that makes one cache's rows another's: where the teacher lay and which text it read is not of it."""
        teacher = {name: value for name, value in self.teacher.items() if name != "model"}
        vocabulary = {name: value for name, value in self.vocabulary.items() if name not in ("template", "rendered")}
        whole = json.dumps([self.format, teacher, vocabulary, self.vocabulary["rendered"], self.keep, self.seed], sort_keys=True)
        return hashlib.blake2b(whole.encode(), digest_size=16).hexdigest()

    def write(self, folder: Path) -> None:
        """Write `manifest.json`."""
        columns = {name: MEANING[name] for name in [*schema(self.kept).names]}
        write_json(folder / "manifest.json", {"identity": self.identity, **asdict(self), "columns": columns})

    @property
    def kept(self) -> Keep:
        """What is kept, as a part."""
        return kept(self.keep)

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """Read it. Raises CacheError where there is none, it is another format's, or it was changed."""
        path = folder / "manifest.json"
        if not path.is_file():
            raise CacheError(
                f"{folder} holds no cache, for there is no manifest.json in it; fill one: limbeck cache --teacher ... --data ... --out {folder}"
            )
        try:
            said = read_json(path)
            if said["format"] != FORMAT:
                raise CacheError(f"{path} is of format {said['format']}, and this program reads {FORMAT}; fill the cache anew")
            found = Manifest(**{name: value for name, value in said.items() if name not in ("identity", "columns")})
            identity = found.identity
            written = said["identity"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, CacheError):
                raise
            raise CacheError(f"{path} is damaged ({type(error).__name__}); put it back, or fill another folder") from None
        if identity != written:
            raise CacheError(f"{path} was changed: it says {written}, and its settings make {identity}; put it back, or fill another folder")
        return found


def schema(keep: Keep) -> pa.Schema:
    """The columns of a shard."""
    lists = {"starts": "int32", "stops": "int32", "entropy": "float", "logsumexp": "float", **keep.types}
    return pa.schema([("key", pa.binary(16)), ("temperature", pa.float32()), *((name, LISTS[kind]) for name, kind in lists.items())])


@dataclass
class _Group:
    """Some rows of a shard: each column's values and where each row's begin."""

    table: pa.Table

    @cached_property
    def columns(self) -> dict[str, tuple[Array, Array]]:
        return {name: _ragged(self.table.column(name)) for name in self.table.column_names}

    def row(self, place: int) -> Columns:
        return {name: values[starts[place] : starts[place + 1]] for name, (values, starts) in self.columns.items()}


def _ragged(column: pa.ChunkedArray) -> tuple[Array, Array]:
    """Values and offsets, without a copy where memory allows."""
    array = column.combine_chunks()
    if pa.types.is_list(array.type):
        return array.values.to_numpy(zero_copy_only=False), array.offsets.to_numpy()
    _, offsets, values = array.buffers()
    starts = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return np.frombuffer(values, np.uint8) if values else np.empty(0, np.uint8), starts


def folders(folder: Path) -> list[Path]:
    """A cache's own folder, and that of its held-out text where it has any."""
    inside = folder / HELD_OUT
    return [folder, inside] if (inside / "manifest.json").is_file() else [folder]


Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Place:
    """Where a row lies: the wider one of two, where a sequence was annotated again for completions of another cut."""

    shard: str
    group: int
    row: int
    spans: Spans

    @property
    def tokens(self) -> int:
        return sum(stop - start for start, stop in self.spans)


class Cache:
    """An open cache: what was kept of each sequence, found by its content."""

    def __init__(self, folder: Path, manifest: Manifest, known: bool = True) -> None:
        self.folder, self.manifest, self.keep = folder, manifest, manifest.kept
        self.shards = Shards(folder, manifest.identity)
        self._salt = bytes.fromhex(manifest.identity)
        self._places = dict[bytes, _Place]()
        self._known = set[str]()
        self._groups = OrderedDict[tuple[str, int], _Group]()
        if known:
            self.refresh()

    @staticmethod
    def open(folder: Path) -> "Cache":
        """Open what is there. Raises CacheError in one line for whatever is wrong with it."""
        return Cache(folder, Manifest.read(folder))

    def refresh(self) -> None:
        """Learn of shards that were written since."""
        for name in self.shards.entered().keys() - self._known:
            for group, rows in enumerate(self.shards.groups(name, ["key", "starts", "stops"])):
                for number, row in enumerate(rows):
                    place = _Place(name, group, number, tuple(zip(row["starts"], row["stops"], strict=True)))
                    self._places[row["key"]] = max(place, self._places.get(row["key"], place), key=lambda each: each.tokens)
            self._known.add(name)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def bytes_and_tokens(self) -> tuple[int, int]:
        """All bytes below the folder, a head and the held-out text left out, and the completion tokens they are about."""
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.name != "head.safetensors" and HELD_OUT not in path.parts]
        return sum(path.stat().st_size for path in files), sum(line["tokens"] for line in self.shards.entered().values())

    def temperature_of(self, temperature: float) -> float:
        """The temperature that rows for this one are kept under: 1 where they serve for all."""
        return temperature if self.keep.tempered else 1.0

    def key(self, tokens: Sequence[int] | Array, temperature: float) -> bytes:
        """The key of a sequence."""
        content = np.asarray(tokens, "<i4").tobytes() + np.float64(self.temperature_of(temperature)).tobytes()
        return hashlib.blake2b(content, digest_size=16, key=self._salt).digest()

    def holds(self, key: bytes) -> bool:
        """Whether the sequence of this key was annotated."""
        return key in self._places

    def spans(self, key: bytes) -> Spans:
        """Which stretches of it were: where each begins and ends; none where it is not held."""
        return self._places[key].spans if key in self._places else ()

    def keys(self, batch: Batch, temperature: float) -> list[bytes]:
        """The key of each sequence of a batch."""
        return [self.key(tokens.numpy(), temperature) for tokens in batch.sequences()]

    def add_all(self, rows: Iterable[Columns]) -> None:
        """Write rows as a shard; none of none."""
        rows, names = list(rows), schema(self.keep)
        if not rows:
            return
        arrays = [pa.array([_plain(row[field.name]) for row in rows], field.type) for field in names]
        self.shards.write(pa.table(arrays, schema=names), sum(len(row["entropy"]) for row in rows))
        self.refresh()

    def targets(self, batch: Batch, temperature: float) -> Targets:
        """What was kept about a pass. Every sequence must be there: see `holds`."""
        keys = self.keys(batch, temperature)
        rows = [self._row(key) for key in keys]
        columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0] if name not in ("starts", "stops")}
        for name, kind in self.keep.types.items():
            if kind == "binary":
                columns[name] = columns[name].reshape(len(columns["entropy"]), -1)
        said = self.keep.targets(columns, self.head, self.manifest.identity, self.temperature_of(temperature))
        return _of_tokens(_on_device(said), batch, rows)

    def _row(self, key: bytes) -> Columns:
        place = self._places[key]
        name, group, row = place.shard, place.group, place.row
        if (name, group) not in self._groups:
            wanted = ["starts", "stops", "entropy", *self.keep.types]
            self._groups[name, group] = _Group(self.shards.read(name, wanted, group))
            while len(self._groups) > 1 and sum(held.table.nbytes for held in self._groups.values()) > HELD_BYTES:
                self._groups.popitem(last=False)
        self._groups.move_to_end((name, group))
        return self._groups[name, group].row(row)

    @cached_property
    def head(self) -> Head | None:
        """The teacher's head, where hidden states were kept."""
        from safetensors.torch import load

        from limbeck.machine import device

        said = self.manifest.head
        if said is None:
            return None
        path = self.folder / "head.safetensors"
        data = path.read_bytes() if path.is_file() else b""
        if _head_hash(data, said) != said["hash"]:
            raise CacheError(f"{path} is {'damaged' if data else 'missing'}; {AGAIN}")
        tensors = {name: tensor.to(device()) for name, tensor in load(data).items()}
        return Head(tensors["weight"], said["vocabulary"], tensors.get("bias"), said["scale"], said["cap"])


def _plain(value: Any) -> Any:
    """What Arrow takes: blobs as bytes."""
    return value.tobytes() if isinstance(value, np.ndarray) and value.dtype == np.uint8 else value


def _on_device(said: Targets) -> Targets:
    """The same where the models live."""
    import torch

    from limbeck.machine import device

    tensors = {each.name: value.to(device()) for each in fields(said) if isinstance(value := getattr(said, each.name), torch.Tensor)}  # pyright: ignore[reportArgumentType]
    return replace(said, **tensors)  # pyright: ignore[reportArgumentType, reportReturnType]


def _of_tokens(said: Targets, batch: Batch, rows: Sequence[Columns]) -> Targets:
    """What was said of the batch's completion tokens, of what was said of those that were annotated.

    Raises CacheError where a token was not, since other spans of the sequence were completions then.
    """
    import torch

    there = [np.concatenate([np.arange(a, b) for a, b in zip(row["starts"], row["stops"], strict=True)]) for row in rows]
    lengths_B = batch.lengths_B.numpy()
    starts_B = np.cumsum(lengths_B) - lengths_B
    there_N = np.concatenate([places + start for places, start in zip(there, starts_B, strict=True)])
    wanted_N = batch.places_N.numpy()
    if np.array_equal(there_N, wanted_N):
        return said
    found_N = np.minimum(np.searchsorted(there_N, wanted_N), len(there_N) - 1)
    missing = int((there_N[found_N] != wanted_N).sum())
    if missing:
        raise CacheError(f"{missing:,} of {len(wanted_N):,} completion tokens lie outside the completions that were annotated; "
                         "the same text was cut into prompt and completion otherwise: fill a cache with this data")  # fmt: skip
    return said.select(torch.from_numpy(found_N))


def written_head(folder: Path, head: Head) -> dict[str, Any]:
    """Write a head as `head.safetensors`; what the manifest says of it."""
    from safetensors.torch import save

    tensors = {"weight": head.weight_VD.detach()[: head.vocabulary].contiguous().cpu()}
    if head.bias_V is not None:
        tensors["bias"] = head.bias_V.detach()[: head.vocabulary].contiguous().cpu()
    data, said = save(tensors), {"vocabulary": head.vocabulary, "scale": head.scale, "cap": head.cap}
    write_bytes(folder / "head.safetensors", data)
    return {"hash": _head_hash(data, said), **said}


def _head_hash(data: bytes, said: dict[str, Any]) -> str:
    """Of the file and of what the manifest says beside it: another scale makes other probabilities."""
    numbers = [said.get(name) for name in ("vocabulary", "scale", "cap")]
    return hashlib.blake2b(data + json.dumps(numbers).encode(), digest_size=16).hexdigest()
