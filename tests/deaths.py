"""Whom to kill: the processes of one Ray cluster of this machine."""

import contextlib
from pathlib import Path


def processes(word: str, port: int) -> list[int]:
    """Ray's processes with this word in their title, of the cluster whose GCS listens at this port: those of others are none of ours."""
    titles = dict[int, tuple[int, str]]()
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(each.name)] = parent, (each / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    mine = {pid for pid, (_, title) in titles.items() if "raylet" in title and f":{port} " in f"{title} "}
    return sorted(pid for pid, (parent, title) in titles.items() if parent in mine and title.startswith("ray::") and word in title)
