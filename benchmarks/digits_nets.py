"""The networks of the benchmark of digits: a student and a teacher that read 64 numbers."""

import torch
from torch import nn


def small(seed: int = 0, width: int = 10) -> nn.Module:
    """One hidden layer."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def large(seed: int = 0, width: int = 256) -> nn.Module:
    """Two hidden layers, wide."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
