"""Networks that tell classes apart, for data that is condensed: built anew from a seed as often as is needed, and called with any weights.

Axes: R rows; F the shape of one example; C classes; E width of the embedding, which is what the last linear layer reads.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import field
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.config import Part, import_object, part
from limbeck.errors import RecipeError
from limbeck.machine import device
from limbeck.reward import blaming

Weights = list[Tensor]
"""Of one network, in the order of its parameters."""


def drawn(*where: int) -> torch.Generator:
    """Random numbers that belong to a place: the same seed and place, the same numbers, whatever was drawn before."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(where).generate_state(1, np.uint64)[0] >> 1))


class Network(Part, ABC):
    """Base of all that can be built for some shape of examples and some number of classes."""

    @classmethod
    def adopt(cls, value: object) -> object:
        """`module:function` alone may stand for a network of one's own."""
        return CustomNetwork(value) if isinstance(value, str) and ":" in value and "(" not in value else value

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A fresh module: [R, *shape] to logits [R, classes]. Raises RecipeError where it cannot be."""


@part
class MLP(Network):
    """Linear layers with ReLU between them. widths: of the hidden ones."""

    widths: list[int] = field(default_factory=lambda: [64])

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.widths):
            raise RecipeError(f"MLP.widths must be at least 1, found {self.widths}")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Any shape: examples are laid flat."""
        widths = [int(np.prod(shape)), *self.widths]
        hidden = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], classes))


@part
class ConvNet(Network):
    """The network of the papers on condensing (arXiv 2006.05929): blocks of a 3 x 3 convolution, instance norm, ReLU and 2 x 2 mean pooling.

    width: channels of each block; depth: how many blocks.
    """

    width: int = 32
    depth: int = 2

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 1:
            raise RecipeError(f"ConvNet.width and ConvNet.depth must be at least 1, found {self.width} and {self.depth}")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Images [height, width] or [channel, height, width]."""
        if len(shape) not in (2, 3):
            raise RecipeError(f"ConvNet reads images, found examples of shape {list(shape)}; give MLP()")
        channels, high, wide = (1, *shape) if len(shape) == 2 else cast(tuple[int, int, int], shape)
        if min(high, wide) >> self.depth < 1:
            raise RecipeError(f"ConvNet.depth={self.depth} halves images of {high} x {wide} to nothing; give less")
        blocks = list[nn.Module]()
        for entering in [channels, *[self.width] * (self.depth - 1)]:
            blocks += [nn.Conv2d(entering, self.width, 3, padding=1), nn.GroupNorm(self.width, self.width), nn.ReLU(), nn.AvgPool2d(2)]
        places = (high >> self.depth) * (wide >> self.depth)
        return nn.Sequential(nn.Unflatten(1, (1, high)) if len(shape) == 2 else nn.Identity(), *blocks, nn.Flatten(),
                             nn.Linear(self.width * places, classes))  # fmt: skip


@part
class CustomNetwork(Network):
    """A user's own: `module:function`, called with (shape of one example, number of classes), returns an `nn.Module` with fresh weights."""

    function: str

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """What the function returns."""
        with blaming(self.function):
            made = import_object(self.function)(shape, classes)
        if not isinstance(made, nn.Module):
            raise RecipeError(f"{self.function} gave {type(made).__name__}; return an nn.Module from (shape, classes)")
        return made


