"""What a student learns from part of what the teacher says: the gradient from a cache beside the gradient from everything.

    python benchmarks/cache_gradient.py --teacher FOLDER --before FOLDER --after FOLDER --data gsm8k-train.jsonl

The gradient of the mean forward KL on all of a student's parameters, over the answers of GSM8K, for a student before and
after training. `sampled` and `stratified` are drawn and `top` is rounded by the code that fills caches; beside them two
ways that others treat the likeliest outcomes: `raw`, sum p log(p/q) over those alone, and `renormalised`, the same with p
divided by its sum. Reported: the angle to the gradient from whole distributions, the ratio of their norms, and the length
of their difference in lengths of that gradient; for draws the median, least and most over several seeds, and how the
difference shrinks when R independent draws are averaged: as 1/sqrt(R) where draws are unbiased, not at all where something
is biased.

All in float64 on weights of float32, but for the models' norms, which transformers always makes in float32. The gradient on
hidden states and head is by hand, `scale * q - said`, and shares no code with `limbeck/loss.py`, whose own gradient of the
first pass is compared with it.

Aimed at, from arXiv 2503.16870 (its angles: 4 degrees for draws, 58 for top-12): draws near the whole gradient, with a norm
ratio of 1, where truncation is far off. Held: after training 50 draws are 1.3 degrees off, stratified ones 0.6, the 12 likeliest
11, the 64 likeliest 6 and, with their tail, 2. Angles of draws shrink with the tokens that the mean is over; those of truncation do not.
Writes `benchmarks/results/cache_gradient.json` and `benchmarks/results/cache_gradient.svg`.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from measure import bars, machine
from torch import Tensor

from limbeck.batch import Batch, Text
from limbeck.data import Data
from limbeck.divergence import ForwardKL
from limbeck.files import read_jsonl, write_json, write_text
from limbeck.keep import Keep, kept
from limbeck.loss import Outputs, row_loss
from limbeck.machine import Opening
from limbeck.models import Model, open_model
from limbeck.objective import Objective
from limbeck.targets import Dense, Logits, Sampled, Targets, TopK

HERE = Path(__file__).parent
AVERAGED, REPEATS = "sampled:50", (1, 4, 16)
"""Of what, and of how many independent draws, averages are made."""
DRAWN = ("sampled:12", "sampled:50", "stratified:12", "stratified:50")
TRUNCATED = (12, 64)


def opened(name: str) -> Model:
    """A model in float64."""
    model = open_model(name, Opening("float32"))
    model.module.double().requires_grad_(False)
    return replace(model, compute=torch.float64)


def passes(model: Model, asked: argparse.Namespace) -> list[Batch]:
    """Rows of GSM8K from the first on until there are so many completion tokens, cut into passes."""
    data, texts = Data(str(asked.data), template=asked.template), list[Text]()
    for row in read_jsonl(asked.data):
        texts += model.vocabulary.texts({"prompt": row["question"], "completion": row["answer"]}, data, 1024)
        if sum(len(text.places) for text in texts) >= asked.tokens:
            break
    return Batch.of(texts, "corpus").split(asked.tokens_per_pass)


# What is said of each token


@dataclass(frozen=True)
class Known(Targets):
    """Log-probabilities in float64, already made, to be cut down as a cache does."""

    log_p_NV: Tensor
    fingerprint: str = "float64"

    def rows(self, chunk: slice) -> Logits:
        """Log-probabilities, which are logits too."""
        return Logits(self.log_p_NV[chunk])

    def select(self, rows_N: Tensor) -> "Known":
        """Never asked for."""
        raise NotImplementedError


@dataclass(frozen=True)
class Target:
    """Outcomes with weights: the gradient on the logits is `scale * q - said`.

    way "tail": what is left is one more outcome. said_NV: sparse; None for whole distributions.
    """

    way: Literal["plain", "raw", "renormalised", "tail"] = "plain"
    said_NV: Tensor | None = None
    log_tail_N: Tensor | None = None

    def gradient(self, p_NV: Tensor, log_q_NV: Tensor) -> tuple[Tensor | None, Tensor]:
        """The factor [N] of q, None for 1, and what is subtracted [N, V]."""
        if self.said_NV is None:
            return None, p_NV
        if self.way == "plain":
            return None, self.said_NV
        mass_N = self.said_NV.sum(1).to_dense()
        if self.way == "raw":
            return mass_N, self.said_NV
        if self.way == "renormalised":
            return None, _scaled(self.said_NV, 1 / mass_N)
        return self._tail(log_q_NV)

    def _tail(self, log_q_NV: Tensor) -> tuple[Tensor, Tensor]:
        """`q_j (1 - t/u)` off K and `q_j - p_j` on K, so `(1 - t/u) q` less `p - (t/u) q` on K."""
        assert self.said_NV is not None and self.log_tail_N is not None
        rows_E, ids_E = self.said_NV.indices()
        rest_NV = log_q_NV.index_put((rows_E, ids_E), torch.tensor(-math.inf, dtype=log_q_NV.dtype))
        share_N = (self.log_tail_N - rest_NV.logsumexp(-1)).exp()
        weight_E = self.said_NV.values() - share_N[rows_E] * log_q_NV[rows_E, ids_E].exp()
        return 1 - share_N, torch.sparse_coo_tensor(self.said_NV.indices(), weight_E, self.said_NV.shape, is_coalesced=True)


def _sparse(ids_NK: Tensor, weight_NK: Tensor, vocabulary: int) -> Tensor:
    rows_NK = torch.arange(len(ids_NK))[:, None].expand_as(ids_NK)
    places = torch.stack([rows_NK.flatten(), ids_NK.flatten()])
    return torch.sparse_coo_tensor(places, weight_NK.double().flatten(), (len(ids_NK), vocabulary)).coalesce()


def _scaled(said_NV: Tensor, factor_N: Tensor) -> Tensor:
    values_E = said_NV.values() * factor_N[said_NV.indices()[0]]
    return torch.sparse_coo_tensor(said_NV.indices(), values_E, said_NV.shape, is_coalesced=True)


def drawn(keep: Keep, known: Known, seed: tuple[int, int]) -> Sampled:
    """One drawing."""
    rows = len(known.log_p_NV)
    said = keep.targets(keep.of(known, rows, 1.0, keep.uniforms(np.random.default_rng(seed), rows)), None, "", 1.0)
    assert isinstance(said, Sampled)
    return said


def mean(drawings: Sequence[Sampled], vocabulary: int) -> Target:
    """The mean of independent drawings."""
    ids_NK, share_NK = torch.cat([each.ids_NK for each in drawings], 1), torch.cat([each.share_NK.double() for each in drawings], 1)
    return Target("plain", _sparse(ids_NK, share_NK / len(drawings), vocabulary))


def cut_down(known: Known, place: int, draws: int) -> dict[str, Target]:
    """Every target of a pass, by name; of draws `name/seed`, averages as `mean of R`."""
    found, vocabulary = {"full": Target()}, known.log_p_NV.shape[1]
    for name in DRAWN:
        seeds = range(max(draws, *REPEATS) if name == AVERAGED else draws)
        drawings = [drawn(kept(name), known, (place, seed)) for seed in seeds]
        found |= {f"{name}/{seed}": mean([drawings[seed]], vocabulary) for seed in range(draws)}
        if name == AVERAGED:
            found |= {f"mean of {repeats}": mean(drawings[:repeats], vocabulary) for repeats in REPEATS[1:]}
    for k in TRUNCATED:
        columns = kept(f"top:{k}").of(known, len(known.log_p_NV), 1.0, np.empty((len(known.log_p_NV), 0)))
        said = kept(f"top:{k}").targets(columns, None, "", 1.0)
        assert isinstance(said, TopK)
        said_NV = _sparse(said.ids_NK, said.log_p_NK.double().exp(), vocabulary)
        for way in ("raw", "renormalised", "tail"):
            found[f"top:{k} {way}"] = Target(way, said_NV, said.log_tail_N.double())
    return found


@dataclass(frozen=True)
class Lesson:
    """One pass: its text, what the teacher says of it, and that cut down in every way."""

    batch: Batch
    teacher: Dense
    targets: dict[str, Target]

    @property
    def log_p_NV(self) -> Tensor:
        """The teacher's log-probabilities, made anew."""
        return self.teacher.rows(slice(None)).logits_CV.log_softmax(-1)


