"""What the channels of a layer respond to: their filters, the patches of images, and images made to excite them.

Shape letters: N images, C channels, H and W pixels or places.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggkit.engines.pytorch import replicate_network
from vggkit.engines.stream import Engine, stream_results
from vggkit.errors import BadConfiguration, BadInput
from vggkit.features.normalization import normalize_images
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import Pixels
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.features import Features, list_features
from vggkit.models.layers import widen
from vggkit.models.receptive_field import ReceptiveField
from vggkit.models.vgg import VGG

COLOURS: Final = ((0.26, 0.09, 0.02), (0.27, 0.0, -0.05), (0.27, -0.09, 0.03))
"""Square root of the covariance of colours in photographs: Olah, Mordvintsev and Schubert 2017, "Feature
visualization", Distill, as in its code."""
LEAK: Final = 0.1
"""Slope of a ReLU below 0 while its values are maximised: where all are 0 there would be no gradient."""
RATE: Final = 0.1
"""Learning rate of Adam."""


def draw_first_filters(network: VGG, preprocessing: Preprocessing, channels: Sequence[int]) -> Pixels:
    """The first convolution's filters as RGB images (C, K, K, 3), uint8.

    Each is scaled by its own largest absolute weight: 0 is grey, the largest is white or black of its colour.
    Raises BadConfiguration for networks that read other than grey or RGB images.
    """
    first = network.features[0]
    assert isinstance(first, nn.Conv2d)
    weights = first.weight.detach().float().cpu()[list(channels)]
    if weights.shape[1] not in (1, 3):
        raise BadConfiguration(f"filters are shown as colours, and this network reads {weights.shape[1]} channels")
    if not bool(weights.isfinite().all()):
        raise BadInput("the first filters have values that are not finite")
    weights = weights.flip(1) if preprocessing.channel_order == "BGR" else weights
    scaled = weights / weights.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    shown = (127.5 + 127.5 * scaled).round().byte().permute(0, 2, 3, 1)
    return np.ascontiguousarray(shown.expand(-1, -1, -1, 3).numpy())


@dataclass(frozen=True, slots=True, order=True)
class Response:
    """The strongest value of a channel in one image."""

    value: float
    """The channel's value."""
    number: int
    """The image's place in the data."""
    row: int
    """Row of the map."""
    column: int
    """Column of the map."""


def find_strongest(
    engine: Engine,
    preprocessing: Preprocessing,
    images: Iterable[ImageSample],
    channels: Sequence[int],
    *,
    top: int,
    inside: tuple[slice, slice],
    batch_size: int,
    on_image: Callable[[ImageSample, str | None], None],
) -> tuple[list[list[Response]], dict[int, ImageSample]]:
    """For each channel its strongest responses, at most one of an image, strongest first; and the images of them.

    One pass; only `top` responses of each channel are held.

    Args:
        engine: Gives the layer's maps (N, C, H, W).
        preprocessing: The network's.
        images: The data.
        channels: Numbers of the channels.
        top: How many responses of each.
        inside: Rows and columns of the maps that are looked at.
        batch_size: Images that pass through the network together.
        on_image: Called with each image, and why it could not be read, if it could not.
    """
    best: list[list[Response]] = [[] for _ in channels]
    samples: dict[int, ImageSample] = {}
    chosen = list(channels)
    for number, result in enumerate(stream_results(engine, preprocessing, images, batch_size=batch_size)):
        on_image(result.image, result.problem)
        if result.output is None:
            continue
        maps = result.output[(chosen, *inside)]
        flat = maps.reshape(len(chosen), -1)
        places = flat.argmax(1)
        is_among_best = False
        for held, values, place in zip(best, flat, places, strict=True):
            row, column = divmod(int(place), maps.shape[2])
            response = Response(float(values[place]), number, row + inside[0].start, column + inside[1].start)
            if len(held) < top:
                heapq.heappush(held, response)
                is_among_best = True
            elif response > held[0]:
                heapq.heapreplace(held, response)
                is_among_best = True
        if is_among_best:
            samples[number] = result.image
            if len(samples) > 2 * top * len(chosen):  # those that were pushed out
                wanted = {each.number for held in best for each in held}
                samples = {key: value for key, value in samples.items() if key in wanted}
    return [sorted(held, reverse=True) for held in best], samples


