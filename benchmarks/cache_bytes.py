"""What a cache of teacher scores costs: bytes, what rounding does to them, how fast they are read, and how well it was foretold.

    python benchmarks/cache_bytes.py --teacher FOLDER --data gsm8k-train.jsonl

Rows of GSM8K (its question the prompt, its answer the completion), once as plain text and once by the chat template, each
kept in four ways: 50 draws, 50 stratified draws, the 64 likeliest outcomes, hidden states. Then made-up logits at a
vocabulary of 262,144, about as sharp as the real ones, where frequent tokens have numbers from anywhere: `shared` adds a
Zipf-like liking for some tokens that all share, `uniform`, the worst case, does not. "All bytes" are those of every file
of the cache, journals and manifest too, but for a head. The code length is that of the set of K outcomes drawn and of
their counts, `log2 C(V, K) + log2 C(S-1, K-1)`, were every set and every way to count S draws as likely as any other;
codes that know which tokens are frequent can be shorter. Errors of stored numbers are against float64, from the same logits.

Aimed at: 50 draws in 3.4 bytes an entry and 34 bytes a token of plain text, all bytes counted, and 1.25 times the code
length for outcomes and counts; 64 outcomes in 220 bytes a token; a million tokens a second read by one core; what an
annotation says beforehand within 10 % of what it then finds. The table that is printed at the end says which of them hold.
Writes `benchmarks/results/cache_bytes.json` and `benchmarks/results/cache_bytes.svg`.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from measure import bars, machine, seconds
from torch import Tensor

import limbeck.cache
from limbeck.annotate import Annotation, Estimate, Filling
from limbeck.batch import Batch, Text
from limbeck.cache import Cache, Manifest
from limbeck.data import Data
from limbeck.files import read_jsonl, write_json, write_jsonl, write_text
from limbeck.keep import Columns, Top, _chunks, kept
from limbeck.targets import Logits, Targets, TopK
from limbeck.teachers import Local

HERE = Path(__file__).parent
KEPT = ("sampled:50", "stratified:50", "top:64", "hidden")
TEMPLATES: tuple[Literal["plain", "chat"], ...] = ("plain", "chat")
WATCHED = 3
"""Passes whose logits are remembered, to compare with what was stored of them."""
PASS_TOKENS = {"passes of 2,048": 2048, "passes of 16,384": 16384}
LARGE, SEQUENCE = 262144, 128
"""Outcomes and completion tokens a sequence of made-up logits."""
SHAPES = {"shared": (6.9, 1.5), "uniform": (8.1, 0.0)}
"""Of made-up logits: how sharp a token is (mid), and how much it shares; found by trial for 1.8 nats and 10.5 unique outcomes of 50."""


# Real text


def text_file(data: Path, rows: int | None, folder: Path) -> Path:
    """The first rows, or all, as prompts with completions."""
    path = folder / f"text-{rows or 'all'}.jsonl"
    write_jsonl(path, [{"prompt": row["question"], "completion": row["answer"]} for row in read_jsonl(data)[:rows]])
    return path


class Watched(Filling):
    """A filling of a cache that notes what it said beforehand and what it then found, and some of what the teacher said."""

    def _so_far(self) -> tuple[int, int, int]:
        lines = self.cache.shards.entered().values()
        return tuple(sum(line[name] for line in lines) for name in ("rows", "tokens", "bytes"))

    def _estimate(self) -> Estimate:
        self.seen = list[tuple[Batch, Targets]]()
        self.said = super()._estimate()
        self.pilot = self._so_far()
        return self.said

    def _fill(self, interrupts: Any) -> None:
        took = seconds(partial(super()._fill, interrupts))
        self.found = Estimate(*(after - before for before, after in zip(self.pilot, self._so_far(), strict=True)), took)

    def _rows(self, batch: Batch, said: Any, temperature: float) -> Iterator[Columns]:
        if len(self.seen) < WATCHED:
            self.seen.append((batch, said))
        yield from super()._rows(batch, said, temperature)

    @property
    def foretold(self) -> dict[str, dict[str, float]]:
        """What was said, what was found, and by how much of the latter they differ."""
        said, found = asdict(self.said), asdict(self.found)
        return {name: {"said": said[name], "found": found[name], "error": said[name] / max(found[name], 1e-9) - 1} for name in said}

    @property
    def texts(self) -> list[Text]:
        """Every sequence."""
        return self._texts(range(len(self.rows)))


def filled(teacher: Local, path: Path, template: Literal["plain", "chat"], keep: str, out: Path) -> Watched:
    """A cache of this text, and how it was filled."""
    made = Watched(Annotation(teacher, Data(str(path), template=template), keep), teacher, out)
    made.run()
    return made


def real(teacher: Local, path: Path, template: Literal["plain", "chat"], keep: str, folder: Path, rounds: int) -> dict[str, Any]:
    """All that is measured of one cache."""
    made = filled(teacher, path, template, keep, folder / f"{template}-{keep.replace(':', '-')}")
    cache, vocabulary = Cache.open(made.out), teacher.opened.vocabulary.size
    found = {**sizes(cache, vocabulary), "foretold": made.foretold}
    if isinstance(cache.keep, Top):
        found["errors_nats"] = worst(errors(cache.targets(batch, 1.0), said, len(batch.places_N)) for batch, said in made.seen)
    found["tokens_per_second"] = decoding(cache, made.texts, rounds)
    return found


def foretold_tokens(teacher: Local, path: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Rows and tokens foretold of more rows than are tokenised for it, beside those that there are; only the pilot is asked about."""
    made = Watched(Annotation(teacher, Data(str(path), template="plain")), teacher, folder)
    made._estimate()
    texts = made.texts
    tokens = sum(len(text.places) for text in texts) - made.pilot[1]
    made.found = replace(made.said, rows=len(texts) - made.pilot[0], tokens=tokens)
    return {name: made.foretold[name] for name in ("rows", "tokens")}


