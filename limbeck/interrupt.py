"""Being asked to stop: SIGINT (Ctrl-C) and SIGTERM, answered where nothing is half done."""

import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Self


class Interrupted(BaseException):
    """Somebody asked us to stop; `number` is the signal. Like KeyboardInterrupt, nothing on the way should catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


ECHO_SECONDS = 5.0
"""Signals that come so soon after the first, where there are several processes, are the first one again: a scheduler signals all
processes of a job, and torchrun, which is one of them, passes on to its own what it hears."""


class Interrupts:
    """Turns the two signals into `Interrupted` while the block lasts: at once, or after what is `held`. A second signal does not wait.

    patient: never by itself, since other ranks wait for this one; whoever holds it looks at `asked`, and what is written `hurry`s.
    """

    def __init__(self, patient: bool = False) -> None:
        self.asked: int | None = None
        self._held, self._before = 0, dict[int, Any]()
        self._patient, self._heard_at = False, 0.0
        if patient:
            self.be_patient()

    def be_patient(self) -> None:
        """From here on other ranks wait for this one."""
        self._held += not self._patient
        self._patient = True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)}
            _in_force.append(self)
        return self

    def __exit__(self, *failure: object) -> None:
        """Give the signals back to whom they belonged."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
        _in_force[:] = [each for each in _in_force if each is not self]

    def _heard(self, number: int, frame: object) -> None:
        if self.asked is not None and self._patient and time.monotonic() - self._heard_at < ECHO_SECONDS:
            return
        if self.asked is not None:
            self.__exit__()
            raise KeyboardInterrupt
        self.asked, self._heard_at = number, time.monotonic()
        self.check()

    def check(self) -> None:
        """Stop here if somebody asked, and nothing is held."""
        if self.asked is not None and not self._held:
            raise Interrupted(self.asked)

    def hurry(self) -> None:
        """Stop here even so, in the middle of what no other rank has a part in; the others are to be told at its end."""
        if self.asked is not None and self._patient:
            raise Interrupted(self.asked)

    @contextmanager
    def held(self) -> Generator[None]:
        """Finish the block first."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self.check()


_in_force: list[Interrupts] = []
"""Signals come to the whole process, so those whose block lasts are known to all of it."""


def in_force() -> Interrupts:
    """Those that hear the signals now; where nobody does, some that are never asked."""
    return _in_force[-1] if _in_force else Interrupts(patient=False)
