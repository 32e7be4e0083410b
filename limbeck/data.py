"""Reading text: JSONL and Parquet files, folders and names that `datasets` knows, streamed or not, several with weights.

Rows are mappings as the files hold them; `vocabulary.py` makes tokens of them. One of these sets of columns is needed:
`text` · `prompt` · `prompt` + `completion` · `messages` · `conversations` (ShareGPT) · `prompt_ids` [+ `completion_ids`].
"""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (datasets has no stubs)

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from limbeck.config import part
from limbeck.errors import DataError, did_you_mean
from limbeck.licences import Licence, of_data
from limbeck.licensed import Licensed
from limbeck.privacy import expanded

Row = Mapping[str, Any]

SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
                  "function_call": "assistant", "observation": "tool", "tool": "tool"}  # fmt: skip


@part
class Data(Licensed):
    """Where text lies and how it is read.

    path: a JSONL or Parquet file, a folder written by `datasets`, or a name on the hub. template: "chat" renders
    prompts by the chat template, "plain" leaves them as they are, "auto" is "chat" where there is a template.
    template_arguments: given to the template, such as `enable_thinking: false`. weight: its share among several.
    """

    path: str
    split: str = "train"
    name: str | None = None
    weight: float = 1.0
    streaming: bool = False
    template: Literal["auto", "chat", "plain"] = "auto"
    template_arguments: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def adopt(cls, value: object) -> object:
        """A path or a name alone may stand for the whole."""
        return cls(path=str(value)) if isinstance(value, str | Path) else value

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            why = "would never be drawn" if self.weight <= 0 else "is no share of anything"
            raise DataError(f"{self.path}: a weight of {self.weight} {why}; give one above 0, or leave the data out")
        if taken := sorted({"messages", "prompt", "tokenize", "add_generation_prompt"} & self.template_arguments.keys()):
            raise DataError(f"{self.path}: template_arguments names {taken[0]}, which is given to every template; leave it out")

    @property
    def licences(self) -> list[Licence]:
        """Those of the card or the licence beside it."""
        return of_data(self.path)

    def rows(self) -> Sequence[Row]:
        """All rows, read once. Raises DataError for what is missing, empty or malformed."""
        found = self._read()
        if len(found) == 0:
            raise DataError(f"{self.path} holds no rows; give it at least one")
        check_columns(found[0], self.path)
        return found

    def _read(self) -> Sequence[Row]:
        return list(read_jsonl_rows(expanded(self.path))) if self._is_jsonl() else cast(Sequence[Row], self._datasets(streaming=False))

    def stream(self) -> Iterator[Row]:
        """The rows one after the other, as the set is ordered, never all in memory."""
        if self._is_jsonl():
            yield from read_jsonl_rows(expanded(self.path))
            return
        try:
            yield from self._datasets(streaming=True)
        except DataError:
            raise
        except Exception as error:  # a damaged file shows only when it is read that far
            raise DataError(_unreadable(self.path, error)) from None

    def _is_jsonl(self) -> bool:
        """Whether we read it ourselves. Raises DataError for a file that is not there."""
        path = expanded(self.path)
        if path.suffix in (".jsonl", ".json", ".parquet") and not path.is_file():
            raise DataError(f"there is no file {self.path}; give a JSONL or Parquet file, or a name on the hub")
        if path.is_file() and path.suffix not in (".jsonl", ".json", ".parquet"):
            raise DataError(f"{self.path} is a file of a kind that is not read; give JSONL or Parquet, its name ending so")
        return path.suffix in (".jsonl", ".json")

    def _datasets(self, streaming: bool) -> Any:
        import datasets  # heavy, and not needed for JSONL

        path = expanded(self.path)
        try:
            if path.suffix == ".parquet":
                return datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=streaming)
            if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
                loaded: Any = datasets.load_from_disk(str(path))
                if isinstance(loaded, datasets.DatasetDict):
                    if self.split not in loaded:
                        raise DataError(f'cannot read {self.path}: it has no split "{self.split}"{did_you_mean(self.split, map(str, loaded))}')
                    loaded = loaded[self.split]
                return loaded.to_iterable_dataset() if streaming else loaded
            return datasets.load_dataset(str(path) if path.exists() else self.path, self.name, split=self.split, streaming=streaming)
        except DataError:
            raise
        except Exception as error:  # the library raises many kinds; the user needs one line
            raise DataError(_unreadable(self.path, error)) from None


