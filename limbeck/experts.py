"""Experts: networks trained on all of the data, whose weights after every epoch are kept for others to follow."""

from pathlib import Path
from typing import Any

from limbeck.config import Part, part, plain
from limbeck.errors import CheckpointError, RecipeError
from limbeck.examples import Examples
from limbeck.files import read_json, sweep, write_bytes, write_json
from limbeck.machine import device
from limbeck.networks import Weights, Wired, train
from limbeck.privacy import expanded
from limbeck.progress import Progress
from limbeck.siamese import Siamese

CARD = "experts.json"


@part
class Experts(Part):
    """Trajectories of networks trained on the data by plain SGD, the weights after each epoch kept (arXiv 2203.11932).

    folder: where they lie; by default `experts` in the folder of the product. What is there is used again where it is of the same
    data, network and training; more may be added. count: how many; epochs: how long each is. batch: rows of a step.
    """

    folder: str | None = None
    count: int = 20
    epochs: int = 20
    learning_rate: float = 0.05
    momentum: float = 0.0
    batch: int = 128
    augment: Siamese | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.count, self.epochs, self.batch) < 1 or self.seed < 0:
            raise RecipeError("Experts: count, epochs and batch must be at least 1, and seed at least 0")
        if not self.learning_rate > 0 or not 0 <= self.momentum < 1:
            raise RecipeError(f"Experts: learning_rate must be above 0 and momentum from 0 to below 1, found {self.learning_rate}, {self.momentum}")

    def trained(self, wired: Wired, examples: Examples, out: Path) -> "Trajectories":
        """Those that are there, and those that are missing trained now; a killed process loses one at the most.

        examples: as the network meets them. Raises CheckpointError where the folder holds those of something else.
        """
        found = Trajectories(expanded(self.folder) if self.folder else out / "experts", wired)
        self._see(found.folder, wired, examples)
        sweep(found.folder, seconds=3600)
        missing = [n for n in range(self.count) if not found.file(n).exists()]
        with Progress("experts", self.count, self.count - len(missing)).showing() as progress:
            for expert in missing:
                found.save(expert, self._trajectory(expert, wired, examples))
                progress.advance()
        return found

    def _trajectory(self, expert: int, wired: Wired, examples: Examples) -> list[Weights]:
        """Weights before the first epoch and after each."""
        weights, place = wired.fresh(self.seed, expert), (self.seed, 1 + expert)
        kept = [[weight.detach().clone() for weight in weights]]
        augment = self.augment
        change = (lambda x_RF, epoch, first: augment(x_RF, *place, epoch, 1 + first)) if augment else (lambda x_RF, epoch, first: x_RF)
        x_RF, y_R = examples.x_RF.to(device()), examples.y_R.to(device())
        look: Any = lambda epoch, now: kept.append([weight.detach().clone() for weight in now])  # noqa: E731
        train(wired, weights, x_RF, y_R, self.epochs, self.learning_rate, self.batch, place, self.momentum, look, change)
        return kept

    def _see(self, folder: Path, wired: Wired, examples: Examples) -> None:
        """Refuse a folder of other experts; say in a new one whose it is."""
        settings = {name: value for name, value in plain(self).items() if name not in ("type", "folder", "count")}
        wanted = {"data": examples.fingerprint, "network": plain(wired.network), "weights": wired.fingerprint, **settings}
        card = folder / CARD
        if not card.is_file():
            if any(folder.glob("expert-*.safetensors")):
                raise CheckpointError(f"{folder} holds experts and no {CARD}, so nobody knows of what; give another folder, or remove it")
            return write_json(card, wanted)
        found = read_json(card)
        differing = next((name for name in wanted if found.get(name) != wanted[name]), None)
        if differing:
            words = {"data": "other data", "weights": "another network"}.get(differing, f"another {differing}")
            raise CheckpointError(f"{folder} holds experts of {words} ({found.get(differing)} there, {wanted[differing]} here); give another folder")


class Trajectories:
    """Experts' weights on disk, each expert a file: `expert-0003.safetensors`, tensors named by epoch and place."""

    def __init__(self, folder: Path, wired: Wired) -> None:
        self.folder, self._wired = folder, wired

    def file(self, expert: int) -> Path:
        """Where one lies."""
        return self.folder / f"expert-{expert:04d}.safetensors"

    def save(self, expert: int, trajectory: list[Weights]) -> None:
        """Write one, atomically."""
        from safetensors.torch import save

        named = {f"{epoch}.{n}": weight.cpu().contiguous() for epoch, weights in enumerate(trajectory) for n, weight in enumerate(weights)}
        write_bytes(self.file(expert), save(named))

    def at(self, expert: int, epoch: int) -> Weights:
        """The weights of one after so many epochs, read from its file. Raises CheckpointError for a damaged one."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file(expert), "pt") as found:
                return [found.get_tensor(f"{epoch}.{n}").to(device()) for n in range(len(self._wired.names))]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.file(expert)} cannot be read ({error}); remove it, and it is trained again") from None
