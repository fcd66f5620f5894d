"""An HDF5 file's skeleton, walked before the HDF5 library sees it.

The library follows a broken file's pointers in circles for ever. Here every object, tree and heap
from the root on is visited once, with a bound. Layouts: "HDF5 File Format Specification Version 3.0",
sections II to IV; numbers are little-endian.
"""

import struct
from collections.abc import Iterator
from typing import IO, Final

_BLOCK_BYTES: Final = 2**20
_LIMIT_BLOCKS: Final = 64
_LIMIT_OBJECTS: Final = 20_000
_LIMIT_NODES: Final = 100_000
_LIMIT_LEAVES: Final = 1_000_000
_NOWHERE: Final = 2**64 - 1
_LINK_INFO, _LINK, _LAYOUT, _CONTINUED, _SYMBOLS = 0x02, 0x06, 0x08, 0x10, 0x11
_GROUP_TREE, _CHUNK_TREE = 0, 1


def take(stream: IO[bytes], start: int, count: int) -> bytes:
    """Those bytes, fewer at the file's end; raises ValueError for no place and no size."""
    if not 0 <= start < 2**62 or not 0 <= count <= 4 * _BLOCK_BYTES:
        raise ValueError("it points to no place in it")
    stream.seek(start)
    return stream.read(count)


def list_messages(stream: IO[bytes], address: int) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each message in an object's header; raises ValueError, IndexError and struct.error."""
    head = take(stream, address, 64)
    newer = head[:4] == b"OHDR"
    if newer:
        flags = head[5]
        at = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        size, start = int.from_bytes(head[at : at + width], "little"), at + width
        prefix = struct.Struct("<BHBH" if flags & 4 else "<BHB")
    else:
        size, start, prefix = struct.unpack_from("<I", head, 8)[0], 16, struct.Struct("<HHB3x")
    blocks = [(address + start, size)]
    for place, length in blocks:
        data = take(stream, place, min(length, _BLOCK_BYTES))
        at = 0
        while at + prefix.size <= len(data):
            kind, count = prefix.unpack_from(data, at)[:2]
            body = data[at + prefix.size : at + prefix.size + count]
            at += prefix.size + count
            if kind == _CONTINUED:
                more, room = struct.unpack_from("<QQ", body)
                # Newer blocks begin with a signature and end with a checksum.
                block = (more + 4, room - 8) if newer else (more, room)
                if block in blocks or len(blocks) >= _LIMIT_BLOCKS:
                    raise ValueError("an object's header goes in a circle")
                blocks.append(block)
            yield kind, body


def check_structure(stream: IO[bytes]) -> None:
    """Visit every object from the root on; raises ValueError, IndexError and struct.error for a broken one."""
    waiting = _find_roots(take(stream, 0, 96))
    seen: set[int] = set()
    while waiting:
        address = waiting.pop()
        if address in seen:
            continue  # several names of one object are the reader's to judge
        seen.add(address)
        if len(seen) > _LIMIT_OBJECTS:
            raise ValueError(f"it holds more than {_LIMIT_OBJECTS} objects")
        for kind, body in list_messages(stream, address):
            if kind == _SYMBOLS:
                tree, heap = struct.unpack_from("<QQ", body)
                _check_free_list(stream, heap)
                for node in _walk_tree(stream, tree, _GROUP_TREE, 8):
                    waiting += _list_symbols(stream, node)
                    if len(waiting) > _LIMIT_OBJECTS:
                        raise ValueError(f"it holds more than {_LIMIT_OBJECTS} objects")
            elif kind == _LINK:
                waiting += _read_link(body)
            elif kind == _LINK_INFO and struct.unpack_from("<Q", body, 10 if body[1] & 1 else 2)[0] != _NOWHERE:
                raise ValueError("its groups are indexed in a way that is not read: save it with h5py's defaults")
            elif kind == _LAYOUT:
                _check_layout(stream, body)


