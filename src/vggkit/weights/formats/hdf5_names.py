"""The texts that an HDF5 group carries as attributes, read without the HDF5 library.

The library walks a broken heap of texts for ever, and lets many names stand for one huge text.
Here both are bounded, and whatever is not understood is left out. Numbers are little-endian.
Layouts: "HDF5 File Format Specification Version 3.0", sections III.E and IV.
"""

import struct
from typing import IO, Final

from vggkit.weights.formats.hdf5_structure import list_messages, take

_HEAP_BYTES: Final = 4 * 2**20
_LIMIT_HEAPS: Final = 64
_LIMIT_NAMES: Final = 10_000
_NAME_BYTES: Final = 200
_ATTRIBUTE: Final = 0x0C
_FIXED_TEXT: Final = 3
_VARIABLE: Final = 9
_REFERENCE: Final = struct.Struct("<IQI")
"""To a text in a heap: its length, where the heap stands, its number there."""


def read_texts(stream: IO[bytes], address: int, *, limit_bytes: int = _NAME_BYTES) -> dict[str, list[str]]:
    """The texts, or lists of them, by attribute, of the object whose header stands at `address`.

    Each is cut at `limit_bytes`; texts that stand in a heap are cut where a name ends.
    """
    found: dict[str, list[str]] = {}
    heaps: dict[int, dict[int, bytes]] = {}
    for kind, body in list_messages(stream, address):
        if kind != _ATTRIBUTE:
            continue
        try:
            name, texts = _read_attribute(stream, body, heaps)
        except (struct.error, LookupError, ValueError):
            continue
        found[name] = [text[:limit_bytes].rstrip(b"\0").decode("utf-8", "replace") for text in texts]
    return found


def _read_attribute(stream: IO[bytes], body: bytes, heaps: dict[int, dict[int, bytes]]) -> tuple[str, list[bytes]]:
    """An attribute's name and texts; raises ValueError and more for other things than texts."""
    version, flags, *sizes = struct.unpack_from("<BBHHH", body)
    if version not in (1, 2, 3) or (version > 1 and flags):
        raise ValueError("an attribute of another version")
    at = 9 if version == 3 else 8
    parts = []
    for size in sizes:
        parts.append(body[at : at + size])
        at += -(-size // 8) * 8 if version == 1 else size
    name, kind, space = parts
    count = _count_values(space)
    width = struct.unpack_from("<I", kind, 4)[0]
    values = body[at:]
    if count > _LIMIT_NAMES or width * count > len(values):
        raise ValueError("more names than there is room for")
    texts = [values[number * width : (number + 1) * width] for number in range(count)]
    if kind[0] & 15 == _VARIABLE and kind[1] & 15 == 1:
        texts = [_look_up(stream, text, heaps) for text in texts]
    elif kind[0] & 15 != _FIXED_TEXT:
        raise ValueError("no text")
    return name.rstrip(b"\0").decode("utf-8"), texts


def _count_values(space: bytes) -> int:
    version, dimensions, _, kind = struct.unpack_from("<BBBB", space)
    if version not in (1, 2) or (version == 2 and kind == 2):
        raise ValueError("no values")
    count = 1
    for size in struct.unpack_from(f"<{dimensions}Q", space, 8 if version == 1 else 4):
        count *= size
    return count


def _look_up(stream: IO[bytes], reference: bytes, heaps: dict[int, dict[int, bytes]]) -> bytes:
    length, place, number = _REFERENCE.unpack(reference)
    if place not in heaps:
        if len(heaps) >= _LIMIT_HEAPS:
            raise ValueError("names strewn over too many heaps")
        heaps[place] = _read_heap(stream, place)
    return heaps[place][number][:length] if length else b""


def _read_heap(stream: IO[bytes], place: int) -> dict[int, bytes]:
    """The beginnings of the texts of one heap, by number."""
    signature, size = struct.unpack("<4s4xQ", take(stream, place, 16))
    if signature != b"GCOL" or size > _HEAP_BYTES:
        raise ValueError("no heap of names")
    data = take(stream, place, size)
    found: dict[int, bytes] = {}
    at = 16
    while at + 16 <= len(data):
        number, count = struct.unpack_from("<H6xQ", data, at)
        if number == 0:  # what is left of the heap is free
            break
        found[number] = data[at + 16 : at + 16 + min(count, _NAME_BYTES)]
        at += 16 + -(-count // 8) * 8
    return found
