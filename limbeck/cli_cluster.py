"""What the commands have in common that can be done on a cluster."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from limbeck.errors import RecipeError

CLUSTER = "On a cluster: ray (the one that RAY_ADDRESS names, else one begun on this machine), auto or HOST:PORT."
On = Annotated[str | None, typer.Option("--on", metavar="ray|ADDRESS", help=CLUSTER)]
Workers = Annotated[int | None, typer.Option("--workers", help="On a cluster: how many; by default as many as there is room for.")]
GIVEN = "On a cluster: what each worker is given: num_cpus=1, num_gpus=1, memory (bytes), or a name of your own."
Needs = Annotated[list[str] | None, typer.Option("--resource", metavar="NAME=NUMBER", help=GIVEN)]


def placed(on: str | None, workers: int | None, needs: list[str] | None, here: Callable[[], Any], job: str, *asked: Any) -> Any:
    """Do a job: here, or on a cluster, as `limbeck.spread` knows it by name."""
    if on is None:
        if workers is not None or needs:
            raise RecipeError(f"--{'resource' if needs else 'workers'} says what workers of a cluster are; give --on ray with it")
        return here()
    from importlib import import_module

    from limbeck.cluster import Resources, joined

    with joined(on, Resources.of(needs or [], workers)) as cluster:
        return import_module(f"limbeck.spread.{job}").spread(cluster, *asked)
