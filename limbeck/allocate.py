"""Several teachers and one budget: what each buys, measured on a pilot, and how the budget is best shared among them.

Compute- and cost-matched sampling (arXiv 2408.16737, section 3): at equal FLOPs, or equal price, a weak teacher gives more
samples than a strong one. Departs: 1) prices and lengths are those of the pilot, where the paper takes the sizes of models and
equal lengths; 2) estimates at k samples are unbiased, from all of the pilot's; 3) teachers may share a prompt.

Axes: T teachers, P prompts of the pilot, O outcomes: "right" of each prompt for coverage, each different right answer for diversity.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from math import comb, isfinite, nan
from typing import Any, Literal

import numpy as np

from limbeck.answers import Given, Question
from limbeck.choose import fault, rewarded
from limbeck.config import Part, part
from limbeck.decoding import Sampling
from limbeck.errors import RecipeError
from limbeck.readings import folded
from limbeck.remembered import Account
from limbeck.teachers import Teacher
from limbeck.verifiers import Verifier

Array = np.ndarray[Any, Any]
Measure = Literal["diversity", "coverage"]

UNITS = {"usd": "US dollars", "flops": "FLOPs"}
ROUNDING = 1 + 1e-9
"""Costs are sums of floats, in whichever order answers came: nothing may hang on their last digits."""
MOST = 10**6
"""So many ways to share a budget are tried."""


@dataclass(frozen=True)
class Price:
    """What samples for one prompt cost: the first of them, and each more, for which a local model does not read the prompt again."""

    first: float
    more: float

    @classmethod
    def of(cls, given: Sequence[Given], unit: str, beside: float) -> "Price":
        """The means of a pilot. beside: the answers, what each sample takes, such as its judging."""
        readers, others = list[float](), list[float]()
        for _, several in groupby(sorted(given, key=lambda each: each.question.key), key=lambda each: each.question.key):
            costs = [getattr(each.bill, unit) + beside for each in sorted(several, key=lambda each: (-each.bill.prompt_tokens, each.sample))]
            readers, others = [*readers, costs[0]], [*others, *costs[1:]]
        return cls(float(np.mean(readers)), float(np.mean(others or readers)))

    def __call__(self, samples: int) -> float:
        """Of so many samples."""
        return self.first + (samples - 1) * self.more if samples else 0.0

    def buys(self, budget: float) -> float:
        """How many samples a budget pays."""
        return budget / self.first if budget < self.first else 1 + (budget - self.first) / self.more


@dataclass(frozen=True)
class Piloted:
    """What a pilot tells of a teacher. cost: of one of its samples, with its judging; buys: samples a prompt if all of the budget were its own.

    coverage, diversity: at `samples` for each prompt, what the budget of a prompt buys of it, at most the pilot's; false_positives:
    of its right answers those that are not sound (nan where nobody looked, or none is right). Each with its 95 % interval.
    taken: samples for each prompt in the best allocation.
    """

    teacher: str
    cost: float
    buys: float
    samples: int
    coverage: float
    coverage_interval: list[float]
    diversity: float
    diversity_interval: list[float]
    false_positives: float
    false_positives_interval: list[float]
    taken: int


@dataclass(frozen=True)
class Allocation:
    """How a budget is shared. a_prompt: of the budget, for each prompt outside the pilot; value: of the measure, by the pilot.

    unspent: what is left of the budget by the pilot's costs; capped: enough for a sample more of each prompt.
    """

    unit: str
    budget: float
    pilot_took: float
    a_prompt: float
    measure: Measure
    value: float
    value_interval: list[float]
    unspent: float
    capped: bool
    teachers: list[Piloted]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows, a row a teacher."""
        columns = ["teacher", f"{UNITS[self.unit]} a sample", "budget buys", "compared at", "coverage", "diversity", "false positives", "taken"]
        rows = [
            [each.teacher, f"{each.cost:.3g}", f"{each.buys:.1f}", str(each.samples), _told(each.coverage, each.coverage_interval),
             _told(each.diversity, each.diversity_interval), _told(each.false_positives, each.false_positives_interval), str(each.taken)]
            for each in self.teachers
        ]  # fmt: skip
        return columns, rows

    def __str__(self) -> str:
        why = "no prompt gets more samples than the pilot gave it: raise those" if self.capped else "less than a sample a prompt"
        return (
            f"best {self.measure} by the pilot: {_told(self.value, self.value_interval)} for {self.a_prompt:.3g} {UNITS[self.unit]} a prompt; "
            f"about {self.unspent:.3g} of {self.budget:.3g} stays unspent ({why})"
        )

    @property
    def plain(self) -> dict[str, Any]:
        """As plain data, without numbers that JSON has not."""
        return {**asdict(self), "teachers": [{name: _numbered(value) for name, value in asdict(each).items()} for each in self.teachers]}


