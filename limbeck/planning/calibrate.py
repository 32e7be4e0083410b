"""How fast this machine is with models of a shape, measured on shallow ones of random weights: at most a minute, kept in the user's cache.

A shallow model has one or three of the layers, the true widths and the true head. The program's own code works on it (`Student.learn`,
`Student.step`, the loss head, the decoder), at the number of threads and in the dtype of the run. Of passes the median seconds at two
depths and two sizes give the line `call + L layer + FLOPs / rate`. What was measured once for a machine, its versions and a shape is
not measured again, until it is asked for.
"""

import hashlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from limbeck.anatomy import Anatomy
from limbeck.batch import Batch
from limbeck.decoding import Plain, Request, Row, Sampling
from limbeck.errors import RecipeError
from limbeck.estimate import memory_here_bytes
from limbeck.files import read_json, write_json
from limbeck.head import Head
from limbeck.loss import Outputs, measure, pass_loss
from limbeck.machine import Opening, bfloat16_pays, device, hold_memory
from limbeck.models import Model, ready
from limbeck.objective import CrossEntropy, Objective
from limbeck.pen import copied
from limbeck.places import cache_folder, locate
from limbeck.planning.flops import learn_flops, read_flops
from limbeck.planning.roofline import Line, Machine, Speeds, heads_key, inside_key, on_kept, writing_key
from limbeck.planning.scene import made_up
from limbeck.planning.work import Actor, Heads, Inside, Learning, Piece, Reading, Writing
from limbeck.speculative import InTopK, Speculative
from limbeck.targets import Dense, Nothing, Targets

SECONDS = 55.0
"""When they have passed, what is left is taken as what is like it."""
CLOCK = time.perf_counter
"""A benchmark on a machine that it shares takes the seconds of its own process instead."""
DEPTHS = (1, 3)
HEAD_ROWS = (32, 224)
PAST = 128
"""Tokens that rows remember while writing is measured; no more than a quarter of the context."""
OTHERS = ("Span", "ULD", "Gold")
"""Terms whose targets only a pair of real vocabularies can make."""


@dataclass
class Here(Machine):
    """This machine, with what was measured of it so far."""

    measured: dict[str, Speeds] = field(default_factory=dict[str, Speeds])
    file: Path = Path()
    deadline: float = 0.0

    def prepare(self, pieces: Sequence[Piece]) -> None:
        """Measure what these pieces need and nobody measured yet."""
        self.deadline = time.monotonic() + SECONDS
        for name, actor in {shape_of(each): each for each in map(_who, pieces) if each is not None}.items():
            mine = [piece for piece in pieces if (who := _who(piece)) is not None and shape_of(who) == name]
            if name not in self.measured or _missing(self.measured[name], mine):
                print("measuring this machine with models of this shape; it is kept", file=sys.stderr)
                self.measured[name] = _Measuring(actor, mine, self).speeds(self.measured.get(name))
                self.save()

    def save(self) -> None:
        """Keep all that was measured."""
        facts = {"bytes_per_second": self.bytes_per_second, "disk_bytes_per_second": self.disk_bytes_per_second}
        write_json(self.file, {"machine": machine_facts(), **facts, "shapes": {name: asdict(each) for name, each in self.measured.items()}})

    def of(self, actor: Actor) -> Speeds:
        """The speeds of a model's shape."""
        return self.measured[shape_of(actor)]


def here(again: bool = False, usd_hour: float | None = None, folder: Path | None = None) -> Here:
    """This machine, as it was measured before or anew. folder: where what was measured is kept."""
    facts = machine_facts()
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    file = (folder or cache_folder()) / f"speeds-{digest}.json"
    known = dict[str, Any](read_json(file) if file.exists() and not again else {})
    for name, look in {"bytes_per_second": _bytes_per_second, "disk_bytes_per_second": lambda: _disk(file.parent)}.items():
        known[name] = known[name] if name in known else look()
    measured = {name: _speeds(each) for name, each in known.get("shapes", {}).items()}
    free = os.statvfs(file.parent)
    made = Here(
        facts["processor"], cast(Any, None), known["bytes_per_second"], known["disk_bytes_per_second"], memory_here_bytes(True),
        usd_hour=usd_hour, disk_bytes=float(free.f_bavail * free.f_frsize), narrow=bfloat16_pays(),
        notes=("measured on this machine with shallow models of the same shape",), measured=measured, file=file,
    )  # fmt: skip
    made.speeds = made.of
    return made


