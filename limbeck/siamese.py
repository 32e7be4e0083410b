"""Siamese augmentation: real and made images are changed alike before they are compared, and the change lets gradients through.

Axes: R rows; images [R, height, width] or [R, channel, height, width].
"""

import math

import torch
from torch import Tensor

from limbeck.config import Part, part
from limbeck.errors import RecipeError
from limbeck.networks import drawn


@part
class Siamese(Part):
    """Differentiable Siamese augmentation (Zhao & Bilen 2021, arXiv 2102.08259): one random change for real and made images of a comparison.

    shift: up to this share of height and width, each way. rotate_degrees: up to so many, either way. scale: from `1 - scale` to
    `1 + scale` times as large. brightness: up to so many standard deviations added. What is shifted in from outside is 0 as the
    network meets it. Departs: 1) all of them at once, where the paper draws one; 2) no flips, cut-outs or colours.
    """

    shift: float = 0.125
    rotate_degrees: float = 0.0
    scale: float = 0.0
    brightness: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("shift", 1.0), ("rotate_degrees", 180.0), ("scale", 0.9), ("brightness", math.inf)):
            if not 0 <= (found := getattr(self, name)) <= most or math.isinf(found):
                raise RecipeError(f"Siamese.{name} must lie between 0 and {most:g}, found {found}")

    def see(self, shape: tuple[int, ...]) -> None:
        """Raises RecipeError for examples that are no images."""
        if len(shape) not in (2, 3):
            raise RecipeError(f"Siamese changes images, found examples of shape {list(shape)}; leave augment out")

    def __call__(self, x_RF: Tensor, *place: int) -> Tensor:
        """The images, changed as this place says; the same place changes any images alike."""
        draw = torch.rand(5, generator=drawn(*place), dtype=torch.float64) * 2 - 1
        down, right, turn, grow, light = (float(value) for value in draw)
        angle, size = math.radians(turn * self.rotate_degrees), 1 / (1 + grow * self.scale)
        images = x_RF[:, None] if x_RF.ndim == 3 else x_RF
        high, wide = images.shape[-2:]
        cos, sin = size * math.cos(angle), size * math.sin(angle)
        matrix = [[cos, -sin * high / wide, 2 * self.shift * right], [sin * wide / high, cos, 2 * self.shift * down]]
        theta = torch.tensor(matrix, dtype=x_RF.dtype, device=x_RF.device).expand(len(images), 2, 3)
        grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
        moved = torch.nn.functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
        return moved.view_as(x_RF) + light * self.brightness
