"""Small labelled data, made here: three kinds of 6 x 6 pictures, and the same numbers as features."""

from pathlib import Path

import torch
import toys

from limbeck.examples import Examples, write_examples

CLASSES, SIDE = 3, 6


def pictures(per_class: int = 14, seed: int = 0) -> Examples:
    """A bar that lies, a bar that stands, a blot; each somewhere, with noise."""
    draw = torch.Generator().manual_seed(seed)
    x, y = 0.5 * torch.randn(CLASSES * per_class, SIDE, SIDE, generator=draw), torch.arange(CLASSES).repeat(per_class)
    for row, label in enumerate(y.tolist()):
        at = int(torch.randint(1, SIDE - 2, (1,), generator=draw))
        where = [(at, slice(None)), (slice(None), at), (slice(at, at + 2), slice(at, at + 2))][label]
        x[row][where] += 3
    return Examples(5 + 2 * x, y, "image")


def features(per_class: int = 14, seed: int = 0) -> Examples:
    """The pictures laid flat."""
    found = pictures(per_class, seed)
    return Examples(found.x_RF.flatten(1), found.y_R, "features")


def stored(folder: Path, examples: Examples, suffix: str = ".safetensors") -> str:
    """As a file, in a folder with a licence."""
    folder.mkdir(exist_ok=True)
    toys.licensed(folder)
    write_examples(folder / f"data{suffix}", examples)
    return str(folder / f"data{suffix}")
