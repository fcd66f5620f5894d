"""Opens a file of weights with the reader of its format, which its content alone decides."""

from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final

from vggkit.arguments import demand_path
from vggkit.errors import BadCheckpoint
from vggkit.weights.file_formats import HEAD_BYTES, LFS_POINTER, describe_format, is_packed, tell_format
from vggkit.weights.formats.archives import Archive
from vggkit.weights.formats.keras import ARCHIVED_WEIGHTS, open_hdf5, open_keras_archive
from vggkit.weights.formats.numpy import open_npy, open_npz
from vggkit.weights.formats.pytorch import open_archived, open_legacy
from vggkit.weights.formats.safetensors import open_safetensors
from vggkit.weights.formats.weight_file import LIMIT_BYTES, SLACK_BYTES, Contents, WeightFile, refuse, shown

_SHARED_RATIO: Final = 4
_PACKED_RATIO: Final = 100
_PACKED_SLACK_BYTES: Final = 2**30
_TRUSTED: Final = "give it a .safetensors, .pth, .npz, .h5 or .keras file"


def open_weights(path: str | Path) -> WeightFile:
    """Open a file of weights, whatever its name: its content decides what it is.

    Read are safetensors, both formats of `torch.save` (a state dict, or a checkpoint around one),
    NumPy's `.npz` and `.npy` (a dict of arrays), and Keras' legacy `.h5`, `.weights.h5` and
    `.keras`. Opening reads headers alone, but for `.npy` and PyTorch's files from before 1.6, which are
    loaded whole, and `.keras`, whose weights are copied to a temporary file; values are read one tensor at
    a time. No code of the file is run. Only PyTorch's files import torch.

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
            unpack = "unpack it first, or " if is_packed(head) else ""
            raise refuse(path, describe_format(head), f"{unpack}{_TRUSTED}")


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
    # Keys may share values; what is packed may be all zeros.
    most = size * _PACKED_RATIO + _PACKED_SLACK_BYTES if packed else size * _SHARED_RATIO + SLACK_BYTES
    if total > min(LIMIT_BYTES, most):
        found = f"tensors that claim {total} bytes in a file of {size}"
        raise refuse(path, found, "download it again from a source that you trust")
