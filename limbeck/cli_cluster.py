"""What the commands have in common that can be done on a cluster."""

from typing import Annotated, Any

import typer

On = Annotated[str | None, typer.Option("--on", metavar="ray|ADDRESS", help="On a cluster: ray (the one that RAY_ADDRESS names, else one begun on "
                                                                          "this machine), auto, HOST:PORT or ray://HOST:PORT.")]  # fmt: skip
Workers = Annotated[int | None, typer.Option("--workers", help="On a cluster: how many; by default as many as there is room for.")]
Needs = Annotated[list[str] | None, typer.Option("--resource", metavar="NAME=NUMBER", help="On a cluster: what each worker is given: num_cpus=1, "
                                                                                           "num_gpus=1, memory (bytes), or a name of your own.")]  # fmt: skip


def spread(on: str, workers: int | None, needs: list[str] | None, job: str, *asked: Any) -> Any:
    """Do a job on a cluster."""
    from importlib import import_module

    from limbeck.cluster import Resources, joined

    with joined(on, Resources.of(needs or [], workers)) as cluster:
        return import_module(f"limbeck.spread.{job}").spread(cluster, *asked)
