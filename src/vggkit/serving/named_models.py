"""The models of a service by name, and their replacement when files change."""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vggkit.errors import BadInput, VggkitError, describe_problem
from vggkit.serving.loaded_model import Computing, LoadedModel
from vggkit.serving.refusals import Refusal
from vggkit.weights.locate import locate_model

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a model may be called."""

Identity = tuple[int, ...]


def name_models(places: Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, str]:
    """The place of each model by its name, in order; the first is what requests get that name none.

    Args:
        places: A mapping; or places, each with a name before an equals sign, `cats=runs/cats`, or named by its file
            or folder: `runs/cats` and `runs/cats/best.safetensors` are `cats`.

    Raises BadInput for no model, two of one name, and names that do not fit into an address.
    """
    if isinstance(places, Mapping):
        pairs = [(name, str(place)) for name, place in places.items()]
    else:
        pairs = [_split_name(str(place)) for place in places]
    if not pairs:
        raise BadInput("serve needs a model: vggkit serve MODEL")
    named: dict[str, str] = {}
    for name, place in pairs:
        if not NAME.fullmatch(name):
            raise BadInput(
                f"a served model's name has up to 64 letters, digits, dots, hyphens and underscores; got {name!r}. "
                f"Give it one: cats={place}"
            )
        if name in named:
            raise BadInput(f"two models are called {name}; name them: {name}={named[name]} other={place}")
        named[name] = place
    return named


def _split_name(given: str) -> tuple[str, str]:
    name, equals, place = given.partition("=")
    if equals and NAME.fullmatch(name) and not Path(given).exists():
        return name, place
    path = Path(given.rstrip("/"))
    stem = path.parent.name if path.name == "best.safetensors" and path.parent.name else path.name
    return re.sub(r"[^A-Za-z0-9._-]", "-", stem.removesuffix(".safetensors")).lstrip("._-") or "model", given


@dataclass(slots=True)
class _Watched:
    """A file that may change."""

    path: Path
    loaded: Identity
    """The file that was loaded, or that could not be."""
    seen: Identity
    """The file as it was when it was last looked at."""


class NamedModels:
    """Loaded models by name. Requests take the one of the moment and keep it until they have their result.

    Args:
        places: By name; see `name_models`.
        computing: How they compute.
        on_reload: Called with the name and, where a changed file could not be loaded, the problem.
    """

    def __init__(
        self,
        places: Mapping[str, str],
        computing: Computing,
        *,
        on_reload: Callable[[str, str | None], None] = lambda *_: None,
    ) -> None:
        self._computing, self._on_reload = computing, on_reload
        self._watched: dict[str, _Watched] = {}
        self._current: dict[str, LoadedModel] = {}
        self.problems: dict[str, str] = {}
        """Why the changed file of a model could not be loaded; the model from before is used."""
        for name, place in places.items():
            path = locate_model(place)
            identity = identify(path)
            self._current[name] = LoadedModel(name, path, computing)
            self._watched[name] = _Watched(path, identity, identity)
        self.names = tuple(self._current)

    def find(self, name: str | None) -> LoadedModel:
        """The model of that name, or the first; raises Refusal, 404."""
        if name is None:
            return self._current[self.names[0]]
        if name not in self._current:
            known = ", ".join(self.names)
            raise Refusal(404, "unknown_model", f"there is no model {name!r} here; there is {known}")
        return self._current[name]

    async def watch(self, seconds: float) -> None:
        """Load changed files, for ever; the models of before compute until then."""
        with ThreadPoolExecutor(1, thread_name_prefix="load") as pool:
            while True:
                await asyncio.sleep(seconds)
                await asyncio.get_running_loop().run_in_executor(pool, self.reload_changed)

    def close(self) -> None:
        """Free the models."""
        self._current.clear()

    def reload_changed(self) -> None:
        """Load each file that was changed, and has not changed since it was last looked at."""
        for name, watched in self._watched.items():
            found = identify(watched.path)
            is_still = found == watched.seen
            watched.seen = found
            if found in (watched.loaded, ()) or not is_still:
                continue
            problem = self._load(name, watched.path)
            if identify(watched.path) == found:  # else it is looked at again
                watched.loaded = found
            self._on_reload(name, problem)

    def _load(self, name: str, path: Path) -> str | None:
        try:
            self._current[name] = LoadedModel(name, path, self._computing)
        except VggkitError as problem:
            self.problems[name] = describe_problem(problem)
        except Exception as problem:  # of a library, at a file that it did not expect
            self.problems[name] = f"{path}: cannot be loaded ({type(problem).__name__}: {problem})"
        else:
            self.problems.pop(name, None)
        return self.problems.get(name)


def identify(path: Path) -> Identity:
    """What a file has no more when it was written again; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
