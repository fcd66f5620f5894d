"""The folder of downloads, and whether the network may be used: the `VGGKIT_` environment variables."""

import os
import sys
from pathlib import Path


def find_home() -> Path:
    """The folder for weights and data sets: `VGGKIT_HOME`, else `vggkit` in the platform's folder for caches."""
    if home := os.environ.get("VGGKIT_HOME"):
        return Path(home).expanduser()
    match sys.platform:
        case "darwin":
            return Path.home() / "Library" / "Caches" / "vggkit"
        case "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "vggkit"
        case _:
            return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "vggkit"


def is_offline() -> bool:
    """Whether `VGGKIT_OFFLINE` forbids the use of the network."""
    return os.environ.get("VGGKIT_OFFLINE", "").lower() in ("1", "true", "yes", "on")