@part
class Pilot(Part):
    """Lets each teacher answer some prompts, and shares the budget as is best by what the verifier says of these answers.

    prompts: of the pilot, drawn by content; samples: of each teacher for each, and the most that any gives a prompt later. Its
    answers are paid from the budget, and stand in the corpus. measure: "coverage", the share of prompts with a right answer, or
    "diversity", different right answers a prompt. sound: says of right answers whether they are sound, above `sound_above`.
    """

    prompts: int = 32
    samples: int = 8
    measure: Measure = "diversity"
    sound: Verifier | None = None
    sound_above: float = 0.5

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.samples < 1:
            raise RecipeError(f"a pilot needs prompts and samples of at least 1, found {self.prompts} and {self.samples}")
        if not isfinite(self.sound_above):
            raise RecipeError(f"Pilot.sound_above must be finite, found {self.sound_above}")

    def see(self, teachers: Sequence[Teacher], usd: float | None, flops: float | None, verifier: Verifier | None, samples: int) -> None:
        """Raises RecipeError where an order cannot be piloted."""
        if verifier is None:
            raise RecipeError("a pilot counts right answers, and nobody says which are; give a verifier: --verifier Number")
        if (usd is None) == (flops is None):
            raise RecipeError("teachers share one budget, in US dollars or in FLOPs; give either budget_usd or budget_flops")
        if samples != 1:
            raise RecipeError(f"the pilot decides how many samples a prompt gets, and samples={samples} was asked for; leave samples out")
        names = [each.name for each in teachers]
        if twice := [name for name in names if names.count(name) > 1]:
            raise RecipeError(f"two teachers are called {twice[0]}; give different ones")
        if (self.samples + 1) ** len(teachers) > MOST:
            raise RecipeError(
                f"{len(teachers)} teachers of up to {self.samples} samples share a budget in more than {MOST:,} ways; lower Pilot.samples"
            )
        for each in teachers:
            _see_cost(each, "usd" if flops is None else "flops", None)

    def run(
        self, teachers: Sequence[Teacher], questions: Sequence[Question], sampling: Sampling, account: Account, verifier: Verifier, above: float,
        sound: Verifier | None,
    ) -> tuple[Allocation, list[list[Given]]]:  # fmt: skip
        """The allocation, and of each teacher its answers: those of the pilot, and to each other prompt as many as it is to give.

        Raises RecipeError where the budget does not reach.
        """
        _, allocation = self.shared(teachers, questions, sampling, account, verifier, above, sound)
        found = list[list[Given]]()
        for teacher, told in zip(teachers, allocation.teachers, strict=True):
            asked = self.wanted(told.taken, questions, questions)
            found.append(list(account.of(teacher, f"writing of {teacher.name}").answers(asked, sampling)))
            account.close()  # one at a time
        return allocation, found

    def shared(
        self, teachers: Sequence[Teacher], questions: Sequence[Question], sampling: Sampling, account: Account, verifier: Verifier, above: float,
        sound: Verifier | None,
    ) -> "tuple[list[_Trial], Allocation]":  # fmt: skip
        """Each teacher's part of the pilot, and the allocation that follows."""
        asked = [each.only(tuple(range(self.samples))) for each in self._piloted(questions)]
        trials = [self._trial(teacher, asked, sampling, account, verifier, above, sound) for teacher in teachers]
        return trials, self._allocation(trials, len(asked), len(questions), account)

    def wanted(self, taken: int, some: Sequence[Question], questions: Sequence[Question]) -> list[Question]:
        """What a teacher answers of some of all questions: those of the pilot as there, the others as often as is taken of it."""
        piloted = {each.key for each in self._piloted(questions)}
        return [each.only(tuple(range(count))) for each in some if (count := self.samples if each.key in piloted else taken)]

    def _piloted(self, questions: Sequence[Question]) -> list[Question]:
        return sorted(questions, key=lambda each: (each.seed, each.key))[: self.prompts]

    def _trial(
        self, teacher: Teacher, asked: Sequence[Question], sampling: Sampling, account: Account, verifier: Verifier, above: float,
        sound: Verifier | None,
    ) -> "_Trial":  # fmt: skip
        """A teacher's part of the pilot."""
        before = account.took
        given = list(account.of(teacher, f"pilot of {teacher.name}").answers(asked, sampling))
        account.close()
        wanted, unit = len(asked) * self.samples, _unit(account)
        if len(given) < wanted:
            there = f"{len(given)} of {wanted} answers of {teacher.name}"
            raise RecipeError(
                f"the budget ({account.purse.limits}) does not reach for the pilot: {there}; take fewer of its prompts or samples, or raise it"
            )
        whole = [each for each in given if not fault(each.answer)]
        right = [each for each, reward in zip(whole, rewarded(whole, verifier), strict=True) if reward is not None and reward > above]
        cost = (getattr(account.took, unit) - getattr(before, unit)) / wanted
        _see_cost(teacher, unit, cost)
        price = Price.of(given, unit, max(0.0, cost - float(np.mean([getattr(each.bill, unit) for each in given]))))
        unsound = [each for each, mark in zip(right, rewarded(right, sound), strict=True) if mark is not None and not mark > self.sound_above]
        place = {each.key: n for n, each in enumerate(asked)}
        outcomes = [Counter((place[each.question.key], text(each)) for each in some) for some, text in
                    ((right, _any), (right, _text), (unsound, _any))]  # fmt: skip
        return _Trial(teacher.name, given, cost, price, *outcomes, looked=sound is not None)

    def _allocation(self, trials: "Sequence[_Trial]", piloted: int, prompts: int, account: Account) -> Allocation:
        unit = _unit(account)
        budget, took = getattr(account.purse, f"limit_{unit}"), getattr(account.took, unit)
        others = prompts - piloted
        a_prompt = max(0.0, budget - took) / others if others else budget / prompts
        prices = [trial.price for trial in trials]
        worth = {"coverage": Worth([trial.right for trial in trials], self.samples, piloted),
                 "diversity": Worth([trial.texts for trial in trials], self.samples, piloted)}  # fmt: skip
        taken = worth[self.measure].best(prices, a_prompt)
        if others and not any(taken):
            left = f"{a_prompt:.3g} {UNITS[unit]} are left for each of {others} prompts, and a sample costs {min(each.first for each in prices):.3g}"
            raise RecipeError(f"after the pilot {left}; give fewer prompts, a smaller pilot, or raise the budget")
        told = list[Piloted]()
        for n, trial in enumerate(trials):
            bought = min(self.samples, int(trial.price.buys(a_prompt) * ROUNDING))
            alone = [bought if m == n else 0 for m in range(len(trials))]
            coverage, diversity = (_mean(each.of(alone)) for each in worth.values())
            buys = trial.price.buys(budget / prompts)
            told.append(Piloted(trial.name, trial.cost, buys, bought, *coverage, *diversity, *trial.false_positives(piloted), taken[n]))
        left = a_prompt - sum(price(k) for k, price in zip(taken, prices, strict=True))
        unspent, capped = max(0.0, left * others if others else budget - took), left >= min(each.more for each in prices)
        return Allocation(unit, budget, took, a_prompt, self.measure, *_mean(worth[self.measure].of(taken)), unspent, capped, told)