# Made-up logits


@dataclass(frozen=True)
class Made(Targets):
    """Logits of a large vocabulary, at random, made anew whenever they are asked for: `sharpness * normal + liking`."""

    sharpness_N: Tensor
    liking_V: Tensor
    fingerprint: str = "made up"

    @staticmethod
    def of(tokens: int, sharpness: float, shared: float) -> "Made":
        """Tokens differ in sharpness; a liking falls with the logarithm of a rank, and ranks are dealt out at random."""
        draws = torch.Generator().manual_seed(0)
        log_rank_V = torch.arange(1, LARGE + 1).log()[torch.randperm(LARGE, generator=draws)]
        return Made(sharpness * (0.3 * torch.randn(tokens, generator=draws)).exp(), -shared * log_rank_V)

    def rows(self, chunk: slice) -> Logits:
        """The same for the same chunk."""
        sharpness_C = self.sharpness_N[chunk]
        draws = torch.Generator().manual_seed(1 + chunk.start)
        return Logits(torch.randn(len(sharpness_C), LARGE, generator=draws).mul_(sharpness_C[:, None]).add_(self.liking_V))

    def select(self, rows_N: Tensor) -> "Made":
        """Never asked for."""
        raise NotImplementedError


def made_up(said: Made, keep: str, folder: Path, rounds: int) -> dict[str, Any]:
    """The same for made-up logits, written as an annotation writes them."""
    teacher = {"model": "made up", "arithmetic": "float32", "fingerprint": "made up"}
    manifest = Manifest(teacher=teacher, vocabulary={"rendered": ""}, keep=keep, temperatures=[1.0])
    manifest.write(folder)
    cache, tokens = Cache(folder, manifest), len(said.sharpness_N)
    ids = torch.randint(LARGE, (tokens // SEQUENCE, SEQUENCE), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [Text.answered([0], answer, {}) for answer in ids]
    batch, lengths_B = Batch.of(texts, "corpus"), [SEQUENCE] * len(texts)
    uniform_NS = cache.keep.uniforms(np.random.default_rng(0), tokens)
    columns = cache.keep.of(said, tokens, 1.0, uniform_NS)
    span = {"temperature": 1.0, "starts": np.array([1]), "stops": np.array([1 + SEQUENCE])}
    cache.add_all({"key": key, **span, **row} for key, row in zip(cache.keys(batch, 1.0), cache.keep.cut(columns, lengths_B), strict=True))
    found = sizes(cache, LARGE)
    if isinstance(cache.keep, Top):
        found["errors_nats"] = errors(cache.targets(batch, 1.0), said, tokens)
    return {**found, "tokens_per_second": decoding(cache, texts, rounds)}


# What is measured


def sizes(cache: Cache, vocabulary: int) -> dict[str, Any]:
    """Bytes a token, an entry and a column, and beside them the code length where outcomes were drawn."""
    size, tokens = cache.bytes_and_tokens
    columns = column_bytes(cache)
    read = read_columns(cache, ["entropy", *({"unique"} & cache.keep.types.keys())])
    by_column = {name: each / tokens for name, each in columns.items()}
    found = {"tokens": tokens, "entropy_nats": read["entropy"].mean(), "bytes_a_token": size / tokens}
    found["bytes_a_token_by_column"] = {**by_column, "all else": (size - sum(columns.values())) / tokens}
    if isinstance(cache.keep, Top):
        found["bytes_an_entry"] = size / tokens / cache.keep.count
    if "unique" in read:
        code, drawn = code_bytes(read["unique"], vocabulary, cache.keep.count), sum(by_column[name] for name in cache.keep.types)
        found |= {"unique": read["unique"].mean(), "bytes_an_entry": size / read["unique"].sum(), "code_bytes_a_token": code}
        found |= {"drawn_over_code": drawn / code, "all_over_code": size / tokens / code}
    return found


def column_bytes(cache: Cache) -> dict[str, int]:
    """Compressed bytes of each column of all shards."""
    found = Counter[str]()
    for name in cache.shards.entered():
        metadata = cache.shards.open(name).metadata
        for group in range(metadata.num_row_groups):
            for place in range(metadata.num_columns):
                column = metadata.row_group(group).column(place)
                found[column.path_in_schema.partition(".")[0]] += column.total_compressed_size
    return dict(found)


def read_columns(cache: Cache, names: list[str]) -> Columns:
    """Columns of all shards, end to end."""
    tables = [cache.shards.read(name, names) for name in cache.shards.entered()]
    return {name: np.concatenate([table.column(name).combine_chunks().flatten().to_numpy() for table in tables]) for name in names}


def code_bytes(unique_N: Any, vocabulary: int, draws: int) -> float:
    """Mean bytes of a token's set of outcomes and of its counts, each set and each way to count as likely as any other."""
    bits = {k: _log2_choose(vocabulary, k) + _log2_choose(draws - 1, k - 1) for k in range(1, draws + 1)}
    return float(np.mean([bits[k] for k in unique_N.tolist()])) / 8


def _log2_choose(n: int, k: int) -> float:
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def errors(stored: Targets, said: Targets, rows: int) -> dict[str, float]:
    """The largest errors of stored log-probabilities and tails against float64, and by how much a likelier outcome was left out."""
    assert isinstance(stored, TopK)
    found = list[dict[str, float]]()
    for chunk, logits_CV in _chunks(said, rows):  # the same chunks, so the same logits
        log_p_CV = logits_CV.double().log_softmax(-1)
        ids_CK, log_p_CK, log_tail_C = stored.ids_NK[chunk], stored.log_p_NK[chunk], stored.log_tail_N[chunk]
        rest_CV = log_p_CV.scatter(1, ids_CK, float("-inf"))
        exact_CK = log_p_CV.gather(1, ids_CK)
        off = {"log_p": exact_CK - log_p_CK, "log_tail": rest_CV.logsumexp(-1) - log_tail_C}
        off["likelier_left_out"] = (rest_CV.amax(-1) - exact_CK.amin(-1)).clamp(min=0)
        found.append({name: float(each.abs().max()) for name, each in off.items()})
    return worst(found)


def worst(found: Any) -> dict[str, float]:
    """The largest of each."""
    found = list(found)
    return {name: max(each[name] for each in found) for name in found[0]}


def decoding(cache: Cache, texts: Sequence[Text], rounds: int) -> dict[str, dict[str, float]]:
    """Completion tokens a second on one core, shuffled, by the size of a pass: from files, from memory, and by `Keep.targets` alone."""
    threads, readers = torch.get_num_threads(), pa.cpu_count()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    try:
        order = np.random.default_rng(0).permutation(len(texts))
        whole = Batch.of([texts[place] for place in order], "corpus")
        found = {name: _decoding(cache, passes(whole, tokens), rounds) for name, tokens in PASS_TOKENS.items()}
        return {**found, "nothing held": {"from files": nothing_held(cache, passes(whole, 2048)[:8])}}
    finally:
        torch.set_num_threads(threads)
        pa.set_cpu_count(readers)


def passes(whole: Batch, tokens: int) -> list[Batch]:
    """Cut as training cuts a step: sequences in the order they were drawn, so many tokens at once."""
    ends_B = whole.lengths_B.cumsum(0)
    which_B = (ends_B - 1) // tokens
    return [whole.select((which_B == place).nonzero()[:, 0].tolist()) for place in which_B.unique().tolist()]


def _decoding(cache: Cache, parts: Sequence[Batch], rounds: int) -> dict[str, float]:
    works: dict[str, Callable[[Cache], float]] = {  # the system may hold the files, a new cache holds nothing of them
        "from files": lambda opened: seconds(partial(_all_targets, opened, parts)),
        "from memory": lambda opened: seconds(partial(_all_targets, opened, parts)),
        "columns alone": lambda opened: _alone(opened, [_columns(opened, part) for part in parts]),
    }
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        opened = Cache.open(cache.folder)
        for name, work in works.items():
            found[name].append(work(opened))
    tokens = sum(len(part.places_N) for part in parts)
    return {name: round(tokens / statistics.median(times[1:])) for name, times in found.items()}


def nothing_held(cache: Cache, parts: Sequence[Batch]) -> int:
    """Tokens a second, shuffled, of a cache so much larger than what is held of it that each row is read with its whole group."""
    held, limbeck.cache.HELD_BYTES = limbeck.cache.HELD_BYTES, 0
    opened = Cache.open(cache.folder)
    try:
        return round(sum(len(part.places_N) for part in parts) / seconds(partial(_all_targets, opened, parts)))
    finally:
        limbeck.cache.HELD_BYTES = held


def _all_targets(cache: Cache, parts: Sequence[Batch]) -> None:
    for part in parts:
        cache.targets(part, 1.0)


def _alone(cache: Cache, columns: Sequence[Columns]) -> float:
    head = cache.head
    return seconds(lambda: [cache.keep.targets(each, head, "", 1.0) for each in columns])


def _columns(cache: Cache, part: Batch) -> Columns:
    """The columns of a pass, its sequences end to end, as `Cache.targets` lays them."""
    rows = [cache._row(key) for key in cache.keys(part, 1.0)]
    columns = {name: np.concatenate([row[name] for row in rows]) for name in ("entropy", *cache.keep.types)}
    return {name: each.reshape(len(columns["entropy"]), -1) if cache.keep.types.get(name) == "binary" else each for name, each in columns.items()}


# What is said of it


def aims(found: dict[str, dict[str, Any]]) -> list[tuple[str, float, str, bool]]:
    """What was aimed at: what, the figure, the aim, and whether it holds."""
    plain, top = found["plain, sampled:50"], found["plain, top:64"]
    told = {what: max((abs(each["foretold"][what]["error"]), name) for name, each in found.items() if "foretold" in each)
            for what in ("tokens", "bytes", "seconds")}  # fmt: skip
    lines = [
        ("sampled:50, plain, bytes an entry", plain["bytes_an_entry"], "<=", 3.4),
        ("sampled:50, plain, bytes a token", plain["bytes_a_token"], "<=", 34),
        ("sampled:50, plain, drawn over code length", plain["drawn_over_code"], "<=", 1.25),
        ("sampled:50, plain, everything over code length", plain["all_over_code"], "<=", 1.25),
        ("top:64, plain, bytes a token", top["bytes_a_token"], "<=", 220),
        *(("262,144 " + shape + ", top:64, bytes a token", found[f"262,144 {shape}, top:64"]["bytes_a_token"], "<=", 220) for shape in SHAPES),
        ("sampled:50, plain, tokens/s on one core, from files", plain["tokens_per_second"]["passes of 2,048"]["from files"], ">=", 1e6),
        ("top:64, plain, tokens/s on one core, from files", top["tokens_per_second"]["passes of 2,048"]["from files"], ">=", 1e6),
        *((f"foretold {what}, largest error ({name})", error, "<=", 0.1) for what, (error, name) in told.items()),
    ]
    return [(what, value, f"{sign} {aim:,}", value <= aim if sign == "<=" else value >= aim) for what, value, sign, aim in lines]


COLUMNS = ("entropy_nats", "unique", "bytes_a_token", "bytes_an_entry", "drawn_over_code", "all_over_code")


def printed(found: dict[str, dict[str, Any]]) -> None:
    """A table of all, and one of aims. Speed: thousands of tokens a second, from files, from memory, of columns alone, nothing held."""
    heads = ("nats", "unique", "B/token", "B/entry", "x code", "all x")
    print(f"\n{'':30s}" + "".join(f"{head:>9s}" for head in (*heads, "files", "memory", "columns", "unheld")))
    for name, each in found.items():
        figures = "".join(f"{each[key]:9.2f}" if key in each else f"{'':9s}" for key in COLUMNS)
        speed = [*each["tokens_per_second"]["passes of 2,048"].values(), each["tokens_per_second"]["nothing held"]["from files"]]
        print(f"{name:30s}{figures}" + "".join(f"{each / 1000:8,.0f}k" for each in speed))
    for name, each in found.items():
        off = each.get("errors_nats", {}) | {f"foretold {what}": value["error"] for what, value in each.get("foretold", {}).items()}
        print(f"{name}: errors of " + ", ".join(f"{what} {value:.2g}" for what, value in off.items()) if off else "", end="\n" if off else "")
    for what, value, aim, holds in aims(found):
        print(f"{what:64s}{value:14,.3f}  {aim:>12s}  {'holds' if holds else 'MISSED'}")


def plotted(found: dict[str, dict[str, Any]]) -> str:
    """Bytes a token by column, of all that keep outcomes."""
    shown = {name: each["bytes_a_token_by_column"] for name, each in found.items() if "hidden" not in name}
    names = ("unique", "id_gaps", "counts", "ids", "drops", "log_tail", "entropy", "logsumexp")
    groups = dict[str, dict[str, float]]()
    for name, each in shown.items():
        some = {column: each[column] for column in names if column in each}
        groups[name] = {**some, "all else": sum(each.values()) - sum(some.values())}
        if "code_bytes_a_token" in found[name]:
            groups[name]["code length"] = found[name]["code_bytes_a_token"]
    return bars(groups, "B", "Bytes a token that a cache takes, by column")


def main() -> None:
    """Measure all and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--made-up-tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    asked = parser.parse_args()
    found, began = dict[str, dict[str, Any]](), time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        path = text_file(asked.data, asked.rows, Path(work))
        teacher = Local(asked.teacher).load(None)
        whole = foretold_tokens(teacher, text_file(asked.data, None, Path(work)), Path(work) / "whole")
        for template in TEMPLATES:
            for keep in KEPT:
                found[f"{template}, {keep}"] = real(teacher, path, template, keep, Path(work), asked.rounds)
                print(json.dumps({f"{template}, {keep}": found[f"{template}, {keep}"]}, default=float), flush=True)
        for shape, (sharpness, shared) in SHAPES.items():
            for keep in ("sampled:50", "top:64"):
                said, out = Made.of(asked.made_up_tokens, sharpness, shared), Path(work) / f"{shape}-{kept(keep).word}"
                found[f"262,144 {shape}, {keep}"] = made_up(said, keep, out, asked.rounds)
    arithmetic = str(teacher.opened.compute).removeprefix("torch.")
    result = {"machine": machine(), "arithmetic": arithmetic, "rows": asked.rows, "found": found, "foretold_of_all_rows": whole}
    asked.out.mkdir(parents=True, exist_ok=True)
    write_json(asked.out / "cache_bytes.json", json.loads(json.dumps(result, default=float)))
    write_text(asked.out / "cache_bytes.svg", plotted(found))
    printed(found)
    print(f"foretold of all rows: {json.dumps(whole)}")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