class Wired:
    """A network as a function of its weights. It is in evaluation mode: nothing in it is drawn at random, nothing but the weights is learnt."""

    def __init__(self, network: Network, shape: tuple[int, ...], classes: int, dtype: torch.dtype = torch.float32) -> None:
        self.network, self.shape, self.classes, self.dtype = network, shape, classes, dtype
        self.module = self._built(0)
        self.names = [name for name, _ in self.module.named_parameters()]
        self._see()
        self._last = _last_linear(self.module)

    def _built(self, *where: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(drawn(*where).initial_seed())
            return self.network.build(self.shape, self.classes).to(self.dtype).eval()

    @property
    def _name(self) -> str:
        return getattr(self.network, "function", type(self.network).__name__)

    def _see(self) -> None:
        """Refuse what cannot be condensed with: no weights, batch norm, an output of another shape."""
        name = self._name
        if not self.names:
            raise RecipeError(f"{name} has no weights to learn; give a network that has")
        if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in self.module.modules()):  # pyright: ignore[reportPrivateUsage]
            raise RecipeError(f"{name} has batch norm, whose running means are no weights; take nn.GroupNorm or nn.InstanceNorm2d in its place")
        try:
            with torch.no_grad():
                found = list(self.module(torch.zeros(2, *self.shape, dtype=self.dtype)).shape)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            reason = str(error).split("\n")[0][:200]
            raise RecipeError(f"{name} cannot read examples of shape {list(self.shape)} ({reason}); give a network that can") from None
        if found != [2, self.classes]:
            raise RecipeError(f"{name} gives {found} for 2 examples where the labels have {self.classes} classes; let it give [2, {self.classes}]")
        self.module.to(device())

    def fresh(self, *where: int) -> Weights:
        """Weights as they are before learning, of a network that belongs to this place."""
        return [weight.detach().to(device()).requires_grad_() for weight in self._built(*where).parameters()]

    def logits(self, weights: Sequence[Tensor], x_RF: Tensor) -> Tensor:
        """Logits [R, C] with these weights."""
        return torch.func.functional_call(self.module, dict(zip(self.names, weights, strict=True)), (x_RF,))

    def loss(self, weights: Sequence[Tensor], x_RF: Tensor, y_R: Tensor) -> Tensor:
        """Mean cross-entropy of the rows, in nats."""
        return nn.functional.cross_entropy(self.logits(weights, x_RF), y_R)

    def embedded(self, weights: Sequence[Tensor], x_RF: Tensor) -> Tensor:
        """What the last linear layer reads [R, E]. Raises RecipeError where there is none."""
        if self._last is None:
            raise RecipeError(f"{self._name} has no nn.Linear, before which examples are compared; give a network that ends in one")
        read = list[Tensor]()
        handle = self._last.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        try:
            self.logits(weights, x_RF)
        finally:
            handle.remove()
        return read[-1].flatten(1)

    @property
    def fingerprint(self) -> str:
        """A name for the network: the names, shapes and first weights that seed 0 gives it."""
        found = hashlib.blake2b(repr(self.shape).encode(), digest_size=16)
        for name, weight in self._built(0).named_parameters():
            found.update(f"{name} {list(weight.shape)}".encode() + weight.detach().numpy().tobytes())
        return found.hexdigest()


def _last_linear(module: nn.Module) -> nn.Module | None:
    return next((layer for layer in reversed(list(module.modules())) if isinstance(layer, nn.Linear)), None)


Look = Callable[[int, Weights], None]


def train(
    wired: Wired, weights: Weights, x_RF: Tensor, y_R: Tensor, epochs: int, rate: float, batch: int, place: Sequence[int], momentum: float = 0.0,
    each: Look = lambda epoch, weights: None, change: Callable[[Tensor, int, int], Tensor] = lambda x_RF, epoch, first: x_RF,
) -> Weights:  # fmt: skip
    """Plain SGD over shuffled rows, `epochs` times round; weights move in place.

    place: where its random numbers belong. each: told the weights after each epoch. change: what is done to a batch before it is learnt.
    """
    optimizer = torch.optim.SGD(weights, lr=rate, momentum=momentum)
    for epoch in range(epochs):
        order_R = torch.randperm(len(y_R), generator=drawn(*place, epoch)).to(y_R.device)
        for first in range(0, len(y_R), batch):
            rows = order_R[first : first + batch]
            optimizer.zero_grad()
            loss: Any = wired.loss(weights, change(x_RF[rows], epoch, first), y_R[rows])
            loss.backward()
            optimizer.step()
        each(epoch + 1, weights)
    return weights


@torch.no_grad()
def accuracy(wired: Wired, weights: Weights, x_RF: Tensor, y_R: Tensor) -> float:
    """The share of rows whose class has the highest logit."""
    return float((wired.logits(weights, x_RF).argmax(1) == y_R).double().mean())
