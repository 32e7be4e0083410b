"""Folders of a store to which several machines bring files: one says that the folder is being made, and when it is whole.

The first machine writes the mark, a word of its own in it (`token`), by which the others know that they may bring theirs. They
write where that word stands and nowhere else, so that nothing of theirs is ever in a folder that is not marked.
"""

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.disk import replaced

Files = dict[str, int]
"""Names below a folder, and bytes."""


@dataclass
class Joint:
    """A folder on its way. others: what other machines bring. asked: whether they were told to; let_go: whether it is not wanted any more."""

    token: str
    others: Files
    asked: bool = False
    let_go: bool = False
    came: int = 0
    """How many of theirs were there when we last looked."""
    _lock: Any = field(default_factory=threading.Lock)

    def ask(self) -> bool:
        """Have others bring theirs, unless it was let go; whether they may."""
        with self._lock:
            self.asked = not self.let_go
            return self.asked

    def drop(self) -> bool:
        """Let it go, unless others are bringing theirs; whether it is gone."""
        with self._lock:
            self.let_go = not self.asked
            return self.let_go


class Joints:
    """Those of one mirror: which are on their way, and, on this disk, of which folders it holds a part alone."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.waiting = dict[str, Joint]()

    def expect(self, folder: str, joint: Joint) -> None:
        """A folder is about to be there, to which others bring files."""
        self.keep(self.partial() | {folder: joint.others})
        self.waiting[folder] = joint

    def of(self, folder: str, here: bool) -> Joint | None:
        """What is awaited of a folder; nothing of one that is not here, or not yet."""
        return self.waiting.get(folder) if here else None

    def settle(self, folder: str, here: bool) -> None:
        """A folder is whole in the store, or gone from it: one that was expected, and is not here yet, still comes."""
        joint = self.waiting.get(folder)
        if joint and not (here or joint.let_go):
            return
        self.waiting.pop(folder, None)
        if not here:
            self.keep({name: others for name, others in self.partial().items() if name != folder})

    def partial(self) -> dict[str, Files]:
        """The folders of which a part alone may be here, and what others brought to them."""
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def keep(self, partial: dict[str, Files]) -> None:
        """Note which these are now."""
        if partial or self.file.exists():
            replaced(self.file, json.dumps(partial).encode())

    def came(self) -> int:
        """How much of what others bring has come: it grows as long as they are at work."""
        return sum(each.came for each in list(self.waiting.values()))