def _find_roots(head: bytes) -> list[int]:
    version = head[8]
    offsets, lengths, at = (head[13], head[14], 24) if version < 2 else (head[9], head[10], 12)
    (base,) = struct.unpack_from("<Q", head, at + (4 if version == 1 else 0))
    if version > 3 or (offsets, lengths, base) != (8, 8, 0):
        raise ValueError("its superblock is of another kind")
    if version < 2:
        return [struct.unpack_from("<Q", head, 64 + (4 if version == 1 else 0))[0]]
    extension, _, root = struct.unpack_from("<QQQ", head, 20)
    return [root] if extension == _NOWHERE else [root, extension]


def _walk_tree(stream: IO[bytes], root: int, kind: int, key_bytes: int) -> Iterator[int]:
    """What the leaves of a version 1 B-tree point to; its nodes must be neighbours as their own pointers say."""
    level = [root]
    seen: set[int] = set()
    leaves = 0
    while level:
        below: list[int] = []
        for place, address in enumerate(level):
            if address in seen or len(seen) > _LIMIT_NODES:
                raise ValueError("a tree goes in a circle")
            seen.add(address)
            signature, node, depth, count, left, right = struct.unpack("<4sBBHQQ", take(stream, address, 24))
            neighbours = (level[place - 1] if place else _NOWHERE, (*level[place + 1 : place + 2], _NOWHERE)[0])
            if signature != b"TREE" or node != kind or (left, right) != neighbours:
                raise ValueError("a tree whose nodes do not fit together")
            children = take(stream, address + 24 + key_bytes, count * (key_bytes + 8))
            found = [struct.unpack_from("<Q", children, number * (key_bytes + 8))[0] for number in range(count)]
            if depth:
                below += found
            else:
                leaves += count
                if leaves > _LIMIT_LEAVES:
                    raise ValueError(f"a tree has more than {_LIMIT_LEAVES} leaves")
                yield from found
        level = below


def _list_symbols(stream: IO[bytes], node: int) -> list[int]:
    """The headers of the objects that a group's node lists."""
    signature, count = struct.unpack("<4s2xH", take(stream, node, 8))
    if signature != b"SNOD":
        raise ValueError("a group without a list of its members")
    entries = take(stream, node + 8, count * 40)
    found = [struct.unpack_from("<QI", entries, number * 40 + 8) for number in range(count)]
    # Soft links are kept as entries without an object.
    return [address for address, cached in found if cached != 2 and address != _NOWHERE]


def _read_link(body: bytes) -> list[int]:
    flags, at = body[1], 2
    kind = body[at] if flags & 8 else 0
    at += (1 if flags & 8 else 0) + (8 if flags & 4 else 0) + (1 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    at += width + int.from_bytes(body[at : at + width], "little")
    return [struct.unpack_from("<Q", body, at)[0]] if kind == 0 else []


def _check_free_list(stream: IO[bytes], heap: int) -> None:
    """The holes in a group's heap of names are a list of their own."""
    signature, size, hole, place = struct.unpack("<4s4xQQQ", take(stream, heap, 32))
    if signature != b"HEAP":
        raise ValueError("a group without names")
    seen: set[int] = set()
    while hole != 1:
        if hole in seen or len(seen) > _LIMIT_NODES or hole + 16 > size:
            raise ValueError("a heap goes in a circle")
        seen.add(hole)
        (hole,) = struct.unpack("<Q", take(stream, place + hole, 8))


def _check_layout(stream: IO[bytes], body: bytes) -> None:
    version = body[0]
    dimensions, kind = (body[2], body[1]) if version >= 3 else (body[1], body[2])
    if kind != 2:
        return
    if version > 3:
        raise ValueError("its chunks are indexed in a way that is not read: save it with h5py's defaults")
    (tree,) = struct.unpack_from("<Q", body, 3 if version == 3 else 8)
    if tree != _NOWHERE:
        for _ in _walk_tree(stream, tree, _CHUNK_TREE, 8 + 8 * dimensions):
            pass
