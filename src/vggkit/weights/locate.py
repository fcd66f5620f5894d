"""Where a Classifier's file is: named itself, the best one of a run's folder, or on the hub. No torch here."""

from pathlib import Path

from vggkit.arguments import demand_path
from vggkit.errors import BadCheckpoint
from vggkit.weights.sharing import is_address, pull


def locate_model(path: str | Path) -> Path:
    """The file that `path` means: a file, a run's folder, or `hf://owner/name`, which is brought here.

    Raises BadCheckpoint for a run without a best epoch; from the hub, BadDownload and MissingExtra too.
    """
    path = path if isinstance(path, str) else demand_path(path)
    if is_address(path):
        path = pull(path)
    best = Path(path) / "best.safetensors"
    if (Path(path) / "config.yaml").is_file() and not best.is_file():
        raise BadCheckpoint(f"{path}: is a run's folder without best.safetensors; its first epoch did not end")
    return best if best.is_file() else Path(path)
