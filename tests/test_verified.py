"""Verifiers as evaluations: means over prompts by hand, pass@k by counting, the same on any number of answers at once."""

from itertools import combinations

import pytest
import toys

import limbeck as lb
from limbeck.errors import DataError, RecipeError
from limbeck.verifiers import Verifier


@lb.part
class Odd(Verifier):
    """How many of ten letters have an odd code, for the toys."""

    def judge(self, completions, rows):
        assert all(row["prompt"] for row in rows)
        return [sum(ord(letter) % 2 for letter in text) / 10 for text in completions]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[lb.Student, str]:
    home = tmp_path_factory.mktemp("toy")
    student = lb.Student(toys.folder(home / "student", sharp=2.0), dtype="float32").load(1)
    return student, toys.jsonl(home / "prompts.jsonl", toys.rows(12))


def test_figures_by_hand(toy: tuple[lb.Student, str]) -> None:
    student, prompts = toy
    sampling = lb.Sampling(10)
    found = lb.Verified(prompts, Odd(), each=4, sampling=sampling, above=0.4, samples=2).run(student, lb.Silent())
    vocabulary = student.live.vocabulary
    ids = [vocabulary.prompt(row, lb.Data(prompts)) for row in toys.rows(12)]
    written = student.write([each for each in ids for _ in range(4)], sampling, 0, 0, range(48))
    rewards = Odd().judge([vocabulary.text(each.tokens) for each in written], [{"prompt": "x"}] * 48)
    assert found["reward"] == pytest.approx(sum(rewards) / 48) and found["prompts"] == 12
    right = [[reward > 0.4 for reward in rewards[n : n + 4]] for n in range(0, 48, 4)]
    assert found["right"] == pytest.approx(sum(map(sum, right)) / 48) and 0 < found["right"] < 1
    chance = [sum(any(some) for some in combinations(each, 4)) for each in right]
    assert found["pass@4"] == pytest.approx(sum(chance) / 12)
    assert found["right_interval"][0] < found["right"] < found["right_interval"][1]
    assert [set(each) for each in found["samples"]] == [{"prompt", "completion", "reward"}] * 2
    assert found["cut"] == sum(each.tokens[-1] not in vocabulary.end_ids for each in written) / 48


def test_in_a_run(toy: tuple[lb.Student, str], tmp_path) -> None:
    student, prompts = toy
    watched = [lb.Verified(prompts, 'Regex("[aeiou]")', rows=5, sampling=lb.Sampling(6, temperature=0))]
    recipe = lb.Recipe(lb.Student(student.model, dtype="float32"), lb.Corpus(prompts, sequences=2), steps=1, evaluations=watched)
    lb.distill(recipe, tmp_path / "run")
    assert lb.Recipe.read(tmp_path / "run" / "recipe.yaml") == recipe
    figures = (tmp_path / "run" / "evaluations.json").read_text()
    assert '"right"' in figures and '"prompts": 5' in figures


@pytest.mark.parametrize("settings, said", [({"rows": 0}, "at least 1"), ({"each": 2}, "greedy answers")])
def test_nonsense_is_refused(settings: dict, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        lb.Verified("prompts.jsonl", Odd(), **settings)


def test_prompts_that_leave_no_room(toy: tuple[lb.Student, str], tmp_path) -> None:
    long = toys.jsonl(tmp_path / "long.jsonl", [{"prompt": "red " * 100}])
    with pytest.raises(DataError, match="no prompt is within"):
        lb.Verified(long, Odd()).run(toy[0], lb.Silent())
