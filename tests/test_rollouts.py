"""Dialogues with a world that answers back: what is written, what is rendered, and what is learnt from."""

from types import SimpleNamespace

import pytest
import toys

import limbeck as lb
from limbeck.decoding import Written
from limbeck.environment import Replies
from limbeck.errors import RecipeError
from limbeck.sources import Share
from limbeck.vocabulary import Vocabulary

VOCABULARY = Vocabulary(toys.tokenizer())


class Scripted:
    """A student that asks for a sum, then says what it was told."""

    def __init__(self, context: int = 10**6, ends: bool = True) -> None:
        self.live, self.ends, self.asked = SimpleNamespace(context=context), ends, list[list[int]]()

    def write(self, prompts, sampling, seed, step, rows):
        self.asked.append(list(rows))
        return [self._turn(VOCABULARY.text(prompt)) for prompt in prompts]

    def _turn(self, prompt: str) -> Written:
        made, last = Written(), prompt.rpartition("user\n")[2].partition("assistant")[0].strip()
        said = f"it is {last}" if last.isdigit() else "add 2 3"
        made.tokens = VOCABULARY.ids(said + ("<|im_end|>" if self.ends else ""))
        made.logp = [-1.0] * len(made.tokens)
        return made


def calculator(messages, row):
    """Adds, once."""
    *_, turn = messages
    assert turn["role"] == "assistant" and row["prompt"] == "what is 2 + 3?"
    words = turn["content"].split()
    return [{"role": "user", "content": str(sum(map(int, words[1:])))}] if words[0] == "add" else None


def speech(messages, row):
    """No messages."""
    return "hello"


def right(completion, row):
    """Of the last turn."""
    assert [message["role"] for message in row["dialogue"]] == ["user", "assistant", "user"]
    return float(completion == "it is 5")


def drawn(tmp_path, student, **settings):
    prompts = toys.jsonl(tmp_path / "asked.jsonl", [{"prompt": "what is 2 + 3?"}])
    source = lb.OnPolicy(prompts, sequences=1, environment="test_rollouts:calculator", **settings)
    return source.load(VOCABULARY, Share()).draw(3, student)


def test_a_dialogue_is_rendered_as_the_template_does_and_only_the_students_turns_are_learnt(tmp_path) -> None:
    student = Scripted()
    batch = drawn(tmp_path, student, group=2, reward="test_rollouts:right", keep_above=0.5)
    turns = [("user", "what is 2 + 3?"), ("assistant", "add 2 3"), ("user", "5"), ("assistant", "it is 5")]
    whole = VOCABULARY.chat([{"role": role, "content": content} for role, content in turns])
    for tokens in batch.sequences():
        assert VOCABULARY.tokenizer.decode(tokens.tolist()) == whole.rstrip("\n")
    learnt = VOCABULARY.tokenizer.decode(batch.select([0]).tokens_N.tolist())
    assert learnt == "add 2 3<|im_end|>it is 5<|im_end|>"
    assert student.asked[0] != student.asked[1]  # other random numbers for another turn
    assert len(batch) == 2 and len(batch.logp_N) == len(batch.places_N)


def test_a_turn_without_an_end_is_the_last(tmp_path) -> None:
    student = Scripted(ends=False)
    assert VOCABULARY.text(drawn(tmp_path, student).tokens_N.tolist()) == "add 2 3"
    assert len(student.asked) == 1


def test_a_dialogue_that_fills_the_context_ends(tmp_path) -> None:
    whole = len(drawn(tmp_path, Scripted()).tokens_T)
    batch = drawn(tmp_path, Scripted(context=whole - 10))
    assert VOCABULARY.tokenizer.decode(batch.tokens_N.tolist()) == "add 2 3<|im_end|>"


def test_no_more_turns_than_allowed(tmp_path) -> None:
    prompts = toys.jsonl(tmp_path / "asked.jsonl", [{"prompt": "what is 2 + 3?"}])
    student = Scripted()
    world = Replies("test_rollouts:calculator", turns=1)
    lb.OnPolicy(prompts, sequences=1, environment=world).load(VOCABULARY, Share()).draw(0, student)
    assert len(student.asked) == 1


@pytest.mark.parametrize(("function", "said"), [
    ("test_rollouts:nothing", "cannot import"),
    ("test_rollouts:VOCABULARY", "is no function"),
    ("test_rollouts:speech", "return a list of messages"),
])  # fmt: skip
def test_a_world_that_is_none(function: str, said: str, tmp_path) -> None:
    prompts = toys.jsonl(tmp_path / "asked.jsonl", [{"prompt": "what is 2 + 3?"}])
    world = Replies(function, turns=2)
    with pytest.raises(RecipeError, match=said):
        lb.OnPolicy(prompts, sequences=1, environment=world).load(VOCABULARY, Share()).draw(0, Scripted())


def test_turns_are_counted_from_one() -> None:
    with pytest.raises(RecipeError, match="at least 1"):
        Replies("test_rollouts:calculator", turns=0)
