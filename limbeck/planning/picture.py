"""The quality-price plot of a plan: what each candidate costs, and how good a student was where a run measured it."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from limbeck.planning.plan import Planned

WIDE, LEFT, RIGHT, TOP, TALL = 760, 80, 720, 60, 260
LINE = 17


def picture(planned: Planned) -> str:
    """An SVG. Across: what it takes, in US dollars where everything has a price, else in hours. Up: the figure that runs measured, with its interval.

    Candidates that no run has measured stand on a line of their own below, since their quality is not known.
    """
    in_usd = all(row.costs.usd is not None for row in planned.rows if row.costs) and not planned.quality
    prices = {row.candidate.name: (row.costs.usd or 0.0) if in_usd else row.costs.total_seconds / 3600 for row in planned.rows if row.costs}
    points = [(each["run"], each["seconds"] / 3600, each["value"], each["interval"] or [each["value"]] * 2) for each in planned.quality]
    axis = _Logarithmic([*prices.values(), *(point[1] for point in points)])
    figures = sorted({each["figure"] for each in planned.quality})
    title = "Quality and price" if points else "Price; quality is not known: give --runs"
    tall = TOP + TALL * bool(points) + 60 + LINE * len(prices) + 40
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {tall}" font-family="sans-serif" font-size="12">',
             f'<rect width="{WIDE}" height="{tall}" fill="#ffffff"/>', f'<text x="10" y="22" font-size="15">{escape(title)}</text>']  # fmt: skip
    lines += _measured(points, axis, " and ".join(figures)) if points else []
    top = TOP + TALL * bool(points) + 30
    lines += _unmeasured(prices, axis, top)
    lines += _across(axis, tall - 34, "US dollars" if in_usd else "hours on this machine")
    return "\n".join([*lines, "</svg>\n"])


class _Logarithmic:
    """Prices from the least to the most, across."""

    def __init__(self, values: Sequence[float]) -> None:
        known = [value for value in values if value > 0] or [1.0]
        self.low, self.high = math.floor(math.log10(min(known))), max(math.ceil(math.log10(max(known))), math.floor(math.log10(min(known))) + 1)

    def place(self, value: float) -> float:
        """Where a price stands; nothing at all stands at the left."""
        share = (math.log10(value) - self.low) / (self.high - self.low) if value > 0 else 0.0
        return LEFT + 60 + (RIGHT - LEFT - 180) * share


def _measured(points: Sequence[tuple[str, float, float, Any]], axis: _Logarithmic, what: str) -> list[str]:
    values = [bound for point in points for bound in (point[2], *point[3])]
    low, high = min(values), max(values)
    margin = 0.1 * ((high - low) or 1.0)
    low, high = low - margin, high + margin
    up = lambda value: TOP + TALL * (high - value) / (high - low)  # noqa: E731
    found = [
        f'<path d="M{LEFT} {TOP}V{TOP + TALL}H{RIGHT}" fill="none" stroke="#5b616b"/>',
        f'<text x="{LEFT - 60}" y="{TOP - 12}">{escape(what)}</text>',
    ]
    for share in (0.1, 0.5, 0.9):
        value = low + share * (high - low)
        found.append(f'<text x="{LEFT - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for name, price, value, (least, most) in points:
        x = axis.place(price)
        found.append(f'<path d="M{x:.1f} {up(least):.1f}V{up(most):.1f}" stroke="#3366aa"/>')
        found.append(
            f'<circle cx="{x:.1f}" cy="{up(value):.1f}" r="4" fill="#3366aa"/><text x="{x + 8:.1f}" y="{up(value) + 4:.1f}">{escape(name)}</text>'
        )
    return found


def _unmeasured(prices: dict[str, float], axis: _Logarithmic, top: int) -> list[str]:
    found = [f'<text x="10" y="{top}" fill="#5b616b">as planned, quality not known</text>']
    for place, (name, price) in enumerate(sorted(prices.items(), key=lambda each: each[1])):
        x, y = axis.place(price), top + LINE * (place + 1)
        found.append(
            f'<path d="M{x:.1f} {y - 9}v10" stroke="#aa6633" stroke-width="2"/><text x="{x + 6:.1f}" y="{y}">{escape(name)}: {price:.3g}</text>'
        )
    return found


def _across(axis: _Logarithmic, y: int, what: str) -> list[str]:
    found = [f'<path d="M{LEFT} {y}H{RIGHT}" stroke="#5b616b"/>', f'<text x="{(LEFT + RIGHT) / 2}" y="{y + 30}" text-anchor="middle">{what}</text>']
    return found + [
        f'<text x="{axis.place(10.0**power):.1f}" y="{y + 15}" text-anchor="middle">{10.0**power:g}</text>'
        for power in range(axis.low, axis.high + 1)
    ]
