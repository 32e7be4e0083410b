"""Several teachers as one: the mean of what they say, or a row's own; against formulas in float64."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toys
import yaml

import limbeck as lb
from limbeck.annotate import Annotation, annotate
from limbeck.batch import Batch
from limbeck.blend import Blend, Routed
from limbeck.data import Data
from limbeck.divergence import ForwardKL
from limbeck.errors import LimbeckError, RecipeError
from limbeck.files import read_jsonl
from limbeck.mixture import Mixture
from limbeck.objective import TokenRows
from limbeck.targets import Logits, Sampled, TopK, Whole
from limbeck.teachers import Cached, Local

N, V, K = 12, 17, 5


def whole(seed: int) -> Whole:
    return Whole(torch.randn(N, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1), "toy")


def draws(seed: int, outcomes: int) -> Sampled:
    random = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(V, generator=random)[:outcomes] for _ in range(N)])
    share = torch.rand(N, outcomes, generator=random).softmax(-1)
    return Sampled(ids, share, torch.rand(N, generator=random), "toy")


def spread(said: Sampled) -> torch.Tensor:
    """Shares over the whole vocabulary."""
    return torch.zeros(N, V).scatter_add(1, said.ids_NK, said.share_NK)


EVERY = slice(0, N)
WHICH = torch.tensor([0, 0, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1])
PLACE = torch.tensor([0, 1, 2, 0, 1, 3, 4, 2, 5, 3, 4, 5])


def routed(one, two) -> Routed:
    return Routed([one, two], WHICH, PLACE, "toy")


def test_the_mean_is_that_of_probabilities() -> None:
    one, two = whole(1), whole(2)
    (said,) = [Blend([one, two], [0.25, 0.75], "toy").rows(slice(2, 9))]
    assert isinstance(said, Logits)
    wanted = 0.25 * one.log_p_NV[2:9].exp() + 0.75 * two.log_p_NV[2:9].exp()
    assert torch.allclose(said.log_probs().exp().double(), wanted, atol=1e-6)


def test_the_mean_of_draws_has_the_mean_gradient() -> None:
    one, two, logits = draws(1, 4), draws(2, 6), torch.randn(N, V)
    nats_N, gradient_NV = ForwardKL().rows(Logits(logits), Blend([one, two], [0.25, 0.75], "toy").rows(EVERY), TokenRows(torch.zeros(N), None))
    apart = [ForwardKL().rows(Logits(logits), each.rows(EVERY), TokenRows(torch.zeros(N), None)) for each in (one, two)]
    assert torch.allclose(nats_N, 0.25 * apart[0][0] + 0.75 * apart[1][0], atol=1e-5)
    assert torch.allclose(gradient_NV, 0.25 * apart[0][1] + 0.75 * apart[1][1], atol=1e-6)


@pytest.mark.parametrize("chunk", [EVERY, slice(0, 3), slice(2, 4), slice(4, 11), slice(5, 6)])
def test_each_token_has_its_own_teacher(chunk: slice) -> None:
    one, two = whole(1), whole(2)
    said = routed(one, two).rows(chunk)
    wanted = torch.stack([(one, two)[which].log_p_NV[place] for which, place in zip(WHICH, PLACE, strict=True)])[chunk]
    assert isinstance(said, Logits) and torch.allclose(said.log_probs().double(), wanted, atol=1e-5)


def test_tokens_of_two_teachers_who_drew_differently_many() -> None:
    one, two = draws(1, 4), draws(2, 6)
    said = routed(one, two).rows(EVERY)
    found = torch.zeros(N, V).scatter_add(1, said.ids_CK, said.share_CK)
    wanted = torch.stack([spread((one, two)[which])[place] for which, place in zip(WHICH, PLACE, strict=True)])
    assert torch.equal(found, wanted)


def test_truncated_teachers_can_be_routed() -> None:
    one, two = (TopK.of(whole(seed).log_p_NV, K, "toy") for seed in (1, 2))
    said = routed(one, two).rows(slice(2, 8))
    assert said.ids_CK.shape == (6, K) and torch.equal(said.log_p_CK[1], two.log_p_NK[0])


def test_fewer_tokens_of_a_route() -> None:
    one, two, kept = whole(1), whole(2), torch.tensor([0, 3, 4, 8, 11])
    all_said, some = routed(one, two).rows(EVERY), routed(one, two).select(kept).rows(slice(0, 5))
    assert torch.allclose(some.log_probs(), all_said.log_probs()[kept])


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Two teachers, a student, some rows of two categories, and a cache of each teacher."""
    work = tmp_path_factory.mktemp("mixture")
    for name, seed in {"student": 1, "one": 2, "two": 3}.items():
        toys.folder(work / name, seed=seed)
    rows = [{**row, "category": ("maths", "prose")[n % 2]} for n, row in enumerate(toys.rows(24))]
    toys.jsonl(work / "train.jsonl", rows)
    for name in ("one", "two"):
        annotate(Annotation(Local(str(work / name), dtype="float32"), Data(str(work / "train.jsonl"))), work / f"{name}-scores")
    return work


