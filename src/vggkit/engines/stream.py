"""Pictures in, logits out, in order: decoding goes on in threads while the engine computes.

Shape letters: N pictures, C channels, H and W pixels, K classes, F statistics.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadImage
from vggkit.hardware import count_threads
from vggkit.images.pictures import Picture
from vggkit.images.preprocessing import Preprocessing


class Engine(Protocol):
    """Anything that turns preprocessed pictures into a row each."""

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, K), or statistics (N, F), of pictures (N, C, H, W)."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the engine gives for one picture, or why it gives nothing."""

    picture: Picture
    """The picture that was asked about."""
    output: NDArray[np.float32] | None
    """The engine's row for it, logits (K,) or statistics (F,); None where the picture cannot be read."""
    problem: str | None = None
    """Why it cannot be read."""


def stream_answers(
    engine: Engine,
    preprocessing: Preprocessing,
    pictures: Iterable[Picture],
    *,
    batch_size: int = 32,
    decoders: int | None = None,
) -> Iterator[Answer]:
    """An answer for each picture, in order; never more than three batches of pictures are in memory.

    A picture that cannot be read gets its reason in place of an output, and the others go on. Decoding
    takes `decoders` threads; None: as many as there are processors.
    """

    def prepare(picture: Picture) -> NDArray[np.float32] | BadImage:
        try:
            return preprocessing(picture.decode(least_side=preprocessing.least_side))
        except BadImage as problem:
            return problem

    waiting = iter(pictures)
    with ThreadPoolExecutor(decoders or count_threads(), thread_name_prefix="decode") as pool:
        ahead: deque[tuple[Picture, Future[NDArray[np.float32] | BadImage]]] = deque()
        try:
            while True:
                for picture in islice(waiting, 2 * batch_size - len(ahead)):
                    ahead.append((picture, pool.submit(prepare, picture)))
                if not ahead:
                    return
                taken = [ahead.popleft() for _ in range(min(batch_size, len(ahead)))]
                yield from _answer(engine, [(picture, future.result()) for picture, future in taken])
        finally:
            for _, future in ahead:
                future.cancel()


def _answer(engine: Engine, batch: list[tuple[Picture, NDArray[np.float32] | BadImage]]) -> Iterator[Answer]:
    readable = [value for _, value in batch if not isinstance(value, BadImage)]
    outputs = iter(engine.run(np.stack(readable)) if readable else ())
    for picture, value in batch:
        if isinstance(value, BadImage):
            yield Answer(picture, None, str(value))
        else:
            yield Answer(picture, next(outputs))
