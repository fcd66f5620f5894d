"""Named recipes, each with the sources of its values. No torch here.

A preset sets the defaults of a recipe, and may name a network for it: options stated with it take precedence.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vggkit.errors import UnknownName
from vggkit.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Preset:
    """A recipe and what it is for."""

    recipe: Recipe
    """The recipe; its open options are resolved as for any other."""
    about: str
    """A sentence on what it is for, and on what it differs in from its source."""
    network: Mapping[str, str] = field(default_factory=dict)
    """Options of the network by name, such as `blocks`, that it was made for."""

    def choose_network(self, given: Collection[str]) -> dict[str, Any]:
        """The options of its network that are left, where options of these names are given.

        A network that is named is used, with the preset's initialization; loaded weights bring their own network.

        >>> find_preset("small-images").choose_network(["model"])
        {'initialization': 'dirac'}
        """
        if "weights" in given:
            return {}
        named = any(name in given for name in NAMING)
        return {name: value for name, value in self.network.items() if not named or name == "initialization"}


NAMING: Final = ("model", "blocks", "until", "head")
"""Options that name another network than a preset's own."""
PRESETS: Final[Mapping[str, Preset]] = {
    "quick": Preset(
        Recipe(
            epochs=3,
            schedule="one-cycle",  # Smith and Topin 2018, arXiv 1708.07120: most effective for few epochs
        ),
        "a first result in minutes: the head alone with loaded weights, else three epochs",
    ),
    "small-images": Preset(
        Recipe(
            # Jordan 2024, arXiv 2404.00498 (airbench94), and its later form with Muon, where nothing else is said.
            # What each is worth here: benchmarks/cifar10_ablation.md.
            trainable="all",
            epochs=20,  # there 8 to 10 of a network with more operations
            batch_size=1000,  # there 1024 and 2000
            optimizer="muon",
            learning_rate=0.025,  # there 0.24 in units of a kernel's own size, which is this
            momentum=0.6,
            weight_decay=1.0,  # there kernels are scaled back after each step; decay keeps their size too
            schedule="linear",
            warmup_epochs=0.0,
            clip_norm=0.0,
            label_smoothing=0.2,
            whitening=True,  # section 3.2
            batch_norm_momentum=0.4,
            augmentation="shift",
            shift_pixels=2,
            mirror="alternating",  # section 3.6
        ),
        "tens of thousands of images of 32 to 96 pixels, from random weights: a slim chain of 7 convolutions, the "
        "first of them whitening, by Muon in 20 epochs; --mirror none for letters and digits, --model for another "
        "network; for fewer images --batch-size 100 --learning-rate 0.008 --epochs 30",
        # Fewer operations than VGG11 at 32 pixels, 81 against 153 million multiply-adds, and more accurate.
        network={
            "model": "vgg11_bn",
            "blocks": "32/64,64/256,256/256,256",
            "head": "pool",
            "initialization": "dirac",  # section 3.3
        },
    ),
    "modern": Preset(
        Recipe(
            trainable="all",
            # ConvNeXt: Liu and others 2022, arXiv 2201.03545, table 5. Newer torchvision: Vryniotis 2021.
            epochs=100,  # ConvNeXt has 300, and 4096 images a step
            optimizer="adamw",  # ConvNeXt
            weight_decay=0.05,  # ConvNeXt
            schedule="cosine",  # ConvNeXt
            warmup_epochs=5.0,  # newer torchvision; ConvNeXt has 20 of 300
            label_smoothing=0.1,  # both
            augmentation="photo",
            mirror="random",
            rand_augment=9,  # ConvNeXt
            random_erasing=0.1,  # newer torchvision; ConvNeXt has 0.25
            mixup=0.2,  # newer torchvision; ConvNeXt has 0.8
            cutmix=1.0,  # both
            ema_decay=0.999,  # ConvNeXt has 0.9999 over far more steps
        ),
        "thousands of photos from random weights, in hours: AdamW, cosine, mixup, CutMix, RandAugment, "
        "an average of the weights",
    ),
    "paper": Preset(
        Recipe(
            # Simonyan and Zisserman 2014, arXiv 1409.1556, section 3.1.
            trainable="all",
            epochs=74,
            batch_size=32,  # 256 a step
            accumulate=8,
            optimizer="sgd",
            momentum=0.9,
            weight_decay=5e-4,
            learning_rate=0.01,
            schedule="step",  # "decreased 3 times", where the accuracy stood still; here after 19, 38 and 57 epochs
            step_epochs=19,
            warmup_epochs=0.0,
            clip_norm=0.0,
            augmentation="photo",
            mirror="random",
        ),
        "the paper's own: SGD, 256 images a step, rate 0.01 divided by 10 three times, 74 epochs; its colour "
        "shift is left out, and momentum is Nesterov's",
    ),
    "torchvision": Preset(
        Recipe(
            # References of torchvision, references/classification: 8 GPUs with 32 images each.
            trainable="all",
            epochs=90,
            batch_size=32,  # the batch size of batch norm there too
            accumulate=8,
            optimizer="sgd",
            momentum=0.9,
            weight_decay=1e-4,
            # learning_rate: 0.1 with batch norm and 0.01 without there; it follows the network here.
            schedule="step",
            step_epochs=30,
            warmup_epochs=0.0,
            clip_norm=0.0,
            augmentation="photo",
            mirror="random",
        ),
        "what torchvision's published weights were trained with: 90 epochs, divided by 10 every 30; its rate was "
        "0.01, and 0.1 with batch norm, and is chosen by the network here, momentum is Nesterov's",
    ),
}
"""By name, the quickest first."""


def find_preset(name: str) -> Preset:
    """The preset of that name; raises UnknownName."""
    if name not in PRESETS:
        raise UnknownName.of("preset", name, PRESETS)
    return PRESETS[name]