def _unreadable(path: str, error: Exception) -> str:
    return f"cannot read {path}: {' '.join(str(error).split())[:300].removesuffix('.')}; give a JSONL or Parquet file, or a name on the hub"


def read_jsonl_rows(path: Path) -> Iterator[Row]:
    """Read one JSON object a line. Raises DataError with the number of the first line that is none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line := line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip():
                yield _parsed(line, f"{path}, line {number}")


def parquet_rows(path: Path) -> int:
    """How many rows a Parquet file holds, by its end alone. Raises DataError for none, and for columns that hold no text."""
    import pyarrow
    import pyarrow.parquet  # pyright: ignore[reportUnusedImport]  # it is not there otherwise

    arrow: Any = pyarrow  # it has no stubs
    try:
        with arrow.parquet.ParquetFile(path) as file:
            count, names = int(file.metadata.num_rows), list[str](file.schema_arrow.names)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    if not count:
        raise DataError(f"{path} holds no rows; give it at least one")
    check_columns(dict.fromkeys(names, True), str(path))
    return count


def _parsed(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: no JSON ({error.msg} at column {error.colno}); write one object a line") from None
    if not isinstance(row, dict):
        raise DataError(f'{where}: found {type(row).__name__}, expected an object such as {{"prompt": "..."}}')
    return cast(Row, row)


COLUMNS = ("messages", "conversations", "prompt", "prompt_ids", "text")


def check_columns(row: Row, where: str) -> None:
    """See that a row holds text we can read."""
    if not any(row.get(name) is not None for name in (*COLUMNS, "label")):  # a label: of numbers, for a classifier
        raise DataError(f"{where}: found columns {', '.join(row)}; rows need one of {', '.join(COLUMNS)}")


def messages_of(row: Row) -> list[dict[str, Any]] | None:
    """The dialogue of a row as role/content messages, ShareGPT's spelling read too; None where it is no dialogue."""
    if "messages" in row:
        return [dict(message) for message in _turns(row, "messages", "role")]
    if "conversations" not in row:
        return None
    turns = _turns(row, "conversations", "from", "value")
    for turn in turns:
        if turn["from"] not in SHAREGPT_ROLES:
            raise DataError(f'a conversation turn is from "{turn["from"]}"; known: {", ".join(SHAREGPT_ROLES)}')
    return [{"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]} for turn in turns]


def _turns(row: Row, column: str, *keys: str) -> list[Mapping[str, Any]]:
    """The turns of a dialogue. Raises DataError where they are no mappings with these keys."""
    turns = cast(list[Any], row[column])
    if not isinstance(row[column], list) or not all(isinstance(turn, Mapping) and all(key in turn for key in keys) for turn in turns):
        raise DataError(f"{column} must be a list of turns, each with {' and '.join(keys)}, found {str(turns)[:80]!r}")
    for number, turn in enumerate(turns, 1):
        if all(value is None for key, value in turn.items() if key != keys[0]):
            raise DataError(f"turn {number} of {column} says nothing; give it content, or leave it out")
    return turns


def asked_of(row: Row) -> str:
    """What was asked, for people to read: the prompt, or the last turn that is not the model's; empty where only tokens are known."""
    there = {name: value for name, value in row.items() if value is not None}
    turns = [message for message in messages_of(there) or [] if message["role"] != "assistant"]
    return str(turns[-1]["content"] if turns else there.get("prompt", ""))


def other_columns(row: Row) -> dict[str, Any]:
    """What a row says beside its text: category, route, answer..."""
    text = {*COLUMNS, "completion", "completion_ids", "completion_logp", "tools"}
    return {name: value for name, value in row.items() if name not in text}


def told_columns(row: Row) -> dict[str, Any]:
    """What a row says in words and numbers: all but its turns and its tokens."""
    return {name: value for name, value in row.items() if name not in ("messages", "conversations", "prompt_ids")}


class Pool:
    """The endless, shuffled line of rows that sources draw from: row g of it depends on the seed and g alone.

    Several data sets take turns by weight: an epoch holds as many rows as all sets together, shared out by weight, each
    set going round in an order of its own. A streamed set is read forward in its own order.
    """

    def __init__(self, data: Sequence[Data], seed: int, shuffle: bool = True) -> None:
        if not data:
            raise DataError("no data was given; name a file, such as prompts.jsonl")
        self.data, self.seed, self.shuffle = list(data), seed, shuffle
        self.streamed = any(item.streaming for item in data)
        self.sets = [] if self.streamed else [item.rows() for item in data]
        self._position, self._iterator = 0, iter(())  # of the stream
        self._epoch: tuple[int, list[tuple[int, int]]] = (-1, [])

    def __len__(self) -> int:
        """Rows of an epoch."""
        return sum(len(rows) for rows in self.sets)

    def take(self, first: int, count: int) -> list[tuple[Data, Row]]:
        """Rows `first` to `first + count` of the line, each with the data set it is from."""
        if self.streamed:
            return self._take_streamed(first, count)
        return [self._row(place) for place in range(first, first + count)]

    def _row(self, place: int) -> tuple[Data, Row]:
        epoch, offset = divmod(place, len(self))
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(epoch))
        which, row = self._epoch[1][offset]
        return self.data[which], self.sets[which][row]

    def _order(self, epoch: int) -> list[tuple[int, int]]:
        """(set, row) of every place of an epoch."""
        weights = np.array([item.weight for item in self.data])
        shares = _shares(len(self), weights / weights.sum()) if len(self.data) > 1 else [len(self)]
        rows = [iter(self._turns(which, epoch * share, share)) for which, share in enumerate(shares)]
        sets = np.repeat(np.arange(len(shares)), shares)
        if self.shuffle:
            sets = np.random.default_rng([self.seed, epoch]).permutation(sets)
        return [(int(which), next(rows[which])) for which in sets]

    def _turns(self, which: int, first: int, count: int) -> list[int]:
        """Row numbers of draws `first` to `first + count` from one set: all its rows once, then all again."""
        rows = len(self.sets[which])
        if not self.shuffle:
            return [place % rows for place in range(first, first + count)]
        turns = range(first // rows, (first + count - 1) // rows + 1)
        line = [int(row) for turn in turns for row in np.random.default_rng([self.seed, 1 + which, turn]).permutation(rows)]
        return line[first % rows :][:count]

    def _take_streamed(self, first: int, count: int) -> list[tuple[Data, Row]]:
        if first != self._position or first == 0:
            self._iterator, self._position = self._interleaved(), 0
            for _ in range(first):
                next(self._iterator)
        self._position = first + count
        return [next(self._iterator) for _ in range(count)]

    def _interleaved(self) -> Iterator[tuple[Data, Row]]:
        """Rows of the streams in turn, by weight; a stream that ends begins again."""
        weights = np.array([item.weight for item in self.data])
        draws = np.random.default_rng(self.seed)
        streams = [_endless(item) for item in self.data]
        while True:
            which = int(draws.choice(len(streams), p=weights / weights.sum())) if len(streams) > 1 else 0
            yield self.data[which], next(streams[which])


def _endless(data: Data) -> Iterator[Row]:
    while True:
        empty = True
        for row in data.stream():
            if empty:
                check_columns(row, data.path)
            empty = False
            yield row
        if empty:
            raise DataError(f"{data.path} holds no rows; give it at least one")


def _shares(total: int, weights: "np.ndarray[Any, Any]") -> list[int]:
    """Whole numbers that sum to `total` in proportion to `weights`, at least one each (largest remainder)."""
    exact = weights * total
    shares = np.maximum(1, np.floor(exact).astype(int))
    for which in np.argsort(shares - exact)[: max(0, total - int(shares.sum()))]:
        shares[which] += 1
    while shares.sum() > total:  # the places of those that were lifted to one
        shares[np.argmax(np.where(shares > 1, shares - exact, -np.inf))] -= 1
    return [int(share) for share in shares]
