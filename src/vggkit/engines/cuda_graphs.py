"""The pass of one image, recorded on a GPU and replayed: starting its kernels takes longer than running them."""

from collections.abc import Callable

import torch
from torch import Tensor

Pass = Callable[[Tensor], dict[str, Tensor]]


def record(compute: Pass, images: Tensor) -> Pass:
    """`compute` for images of this shape on a CUDA device; what it gives is overwritten by its next call.

    Raises RuntimeError where the pass cannot be recorded.
    """
    with torch.cuda.device(images.device):
        given = images.clone()
        # cuDNN and cuBLAS choose and allot before they are recorded, on a stream of their own as torch asks for.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                compute(given)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = compute(given)

    def replay(images: Tensor) -> dict[str, Tensor]:
        given.copy_(images)
        graph.replay()
        return found

    return replay


class Replays:
    """Passes of single images, each recorded when a second image of its shape comes.

    Where recording fails, or on another device, the pass is computed as ever.
    """

    def __init__(self, compute: Pass, device: torch.device) -> None:
        self._compute = compute
        self._records = device.type == "cuda"
        self._recorded: dict[torch.Size, Pass | None] = {}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """What is computed of images (N, C, H, W); good until the next call."""
        if len(images) > 1 or not self._records:
            return self._compute(images)
        if images.shape not in self._recorded:
            self._recorded = {images.shape: None}  # the last shape alone: a recorded pass keeps its maps
            return self._compute(images)
        replay = self._recorded[images.shape]
        if replay is None:
            try:
                replay = self._recorded[images.shape] = record(self._compute, images)
            except RuntimeError:
                self._records = False
                return self._compute(images)
        return replay(images)
