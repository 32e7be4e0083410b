"""Learning a few examples of each class that teach a network what all of the data do: by gradients, by trajectories, by distributions.

Axes: R rows of real data, S made ones, F the shape of one example, E width of an embedding. All is computed as the network meets
the numbers (see `examples.Scale`); the product is in the units of the data.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from limbeck.config import Part, live, part
from limbeck.data import Data
from limbeck.errors import DataError, LimbeckError, RecipeError
from limbeck.examples import Examples, Scale, read_examples, write_examples
from limbeck.experts import Experts
from limbeck.licences import Licence
from limbeck.machine import device
from limbeck.networks import ConvNet, Network, Weights, Wired, drawn, train
from limbeck.siamese import Siamese

REAL, START, NETWORK, EXPERT, SHUFFLE, ALIKE = range(6)
"""What random numbers are drawn for."""


# The three distances


def gradient_distance(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """`sum over layers and outputs of 1 - cos(real, made)` (arXiv 2006.05929, eq. 9): one number.

    Of a weight [out, ...] each output's gradient is a vector. Biases and other vectors are left out, as in the authors' program. An
    output whose gradient is exactly 0 has no direction and moves nothing: it counts 0 where both sides are 0, which agree, else 1.
    """
    total = made[0].new_zeros(())
    for a, b in zip(real, made, strict=True):
        if a.ndim < 2:
            continue
        a, b = a.flatten(1), b.flatten(1)
        sizes_a, sizes_b, dots = (a * a).sum(1), (b * b).sum(1), (a * b).sum(1)
        turned, silent = (sizes_a > 0) & (sizes_b > 0), (sizes_a == 0) & (sizes_b == 0)
        cosines = torch.where(turned, dots, 0.0) / (torch.where(turned, sizes_a, 1.0).sqrt() * torch.where(turned, sizes_b, 1.0).sqrt())
        total = total + (1 - cosines - silent.to(cosines)).sum()
    return total


def trajectory_distance(reached: Sequence[Tensor], start: Sequence[Tensor], goal: Sequence[Tensor]) -> Tensor:
    """`||reached - goal||^2 / ||start - goal||^2` over all weights together (arXiv 2203.11932, eq. 2): 1 where nothing was learnt, 0 at the goal."""
    far = sum(((a - b) ** 2).sum() for a, b in zip(start, goal, strict=True))
    left = sum(((a - b) ** 2).sum() for a, b in zip(reached, goal, strict=True))
    assert isinstance(far, Tensor) and isinstance(left, Tensor)
    return left / far


def distribution_distance(real_RE: Tensor, made_SE: Tensor) -> Tensor:
    """`||mean of real - mean of made||^2` of embeddings of one class (arXiv 2110.04181, eq. 4)."""
    return ((real_RE.mean(0) - made_SE.mean(0)) ** 2).sum()


def unrolled(loss: Callable[[Weights, Tensor, Tensor], Tensor], start: Weights, rate: Tensor, batches: Sequence[tuple[Tensor, Tensor]]) -> Weights:
    """Where SGD steps on these batches lead, as a function of batches and rate that can be differentiated. start: requires gradients."""
    weights = start
    for x, y in batches:
        gradients = torch.autograd.grad(loss(weights, x, y), weights, create_graph=True)
        weights = [weight - rate * gradient for weight, gradient in zip(weights, gradients, strict=True)]
    return weights


# What every way of making data small has in common


@dataclass(frozen=True)
class Product:
    """What came of it: the file, what is in it, and figures for its card."""

    file: Path
    rows: int
    figures: dict[str, Any]


class Condenser(Part, ABC):
    """Base of all ways to make data small: alive, it takes steps, and at any of them knows its state and can write its product."""

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """How many steps there are."""

    @abstractmethod
    def load(self, data: Data, seed: int, out: Path) -> Self:
        """Alive, before its first step."""

    @abstractmethod
    def step(self, step: int) -> dict[str, float]:
        """Take step `step`; its figures. What it does depends on seed, step and state alone."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that steps change."""

    @abstractmethod
    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""

    @abstractmethod
    def write(self, out: Path) -> Product:
        """Write the product into a folder."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Of the data it was loaded with."""

    @property
    def licences(self) -> list[Licence]:
        """Of what it uses beside the data."""
        return []


