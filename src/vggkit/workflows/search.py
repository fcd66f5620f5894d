"""Search a file of vectors for the images that are most similar to others."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vggkit.arguments import demand_count
from vggkit.engines.model_weights import ModelFile, open_for_engine
from vggkit.engines.outputs import WantedPrecision
from vggkit.errors import BadData, BadInput
from vggkit.images.given import ImageSources
from vggkit.images.omissions import warn_of_omissions
from vggkit.inference.embed import embed
from vggkit.inference.fingerprint import describe_network, list_differences
from vggkit.inference.search import SearchResult, SimilarImage, VectorIndex
from vggkit.weights.bundled import is_bundled
from vggkit.weights.card import read_entry
from vggkit.weights.hub import is_address
from vggkit.weights.published_classifiers import is_model_name

if TYPE_CHECKING:
    from vggkit.weights.model import Model


def search(
    index: str | Path,
    images: ImageSources,
    *,
    model: "Model | str | Path | None" = None,
    top: int = 10,
    keep_query: bool = False,
    batch_size: int = 32,
    device: str = "auto",
    reduced_decoding: bool = False,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> list[SearchResult]:
    """The images of an index that are most similar to each of the given images, by the vectors of a network.

    Args:
        index: A file that `embed_into` (`vggkit embed`) wrote.
        images: The queries, as `predict` takes them.
        model: The Classifier that the index was made with, or its place, as `predict` takes it; None: the place
            where it was then.
        top: Number of similar images for each.
        keep_query: Whether an image that is in the index itself is among the images that are similar to it; its
            copies in other files always are.
        batch_size: Images that pass through the network together.
        device: `auto`, `cpu`, `cuda`, `mps`.
        reduced_decoding: Decode large JPEGs at a smaller scale; always so where those of the index were.
        on_progress: Called with the number of images embedded, and of all where ImageSamples are given.

    Raises BadData for a file that is no index, BadInput for a Classifier that it was not made with, and
    MissingExtra without FAISS. Files of a folder that look like forgotten images are named in a warning.
    """
    opened = VectorIndex.open(index)
    top, batch_size = demand_count("top", top), demand_count("batch_size", batch_size)
    chosen = _find_model(opened, model)
    found = embed(
        chosen,
        images,
        layer=opened.layer,
        batch_size=batch_size,
        device=device,
        precision=cast(WantedPrecision, opened.precision),
        reduced_decoding=reduced_decoding or _is_reduced(opened),
        on_progress=on_progress,
    )
    warn_of_omissions(found.skipped)
    readable = [number for number, problem in enumerate(found.problems) if problem is None]
    nearest = opened.search(found.vectors[readable], top=top if keep_query else top + 1)
    near = dict(zip(readable, nearest, strict=True))
    return [
        SearchResult(path, _leave_out(path, near.get(number, ()), top=top, keep_query=keep_query), problem)
        for number, (path, problem) in enumerate(zip(found.paths, found.problems, strict=True))
    ]


def _leave_out(
    query: str, similar: tuple[SimilarImage, ...], *, top: int, keep_query: bool
) -> tuple[SimilarImage, ...]:
    """Without the query's own file, under any path in the index."""
    if keep_query:
        return similar
    own = os.path.realpath(query)
    return tuple(each for each in similar if os.path.realpath(each.path) != own)[:top]


def _is_reduced(index: VectorIndex) -> bool:
    """Whether the index's JPEGs were decoded at a smaller scale."""
    return bool(read_entry(index.model, "preprocessing").get("reduced_decoding"))


def _find_model(index: VectorIndex, given: "Model | str | Path | None") -> "Model | ModelFile":
    """The Classifier that the index was made with; raises BadInput and BadData."""
    if given is None:
        if not index.classifier:
            raise BadInput(f"{index.path}: was made with a Classifier in memory; give it, or name its file")
        elsewhere = any(known(index.classifier) for known in (is_address, is_bundled, is_model_name))
        if not elsewhere and not Path(index.classifier).exists():
            raise BadData(
                f"{index.path}: was made with {index.classifier}, which is no longer there; state where it is "
                "with --model"
            )
        given = index.classifier
    model = open_for_engine(given, "search")
    now = describe_network(model, precision=index.precision, layer=index.layer, reduced_decoding=_is_reduced(index))
    differing = list_differences(index.model, now)
    if differing:
        raise BadInput(
            f"{index.path}: was made with another Classifier ({'; '.join(differing[:3])}). Name that one with "
            "--model, or make the index again with vggkit embed"
        )
    return model
