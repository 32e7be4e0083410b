"""Mode covering against mode seeking: a student with one peak fitted to a teacher with two, by each divergence of the library.

Claimed: forward KL takes the teacher's mean and width, and so covers both peaks and the gap between them; reverse KL takes
the heavier peak and drops the other; generalised JSD and Jeffreys lie between, JSD the nearer to reverse KL the larger its
beta (the dial of arXiv 2306.13649; for KL and the alpha family: Minka, "Divergence measures and message passing", 2005).
Not claimed: an order for every teacher. Where the lighter peak is heavier or wider than here, a covering fit's mean can
leave the interval between those of reverse and forward KL, and reverse KL's best fit can cover both peaks.

Outcomes are the points of a grid, the student's logits are a Gaussian's log-density there. Values and gradients are those
that training uses (`Term.rows`); autograd carries the gradient from the logits to the mean and the log of the width.
Writes `benchmarks/results/modes.json` and `docs/modes.svg`, in seconds, on a CPU.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from limbeck.divergence import JSD, AlphaDivergence, Divergence, ForwardKL, Jeffreys, ReverseKL, SkewKL, TotalVariation
from limbeck.objective import TokenRows
from limbeck.targets import Logits

ROOT = Path(__file__).resolve().parents[1]
RESULTS, FIGURE = ROOT / "benchmarks/results/modes.json", ROOT / "docs/modes.svg"

HEAVY, LIGHT, WIDTH, SHARE = -2.0, 2.0, 0.8, 0.75
"""Where the teacher's two peaks stand, the width (standard deviation) of both, and the heavier one's mass."""
GRID_V = torch.linspace(-10, 10, 401, dtype=torch.float64)
STEP = 0.05

DIVERGENCES: dict[str, Divergence] = {
    "ForwardKL": ForwardKL(),
    "JSD(0.1)": JSD(0.1),
    "SkewKL(0.1)": SkewKL(0.1),
    "JSD(0.5)": JSD(0.5),
    "AlphaDivergence(0.5)": AlphaDivergence(0.5),
    "Jeffreys": Jeffreys(),
    "TotalVariation": TotalVariation(),
    "JSD(0.9)": JSD(0.9),
    "ReverseKL": ReverseKL(),
}


@dataclass(frozen=True)
class Fit:
    """A distribution in short: mean, width, nats from the teacher, and the mass within two widths of each of the teacher's peaks."""

    mean: float
    width: float
    value: float
    mass_near_heavy: float
    mass_near_light: float


def gaussian(mean: Tensor | float, width: Tensor | float) -> Tensor:
    """The log-density of a Gaussian on the grid, up to a constant: logits [..., V]."""
    return -0.5 * ((GRID_V - mean) / width) ** 2


def teacher_log_probs() -> Tensor:
    """Two Gaussians of one width and unequal mass, on the grid [V]."""
    peaks_2V = torch.stack([gaussian(HEAVY, WIDTH), gaussian(LIGHT, WIDTH)]).log_softmax(-1)
    return torch.logsumexp(peaks_2V + torch.tensor([[SHARE], [1 - SHARE]], dtype=torch.float64).log(), 0)


def student_logits(parameters_C2: Tensor) -> Tensor:
    """C students, each a mean and the log of a width, as logits [C, V]."""
    return gaussian(parameters_C2[:, :1], parameters_C2[:, 1:].exp())


def distance(divergence: Divergence, parameters_C2: Tensor) -> Tensor:
    """Nats of C students from the teacher [C]; where the parameters ask for a gradient, it is added to theirs."""
    logits_CV = student_logits(parameters_C2)
    rows = len(parameters_C2)
    said = Logits(teacher_log_probs().expand(rows, -1))
    nats_C, gradient_CV = divergence.rows(Logits(logits_CV.detach()), said, TokenRows(torch.zeros(rows, dtype=torch.long), None))
    if logits_CV.requires_grad:
        logits_CV.backward(gradient_CV)
    return nats_C


def starts() -> Tensor:
    """Nine means and two widths: 18 students."""
    return torch.tensor([[mean, math.log(width)] for mean, width in product(range(-4, 5), (0.5, 2.0))], dtype=torch.float64)