def machine_facts() -> dict[str, Any]:
    """What decides how fast this machine is: what was measured holds for these."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    processor = torch.cuda.get_device_name() if device().type == "cuda" else named or platform.machine()
    versions = {name: version(name) for name in ("limbeck", "torch", "transformers")}
    return {"processor": processor, "device": device().type, "cpus": os.cpu_count(), "threads": torch.get_num_threads(), **versions}


def shape_of(actor: Actor) -> str:
    """What of a model decides its speed, as text; depth is none of it."""
    model = actor.anatomy
    settings = replace(actor.learner, model="-", optimizer=replace(actor.learner.optimizer, learning_rate=1e-4)) if actor.learner else None
    sizes = [model.width, model.feed_forward, model.size("num_attention_heads", "n_head"), model.keys_values, model.head_rows]
    kind = str(model.config.get("model_type", "llama"))
    return json.dumps([kind, *sizes, actor.width, actor.masters, repr((settings.lora, settings.gradient_checkpointing)) if settings else None])


def _who(piece: Piece) -> Actor | None:
    return getattr(piece, "actor", None) or getattr(piece, "student", None)


def _missing(known: Speeds, pieces: Iterable[Piece]) -> bool:
    return any(
        (isinstance(piece, Heads) and piece.flops and _measurable(piece) and heads_key(piece) not in known.heads)
        or (isinstance(piece, Writing) and writing_key(piece) not in known.writing)
        or (isinstance(piece, Inside) and inside_key(piece) not in known.inside)
        for piece in pieces
    )


def _measurable(piece: Heads) -> bool:
    return not any(part in heads_key(piece) for part in OTHERS)


def _speeds(known: dict[str, Any]) -> Speeds:
    writing = {name: (float(layer), float(head), float(past)) for name, (layer, head, past) in known["writing"].items()}
    return Speeds(Line(**known["read"]), Line(**known["learn"]), known["heads"], writing, known["step_bytes_per_second"], known["inside"])


class _Measuring:
    """The measurement of one shape."""

    def __init__(self, actor: Actor, pieces: Sequence[Piece], machine: Here) -> None:
        self.actor, self.pieces, self.machine = actor, pieces, machine
        hold_memory()
        self.models = {depth: shallow(actor, depth) for depth in DEPTHS}

    def speeds(self, known: Speeds | None) -> Speeds:
        """All of it, or what is missing of what is known."""
        if known is None:
            learn, step = self._learn() if self.actor.learner else (None, 1e9)
            read = self._line(self._passes(), read_flops, lambda model, batch: lambda: self._read(model, batch))
            known = Speeds(read, learn or read, {}, {}, step)
        for piece in self.pieces:
            if isinstance(piece, Heads) and piece.flops and _measurable(piece) and heads_key(piece) not in known.heads and self._time_left:
                known.heads[heads_key(piece)] = self._heads(piece)
            if isinstance(piece, Writing) and writing_key(piece) not in known.writing and self._time_left:
                known.writing[writing_key(piece)] = self._writing(known, round(piece.rows), round(piece.each))
            if isinstance(piece, Inside) and inside_key(piece) not in known.inside and self._time_left:
                known.inside[inside_key(piece)] = self._inside(piece)
        return known

    @property
    def _time_left(self) -> bool:
        return time.monotonic() < self.machine.deadline

    def _passes(self) -> list[Batch]:
        """Two passes like those of the run: a single sequence of half the length, and a usual one."""
        learns = any(isinstance(piece, Learning) for piece in self.pieces)
        found = [piece for piece in self.pieces if isinstance(piece, Learning if learns else Reading)]  # prompts are read in smaller ones
        tokens = min(self.actor.anatomy.context or 2048, round(statistics.median([each.tokens for each in found] or [128])))
        rows = max(1, round(statistics.median([each.sequences for each in found] or [8])))
        return [Batch.of([made_up(length - 1, 1)] * count, "corpus") for count, length in ((1, max(4, tokens // 2)), (rows, max(8, tokens)))]

    def _read(self, model: Model, batch: Batch) -> None:
        with torch.no_grad():
            model.forward(batch)

    def _learn(self) -> tuple[Line, float]:
        """The line of learning, and the bytes a second of a step of the optimizer."""
        assert self.actor.learner is not None
        learners = {id(model): replace(self.actor.learner, model="-").holding(model, 100) for model in self.models.values()}
        steps = list[tuple[int, float]]()

        def work(model: Model, batch: Batch) -> Callable[[], float]:
            student, objective = learners[id(model)], Objective([CrossEntropy()])
            moving = sum(weight.numel() for weight in model.module.parameters() if weight.requires_grad)

            def once() -> float:
                seconds = timed(lambda: student.learn(batch, Nothing(), objective, 1e-3))
                steps.append((moving, timed(lambda: student.step(0))))
                return seconds

            return once

        def flops(model: Anatomy, rows: float, tokens: float) -> float:
            return learn_flops(model, rows, tokens, self.actor.moving if self.actor.adapters else 0, self.actor.again)

        line = self._line(self._passes(), flops, work)
        return line, statistics.median([32 * moving / seconds for moving, seconds in steps])

    def _line(self, batches: Sequence[Batch], flops: Callable[[Anatomy, float, float], float], work: Callable[[Model, Batch], Any]) -> Line:
        """The line through the medians, every one as heavy as any other; what would be negative is nothing."""
        rows, seconds = list[tuple[float, float, float]](), list[float]()
        for batch in batches:
            for depth, model in self.models.items():
                count = flops(self.actor.anatomy, len(batch), float(batch.lengths_B.max())) * depth / max(1, self.actor.anatomy.layers)
                rows.append((1.0, float(depth), count))
                seconds.append(median_seconds(work(model, batch)))
        call, layer, each = not_negative(np.array(rows), np.array(seconds))
        return Line(call, layer, 1 / max(each, 1e-18))

    def _heads(self, piece: Heads) -> float:
        """FLOPs a second: what more rows take more."""
        few, many = (median_seconds(self._head_work(piece, rows)) for rows in HEAD_ROWS)
        flops = replace(piece, rows=HEAD_ROWS[1] - HEAD_ROWS[0], times=1.0).flops
        return flops / max(many - few, 1e-9)

    def _head_work(self, piece: Heads, rows: int) -> Callable[[], object]:
        model = self.models[DEPTHS[0]]
        batch = replace(Batch.of([made_up(1, rows)], "student"), credit_B=torch.ones(1))
        draw = torch.Generator().manual_seed(0)

        def hidden(width: int) -> torch.Tensor:
            return torch.randn(rows, width, generator=draw).to(device(), model.compute)

        said: Targets = Nothing()
        if piece.scorer is not None:
            theirs = piece.scorer.anatomy
            weight = model.head.weight_VD.detach() if theirs.width == self.actor.anatomy.width else torch.randn(
                theirs.head_rows, theirs.width, generator=draw).to(device(), model.compute)  # fmt: skip
            said = Dense(hidden(theirs.width), Head(weight, model.vocabulary.size), "-")
        terms: list[Any] = [CrossEntropy()] if on_kept(piece) else list(piece.objective.row_terms)
        objective, mine = Objective(terms), hidden(self.actor.anatomy.width)
        if not piece.gradient:
            return lambda: measure(Outputs(mine, model.head), said, batch, objective)

        def learn() -> None:
            leaf = mine.clone().requires_grad_()
            pass_loss(Outputs(leaf, model.head), said, batch, objective, 1e-3)[0].backward()

        return learn

    def _inside(self, piece: Inside) -> float:
        """Seconds of a sequence and a pair of layers: of a pass with the terms what it takes more than without."""
        model, rows = self.models[DEPTHS[0]], max(1, round(piece.rows / piece.sequences))
        batch = Batch.of([made_up(max(1, round(piece.tokens) - rows), rows)] * round(piece.sequences), "student")
        terms = Objective([replace(cast(Any, term), map="even") for term in piece.objective.feature_terms]).load(model.build, model.build, 0)

        def plain() -> None:
            model.forward(batch).hidden_ND.sum().backward()

        def compared() -> None:
            with torch.no_grad():
                theirs = model.forward(batch, terms.opens[1])
            mine = model.forward(batch, terms.opens[0])
            loss, _ = pass_loss(mine, Dense(theirs.hidden_ND, theirs.head, "-", theirs.features), batch, terms, 1e-3)
            (loss + mine.hidden_ND.sum()).backward()

        def read() -> None:
            with torch.no_grad():
                model.forward(batch)

        more = median_seconds(compared) - median_seconds(plain) - median_seconds(read)
        return max(0.0, more) / round(piece.sequences)

    def _writing(self, known: Speeds, rows: int, each: int) -> tuple[float, float, float]:
        """Of one call of the model over `rows`: seconds of a layer and of all else. Of a verification those of its round, less the proposals'."""
        past = min(PAST, (self.actor.anatomy.context or 2048) // 4)
        found = [median_seconds(self._pen(model, rows, each, past), most=6) for model in self.models.values()]
        layer = (found[1] - found[0]) / (DEPTHS[1] - DEPTHS[0])
        rest = found[0] - DEPTHS[0] * layer
        if each > 1:
            if (one := f"{rows}x1") not in known.writing:
                known.writing[one] = self._writing(known, rows, 1)
            layer, rest = layer - each * known.writing[one][0], rest - each * known.writing[one][1]
        return max(0.0, layer), max(0.0, rest), float(past)

    def _pen(self, model: Model, rows: int, each: int, past: int) -> Callable[[], object]:
        """A call that appends a token to each row, or a round in which a model verifies as many of its own."""
        writer, sampling = copied(model, model.compute), Sampling(max_tokens=64)
        decoder: Any = Plain(writer, sampling) if each == 1 else Speculative(writer, writer, sampling, InTopK(self.actor.anatomy.head_rows), each)
        with torch.no_grad(), writer.arithmetic():
            state = decoder.gather([(decoder.read([[0] * past for _ in range(rows)]), list(range(rows)))])
        written = [Row(Request([0] * past, 0, n), 0, 64) for n in range(rows)]

        def once() -> None:
            with torch.no_grad(), writer.arithmetic():
                decoder.write_on(state, written)

        return once


def shallow(actor: Actor, depth: int) -> Model:
    """A model of random weights with the widths and the head of another, and `depth` layers."""
    config = _config(actor)
    config.num_hidden_layers = depth
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:depth]
    compute = torch.bfloat16 if actor.width == 2 else torch.float32
    with torch.random.fork_rng():
        module: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if actor.learner else compute)
    module = ready(module.to(device()), Opening(training=actor.again))
    vocabulary = cast(Any, SimpleNamespace(size=config.vocab_size, end_ids=frozenset[int]()))
    return Model(module, vocabulary, "-", compute, Head(module.get_output_embeddings().weight, config.vocab_size))


