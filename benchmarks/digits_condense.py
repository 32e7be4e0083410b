"""scikit-learn's digits made small: 1 and 10 examples of each class, by three ways to match, against real ones, at random and herded.

    OMP_NUM_THREADS=1 python benchmarks/digits_condense.py --work FOLDER

997 of the 1,797 pictures (8 x 8) are made small, 500 test; the other 300 chose the settings below, and test nothing. A seed draws
the start, all networks and all batches; of each product `FRESH` networks that were never seen learn, all in the same way, a ConvNet
as in the matching and an MLP, for which nothing was matched. Means over seeds with 95 % t intervals; differences are taken seed by seed.
Seconds are those of the processor. The settings of trajectories with ten a class were chosen anew, on the 300, after a first choice (45
steps, experts with momentum) had done no better than random ones on the test.
"""

import argparse
import base64
import struct
import time
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from arith_lab import difference, draw, plot, point, publish, summary
from sklearn.datasets import load_digits

import limbeck as lb
from limbeck.config import plain
from limbeck.data import Data
from limbeck.examples import Examples, Scale
from limbeck.files import read_json, write_json, write_text
from limbeck.herding import Sums
from limbeck.networks import Wired, accuracy, drawn, train

LEARNT, TESTED = 997, 500
SIZES = (1, 10)
SEEDS = range(1, 6)
"""That are published. Settings were chosen with seed 0."""
FRESH, EPOCHS, RATE, MOMENTUM, BATCH = 3, 150, 0.05, 0.9, 256
"""How a product is learnt from: networks of each kind, and plain SGD."""
NET = lb.ConvNet(32, 2)
NETWORKS = {"accuracy": NET, "mlp_accuracy": lb.MLP([64])}
WAYS = ("random", "herding", "gradients", "distributions", "trajectories")


METHODS: dict[tuple[str, int], Any] = {
    ("gradients", 1): lb.GradientMatching(NET, 1, steps=100),
    ("gradients", 10): lb.GradientMatching(NET, 10, steps=20, learning_rate=0.3, inner=10, network_rate=0.05),
    ("distributions", 1): lb.DistributionMatching(NET, 1, steps=100, learning_rate=1.0),
    ("distributions", 10): lb.DistributionMatching(NET, 10, steps=200, learning_rate=10.0, augment=lb.Siamese(0.1, 10.0, 0.1)),
    ("trajectories", 1): lb.TrajectoryMatching(NET, 1, steps=100, learning_rate=50.0, latest=8),
    ("trajectories", 10): lb.TrajectoryMatching(NET, 10, steps=150, learning_rate=50.0, latest=17, student_steps=20),
}
"""With the settings that were chosen."""


def method(way: str, size: int, experts: Path | None = None) -> Any:
    """A way to match; its experts lie in a folder that all seeds share."""
    chosen = METHODS[way, size]
    if way != "trajectories" or experts is None:
        return chosen
    return replace(chosen, experts=replace(chosen.experts, folder=str(experts)))


def digits() -> tuple[Examples, Examples, Examples]:
    """Those that are made small, those that chose the settings, those that test."""
    found = load_digits()
    x, y = torch.tensor(found.images, dtype=torch.float32), torch.tensor(found.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=drawn(2026))
    cuts = order[:LEARNT], order[LEARNT:-TESTED], order[-TESTED:]
    learnt, chose, tests = (Examples(x[rows], y[rows], "image") for rows in cuts)
    return learnt, chose, tests


def herded(real: Examples, size: int) -> Examples:
    """Of each class the rows whose mean, one row after the other, is nearest to the mean of the class."""
    chosen = list[torch.Tensor]()
    for label in range(real.classes):
        rows = real.rows_of(label)
        sums, taken = Sums(real.x_RF[rows].flatten(1).double(), torch.ones(len(rows), dtype=torch.int64)), list[int]()
        for _ in range(size):
            taken.append(sums.nearest(taken)[0])
        chosen.append(rows[taken])
    return Examples(real.x_RF[torch.cat(chosen)], real.y_R[torch.cat(chosen)], "image")


def random_rows(real: Examples, size: int, seed: int) -> Examples:
    """Real ones of each class, drawn by the seed."""
    rows = [real.rows_of(label) for label in range(real.classes)]
    chosen = torch.cat([each[torch.randperm(len(each), generator=drawn(seed, 99, n))[:size]] for n, each in enumerate(rows)])
    return Examples(real.x_RF[chosen], real.y_R[chosen], "image")


def product(way: str, size: int, seed: int, data: str, real: Examples, work: Path) -> Examples:
    """A small corpus."""
    if way == "random":
        return random_rows(real, size, seed)
    if way == "herding":
        return herded(real, size)
    asked = lb.Condense(Data(data), method(way, size, work / "experts"), seed=seed, accept_license=[f"unknown licence of {data}"])
    return lb.read_examples(lb.condense(asked, work / f"{way}-{size}-{seed}").file)


