"""`torch.hub.load(repository, "vgg11", weights="imagenet")`: the networks of vggkit, from a plain clone.

Only the packages in `dependencies` need to be installed. The names are those of
`vggkit models`; each returns a `torch.nn.Module` that computes logits of images.
"""

import sys as _sys
from collections.abc import Callable as _Callable
from pathlib import Path as _Path

_SOURCE = str(_Path(__file__).resolve().parent / "src")
_sys.path.insert(0, _SOURCE)
try:
    import vggkit as _vggkit
    from vggkit.classifier import Classifier as _Classifier
    from vggkit.models.configuration import Head as _Head
finally:
    _sys.path.remove(_SOURCE)  # later imports are found through the package's own path

dependencies = ["lazy_loader", "torch", "numpy", "PIL", "safetensors"]


def _entry(model: str) -> _Callable[..., _vggkit.VGG]:
    def build(
        weights: str | _Path | None = None,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        head: _Head | None = None,
        dropout: float | None = None,
        until: str | None = None,
    ) -> _vggkit.VGG:
        configuration = _vggkit.configure(
            model, num_classes=num_classes, in_channels=in_channels, head=head, dropout=dropout, until=until
        )
        if weights is None:
            return _vggkit.VGG(configuration)
        labels = [str(index) for index in range(num_classes)]
        return _Classifier.create(configuration, labels=labels, weights=weights).network

    build.__name__ = build.__qualname__ = model
    build.__doc__ = f"""{model} of Simonyan and Zisserman, as a torch.nn.Module in training mode.

    Args:
        weights: None (random), 'imagenet' (the published ones, downloaded to VGGKIT_HOME), or a file of
            a VGG's weights. The last layer is initialised again if the number of classes differs.
        num_classes: Length of the logits.
        in_channels: 3, or 1 for grey images; the first filters of `weights` are adapted.
        head: fc (the paper's), dense (the same as convolutions) or pool.
        dropout: Dropout probability in [0, 1).
        until: Cut the trunk after this layer, such as relu3_4, and put a pool head on it.

    Images are RGB in [0, 1], minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    """
    return build


vgg11 = _entry("vgg11")
vgg11_lrn = _entry("vgg11_lrn")
vgg11_bn = _entry("vgg11_bn")
vgg13 = _entry("vgg13")
vgg13_bn = _entry("vgg13_bn")
vgg16_c = _entry("vgg16_c")
vgg16 = _entry("vgg16")
vgg16_bn = _entry("vgg16_bn")
vgg19 = _entry("vgg19")
vgg19_bn = _entry("vgg19_bn")
