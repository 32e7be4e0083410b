"""The distances that examples are learnt by, against slow float64; what is differentiated through, against finite differences."""

from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from labelled import features, pictures, stored
from torch import nn

from limbeck.data import Data
from limbeck.errors import CheckpointError, DataError, LimbeckError, RecipeError
from limbeck.examples import Examples
from limbeck.experts import Experts
from limbeck.matching import (
    DistributionMatching,
    GradientMatching,
    Matching,
    TrajectoryMatching,
    distribution_distance,
    gradient_distance,
    trajectory_distance,
    unrolled,
)
from limbeck.networks import MLP, ConvNet, CustomNetwork, Wired, accuracy, drawn, train
from limbeck.siamese import Siamese

LINEAR = MLP([])
WAYS = [
    GradientMatching(ConvNet(4, 1), 2, steps=4, inner=2),
    DistributionMatching(ConvNet(4, 1), 2, steps=4),
    TrajectoryMatching(ConvNet(4, 1), 2, steps=4, experts=Experts(count=2, epochs=3, batch=16), latest=1, student_steps=3, batch=4),
]


def alive(way: Matching, folder: Path, examples: Examples | None = None, seed: int = 0) -> Matching:
    return way.load(Data(stored(folder, examples or pictures())), seed, folder)


def tensors(draw: torch.Generator, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in shapes]


SHAPES = ((3, 4), (3,), (5, 3, 2, 2), (2, 5))


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_distance_is_the_papers(seed: int) -> None:
    draw = drawn(seed)
    real, made = tensors(draw, *SHAPES), tensors(draw, *SHAPES)
    real[0][1], made[2][0], real[3][1], made[3][1] = 0, 0, 0, 0  # no direction on one side, and on both
    found = float(gradient_distance(real, made))
    assert found == pytest.approx(oracles.gradient_distance([each.numpy() for each in real], [each.numpy() for each in made]), rel=1e-12)


def test_the_gradient_distance_has_its_ends() -> None:
    real = tensors(drawn(1), *SHAPES)
    outputs = 3 + 5 + 2
    assert float(gradient_distance(real, [3 * each for each in real])) == pytest.approx(0, abs=1e-9)  # direction alone counts
    assert float(gradient_distance(real, [-each for each in real])) == pytest.approx(2 * outputs)
    nothing = [0 * each for each in real]
    assert float(gradient_distance(real, nothing)) == outputs and float(gradient_distance(nothing, nothing)) == 0


def test_the_gradient_of_the_gradient_distance_is_right_and_finite_without_a_direction() -> None:
    real, made = tensors(drawn(2), (3, 4)), tensors(drawn(3), (3, 4))
    assert torch.autograd.gradcheck(lambda each: gradient_distance(real, [each]), made[0].requires_grad_())
    silent = made[0].detach().clone()
    silent[1] = 0
    silent.requires_grad_()
    (gradient,) = torch.autograd.grad(gradient_distance(real, [silent]), silent)
    assert torch.isfinite(gradient).all() and (gradient[1] == 0).all() and (gradient[0] != 0).all()


def test_the_distribution_distance_is_the_papers() -> None:
    real, made = tensors(drawn(4), (7, 5), (2, 5))
    assert float(distribution_distance(real, made)) == pytest.approx(oracles.distribution_distance(real.numpy(), made.numpy()), rel=1e-12)


def test_the_trajectory_distance_and_its_steps_are_the_papers() -> None:
    wired, draw = Wired(LINEAR, (4,), 3, torch.float64), drawn(5)
    start, goal = wired.fresh(1), wired.fresh(2)
    batches = [(torch.randn(6, 4, generator=draw, dtype=torch.float64), torch.arange(6) % 3) for _ in range(3)]
    reached = unrolled(wired.loss, start, torch.tensor(0.3, dtype=torch.float64), batches)
    found = float(trajectory_distance(reached, start, goal).detach())
    plain = [tuple(each.detach().numpy() for each in some) for some in (start, goal)]
    wanted = oracles.trajectory_distance(plain[0], plain[1], [(x.numpy(), y.numpy()) for x, y in batches], 0.3)
    assert found == pytest.approx(wanted, rel=1e-10) and abs(found - 1) > 1e-3
    assert float(trajectory_distance(start, start, goal).detach()) == 1.0 and float(trajectory_distance(goal, start, goal).detach()) == 0.0


