"""Choosing among the answers to one question: by verifier, by reward, by vote, or by likeness to the others.

all          every answer
verified     those whose reward is above a bound (rejection sampling)
best:2       the two with the highest reward above the bound
majority     those that say what most say (self-consistency, arXiv 2203.11171); majority:1 is the first of them
mbr          the one most like the others (minimum Bayes risk with chrF); mbr:2 the two
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from limbeck.answers import Answer, Given, Question
from limbeck.data import asked_of
from limbeck.errors import RecipeError, did_you_mean
from limbeck.verifiers import Verifier

NEEDS = {"all": "", "verified": "reward", "best": "reward", "majority": "said", "mbr": ""}
"""What each way of choosing must know of an answer."""


@dataclass(frozen=True)
class Candidate:
    """An answer to a question, what a verifier gave it, and what it says in one spelling."""

    answer: Answer
    reward: float | None = None
    said: str | None = None


@dataclass(frozen=True)
class Choice:
    """Which of the answers to one question are kept. count: at the most; above: what a reward must pass."""

    way: str
    count: int | None = None
    above: float = 0.0

    @property
    def needs(self) -> str:
        """What it must know of an answer: "reward", "said", or nothing."""
        return NEEDS[self.way]

    def choose(self, group: Sequence[Candidate]) -> list[int]:
        """The places of those that are kept, in their order."""
        match self.way:
            case "verified" | "best":
                ranked = [n for n, each in enumerate(group) if each.reward is not None and each.reward > self.above]
                if self.way == "best":  # of equal rewards the shorter, then the earlier
                    ranked.sort(key=lambda n: (-(group[n].reward or 0.0), len(group[n].answer.text), n))
            case "majority":
                ranked = _majority([each.said for each in group])
            case "mbr":
                worth = _mean_likeness([each.answer.text for each in group])
                ranked = sorted(range(len(group)), key=lambda n: (-worth[n], n))
            case _:
                ranked = list(range(len(group)))
        return sorted(ranked[: self.count])


def chosen(text: str, above: float = 0.0) -> Choice:
    """Read a choice such as `best:2`. Raises RecipeError for one that is none."""
    way, colon, count = text.partition(":")
    if way not in NEEDS:
        raise RecipeError(f'there is no way to choose "{way}"{did_you_mean(way, NEEDS)}')
    if colon and (way in ("all", "verified") or not count.isdecimal() or int(count) < 1):
        raise RecipeError(f'cannot read "{text}"; write it like best:2, majority:1, mbr:2, verified or all')
    if not math.isfinite(above):
        raise RecipeError(f"a reward is to be above {above}; give a finite number")
    return Choice(way, int(count) if colon else 1 if way in ("best", "mbr") else None, above)


def _majority(said: Sequence[str | None]) -> list[int]:
    """Those that say the commonest thing; of equally common ones, the one said first."""
    votes = Counter(each for each in said if each is not None)
    if not votes:
        return []
    winner = max(votes, key=lambda each: (votes[each], -said.index(each)))
    return [n for n, each in enumerate(said) if each == winner]


def _mean_likeness(texts: Sequence[str]) -> list[float]:
    """How like the others each text is, in the mean [B]; 0 for one alone."""
    grams = [_grams(text) for text in texts]
    others = max(1, len(texts) - 1)
    return [sum(_chrf(mine, theirs) for m, theirs in enumerate(grams) if m != n) / others for n, mine in enumerate(grams)]


Grams = list[Counter[str]]


def _grams(text: str, longest: int = 6) -> Grams:
    letters = "".join(text.split())
    return [Counter(letters[n : n + size] for n in range(len(letters) - size + 1)) for size in range(1, longest + 1)]


def _chrf(mine: Grams, theirs: Grams, beta: float = 2.0) -> float:
    """chrF between 0 and 1 (Popović 2015): F-score of the mean precision and recall of character n-grams of 1 to 6 letters."""
    pairs = [(a, b, (a & b).total()) for a, b in zip(mine, theirs, strict=True) if a and b]
    if not pairs:
        return 0.0
    precision = sum(common / a.total() for a, _, common in pairs) / len(pairs)
    recall = sum(common / b.total() for _, b, common in pairs) / len(pairs)
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall) if precision + recall else 0.0


def chrf(hypothesis: str, reference: str) -> float:
    """How like a text is to another, between 0 and 1; orders that either is too short for do not count."""
    return _chrf(_grams(hypothesis), _grams(reference))


@dataclass
class Tally:
    """What became of the answers: each was kept, or dropped for the first of these reasons."""

    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])

    @property
    def answered(self) -> int:
        """All that came."""
        return self.kept + self.dropped.total()

    def drop(self, why: str, count: int = 1) -> None:
        """Count answers that are not kept."""
        self.dropped[why] += count

    def __str__(self) -> str:
        told = ", ".join(f"{count:,} {why}" for why, count in self.dropped.items() if count)
        return f"{self.answered:,} answers, {self.kept:,} kept" + (f"; {told}" if told else "")


@dataclass(frozen=True)
class Kept:
    """An answer that was chosen, and its reward where a verifier gave one."""

    given: Given
    reward: float | None

    @property
    def question(self) -> Question:
        """What was asked."""
        return self.given.question

    @property
    def answer(self) -> Answer:
        """What was answered."""
        return self.given.answer


WHOLE = {"length": "cut by length", "filter": "withheld"}
"""Why an answer is not whole, by how it ended."""


def fault(answer: Answer) -> str:
    """Why an answer is not whole; nothing where it is."""
    return WHOLE.get(answer.finish) or ("" if answer.text.strip() or answer.tool_calls else "empty")


def selected(given: Sequence[Given], choice: Choice, verifier: Verifier | None, tally: Tally) -> list[Kept]:
    """The answers that are kept, in their order; answers to one question stand together. Cut, withheld and empty ones are dropped first."""
    whole = list[Given]()
    for each in given:
        why = fault(each.answer)
        tally.drop(why) if why else whole.append(each)
    rewards = rewarded(whole, verifier)
    pairs = zip(whole, rewards, strict=True)
    found = list[Kept]()
    for _, several in groupby(pairs, key=lambda pair: pair[0].question.key):
        group = list(several)
        candidates = [Candidate(each.answer, reward, verifier.said(each.answer.text) if verifier else None) for each, reward in group]
        places = choice.choose(candidates)
        found += [Kept(*group[n]) for n in places]
        for n in set(range(len(group))) - set(places):
            reward = candidates[n].reward
            refused = choice.needs == "reward" and reward is not None and not reward > choice.above
            tally.drop("refused by the verifier" if refused else "not chosen")
    tally.kept += len(found)
    return found


def rewarded(given: Sequence[Given], verifier: Verifier | None) -> list[float | None]:
    """What a verifier gives each answer, where there is one."""
    if verifier is None:
        return [None] * len(given)
    rows = [{**each.question.row, "prompt": asked_of(each.question.row)} for each in given]
    return list[float | None](verifier.judge([each.answer.text for each in given], rows))
