"""Near-duplicates: images that are copies of each other although their files differ.

Each image is reduced to a thumbnail. Low-frequency cosine coefficients of all thumbnails are compared by matrix
products, in the eight orientations that mirrors and quarter turns give; candidates are registered to a fraction of
a pixel, and their fine detail is correlated. Measured in docs/decisions/near-duplicates.md.

Shape letters: N images, D values of a descriptor, M pairs, S pixels of a thumbnail's side, K waves along a side,
H and W pixels.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggkit.images.decoding import Pixels

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

SIDE: Final = 32
"""Pixels of a thumbnail's side."""
LEAST_SIDE: Final = 29
"""Images with a smaller side, as digits of 28, have too little detail to tell a copy from a similar image."""
DESCRIPTOR_SIZE: Final = SIDE * SIDE
"""Values of a descriptor, each of one byte."""
LEAST_SIMILARITY: Final = 0.6
"""Two images of at least this similarity count as copies."""
MOST_PARTNERS: Final = 32
"""The number of later images, the most similar ones, that an image is compared with closely."""

_LEAST_CORRELATION: Final = 0.78  # of the cosine coefficients; pairs below are not compared further
_LEAST_DETAIL: Final = 1.0  # grey levels, root mean square; below it rounding dominates
_LEAST_FIT: Final = 0.8  # of coarsely aligned images; pairs below are not compared further
_DEVIATIONS: Final = 6.0  # by how many of its standard deviations a correlation is lowered
_FARTHEST: Final = 0.13  # shift and stretch, in halves of the side: crops and borders of up to 6 % of a side
_WAVES: Final = 8
_ROWS, _COLUMNS, _PAIRS = 32, 2048, 256  # block sizes that stay in the processor's caches


class NearDuplicate(NamedTuple):
    """Two images that are copies, by their rows among the descriptors."""

    first: int
    """The lower row."""
    second: int
    """The higher row."""
    similarity: float
    """In [LEAST_SIMILARITY, 1]; 1 where the descriptors are equal, and only there."""


