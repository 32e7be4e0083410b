"""Asking a teacher once: its scores of all sequences of some data, kept in a cache.

The work is cut into pieces of rows. A process takes a piece that nobody else has, asks the teacher about the sequences of
it that the cache does not hold, and writes them as one shard; so several processes may fill one cache, and one that is
killed loses no more than its piece. What a sequence is told depends on its content and the seed alone.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.batch import Batch, Span, Text
from limbeck.cache import HELD_OUT, Cache, Manifest, folders, written_head
from limbeck.data import Data, Row
from limbeck.errors import CacheError, DataError, RecipeError, Stopped
from limbeck.files import sweep
from limbeck.interrupt import Interrupted, Interrupts, in_force
from limbeck.keep import Columns, kept
from limbeck.licences import from_plain, of_recorded, plain_licences
from limbeck.nodes import see_one_machine
from limbeck.places import fingerprint
from limbeck.progress import Progress, clock
from limbeck.shards import Damage
from limbeck.storage import here, writing
from limbeck.teachers import Local

PIECE_ROWS = 256
"""Rows of the data that are worked on at once and become one shard."""
PILOT_ROWS, SAMPLE_ROWS = 64, 2000
"""Rows spread over the data: asked about first, to tell how long and how large; and tokenised, to tell how many tokens."""
PILOT = 2**40
"""The piece of work that asking about them is."""
WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Annotation:
    """What is asked: of which teacher, about which text, and what is kept of it.

    temperatures: each is kept apart, in one pass of the teacher. held_out: text to evaluate on, its first
    `held_out_rows` kept with every probability, as `held-out` inside the folder.
    """

    teacher: Local
    data: Data
    keep: str = "sampled:50"
    temperatures: list[float] = field(default_factory=lambda: [1.0])
    max_tokens: int = 1024
    seed: int = 0
    tokens_per_pass: int = 2048
    held_out: Data | None = None
    held_out_rows: int = 64

    def __post_init__(self) -> None:
        kept(self.keep)
        if min(self.max_tokens, self.tokens_per_pass, self.held_out_rows) < 1:
            raise RecipeError("max_tokens, tokens_per_pass and held_out_rows must be at least 1")
        if not self.temperatures or not all(0 < each < float("inf") for each in self.temperatures):
            raise RecipeError(f"temperatures must be above 0 and finite, found {', '.join(map(str, self.temperatures))}")
        if not 0 <= self.seed < 2**63:
            raise RecipeError(f"seed must lie between 0 and 2^63, found {self.seed}")


@dataclass(frozen=True)
class Estimate:
    """What is still to come. bytes of the scores alone; seconds on this machine, in one process, where a pilot was made."""

    rows: int
    tokens: int
    bytes: int
    seconds: float | None

    def __str__(self) -> str:
        if not self.rows:
            return "nothing more is to come"
        time = f" and {clock(self.seconds)} minutes" if self.seconds is not None else ""
        return f"{self.rows:,} rows are to come, about {self.tokens:,} completion tokens, {self.bytes / 1e6:,.1f} MB{time}"


def annotate(asked: Annotation, out: Path | str) -> Cache:
    """Fill a cache with what a teacher says of some data; what is there already is not asked again, what is damaged is.

    Raises LimbeckError, in one line, for what is the user's to mend; Stopped where a signal asked for the end, after saving.
    """
    out = here(out)
    see_one_machine(out)
    with writing(out):
        return [each.run() for each in fillings(asked, out)][-1]


def fillings(asked: Annotation, out: Path) -> "list[Filling]":
    """The caches that are to be filled, that of all rows last."""
    teacher = asked.teacher.load(None)
    whole = Filling(asked, teacher, out)
    if asked.held_out is None:
        return [whole]
    held = replace(asked, data=asked.held_out, keep="hidden", held_out=None)
    return [Filling(held, teacher, out / HELD_OUT, asked.held_out_rows), whole]


def verify(out: Path | str) -> list[Damage]:
    """Read every byte of a cache: what is missing or damaged."""
    found = list[Damage]()
    for folder in folders(here(out)):
        cache = Cache(folder, Manifest.read(folder), known=False)
        found += cache.shards.verify()
        try:
            _ = cache.head
        except CacheError:
            found.append(Damage("head.safetensors", "is damaged or missing", 0))
    return found


@dataclass(frozen=True)
class Filled:
    """How much a cache holds. tokens: completion tokens; bytes: all below the folder, a head and held-out text left out."""

    rows: int
    tokens: int
    bytes: int

    @staticmethod
    def of(cache: Cache) -> "Filled":
        """Of a cache that is open."""
        size, tokens = cache.bytes_and_tokens
        return Filled(len(cache), tokens, size)


class Filling:
    """One cache being filled by this process."""

    def __init__(self, asked: Annotation, teacher: Local, out: Path, rows: int | None = None) -> None:
        self.asked, self.teacher, self.out = asked, teacher, out
        teacher.opened.see_cacheable()
        self.limit = min(asked.max_tokens, teacher.opened.context)
        self.rows: Sequence[Row] = asked.data.rows()[:rows]
        self.temperatures = sorted(set(asked.temperatures)) if kept(asked.keep).tempered else [1.0]
        self.cache = self._open()

    def run(self) -> Cache:
        """Fill it."""
        with Interrupts(patient=False) as interrupts:
            try:
                print(f"{self.out}: {self.begin()}", flush=True)
                self._fill(interrupts)
            except Interrupted as stop:
                go_on = "the same command goes on"
                raise Stopped(f"{self.out}: stopped after {len(self.cache):,} rows, which are saved; {go_on}", stop.number) from None
        self._see_filled()
        return self.cache

    def begin(self) -> Estimate:
        """Mend what is there, and tell what is to come."""
        self._repair()
        return self._estimate()

    @cached_property
    def pieces(self) -> list[range]:
        """The places of the rows of each piece."""
        return [range(start, min(start + PIECE_ROWS, len(self.rows))) for start in range(0, len(self.rows), PIECE_ROWS)]

    def fill(self, piece: int) -> int:
        """One piece, when nobody else has it; how many tokens were read."""
        progress = Progress("annotating", len(self.pieces[piece]))
        while not self._filled(piece, progress, in_force()):
            time.sleep(WAIT_SECONDS)
        return progress.tokens

    def filled(self) -> Filled:
        """What is there, whoever wrote it."""
        self.cache.refresh()
        self._see_filled()
        return Filled.of(self.cache)

    def _see_filled(self) -> None:
        if not len(self.cache):
            raise DataError(f"{self.asked.data.path}: no row has a completion within {self.limit} tokens; raise max_tokens, or give other rows")

    def _filled(self, piece: int, progress: Progress, interrupts: Interrupts) -> bool:
        """Whether a piece could be claimed, and was filled."""
        with self.cache.shards.claimed(piece) as mine:
            if mine:
                self.cache.refresh()
                self._piece(self.pieces[piece], progress, interrupts)
        return mine

    def _open(self) -> Cache:
        """The cache, new or as it was left. Raises CacheError for one of another teacher, tokenizer or setting."""
        model, there = self.teacher.opened, (self.out / "manifest.json").is_file()
        wanted = Manifest(
            teacher={**_without_size(model.described), "fingerprint": fingerprint(self.teacher.model), "quantization": self.teacher.quantization},
            vocabulary=model.vocabulary.traits, keep=self.asked.keep, temperatures=self.temperatures, seed=self.asked.seed,
            text={"data": self.asked.data.path, "max_tokens": self.limit}, licences=plain_licences(self.asked.teacher.licences),
        )  # fmt: skip
        if there:
            found = Manifest.read(self.out)
            if found.identity != wanted.identity:
                raise CacheError(f"{self.out} is another cache ({_difference(found, wanted)}); give another --out, or ask for the same")
            told = from_plain(found.licences, str(self.out / "manifest.json"))
            licences = plain_licences(of_recorded(told, self.asked.teacher.model))
            wanted = replace(wanted, temperatures=sorted({*found.temperatures, *self.temperatures}), head=found.head, licences=licences)
        kept(self.asked.keep).fit(model.vocabulary.size)
        if self.asked.keep == "hidden":
            wanted = replace(wanted, head=written_head(self.out, model.head.prepared(model.compute)))
        wanted.write(self.out)
        return Cache(self.out, wanted, known=False)

    def _repair(self) -> None:
        """Forget what is damaged, and say so; remove what a killed process left half written: nobody writes a file for an hour."""
        sweep(self.out, seconds=3600)
        for damage in self.cache.shards.verify():
            print(f"{self.out}: {damage}; they are made again", flush=True)
            self.cache.shards.drop(damage)
        self.cache.refresh()

    def _texts(self, places: Sequence[int]) -> list[Text]:
        """The sequences of some rows."""
        made = [self.teacher.opened.vocabulary.texts(self.rows[place], self.asked.data, self.limit) for place in places]
        return [text for texts in made for text in texts]

    def _unseen(self, texts: Sequence[Text]) -> list[Text]:
        """Those that the cache does not hold at every temperature; each sequence once, with the completions of all its cuts."""
        wanted = dict[bytes, set[int]]()
        tokens = dict[bytes, list[int]]()
        for text in texts:
            key = self.cache.key(text.tokens, 1.0)
            tokens[key] = text.tokens
            wanted.setdefault(key, set()).update(text.places)
        found = [(each, places, [self._held(each, temperature) for temperature in self.temperatures])
                 for each, places in zip(tokens.values(), wanted.values(), strict=True)]  # fmt: skip
        return [Text(each, _runs(places.union(*held))) for each, places, held in found if not all(places <= there for there in held)]

    def _held(self, tokens: list[int], temperature: float) -> set[int]:
        """The places of a sequence that the cache knows."""
        return {place for start, stop in self.cache.spans(self.cache.key(tokens, temperature)) for place in range(start, stop)}

    def _estimate(self) -> Estimate:
        """What is to come, from a pilot of rows spread over the data, whose scores are kept."""
        spread = [len(self.rows) * n // SAMPLE_ROWS for n in range(SAMPLE_ROWS)] if len(self.rows) > SAMPLE_ROWS else range(len(self.rows))
        sample = self._texts(spread)
        unseen = self._unseen(sample)
        with self.cache.shards.claimed(PILOT) as mine:
            pilot = unseen[:: max(1, len(unseen) // PILOT_ROWS)][:PILOT_ROWS] if mine else []
            seconds = time.monotonic()
            with Progress("pilot", len(pilot)).showing() as progress:
                self.cache.add_all(self._asked(pilot, progress))
            seconds = time.monotonic() - seconds
        entered = self.cache.shards.entered().values()
        tokens = max(1, sum(line["tokens"] for line in entered))
        share = len(self.rows) / len(spread) if sample else 0.0
        asked_tokens = max(1, sum(len(text.places) for text in pilot))
        left = max(0.0, sum(len(text.places) for text in unseen) * share - asked_tokens)
        size = sum(line["bytes"] for line in entered) / tokens * len(self.temperatures)
        return Estimate(round(len(unseen) * share) - len(pilot), round(left), round(left * size), left * seconds / asked_tokens if pilot else None)

    def _fill(self, interrupts: Interrupts) -> None:
        left = list(range(len(self.pieces)))
        with Progress("annotating", len(self.rows)).showing() as progress:
            while left:
                left = [piece for piece in left if not self._filled(piece, progress, interrupts)]
                if left:  # another process has them, and may yet die
                    time.sleep(WAIT_SECONDS)

    def _piece(self, places: range, progress: Progress, interrupts: Interrupts) -> None:
        """Ask about what is unseen of a piece, and write it, or as much of it as there is when asked to stop."""
        before, rows = progress.done, list[Columns]()
        try:
            rows.extend(self._asked(self._unseen(self._texts(places)), progress))
        finally:
            with interrupts.held():
                self.cache.add_all(rows)
        progress.advance(before + len(places) - progress.done)

    def _asked(self, texts: Sequence[Text], progress: Progress) -> Iterator[Columns]:
        """What the teacher says of these sequences, a row for each and each temperature."""
        if not texts:
            return
        parts = Batch.of(list(texts), "corpus").split(self.asked.tokens_per_pass)
        for batch, said in zip(parts, self.teacher.score(parts), strict=True):
            for temperature in self.temperatures:
                yield from self._rows(batch, said, temperature)
            progress.advance(len(batch), len(batch.tokens_T))

    def _rows(self, batch: Batch, said: Any, temperature: float) -> Iterator[Columns]:
        keep, keys = self.cache.keep, self.cache.keys(batch, temperature)
        tokens_B = torch.bincount(batch.sequence_N, minlength=len(batch)).tolist()
        draws = [np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))) for key in keys]
        uniform_NS = np.concatenate([keep.uniforms(each, tokens) for each, tokens in zip(draws, tokens_B, strict=True)])
        columns = keep.of(said, len(batch.places_N), temperature, uniform_NS)
        spans = [_spans(places) for places in np.split((batch.places_N - batch.starts_B[batch.sequence_N]).numpy(), np.cumsum(tokens_B)[:-1])]
        for key, (starts, stops), row in zip(keys, spans, keep.cut(columns, tokens_B), strict=True):
            if self.cache.spans(key) == tuple(zip(starts.tolist(), stops.tolist(), strict=True)):  # at another temperature it was missing
                continue
            yield {"key": key, "temperature": temperature, "starts": starts, "stops": stops, **row}  # pyright: ignore[reportReturnType]


def _runs(places: set[int]) -> list[Span]:
    """Places as stretches."""
    starts, stops = _spans(np.array(sorted(places)))
    return [Span(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True)]


def _spans(places_N: Any) -> tuple[Any, Any]:
    """Where runs of places begin and end."""
    (breaks,) = (np.diff(places_N) != 1).nonzero()
    return places_N[[0, *(breaks + 1)]], places_N[[*breaks, len(places_N) - 1]] + 1


def _without_size(described: dict[str, Any]) -> dict[str, Any]:
    return {name: described[name] for name in ("model", "arithmetic")}


def _difference(found: Manifest, wanted: Manifest) -> str:
    """The first thing in which two caches differ, in words."""
    pairs = {"keep": (found.keep, wanted.keep), "seed": (found.seed, wanted.seed)}
    pairs |= {f"its teacher's {name}": (found.teacher.get(name), wanted.teacher.get(name)) for name in wanted.teacher if name != "model"}
    pairs |= {f"its tokenizer's {name}": (found.vocabulary.get(name), wanted.vocabulary.get(name)) for name in wanted.vocabulary}
    return next((f"{name} is {there} there, {here} here" for name, (there, here) in pairs.items() if there != here), "another setting")