@torch.no_grad()
def lessons(teacher: Model, parts: Sequence[Batch], draws: int) -> list[Lesson]:
    """What the teacher says, once for all students."""
    found = list[Lesson]()
    for place, batch in enumerate(parts):
        outputs = teacher.forward(batch)
        lesson = Lesson(batch, Dense(outputs.hidden_ND, outputs.head, "float64"), {})
        lesson.targets.update(cut_down(Known(lesson.log_p_NV), place, draws))
        found.append(lesson)
    return found


# What a student learns of it


class Learner:
    """A student whose parameters' gradients are added into whichever flat room is asked for."""

    def __init__(self, name: str) -> None:
        self.model = opened(name)
        self.model.module.requires_grad_(True)
        self.parameters = list(self.model.module.parameters())
        self.rooms = dict[str, Tensor]()

    def into(self, name: str) -> None:
        """Let gradients be added to the room of this name."""
        if name not in self.rooms:
            self.rooms[name] = torch.zeros(self.model.parameters_total, dtype=torch.float64)
        for parameter, part in zip(self.parameters, self.rooms[name].split([each.numel() for each in self.parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def learn(self, lesson: Lesson, names: Sequence[str]) -> None:
        """Add this pass's gradients: one forward pass, and one backward of the model's body for each target."""
        outputs = self.model.forward(lesson.batch)
        head, hidden_ND = outputs.head, outputs.hidden_ND.detach()
        assert head.bias_V is None and head.scale == 1.0 and head.cap is None, "only plain heads are differentiated here"
        with torch.no_grad():
            weight_VD = head.weight_VD[: head.vocabulary]
            log_q_NV, p_NV = (hidden_ND @ weight_VD.T).log_softmax(-1), lesson.log_p_NV.exp()
            q_NV = log_q_NV.exp()
            to_hidden_ND, to_weight_VD = q_NV @ weight_VD, q_NV.T @ hidden_ND  # the same for all that have no factor
            for name in names:
                self.into(name)
                factor_N, said_NV = lesson.targets[name].gradient(p_NV, log_q_NV)
                scaled_ND = to_hidden_ND if factor_N is None else factor_N[:, None] * to_hidden_ND
                outputs.hidden_ND.backward(scaled_ND - said_NV @ weight_VD, retain_graph=True)
                room_VD = head.weight_VD.grad[: head.vocabulary]
                room_VD += to_weight_VD if factor_N is None else q_NV.T @ (factor_N[:, None] * hidden_ND)
                room_VD -= said_NV.T @ hidden_ND


def compared(learner: Learner, taught: Sequence[Lesson], rooms: int) -> tuple[dict[str, dict[str, float]], float]:
    """Each target's gradient beside the full one, so many at a time as there are rooms; and the norm of the full one."""
    names, found = [name for name in taught[0].targets if name != "full"], dict[str, dict[str, float]]()
    tokens = sum(len(lesson.batch.places_N) for lesson in taught)
    for start in range(0, len(names), rooms):
        some, began = names[start : start + rooms], time.monotonic()
        for lesson in taught:
            learner.learn(lesson, ["full", *some] if start == 0 else some)
        full = learner.rooms["full"]
        found |= {name: beside(learner.rooms.pop(name), full) for name in some}
        print(f"{len(found)} of {len(names)} gradients, {time.monotonic() - began:.0f} s", flush=True)
    return found, float(learner.rooms["full"].norm()) / tokens


def beside(gradient: Tensor, full: Tensor) -> dict[str, float]:
    """Angle in degrees, ratio of norms, and length of the difference over that of the full gradient."""
    ratio, away = float(gradient.norm() / full.norm()), float((gradient - full).norm() / full.norm())
    cosine = float(gradient @ full / (gradient.norm() * full.norm()))
    return {"angle": math.degrees(math.acos(min(1.0, max(-1.0, cosine)))), "norm_ratio": ratio, "difference": away}


def limbeck_differs(learner: Learner, lesson: Lesson) -> dict[str, float]:
    """How far Limbeck's own gradients on hidden states and head are from those by hand, over their length, for one pass."""
    log_p_NV = lesson.log_p_NV
    with torch.no_grad():
        outputs = learner.model.forward(lesson.batch)
    hidden_ND, weight_VD = outputs.hidden_ND, outputs.head.weight_VD.detach()
    log_q_NV = (hidden_ND @ weight_VD[: outputs.head.vocabulary].T).log_softmax(-1)
    ways: dict[str, tuple[str, Callable[[], Targets]]] = {
        "full": ("full", lambda: lesson.teacher), 
        "sampled:50": ("sampled:50/0", partial(_cached, "sampled:50", log_p_NV)),
        "top:12 tail": ("top:12 tail", partial(_cached, "top:12", log_p_NV)),
    }  # fmt: skip
    found = dict[str, float]()
    for way, (name, said) in ways.items():
        factor_N, said_NV = lesson.targets[name].gradient(log_p_NV.exp(), log_q_NV)
        by_hand_NV = log_q_NV.exp() * (1 if factor_N is None else factor_N[:, None]) - (said_NV.to_dense() if said_NV.is_sparse else said_NV)
        hidden, weight = hidden_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
        row_loss(Outputs(hidden, replace(outputs.head, weight_VD=weight)), said(), lesson.batch, Objective([ForwardKL()]), 1.0)[0].backward()
        ours = torch.cat([hidden.grad.flatten(), weight.grad[: outputs.head.vocabulary].flatten()])
        hand = torch.cat([(by_hand_NV @ weight_VD[: outputs.head.vocabulary]).flatten(), (by_hand_NV.T @ hidden_ND).flatten()])
        found[way] = float((ours - hand).norm() / hand.norm())
    return found


def _cached(keep: str, log_p_NV: Tensor) -> Targets:
    """What a cache says of the first pass, drawn with the first seed."""
    rows, part = len(log_p_NV), kept(keep)
    return part.targets(part.of(Known(log_p_NV), rows, 1.0, part.uniforms(np.random.default_rng((0, 0)), rows)), None, "", 1.0)


# What is said of it all


def by_name(found: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Targets by name; where there are several draws of one, the median, least and most of each figure."""
    names = dict.fromkeys(name.partition("/")[0] for name in found)
    several = {name: [each for key, each in found.items() if key.partition("/")[0] == name] for name in names}
    return {
        name: dict(each[0]) if len(each) == 1 else {key: _spread([one[key] for one in each]) for key in each[0]} for name, each in several.items()
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def middle(value: float | dict[str, float]) -> float:
    """The figure itself, or its median."""
    return value["median"] if isinstance(value, dict) else value


def averaged(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By R: the angle, the difference, and the difference times the root of R, which stays the same where draws are unbiased."""
    by_r = {repeats: found[AVERAGED if repeats == 1 else f"mean of {repeats}"] for repeats in REPEATS}
    return {str(r): {"angle": middle(each["angle"]), "difference": middle(each["difference"]),
                     "difference_times_root_R": middle(each["difference"]) * math.sqrt(r)} for r, each in by_r.items()}  # fmt: skip


def printed(student: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    """A table of one student."""
    print(f"\n{student:24s} {'degrees':>8s} {'least':>8s} {'most':>8s} {'norm ratio':>11s} {'difference':>11s}")
    for name, each in found.items():
        angle = each["angle"]
        spread = f"{angle['min']:8.2f} {angle['max']:8.2f}" if isinstance(angle, dict) else f"{'':17s}"
        print(f"{name:24s} {middle(angle):8.2f} {spread} {middle(each['norm_ratio']):11.4f} {middle(each['difference']):11.4f}")


def main() -> None:
    """Measure all and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--teacher", "--before", "--after"):
        parser.add_argument(name, required=True)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--template", choices=("plain", "chat"), default="plain")
    parser.add_argument("--tokens", type=int, default=4096, help="completion tokens, at least")
    parser.add_argument("--tokens-per-pass", type=int, default=1024)
    parser.add_argument("--draws", type=int, default=3, help="seeds of each way to draw")
    parser.add_argument("--rooms", type=int, default=10, help="gradients held at once, each of 8 bytes a parameter, and one more")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    asked = parser.parse_args()
    torch.sparse.check_sparse_tensor_invariants.enable()
    began, teacher = time.monotonic(), opened(asked.teacher)
    parts = passes(teacher, asked)
    tokens = sum(len(part.places_N) for part in parts)
    taught = lessons(teacher, parts, asked.draws)
    print(f"{tokens:,} completion tokens of {sum(map(len, parts))} rows, {len(parts)} passes, {time.monotonic() - began:.0f} s", flush=True)
    del teacher
    students = dict[str, dict[str, Any]]()
    for student in ("before", "after"):
        learner = Learner(getattr(asked, student))
        differs = limbeck_differs(learner, taught[0])
        found, norm = compared(learner, taught, asked.rooms)
        told = by_name(found)
        students[student] = {"parameters": learner.model.parameters_total, "norm": norm, "limbeck_differs_by": differs,
                             "targets": told, "averaged": averaged(told)}  # fmt: skip
        printed(student, told)
        print(json.dumps({"norm": norm, "limbeck_differs_by": differs, "averaged": students[student]["averaged"]}), flush=True)
        del learner
    write_down(asked, tokens, sum(map(len, parts)), students)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")


def write_down(asked: argparse.Namespace, tokens: int, rows: int, students: dict[str, dict[str, Any]]) -> None:
    """The results as JSON, and the angles as bars."""
    said = {"machine": machine(), "template": asked.template, "completion_tokens": tokens, "rows": rows, "draws": asked.draws}
    asked.out.mkdir(parents=True, exist_ok=True)
    write_json(asked.out / "cache_gradient.json", {**said, "students": students})
    groups = {f"{student} training": {name: middle(each["angle"]) for name, each in found["targets"].items()} for student, found in students.items()}
    title = f"Angle to the gradient from whole distributions, {tokens:,} tokens"
    write_text(asked.out / "cache_gradient.svg", bars(groups, "degrees", title))


if __name__ == "__main__":
    main()
