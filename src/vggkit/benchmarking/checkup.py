"""The records of `vggkit doctor`: what is installed on this machine, and what of it works. No torch here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vggkit.engines.info import EngineName
from vggkit.engines.outputs import Precision

EngineStatus = Literal["works", "not installed", "not on this machine", "fails"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageState:
    """A package that vggkit needs, or that one of its extras does."""

    name: str
    """The name by which it is installed, such as scikit-learn."""
    needed: str
    """The versions that are needed, such as >=1.6."""
    version: str | None
    """The installed version; None: it is not installed."""
    problem: str | None = None
    """Why it cannot be used though it is installed: too old, or the error of its import; None: it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTrial:
    """An engine in one precision, tried with a small network in a process of its own."""

    engine: EngineName
    """The engine."""
    precision: Precision
    """The precision."""
    device: str
    """Where: `cpu`, `cuda`, `mps`."""
    status: EngineStatus
    """Whether it works here."""
    problem: str | None = None
    """Why it does not."""
    start_seconds: float | None = None
    """From the start of its process to its first result."""
    error: float | None = None
    """Root of the mean square of differences of its logits from those of PyTorch in float32, over the deviation of
    these; None for that reference, and where it does not work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFolder:
    """A folder in which downloads and computed values are kept."""

    purpose: str
    """Whose it is."""
    path: str
    """The folder; the home folder is written as ~."""
    exists: bool
    """Whether it is there."""
    free_bytes: int | None
    """Free space on its disk; None where that is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """What `vggkit doctor` finds: versions, devices, packages, engines and folders."""

    vggkit: str
    """The version of vggkit."""
    python: str
    """The version of Python."""
    system: str
    """The operating system, its version, and the machine's kind."""
    processor: str
    """Its name and how many processors this process may use."""
    processor_features: tuple[str, ...]
    """Those of avx_vnni, avx512_vnni, avx512_bf16, amx_int8 and amx_bf16 that the engines can use."""
    memory_bytes: int | None
    """Memory that can be had without swapping; None where that is unknown."""
    devices: tuple[str, ...]
    """The devices that PyTorch computes on: `cpu`, `cuda:0 NVIDIA …`, `mps`."""
    core: tuple[PackageState, ...]
    """The packages that vggkit cannot do without."""
    extras: Mapping[str, tuple[PackageState, ...]]
    """The packages of each extra."""
    engines: tuple[EngineTrial, ...]
    """Every engine and precision."""
    folders: tuple[CacheFolder, ...]
    """Where files are cached."""
    variables: Mapping[str, str]
    """Environment variables that change what vggkit does; of those that may be private only that they are set."""

    @property
    def problems(self) -> tuple[str, ...]:
        """Each thing that is installed, or needed, and does not work; none: all is well."""
        missing = [f"{each.name} is needed and not installed" for each in self.core if each.version is None]
        packages = {each.name: each for group in (self.core, *self.extras.values()) for each in group}
        broken = [f"{each.name} {each.version}: {each.problem}" for each in packages.values() if each.problem]
        engines = [
            f"{each.engine} in {each.precision} on {each.device}: {each.problem}"
            for each in self.engines
            if each.status == "fails"
        ]
        return (*missing, *broken, *engines)

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return {"schema_version": 1, **asdict(self), "problems": list(self.problems)}
