"""Condensing from end to end: folders, interruptions, products that are read back and learnt from, refusals."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
import toys
from labelled import features, pictures, stored
from safetensors.torch import load_file

from limbeck import cli, condense, distill, read_examples
from limbeck.batch import Batch
from limbeck.condensing import Condense, asked_for
from limbeck.config import build, plain
from limbeck.data import Data
from limbeck.errors import CheckpointError, DataError, LimbeckError, RecipeError, Stopped
from limbeck.experts import Experts
from limbeck.files import read_json, read_jsonl
from limbeck.herding import Herding, Sums
from limbeck.licences import from_plain
from limbeck.machine import Opening
from limbeck.matching import Condenser, DistributionMatching, GradientMatching, TrajectoryMatching
from limbeck.methods import sft
from limbeck.models import open_model
from limbeck.networks import ConvNet, Wired, accuracy, train
from limbeck.soft_prompts import SoftPrompts

EXPERTS = Experts(count=2, epochs=3, batch=16)
MATCHED: list[Any] = [
    GradientMatching(ConvNet(4, 1), 2, steps=7, inner=2),
    DistributionMatching(ConvNet(4, 1), 2, steps=7),
    TrajectoryMatching(ConvNet(4, 1), 2, steps=7, experts=EXPERTS, latest=1, student_steps=3, batch=4),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("home")
    toys.folder(made / "student", seed=1)
    toys.jsonl(made / "train.jsonl", toys.rows(30))
    stored(made, pictures())
    return made


def ways(home: Path) -> list[tuple[Data, Condenser]]:
    text, model = Data(str(home / "train.jsonl")), str(home / "student")
    matched = [(Data(str(home / "data.safetensors")), way) for way in MATCHED]
    return [*matched, (text, Herding(model, 7)), (text, SoftPrompts(model, 3, steps=7))]


NUMBERS = range(5)


def files(out: Path) -> dict[str, bytes]:
    """Everything that must be the same to the bit, by name."""
    kept = ("corpus.jsonl", "corpus.safetensors", "embeddings.safetensors", "metrics.jsonl", "card.json", "README.md", "recipe.yaml")
    return {name: (out / name).read_bytes() for name in kept if (out / name).exists()}


@pytest.fixture(scope="module")
def straight(home: Path) -> dict[int, dict[str, bytes]]:
    """What each way gives when nothing comes between."""
    made = {}
    for number, (data, way) in enumerate(ways(home)):
        condense(Condense(data, way, save_every=3), home / f"straight-{number}")
        made[number] = files(home / f"straight-{number}")
    return made


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("after", [2, 5])
def test_killed_and_gone_on_with_it_is_the_same_product(number: int, after: int, home: Path, straight, monkeypatch, tmp_path: Path) -> None:
    data, way = ways(home)[number]
    asked, taken = Condense(data, way, save_every=3), []

    def dies(self: Condenser, step: int) -> dict[str, float]:
        taken.append(step)
        if len(taken) > after:
            raise MemoryError("killed")
        return whole(self, step)

    whole = type(way).step
    with monkeypatch.context() as patched:
        patched.setattr(type(way), "step", dies)
        with pytest.raises(MemoryError):
            condense(asked, tmp_path / "out")
    assert not (tmp_path / "out" / "card.json").exists()
    taken.clear()
    with monkeypatch.context() as patched:
        patched.setattr(type(way), "step", lambda self, step: taken.append(step) or whole(self, step))
        condense(asked, tmp_path / "out")
    assert taken == list(range(0 if after < 3 else 3, 7))
    assert files(tmp_path / "out") == straight[number]


@pytest.mark.parametrize("number", NUMBERS)
def test_asked_to_stop_it_saves_the_step_and_goes_on(number: int, home: Path, straight, monkeypatch, tmp_path: Path) -> None:
    data, way = ways(home)[number]
    asked, whole, taken = Condense(data, way, save_every=50), type(way).step, []

    def stops(self: Condenser, step: int) -> dict[str, float]:
        taken.append(step)
        if taken == [0, 1, 2]:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, step)

    monkeypatch.setattr(type(way), "step", stops)
    with pytest.raises(Stopped, match="stopped after 3 of 7 steps, which are saved; the same command goes on") as caught:
        condense(asked, tmp_path / "out")
    assert caught.value.number == signal.SIGTERM
    condense(asked, tmp_path / "out")
    assert taken == list(range(7))
    same = {name: found for name, found in straight[number].items() if name not in ("recipe.yaml", "card.json", "README.md")}  # save_every differs
    assert {name: found for name, found in files(tmp_path / "out").items() if name in same} == same


@pytest.mark.parametrize("number", NUMBERS)
def test_the_folder_says_what_it_is_and_asked_again_it_says_the_same(number: int, home: Path, straight) -> None:
    data, way = ways(home)[number]
    out, asked = home / f"straight-{number}", Condense(data, way, save_every=3)
    assert build(plain(asked), Condense) == asked
    card, rows = read_json(out / "card.json"), read_jsonl(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 8)) and card["steps"] == 7
    assert {each.name for each in from_plain(card["licences"], "card")} == {"apache-2.0"}
    assert build(card["made_by"], Condense) == asked and (out / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")
    assert condense(asked, out).rows == card["rows"] and files(out) == straight[number]
    assert not list(out.rglob("*.undone")) and len(list((out / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("number", range(3))
def test_a_product_is_data_in_the_units_of_the_data(number: int, home: Path, straight, tmp_path: Path) -> None:
    real, made = read_examples(home / "data.safetensors"), read_examples(home / f"straight-{number}" / "corpus.safetensors")
    assert made.y_R.tolist() == [0, 0, 1, 1, 2, 2] and made.shape == real.shape
    assert abs(float(made.x_RF.mean() - real.x_RF.mean())) < 1 and 0.4 < float(made.x_RF.std() / real.x_RF.std()) < 2.5
    again = Condense(Data(str(home / f"straight-{number}" / "corpus.safetensors")), DistributionMatching(ConvNet(4, 1), steps=1))
    assert condense(again, tmp_path / "again").rows == 3  # its card's licences hold for what is made of it


def test_features_come_back_as_rows(tmp_path: Path) -> None:
    path = stored(tmp_path / "data", features(), ".jsonl")
    product = condense(asked_for(path, None, {"network": "MLP([8])", "per_class": 2, "steps": 3}), tmp_path / "out")
    rows = read_jsonl(product.file)
    assert product.file.name == "corpus.jsonl" and [row["label"] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert all(len(row["features"]) == 36 for row in rows)


def test_distilled_examples_teach_more_than_as_many_real_ones(tmp_path: Path) -> None:
    """Ten networks each; the pictures are noisy enough for one example a class to say little. Found: about 0.25 more."""
    real, held = pictures(40), pictures(60, seed=9)
    way = DistributionMatching(ConvNet(8, 1), 1, steps=60, learning_rate=1.0)
    live = way.load(Data(stored(tmp_path, real)), 0, tmp_path)
    wired, test = Wired(ConvNet(8, 1), (6, 6), 3), live._scale.inward(held)

    def taught(x: torch.Tensor, seed: int) -> float:
        weights = train(wired, wired.fresh(7, seed), x, live._y, 60, 0.1, 16, (7, seed), 0.9)
        return accuracy(wired, weights, test.x_RF, test.y_R)

    random = []
    for seed in range(10):
        random.append(taught(way.load(Data(str(tmp_path / "data.safetensors")), seed, tmp_path)._x.detach(), seed))
    for step in range(60):
        live.step(step)
    assert np.mean([taught(live._x.detach(), seed) for seed in range(10)]) > np.mean(random) + 0.1


# Text


def test_herding_chooses_as_the_slow_one_does() -> None:
    draw = np.random.default_rng(3)
    vectors, tokens = draw.normal(size=(25, 6)), draw.integers(0, 5, size=25)
    vectors[tokens == 0] = 0
    sums, chosen, distances = Sums(torch.from_numpy(vectors), torch.from_numpy(tokens)), list[int](), list[float]()
    for _ in range(8):
        row, distance = sums.nearest(chosen)
        chosen.append(row)
        distances.append(distance)
    assert (chosen, pytest.approx(distances)) == oracles.herded(vectors, tokens, 8)
    assert sums.distance(chosen) == pytest.approx(distances[-1])


def test_what_is_kept_of_a_row_is_its_gradient_on_the_head_and_cuts_do_not_matter(home: Path) -> None:
    model, data = open_model(str(home / "student"), Opening("float32")), Data(str(home / "train.jsonl"))
    live = Herding(str(home / "student"), 3, sketch=16, dtype="float32").load(data, 0, home)
    small = Herding(str(home / "student"), 3, sketch=16, dtype="float32", tokens_per_pass=1).load(data, 0, home)
    torch.testing.assert_close(live._sums.vector_RK, small._sums.vector_RK, rtol=1e-4, atol=1e-4)
    left_VK, right_DK = (each.double().numpy() for each in live._projections(model))
    for row in (0, 11):
        batch = Batch.of(model.vocabulary.texts(data.rows()[row], data, 256), "corpus")
        with torch.no_grad():
            outputs = model.forward(batch)
            logits = outputs.head.prepared(torch.float32).logits(outputs.hidden_ND)
        whole = oracles.head_gradients(outputs.hidden_ND.numpy(), logits.numpy(), batch.tokens_N.numpy())
        np.testing.assert_allclose(live._sums.vector_RK[row].numpy(), (left_VK.T @ whole @ right_DK).ravel(), rtol=2e-3, atol=2e-3)
        assert live._sums.tokens_R[row] == len(batch.tokens_N)


def test_the_sketch_keeps_inner_products_on_average() -> None:
    """Of 400 projections of width 8 the mean is within five standard errors, of the exact product."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(12, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    found = []
    for _ in range(400):
        left, right = torch.randn(12, 8, generator=draw).double() / 8**0.5, torch.randn(5, 8, generator=draw).double() / 8**0.5
        found.append(float(((left.T @ a @ right) * (left.T @ b @ right)).sum()))
    assert abs(np.mean(found) - float((a * b).sum())) < 5 * np.std(found) / 20


