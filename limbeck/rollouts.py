"""The student's own text: answers to prompts, and dialogues with a world that answers back; what they earned."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from limbeck.batch import Batch, Span, Text
from limbeck.config import live, part
from limbeck.data import Data, Pool, Row, asked_of, messages_of, told_columns
from limbeck.decoding import Sampling, Written
from limbeck.distributed import sum_over_ranks
from limbeck.engines import Engine
from limbeck.environment import Environment
from limbeck.errors import RecipeError
from limbeck.lazy import Tensor, torch
from limbeck.reward import RunningBaseline, group_credit
from limbeck.sources import DataSets, RowSource, Share, check_sizes
from limbeck.student import Student
from limbeck.verifiers import Verifier
from limbeck.vocabulary import Vocabulary


@part
class OnPolicy(RowSource):
    """The student's own answers to prompts, written with its weights as they are (GKD, arXiv 2306.13649).

    sequences: prompts of a step, over all ranks, each answered `group` times. max_prompt: longer prompts are left out.
    reward: a verifier, such as `Number()`, or `module:function`, called with (completion, row) -> number; it gives credit
    (reward less the group's mean, or less a running mean), and with `keep_above` chooses which answers are learnt from.
    environment: what answers the student's turns, so that it writes several. engine: who writes in the student's place with its
    weights, such as "vllm"; by default the student.
    """

    prompts: DataSets
    sequences: int = 16
    sampling: Sampling = field(default_factory=Sampling)
    max_prompt: int = 1024
    group: int = 1
    reward: Verifier | None = None
    baseline: Literal["group", "running"] = "group"
    keep_above: float | None = None
    environment: Environment | None = None
    engine: Engine | None = None

    _pool: Any = live()
    _vocabulary: Any = live()
    _share: Any = live()
    _baseline: Any = live()

    def __post_init__(self) -> None:
        check_sizes(self.sequences, self.max_prompt, self.group)
        if self.keep_above is not None and not math.isfinite(self.keep_above):
            raise RecipeError(f"OnPolicy.keep_above must be finite, found {self.keep_above}; null keeps every answer")
        if self.keep_above is not None and self.reward is None:
            raise RecipeError("OnPolicy(keep_above=...) needs a reward to compare with; give reward: Number(), or module:function")
        if self.reward is not None and self.keep_above is None and self.group == 1 and self.baseline == "group":
            raise RecipeError('OnPolicy(group=1) with a group baseline gives every answer zero credit; set group >= 2 or baseline="running"')

    @property
    def writers(self) -> frozenset[str]:
        """The student alone."""
        return frozenset({"student"})

    @property
    def rewarded(self) -> bool:
        """Whether there is credit."""
        return self.reward is not None

    @property
    def chosen(self) -> bool:
        """Whether a verifier chose what is learnt from."""
        return self.keep_above is not None

    def load(self, vocabulary: Vocabulary, share: Share) -> Self:
        """Open the prompts, and who judges and answers."""
        loaded = {name: getattr(self, name) and getattr(self, name).load() for name in ("reward", "environment")}
        made = replace(self, **loaded, engine=self.engine and self.engine.load(vocabulary))
        made._pool, made._vocabulary, made._share = Pool(self.prompts, share.seed), vocabulary, share
        made._baseline = RunningBaseline()
        return made

    @property
    def leaves_out(self) -> str:
        """Prompts that leave no room, and answers that earned too little."""
        chosen = "" if self.keep_above is None else f"; answers that earned no more than keep_above={self.keep_above} are dropped too"
        return f"prompts longer than max_prompt={self.max_prompt} or the student's context{chosen}"

    def draw(self, step: int, student: Student) -> Batch:
        """Take prompts, let the student answer, put credit on the answers."""
        taken = self._pool.take(step * self.sequences, self.sequences)
        asked = [(g, row, data, self._vocabulary.prompt(row, data)) for g, (data, row) in enumerate(taken) if g in self._share.rows(self.sequences)]
        longest = min(self.max_prompt, student.live.context - 1)
        fitting = [each for each in asked if len(each[3]) <= longest]
        talks = [_Talk(g * self.group + n, row, data, list(ids)) for g, row, data, ids in fitting for n in range(self.group)]
        self._talk(talks, step, student)
        texts = [Text(talk.tokens, talk.spans, told_columns(talk.row), talk.logp) for talk in talks]
        batch = replace(Batch.of(texts, "student"), left_out=len(asked) - len(fitting), figures=self.engine.figures() if self.engine else {})
        return self._judged(batch, talks) if self.reward else batch

    def _talk(self, talks: Sequence["_Talk"], step: int, student: Student) -> None:
        """Let the student write, and the world answer, until every talk is over."""
        turns = self.environment.turns if self.environment else 1
        going = list(talks)
        for turn in range(turns):
            prompts, rows = [talk.tokens for talk in going], [talk.number * turns + turn for talk in going]
            for talk, new in zip(going, self._written(student, prompts, step, rows), strict=True):
                talk.wrote(new.tokens, new.logp)
            if turn + 1 == turns or self.environment is None:
                return
            ended = [talk for talk in going if talk.tokens[-1] in self._vocabulary.end_ids]
            going = [talk for talk in ended if self._answered(talk, self.environment, student.live.context - 1)]
            if not sum_over_ranks([len(going)])[0]:  # a sharded student writes on every rank, or on none
                return

    def _written(self, student: Student, prompts: Sequence[list[int]], step: int, rows: Sequence[int]) -> list[Written]:
        """By the student, or by whoever writes in its place."""
        if self.engine is None:
            return student.write(prompts, self.sampling, self._share.seed, step, rows)
        return self.engine.write(student, prompts, self.sampling, self._share.seed, step, rows)

    def _answered(self, talk: "_Talk", world: Environment, context: int) -> bool:
        """Let the world answer a turn; whether the student is to write another."""
        turn = {"role": "assistant", "content": self._vocabulary.text(talk.completion)}
        reply = world.reply([*talk.messages, turn], dict(talk.row))
        if not reply:
            return False
        after = self._vocabulary.continued([*talk.messages, turn], reply, talk.data)
        talk.said += [turn, *reply]
        if len(talk.tokens) + len(after) > context:
            return False
        talk.tokens += after
        return True

    def _judged(self, batch: Batch, talks: Sequence["_Talk"]) -> Batch:
        assert self.reward is not None
        asked = [{**talk.row, "prompt": asked_of(talk.row), **({"dialogue": talk.messages} if talk.said else {})} for talk in talks]
        rewards = self.reward.judge([self._vocabulary.text(talk.completion) for talk in talks], asked)
        if bad := [value for value in rewards if not math.isfinite(value)]:
            raise RecipeError(f"{type(self.reward).__name__} gave {len(bad)} of {len(rewards)} answers no finite reward; choose another verifier")
        reward_B = torch.tensor(rewards)
        batch = replace(batch, credit_B=self._credit(reward_B), figures={"reward": (float(reward_B.double().sum()), len(reward_B)), **batch.figures})
        return batch if self.keep_above is None else batch.select((reward_B > self.keep_above).nonzero().flatten().tolist())

    def _credit(self, reward_B: Tensor) -> Tensor:
        if self.baseline == "group":
            return group_credit(reward_B, self.group)
        total, count = sum_over_ranks([float(reward_B.double().sum()), len(reward_B)])
        return self._baseline.credit(reward_B, total, int(count))

    def state(self) -> dict[str, Any]:
        """The running mean of rewards."""
        return {"total": self._baseline.total, "count": self._baseline.count}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back the running mean."""
        self._baseline.total, self._baseline.count = state["total"], state["count"]


@dataclass
class _Talk:
    """One sequence being written: its tokens as they were written and as the world's were rendered, never cut anew."""

    number: int
    row: Row
    data: Data
    tokens: list[int]
    spans: list[Span] = field(default_factory=list[Span])
    logp: list[float] = field(default_factory=list[float])
    said: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def wrote(self, tokens: list[int], logp: list[float]) -> None:
        """The student's turn."""
        self.spans.append(Span(len(self.tokens), len(self.tokens) + len(tokens)))
        self.tokens = [*self.tokens, *tokens]
        self.logp += logp

    @property
    def completion(self) -> list[int]:
        """What the student wrote last."""
        return self.tokens[self.spans[-1].start : self.spans[-1].stop]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The dialogue so far, without the turn that was written last."""
        there = {name: value for name, value in self.row.items() if value is not None}
        begun = messages_of(there) or [{"role": "user", "content": asked_of(self.row)}]
        while begun and begun[-1]["role"] == "assistant":
            begun.pop()
        return [*begun, *self.said]
