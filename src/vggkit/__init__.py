"""VGG, complete, in PyTorch: `import vggkit as vk`.

The public names are listed in the stub beside this file, `__init__.pyi`, and are loaded when they are first
used, so that importing vggkit is instant and imports no torch.
"""

import lazy_loader

from vggkit._version import __version__ as __version__

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_RENAMED = {
    "open_pictures": "open_dataset",
    "Picture": "ImageSample",
    "PictureSet": "ImageDataset",
    "Answers": "Predictions",
    "compare_answers": "compare_predictions",
    "Found": "SearchResult",
    "Neighbour": "SimilarImage",
}
"""Public names that changed, and what they are now; the earlier ones still work, with a DeprecationWarning."""


def __getattr__(name: str) -> object:
    """A public name; `help` of a record shows the texts under its fields, too."""
    if name in _RENAMED:
        import warnings

        warnings.warn(f"vggkit.{name} is called vggkit.{_RENAMED[name]} now", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name == "sklearn":  # a module with a package of its own, which only its users need to have
        import importlib

        return importlib.import_module("vggkit.sklearn")
    value = _load(name)
    if isinstance(value, type) and hasattr(value, "__dataclass_fields__"):
        from vggkit.field_texts import document_fields

        document_fields(value)
    return value
