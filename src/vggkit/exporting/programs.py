"""The functions that write and run each format of programs; a new format is a module and a case here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vggkit.engines.model_weights import Weights
from vggkit.exporting.formats import FormatName
from vggkit.exporting.parity import Run
from vggkit.exporting.plan import ExportPlan


@dataclass(frozen=True, slots=True)
class Program:
    """The functions of a format of programs."""

    write: Callable[[Weights, ExportPlan, Path], None]
    """Writes a network's program to a path."""
    open: Callable[[Path], tuple[Run, str]]
    """Gives a function that runs a file in its own runtime, and the runtime's name and version."""
    beside: tuple[str, ...] = ()
    """Endings of the files that are written in addition."""

    def list_files(self, path: Path) -> tuple[Path, ...]:
        """All files of a program of that path, which is the last of them."""
        return (*(path.with_suffix(ending) for ending in self.beside), path)


def find_program(name: FormatName) -> Program:
    """The functions of a format; its library is imported here or at the first call."""
    match name:
        case "onnx":
            from vggkit.exporting.onnx_file import open_onnx, write_onnx

            return Program(write_onnx, open_onnx)
        case "openvino":
            from vggkit.exporting.openvino_file import open_openvino, write_openvino

            return Program(write_openvino, open_openvino, beside=(".bin",))
        case "pt2":
            from vggkit.exporting.torch_program import open_torch_program, write_torch_program

            return Program(write_torch_program, open_torch_program)
        case _:
            raise AssertionError(f"{name} is no format of programs")
