"""Whatever of a cache is damaged, cut or lost is found, named in one line, and alone made again."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from caches import Whole, asking, copied, everything, flipped, remade, same_rows, small, stored, toy, whole  # noqa: F401

from limbeck.annotate import annotate, verify
from limbeck.cache import Cache
from limbeck.data import Data
from limbeck.errors import CacheError, LimbeckError
from limbeck.files import read_json, write_json
from limbeck.student import Student
from limbeck.teachers import Cached, Local

KINDS = ["sampled:50", "stratified:20", "top:64", "hidden", "dense"]


@pytest.mark.parametrize("keep", KINDS)
def test_a_flipped_bit_is_found_and_its_shard_alone_made_again(keep: str, toy: dict[str, str], whole: Whole, copied: Whole) -> None:
    out, draw = copied(keep), np.random.default_rng(KINDS.index(keep))
    for _ in range(2):
        shards = sorted((out / "shards").iterdir())
        assert len(shards) >= 4
        path = shards[int(draw.integers(len(shards)))]
        rows = pq.read_metadata(path).num_rows
        flipped(path, draw)
        assert [(found.name, found.rows) for found in verify(out)] == [(path.name, rows)]
        remade(asking(toy, keep), out, rows, whole(keep))


@pytest.mark.parametrize("keep", KINDS)
def test_a_reader_never_takes_a_flipped_bit_for_what_was_said(keep: str, whole: Whole, copied: Whole) -> None:
    """Without `verify`: pages have checksums, and the footer a hash in the name. What is not read may be flipped unseen."""
    out, draw, wanted, named = copied(keep), np.random.default_rng(KINDS.index(keep)), everything(whole(keep)), 0
    shards = sorted((out / "shards").iterdir())
    for _ in range(12):
        path = shards[int(draw.integers(len(shards)))]
        before = flipped(path, draw)
        try:
            assert everything(out) == wanted
        except CacheError as error:
            named += path.name in str(error) and str(error).endswith("it repairs exactly what is damaged")
        path.write_bytes(before)
    assert named >= 9 and everything(out) == wanted


def test_a_footer_says_where_everything_lies_and_none_of_its_bits_may_turn(copied: Whole) -> None:
    out, draw = copied(), np.random.default_rng(0)
    path = min((out / "shards").iterdir())
    data = path.read_bytes()
    for place in draw.integers(len(data) - 8 - int.from_bytes(data[-8:-4], "little"), len(data), 40):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << int(draw.integers(8))]) + data[place + 1 :])
        with pytest.raises(CacheError, match=rf"{path.name} is damaged \(its footer is not the one that was written\)"):
            Cache.open(out)


def spoil_cut(out: Path) -> tuple[str, int]:
    path = sorted((out / "shards").iterdir())[1]
    rows, data = pq.read_metadata(path).num_rows, path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return rf"{path.name} is cut short, [\d,]+ of {len(data):,} bytes \({rows} rows\)", rows


def spoil_empty(out: Path) -> tuple[str, int]:
    path = sorted((out / "shards").iterdir())[1]
    rows = pq.read_metadata(path).num_rows
    path.write_bytes(b"")
    return rf"{path.name} is cut short, 0 of [\d,]+ bytes \({rows} rows\)", rows


def spoil_missing(out: Path) -> tuple[str, int]:
    path = sorted((out / "shards").iterdir())[1]
    rows = pq.read_metadata(path).num_rows
    path.unlink()
    return rf"{path.name} is missing \({rows} rows\)", rows


@pytest.mark.parametrize("spoil", [spoil_cut, spoil_empty, spoil_missing])
def test_a_lost_shard_is_named_by_all_who_read(spoil: Callable[[Path], tuple[str, int]], toy: dict[str, str], whole: Whole, copied: Whole) -> None:
    out = copied()
    line, rows = spoil(out)
    (damage,) = verify(out)
    assert re.fullmatch(line, str(damage))
    with pytest.raises(CacheError, match=rf"{damage.name}.*; give the limbeck cache command that filled it again"):
        Cached(str(out)).load(Student(toy["student"], dtype="float32").load(1))
    remade(asking(toy), out, rows, whole("sampled:50"))


def test_several_damages_at_once_are_all_named(toy: dict[str, str], whole: Whole, copied: Whole) -> None:
    """In the cache, in its head, and in the held-out text inside."""
    out, draw = copied("hidden"), np.random.default_rng(7)
    first, second = sorted((out / "shards").iterdir())[:2]
    inside = min((out / "held-out" / "shards").iterdir())
    rows = [pq.read_metadata(path).num_rows for path in (first, second, inside)]
    for path in (first, inside, out / "head.safetensors"):
        flipped(path, draw)
    second.unlink()
    assert {(found.name, found.rows) for found in verify(out)} == {
        *zip([first.name, second.name, inside.name], rows, strict=True),
        ("head.safetensors", 0),
    }
    remade(asking(toy, "hidden", held_out=Data(toy["heldout"])), out, sum(rows), whole("hidden"))
    same_rows(stored(out / "held-out"), stored(whole("hidden") / "held-out"))


def test_a_manifest_that_is_anothers_is_told(toy: dict[str, str], copied: Whole, tmp_path: Path) -> None:
    out = copied()
    annotate(replace(asking(toy), teacher=Local(toy["student"], dtype="float32")), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "manifest.json", out / "manifest.json")
    for look in (Cache.open, everything):
        with pytest.raises(CacheError, match=r"was written for \w+, and the manifest is of \w+: another teacher, tokenizer or setting; put back"):
            look(out)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "keep": (lambda said: said.update(keep="sampled:49"), "was changed: it says"),
    "seed": (lambda said: said.update(seed=1), "was changed: it says"),
    "teacher": (lambda said: said["teacher"].update(fingerprint="0" * 32), "was changed: it says"),
    "template": (lambda said: said["vocabulary"].update(rendered=""), "was changed: it says"),
    "identity": (lambda said: said.update(identity="0" * 32), "was changed: it says"),
    "no identity": (lambda said: said.pop("identity"), r"is damaged \(KeyError\)"),
    "no teacher": (lambda said: said.pop("teacher"), r"is damaged \(TypeError\)"),
    "a number": (lambda said: said.update(teacher=5), r"is damaged \(AttributeError\)"),
    "no rendering": (lambda said: said["vocabulary"].pop("rendered"), r"is damaged \(KeyError\)"),
    "more": (lambda said: said.update(more=1), r"is damaged \(TypeError\)"),
    "format": (lambda said: said.update(format=99), "is of format 99, and this program reads 1"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_manifest_that_was_changed_is_told(name: str, copied: Whole) -> None:
    out, (edit, line) = copied(), EDITS[name]
    said = read_json(out / "manifest.json")
    edit(said)
    write_json(out / "manifest.json", said)
    for look in (Cache.open, verify, lambda out: Cached(str(out)).says):
        with pytest.raises(CacheError, match=line) as told:
            look(out)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"format": 1', "\xff"])
def test_a_manifest_that_is_none_is_told(text: str, copied: Whole) -> None:
    out = copied()
    (out / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CacheError, match=r"manifest.json is damaged \(\w+\); put it back"):
        Cache.open(out)


def scale_edited(out: Path) -> None:
    said = read_json(out / "manifest.json")
    said["head"]["scale"] = 2.0
    write_json(out / "manifest.json", said)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda out: flipped(out / "head.safetensors", np.random.default_rng(0)),
        lambda out: (out / "head.safetensors").unlink(),
        scale_edited,
    ],
)
def test_a_head_that_is_not_the_teachers_is_told_and_nobody_asked_again(
    spoil: Callable[[Path], Any], toy: dict[str, str], whole: Whole, copied: Whole
) -> None:
    out = copied("hidden")
    spoil(out)
    assert [str(found) for found in verify(out)] == ["head.safetensors is damaged or missing (0 rows)"]
    with pytest.raises(CacheError, match=r"head.safetensors is (damaged|missing); give the limbeck cache command that filled it again"):
        everything(out)
    remade(asking(toy, "hidden"), out, 0, whole("hidden"))
    assert everything(out) == everything(whole("hidden"))


# Journals


def journal(out: Path) -> Path:
    (path,) = (out / "journal").glob("*.jsonl")
    return path


def test_a_torn_line_costs_nothing(toy: dict[str, str], whole: Whole, copied: Whole) -> None:
    """A process was killed while it wrote it: the shard is there, and is entered when it is found."""
    out = copied()
    path = journal(out)
    path.write_bytes(path.read_bytes()[:-20])
    assert len(stored(out)) < len(stored(whole("sampled:50")))
    assert verify(out) == [] and stored(out) == stored(whole("sampled:50"))
    remade(asking(toy), out, 0, whole("sampled:50"))


def test_a_lost_journal_costs_nothing(toy: dict[str, str], whole: Whole, copied: Whole) -> None:
    out = copied()
    before = Cache.open(out).shards.entered()
    shutil.rmtree(out / "journal")
    remade(asking(toy), out, 0, whole("sampled:50"))
    assert Cache.open(out).shards.entered() == before


@pytest.mark.parametrize(
    "line", [b"no JSON\n", b"5\n", b'{"rows": 1}\n', b'{"shard": "../../x.parquet", "rows": 1, "tokens": 1, "bytes": 1}\n', b"\xff\n"]
)
def test_a_journal_that_cannot_be_read_is_named_and_can_go(line: bytes, toy: dict[str, str], whole: Whole, copied: Whole) -> None:
    out = copied()
    path = journal(out)
    path.write_bytes(line + path.read_bytes())
    for look in (Cache.open, verify, lambda out: annotate(asking(toy), out)):
        with pytest.raises(CacheError, match=rf"{path.name} is damaged; remove it, and give the command that fills the cache again"):
            look(out)
    path.unlink()
    remade(asking(toy), out, 0, whole("sampled:50"))


def test_flipped_bits_in_journals_lose_no_row(toy: dict[str, str], whole: Whole, copied: Whole) -> None:
    """Whatever a line says then, the shards know better."""
    out, draw, wanted = copied(), np.random.default_rng(3), stored(whole("sampled:50"))
    for _ in range(12):
        path = sorted((out / "journal").glob("*.jsonl"))[0]
        flipped(path, draw)
        try:
            annotate(asking(toy), out)
        except CacheError as error:
            assert path.name in str(error)
            path.unlink()
            annotate(asking(toy), out)
        same_rows(stored(out), wanted)
    assert verify(out) == []


def test_a_folder_without_a_cache_is_told(tmp_path: Path) -> None:
    for look in (verify, Cache.open, lambda out: Cached(str(out)).says):
        with pytest.raises(LimbeckError, match=r"holds no cache, for there is no manifest.json in it; fill one: limbeck cache --teacher"):
            look(tmp_path)