def descend(divergence: Divergence, parameters_C2: Tensor) -> Tensor:
    """Follow the gradient from every start to the optimum below it."""
    parameters_C2 = parameters_C2.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [parameters_C2], max_iter=200, history_size=30, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def total() -> float:
        optimizer.zero_grad()
        return float(distance(divergence, parameters_C2).sum())

    optimizer.step(total)
    return parameters_C2.detach()


def best(divergence: Divergence, parameters_C2: Tensor) -> Tensor:
    """The student nearest to the teacher [1, 2]."""
    return parameters_C2[distance(divergence, parameters_C2).argmin()][None]


def settle(divergence: Divergence, found_12: Tensor) -> Tensor:
    """Look around on a shrinking lattice: total variation has kinks, where a line search stops early."""
    side = torch.linspace(-0.01, 0.01, 21, dtype=torch.float64)
    lattice_C2 = torch.cartesian_prod(side, side)
    for shrink in range(18):
        found_12 = best(divergence, found_12 + 0.6**shrink * lattice_C2)
    return found_12


def fit(divergence: Divergence) -> Fit:
    """The best of the optima that the starts lead to."""
    found_12 = settle(divergence, best(divergence, descend(divergence, starts())))
    mean, log_width = found_12[0]
    value = float(distance(divergence, found_12))
    return Fit(float(mean), float(log_width.exp()), value, *masses(student_logits(found_12)[0].softmax(-1)))


def masses(probs_V: Tensor) -> tuple[float, float]:
    """Mass within two widths of the heavier peak and of the lighter."""
    heavy, light = (float(probs_V[(GRID_V - peak).abs() <= 2 * WIDTH + 1e-9].sum()) for peak in (HEAVY, LIGHT))
    return heavy, light


def teacher() -> Fit:
    """The teacher by the same measures: its own mean and standard deviation on the grid."""
    probs_V = teacher_log_probs().exp()
    mean = float(probs_V @ GRID_V)
    return Fit(mean, float((probs_V @ (GRID_V - mean) ** 2).sqrt()), 0.0, *masses(probs_V))


def results() -> dict[str, Fit]:
    """Every divergence's fit, by name."""
    return {name: fit(divergence) for name, divergence in DIVERGENCES.items()}


def rounded(found: Fit) -> dict[str, float]:
    """Six digits after the point; the last two of total variation's mean and width are within its kinks."""
    return {name: round(value, 6) for name, value in asdict(found).items()}


def as_json(fits: dict[str, Fit]) -> str:
    """The fits by name, and the teacher, with sorted keys."""
    said = {"fits": {name: rounded(found) for name, found in fits.items()}, "teacher": rounded(teacher())}
    return json.dumps(said, indent=1, sort_keys=True) + "\n"


# The figure: 700 units wide, so that its type keeps its size in a column of text.

PAPER, INK, QUIET, TEACHER, COVERS, SEEKS = "#fcfcfa", "#1c1f24", "#5b616b", "#d3d7dd", "#0072b2", "#c44e00"
PANEL_WIDTH, PANEL_HEIGHT, TOP, GAP, MARGIN = 204, 110, 124, 20, 24
REACH, TALLEST = 5.5, 0.48
"""Each panel shows outcomes within REACH of 0 and densities up to TALLEST."""


def write(x: float, y: float, what: str, style: str = "", colour: str = INK) -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" {style}>{what}</text>'


def curve(probs_V: Tensor) -> str:
    """A density's points within a panel, left to right, every second one of the grid."""
    shown = zip(GRID_V[::2].tolist(), (probs_V[::2] / STEP).tolist(), strict=True)
    return " ".join(f"{across(x):.1f},{PANEL_HEIGHT * (1 - y / TALLEST):.1f}" for x, y in shown if abs(x) <= REACH)


def across(outcome: float) -> float:
    """Where an outcome stands in a panel."""
    return PANEL_WIDTH * (outcome + REACH) / (2 * REACH)


def minus(number: str) -> str:
    """A number with a true minus sign."""
    return number.replace("-", "−")


def colour_of(found: Fit) -> str:
    """One colour for students that keep both peaks, one for those that gave the lighter up (less than a tenth of its mass)."""
    return COVERS if found.mass_near_light > 0.1 * teacher().mass_near_light else SEEKS


