"""The picture of mode covering and mode seeking says what the library's divergences do; see `benchmarks/modes.py`."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks/modes.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("modes", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


modes = load()


@pytest.fixture(scope="module")
def fits() -> dict:
    return modes.results()


def test_forward_kl_takes_the_teachers_moments(fits: dict) -> None:
    teacher, found = modes.teacher(), fits["ForwardKL"]
    assert found.mean == pytest.approx(teacher.mean, rel=0.01)
    assert found.width == pytest.approx(teacher.width, rel=0.01)


def test_reverse_kl_takes_the_heavier_mode(fits: dict) -> None:
    found = fits["ReverseKL"]
    assert found.mean == pytest.approx(modes.HEAVY, abs=0.05)
    assert found.width == pytest.approx(modes.WIDTH, rel=0.1)
    assert found.mass_near_light < 0.01


@pytest.mark.parametrize("name", ["JSD(0.1)", "JSD(0.5)", "JSD(0.9)", "Jeffreys"])
def test_jsd_and_jeffreys_lie_between(fits: dict, name: str) -> None:
    seeking, found, covering = fits["ReverseKL"], fits[name], fits["ForwardKL"]
    assert seeking.mean < found.mean < covering.mean
    assert seeking.width < found.width < covering.width


def test_jsd_seeks_more_as_beta_grows(fits: dict) -> None:
    assert fits["JSD(0.1)"].width > fits["JSD(0.5)"].width > fits["JSD(0.9)"].width


@pytest.mark.parametrize("name", modes.DIVERGENCES)
def test_no_other_fit_is_nearer_by_a_divergence_than_its_own(fits: dict, name: str) -> None:
    """A wrong gradient would stop elsewhere."""
    students_C2 = torch.tensor([[found.mean, found.width] for found in fits.values()], dtype=torch.float64)
    students_C2[:, 1].log_()
    nats_C = modes.distance(modes.DIVERGENCES[name], students_C2)
    assert list(fits)[int(nats_C.argmin())] == name
    assert float(nats_C.min()) == pytest.approx(fits[name].value, abs=1e-9)


def test_the_gradient_vanishes_at_a_smooth_optimum(fits: dict) -> None:
    for name in fits.keys() - {"TotalVariation"}:
        student_12 = torch.tensor([[fits[name].mean, fits[name].width]], dtype=torch.float64)
        student_12[:, 1].log_()
        modes.distance(modes.DIVERGENCES[name], student_12.requires_grad_())
        assert float(student_12.grad.abs().max()) < 1e-4, name


def test_the_recorded_numbers_are_a_fresh_fits(fits: dict) -> None:
    recorded, fresh = json.loads(modes.RESULTS.read_text(encoding="utf-8")), json.loads(modes.as_json(fits))
    assert recorded["fits"].keys() == fresh["fits"].keys()
    for name, found in {**fresh["fits"], "teacher": fresh["teacher"]}.items():
        assert {**recorded["fits"], "teacher": recorded["teacher"]}[name] == pytest.approx(found, abs=1e-3)


def test_the_figure_is_drawn_from_the_fits(fits: dict) -> None:
    """The figure that is kept has the same words, numbers included, as one drawn now."""
    kept, drawn = (
        [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
        for svg in (modes.FIGURE.read_text(encoding="utf-8"), modes.figure(fits))
    )
    assert kept == drawn
    assert set(modes.DIVERGENCES) <= set(kept)
