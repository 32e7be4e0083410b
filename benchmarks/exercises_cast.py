"""Who teaches in the exercises: models trained here on docstrings, and the lab that keeps them."""

from dataclasses import dataclass
from pathlib import Path

from arith_lab import Figures, Lab
from arithmetic import opened
from exercises_text import LICENCE, Size, human, looked_at, write_rows

import limbeck as lb

SEQUENCES, PASS = 8, 8192
"""Windows of a step; tokens in memory at once."""
LOOKED_AT = 320
"""Windows of each part on which a teacher is described."""


def learner(folder: Path | str, learning_rate: float) -> lb.Student:
    """A model for learning."""
    return lb.Student(str(folder), lb.AdamW(learning_rate), dtype="float32")


def recipe(student: lb.Student, text: str | list[lb.Data], teacher: lb.Teacher, steps: int, seed: int, temperature: float = 1.0) -> lb.Recipe:
    """Cross-entropy on text where nobody teaches, else forward KL. Its licence, which no table of ours knows, is accepted by name."""
    data = [lb.Data(text)] if isinstance(text, str) else text
    objective = lb.CrossEntropy() if isinstance(teacher, lb.Silent) else lb.ForwardKL(temperature=temperature)
    return lb.Recipe(student, lb.Corpus(data, sequences=SEQUENCES), teacher, objective, steps=steps, tokens_per_pass=PASS, seed=seed,
                     save_every=None, accept_license=[LICENCE])  # fmt: skip


@dataclass(frozen=True)
class Role:
    """A teacher: its size, how long it learnt from the text, how much of the text it had (None: all), and how fast."""

    size: Size
    steps: int
    windows: int | None = None
    learning_rate: float = 3e-3
    seed: int = 100

    def made(self, work: Path, name: str) -> str:
        """Its folder, trained where it is not there."""
        folder = work / "cast" / name
        if not (folder / "student").exists():
            text = write_rows(work / "cast" / f"{name}-text" / "text.jsonl", human("learning")[: self.windows])
            start = self.size.folder(work / "cast" / f"{name}-untaught", self.seed)
            lb.distill(recipe(learner(start, self.learning_rate), text, lb.Silent(), self.steps, self.seed), folder)
        return str(folder / "student")


CAST = {
    "strong": Role(Size(2, 128), 800),
    "uncertain": Role(Size(2, 128), 250),
    "confident": Role(Size(2, 128), 500, 250),
}
"""The strong teacher; one stopped early; and one that went round a seventeenth of the text sixteen times, and is too sure elsewhere."""


class TextLab(Lab):
    """A lab with these teachers."""

    def model(self, role: str) -> str:
        """Folder of one of the cast, trained where it is not there."""
        return CAST[role].made(self.work, role)

    def _looked_at(self, role: str) -> Figures:
        model = opened(self.model(role))
        by_part = {part: looked_at(model, part, LOOKED_AT) for part in ("learning", "development", "test")}
        return {"parameters": model.parameters_total, "steps": CAST[role].steps, "windows": CAST[role].windows or len(human("learning")), **by_part}