def _config(actor: Actor) -> Any:
    """The model's own configuration, or that of a Llama of its sizes."""
    model, place = actor.anatomy, locate(actor.anatomy.name) if actor.anatomy.name else None
    if place is not None and place.is_dir() and not model.own_code:
        try:
            found: Any = AutoConfig.from_pretrained(place)
            found = found.get_text_config()
            if type(found) in AutoModelForCausalLM._model_mapping:  # pyright: ignore[reportPrivateUsage]  # no other way to ask
                return found
        except (OSError, ValueError, KeyError):
            pass  # one that transformers does not know yet has a Llama of its sizes measured in its place
    heads = model.size("num_attention_heads", "n_head") or 1
    if not model.width or not model.head_rows:
        raise RecipeError(f"{model.name} says too little of its shape to be measured; give a folder with a config.json")
    return LlamaConfig(
        hidden_size=model.width, intermediate_size=model.feed_forward, num_attention_heads=heads, vocab_size=model.head_rows,
        num_key_value_heads=model.size("num_key_value_heads") or heads, max_position_embeddings=model.context or 4096,
    )  # fmt: skip


def timed(work: Callable[[], object], clock: Callable[[], float] = lambda: CLOCK()) -> float:
    """Seconds of one call, what an accelerator does in it waited for."""
    began = clock()
    work()
    if device().type != "cpu":
        torch.accelerator.synchronize()
    return clock() - began


