"""Where pictures come from: `open_pictures` for labelled ones, `iterate_pictures` for ones to ask about."""

from vggkit.images.sources.opening import is_streamed, iterate_pictures, list_pictures, open_pictures
from vggkit.images.sources.tables import Columns

__all__ = ["Columns", "is_streamed", "iterate_pictures", "list_pictures", "open_pictures"]
