"""The tables of the page on gaps, from what the benchmark of a planted weakness found."""

from typing import Any

from measured import results, table

WEAK, EVERY_KIND = "the kind left out", "all kinds"


def found() -> str:
    """Which kind was found, seed by seed."""
    arms = results("planted_weakness")["arms"]["found"]
    rows = [
        [seed, each["planted"], each["first"], ", ".join(each["surely_worse"]), *(f"{each[name]:.2f}" for name in ("gap", "above_rest", "at_least")),
         f"{max(gap for kind, gap in each['gaps'].items() if kind != each['planted']):.2f}", "yes" if each["advised"] else "no"]
        for seed, each in arms.items()
    ]  # fmt: skip
    columns = ["seed", "left out", "greatest gap", "surely worse", "KL there, nats", "above the rest", "at least", "the next greatest", "advised"]
    hits = sum(each["hit"] == 1 and each["others"] == 0 for each in arms.values())
    return f"{table(columns, rows)}\n\nFound, and no other with it: {hits} of {len(arms)}."


def gap() -> str:
    """The gap after equal steps, and by how much the curriculum's is above that of uniform prompts."""
    told = results("planted_weakness")
    tables = list[str]()
    for name in (WEAK, EVERY_KIND):
        rows = [[pair, *cells] for pair in told["student_gap_less_uniform"] for cells in _cells(told, pair, name)]
        tables.append(
            table([name, "steps", "KL uniform", "KL student_gap", "difference", "right uniform, %", "student_gap, %", "difference, points"], rows)
        )
    return "\n\n".join([*tables, f"Seeds: {len(told['arms']['found'])}."])


def _cells(told: Any, pair: str, name: str) -> list[list[str]]:
    means, gains = told["summary"], told["student_gap_less_uniform"][pair]
    rows = list[list[str]]()
    for step in ("step 20", "step 40", "step 100", "mean"):
        kl, right = (f"{name}: {figure}, {step}" for figure in ("kl_nats", "right"))
        ways = [means[f"{way}, {pair}"] for way in ("uniform", "student_gap")]
        rows.append([step.removeprefix("step "), *(f"{each[kl]['mean']:.3f}" for each in ways), _figure(gains[kl]),
                     *(f"{100 * each[right]['mean']:.1f}" for each in ways), _figure(gains[right], 100, 1)])  # fmt: skip
    return rows


def _figure(each: dict[str, Any], times: float = 1, digits: int = 3) -> str:
    low, high = each["interval"]
    return f"{times * each['mean']:+.{digits}f} ({times * low:+.{digits}f} to {times * high:+.{digits}f})"


TABLES = {"planted_found": found, "planted_gap": gap}