def recipe_of(work: Path, teacher: lb.Teacher, **more) -> lb.Recipe:
    student, source = lb.Student(str(work / "student"), dtype="float32"), lb.Corpus(str(work / "train.jsonl"), sequences=6)
    return lb.Recipe(student, source, teacher, ForwardKL(), **more)


def run(work: Path, teacher: lb.Teacher, name: str, **more) -> list[dict]:
    lb.distill(recipe_of(work, teacher, steps=3, **more), work / name)
    return read_jsonl(work / name / "metrics.jsonl")


def losses(lines: list[dict]) -> list[float]:
    return [line["loss_nats"] for line in lines]


def test_one_teacher_twice_is_that_teacher(work: Path) -> None:
    one = Local(str(work / "one"), dtype="float32")
    alone = losses(run(work, one, "alone"))
    assert losses(run(work, Mixture({"a": one, "b": one}, weights={"a": 3, "b": 1}), "mean")) == pytest.approx(alone, abs=1e-5)
    assert losses(run(work, Mixture({"maths": one, "prose": one}, by="category"), "routed")) == pytest.approx(alone, abs=1e-5)


def test_rows_are_taught_by_whom_their_column_names(work: Path) -> None:
    """The loss of a first step is the mean over tokens of each row's own teacher."""
    teachers = {"maths": Local(str(work / "one"), dtype="float32"), "prose": Local(str(work / "two"), dtype="float32")}
    mixture = losses(run(work, Mixture(teachers, by="category"), "by"))[0]
    recipe = recipe_of(work, teachers["maths"])
    student, _ = recipe.open_pair()
    batch = recipe.source.load(student.live.vocabulary, lb.sources.Share(0)).draw(0, student)
    nats, tokens = 0.0, 0
    for name, teacher in teachers.items():
        part: Batch = batch.select([b for b, columns in enumerate(batch.columns_B) if columns["category"] == name])
        (said,) = teacher.load(student).score([part])
        nats += float(student.measure(part, said, recipe.objective)["ForwardKL"].double().sum())
        tokens += len(part.places_N)
    assert mixture == pytest.approx(nats / tokens, abs=1e-5)


def test_caches_join_like_teachers(work: Path) -> None:
    """Draws of two teachers teach the mean of both: their own losses, averaged."""
    one, two = (Cached(str(work / f"{name}-scores")) for name in ("one", "two"))
    apart = [losses(run(work, each, name))[0] for each, name in ((one, "c1"), (two, "c2"))]
    assert losses(run(work, Mixture({"a": one, "b": two}), "c-mean"))[0] == pytest.approx(sum(apart) / 2, abs=1e-5)
    assert losses(run(work, Mixture({"maths": one, "prose": one}, by="category"), "c-routed"))[0] == pytest.approx(apart[0], abs=1e-5)


def test_what_cannot_be_joined_is_refused(work: Path) -> None:
    one, kept = Local(str(work / "one"), dtype="float32"), Cached(str(work / "one-scores"))
    cases = {
        "needs teachers": lambda: Mixture({}),
        "by a column has no weights": lambda: Mixture({"a": one}, by="x", weights={"a": 1}),
        "a weight above 0 for each of a, b": lambda: Mixture({"a": one, "b": one}, weights={"a": 1}),
        "a says distribution or top k; b says sampled": lambda: run(work, Mixture({"a": one, "b": kept}), "never"),
        "cannot have seen text": lambda: lb.Recipe(lb.Student("s"), lb.OnPolicy("p"), Mixture({"a": kept, "b": kept}), ForwardKL()),
        'its column "topic", and has no such column': lambda: run(work, Mixture({"a": one}, by="topic"), "no-column"),
        "has 'maths'; did you mean \"math\"?": lambda: run(work, Mixture({"math": one, "prose": one}, by="category"), "near"),
    }
    for message, make in cases.items():
        with pytest.raises(LimbeckError) as caught:
            make()
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, RecipeError)


def test_a_mixture_goes_through_yaml(work: Path) -> None:
    made = lb.Recipe(lb.Student("s"), lb.Corpus("d"), Mixture({"a": Local("x"), "b": Local("y")}, weights={"a": 1, "b": 2}), ForwardKL())
    assert lb.Recipe.of(yaml.safe_load(made.yaml)) == made
    assert replace(made.teacher, weights=None).says == {"distribution"}