@pytest.mark.parametrize("by", ["gradients", "hidden"])
def test_chosen_rows_are_rows_of_the_corpus_and_nearer_to_it_than_random_ones(by: str, home: Path, tmp_path: Path) -> None:
    asked = Condense(Data(str(home / "train.jsonl")), Herding(str(home / "student"), 8, by=by))  # pyright: ignore[reportArgumentType]
    product = condense(asked, tmp_path / "out")
    rows, all_rows = read_jsonl(product.file), read_jsonl(home / "train.jsonl")
    chosen = [int(row["row"]) for row in read_jsonl(tmp_path / "out" / "metrics.jsonl")]
    assert len(set(chosen)) == 8 and rows == [all_rows[n] for n in chosen]
    assert product.figures["distance"] < product.figures["distance_of_random_rows"]


def test_a_corpus_made_small_is_learnt_from(home: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", ["limbeck", *["condense", "train.jsonl", "--model", "student", "--rows", "4", "--out", "small"]])
    with pytest.raises(SystemExit) as ended:
        cli.main()
        sys.exit(0)
    assert not ended.value.code and capsys.readouterr().out.startswith("small/corpus.jsonl: 4 rows; of_rows 30")
    student = distill(sft("student", data="small/corpus.jsonl", steps=2), tmp_path / "run")
    assert student.steps == 2 and (tmp_path / "run" / "student" / "config.json").exists()


def test_soft_prompts_come_nearer_and_the_card_says_what_words_lose(home: Path, tmp_path: Path) -> None:
    way = SoftPrompts(str(home / "student"), 3, steps=25)
    product = condense(Condense(Data(str(home / "train.jsonl")), way), tmp_path)
    soft, figures = load_file(tmp_path / "embeddings.safetensors"), product.figures
    assert figures["distance"] < 0.8 * figures["distance_of_the_rows_as_they_were"] < figures["distance_of_nearest_tokens"]
    rows = read_jsonl(product.file)
    assert soft["row"].tolist() == [n for n, row in enumerate(rows) for _ in row["prompt_ids"]] and soft["embeddings"].shape[1] == 32
    student = distill(sft(str(home / "student"), data=str(product.file), steps=1), tmp_path / "run")
    assert student.steps == 1


def test_the_gradient_that_soft_prompts_match_is_the_corpus_own(home: Path) -> None:
    """On the prompts as they were, of all rows, nothing is left to match; cut into passes the gradient is the same."""
    data = Data(str(home / "train.jsonl"))
    live = SoftPrompts(str(home / "student"), 30, tokens_per_pass=64).load(data, 0, home)
    whole = SoftPrompts(str(home / "student"), 30, tokens_per_pass=10**6).load(data, 0, home)
    for cut, once in zip(live._corpus, whole._corpus, strict=True):
        torch.testing.assert_close(cut, once, rtol=1e-3, atol=1e-4)
    assert live.step(0)["distance"] < 1e-2
    assert live.nearest() == live._batch.prompts() or live.nearest()  # moved by one step: still tokens
    model = live._taught.model
    model.module.zero_grad()
    model.module.requires_grad_(True)
    batch = Batch.of([text for row in data.rows() for text in model.vocabulary.texts(row, data, 256)], "corpus")
    outputs = model.forward(batch)
    head = outputs.head
    loss = torch.nn.functional.cross_entropy(outputs.hidden_ND @ head.weight_VD[: head.vocabulary].T, batch.tokens_N)
    loss.backward()
    named = {id(weight): weight.grad for weight in model.module.parameters()}
    for weight, found in zip(live._taught.weights, live._corpus, strict=True):
        torch.testing.assert_close(found, named[id(weight)], rtol=1e-3, atol=1e-4)


# Refusals


def test_another_order_for_the_same_folder_is_refused_and_so_are_changed_data(home: Path, tmp_path: Path) -> None:
    path = stored(tmp_path / "data", pictures())
    way = DistributionMatching(ConvNet(4, 1), steps=2)
    condense(Condense(Data(path), way), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"method\.steps is 2 there, 3 here"):
        condense(Condense(Data(path), DistributionMatching(ConvNet(4, 1), steps=3)), tmp_path / "out")
    stored(tmp_path / "data", pictures(seed=1))
    with pytest.raises(CheckpointError, match="has changed since"):
        condense(Condense(Data(path), way), tmp_path / "out")


def test_data_of_no_known_licence_are_refused_until_they_are_accepted(tmp_path: Path) -> None:
    path = stored(tmp_path, pictures())
    (tmp_path / "README.md").unlink()
    asked = Condense(Data(path), DistributionMatching(ConvNet(4, 1), steps=1))
    with pytest.raises(RecipeError, match="no licence of it was found"):
        condense(asked, tmp_path / "out")
    accepted = asked_for(path, None, {"steps": 1}, [f'accept_license=["unknown licence of {path}"]'])
    assert condense(accepted, tmp_path / "out").rows == 3
    assert read_json(tmp_path / "out" / "card.json")["licences"][0]["permits"] == "unknown"


@pytest.mark.parametrize(
    "rows, said",
    [
        ([{"prompt": "a", "completion": "b"}] * 2, "3 rows were asked for, and 2 of its 2 have a completion"),
        ([{"words": "a"}] * 5, "found columns words; rows need one of"),
        ([{"prompt": "a"}] * 5, "a prompt without a completion"),
    ],
)
def test_text_that_cannot_be_chosen_from(rows: list[dict], said: str, home: Path, tmp_path: Path) -> None:
    path = toys.jsonl(tmp_path / "text.jsonl", rows)
    with pytest.raises(DataError) as caught:
        condense(Condense(Data(path), Herding(str(home / "student"), 3)), tmp_path / "out")
    assert said in str(caught.value)


def test_text_without_prompts_has_nothing_soft(home: Path, tmp_path: Path) -> None:
    path = toys.jsonl(tmp_path / "text.jsonl", [{"text": "one two three"}] * 4)
    with pytest.raises(DataError, match="choose rows with Herding"):
        condense(Condense(Data(path), SoftPrompts(str(home / "student"), 3)), tmp_path / "out")


def test_what_is_typed_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: a.jsonl\nmethod: {type: Herding, model: m, rows: 3, colour: red}\n")
    for given, said in [
        (("a.jsonl", "Gradient"), 'there is no Condenser "Gradient"'),
        (("a.jsonl", "DistributionMatching", {"rows": 3}), 'DistributionMatching has no setting "rows"'),
        (("a.jsonl", "Herding", {"rows": 3}), "Herding needs model"),
        ((str(tmp_path / "a.yaml"),), 'line 2: Herding has no setting "colour"'),
        ((str(tmp_path / "a.yaml"), None, {"steps": 3}), "says the method and its settings; change them with --set"),
        (("a.jsonl", None, {}, ["seed=-1"]), "seed must lie between"),
        (("a.jsonl", None, {}, ["save_every=0"]), "save_every must be at least 1"),
        (("a.jsonl", None, {}, ["data={path: a, streaming: true}"]), "leave streaming out"),
    ]:
        with pytest.raises(LimbeckError) as caught:
            asked_for(*given)
        assert said in str(caught.value), said


def test_a_network_of_ones_own_is_named_by_its_function(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n\ndef small(shape, classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1], classes))\n"
    )
    path = stored(tmp_path / "data", pictures())
    asked = asked_for(path, None, {"network": "own_net:small", "steps": 2})
    assert plain(asked)["method"]["network"] == {"type": "CustomNetwork", "function": "own_net:small"}
    assert condense(asked, tmp_path / "out").rows == 3
    sys.modules.pop("own_net")


def test_a_file_of_settings_is_what_a_command_says(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(json.dumps({"data": "a.jsonl", "method": "GradientMatching(MLP([8]), 10)"}))
    wanted = asked_for("a.jsonl", "GradientMatching", {"network": "MLP([8])", "per_class": 10}, ["seed=3"])
    assert asked_for(str(tmp_path / "a.yaml"), settings=["seed=3"]) == wanted
    assert asked_for("a.jsonl", "GradientMatching(per_class=10)", {"network": "MLP([8])"}, ["seed=3"]) == wanted