def smooth(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Smooth, so that finite differences are right about it."""
    return nn.Sequential(nn.Linear(shape[0], 3), nn.Tanh(), nn.Linear(3, classes))


def test_gradients_through_unrolled_steps_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.networks.import_object", lambda name: smooth)
    wired, draw = Wired(CustomNetwork("here:smooth"), (2,), 2, torch.float64), drawn(6)
    start, goal = wired.fresh(1), wired.fresh(2)
    labels = torch.tensor([0, 1, 1])

    def distance(x: torch.Tensor, log_rate: torch.Tensor) -> torch.Tensor:
        steps = [(x, labels), (x[:2], labels[:2]), (x, labels)]
        return trajectory_distance(unrolled(wired.loss, start, log_rate.exp(), steps), start, goal)

    x = torch.randn(3, 2, generator=draw, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(distance, (x, torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)))


def test_gradients_through_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.networks.import_object", lambda name: smooth)
    wired = Wired(CustomNetwork("here:smooth"), (2,), 2, torch.float64)
    weights, real = wired.fresh(1), tensors(drawn(7), (3, 2), (3,), (2, 3), (2,))

    def distance(x: torch.Tensor) -> torch.Tensor:
        return gradient_distance(real, torch.autograd.grad(wired.loss(weights, x, torch.tensor([0, 1])), weights, create_graph=True))

    assert torch.autograd.gradcheck(distance, torch.randn(2, 2, generator=drawn(8), dtype=torch.float64, requires_grad=True))


def test_a_step_of_gradient_matching_measures_what_the_formula_says(tmp_path: Path) -> None:
    live = alive(GradientMatching(LINEAR, 2, real_rows=5, learning_rate=1e-9), tmp_path, features())
    w, b = (each.detach().numpy() for each in live.fresh_weights(3))
    wanted = 0.0
    for label in range(3):
        pair = [oracles.softmax_regression(x.detach().numpy(), np.full(len(x), label), w, b)[0] for x in (live.real(label, 3, 0), live.made(label))]
        wanted += oracles.gradient_distance(pair[:1], pair[1:])
    assert len(live.real(0, 3, 0)) == 5
    assert live.step(3)["distance"] == pytest.approx(wanted, rel=1e-4)


def test_a_step_of_distribution_matching_measures_what_the_formula_says(tmp_path: Path) -> None:
    live = alive(DistributionMatching(MLP([7]), 2, learning_rate=1e-9), tmp_path, features())
    w, b = (each.detach().double().numpy() for each in live.fresh_weights(2)[:2])
    seen = [[np.maximum(np.float64(x.detach().numpy()) @ w.T + b, 0) for x in (live.real(label, 2), live.made(label))] for label in range(3)]
    assert live.step(2)["distance"] == pytest.approx(sum(oracles.distribution_distance(*pair) for pair in seen), rel=1e-4)


def test_a_step_of_trajectory_matching_measures_what_the_formula_says(tmp_path: Path) -> None:
    way = TrajectoryMatching(LINEAR, 2, experts=Experts(count=1, epochs=2), latest=0, student_steps=2, learning_rate=1e-9)
    live = alive(way, tmp_path, features())
    start, goal = (tuple(each.numpy() for each in live._trajectories.at(0, epoch)) for epoch in (0, 2))
    x, y = live._x.detach().numpy(), live._y.numpy()
    assert live.step(0)["distance"] == pytest.approx(oracles.trajectory_distance(start, goal, [(x, y)] * 2, 0.05), rel=1e-4)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: type(way).__name__)
def test_learning_lowers_the_distance_on_networks_that_were_not_seen(way: Matching, tmp_path: Path) -> None:
    live = alive(way, tmp_path)
    before = sum(float(next(live.distances(1000 + n)).detach()) for n in range(8))
    for step in range(30):
        live.step(step)
    assert sum(float(next(live.distances(1000 + n)).detach()) for n in range(8)) < 0.9 * before


@pytest.mark.parametrize("way", WAYS, ids=lambda way: type(way).__name__)
def test_a_state_taken_back_goes_on_to_the_same_bits(way: Matching, tmp_path: Path) -> None:
    live, other = alive(way, tmp_path), alive(way, tmp_path)
    for step in range(2):
        live.step(step)
    other.restore({name: value.clone() for name, value in live.state().items()})
    assert [live.step(step) for step in (2, 3)] == [other.step(step) for step in (2, 3)]
    assert all(torch.equal(value, other.state()[name]) for name, value in live.state().items())


def test_more_real_rows_than_a_class_has_are_all_of_them_and_a_start_is_drawn_by_the_seed(tmp_path: Path) -> None:
    live = alive(DistributionMatching(LINEAR, 3), tmp_path)
    assert len(live.real(0, 1)) == 14 and live.real(0, 1).shape == (14, 6, 6)
    again, other = alive(DistributionMatching(LINEAR, 3), tmp_path), alive(DistributionMatching(LINEAR, 3), tmp_path, seed=1)
    assert torch.equal(live._x, again._x) and not torch.equal(live._x, other._x)
    inward = {tuple(each.flatten().tolist()) for label in range(3) for each in live.real(label, 0)}
    assert all(tuple(each.flatten().tolist()) in inward for each in live._x.detach())  # real ones, each its own
    assert len({tuple(each.flatten().tolist()) for each in live._x.detach()}) == 9
    noise = alive(DistributionMatching(LINEAR, 3, start="noise"), tmp_path)
    assert not any(tuple(each.flatten().tolist()) in inward for each in noise._x.detach())


def test_what_is_compared_is_changed_alike_and_by_nothing_when_it_is_not_to_be() -> None:
    x = pictures().x_RF
    change = Siamese(shift=0.2, rotate_degrees=20, scale=0.2, brightness=0.5)
    assert torch.equal(change(x, 1, 2)[:3], change(x[:3], 1, 2)) and not torch.allclose(change(x, 1, 2), change(x, 1, 3))
    torch.testing.assert_close(Siamese(shift=0.0)(x, 1), x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(change(x[:, None], 1, 2)[:, 0], change(x, 1, 2))
    turned = Siamese(shift=0.0, rotate_degrees=180.0)
    half = next(n for n in range(999) if abs(abs(float((torch.rand(5, generator=drawn(n), dtype=torch.float64) * 2 - 1)[2])) - 1) < 2e-3)
    torch.testing.assert_close(turned(x, half), x.flip(1, 2), rtol=0, atol=0.2)  # half a turn
    small = torch.randn(2, 5, 5, dtype=torch.float64, generator=drawn(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda each: change(each, 4), small)


def test_experts_are_used_again_and_added_to(tmp_path: Path) -> None:
    examples, wired = pictures(), Wired(ConvNet(4, 1), (6, 6), 3)
    folder = tmp_path / "experts"
    first = Experts(str(folder), count=2, epochs=2)
    kept = first.trained(wired, examples, tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    more = Experts(str(folder), count=3, epochs=2).trained(wired, examples, tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors") if path.name in times} == times
    assert len(list(folder.glob("*.safetensors"))) == 3
    assert all(torch.equal(a, b) for a, b in zip(kept.at(1, 2), more.at(1, 2), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(more.at(1, 2)[:1], more.at(2, 2)[:1], strict=True))
    own = train(wired, wired.fresh(0, 1), examples.x_RF, examples.y_R, 2, 0.05, 128, (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(more.at(1, 2), own, strict=True))
    assert accuracy(wired, wired.fresh(0, 1), examples.x_RF, examples.y_R) < accuracy(wired, own, examples.x_RF, examples.y_R)


def test_experts_of_something_else_are_refused(tmp_path: Path) -> None:
    examples, wired = pictures(), Wired(ConvNet(4, 1), (6, 6), 3)
    made = Experts(str(tmp_path / "experts"), count=1, epochs=1)
    made.trained(wired, examples, tmp_path)
    for asked, net, data, said in [
        (made, wired, pictures(seed=1), "experts of other data"),
        (made, Wired(ConvNet(5, 1), (6, 6), 3), examples, "experts of another network"),
        (Experts(made.folder, count=1, epochs=2), wired, examples, "experts of another epochs"),
    ]:
        with pytest.raises(CheckpointError, match=said):
            asked.trained(net, data, tmp_path)
    (tmp_path / "experts" / "expert-0000.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="remove it, and it is trained again"):
        made.trained(wired, examples, tmp_path).at(0, 0)
    (tmp_path / "experts" / "experts.json").unlink()
    with pytest.raises(CheckpointError, match="nobody knows of what"):
        made.trained(wired, examples, tmp_path)


def test_what_cannot_be_matched_is_refused(tmp_path: Path) -> None:
    for way, examples, error, said in [
        (DistributionMatching(LINEAR, 15), pictures(), DataError, "15 examples of each class were asked for, and class 0 has 14"),
        (DistributionMatching(ConvNet()), features(), RecipeError, "ConvNet reads images"),
        (DistributionMatching(ConvNet(depth=3)), pictures(), RecipeError, "halves images of 6 x 6 to nothing"),
        (DistributionMatching(LINEAR, augment=Siamese()), features(), RecipeError, "Siamese changes images"),
    ]:
        with pytest.raises(error, match=said):
            alive(way, tmp_path, examples)
    for settings, said in [
        ({"per_class": 0}, "at least 1"), ({"learning_rate": 0}, "above 0"), ({"momentum": 1}, "below 1"), ({"inner": 0}, "inner"),
        ({"start": "zeros"}, "start"), ({"network": "MLP([0])"}, "widths"),
    ]:  # fmt: skip
        with pytest.raises(RecipeError, match=said):
            GradientMatching(**settings)
    with pytest.raises(RecipeError, match="starts as late as epoch 19 and looks 2 further, where experts have 20"):
        TrajectoryMatching(latest=19)
    with pytest.raises(LimbeckError, match="not finite; lower learning_rate"):
        live = alive(DistributionMatching(MLP([4])), tmp_path)
        live._x.data.fill_(float("inf"))
        live.step(0)


NETWORKS = {
    "few": lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(36, classes - 1)),
    "flat": lambda shape, classes: nn.Linear(36, classes),
    "batch": lambda shape, classes: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, classes)),
    "none": lambda shape, classes: None,
    "empty": lambda shape, classes: nn.Flatten(),
    "broken": lambda shape, classes: 1 // 0,
    "bare": lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (36, 1)), nn.Conv1d(36, classes, 1), nn.Flatten()),
}


@pytest.mark.parametrize(
    "name, said",
    [
        ("few", r"gives \[2, 2\] for 2 examples where the labels have 3 classes"),
        ("flat", r"cannot read examples of shape \[6, 6\]"),
        ("batch", "has batch norm"),
        ("none", "gave NoneType; return an nn.Module"),
        ("empty", "has no weights"),
        ("broken", "raised ZeroDivisionError"),
        ("bare", "has no nn.Linear, before which examples are compared"),
    ],
)
def test_networks_that_do_not_fit_are_refused(name: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("limbeck.networks.import_object", lambda path: NETWORKS[path.partition(":")[2]])
    with pytest.raises(RecipeError, match=said):
        alive(DistributionMatching(CustomNetwork(f"here:{name}")), tmp_path)


def test_embeddings_are_what_the_last_linear_layer_reads() -> None:
    wired, x = Wired(ConvNet(4, 1), (6, 6), 3), pictures().x_RF
    weights = wired.fresh(1)
    torch.testing.assert_close(wired.embedded(weights, x) @ weights[-2].T + weights[-1], wired.logits(weights, x))


def test_a_network_belongs_to_its_place() -> None:
    wired = Wired(MLP([4]), (3,), 2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = wired.fresh(1, 2), wired.fresh(1, 2), wired.fresh(1, 3)
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's numbers are drawn
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)) and not torch.equal(first[0], other[0])
