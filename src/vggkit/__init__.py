"""VGG, complete, in PyTorch: `import vggkit as vk`.

The public names are listed in the stub beside this file, `__init__.pyi`, and are loaded when they are first
used, so that importing vggkit is instant and imports no torch.
"""

import lazy_loader

from vggkit._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