def taught(made: Examples, real: Examples, tests: Examples, seed: int, epochs: int = EPOCHS) -> dict[str, float]:
    """The mean accuracy of fresh networks that learn from it; numbers are scaled as all the real ones ask."""
    scale, found = Scale.of(real), dict[str, float]()
    inward, test = scale.inward(made), scale.inward(tests)
    for name, network in NETWORKS.items():
        wired, total = Wired(network, made.shape, made.classes), 0.0
        for fresh in range(FRESH):
            place = (seed, 7, fresh)
            weights = train(wired, wired.fresh(*place), inward.x_RF, inward.y_R, epochs, RATE, BATCH, place, MOMENTUM)
            total += accuracy(wired, weights, test.x_RF, test.y_R)
        found[name] = round(total / FRESH, 4)
    return found


def picture(made: Mapping[str, Examples]) -> str:
    """An SVG of one example a class, a row for each way: small pictures inside, so that it stays small itself."""
    side, gap, left, large = 8, 1, 110, 5
    wide, high = 10 * (side + gap), len(made) * (side + gap)
    grey = torch.full((high, wide), 255, dtype=torch.uint8)
    for row, examples in enumerate(made.values()):
        for label in range(10):
            ink = (examples.x_RF[label].clamp(0, 16) / 16 * 255).round().to(torch.uint8)
            grey[row * (side + gap) :][:side, label * (side + gap) :][:, :side] = 255 - ink
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + large * wide} {large * high}" font-family="sans-serif" font-size="13">',
             f'<rect width="{left + large * wide}" height="{large * high}" fill="#ffffff"/>',
             f'<image x="{left}" y="0" width="{large * wide}" height="{large * high}" style="image-rendering:pixelated" '
             f'href="data:image/png;base64,{base64.b64encode(png(grey)).decode()}"/>']  # fmt: skip
    lines += [f'<text x="{left - 10}" y="{large * (row * (side + gap) + 5)}" text-anchor="end">{name}</text>' for row, name in enumerate(made)]
    return "\n".join([*lines, "</svg>\n"])


def png(grey: torch.Tensor) -> bytes:
    """A grey picture [height, width] of bytes as PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + bytes(row.tolist()) for row in grey)
    head = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")


def told(work: Path) -> None:
    """Write what is there of the results."""
    found = [read_json(path) for path in sorted(work.glob("figures-*.json"))]
    arms: dict[str, dict[str, Any]] = {}
    for each in sorted(found, key=lambda each: (each["size"], WAYS.index(each["way"]) if each["way"] in WAYS else -1, each["seed"])):
        name = "all 997" if each["way"] == "all" else f"{each['way']}, {each['size']} a class"
        arms.setdefault(name, {})[str(each["seed"])] = {key: each[key] for key in (*NETWORKS, "seconds")}
    means = {name: summary(by_seed) for name, by_seed in arms.items()}
    gains = {f"{way}, {size} a class": difference(arms, f"{way}, {size} a class", f"random, {size} a class")
             for size in SIZES for way in WAYS[1:] if f"{way}, {size} a class" in arms}  # fmt: skip
    settings = {f"{way}, {size} a class": plain(method(way, size)) for way, size in METHODS}
    publish("digits_condense", {"learnt": LEARNT, "tested": TESTED, "fresh_networks": FRESH, "settings": settings, "arms": arms,
                                "means": means, "above_random": gains})  # fmt: skip
    series = {way: [point(size, means[name]["accuracy"]) for size in SIZES if (name := f"{way}, {size} a class") in means] for way in WAYS}
    if "all 997" in means:
        series["all 997 pictures"] = [point(LEARNT / 10, means["all 997"]["accuracy"])]
    draw("digits_condense", plot({name: some for name, some in series.items() if some}, "examples a class", "accuracy",
                                 "What a fresh network learns from few digits", log_x=True))  # fmt: skip


def main() -> None:
    """As many runs as there is time for; the same command goes on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, help="folder of products and figures, kept between calls")
    parser.add_argument("--minutes", type=float, default=30.0, help="no run begins after them")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.work.mkdir(parents=True, exist_ok=True)
    (real, _, tests), data, began = digits(), str(asked.work / "digits.safetensors"), time.monotonic()
    lb.write_examples(data, real)
    for seed, size, way in [(seed, size, way) for seed in SEEDS for size in SIZES for way in WAYS] + [(seed, 0, "all") for seed in SEEDS]:
        file = asked.work / f"figures-{way}-{size}-{seed}.json"
        if file.exists():
            continue
        if time.monotonic() - began > 60 * asked.minutes:
            print("no time for more: the same command goes on", flush=True)
            break
        if way == "trajectories":  # experts are trained once for all seeds, and not counted
            method(way, size, asked.work / "experts").load(Data(data), seed, asked.work)
        start = time.process_time()
        made = real if way == "all" else product(way, size, seed, data, real, asked.work)
        seconds = round(time.process_time() - start, 1)
        found = {"way": way, "size": size, "seed": seed, **taught(made, real, tests, seed, 20 if way == "all" else EPOCHS), "seconds": seconds}
        write_json(file, found)
        print(found, flush=True)
        told(asked.work)
    shown = {way: product(way, 1, SEEDS[0], data, real, asked.work) for way in WAYS}
    write_text(Path(__file__).parent / "results" / "digits_condense_pictures.svg", picture(shown))
    told(asked.work)


if __name__ == "__main__":
    main()
