"""A folder of Parquet shards that several processes fill, each shard whole or not there.

A shard is named by the hashes of its bytes and of its footer, so that a damaged one is known by its name: a reader looks at
the footer, since pages have checksums of their own, and `verify` at every byte. What should be there stands in
journals, one for each process that wrote; a shard that a killed process could not enter any more is entered when it is found.
Work is shared out by locks on single bytes of one file, which the system takes back from whoever dies.
"""

import fcntl
import hashlib
import os
import re
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.errors import CacheError
from limbeck.files import append_jsonl, read_jsonl, sync, write_bytes

ROWS_PER_GROUP, GROUP_BYTES = 64, 8 * 2**20
"""What is read at once: few rows, since a shuffled step asks for rows of many groups."""
NUMBERS = ("rows", "tokens", "bytes")
"""What a journal says of a shard."""
META = b"limbeck"
"""Where a shard says whose it is."""


@dataclass(frozen=True)
class Damage:
    """A shard that cannot be used: `rows` of it have to be made again."""

    name: str
    what: str
    rows: int

    def __str__(self) -> str:
        return f"{self.name} {self.what} ({self.rows:,} rows)"


@dataclass
class Shards:
    """The shards below a folder; `identity` says whose they are."""

    folder: Path
    identity: str
    _journal: str = field(default_factory=lambda: f"{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl")

    def write(self, table: pa.Table, tokens: int) -> str:
        """Add a shard, and enter it."""
        data = self._bytes(table)
        name = _name(data)
        write_bytes(self.folder / "shards" / name, data)
        self._gone(name).unlink(missing_ok=True)
        self._enter({"shard": name, "rows": table.num_rows, "tokens": tokens, "bytes": len(data)})
        return name

    def _bytes(self, table: pa.Table) -> bytes:
        schema = table.schema.with_metadata({**(table.schema.metadata or {}), META: self.identity.encode()})
        lists = {f"{column.name}.list.element": "BYTE_STREAM_SPLIT" for column in schema if pa.types.is_list(column.type)}
        rows = max(1, min(ROWS_PER_GROUP, GROUP_BYTES * table.num_rows // max(1, table.nbytes)))
        sink = pa.BufferOutputStream()
        pq.write_table(
            table.cast(schema), sink, row_group_size=rows, compression="zstd", compression_level=9, use_dictionary=False,
            column_encoding=lists, write_statistics=False, write_page_checksum=True, data_page_version="2.0",
        )  # fmt: skip
        return sink.getvalue().to_pybytes()

    def _enter(self, line: dict[str, Any]) -> None:
        path = self.folder / "journal" / self._journal
        path.parent.mkdir(parents=True, exist_ok=True)
        append_jsonl(path, line)
        sync(path)

    def entered(self) -> dict[str, dict[str, Any]]:
        """What should be there: the journals' line of each shard, by its name."""
        found = dict[str, dict[str, Any]]()
        for path in sorted((self.folder / "journal").glob("*.jsonl")):
            try:
                found |= {_entry(line): line for line in read_jsonl(path)}
            except (ValueError, KeyError, TypeError):
                raise CacheError(f"{path} is damaged; remove it, and give the command that fills the cache again: whole shards are kept") from None
        return {name: line for name, line in found.items() if not self._gone(name).exists()}

    def _gone(self, name: str) -> Path:
        return self.folder / "journal" / f"{name}.gone"

    def verify(self) -> list[Damage]:
        """Read every byte: what is damaged or missing. Whole shards that were not entered are."""
        entered = self.entered()
        there = {path.name: path for path in (self.folder / "shards").glob("*.parquet")}
        found = [Damage(name, "is missing", line["rows"]) for name, line in entered.items() if name not in there]
        for name, path in there.items():
            data = path.read_bytes()
            rows = entered.get(name, {}).get("rows", 0)
            if _name(data) == name:
                if name not in entered:
                    self._adopt(path, len(data))
            elif len(data) < entered.get(name, {}).get("bytes", 0):
                found.append(Damage(name, f"is cut short, {len(data):,} of {entered[name]['bytes']:,} bytes", rows))
            else:
                found.append(Damage(name, "is damaged: its bytes are not those that were written", rows))
        return sorted(found, key=lambda damage: damage.name)

    def _adopt(self, path: Path, size: int) -> None:
        table = self.read(path.name, ["starts", "stops"])
        tokens = sum(sum(row["stops"]) - sum(row["starts"]) for row in table.to_pylist())
        self._enter({"shard": path.name, "rows": table.num_rows, "tokens": tokens, "bytes": size})

    def drop(self, damage: Damage) -> None:
        """Forget a shard that cannot be used, so that its rows are made again."""
        write_bytes(self._gone(damage.name), b"")
        (self.folder / "shards" / damage.name).unlink(missing_ok=True)

    def open(self, name: str) -> pq.ParquetFile:
        """A shard, seen to be ours. Raises CacheError for what is missing, damaged or another's."""
        path = self.folder / "shards" / name
        try:
            with path.open("rb") as bytes_:
                if _footer(bytes_) != name.partition("-")[2].removesuffix(".parquet"):
                    raise CacheError(f"{self.folder}: {name} is damaged (its footer is not the one that was written); {AGAIN}")
            file = pq.ParquetFile(path, page_checksum_verification=True)
        except FileNotFoundError:
            raise CacheError(f"{self.folder} misses {name}; {AGAIN}") from None
        except CacheError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CacheError(f"{self.folder}: {name} cannot be read ({_brief(error)}); {AGAIN}") from None
        whose = (file.schema_arrow.metadata or {}).get(META, b"nobody").decode()
        if whose != self.identity:
            raise CacheError(f"{self.folder}: {name} was written for {whose}, and the manifest is of {self.identity}: another teacher, tokenizer or "
                             "setting; put back its own manifest, or fill another folder")  # fmt: skip
        return file

    def read(self, name: str, columns: list[str], group: int | None = None) -> pa.Table:
        """Columns of a shard, or of one of its groups of rows."""
        return self._read(self.open(name), name, columns, group)

    def _read(self, file: pq.ParquetFile, name: str, columns: list[str], group: int | None = None) -> pa.Table:
        try:
            return file.read(columns) if group is None else file.read_row_group(group, columns)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CacheError(f"{self.folder}: {name} is damaged ({_brief(error)}); {AGAIN}") from None

    def groups(self, name: str, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
        """The rows of a shard, a group at a time."""
        file, start = self.open(name), 0
        rows = self._read(file, name, columns).to_pylist()
        for group in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            yield rows[start : start + count]
            start += count

    @contextmanager
    def claimed(self, piece: int) -> Generator[bool]:
        """Whether a piece of work is ours for as long as the block lasts; another process may have it."""
        path = self.folder / "journal" / "claims"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, piece)
            except OSError:
                yield False
                return
            yield True


AGAIN = "give the limbeck cache command that filled it again: it repairs exactly what is damaged"


def _name(data: bytes) -> str:
    return f"{hashlib.blake2b(data, digest_size=16).hexdigest()}-{_footer(BytesIO(data))}.parquet"


def _footer(file: BinaryIO) -> str:
    """The hash of what stands at the end of a Parquet file: where everything lies, which has no checksum; its length before the last 4 bytes."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    file.seek(max(0, size - 8 - int.from_bytes(file.read(4), "little")))
    return hashlib.blake2b(file.read(), digest_size=8).hexdigest()


def _entry(line: dict[str, Any]) -> str:
    """The shard that a journal's line is about. Raises ValueError for what is no such line."""
    if not re.fullmatch(r"[0-9a-f]{32}-[0-9a-f]{16}\.parquet", line["shard"]) or not all(isinstance(line[name], int) for name in NUMBERS):
        raise ValueError(line)
    return line["shard"]


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200].removesuffix(".")
