"""What is a URL of a store, and how it is opened."""

import os
import re
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError

URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,3}(?=[^/])")
"""How a URL begins; also one of which `Path` has taken a slash."""
NOT_STORES = ("http", "https")
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""What of ours brings the package that a scheme needs."""


def cache_folder() -> Path:
    """Where what is made once for a user is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limbeck"


def url_of(place: str | Path) -> str | None:
    """The URL that is meant; None for a place on this disk."""
    text = str(place)
    found = URL.match(text)
    if found is None or found[1] in NOT_STORES:
        return None
    slashes = ":///" if found[1] in ("file", "local") else "://"
    return (found[1] + slashes + text[found.end() :]).rstrip("/")


def store_of(url: str) -> tuple[Any, str]:
    """The file system that a URL means, and the path in it. Raises LimbeckError where its package is not installed, or nobody knows it."""
    try:
        from fsspec.core import url_to_fs

        fs, path = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        return fs, str(path).rstrip("/")
    except ImportError as error:
        scheme = url.partition(":")[0]
        what = f"limbeck[{EXTRAS[scheme]}]" if scheme in EXTRAS else f"a package ({' '.join(str(error).split())})"
        raise LimbeckError(f"{url} needs what is not installed; pip install '{what}'") from None
    except ValueError as error:
        raise LimbeckError(f"{url}: {' '.join(str(error).split())}; give a folder, or a URL that fsspec knows, such as s3://bucket/folder") from None
