"""What the ranks of a job have in common. One process is a job of one rank."""

from limbeck.lazy import torch


def rank() -> int:
    """Which of the ranks this is."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def ranks() -> int:
    """How many there are."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def sum_over_ranks(values: list[float]) -> list[float]:
    """Each value summed over all ranks, in float64."""
    if ranks() == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(total)
    return total.tolist()
