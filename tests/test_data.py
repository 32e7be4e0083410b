"""Reading rows from files, and the endless line of them that sources draw from."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data import Data, Pool, Row, _shares, messages_of, other_columns
from limbeck.errors import DataError

ROWS = [{"prompt": f"p{n}", "completion": "ünï\n" * n, "category": "ab"[n % 2]} for n in range(7)]


@pytest.fixture(autouse=True, scope="module")
def _no_network_and_no_cache_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the variable was read at import
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


def jsonl(folder: Path, rows: list) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def parquet(folder: Path, rows: list) -> str:
    datasets.Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    return str(folder / "rows.parquet")


def saved(folder: Path, rows: list) -> str:
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return str(folder / "saved")


def saved_splits(folder: Path, rows: list) -> str:
    splits = {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:1])}
    datasets.DatasetDict(splits).save_to_disk(folder / "splits")
    return str(folder / "splits")


FORMATS = (jsonl, parquet, saved, saved_splits)
Writer = Callable[[Path, list], str]


def told(data: Data, streamed: bool = False) -> str:
    """What the user reads, in one line, when all rows are asked for."""
    with pytest.raises(DataError) as caught:
        list(data.stream()) if streamed else list(data.rows())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("written", FORMATS)
def test_every_format_gives_the_same_rows(written: Writer, tmp_path: Path) -> None:
    data = Data(written(tmp_path, ROWS))
    assert [dict(row) for row in data.rows()] == [dict(row) for row in data.stream()] == ROWS


def test_a_split_of_a_saved_folder(tmp_path: Path) -> None:
    path = saved_splits(tmp_path, ROWS)
    assert list(Data(path, split="test").rows()) == ROWS[:1]
    assert told(Data(path, split="tset")).startswith(f"cannot read {path}: ")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "content, said",
    [
        (b'{"prompt": "a"}\n\n{"prompt": }\n', "line 3: no JSON (Expecting value at column 12); write one object a line"),
        (b'{"prompt": "a"}\n{"prompt": "b"', "line 2: no JSON"),
        (b'{"prompt": "a"}\n["b"]\n', "line 2: found list, expected an object"),
        (b'{"prompt": "a"}\n{"prompt": "\xe9"}\n', "line 2: not UTF-8 at byte 12; save the file as UTF-8"),
        (b"\xff\xfe{\x00", "line 1: not UTF-8 at byte 0"),
    ],
)
def test_a_bad_line_is_told_by_its_number(content: bytes, said: str, streamed: bool, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert told(Data(str(path)), streamed).startswith(f"{path}, {said}")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_marks_blank_lines_and_line_ends_are_no_rows(name: str, streaming: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "2024-01-01"}\r\n\r\n  \n{"prompt": "b\xe2\x80\xa8c", "when": null}')
    data = Data(str(path))
    assert list(data.stream() if streaming else data.rows()) == [{"prompt": "2024-01-01"}, {"prompt": "b\u2028c", "when": None}]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["none.jsonl", "none.json", "none.parquet", "no/such/folder/none.jsonl"])
def test_a_file_that_is_not_there(name: str, streaming: bool) -> None:
    assert told(Data(name), streaming) == f"there is no file {name}; give a JSONL or Parquet file, or a name on the hub"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_name_that_cannot_be_reached(streaming: bool) -> None:
    assert told(Data("nobody/nothing-at-all"), streaming).startswith("cannot read nobody/nothing-at-all: ")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
def test_an_empty_file(content: bytes, streaming: bool, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.jsonl holds no rows; give it at least one"):
        Pool([Data(str(path), streaming=streaming)], seed=0).take(0, 1)


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_table(streaming: bool, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"prompt": []}).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet"):
        Pool([Data(str(tmp_path / "rows.parquet"), streaming=streaming)], seed=0).take(0, 1)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_table(streaming: bool, tmp_path: Path) -> None:
    path = Path(parquet(tmp_path, ROWS))
    path.write_bytes(path.read_bytes()[:40])
    assert told(Data(str(path)), streaming).startswith(f"cannot read {path}: ")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("row, found", [({"question": "a", "answer": "b"}, "question, answer"), ({"prompt": None, "x": 1}, "prompt, x"), ({}, "")])
def test_rows_without_text(row: Row, found: str, streaming: bool, tmp_path: Path) -> None:
    path = jsonl(tmp_path, [row])
    with pytest.raises(DataError) as caught:
        Pool([Data(path, streaming=streaming)], seed=0).take(0, 1)
    assert str(caught.value) == f"{path}: found columns {found}; rows need one of messages, conversations, prompt, prompt_ids, text"


def test_no_data_at_all() -> None:
    with pytest.raises(DataError, match="no data was given"):
        Pool([], seed=0)


def sharegpt(*turns: tuple[str, str]) -> Row:
    return {"conversations": [{"from": who, "value": text} for who, text in turns]}


def test_sharegpt_is_read_as_messages() -> None:
    found = messages_of(sharegpt(("system", "s"), ("human", "h"), ("function_call", "c"), ("observation", "o"), ("gpt", "g")))
    assert found == [{"role": role, "content": text} for role, text in
                     [("system", "s"), ("user", "h"), ("assistant", "c"), ("tool", "o"), ("assistant", "g")]]  # fmt: skip


@pytest.mark.parametrize(
    "row, said",
    [
        (sharegpt(("humna", "x")), 'a conversation turn is from "humna"; known: human'),
        ({"conversations": [{"from": "human"}]}, "conversations must be a list of turns, each with from and value"),
        ({"messages": [{"content": "x"}]}, "messages must be a list of turns, each with role"),
        ({"messages": '[{"role": "user"}]'}, "messages must be a list of turns"),
        ({"messages": ["hello"]}, "messages must be a list of turns"),
    ],
)
def test_dialogues_that_are_none(row: Row, said: str) -> None:
    with pytest.raises(DataError) as caught:
        messages_of(row)
    assert str(caught.value).startswith(said)


def test_what_a_row_says_beside_its_text() -> None:
    assert other_columns({"prompt": "a", "completion": "b", "tools": [], "text": "c", "answer": 7, "route": "x"}) == {"answer": 7, "route": "x"}


def pool(folder: Path, sizes: list[int], weights: list[float], seed: int = 0, shuffle: bool = True, streaming: bool = False) -> Pool:
    """Sets of that many rows, whose rows say which set and which row of it they are."""
    data = []
    for which, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        path = folder / f"{which}-{size}.jsonl"
        if not path.exists():
            path.write_text("".join(json.dumps({"prompt": "", "which": which, "n": n}) + "\n" for n in range(size)))
        data.append(Data(str(path), weight=weight, streaming=streaming))
    return Pool(data, seed, shuffle)


def taken(line: Pool, first: int, count: int) -> list[tuple[int, int]]:
    found = line.take(first, count)
    assert all(Path(data.path).name.startswith(f"{row['which']}-") for data, row in found)
    return [(row["which"], row["n"]) for _, row in found]


SETS = st.lists(st.tuples(st.integers(1, 9), st.floats(0.01, 100)), min_size=1, max_size=4)
hypothetical = settings(deadline=None, max_examples=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


@hypothetical
@given(sets=SETS, seed=st.integers(0, 2**40), shuffle=st.booleans())
def test_every_row_of_a_set_is_visited_before_any_twice(sets: list, seed: int, shuffle: bool, folder: Path) -> None:
    sizes, weights = zip(*sets, strict=True)
    line = pool(folder, sizes, weights, seed, shuffle)
    visited = taken(line, 0, 4 * len(line))
    for which, size in enumerate(sizes):
        mine = [n for w, n in visited if w == which]
        rounds = [mine[start : start + size] for start in range(0, len(mine), size)]
        assert all(sorted(round_) == list(range(size)) for round_ in rounds[:-1]) and len(set(rounds[-1])) == len(rounds[-1])


@hypothetical
@given(sets=SETS, seed=st.integers(0, 2**40), order=st.randoms())
def test_a_row_of_the_line_depends_on_seed_and_place_alone(sets: list, seed: int, order, folder: Path) -> None:
    sizes, weights = zip(*sets, strict=True)
    whole = taken(pool(folder, sizes, weights, seed), 0, 3 * sum(sizes))
    other, places = pool(folder, sizes, weights, seed), list(range(len(whole)))
    order.shuffle(places)
    assert [taken(other, place, 1)[0] for place in places] == [whole[place] for place in places]


@hypothetical
@given(sets=SETS, seed=st.integers(0, 9))
def test_the_shares_of_an_epoch_are_exact(sets: list, seed: int, folder: Path) -> None:
    sizes, weights = zip(*sets, strict=True)
    line = pool(folder, sizes, weights, seed)
    epochs = [Counter(which for which, _ in taken(line, epoch * len(line), len(line))) for epoch in range(3)]
    assert epochs[0] == epochs[1] == epochs[2]
    wanted = np.array(weights) / sum(weights) * len(line)
    lifted = np.sum(wanted < 1)  # a set too light for a row has one all the same
    for which, exact in enumerate(wanted):
        assert epochs[0][which] >= 1 and exact - 1 - lifted < epochs[0][which] < exact + 1 + (exact < 1)


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=8), st.integers(0, 1000))
def test_shares_add_up(weights: list[float], more: int) -> None:
    exact = np.array(weights) / sum(weights)
    shares = _shares(len(weights) + more, exact)
    assert sum(shares) == len(weights) + more and min(shares) >= 1


@pytest.mark.parametrize("sizes, weights, shares", [([6, 6], [1, 3], [3, 9]), ([1, 99], [0.29, 0.71], [29, 71]), ([1, 1, 1], [98, 1, 1], [1, 1, 1])])
def test_shares_by_hand(sizes: list[int], weights: list[float], shares: list[int], folder: Path) -> None:
    line = pool(folder, sizes, weights)
    assert [Counter(which for which, _ in taken(line, 0, len(line)))[which] for which in range(len(sizes))] == shares


@pytest.mark.parametrize("sizes", [[40], [20, 20]])
def test_epochs_and_seeds_have_orders_of_their_own(sizes: list[int], folder: Path) -> None:
    lines = [taken(pool(folder, sizes, [1.0] * len(sizes), seed), epoch * 40, 40) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(line) for line in lines}) == 4
    assert all(sorted(line) == sorted(lines[0]) for line in lines)
    assert all(Counter(which for which, _ in line[:20]).most_common(1)[0][1] < 20 for line in lines if len(sizes) == 2)  # sets take turns


def test_unshuffled_rows_come_as_they_lie(folder: Path) -> None:
    assert taken(pool(folder, [3], [1], shuffle=False), 0, 7) == [(0, n % 3) for n in range(7)]
    assert taken(pool(folder, [2, 2], [1, 1], shuffle=False), 0, 4) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_large_sets_are_drawn_from_at_once(folder: Path) -> None:
    """An order that were made anew for every row would take minutes."""
    assert len(set(taken(pool(folder, [20_000, 20_000], [1, 1]), 0, 40_000))) == 40_000


@hypothetical
@given(sets=SETS, seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 25), max_size=5))
def test_a_stream_resumed_anywhere_equals_an_unbroken_read(sets: list, seed: int, cuts: list[int], folder: Path) -> None:
    sizes, weights = zip(*sets, strict=True)
    whole = taken(pool(folder, sizes, weights, seed, streaming=True), 0, 30)
    other = pool(folder, sizes, weights, seed, streaming=True)
    assert all(taken(other, first, 5) == whole[first : first + 5] for first in cuts)
    fresh = pool(folder, sizes, weights, seed, streaming=True)
    assert [row for first in range(0, 30, 6) for row in taken(fresh, first, 6)] == whole


@pytest.mark.parametrize("written", FORMATS)
def test_streams_of_every_format_go_round_in_their_own_order(written: Writer, tmp_path: Path) -> None:
    line = Pool([Data(written(tmp_path, ROWS), streaming=True)], seed=3)
    assert [row["prompt"] for _, row in line.take(0, 16)] == [f"p{n % 7}" for n in range(16)]
    assert [row["prompt"] for _, row in line.take(12, 3)] == ["p5", "p6", "p0"]


def test_streams_take_turns_by_weight(folder: Path) -> None:
    """Among 4,000 draws a share of 1/4 strays by 0.034 (five deviations) once in a million; equal turns would be 37 deviations off."""
    line = taken(pool(folder, [5, 7], [1, 3], streaming=True), 0, 4000)
    assert abs(sum(which == 0 for which, _ in line) / 4000 - 0.25) < 0.034
    for which, size in ((0, 5), (1, 7)):
        mine = [n for w, n in line if w == which]
        assert mine == [place % size for place in range(len(mine))]


def test_one_streamed_set_makes_all_of_them_streams(tmp_path: Path, folder: Path) -> None:
    line = Pool([Data(parquet(tmp_path, ROWS)), Data(jsonl(tmp_path, ROWS), streaming=True)], seed=0)
    first = [(data.path, row["prompt"]) for data, row in line.take(0, 20)]
    assert {path for path, _ in first} == {data.path for data in line.data} and line.streamed
