"""The formats that a Classifier can be exported to, chosen by a file's ending. Imports no library."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from vggkit.arguments import demand_path
from vggkit.errors import BadConfiguration, MissingExtra, UnknownName
from vggkit.weights.writers import SUFFIXES

FormatName = Literal["onnx", "pt2", "openvino", "web", "torchvision", "timm", "keras"]
"""onnx, pt2 (torch.export) and openvino are programs from the image's bytes to probabilities; web is a folder
with such a program and a page that runs it; torchvision, timm and keras are weights in these libraries' layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of exported files."""

    name: FormatName
    """Its name in `to`."""
    title: str
    """Its name in messages."""
    endings: tuple[str, ...]
    """Endings of its files."""
    packages: tuple[str, ...] = ()
    """Packages that write and check it."""
    extra: str = ""
    """The extra of vggkit that installs them."""
    is_program: bool = True
    """Whether it is a program with preprocessing and labels; else it is weights."""


FORMATS: Final[Mapping[FormatName, Format]] = {
    each.name: each
    for each in (
        Format(name="onnx", title="ONNX", endings=(".onnx",), packages=("onnx", "onnxruntime"), extra="onnx"),
        Format(name="pt2", title="torch.export program", endings=(".pt2",)),
        Format(name="openvino", title="OpenVINO IR", endings=(".xml",), packages=("openvino",), extra="fast"),
        Format(name="web", title="static site", endings=(), packages=("onnx", "onnxruntime"), extra="onnx"),
        Format(name="torchvision", title="torchvision weights", endings=SUFFIXES["torchvision"], is_program=False),
        Format(name="timm", title="timm weights", endings=SUFFIXES["timm"], is_program=False),
        Format(name="keras", title="Keras weights", endings=SUFFIXES["keras"], is_program=False),
    )
}
"""In order of precedence for endings that several formats share: `.pth` is torchvision's."""


def choose_format(out: str | Path, to: FormatName | None = None) -> Format:
    """The format of a file by its ending, or the requested one.

    Raises UnknownName for an unknown ending, with the nearest one, BadConfiguration if the ending does not belong
    to the requested format, and MissingExtra if a package that the format needs is not installed.
    """
    name = demand_path(out).name
    if to is not None and to not in FORMATS:
        raise UnknownName.of("format", to, get_args(FormatName))
    known = [FORMATS[to]] if to is not None else list(FORMATS.values())
    found = next((each for each in known if name.lower().endswith(each.endings) or to == "web"), None)
    if found is None and to is not None:
        endings = FORMATS[to].endings
        raise BadConfiguration(f"{out}: format {to} is written as {' or '.join(endings)}; name such a file")
    if found is None:
        endings = tuple(dict.fromkeys(ending for each in known for ending in each.endings))
        ending = ".xml" if name.lower().endswith(".bin") else Path(name).suffix or name
        raise UnknownName.of("ending of an exported file", ending, endings)
    packages = (*found.packages, *(["h5py"] if name.lower().endswith(".h5") else []))
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        extra = "weights" if missing == ["h5py"] else found.extra
        raise MissingExtra.of(" and ".join(missing), f"exporting {found.title}", extra)
    return found
