"""A teacher that answers by a function, at a price that is known, and remembers what it was asked."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from limbeck.answers import Answer, Bill, Draw, Given, Purse, Question, Told
from limbeck.batch import Batch
from limbeck.config import import_object, part
from limbeck.decoding import Sampling
from limbeck.targets import Targets
from limbeck.teachers import Teacher

ASKED = Counter[tuple[str, str, str, int]]()
"""How often each was asked: (teacher, sampling, question, sample)."""
LEFT = [10**9]
"""So many answers are given before the process is as if killed."""


@contextmanager
def killed_after(answers: int) -> Iterator[None]:
    """Within the block so many answers are given, and then nothing more."""
    LEFT[0] = answers
    try:
        yield
    finally:
        LEFT[0] = 10**9


@part
class Teller(Teacher):
    """by: `module:function` of (question, sample), giving a text or an Answer. flops, usd: of an answer; worst: the most it may cost, in the same."""

    by: str
    label: str = "teller"
    flops: float = 1.0
    usd: float = 0.0
    worst: float = 1.0

    @property
    def name(self) -> str:
        return self.label

    def score(self, parts: Iterable[Batch]) -> Iterator[Targets]:
        raise NotImplementedError

    def writing(self) -> "Teller":
        return self

    def answers(self, questions: Iterable[Question], sampling: Sampling, purse: Purse, told: Told = lambda tokens: None) -> Iterator[Given]:
        worst = Bill(usd=self.usd * self.worst, flops=self.flops * self.worst)
        draws = (Draw(question, sample, worst) for question in questions for sample in question.samples)
        for draw in purse.afford((each, worst) for each in draws):
            assert draw is not None, "nothing is under way, and so nothing frees any"
            if LEFT[0] == 0:
                raise KeyboardInterrupt
            LEFT[0] -= 1
            ASKED[self.label, str(sampling), draw.question.key, draw.sample] += 1
            said: Any = import_object(self.by)(draw.question, draw.sample)
            bill = Bill(5, 3, self.usd, self.flops)
            purse.settle(worst, bill)
            yield Given(draw.question, draw.sample, said if isinstance(said, Answer) else Answer(said), bill)


def chance(question: Question, sample: int, salt: str = "") -> random.Random:
    """Random numbers of an answer."""
    return random.Random(f"{salt} {question.key} {sample}")


def echo(question: Question, sample: int) -> str:
    """What was said last, and which sample this is."""
    return f"{question.messages[-1]['content']} is said by {sample}"


def marks(question: Question, sample: int) -> str:
    """A mark between 0 and 9."""
    return str(chance(question, sample).randrange(10))


def rambling(question: Question, sample: int) -> str:
    """A first mark that is none."""
    return "Good." if sample == 0 else "7"


def person(question: Question, sample: int) -> str:
    """A user who follows up, and now and then is done."""
    return "[DONE]" if chance(question, sample).random() < 0.2 else f"And {question.key}?"


def everybody(question: Question, sample: int) -> str:
    """A teacher that makes tasks, plays users and answers, as it is asked."""
    first = question.messages[0]["content"]
    if "write tasks" in first:
        draw = chance(question, sample)
        return "\n".join(f"{n}. " + " ".join(f"{draw.choice('abcdefgh')}{draw.randrange(999)}" for _ in range(6)) for n in range(9, 13))
    return person(question, sample) if "one message only" in first else echo(question, sample)


def weak(question: Question, sample: int) -> str:
    """Right in 9 of 10 on easy prompts, never on hard ones."""
    right = question.row["easy"] and chance(question, sample, "weak").random() < 0.9
    return f"{question.row['answer'] if right else -1}"


def strong(question: Question, sample: int) -> str:
    """Right in half of all, in one of many wordings, of which some are lucky."""
    draw = chance(question, sample, "strong")
    return f"{draw.choice(['so', 'thus', 'lucky'])} {question.row['answer'] if draw.random() < 0.5 else -1}"


def sound(completion: str, row: dict) -> float:
    """Whether it was not luck."""
    return float("lucky" not in completion)
