"""What is known of a run before it begins, what is assumed, and writing as pieces of work."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from limbeck.batch import Batch, Span, Text
from limbeck.data import Data, Pool, Row
from limbeck.decoding import Sampling
from limbeck.endpoint import Endpoint
from limbeck.errors import DataError, RecipeError
from limbeck.estimate import AT_ONCE
from limbeck.planning.work import Actor, Asking, Moving, Piece, Reading, Stage, Writing
from limbeck.recipe import Recipe
from limbeck.sources import Share
from limbeck.teachers import Local, Teacher
from limbeck.vocabulary import Vocabulary

DRAWS = 6
"""Steps whose text is drawn to tell what one takes."""


@dataclass
class Scene:
    """What is known of a run before it begins, and what is assumed.

    actor: the model of a part. answer_tokens: of an answer where it is not cut before; None: answers go on to their limit.
    accepted: share of a draft's tokens that a verifier lets stand.
    """

    recipe: Recipe
    student: Actor
    vocabulary: Vocabulary
    actor: Callable[[Local], Actor]
    answer_tokens: int | None = None
    accepted: float = 0.8
    ranks: int = 1
    assumed: dict[str, None] = field(default_factory=dict[str, None])

    @property
    def share(self) -> Share:
        """The first rank's of each step."""
        return Share(self.recipe.seed, 0, self.ranks)

    @property
    def context(self) -> int:
        """The longest sequence of the student's."""
        return self.student.anatomy.context or 10**9

    def answer(self, sampling: Sampling) -> int:
        """How long an answer is taken to be."""
        if self.answer_tokens is None:
            self.assumed[f"answers of {sampling.max_tokens} tokens, their limit"] = None
            return sampling.max_tokens
        found = min(self.answer_tokens, sampling.max_tokens)
        self.assumed[f"answers of {found} tokens"] = None
        return found

    def prompts(self, pool: Pool, first: int, count: int, longest: int) -> list[list[int]]:
        """This rank's prompts of a step, those left out that are too long."""
        rows = pool.take(first, count)
        found = [self.vocabulary.prompt(rows[place][1], rows[place][0]) for place in self.share.rows(count)]
        return [ids for ids in found if len(ids) <= longest]


@dataclass(frozen=True)
class Draw:
    """The text of one step, with what it took to come by. share: of all steps. said: whether the writing has scored it already."""

    share: float
    batch: Batch
    pieces: tuple[Piece, ...] = ()
    said: bool = False


def copied(scene: Scene) -> list[Piece]:
    """The copy of the weights that the student writes with, where its arithmetic is narrower than its masters."""
    student = scene.student
    return [Moving("write", student.parameters * (student.masters + student.width))] if student.width < student.masters else []


def side_by_side(prompts: Sequence[list[int]], samples: int = 1) -> list[list[list[int]]]:
    """Prompts as they are written together, like lengths with each other, each with its samples."""
    line = [ids for ids in sorted(prompts, key=len) for _ in range(samples)]
    return [line[start : start + AT_ONCE] for start in range(0, len(line), AT_ONCE)]


def written(stage: Stage, actor: Actor, prompts: Sequence[list[int]], samples: int, answer: float, times: float = 1.0) -> list[Piece]:
    """Prompts read, each once, and answers of that many tokens."""
    found = list[Piece]()
    for some in side_by_side(prompts, samples):
        read, past = len(some) / samples, sum(map(len, some)) / len(some) + answer / 2
        found.append(Reading(stage, actor, max(1.0, read), max(1, max(map(len, some)) - 1), times=times))
        found.append(Writing(stage, actor, len(some), answer, past, times=times))
    return found


def rounds(rows: int, answer: int, gamma: int, accepted: float, lossless: bool) -> tuple[int, float]:
    """Rounds of proposal and verification until the last of some rows has ended, and rows that go on in a mean one; simulated.

    A proposed token stands with probability `accepted`, by itself; a refused one is replaced, and a lossless rule adds one to a whole proposal.
    """
    draw, left_R, calls, going = np.random.default_rng(0), np.full(rows, answer), 0, 0
    while (left_R > 0).any():
        still = int((left_R > 0).sum())
        kept = (draw.random((still, gamma)) < accepted).cumprod(1).sum(1)
        left_R[left_R > 0] -= np.where(kept < gamma, kept + 1, gamma + lossless)
        calls, going = calls + 1, going + still
    return calls, going / max(1, calls)


def answers(writer: Teacher, scene: Scene, prompts: Sequence[list[int]], samples: int, answer: int, stage: Stage, times: float = 1.0) -> list[Piece]:
    """What it takes to have a teacher answer prompts. times: as many more prompts like these."""
    if isinstance(writer, Local):
        return written(stage, scene.actor(writer), prompts, samples, answer, times)
    if isinstance(writer, Endpoint):
        tokens_in, tokens_out = sum(map(len, prompts)) * samples, len(prompts) * samples * answer
        return [Asking(stage, tokens_in, tokens_out, writer.usd_in, writer.usd_out, writer.concurrency, writer.parameters, times=times)]
    raise RecipeError(f"{type(writer).__name__} cannot write; let a model do it: Local(model) or Endpoint(url, model)")


def answered(prompt: list[int], answer: int, turns: int, room: int) -> Text:
    """A prompt with its answers, as far as there is room."""
    return made_up(len(prompt), max(1, min(answer * turns, room - len(prompt))))


def made_up(before: int, after: int) -> Text:
    """Text of which only the lengths count."""
    before = max(1, before)
    return Text([0] * (before + after), [Span(before, before + after)])


def rows_of(data: Sequence[Data], most: int = 256) -> tuple[list[tuple[Data, Row]], int]:
    """Some rows of data sets, and how many there are in all. Raises DataError for what cannot be counted."""
    found, total = list[tuple[Data, Row]](), 0
    for each in data:
        if each.streaming:
            raise DataError(f"{each.path} is streamed, and its rows cannot be counted; plan with a part of it as a file")
        rows = each.rows()
        total += len(rows)
        found += [(each, row) for row in islice(rows, most)]
    return found, total
