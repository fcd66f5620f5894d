"""Where pictures come from: `open_pictures` for labelled ones, `iterate_pictures` for ones to ask about."""

from vggkit.images.sources.opening import (
    count_pictures,
    find_pictures,
    gather_pictures,
    is_streamed,
    iterate_pictures,
    list_pictures,
    open_pictures,
)
from vggkit.images.sources.tables import Columns

__all__ = [
    "Columns",
    "count_pictures",
    "find_pictures",
    "gather_pictures",
    "is_streamed",
    "iterate_pictures",
    "list_pictures",
    "open_pictures",
]