def cut_patch(pixels: Pixels, field: ReceptiveField, response: Response) -> Pixels:
    """The receptive field of a response in the fitted image (H, W, 3), grey where it reaches beyond."""
    top, left, bottom, right = field.locate(response.row, response.column)
    patch = np.full((field.side, field.side, 3), 128, np.uint8)
    height, width = pixels.shape[:2]
    rows, columns = slice(max(0, top), min(height, bottom)), slice(max(0, left), min(width, right))
    inside = pixels[rows, columns]
    patch[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = inside
    return patch


class _Spectrum(nn.Module):
    """Images (N, 3, H, W) in [0, 1] by their frequencies, weighted as in photographs, and uncorrelated colours."""

    def __init__(self, count: int, side: int, generator: torch.Generator) -> None:
        super().__init__()
        self.side = side
        frequencies = (torch.fft.fftfreq(side)[:, None].square() + torch.fft.rfftfreq(side).square()).sqrt()
        self.register_buffer("scale", 1 / frequencies.clamp_min(1 / side) / side)
        shape = (count, 3, side, side // 2 + 1, 2)
        self.values = nn.Parameter(0.01 * torch.randn(shape, generator=generator))
        matrix = torch.tensor(COLOURS)
        self.register_buffer("colours", matrix / matrix.norm(dim=0).max())

    def forward(self) -> Tensor:
        spectrum = torch.view_as_complex(self.values) * self.get_buffer("scale")
        planes = torch.fft.irfft2(spectrum, s=(self.side, self.side), norm="ortho")
        mixed = torch.einsum("nchw,dc->ndhw", planes, self.get_buffer("colours"))
        return torch.sigmoid(4 * mixed)


def maximize(
    network: VGG,
    preprocessing: Preprocessing,
    layer: str,
    channels: Sequence[int],
    *,
    side: int,
    steps: int,
    smoothness: float,
    jitter: int,
    seed: int,
    device: torch.device,
    on_step: Callable[[int], None],
) -> tuple[Pixels, list[float]]:
    """Images (C, side, side, 3), uint8, that excite one channel each, and the channel's mean value for them.

    The mean of the channel over the map, relative to the root mean square of all channels, is maximised by Adam.
    The image is shifted by up to `jitter` pixels at each step, and its total variation, the mean absolute
    difference of neighbours, is subtracted with the weight `smoothness`. Gradients must be recorded; the
    network is not changed. Raises BadInput for weights that were made in inference mode, and for values that are
    not finite.
    """
    if any(value.is_inference() for value in network.parameters()):
        raise BadInput(
            "the network was made in torch.inference_mode, where no gradient can be computed; make or load it "
            "outside"
        )
    source = _find_source(network, layer)
    features = Features(replicate_network(network, device, torch.float32), source, frozen=True)
    generator = torch.Generator().manual_seed(seed)
    spectrum = _Spectrum(len(channels), side, generator).to(device)
    optimizer = torch.optim.Adam(spectrum.parameters(), lr=RATE)
    order = torch.arange(len(channels), device=device)
    chosen = torch.tensor(list(channels), device=device)

    def look(images: Tensor) -> Tensor:
        found: Tensor = widen(features(normalize_images(images, preprocessing))[source])
        return found if found.dim() == 4 else found[:, :, None, None]

    for step in range(1, steps + 1):
        images = spectrum()
        down, across = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
        maps = look(images.roll((down, across), (2, 3)))
        if source != layer:
            maps = F.leaky_relu(maps, LEAK)
        size = maps.detach().square().mean((1, 2, 3)).sqrt().clamp_min(1e-12)
        gain = maps[order, chosen].mean((1, 2)) / size
        if not bool(gain.isfinite().all()):
            raise BadInput(f"{layer} has values that are not finite; are the weights whole?")
        variation = (images[:, :, 1:] - images[:, :, :-1]).abs().mean((1, 2, 3))
        variation = variation + (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))
        optimizer.zero_grad()
        (smoothness * variation - gain).sum().backward()
        optimizer.step()
        on_step(step)
    with torch.no_grad():
        images = spectrum()
        maps = look(images)
        values = (maps if source == layer else maps.relu())[order, chosen].mean((1, 2)).tolist()
    shown: Pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return shown, values


def _find_source(network: VGG, layer: str) -> str:
    """The layer that is looked at: of a ReLU the one that it reads."""
    names = list_features(network.configuration)
    return names[names.index(layer) - 1] if layer.startswith("relu") else layer
