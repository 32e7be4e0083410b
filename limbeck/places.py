"""Where models lie, and a name for what lies there, by their files alone."""

import hashlib
import json
import re
from pathlib import Path

from limbeck.errors import ModelError
from limbeck.privacy import expanded
from limbeck.storage import cache_folder as cache_folder  # what is made once for a user is a place too

NOT_HERE = "give a folder, a GGUF file or a name on the hub"
CALL = r"([A-Za-z_][\w.]*:[A-Za-z_]\w*)(\(.*\))?"
"""How a function of the user's own that gives a torch module is named, with its settings where it takes any."""
MODULE = "module"
"""Where the config.json of a torch module that we saved says what function it is made by."""
PROBES, PROBE_BYTES = 32, 2**16
"""Of a large file so many pieces are read, evenly spread: to read all of it takes as long as to load it."""


def is_call(name: str) -> bool:
    """Whether a model's name is that of a function that gives it: `my_module:my_function`."""
    return re.fullmatch(CALL, name, re.DOTALL) is not None and not expanded(name).exists()


def locate(name: str) -> Path | None:
    """The folder or GGUF file of a model, the hub's cache included; None for a name on the hub that is not here.

    Raises ModelError for what can be neither.
    """
    path = expanded(name)
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return path
    if path.suffix == ".gguf":
        raise ModelError(f"there is no GGUF file {name}; {NOT_HERE}")
    if path.exists():
        raise ModelError(f"{name} is a file, and no model; {NOT_HERE}")
    if path.is_absolute() or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise ModelError(f"there is no folder {name}; {NOT_HERE}")
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    folder = Path(cached).parent if isinstance(cached, str) else None
    return folder if folder and any(folder.glob("*.safetensors")) else None


def fingerprint(name: str) -> str:
    """A name for a model's weights and configuration, the same wherever the files are the same.

    Of each weights file its size and pieces spread over it are hashed. Raises ModelError for what is not here.
    """
    place = locate(name)
    if place is None:
        raise ModelError(f"{name} is not here; {NOT_HERE}")
    found = hashlib.blake2b(digest_size=16)
    for path in (place / "config.json", place / "adapter_config.json"):
        config = json.loads(path.read_text()) if path.is_file() else {}
        if base := config.get(BASE):
            found.update(fingerprint(base).encode())
        found.update(json.dumps({key: value for key, value in config.items() if key not in VOLATILE}, sort_keys=True).encode())
    for path in sorted(place.glob("*.safetensors")) if place.is_dir() else [place]:
        _probe(path, found)
    return found.hexdigest()


BASE = "base_model_name_or_path"
"""Where adapters name what they stand on."""
VOLATILE = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", BASE)
"""What a program that saves a model again may change in its configuration."""


def _probe(path: Path, found: "hashlib.blake2b") -> None:
    size = path.stat().st_size
    found.update(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        for piece in range(PROBES):
            file.seek(max(0, size - PROBE_BYTES) * piece // (PROBES - 1))
            found.update(file.read(PROBE_BYTES))
