"""Reading text: JSONL and Parquet files, folders and names that `datasets` knows, streamed or not, several with weights.

Rows are mappings as the files hold them; `vocabulary.py` makes tokens of them. One of these sets of columns is needed:
`text` · `prompt` · `prompt` + `completion` · `messages` · `conversations` (ShareGPT) · `prompt_ids` [+ `completion_ids`].
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from limbeck.config import Part, part
from limbeck.errors import DataError

Row = Mapping[str, Any]

SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
                  "function_call": "assistant", "observation": "tool", "tool": "tool"}  # fmt: skip


@part
class Data(Part):
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
    template_arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def adopt(cls, value: object) -> object:
        """A path or a name alone may stand for the whole."""
        return cls(path=str(value)) if isinstance(value, str | Path) else value

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise DataError(f"{self.path}: a weight of {self.weight} would never be drawn; give one above 0, or leave the data out")

    def rows(self) -> Sequence[Row]:
        """All rows, read once. Raises DataError for what is missing, empty or malformed."""
        found = self._read()
        if len(found) == 0:
            raise DataError(f"{self.path} holds no rows; give it at least one")
        check_columns(found[0], self.path)
        return found

    def _read(self) -> Sequence[Row]:
        path = Path(self.path)
        if path.suffix in (".jsonl", ".json") and path.is_file():
            return read_jsonl_rows(path)
        if path.suffix in (".jsonl", ".json", ".parquet") and not path.is_file():
            raise DataError(f"there is no file {self.path}; give a JSONL or Parquet file, or a name on the hub")
        return cast(Sequence[Row], self._datasets(streaming=False))

    def stream(self) -> Iterator[Row]:
        """The rows one after the other, as the set is ordered, never all in memory."""
        return iter(cast(Any, self._datasets(streaming=True)))

    def _datasets(self, streaming: bool) -> Any:
        import datasets  # heavy, and not needed for JSONL

        path = Path(self.path)
        kind = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}.get(path.suffix)
        try:
            if kind:
                return datasets.load_dataset(kind, data_files=str(path), split="train", streaming=streaming)
            if (path / "state.json").exists():
                loaded = datasets.load_from_disk(str(path))
                return loaded.to_iterable_dataset() if streaming else loaded
            return datasets.load_dataset(self.path, self.name, split=self.split, streaming=streaming)
        except Exception as error:  # the library raises many kinds; the user needs one line
            raise DataError(f"cannot read {self.path}: {' '.join(str(error).split())[:300]}") from None


def read_jsonl_rows(path: Path) -> list[Row]:
    """Read one JSON object a line. Raises DataError with the number of the first line that is none."""
    rows: list[Row] = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                rows.append(_parsed(line, f"{path}, line {number}"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    return rows


def _parsed(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: no JSON ({error.msg} at column {error.colno}); write one object a line") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {type(row).__name__}, expected an object such as {{\"prompt\": \"...\"}}")
    return cast(Row, row)


COLUMNS = ("messages", "conversations", "prompt", "prompt_ids", "text")


def check_columns(row: Row, where: str) -> None:
    """See that a row holds text we can read."""
    if not any(name in row for name in COLUMNS):
        raise DataError(f"{where}: found columns {', '.join(row)}; rows need one of {', '.join(COLUMNS)}")


def messages_of(row: Row) -> list[dict[str, Any]] | None:
    """The dialogue of a row as role/content messages, ShareGPT's spelling read too; None where it is no dialogue."""
    if "messages" in row:
        return [dict(message) for message in row["messages"]]
    if "conversations" not in row:
        return None
    turns = cast(list[Mapping[str, str]], row["conversations"])
    for turn in turns:
        if turn.get("from") not in SHAREGPT_ROLES:
            raise DataError(f'a conversation turn is from "{turn.get("from")}"; known: {", ".join(SHAREGPT_ROLES)}')
    return [{"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]} for turn in turns]


def other_columns(row: Row) -> dict[str, Any]:
    """What a row says beside its text: category, route, answer..."""
    text = {*COLUMNS, "completion", "completion_ids", "completion_logp", "tools"}
    return {name: value for name, value in row.items() if name not in text}


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
        line = [(which, self._turn(which, epoch * share + n)) for which, share in enumerate(shares) for n in range(share)]
        if not self.shuffle:
            return line
        return [line[place] for place in np.random.default_rng([self.seed, epoch]).permutation(len(line))]

    def _turn(self, which: int, place: int) -> int:
        """Row number of the `place`-th draw from one set: all its rows once, then all again."""
        rows = len(self.sets[which])
        if not self.shuffle or len(self.data) == 1:
            return place % rows
        return int(self._permutation(which, place // rows)[place % rows])

    def _permutation(self, which: int, turn: int) -> Any:
        return np.random.default_rng([self.seed, 1 + which, turn]).permutation(len(self.sets[which]))

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
    return [int(share) for share in shares]
