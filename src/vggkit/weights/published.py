"""Published weights as data: publisher, address, accuracy and preprocessing. No torch here.

Sources: `torchvision.models.VGG16_Weights` and its siblings (addresses, digits of the digest,
accuracy, sizes, preprocessing; torchvision 0.29), timm's `vgg16.tv_in1k` and its siblings (the hub's
repositories; timm 1.0.31). Accuracy is what they publish; it was not measured here.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from vggkit.errors import UnknownName
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import find_configuration

Tag = Literal["imagenet", "features"]
"""imagenet: a whole classifier. features: the trunk alone, of use with `until=` or a pool head."""

LICENCE: Final = "BSD-3-Clause"
TERMS: Final = (
    "torchvision's licence; it warns that weights may carry the terms of the data they were trained on, "
    "and ImageNet's images are for non-commercial research and education"
)
SYNSETS_DIGEST: Final = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""SHA-256 of WordNet's numbers of ImageNet's classes, sorted, a line each; their order is that of the logits."""
RECIPE: Final = "https://github.com/pytorch/vision/tree/main/references/classification#alexnet-and-vgg"


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """Weights on a public host."""

    model: str
    """The network, a name of `list_models()`."""
    tag: Tag
    """Which of the network's weights."""
    url: str
    """Their address on torchvision's host; the file's name is its last part."""
    digest_prefix: str
    """First hexadecimal digits of the file's SHA-256; all that its publisher states."""
    hub_repository: str | None
    """The same values on the Hugging Face hub, `model.safetensors` in timm's dialect; None: not there."""
    top1: float | None
    """Accuracy in [0, 1] on ImageNet's 50,000 validation images, as published; None: cannot classify."""
    top5: float | None
    """The same for the best five classes."""
    size_mib: float
    """Size of the file as published, in units of 2**20 bytes, rounded to a thousandth."""
    licence: str = LICENCE
    """SPDX name of the licence they are published under."""
    terms: str = TERMS
    """Further terms of use."""
    preprocessing: Preprocessing = Preprocessing()  # noqa: RUF009 (frozen)
    """The preprocessing of their images."""
    recipe: str = RECIPE
    """The description of their training."""

    @property
    def file(self) -> str:
        """The file's name on torchvision's host, in torch hub's cache and in `VGGKIT_HOME`."""
        return urlsplit(self.url).path.rsplit("/", 1)[-1]

    @property
    def offline_file(self) -> str:
        """Another name under which a file that was put into `VGGKIT_HOME` is found."""
        return f"{self.model}.safetensors" if self.tag == "imagenet" else f"{self.model}-{self.tag}.safetensors"

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return {
            "url": self.url,
            "digest_prefix": self.digest_prefix,
            "hub_repository": self.hub_repository,
            "top1": self.top1,
            "top5": self.top5,
            "size_mib": self.size_mib,
            "licence": self.licence,
            "terms": self.terms,
            "preprocessing": self.preprocessing.to_dict(),
            "source": self.recipe,
        }


def _table() -> tuple[PublishedWeights, ...]:
    rows = (
        ("vgg11", "8a719046", 0.69020, 0.88628, 506.84),
        ("vgg11_bn", "6002323d", 0.70370, 0.89810, 506.881),
        ("vgg13", "19584684", 0.69928, 0.89246, 507.545),
        ("vgg13_bn", "abd245e5", 0.71586, 0.90374, 507.59),
        ("vgg16", "397923af", 0.71592, 0.90382, 527.796),
        ("vgg16_bn", "6c64b313", 0.73360, 0.91516, 527.866),
        ("vgg19", "dcbb9e9d", 0.72376, 0.90876, 548.051),
        ("vgg19_bn", "c79401a0", 0.74218, 0.91842, 548.143),
    )
    whole = [
        PublishedWeights(
            model=model,
            tag="imagenet",
            url=f"https://download.pytorch.org/models/{model}-{digits}.pth",
            digest_prefix=digits,
            hub_repository=f"timm/{model}.tv_in1k",
            top1=top1,
            top5=top5,
            size_mib=size_mib,
        )
        for model, digits, top1, top5, size_mib in rows
    ]
    # Trained as in the paper and converted for SSD; the classifier's tensors in this file are NaN.
    features = PublishedWeights(
        model="vgg16",
        tag="features",
        url="https://download.pytorch.org/models/vgg16_features-amdegroot-88682ab5.pth",
        digest_prefix="88682ab5",
        hub_repository=None,
        top1=None,
        top5=None,
        size_mib=527.802,
        preprocessing=Preprocessing(mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255)),
        recipe="https://github.com/amdegroot/ssd.pytorch#training-ssd",
    )
    return (*whole, features)


PUBLISHED: tuple[PublishedWeights, ...] = _table()


def find_published(model: str, *, tag: Tag = "imagenet") -> PublishedWeights:
    """The record of a model's weights; raises UnknownName where none are published."""
    if model != "custom":
        find_configuration(model)
    for record in PUBLISHED:
        if (record.model, record.tag) == (model, tag):
            return record
    raise UnknownName.of(f"model with published {tag} weights", model, [r.model for r in PUBLISHED if r.tag == tag])


def list_published(model: str) -> list[PublishedWeights]:
    """Every record of a model, none for most networks that are not torchvision's."""
    return [record for record in PUBLISHED if record.model == model]


def imagenet_labels() -> tuple[str, ...]:
    """ImageNet's 1000 classes in the order of the published weights' logits, as torchvision words them."""
    text = files("vggkit.weights").joinpath("imagenet_labels.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def name_imagenet_classes(like: Sequence[str]) -> tuple[str, ...]:
    """ImageNet's 1000 classes in the order of the published weights' logits, in the words of these labels.

    These may be WordNet's numbers, such as n01440764, as the folders of the data set are named.
    """
    numbers = tuple(sorted(like))
    if hashlib.sha256("\n".join(numbers).encode(errors="surrogateescape")).hexdigest() == SYNSETS_DIGEST:
        return numbers
    return imagenet_labels()
