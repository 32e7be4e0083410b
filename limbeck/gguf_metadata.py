"""The texts in a GGUF file's metadata, without its library, which would take seconds as it makes an array of every token.

The format's specification is at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from limbeck.errors import ModelError

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type; 8 is text, 9 an array."""
TEXT, ARRAY = 8, 9


def gguf_general(file: Path) -> dict[str, str]:
    """The texts under `general.`. Raises ModelError for a file that is cut short or none."""
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] != b"GGUF" or struct.unpack_from("<I", data, 4)[0] not in (2, 3):
                raise ValueError("its first bytes say another format or version")
            return dict(_texts(data))
    except (OSError, ValueError, KeyError, OverflowError, RecursionError, struct.error) as error:
        raise ModelError(f"{file} is cut short or no GGUF file ({error}); fetch it again") from None


def _texts(data: mmap.mmap) -> Iterator[tuple[str, str]]:
    at = 24
    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        began, at = at + 8, _after(data, TEXT, at)
        key, (kind,), value = data[began:at].decode(errors="replace"), struct.unpack_from("<I", data, at), at + 4
        if (at := _after(data, kind, value)) > len(data):
            raise ValueError("its metadata ends early")
        if kind == TEXT and key.startswith("general."):
            yield key.removeprefix("general."), data[value + 8 : at].decode(errors="replace")


def _after(data: mmap.mmap, kind: int, at: int) -> int:
    """Where a value that begins at a byte ends."""
    if kind == TEXT:
        return at + 8 + struct.unpack_from("<Q", data, at)[0]
    if kind != ARRAY:
        return at + SIZES[kind]
    (of, count), at = struct.unpack_from("<IQ", data, at), at + 12
    if of in SIZES:
        return at + count * SIZES[of]
    for _ in range(count):
        at = _after(data, of, at)
    return at
