"""What the ranks of a job have in common. One process is a job of one rank."""

import torch
import torch.distributed as dist


def rank() -> int:
    """Which of the ranks this is."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: list[float]) -> list[float]:
    """Each value summed over all ranks, in float64."""
    if ranks() == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()