@part
class Matching(Condenser, ABC):
    """Base of those that learn examples: SGD moves `per_class` of each class so that a distance to the real ones falls.

    learning_rate, momentum: of the examples, in standard deviations of the data; with more of a class each feels less, so raise the
    rate with `per_class`. start: from real ones, drawn by the seed, or noise.
    real_rows: of a class, compared with at once. augment: changes images alike on both sides.
    """

    network: Network = field(default_factory=ConvNet)
    per_class: int = 1
    steps: int = 100
    learning_rate: float = 0.1
    momentum: float = 0.5
    start: Literal["real", "noise"] = "real"
    real_rows: int = 256
    augment: Siamese | None = None

    _examples: Any = live()
    _scale: Any = live()
    _wired: Any = live()
    _seed: Any = live()
    _fingerprint: Any = live()
    _x: Any = live()
    _y: Any = live()
    _optimizer: Any = live()

    def __post_init__(self) -> None:
        name = type(self).__name__
        if min(self.per_class, self.steps, self.real_rows) < 1:
            raise RecipeError(f"{name}: per_class, steps and real_rows must be at least 1, found {self.per_class}, {self.steps}, {self.real_rows}")
        if not 0 < self.learning_rate < float("inf") or not 0 <= self.momentum < 1:
            raise RecipeError(f"{name}: learning_rate must be above 0 and momentum from 0 to below 1, found {self.learning_rate}, {self.momentum}")

    def load(self, data: Data, seed: int, out: Path) -> Self:
        """Data read, the network proven to fit them, the first examples there."""
        real = read_examples(data.path)
        if self.augment:
            self.augment.see(real.shape)
        counts_C = torch.bincount(real.y_R)
        if int(counts_C.min()) < self.per_class:
            scarce = int(counts_C.argmin())
            raise DataError(f"{data.path}: {self.per_class} examples of each class were asked for, and class {scarce} has {int(counts_C[scarce])}")
        made = self.fresh()
        made._seed, made._scale, made._fingerprint = seed, Scale.of(real), real.fingerprint
        inward = made._scale.inward(real)
        made._wired = Wired(self.network, real.shape, real.classes)
        made._y = torch.arange(real.classes).repeat_interleave(self.per_class).to(device())
        made._x = made._first(inward).to(device()).requires_grad_()
        made._examples = replace(inward, x_RF=inward.x_RF.to(device()), y_R=inward.y_R.to(device()))
        made._optimizer = torch.optim.SGD(made.groups())
        return made

    def _first(self, real: Examples) -> Tensor:
        if self.start == "noise":
            return torch.randn(real.classes * self.per_class, *real.shape, generator=drawn(self._seed, START))
        rows = [real.rows_of(label) for label in range(real.classes)]
        picked = [each[torch.randperm(len(each), generator=drawn(self._seed, START, n))[: self.per_class]] for n, each in enumerate(rows)]
        return real.x_RF[torch.cat(picked)].clone()

    def groups(self) -> list[dict[str, Any]]:
        """What moves, and how fast."""
        return [{"params": [self._x], "lr": self.learning_rate, "momentum": self.momentum}]

    @property
    def total_steps(self) -> int:
        """As many as were asked for."""
        return self.steps

    @property
    def fingerprint(self) -> str:
        """Of the examples as they were read."""
        return self._fingerprint

    @abstractmethod
    def distances(self, step: int) -> Iterator[Tensor]:
        """Distances to lower, one after the other: the examples move after each."""

    def step(self, step: int) -> dict[str, float]:
        """Lower the distances of a step; their mean. Raises LimbeckError where one is not finite."""
        moving, found = [each for group in self.groups() for each in group["params"]], list[float]()
        for distance in self.distances(step):
            found.append(float(distance.detach()))
            gradients = torch.autograd.grad(distance, moving)
            if not all(bool(torch.isfinite(each).all()) for each in (distance, *gradients)):
                raise LimbeckError(f"step {step + 1}: the distance is {found[-1]} or its gradient not finite; lower learning_rate")
            for each, gradient in zip(moving, gradients, strict=True):
                each.grad = gradient
            self._optimizer.step()
        return {"distance": sum(found) / len(found)}

    def real(self, label: int, *place: int) -> Tensor:
        """Real examples of a class, drawn without putting back [R, F]."""
        rows = self._examples.rows_of(label)
        taken = torch.randperm(len(rows), generator=drawn(self._seed, REAL, label, *place))[: self.real_rows]
        return self._examples.x_RF[rows[taken.to(rows.device)]]

    def made(self, label: int) -> Tensor:
        """The made examples of a class [S, F]."""
        return self._x[label * self.per_class : (label + 1) * self.per_class]

    def alike(self, x: Tensor, *place: int) -> Tensor:
        """Changed as this place says, where anything is to be."""
        return self.augment(x, self._seed, ALIKE, *place) if self.augment else x

    def fresh_weights(self, step: int) -> Weights:
        """A network of this step, as it is before it learns."""
        return self._wired.fresh(self._seed, NETWORK, step)

    def state(self) -> dict[str, Tensor]:
        """What moves, and its momentum."""
        found = dict[str, Tensor]()
        for n, each in enumerate(each for group in self.groups() for each in group["params"]):
            found[f"value.{n}"] = each.detach()
            buffer = self._optimizer.state.get(each, {}).get("momentum_buffer")
            found |= {} if buffer is None else {f"momentum.{n}": buffer}
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put what moves where it was."""
        for n, each in enumerate(each for group in self.groups() for each in group["params"]):
            each.data.copy_(state[f"value.{n}"])
            if f"momentum.{n}" in state:
                self._optimizer.state[each] = {"momentum_buffer": state[f"momentum.{n}"].to(each.device).clone()}

    def write(self, out: Path) -> Product:
        """`corpus.jsonl` with features of few numbers, `corpus.safetensors` with all else; both are read back as the data were."""
        made = Examples(self._scale.outward(self._x.detach().cpu()), self._y.cpu(), self._examples.column)
        file = out / ("corpus.jsonl" if made.column == "features" else "corpus.safetensors")
        write_examples(file, made)
        return Product(file, len(made), {"classes": made.classes, "per_class": self.per_class, "shape": list(made.shape), **self.figures()})

    def figures(self) -> dict[str, Any]:
        """More for the card."""
        return {}


# The three of them


@part
class GradientMatching(Matching):
    """Gradient matching (Zhao et al. 2021, arXiv 2006.05929, algorithm 1): on a network, the made examples of a class give the real ones' gradient.

    A step is one network, from its first weights: `inner` times the examples move, and between these the network learns from them,
    `network_steps` times at `network_rate`. Departs: 1) a class with fewer than `real_rows` is compared with whole.
    """

    inner: int = 1
    network_steps: int = 10
    network_rate: float = 0.01

    def __post_init__(self) -> None:
        Matching.__post_init__(self)
        if self.inner < 1 or self.network_steps < 0 or not self.network_rate > 0:
            raise RecipeError("GradientMatching: inner must be at least 1, network_steps at least 0 and network_rate above 0")

    def distances(self, step: int) -> Iterator[Tensor]:
        """The sum over classes, at each point of a network's learning."""
        weights = self.fresh_weights(step)
        for turn in range(self.inner):
            yield torch.stack([self._of_class(label, weights, step, turn) for label in range(self._wired.classes)]).sum()
            if turn + 1 < self.inner:
                x = self._x.detach()
                train(self._wired, weights, x, self._y, self.network_steps, self.network_rate, len(x), (self._seed, SHUFFLE, step, turn))

    def _of_class(self, label: int, weights: Weights, step: int, turn: int) -> Tensor:
        def gradients(x: Tensor, create_graph: bool) -> Sequence[Tensor]:
            y = torch.full((len(x),), label, device=x.device)
            return torch.autograd.grad(self._wired.loss(weights, self.alike(x, step, turn, label), y), weights, create_graph=create_graph)

        return gradient_distance(gradients(self.real(label, step, turn), False), gradients(self.made(label), True))


