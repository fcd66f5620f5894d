"""Suppresses Pillow's warnings about broken files while an image is decoded, in that thread alone."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast


class _WhileDecoding(threading.local):
    """In a warnings filter the pattern of modules: those of Pillow, and only in threads that decode."""

    active = False
    pattern = r"PIL\."
    """As in a compiled pattern: scikit-learn reads it to pass filters to its own processes."""

    def match(self, module: str) -> bool:
        return self.active and module.startswith("PIL.")


_HERE: Final = _WhileDecoding()
_FILTER: Final[Any] = ("ignore", None, Warning, _HERE, 0)
_FILTERING: Final = threading.Lock()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Pillow's warnings neither show nor raise here; other threads, and Pillow elsewhere, keep theirs.

    `warnings.catch_warnings` swaps filters for all threads, and two that overlap leave wrong ones behind.
    """
    with _FILTERING:
        filters = cast("list[Any]", warnings.filters)
        if not filters or filters[0] is not _FILTER:  # it is needed again after others have set filters
            if _FILTER in filters:
                filters.remove(_FILTER)
            filters.insert(0, _FILTER)
    _HERE.active = True
    try:
        yield
    finally:
        _HERE.active = False
