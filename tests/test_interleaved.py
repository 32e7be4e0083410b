"""SKD: who wrote which token, the teacher's scores that come with the text, and the same text on any number of ranks."""

from dataclasses import replace

import pytest
import torch
import toys

import limbeck as lb
from limbeck.batch import WRITERS
from limbeck.config import plain
from limbeck.errors import RecipeError
from limbeck.interleaved import Interleaved
from limbeck.recipe import Recipe
from limbeck.sources import Share
from limbeck.speculative import InTopK
from limbeck.targets import Dense


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    root = tmp_path_factory.mktemp("models")
    return toys.folder(root / "student", seed=1), toys.folder(root / "teacher", seed=2), toys.jsonl(root / "prompts.jsonl", toys.rows(20))


def recipe(models: tuple[str, str, str], accept: InTopK | None = None, steps: int = 3, **more) -> Recipe:
    student, teacher, prompts = models
    source = Interleaved(prompts, sequences=6, sampling=lb.Sampling(12), accept=accept or InTopK(25), gamma=3)
    return Recipe(lb.Student(student, dtype="float32"), source, lb.Local(teacher, dtype="float32"), lb.ForwardKL(), steps=steps, **more)


def drawn(made: Recipe, step: int = 0, rank: int = 0, ranks: int = 1):
    student, teacher = made.open_pair()
    return student, teacher, made.source.load(student.live.vocabulary, Share(0, rank, ranks, teacher)).draw(step, student)


@pytest.mark.parametrize("k, writers", [(0, {"teacher"}), (10**6, {"student"}), (25, {"student", "teacher"})])
def test_who_wrote(models: tuple[str, str, str], k: int, writers: set[str]) -> None:
    _, _, batch = drawn(recipe(models, InTopK(k)))
    assert {WRITERS[who] for who in batch.writers_N.tolist()} == writers
    assert torch.isfinite(batch.logp_N).all()


def test_a_student_that_alone_may_write_is_on_policy(models: tuple[str, str, str]) -> None:
    student, _, mine = drawn(recipe(models, InTopK(10**6)), step=2)
    own = lb.OnPolicy(models[2], sequences=6, sampling=lb.Sampling(12)).load(student.live.vocabulary, Share()).draw(2, student)
    assert mine.tokens_T.tolist() == own.tokens_T.tolist()
    torch.testing.assert_close(mine.logp_N, own.logp_N, atol=1e-4, rtol=0)


def test_the_teacher_says_nothing_twice_and_what_came_with_the_text_is_what_it_would_say(models: tuple[str, str, str]) -> None:
    _, teacher, batch = drawn(recipe(models))
    assert isinstance(batch.said, Dense)
    calls, parts = list[int](), batch.split(64)
    hook = teacher.opened.module.model.register_forward_hook(lambda *_: calls.append(1))
    said = list(teacher.score(parts))
    assert not calls
    anew = list(teacher.score([replace(each, said=None) for each in parts]))
    hook.remove()
    assert len(calls) == len(parts) > 1
    for mine, theirs in zip(said, anew, strict=True):
        torch.testing.assert_close(mine.rows(slice(None)).log_probs(), theirs.rows(slice(None)).log_probs(), atol=1e-4, rtol=1e-4)


def test_ranks_write_the_same_text(models: tuple[str, str, str]) -> None:
    whole = [row.tolist() for row in drawn(recipe(models))[2].sequences()]
    shares = [[row.tolist() for row in drawn(recipe(models), rank=rank, ranks=2)[2].sequences()] for rank in (0, 1)]
    assert [shares[n % 2][n // 2] for n in range(6)] == whole


def test_it_survives_yaml(models: tuple[str, str, str]) -> None:
    made = recipe(models)
    assert plain(Recipe.of(plain(made))) == plain(made)
    own = plain(made)
    own["source"]["verifier"] = {"type": "Local", "model": models[1]}
    assert isinstance(Recipe.of(own).source.verifier, lb.Local)


@pytest.mark.parametrize(
    "settings, said", [({"gamma": 0}, "gamma"), ({"verifier": "somebody"}, "somebody"), ({"sequences": 0}, "at least one sequence")]
)
def test_nonsense_is_refused(settings: dict, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Interleaved("prompts.jsonl", **settings)


def test_a_teacher_that_cannot_verify_is_refused(models: tuple[str, str, str], tmp_path) -> None:
    student, teacher, prompts = models
    mixed = lb.Mixture({"one": lb.Local(teacher), "two": lb.Local(teacher)})
    with pytest.raises(RecipeError, match="Mixture cannot; give a Local"):
        lb.distill(Recipe(lb.Student(student), Interleaved(prompts), mixed, lb.ForwardKL(), steps=1), tmp_path / "run")
