"""Opens a file of weights with the reader of its format, which its first bytes decide and never its name."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final, Literal

from vggkit.arguments import demand_path
from vggkit.errors import BadCheckpoint
from vggkit.weights.formats.keras import ARCHIVED_WEIGHTS, open_hdf5, open_keras_archive
from vggkit.weights.formats.numpy import open_npy, open_npz
from vggkit.weights.formats.pytorch import open_archived, open_legacy, open_state
from vggkit.weights.formats.safetensors import open_safetensors
from vggkit.weights.formats.weight_file import (
    IN_MEMORY,
    LIMIT_BYTES,
    SLACK_BYTES,
    Archive,
    Contents,
    WeightFile,
    refuse,
    shown,
)

Format = Literal["safetensors", "zip", "hdf5", "npy", "pickle"]
"""zip: torch's files of today, NumPy's `.npz` and Keras' `.keras`. pickle: torch's files from before 1.6."""
HEAD_BYTES: Final = 1024
"""First bytes of a file that are looked at."""
LFS_POINTER: Final = b"version https://git-lfs"
"""The start of a pointer file that Git LFS puts in place of the real one."""
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
_TENSORFLOW_JS: Final = "TensorFlow.js' model.json, whose weights lie in the .bin files that it names"
_SHARED_RATIO: Final = 4
_PACKED_RATIO: Final = 100
_PACKED_SLACK_BYTES: Final = 2**30
_TRUSTED: Final = "give it a .safetensors, .pth, .npz, .h5 or .keras file"


def open_weights(path: str | Path | Mapping[str, Any]) -> WeightFile:
    """Open a weight file; its content decides its format, and not its name.

    Read are safetensors, both formats of `torch.save` (a state dict, or a checkpoint around one),
    NumPy's `.npz` and `.npy` (a dict of arrays), and Keras' legacy `.h5`, `.weights.h5` and
    `.keras`. Opening reads headers alone, but for `.npy` and PyTorch's files from before 1.6, which are
    loaded whole, and `.keras`, whose weights are copied to a temporary file; values are read one tensor at
    a time. No code of the file is run. Only PyTorch's files import torch. A state dict in memory is opened too.

    Raises BadCheckpoint in one line, with what was expected, what was found and what to do, for
    everything else: broken and unsafe files, claims that the file's size belies, folders, text.
    Raises MissingExtra for Keras files without h5py.
    """
    if isinstance(path, Mapping):
        return WeightFile(IN_MEMORY, open_state(path), lambda: None)
    path = demand_path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "something else" if path.exists() else ""
        found = f"expected a file of weights, found {found}" if found else "no such file"
        raise BadCheckpoint(f"{path}: {found}; name a file that holds weights")
    with ExitStack() as stack:
        try:
            handle = stack.enter_context(path.open("rb"))
            size = handle.seek(0, 2)
        except OSError as problem:
            raise BadCheckpoint(f"{path}: cannot be read ({problem.strerror or problem})") from problem
        contents = _open_contents(path, handle, size, stack)
        _check_claims(path, contents, size)
        return WeightFile(path, contents, stack.pop_all().close)


def _open_contents(path: Path, handle: IO[bytes], size: int, stack: ExitStack) -> Contents:
    handle.seek(0)
    head = handle.read(HEAD_BYTES)
    handle.seek(0)
    if not head:
        raise refuse(path, describe_format(head), "download or copy it again")
    if head.startswith(LFS_POINTER):
        raise refuse(path, describe_format(head), "run `git lfs pull` where it was cloned")
    if size > LIMIT_BYTES:
        raise refuse(path, f"{size} bytes", f"no VGG takes more than {LIMIT_BYTES >> 30} GiB")
    match tell_format(head):
        case "safetensors":
            return open_safetensors(path, handle, size, stack)
        case "zip":
            return _open_zip(path, handle, size, stack)
        case "hdf5":
            return open_hdf5(path, handle, stack)
        case "npy":
            return open_npy(path, handle)
        case "pickle":
            return open_legacy(path, handle)
        case None:
            found, first = describe_format(head), "unpack it first, or " if is_packed(head) else ""
            if found == _TENSORFLOW_JS:
                first = "turn it into Keras' with `tensorflowjs_converter --output_format keras`, or "
            raise refuse(path, found, f"{first}{_TRUSTED}")


def _open_zip(path: Path, handle: IO[bytes], size: int, stack: ExitStack) -> Contents:
    archive = Archive(path, handle, size)
    stack.callback(archive.close)
    names = list(archive.members)
    pickles = [
        name for name in names if name == "data.pkl" or (name.count("/") == 1 and name.endswith("/data.pkl"))
    ]
    if len(pickles) == 1:
        if archive.packed:
            _check_total(path, archive.unpacked_bytes, size, packed=True)
        return open_archived(path, handle, archive, pickles[0])
    if ARCHIVED_WEIGHTS in names:
        return open_keras_archive(path, archive, stack)
    if any(name.endswith(".npy") for name in names):
        return open_npz(path, archive)
    inside = ", ".join(map(shown, names[:4])) or "nothing"
    raise refuse(path, f"a zip archive of other things ({inside})", f"unpack it first, or {_TRUSTED}")


def _check_claims(path: Path, contents: Contents, size: int) -> None:
    if not contents.entries:
        raise refuse(path, f"no tensors by key in a {contents.container} file", _TRUSTED)
    strange = next((key for key in contents.entries if not key.isprintable()), None)
    if strange is not None:
        raise refuse(path, f"a key that cannot be printed ({shown(strange)})", "name its tensors as their layers")
    _check_total(path, sum(entry.size_bytes for entry in contents.entries.values()), size, packed=contents.packed)


def _check_total(path: Path, total: int, size: int, *, packed: bool) -> None:
    # Keys may share values; compressed data may be all zeros.
    most = size * _PACKED_RATIO + _PACKED_SLACK_BYTES if packed else size * _SHARED_RATIO + SLACK_BYTES
    if total > min(LIMIT_BYTES, most):
        found = f"tensors that claim {total} bytes in a file of {size}"
        raise refuse(path, found, "download it again from a source that you trust")


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
    """The kind of any file by its first bytes, in words: `a gzip file`, `a web page …`."""
    if not head:
        return "an empty file of 0 bytes"
    if head.startswith(LFS_POINTER):
        return "a Git LFS pointer in place of the file"
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
    if text.startswith("{") and any(f'"{name}"' in text for name in ("modelTopology", "weightsManifest")):
        return _TENSORFLOW_JS
    if "\ufffd" not in text and "\0" not in text:
        return f"text, beginning {text[:40]!a}"
    return f"bytes of no known kind, beginning {head[:8].hex(' ')}"


def _match(head: bytes, known: dict[bytes, str]) -> str | None:
    return next((name for magic, name in known.items() if head.startswith(magic)), None)