def panel(left: float, top: float, name: str, found: Fit) -> str:
    """One divergence: the teacher filled, the student drawn, and below them the student's mean with a width to each side."""
    colour, bar = colour_of(found), PANEL_HEIGHT + 9
    low, middle, high = (across(found.mean + step * found.width) for step in (-1, 0, 1))
    ticks = "".join(write(across(x), PANEL_HEIGHT + 26, minus(str(x)), 'class="tick"', QUIET) for x in (-4, -2, 0, 2, 4))
    return f"""<g transform="translate({left} {top})">
{write(0, -23, name, 'class="name"')}
{write(0, -7, minus(f"mean {found.mean:.2f}, width {found.width:.2f}"), colour=QUIET)}
<use href="#teacher"/>
<polyline points="{curve(gaussian(found.mean, found.width).softmax(-1))}" fill="none" stroke="{colour}" stroke-width="2.25" stroke-linejoin="round"/>
<path d="M{low:.1f} {bar}H{high:.1f}" stroke="{colour}" stroke-width="2" stroke-linecap="round"/>
<circle cx="{middle:.1f}" cy="{bar}" r="3.5" fill="{colour}"/>
{ticks}
</g>"""


def teacher_shape() -> str:
    """The teacher's density over a base line, drawn once and used in every panel."""
    shape = f"0,{PANEL_HEIGHT} {curve(teacher_log_probs().exp())} {PANEL_WIDTH},{PANEL_HEIGHT}"
    line = f'<path d="M0 {PANEL_HEIGHT}H{PANEL_WIDTH}" stroke="{QUIET}" stroke-width="0.75"/>'
    return f'<defs><g id="teacher"><polygon points="{shape}" fill="{TEACHER}"/>{line}</g></defs>'


def legend() -> Iterable[str]:
    """What the fill and the two colours mean."""
    yield f'<rect x="{MARGIN}" y="52" width="18" height="12" rx="2" fill="{TEACHER}"/>' + write(MARGIN + 25, 63, "teacher")
    for x, colour, meaning in ((124, COVERS, "student, covers both modes"), (352, SEEKS, "student, seeks the heavier mode")):
        yield f'<path d="M{x} 58.5h18" stroke="{colour}" stroke-width="2.5" stroke-linecap="round"/>' + write(x + 25, 63, meaning)


def panels(fits: dict[str, Fit], pitch: int) -> Iterable[str]:
    """Three rows of three, from the widest student to the narrowest."""
    for place, (name, found) in enumerate(sorted(fits.items(), key=lambda item: -item[1].width)):
        yield panel(MARGIN + place % 3 * (PANEL_WIDTH + GAP), TOP + place // 3 * pitch, name, found)


def figure(fits: dict[str, Fit]) -> str:
    """All panels as one SVG, on a light ground of its own."""
    pitch = PANEL_HEIGHT + 82
    height = TOP + 3 * pitch - 8
    peaks = f"Teacher: {SHARE:.0%} at {minus(f'{HEAVY:.0f}')}, {1 - SHARE:.0%} at {LIGHT:.0f}, both of width {WIDTH}."
    note = f"{peaks} Dot and bar: the student's mean, and one width to each side."
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 {height}" width="700" height="{height}" role="img" aria-labelledby="title">
<title id="title">Mode covering and mode seeking</title>
<desc>Nine panels, one a divergence: a Gaussian student fitted to a teacher with two peaks, from the widest fit to the narrowest.</desc>
<style>
text{{font:13px system-ui,-apple-system,"Segoe UI",Roboto,Helvetica,Arial,sans-serif}}
.head{{font-size:18px;font-weight:600}}.name{{font-size:14.5px;font-weight:600}}.note{{font-size:11.5px}}.tick{{font-size:11.5px;text-anchor:middle}}
</style>
{teacher_shape()}
<rect width="700" height="{height}" rx="8" fill="{PAPER}"/>
{write(MARGIN, 35, "One peak for a teacher with two: what each divergence keeps", 'class="head"')}
{chr(10).join([*legend(), *panels(fits, pitch)])}
{write(MARGIN, height - 16, note, 'class="note"', QUIET)}
</svg>
"""


def main() -> None:
    """Fit, and write the numbers and the figure."""
    fits = results()
    for path, text in ((RESULTS, as_json(fits)), (FIGURE, figure(fits))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(RESULTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