@part
class DistributionMatching(Matching):
    """Distribution matching (Zhao & Bilen 2021, arXiv 2110.04181): on random networks that never learn, classes have the same mean embedding.

    A step is one network; the embedding is what its last linear layer reads. The cheapest of the three: nothing is differentiated twice.
    Departs: 1) nothing is augmented unless `augment` is given.
    """

    learning_rate: float = 1.0

    def load(self, data: Data, seed: int, out: Path) -> Self:
        """The network proven to have an embedding."""
        made = super().load(data, seed, out)
        made._wired.embedded(made.fresh_weights(0), made._x[:1].detach())
        return made

    def distances(self, step: int) -> Iterator[Tensor]:
        """The sum over classes."""
        weights = [weight.detach() for weight in self.fresh_weights(step)]
        yield torch.stack([self._of_class(label, weights, step) for label in range(self._wired.classes)]).sum()

    def _of_class(self, label: int, weights: Weights, step: int) -> Tensor:
        real, made = (self.alike(x, step, 0, label) for x in (self.real(label, step), self.made(label)))
        return distribution_distance(self._wired.embedded(weights, real), self._wired.embedded(weights, made))


@part
class TrajectoryMatching(Matching):
    """Trajectory matching (Cazenavette et al. 2022, arXiv 2203.11932): learning from the made examples leads where experts went.

    From an expert's weights after a random epoch, `latest` at most, `student_steps` on the made examples must lead to where the
    expert was `expert_epochs` later. rate: of these steps, learnt too, at `rate_learning_rate`; the card says what it became, and
    whoever learns from the product should begin with it. batch: made rows of a step, null for all.
    Departs: 1) the logarithm of the rate is learnt, so that it stays above 0; 2) no ZCA whitening.
    """

    learning_rate: float = 10.0
    experts: Experts = field(default_factory=Experts)
    student_steps: int = 10
    expert_epochs: int = 2
    latest: int = 10
    rate: float = 0.05
    rate_learning_rate: float = 0.01
    batch: int | None = None

    _trajectories: Any = live()
    _log_rate: Any = live()

    def __post_init__(self) -> None:
        Matching.__post_init__(self)
        if self.student_steps < 1 or self.expert_epochs < 1 or self.latest < 0 or not self.rate > 0 or self.rate_learning_rate < 0:
            raise RecipeError("TrajectoryMatching: student_steps and expert_epochs must be at least 1, latest and rate_learning_rate "
                              "at least 0, rate above 0")  # fmt: skip
        if self.batch is not None and self.batch < 1:
            raise RecipeError(f"TrajectoryMatching.batch must be at least 1, or null for all, found {self.batch}")
        if self.latest + self.expert_epochs > self.experts.epochs:
            raise RecipeError(f"TrajectoryMatching starts as late as epoch {self.latest} and looks {self.expert_epochs} further, where experts "
                              f"have {self.experts.epochs} epochs; lower latest, or give experts more epochs")  # fmt: skip

    def load(self, data: Data, seed: int, out: Path) -> Self:
        """Experts trained, or found."""
        made = super().load(data, seed, out)
        made._trajectories = self.experts.trained(made._wired, made._examples, out)
        return made

    def groups(self) -> list[dict[str, Any]]:
        """The rate of the student's steps moves too."""
        if self._log_rate is None:
            self._log_rate = torch.tensor(self.rate, device=device()).log().requires_grad_()
        return [*super().groups(), {"params": [self._log_rate], "lr": self.rate_learning_rate, "momentum": self.momentum}]

    def distances(self, step: int) -> Iterator[Tensor]:
        """Of one stretch of one expert."""
        draw = drawn(self._seed, EXPERT, step)
        expert = int(torch.randint(self.experts.count, (1,), generator=draw))
        epoch = int(torch.randint(self.latest + 1, (1,), generator=draw))
        start, goal = self._trajectories.at(expert, epoch), self._trajectories.at(expert, epoch + self.expert_epochs)
        reached = unrolled(self._wired.loss, [w.clone().requires_grad_() for w in start], self._log_rate.exp(), self._batches(step))
        yield trajectory_distance(reached, start, goal)

    def _batches(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """Made rows for each of the student's steps: each once, then each again."""
        rows, size = len(self._x), min(self.batch or len(self._x), len(self._x))
        turns = -(-size * self.student_steps // rows)
        orders = [torch.randperm(rows, generator=drawn(self._seed, SHUFFLE, step, turn)) for turn in range(turns)]
        line = torch.cat(orders).to(self._x.device)
        taken = [line[n * size : (n + 1) * size] for n in range(self.student_steps)]
        return [(self.alike(self._x[rows], step, n, 0), self._y[rows]) for n, rows in enumerate(taken)]

    def figures(self) -> dict[str, Any]:
        """The rate that was learnt."""
        return {"learning_rate": float(self._log_rate.detach().exp())}
