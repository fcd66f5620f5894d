"""The format of a file, from its first bytes and never from its name. No torch here."""

from typing import Final, Literal

Format = Literal["safetensors", "zip", "hdf5", "npy", "pickle"]
"""zip: torch's files of today, NumPy's `.npz` and Keras' `.keras`. pickle: torch's files from before 1.6."""
HEAD_BYTES: Final = 1024
"""First bytes of a file that are looked at."""
LFS_POINTER: Final = b"version https://git-lfs"
"""How a file begins that Git LFS put in place of the real one."""
_LONGEST_HEADER: Final = 2**40
"""Far above any, and below what the first eight bytes of any other format make of a number."""
_MAGIC: Final[dict[bytes, Format]] = {
    b"PK\x03\x04": "zip",
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"\x93NUMPY": "npy",
    **{bytes([0x80, protocol]): "pickle" for protocol in range(2, 6)},
}
_SAYINGS: Final[dict[Format, str]] = {
    "safetensors": "a safetensors file",
    "zip": "a zip archive, as PyTorch, NumPy (.npz) and Keras (.keras) write it",
    "hdf5": "an HDF5 file, as Keras writes it",
    "npy": "a NumPy file",
    "pickle": "a pickle, as PyTorch wrote it before 1.6",
}
_PACKED: Final = {
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"Rar!": "a rar archive",
}
_OTHERS: Final = {
    b"PK\x05\x06": "an empty zip archive",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"%PDF": "a PDF",
    b"MATLAB": "a MATLAB file",
}


def tell_format(head: bytes) -> Format | None:
    """The format of a file of weights by its first `HEAD_BYTES` bytes, None where it is none that is read.

    A safetensors file begins with the length of its header, which may be any number and so begin as
    anything: with a pickle's two bytes where the header takes 640, 896, 1152 or 1408 bytes. What tells it
    is that the upper bytes of that length are zero, which no other format's are, and that JSON's brace follows.
    """
    length = int.from_bytes(head[:8], "little")
    if 0 < length < _LONGEST_HEADER and head[8:].lstrip(b" \t\r\n").startswith(b"{"):
        return "safetensors"
    return next((found for start, found in _MAGIC.items() if head.startswith(start)), None)


def is_packed(head: bytes) -> bool:
    """Whether it is a compressed file or an archive that is unpacked first."""
    return _match(head, _PACKED) is not None


def describe_format(head: bytes) -> str:
    """What a file is by its first bytes, in words for any file: `a gzip file`, `a web page …`."""
    if not head:
        return "an empty file of 0 bytes"
    if head.startswith(LFS_POINTER):
        return "a Git LFS pointer, which stands for the file"
    known = tell_format(head)
    if known is not None:
        return _SAYINGS[known]
    other = _match(head, _PACKED) or _match(head, _OTHERS)
    if other is not None:
        return other
    if head[257:262] == b"ustar":
        return "a tar archive"
    text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if len(head) == HEAD_BYTES:  # a character may be cut at its end
        text = text.rstrip("\ufffd")
    start = text[:15].lower()
    if start.startswith(("<!doctype", "<html", "<?xml", "<head", "<body")):
        return "a web page, as a download link that needs a login gives"
    if "\ufffd" not in text and "\0" not in text:
        return f"text, beginning {text[:40]!a}"
    return f"bytes of no known kind, beginning {head[:8].hex(' ')}"


def _match(head: bytes, known: dict[bytes, str]) -> str | None:
    return next((name for magic, name in known.items() if head.startswith(magic)), None)