def median_seconds(work: Callable[[], object], seconds: float = 0.6, most: int = 7) -> float:
    """Of several calls, one before them left out. `work` may say its seconds itself."""
    found, began = list[float](), time.perf_counter()
    work()
    while len(found) < 2 or (len(found) < most and time.perf_counter() - began < seconds):
        said = list[Any]()
        took = timed(lambda said=said: said.append(work()))
        found.append(said[0] if isinstance(said[0], float) else took)
    return statistics.median(found)


def not_negative(rows_NK: "np.ndarray[Any, Any]", seconds_N: "np.ndarray[Any, Any]") -> list[float]:
    """Least squares of relative errors with no factor below 0: of all choices of columns the best one that has none."""
    scaled = rows_NK / seconds_N[:, None]
    best, fewest = [0.0] * rows_NK.shape[1], np.inf
    for choice in range(1, 2 ** rows_NK.shape[1]):
        columns = [k for k in range(rows_NK.shape[1]) if choice >> k & 1]
        size = np.abs(scaled[:, columns]).max(0)
        found = np.linalg.lstsq(scaled[:, columns] / size, np.ones(len(scaled)), rcond=None)[0] / size
        error = float(((scaled[:, columns] @ found - 1) ** 2).sum())
        if (found >= 0).all() and error < fewest - 1e-12:
            best, fewest = [float(found[columns.index(k)]) if k in columns else 0.0 for k in range(rows_NK.shape[1])], error
    return best


def _bytes_per_second() -> float:
    a = torch.ones(2**25, device=device())
    b = torch.ones_like(a)
    return 8 * 2**25 / median_seconds(lambda: b.copy_(a), most=5)


def _disk(folder: Path) -> float:
    """Of writing, to the disk itself."""
    folder.mkdir(parents=True, exist_ok=True)
    file, text = folder / f".disk-{os.getpid()}", os.urandom(2**20) * 64

    def write() -> None:
        with file.open("wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())

    try:
        return len(text) / median_seconds(write, most=3)
    finally:
        file.unlink(missing_ok=True)
