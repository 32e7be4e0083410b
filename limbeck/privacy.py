"""What a run folder may say of its maker: no home folder, no user name, no secret. It is made to be shared."""

import getpass
import os
import re
from pathlib import Path

from limbeck.storage import here, named, url_of

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
"""Environment variables of such names hold secrets."""
SHORTEST = 8
"""A shorter value is no secret but a word."""


def shareable(text: str) -> str:
    """The text with `~` for the home folder, `$USER` for the user name where it names a folder, `$NAME` for secrets of the environment.

    A mirror of a store is written as its URL. What it puts into paths is what `expanded` takes out again.
    """
    text = named(text)
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, f"${name}")
    text = re.sub(rf"{re.escape(str(Path.home()))}(?![\w.-])", "~", text)
    return re.sub(rf"(?<=/){re.escape(_user())}(?=/)", "$USER", text)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return str(os.getuid())


def expanded(path: str | Path) -> Path:
    """A path as the machine knows it; of a URL, the mirror, filled."""
    if url_of(path):
        return here(path)
    return Path(str(path).replace("$USER", _user())).expanduser()
