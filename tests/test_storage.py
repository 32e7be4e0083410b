"""Runs, corpora and caches in a store: whatever happens on the way, the store ends as the folder of a run that nothing befell."""

from dataclasses import replace
from pathlib import Path

import pytest
import stores
import toys
from stores import files, machine, objects
from test_runs import recipe
from test_unbroken import forked

import limbeck as lb
from limbeck import storage
from limbeck.errors import LimbeckError


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> lb.Recipe:
    """Four steps with evaluations and checkpoints between them."""
    home = tmp_path_factory.mktemp("toys")
    toy = {"student": toys.folder(home / "student", seed=1, width=16), "teacher": toys.folder(home / "teacher", seed=2, width=16),
           "data": toys.jsonl(home / "data.jsonl", toys.rows(12))}  # fmt: skip
    held = lb.Likelihood(toys.jsonl(home / "heldout.jsonl", toys.rows(4, seed=2)))
    small = recipe("kd", toy, steps=4, save_every=2, evaluate_every=2, evaluations=[held], keep_last=1)
    return replace(small, source=replace(small.source, sequences=2))


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory) -> dict[str, bytes]:
    """The files of the run that nothing befell."""
    out = tmp_path_factory.mktemp("whole") / "run"
    lb.distill(made, out)
    return settled(files(out))


def settled(found: dict[str, bytes]) -> dict[str, bytes]:
    """Without clocks and the name of the command."""
    return {name: data for name, data in found.items() if name not in ("timings.jsonl", "provenance.json")}


def test_a_run_in_a_store_leaves_what_a_run_on_disk_leaves(made, whole, tmp_path) -> None:
    with machine(tmp_path / "one"), stores.s3() as bucket:
        lb.distill(made, f"{bucket}/runs/one")
        found = objects(f"{bucket}/runs/one")
        assert settled(found) == whole and {"timings.jsonl", "provenance.json"} <= found.keys()
        assert settled(files(storage.here(f"{bucket}/runs/one"))) == whole