def compute_descriptor(pixels: Pixels) -> Pixels:
    """The descriptor (D,), uint8, of RGB pixels (H, W, 3), uint8: a grey thumbnail, for any aspect ratio.

    Images with a side under LEAST_SIDE get zeros, which are similar to nothing: find their copies by digest.
    """
    if min(pixels.shape[:2]) < LEAST_SIDE:
        return np.zeros(DESCRIPTOR_SIZE, np.uint8)
    step_y, step_x = (max(1, side // (16 * SIDE)) for side in pixels.shape[:2])  # 256 samples a value are plenty
    image = Image.fromarray(np.ascontiguousarray(pixels[::step_y, ::step_x])).convert("L")
    mean = min(image.size) >= SIDE  # of the pixels below one; fewer are interpolated
    resampling = Image.Resampling.BOX if mean else Image.Resampling.BILINEAR
    return np.asarray(image.resize((SIDE, SIDE), resampling)).reshape(-1)


def find_near_duplicates(
    descriptors: Pixels, *, on_progress: Callable[[int, int], None] | None = None
) -> list[NearDuplicate]:
    """Every two images of which one is a copy of the other, in order of their rows.

    Rows of equal descriptors are paired with the first of them alone, and only that one is compared with others:
    `group` brings them together again. Plain images are paired with none.

    Args:
        descriptors: (N, D), uint8, of `compute_descriptor`.
        on_progress: Called with how many distinct descriptors are done, and how many there are.
    """
    assert descriptors.shape[1:] == (DESCRIPTOR_SIZE,)
    assert descriptors.dtype == np.uint8
    if not len(descriptors):
        return []
    firsts = _find_firsts(descriptors)
    waves = np.empty((len(descriptors), _WAVES, _WAVES), np.float32)
    for start in range(0, len(waves), _COLUMNS):
        waves[start : start + _COLUMNS] = _measure_waves(_unfold(descriptors[start : start + _COLUMNS]))
    lively, repeated = waves.any((1, 2)), firsts != np.arange(len(firsts))
    alike = [NearDuplicate(int(firsts[row]), int(row), 1.0) for row in np.flatnonzero(lively & repeated)]
    distinct = np.flatnonzero(lively & ~repeated)
    for done, proposed in _propose(waves[distinct]):
        first, second, position = distinct[proposed[0]], distinct[proposed[1]], proposed[2]
        similarity = _verify(descriptors, first, second, position)
        best: dict[tuple[int, int], float] = {}  # a symmetric image may be alike in several positions
        for row in np.flatnonzero(similarity >= LEAST_SIMILARITY):
            pair = int(first[row]), int(second[row])
            best[pair] = max(best.get(pair, 0.0), float(similarity[row]))
        alike += [NearDuplicate(*pair, value) for pair, value in best.items()]
        if on_progress is not None:
            on_progress(done, len(distinct))
    return sorted(alike)


def group(pairs: Iterable[NearDuplicate]) -> list[list[int]]:
    """The pairs' rows in groups of two or more, each row in one: all are copies of one image of their group.

    Similarity is not passed on from copy to copy, else a film would become one image; equality is. A row whose
    partners all went to other groups is in none.
    """
    pairs = sorted(pairs)
    first_of = {pair.second: pair.first for pair in pairs if pair.similarity == 1}
    copies: dict[int, set[int]] = {}
    partners: dict[int, set[int]] = {}
    for i, j, _ in pairs:
        a, b = first_of.get(i, i), first_of.get(j, j)
        copies.setdefault(a, {a}).add(i)
        copies.setdefault(b, {b}).add(j)
        partners.setdefault(a, {a}).add(b)
        partners.setdefault(b, {b}).add(a)
    groups, free = [], set(partners)
    for middle in sorted(partners, key=lambda row: (-len(partners[row]), row)):
        if middle in free:
            members = set[int]().union(*(copies[row] for row in partners[middle] & free))
            free -= partners[middle]
            if len(members) > 1:
                groups.append(sorted(members))
    return sorted(groups)


def _find_firsts(descriptors: Pixels) -> Indices:
    """Of each row the first one that equals it (N,)."""
    rows = np.ascontiguousarray(descriptors).view(f"V{DESCRIPTOR_SIZE}").reshape(-1)
    _, firsts, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return firsts[inverse]


def _propose(waves: Floats) -> Iterator[tuple[int, tuple[Indices, Indices, Indices]]]:
    """Rows done, and pairs i < j that may be alike with the position of i in which they are, block by block."""
    columns = waves.reshape(len(waves), _WAVES**2)
    for start in range(0, len(waves), _ROWS):
        block = waves[start : start + _ROWS]
        count = len(block)
        queries = np.concatenate([_turn_waves(block, position).reshape(count, -1) for position in range(8)])
        found: list[NDArray[np.float64]] = [np.empty((0, 4))]
        for left in range(start, len(waves), _COLUMNS):
            products = queries @ columns[left : left + _COLUMNS].T
            hits = np.flatnonzero(products > _LEAST_CORRELATION)
            query, column = np.divmod(hits, products.shape[1])
            later = left + column > start + query % count
            query, column = query[later], column[later]
            found.append(
                np.stack([start + query % count, left + column, query // count, -products[query, column]], 1)
            )
            found = [_keep_best(np.concatenate(found))]
        i, j, position = found[0][:, :3].astype(np.intp).T
        yield start + count, (i, j, position)


def _keep_best(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of (row, partner, position, -correlation) the MOST_PARTNERS most alike of each row."""
    found = found[np.lexsort((found[:, 2], found[:, 1], found[:, 3], found[:, 0]))]
    starts = np.searchsorted(found[:, 0], found[:, 0])
    best: NDArray[np.float64] = found[np.arange(len(found)) - starts < MOST_PARTNERS]
    return best


def _verify(descriptors: Pixels, first: Indices, second: Indices, position: Indices) -> Floats:
    """Similarity (M,) of pairs of rows, the first ones turned to their position."""
    similarity = np.empty(len(first), np.float32)
    for start in range(0, len(first), _PAIRS):
        some = slice(start, start + _PAIRS)
        target, turned = _unfold(descriptors[first[some]]), position[some]
        for each in range(8):
            target[turned == each] = _turn(target[turned == each], each)
        similarity[some] = _compare(_unfold(descriptors[second[some]]), target)
    return similarity


def _compare(moving: Floats, target: Floats) -> Floats:
    """Similarity (M,) of thumbnails (M, S, S), coarse first; most pairs end there."""
    similarity = np.zeros(len(moving), np.float32)
    motion, fit = _align(moving, target, np.zeros((len(moving), 4), np.float32), scale=2.0)
    promising = np.flatnonzero(fit > _LEAST_FIT)
    moving, target = moving[promising], target[promising]
    motion, _ = _align(moving, target, motion[promising], scale=1.2)
    similarity[promising] = _correlate(*_warp(_sharpen(moving), motion), _sharpen(target))
    return similarity


def _correlate(moved: Floats, inside: Floats, target: Floats) -> Floats:
    """Similarity (M,) of aligned detail (M, S, S): its correlation, minus what may be due to chance.

    Detail that is spread over many waves and over the whole image makes many independent samples, by which a
    correlation is known well. A bird in a clear sky, a horizon or a figure makes few, and must fit more exactly.
    """
    a, b = _standardize(moved, inside), _standardize(target, inside)
    correlation = (a * b).sum((1, 2))
    power = [np.abs(np.fft.rfft2(detail)) ** 2 for detail in (a, b)]
    waves = _effective(power[0], power[1], _TIMES_IN_SPECTRUM)
    places = [_blur(detail**2, 2.0) for detail in (a, b)]
    even = _effective(places[0], places[1]) / inside.sum((1, 2))
    samples = np.maximum(1, waves * np.minimum(1, even))
    lowered = np.arctanh(np.clip(correlation, -0.9999, 0.9999)) - _DEVIATIONS / np.sqrt(samples)
    similarity: Floats = np.clip(np.tanh(lowered), 0, 1 - 1e-6)
    return similarity


def _align(moving: Floats, target: Floats, motion: Floats, *, scale: float) -> tuple[Floats, Floats]:
    """Scale and shift (M, 4) down and across that align `moving` with `target`, in halves of the side, and the fit.

    Gauss and Newton's least squares from `motion` on, of images smoothed to `scale` pixels; the gradients are the
    target's, so nothing is inverted twice. The fit (M,) is the correlation before the last step.
    """
    smooth, wanted = (_blur(each, scale) for each in (moving, target))
    smooth, wanted = smooth - _blur(smooth, 4.0), _standardize(wanted - _blur(wanted, 4.0), _INNER)
    down, across = (np.gradient(wanted, axis=axis) * np.float32(SIDE / 2) for axis in (1, 2))
    slopes = (np.stack([down * _PLACES[:, None], down, across * _PLACES, across], 1) * _INNER).reshape(
        -1, 4, SIDE**2
    )
    normal = slopes @ slopes.transpose(0, 2, 1)
    normal += np.eye(4, dtype=np.float32) * (1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-9)
    solver = np.linalg.inv(normal) @ slopes
    fit = np.zeros(len(moving), np.float32)
    for _ in range(3):
        warped, inside = _warp(smooth, motion)
        warped = _standardize(warped, inside)
        fit = (warped * wanted).sum((1, 2))
        step = (solver @ ((warped - wanted) * inside).reshape(-1, SIDE**2, 1))[..., 0]
        stretch = (1 + motion[:, ::2]) / (1 + np.clip(step[:, ::2], -0.3, 0.3))
        shift = motion[:, 1::2] - stretch * step[:, 1::2]
        motion = np.stack([stretch[:, 0] - 1, shift[:, 0], stretch[:, 1] - 1, shift[:, 1]], 1)
        motion = np.clip(motion, -_FARTHEST, _FARTHEST)
    return motion, fit


def _warp(thumbnails: Floats, motion: Floats) -> tuple[Floats, Floats]:
    """The thumbnails (M, S, S) scaled and shifted, and 1 where they then have values, without the border."""
    inside = _INNER
    for stretch, shift in (motion.T[:2], motion.T[2:]):  # down, then across, as the sides change places
        places = (_PLACES * (1 + stretch[:, None]) + shift[:, None] + 1) * (SIDE / 2) - 0.5
        known = ((places > -0.51) & (places < SIDE - 0.49)).astype(np.float32)
        places = np.clip(places, 0, SIDE - 1.001)
        before = places.astype(np.intp)
        each = np.arange(len(thumbnails))[:, None]
        low, high = thumbnails[each, before], thumbnails[each, before + 1]
        thumbnails = (low + (high - low) * (places - before)[..., None].astype(np.float32)).transpose(0, 2, 1)
        inside = (inside * known[..., None]).transpose(0, 2, 1)
    return thumbnails, inside


def _effective(a: Floats, b: Floats, times: Floats | int = 1) -> Floats:
    """The effective number of values of both (M, h, w): all if they are equal, one if one has all the weight.

    Each counts `times`.
    """
    both = (a * b * times).sum((1, 2)) + 1e-12
    effective: Floats = (a * times).sum((1, 2)) * (b * times).sum((1, 2)) / both
    return effective


def _standardize(values: Floats, inside: Floats) -> Floats:
    """Mean 0 and length 1 where `inside` is 1, and 0 elsewhere."""
    mean = (values * inside).sum((1, 2), keepdims=True) / inside.sum((1, 2), keepdims=True)
    centred = (values - mean) * inside
    length = np.sqrt((centred**2).sum((1, 2), keepdims=True))
    standard: Floats = centred / np.maximum(length, 1e-6)
    return standard


def _measure_waves(thumbnails: Floats) -> Floats:
    """Cosine waves (M, K, K) of length 1, fine ones raised as they are weak in photos; 0 for plain images.

    The rim fades out, so that a border or a crop changes little.
    """
    centred = thumbnails - (thumbnails * _WINDOW).sum((1, 2), keepdims=True)
    waves = _COSINES @ (centred * _WINDOW) @ _COSINES.T * np.hypot(*np.indices((_WAVES, _WAVES), np.float32))
    detail = np.sqrt((_sharpen(thumbnails) ** 2).mean((1, 2), keepdims=True))
    length = np.sqrt((waves**2).sum((1, 2), keepdims=True))
    measured: Floats = waves / np.maximum(length, 1e-6) * (detail >= _LEAST_DETAIL)
    return measured


def _turn_waves(waves: Floats, position: int) -> Floats:
    """The waves of the image turned by `_turn`: odd ones change their sign where it is mirrored."""
    waves = waves.transpose(0, 2, 1) if position & 4 else waves
    signs: Floats = np.where(np.arange(_WAVES) % 2, -1, 1).astype(np.float32)
    waves = waves * signs[:, None] if position & 2 else waves
    return waves * signs if position & 1 else waves


def _turn(thumbnails: Floats, position: int) -> Floats:
    """One of the eight positions: sides exchanged (4), upside down (2), mirrored (1)."""
    thumbnails = thumbnails.transpose(0, 2, 1) if position & 4 else thumbnails
    thumbnails = thumbnails[:, ::-1] if position & 2 else thumbnails
    return thumbnails[:, :, ::-1] if position & 1 else thumbnails


def _unfold(descriptors: Pixels) -> Floats:
    return descriptors.reshape(-1, SIDE, SIDE).astype(np.float32)


def _sharpen(thumbnails: Floats) -> Floats:
    """Detail of up to some five pixels."""
    return thumbnails - _blur(thumbnails, 2.5)


def _blur(thumbnails: Floats, deviation: float) -> Floats:
    """Smoothed by a Gaussian of this standard deviation in pixels."""
    bell = _BELLS[deviation]
    smooth: Floats = np.matmul(np.matmul(bell, thumbnails), bell.T)
    return smooth


def _make_bell(deviation: float) -> Floats:
    """The blur along one side as a matrix (S, S)."""
    distance = np.subtract.outer(np.arange(SIDE), np.arange(SIDE))
    bell: Floats = np.exp(-(distance**2) / (2 * deviation**2)).astype(np.float32)
    bell /= bell.sum(1, keepdims=True)
    return bell


_BELLS: Final[dict[float, Floats]] = {deviation: _make_bell(deviation) for deviation in (1.2, 2.0, 2.5, 4.0)}
_PLACES: Final = ((np.arange(SIDE, dtype=np.float32) + 0.5) * (2 / SIDE)) - 1  # of pixels, from -1 to 1
_INNER: Final = np.pad(np.ones((1, SIDE - 4, SIDE - 4), np.float32), ((0, 0), (2, 2), (2, 2)))
_FADE: Final = np.sin(np.minimum(1, (1 - np.abs(_PLACES)) / 0.4) * np.pi / 2) ** 2
_WINDOW: Final[Floats] = (np.outer(_FADE, _FADE) / _FADE.sum() ** 2).astype(np.float32)
_COSINES: Final = np.cos(np.outer(np.arange(_WAVES), (_PLACES + 1) * (np.pi / 2))).astype(np.float32)
_TIMES_IN_SPECTRUM: Final = np.array([1] + [2] * (SIDE // 2 - 1) + [1], np.float32)  # rfft2 leaves out conjugates
