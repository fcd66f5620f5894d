"""What kind of file a path leads to, told by its content alone, and its reader."""

from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final

from vggkit.arguments import demand_path
from vggkit.errors import BadCheckpoint
from vggkit.networks.weight_files.archives import Archive
from vggkit.networks.weight_files.keras_files import ARCHIVED_WEIGHTS, open_hdf5, open_keras_archive
from vggkit.networks.weight_files.numpy_files import open_npy, open_npz
from vggkit.networks.weight_files.opened import LIMIT_BYTES, SLACK_BYTES, Contents, WeightFile, refuse, shown
from vggkit.networks.weight_files.safetensors_files import open_safetensors
from vggkit.networks.weight_files.torch_files import open_archived, open_legacy

_HEAD_BYTES: Final = 1024
_SHARED_RATIO: Final = 4
_PACKED_RATIO: Final = 100
_PACKED_SLACK_BYTES: Final = 2**30
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
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"%PDF": "a PDF",
    b"MATLAB": "a MATLAB file",
}
_TRUSTED: Final = "give it a .safetensors, .pth, .npz, .h5 or .keras file"


def open_weights(path: str | Path) -> WeightFile:
    """Open a file of weights, whatever its name: what it is is told by its content.

    Read are safetensors, both formats of `torch.save` (a state dict, or a checkpoint around one),
    NumPy's `.npz` and `.npy` (a dict of arrays), and Keras' legacy `.h5`, `.weights.h5` and
    `.keras`. Opening reads headers alone, but for `.npy`;
    values are read one tensor at a time. No code of the file is run.

    Raises BadCheckpoint in one line, saying what was expected, what was found and what to do, for
    everything else: broken and unsafe files, claims that the file's size belies, folders, text.
    Raises MissingExtra for Keras files without h5py.
    """
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
    head = handle.read(_HEAD_BYTES)
    handle.seek(0)
    if not head:
        raise refuse(path, "an empty file of 0 bytes", "download or copy it again")
    if head.startswith(b"version https://git-lfs"):
        raise refuse(path, "a Git LFS pointer, which stands for the file", "run `git lfs pull` where it was cloned")
    if size > LIMIT_BYTES:
        raise refuse(path, f"{size} bytes", f"no VGG takes more than {LIMIT_BYTES >> 30} GiB")
    if head.startswith(b"PK\x03\x04"):
        return _open_zip(path, handle, size, stack)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return open_hdf5(path, handle, size, stack)
    if head.startswith(b"\x93NUMPY"):
        return open_npy(path, handle, size)
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return open_legacy(path, handle, size)
    if head[8:9] == b"{":
        return open_safetensors(path, handle, size, stack)
    raise refuse(path, _describe(head), f"{'unpack it first, or ' if _match(head, _PACKED) else ''}{_TRUSTED}")


def _open_zip(path: Path, handle: IO[bytes], size: int, stack: ExitStack) -> Contents:
    archive = Archive(path, handle, size)
    stack.callback(archive.close)
    names = list(archive.members)
    pickles = [
        name for name in names if name == "data.pkl" or (name.count("/") == 1 and name.endswith("/data.pkl"))
    ]
    if len(pickles) == 1:
        return open_archived(path, handle, archive, pickles[0])
    if ARCHIVED_WEIGHTS in names:
        return open_keras_archive(path, handle, archive, stack)
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
    total = sum(entry.size_bytes for entry in contents.entries.values())
    # Keys may share values; what is packed may be all zeros.
    most = size * _PACKED_RATIO + _PACKED_SLACK_BYTES if contents.packed else size * _SHARED_RATIO + SLACK_BYTES
    if total > min(LIMIT_BYTES, most):
        found = f"tensors that claim {total} bytes in a file of {size}"
        raise refuse(path, found, "download it again from a source that you trust")


def _match(head: bytes, known: dict[bytes, str]) -> str | None:
    return next((name for magic, name in known.items() if head.startswith(magic)), None)


def _describe(head: bytes) -> str:
    known = _match(head, _PACKED) or _match(head, _OTHERS)
    if known:
        return known
    if head[257:262] == b"ustar":
        return "a tar archive"
    text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if len(head) == _HEAD_BYTES:  # a character may be cut at its end
        text = text.rstrip("\ufffd")
    start = text[:15].lower()
    if start.startswith(("<!doctype", "<html", "<?xml", "<head", "<body")):
        return "a web page, as a download link that needs a login gives"
    if "\ufffd" not in text and "\0" not in text:
        return f"text, beginning {shown(text[:40])}"
    return f"bytes of no known kind, beginning {head[:8].hex(' ')}"
