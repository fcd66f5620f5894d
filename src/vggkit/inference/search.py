"""Search for the most similar images: a file of vectors is the index, and is read once for all queries.

Similarity is the cosine, the inner product of vectors of length 1, computed exactly by FAISS.

Shape letters: N vectors of the file, Q queries, F numbers of each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from vggkit.arguments import demand_count, demand_path
from vggkit.errors import BadData, BadInput, MissingExtra
from vggkit.inference.bulk import count_rows
from vggkit.table_files import read_about, read_vectors

CHUNK_BYTES: Final = 32_000_000
"""Vectors that are in memory together, about."""


@dataclass(frozen=True, slots=True)
class SimilarImage:
    """An image of the index, and how similar it is to the query."""

    path: str
    """Its file."""
    similarity: float
    """Cosine similarity of the two vectors, in [-1, 1]; 1 for the same image."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The images of an index that are most similar to one image, the query."""

    path: str
    """The query."""
    similar: tuple[SimilarImage, ...]
    """Images of the index, most similar first; none where the query cannot be read."""
    problem: str | None = None
    """The reason why the query cannot be read, or that the network's values for it overflow."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON; `problem` only where there is one."""
        similar = [{"path": each.path, "similarity": each.similarity} for each in self.similar]
        return {"path": self.path, "similar": similar} | ({"problem": self.problem} if self.problem else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorIndex:
    """A file of vectors of images, with the record of how they were made."""

    path: Path
    """The file, as `embed_into` writes it."""
    model: Mapping[str, Any] = field(repr=False)
    """The Classifier: a digest of its weights, preprocessing and more."""
    classifier: str
    """The place of the Classifier; empty where it was only in memory."""
    layer: str
    """The layer of the vectors."""
    precision: str
    """The precision of their computation: `fp32`, `bf16` or `int8`."""
    images: int
    """N, including images that could not be read."""

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The index in a file; raises BadData where it is none, MissingExtra for Parquet without pyarrow."""
        path = demand_path(path)
        if not path.is_file():
            raise BadData(f"{path}: no such file; vggkit embed MODEL PLACE --out {path} makes one")
        about = read_about(path)
        try:
            if about is None or about["results"] != "vectors":
                raise KeyError("results")
            return cls(
                path=path,
                model=dict(about["model"]),
                classifier=str(about["classifier"]),
                layer=str(about["layer"]),
                precision=str(about["precision"]),
                images=count_rows(about),
            )
        except (KeyError, TypeError, ValueError) as problem:
            raise BadData(
                f"{path}: holds no vectors that vggkit embed wrote, or what it wrote beside them is gone"
            ) from problem

    def search(self, vectors: NDArray[np.float32], *, top: int = 10) -> tuple[tuple[SimilarImage, ...], ...]:
        """The nearest images to each of the vectors (Q, F), nearest first, of equally near ones the first.

        Args:
            vectors: As those of the file were computed.
            top: How many; fewer where the file has fewer.

        The file is read through once, a part of it in memory. Raises BadData where it is broken, BadInput, and
        MissingExtra without FAISS.
        """
        top = demand_count("top", top)
        faiss = _import_faiss()
        queries = _normalize(vectors)
        scores = np.empty((len(queries), 0), np.float32)
        numbers = np.empty((len(queries), 0), np.int64)
        first = 0
        paths: dict[int, str] = {}
        rows = max(1, CHUNK_BYTES // (4 * queries.shape[1]))
        for names, held in read_vectors(self.path, name="path", vector="vector", rows=rows):
            if held.shape[1] != queries.shape[1]:
                raise BadInput(f"{self.path}: has vectors of {held.shape[1]} numbers, got {queries.shape[1]}")
            readable = np.flatnonzero(~np.isnan(held).any(axis=1))
            if len(readable):
                near, place = faiss.knn(
                    queries, _normalize(held[readable]), min(top, len(readable)), faiss.METRIC_INNER_PRODUCT
                )
                scores = np.concatenate([scores, near], axis=1)
                numbers = np.concatenate([numbers, first + readable[place]], axis=1)
                # By nearness, then by number.
                order = np.lexsort((numbers, -scores), axis=1)[:, :top]
                scores = np.take_along_axis(scores, order, axis=1)
                numbers = np.take_along_axis(numbers, order, axis=1)
                nearest = set(numbers.ravel().tolist())
                paths = {number: paths[number] if number < first else names[number - first] for number in nearest}
            first += len(held)
        return tuple(
            tuple(
                SimilarImage(paths[number], float(np.clip(score, -1, 1)))
                for number, score in zip(places.tolist(), nearness.tolist(), strict=True)
            )
            for places, nearness in zip(numbers, scores, strict=True)
        )


def _normalize(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row of length 1; a row of zeros stays one, and is as near to all."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.ascontiguousarray(rows / np.where(lengths > 0, lengths, 1), np.float32)


def _import_faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as absent:
        raise MissingExtra.of("faiss-cpu", "searching", "search") from absent
    module: ModuleType = faiss
    return module
