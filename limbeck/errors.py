"""Everything that can go wrong and is the user's to mend: one line each, what was asked, what was found, what to do.

Our own mistakes are `assert`s. The command line shows a `LimbeckError` in one line, without a traceback.
"""

import signal
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Self


class LimbeckError(ValueError):
    """Base of every error that a user can mend; its message is one line, whatever was quoted in it.

    path: the keys and places that lead to it in nested settings, from the outermost; it grows while the error passes outwards.
    """

    path: tuple[str | int, ...] = ()

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    def within(self, *steps: str | int) -> Self:
        """The same error, seen from further out: `steps` lead from there to where its path began."""
        self.path = (*steps, *self.path)
        return self

    def told_at(self, place: str) -> Self:
        """The same error, its message beginning with the file and line."""
        self.args = (f"{place}: {self}",)
        return self


class RecipeError(LimbeckError):
    """A recipe asks for something unknown, malformed or mathematically wrong."""


class DataError(LimbeckError):
    """Text that cannot be read, or rows without what was asked of them."""


class VocabularyError(LimbeckError):
    """Two models do not mean the same by the same token, or text cannot be rendered."""


class ModelError(LimbeckError):
    """A model that cannot be found, opened, or computed exactly."""


class EndpointError(LimbeckError):
    """A server that does not answer, or answers something else."""


class CacheError(LimbeckError):
    """Stored teacher scores that are missing, damaged or another teacher's."""


class CheckpointError(LimbeckError):
    """A run folder or checkpoint that cannot be continued from."""


class Stopped(LimbeckError):
    """A run was asked to stop, and did; what was done is saved. `number` is the signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number

    @property
    def code(self) -> int:
        """With which the command ends: after SIGTERM 75 (sysexits' EX_TEMPFAIL), by which a scheduler knows to start it again."""
        return 75 if self.number == signal.SIGTERM else 128 + self.number


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory gave out; torch has no one type for it."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def reason(error: Exception) -> str:
    """Why somebody else's code could not do it, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(".").removesuffix(": ")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean "x"?`, or the list of what is known when nothing is near."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    if not near:  # capitals are the commonest slip, and count as far away above
        near = [name for name in names if name.lower() == word.lower()]
    return f'; did you mean "{near[0]}"?' if near else f"; known: {', '.join(names)}"
