"""Judges: a teacher that is asked for a mark says one number or is asked again; a reward model says what transformers says, bare."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

import limbeck as lb
from limbeck.answers import Answer, Bill, Given, Purse, Question, Told
from limbeck.batch import Batch
from limbeck.config import live, part
from limbeck.corpus import Order, write_corpus
from limbeck.errors import EndpointError, ModelError, RecipeError
from limbeck.files import read_jsonl
from limbeck.judges import Judge, RewardModel
from limbeck.licences import Licence
from limbeck.targets import Targets
from limbeck.teachers import Teacher

TERMS = Licence("terms of the script", "provider script", "here", "unknown", "It does not say.")


@part
class Scripted(Teacher):
    """Says the next of its lines, whatever it is asked, and remembers what that was."""

    lines: list[str]
    asked: Any = live()

    @property
    def licences(self) -> list[Licence]:
        return [TERMS]

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        raise NotImplementedError

    def writing(self) -> "Scripted":
        made = self.fresh()
        made.asked = []
        return made

    def answers(
        self, questions: Iterable[Question], sampling: lb.Sampling, purse: Purse, told: Told = lambda tokens: None
    ) -> Iterator[Given]:  # fmt: skip
        line, asked = deque(self.lines[sum(len(each) for _, each in self.asked) :]), list(questions)
        self.asked.append((sampling, asked))
        for question in reversed(asked):  # any order is right
            yield Given(question, question.samples[0], Answer(line.popleft()), Bill())


def judge(*lines: str, **more: Any) -> Judge:
    return Judge(Scripted(list(lines)), **more).load()


def asked(which: Judge) -> list[tuple[lb.Sampling, list[Question]]]:
    assert isinstance(which.teacher, Scripted)
    return which.teacher.asked


ROWS = [{"prompt": "Two and two?"}, {"prompt": "Three and three?"}]


def test_the_first_question_is_greedy_and_only_those_without_a_mark_are_asked_again() -> None:
    made = judge("7", "no idea", "better not", "10")  # the second of two is answered first
    assert made.judge(["4", "6"], ROWS) == [1.0, 0.7]
    assert [(sampling.temperature, sampling.max_tokens) for sampling, _ in asked(made)] == [(0.0, 512), (1.0, 512), (1.0, 512)]
    assert [[each.samples for each in questions] for _, questions in asked(made)] == [[(0,), (0,)], [(1,)], [(2,)]]
    assert {each.key for _, some in asked(made)[1:] for each in some} == {asked(made)[0][1][0].key}


def test_alike_completions_are_asked_about_once_and_get_one_mark() -> None:
    made = judge("3", "9")
    assert made.judge(["4", "6", "4", "4"], [ROWS[0], ROWS[1], ROWS[0], ROWS[0]]) == [0.9, 0.3, 0.9, 0.9]
    assert len(asked(made)[0][1]) == 2
    assert judge().judge([], []) == []


def test_what_is_asked_holds_all_of_it_and_braces_stay() -> None:
    made = judge("1", criterion="Look at {prompt}.", best=5)
    made.judge(["{completion} \\1 {best}"], [{"prompt": "{criterion}"}])
    text = asked(made)[0][1][0].row["prompt"]
    for part_of in ("Question:\n{criterion}\n", "Answer:\n{completion} \\1 {best}\n", "Look at {prompt}. Reply", "from 0 (useless) to 5 (perfect)"):
        assert part_of in text


MARKS = [
    ("8", 0.8), (" 8\n", 0.8), ("8.", 0.8), ("**8**", 0.8), ("Score: 8", 0.8), ("8/10", 0.8), ("8 / 10.", 0.8), ("I give 8 out of 10", 0.8),
    ("8, because 2 and 2 is 4", 0.8), ("Out of 10, I give it 8.", 0.8), ("10", 1.0), ("0", 0.0), ("(8)", 0.8), ("08", 0.8), ("٨", 0.8),
    ("", None), ("eight", None), ("11", None), ("8/11", None), ("80/100", None), ("8.5", None), ("8,5", None), ("-8", None),
    ("1,000", None), ("1000000000000000000000000", None),
]  # fmt: skip


@pytest.mark.parametrize(("said", "mark"), MARKS)
def test_a_mark_is_read_from_awkward_texts(said: str, mark: float | None) -> None:
    assert Judge(Scripted([])).mark(said) == mark


def test_without_a_mark_it_ends_in_one_line_after_so_many_tries() -> None:
    made = judge("none", "3", "many\nlines", tries=2)
    with pytest.raises(EndpointError) as stop:
        made.judge(["4", "6"], ROWS)
    assert str(stop.value).startswith("the judge gave 1 of 2 answers no mark from 0 to 10 in 2 tries; it said 'many\\nlines'; take a stronger judge")
    assert "\n" not in str(stop.value) and len(asked(made)) == 2


@pytest.mark.parametrize("wrong", [{"best": 0}, {"tries": 0}])
def test_no_marks_and_no_tries_are_refused(wrong: dict) -> None:
    with pytest.raises(RecipeError, match="a judge needs a best mark and tries of at least 1"):
        Judge(Scripted([]), **wrong)
    with pytest.raises(RecipeError, match="Silent cannot write"):
        Judge(lb.Silent()).load()


def test_judges_are_under_the_terms_of_who_judges(tmp_path) -> None:
    assert Judge(Scripted([])).licences == [TERMS]
    toys.licensed(tmp_path, "mit")
    assert [each.name for each in RewardModel(str(tmp_path)).licences] == ["mit"]


# The reward model


def reward_folder(path: Path, template: str | None = toys.CHATML, pad: int | None = 256, labels: int = 1) -> str:
    torch.manual_seed(3)
    made = LlamaForSequenceClassification(toys.config(num_labels=labels, pad_token_id=pad))
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim == 2:
                weight.mul_(4)
    made.save_pretrained(path)
    toys.tokenizer(template).save_pretrained(path)
    toys.licensed(path)
    return str(path)


DIALOGUES: list[tuple[str, dict[str, Any], str, str]] = [
    ("two", {"prompt": "one"}, "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n", "one\n\ntwo"),
    ("sun " * 9, {"prompt": "red"}, f"<|im_start|>user\nred<|im_end|>\n<|im_start|>assistant\n{'sun ' * 9}<|im_end|>\n", f"red\n\n{'sun ' * 9}"),
    ("c", {"prompt": "b", "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "x"}]},
     "<|im_start|>system\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n", "a\n\nb\n\nc"),
    ("f", {"prompt": "d", "dialogue": [{"role": r, "content": c} for r, c in (("user", "d"), ("assistant", "e"), ("user", "d"))]},
     "<|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\ne<|im_end|>\n<|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\nf<|im_end|>\n",
     "d\n\ne\n\nd\n\nf"),
]  # fmt: skip
"""Completion, row, and both renderings; an answer that the row brings is not the one to be judged."""


@pytest.mark.parametrize(("template", "pad"), list(itertools.product([toys.CHATML, None], [256, 257, None])))
def test_rewards_are_those_of_the_bare_model_row_by_row(template: str | None, pad: int | None, tmp_path) -> None:
    folder = reward_folder(tmp_path, template, pad)
    made = RewardModel(folder, dtype="float32", rows_per_pass=3).load()
    rewards = made.judge([each[0] for each in DIALOGUES], [each[1] for each in DIALOGUES])
    bare = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    texts = [each[2 if template else 3] for each in DIALOGUES]
    with torch.no_grad():
        wanted = [float(bare(torch.tensor([toys.tokenizer()(text)["input_ids"]])).logits) for text in texts]
    assert rewards == pytest.approx(wanted, abs=1e-5)
    assert len({round(reward, 3) for reward in rewards}) == len(rewards)  # nothing here is the same for all


def test_what_is_no_reward_model_is_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(ModelError, match="has 2 outputs, and a reward is one number"):
        RewardModel(reward_folder(tmp_path / "two", labels=2)).load()
    with pytest.raises(ModelError, match="cannot open the reward model nobody/nothing: ") as stop:
        RewardModel("nobody/nothing").load()
    assert "\n" not in str(stop.value)
    made = RewardModel(reward_folder(tmp_path / "one"), max_tokens=40).load()
    with pytest.raises(ModelError, match=r"an answer with its prompt has \d+ tokens, and .* is to read 40; raise max_tokens"):
        made.judge(["red " * 20], [ROWS[0]])


# At work


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("toy")
    prompts = toys.jsonl(home / "prompts.jsonl", [{"prompt": row["prompt"]} for row in toys.rows(6)])
    return {"prompts": prompts, "student": toys.folder(home / "student", seed=1), "teacher": toys.folder(home / "teacher", seed=2),
            "reward": reward_folder(home / "reward")}  # fmt: skip


def verifiers(toy: dict[str, str]) -> Sequence[Any]:
    return [Judge(Scripted([str(n % 11) for n in range(99)])), RewardModel(toy["reward"], dtype="float32")]


@pytest.mark.parametrize("which", [0, 1], ids=["judge", "reward model"])
def test_they_reward_the_students_own_answers(which: int, toy, tmp_path) -> None:
    source = lb.OnPolicy(toy["prompts"], sequences=2, group=2, reward=verifiers(toy)[which], sampling=lb.Sampling(max_tokens=4))
    recipe = lb.Recipe(lb.Student(toy["student"], dtype="float32"), source, objective=lb.PolicyGradient(), steps=2)
    if which == 0:
        with pytest.raises(RecipeError, match="training on provider script was asked for"):
            lb.distill(recipe, tmp_path / "run")
        recipe = replace(recipe, accept_license=TERMS.name)
    lb.distill(recipe, tmp_path / "run")
    rewards = [row["reward"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "reward" in row]
    assert len(rewards) == 2 and len(set(rewards)) == 2


def test_a_local_model_that_babbles_is_no_judge(toy) -> None:
    with pytest.raises(EndpointError, match="the judge gave 2 of 2 answers no mark from 0 to 10 in 2 tries"):
        Judge(lb.Local(toy["teacher"], dtype="float32"), tries=2, max_tokens=3).load().judge(["4", "6"], ROWS)


@pytest.mark.parametrize("which", [0, 1], ids=["judge", "reward model"])
def test_they_choose_the_best_of_what_is_written(which: int, toy, tmp_path) -> None:
    verifier = verifiers(toy)[which]
    order = Order(lb.Local(toy["teacher"], dtype="float32"), lb.Data(toy["prompts"]), samples=4, sampling=lb.Sampling(max_tokens=200, temperature=2),
                  keep="best:1", above=-1e9, verifier=verifier, similarity=None, accept_license=[TERMS.name])  # fmt: skip
    card = write_corpus(order, tmp_path / "out")
    rows = read_jsonl(tmp_path / "out" / "corpus.jsonl")
    assert card.rows == len(rows) > 0 and all(isinstance(row["reward"], float) for row in rows)
