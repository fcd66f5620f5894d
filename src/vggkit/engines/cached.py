"""Compiled engines, cached with the Model whose network they compute, and rebuilt when its weights change.

An engine is an attribute of the Model, and is freed with it. It is neither pickled nor copied: another process
compiles its own.
"""

import os
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from vggkit.engines.info import WantedEngine
from vggkit.engines.model_weights import ModelFile
from vggkit.engines.outputs import Output, WantedPrecision
from vggkit.engines.select import choose_engine
from vggkit.engines.stream import NamedEngine

if TYPE_CHECKING:
    import torch

    from vggkit.weights.card import Card
    from vggkit.weights.model import Model

MOST_CACHED: Final = 2
"""Largest number of engines of a Model, the last ones used: each may hold a copy of the weights."""
SAMPLED: Final = 64
"""Least number of values of each tensor by which changes are found that PyTorch does not count: through `.data`
or NumPy."""

_OF_PARENTS: Final = list[object]()
"""Engines that a forked process has from its parent. Their threads do not exist there, and destroying them would
wait for these: they are neither used nor freed."""

State = tuple[object, ...]


def find_engine(
    model: "Model | ModelFile",
    device: "torch.device | str" = "auto",
    *,
    output: Output | Sequence[Output] = "logits",
    precision: WantedPrecision = "auto",
    engine: WantedEngine = "auto",
    card: "Card | None" = None,
) -> NamedEngine:
    """The engine that `choose_engine` gives, compiled once and cached while the weights do not change.

    Threads may call this at the same time: one compiles, the others wait for it, and all share the engine. Weights
    may be replaced, trained or loaded at any time between two calls. Changes that PyTorch does not count, through
    `.data` or a NumPy view, are detected by a sample of each tensor's values, which may miss a change of a few
    values.

    Args:
        model: The Model, whose network computes; or a ModelFile, whose engine is compiled and not cached.
        device: A torch device or its name.
        output: The output that is computed for each image, or several names.
        precision: The precision of the computation; see `choose_engine`.
        engine: The engine; see `choose_engine`.
        card: The model's card, where it has just been read, which takes longer than all else here.

    Raises what `choose_engine` does.
    """
    if isinstance(model, ModelFile):
        return choose_engine(model, device, output=output, precision=precision, engine=engine)
    cache: EngineCache = vars(model).setdefault("_cached_engines", EngineCache())
    return cache.find(
        repr((str(device), output, precision, engine)),
        describe_state(model, card or model.card),
        lambda: choose_engine(model, device, output=output, precision=precision, engine=engine),
    )


class EngineCache:
    """The engines of one Model, by the request, each with the state of the weights that it was built from."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._process, self._lock = os.getpid(), Lock()
        self._engines: dict[str, tuple[State, NamedEngine]] = {}

    def find(self, request: str, state: State, build: Callable[[], NamedEngine]) -> NamedEngine:
        """The engine for a request in this state, cached or new; threads wait while one of them builds it."""
        if self._process != os.getpid():  # forked: the lock may be held by a thread that does not exist here
            _OF_PARENTS.append(self._engines)
            self._begin()
        with self._lock:
            known, found = self._engines.pop(request, (None, None))
            if found is None or known != state:
                found = None  # its memory is freed before another one is built
                found = build()
            self._engines[request] = state, found
            while len(self._engines) > MOST_CACHED:
                del self._engines[next(iter(self._engines))]
            return found

    def __reduce__(self) -> tuple[type["EngineCache"], tuple[()]]:
        """Copies and pickles have no engines."""
        return EngineCache, ()

    def __del__(self, find_process: Callable[[], int] = os.getpid, of_parents: list[object] = _OF_PARENTS) -> None:
        """Free the engines, but those of a parent process; when Python ends, modules may be empty already."""
        if self._process != find_process():
            of_parents.append(self._engines)


def describe_state(model: "Model", card: "Card") -> State:
    """A value that differs wherever the engine would: configuration, weights, activation and ranges."""
    import torch

    tensors = [*model.network.parameters(), *model.network.buffers()]
    counted = tuple(
        (id(value), value.data_ptr(), 0 if value.is_inference() else value._version, value.dtype, value.device)
        for value in tensors
    )
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    with torch.inference_mode():
        for value in tensors:
            if value.numel() and not value.is_meta:
                flat = value.detach().reshape(-1)
                sample = flat[:: max(1, len(flat) // SAMPLED)].double()
                by_device.setdefault(value.device, []).append(sample)
        samples = tuple(torch.cat(each).cpu().numpy().tobytes() for each in by_device.values())
    ranges: tuple[Any, ...] = tuple(sorted(card.activation_ranges.items()))
    return card.configuration, card.activation, ranges, counted, samples