Outcomes = Counter[tuple[int, str]]
"""How often an outcome was seen: its prompt, and its text where that matters."""


def _any(given: Given) -> str:
    return ""


def _text(given: Given) -> str:
    """An answer's text as it is compared where spelling does not matter."""
    return folded(given.answer.text)


@dataclass(frozen=True)
class _Trial:
    """A teacher's part of the pilot. looked: whether somebody said of right answers that they are unsound."""

    name: str
    given: list[Given]
    cost: float
    price: Price
    right: Outcomes
    texts: Outcomes
    unsound: Outcomes
    looked: bool

    def false_positives(self, prompts: int) -> tuple[float, list[float]]:
        """The share of right answers that are not sound, and its interval."""
        if not self.looked or not self.right:
            return nan, [nan, nan]
        unsound_P, right_P = (np.array([some[n, ""] for n in range(prompts)], float) for some in (self.unsound, self.right))
        return _ratio(unsound_P, right_P)


class Worth:
    """What sample counts are worth, by answers of `samples` draws of each teacher for each prompt.

    Of n answers that show an outcome m times, k drawn without replacement show it with the chance 1 - C(n-m, k) / C(n, k): so
    unbiased of k fresh samples (arXiv 2107.03374, section 2.1, for coverage). With several teachers the chances to miss it multiply.
    """

    def __init__(self, seen: Sequence[Outcomes], samples: int, prompts: int) -> None:
        outcomes = sorted(set().union(*seen))
        self.samples, self.prompts = samples, prompts
        self.prompt_O = np.array([prompt for prompt, _ in outcomes], np.int64)
        counts_TO = [np.array([each[outcome] for outcome in outcomes], np.int64) for each in seen]
        table = np.array([[comb(samples - m, k) / comb(samples, k) for m in range(samples + 1)] for k in range(samples + 1)])
        self.missed_TKO = [table[:, counts_O] for counts_O in counts_TO]

    def of(self, counts: Sequence[int]) -> Array:
        """Expected outcomes of each prompt [P] where each teacher gives so many samples."""
        missed_TO = [missed_KO[k] for missed_KO, k in zip(self.missed_TKO, counts, strict=True)]
        return np.bincount(self.prompt_O, 1 - np.prod(missed_TO, 0), self.prompts)

    def best(self, prices: Sequence[Price], budget: float) -> tuple[int, ...]:
        """The counts within a prompt's budget that are worth most in the mean; of equal ones the cheaper. Every way is tried."""

        def worth(way: tuple[tuple[int, ...], Array]) -> tuple[float, float]:
            counts, missed_O = way
            return round(float((1 - missed_O).sum()), 9), -sum(price(k) for k, price in zip(counts, prices, strict=True))

        return max(self._ways(prices, budget, np.ones(len(self.prompt_O))), key=worth)[0]

    def _ways(self, prices: Sequence[Price], left: float, missed_O: Array, teacher: int = 0) -> Iterator[tuple[tuple[int, ...], Array]]:
        """All counts from this teacher on that can be paid, and the chances to miss each outcome."""
        if teacher == len(prices):
            yield (), missed_O
            return
        for k in range(self.samples + 1):
            if prices[teacher](k) > left * ROUNDING:
                return
            rest = max(0.0, left - prices[teacher](k))
            for counts, missed in self._ways(prices, rest, missed_O * self.missed_TKO[teacher][k], teacher + 1):
                yield (k, *counts), missed


