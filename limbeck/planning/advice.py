"""Which way from a teacher to a student suits, the simplest first, and why: the trade-offs of learning from ready text and from one's own.

Ready text (offline) is cheap to learn from, again and again, and needs no live teacher; but the student is trained on text that it would
not have written, and errors that it alone makes are never mended (exposure bias; DAgger, arXiv 1011.0686). Its own text (online) has no such
mismatch and needs fewer prompts, at the price of writing in each step beside a live teacher (GKD, arXiv 2306.13649).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from limbeck.estimate import FAR, TOO_FAR
from limbeck.recipe import Recipe
from limbeck.teachers import Silent

LONG, FEW = 256, 2000
"""Tokens of an answer from which errors pile up, and rows below which each is worth more than the arithmetic on it: rules of thumb."""


@dataclass(frozen=True)
class Facts:
    """What the choice hangs on. seconds: of each candidate that can be run; not_possible: of the others why.

    answer_tokens: mean; rows: of the data; times: parameters of the teacher to the student's; epochs: how often each reads its text;
    rewarded: whether a verifier was given.
    """

    seconds: Mapping[str, float]
    not_possible: Mapping[str, str]
    answer_tokens: float
    rows: int
    times: float
    epochs: Mapping[str, float]
    rewarded: bool = False

    def costs(self, name: str, other: str) -> str:
        """How much more one takes than another."""
        return f"{self.seconds[name] / self.seconds[other]:.2g} times the time of {other}" if {name, other} <= self.seconds.keys() else ""


def traits(recipe: Recipe) -> dict[str, bool]:
    """Where a recipe stands in the trade-offs, by its own parts."""
    own = "student" in recipe.source.writers
    live = recipe.teacher.hears and not isinstance(recipe.teacher, Silent)
    return {"live teacher": live, "student writes": own, "train-test mismatch": not own, "text can be used again": not own}


def advice(facts: Facts) -> list[dict[str, str]]:
    """What to take, in this order: a name, and why."""
    known = facts.seconds
    return [{"take": name, "why": why} for name, why in _said(facts) if name in known or name == "stages"]


def _said(facts: Facts) -> Iterator[tuple[str, str]]:
    if len(facts.seconds) == 1:
        return
    if facts.times > TOO_FAR:
        yield "stages", f"the teacher is {facts.times:.0f} times the student: distill through an assistant of a size between them"
    yield "sft", "the baseline: what does not beat it on the same tokens is not worth its price"
    yield from _offline(facts)
    yield from _online(facts)


def _offline(facts: Facts) -> Iterator[tuple[str, str]]:
    """The simple things, tried first."""
    if not {"kd", "kd from a cache"} & facts.seconds.keys():
        yield "sft on written text", "text alone passes from this teacher: its own answers are the simplest lesson, and often enough"
        if "alm" in facts.seconds:
            yield "alm", "across vocabularies, likelihoods of spans say more than text alone"
        return
    epochs = max(facts.epochs.get("kd", 0.0), facts.epochs.get("kd from a cache", 0.0))
    cheaper = min({"kd", "kd from a cache"} & facts.seconds.keys(), key=facts.seconds.__getitem__)
    why = {
        "kd": f"the simplest that uses whole distributions; the text is read {epochs:.2g} times, so that a cache would not pay for itself",
        "kd from a cache": f"the simplest that uses distributions; asked once, the teacher is used again in each run"
        f"{'' if 'kd' in facts.seconds else ', and it need not fit beside the student'}; the text is read {epochs:.2g} times",
    }
    yield cheaper, why[cheaper]


def _online(facts: Facts) -> Iterator[tuple[str, str]]:
    """What costs writing in each step, and when it is worth that."""
    reasons = list[str]()
    if facts.answer_tokens >= LONG:
        reasons.append(f"answers of {facts.answer_tokens:.0f} tokens are a long horizon, on which errors of its own pile up")
    if 0 < facts.rows < FEW:
        reasons.append(f"{facts.rows:,} rows are few, and its own answers to them are new each time")
    name = "on_policy" if "on_policy" in facts.seconds else "gold"
    base = next((each for each in ("kd", "kd from a cache", "sft") if each in facts.seconds), "")
    price = facts.costs(name, base) if base else ""
    if reasons:
        yield name, f"then, from what that gave: {'; '.join(reasons)}; {price}"
    else:
        yield name, f"only if the student is worse on its own text than on ready text (limbeck evaluate shows both); {price}"
    if facts.times > FAR:
        price = facts.costs("skd", base)
        yield "skd", f"a student {facts.times:.0f} times smaller writes poor text at first: the teacher mends it while it is written; {price}"
    if facts.rewarded:
        yield "gkd_rl", f"a verifier tells right from wrong: reward beside the teacher; {facts.costs('gkd_rl', base)}"


def as_rows(said: list[dict[str, str]]) -> list[list[str]]:
    """For a table."""
    return [[f"{place}", each["take"], each["why"]] for place, each in enumerate(said, 1)]