def _mean(values_P: Array) -> tuple[float, list[float]]:
    return _ratio(values_P, np.ones(len(values_P)))


def _ratio(above_P: Array, below_P: Array, draws: int = 2000) -> tuple[float, list[float]]:
    """A ratio of sums with its 95 % percentile bootstrap over prompts; draws that leave nothing below are left out."""
    places = np.random.default_rng(0).integers(len(above_P), size=(draws, len(above_P)))
    above, below = above_P[places].sum(1), below_P[places].sum(1)
    ratios = above[below > 0] / below[below > 0]
    return float(above_P.sum() / below_P.sum()), [float(bound) for bound in np.percentile(ratios, [2.5, 97.5])]


def _unit(account: Account) -> str:
    return "usd" if account.purse.limit_usd is not None else "flops"


def _see_cost(teacher: Teacher, unit: str, cost: float | None) -> None:
    """Raises RecipeError for a teacher that costs nothing in a unit. cost: as it was found; None where it is not known yet."""
    if unit not in teacher.units or cost == 0:
        needs = "its usd_in and usd_out" if unit == "usd" else "its parameters"
        raise RecipeError(f"the budget is in {UNITS[unit]}, and {teacher.name} costs none; give {needs}, or a budget in the other unit")


def _told(value: float, interval: list[float]) -> str:
    return "" if value != value else f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"


def _numbered(value: Any) -> Any:
    """A figure, None for one that is no number."""
    if isinstance(value, list):
        return [_numbered(each) for each in value]
    return None if value != value else value
