"""Writes docs/explore.html: one file of the parts beside this script, the networks and a small trained VGG.

The small network is `digits`, the one that comes with the package, with its batch norms folded and its weights in a
byte each. `python docs/explorer/build.py` puts the file together.
"""

import base64
import json
from pathlib import Path
from typing import Any

import vggkit as vk

HERE = Path(__file__).parent
PAGE = HERE.parent / "explore.html"
SCRIPTS = (
    "numbers.js",
    "code.js",
    "drawing.js",
    "network.js",
    "app.js",
    "value.js",
    "maps.js",
)
HEADS = ("fc", "dense", "pool")


def describe_networks() -> dict[str, Any]:
    """What the page knows of each network: its trunk and what each head reads. Everything else it computes."""
    described = {}
    for name in vk.list_models():
        heads = {}
        for head in HEADS:
            network = vk.configure(name, head=head)
            heads[head] = {"grid": network.grid, "hidden": list(network.hidden)}
        trunk = [
            [layer.name, layer.kind, layer.kernel, layer.out_channels]
            for layer in vk.configure(name).trunk
        ]
        described[name] = {"trunk": trunk, "heads": heads}
    return described


def assemble() -> str:
    """The text of the page."""
    parts = {
        "style": (HERE / "style.css").read_text(encoding="utf-8").rstrip(),
        "networks": json.dumps(describe_networks(), separators=(",", ":")),
        "small-network": json.dumps(
            store(vk.load("digits")), separators=(",", ":")
        ),
        "script": "\n".join(
            (HERE / name)
            .read_text(encoding="utf-8")
            .replace('"use strict";\n\n', "")
            for name in SCRIPTS
        ).rstrip(),
    }
    text = (HERE / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    return text


def store(classifier: vk.Classifier) -> dict[str, Any]:
    """The network with its norms folded into the convolutions, in bytes with a scale for each output."""
    from torch import nn

    net, preprocessing = classifier.network, classifier.preprocessing
    layers, modules = [], list(net.features)
    for record, module, after in zip(
        net.configuration.trunk, modules, [*modules[1:], None], strict=True
    ):
        if record.kind == "conv":
            factor = after.weight / (after.running_var + after.eps).sqrt()
            weights = module.weight * factor[:, None, None, None]
            bias = (module.bias - after.running_mean) * factor + after.bias
            layers.append(
                {
                    "name": record.name.replace("conv", "relu"),
                    "kind": "conv",
                    **write_codes(weights, bias),
                }
            )
        elif record.kind == "pool":
            layers.append({"name": record.name, "kind": "pool"})
    [last] = [module for module in net.classifier if isinstance(module, nn.Linear)]
    layers.append(
        {"name": "fc", "kind": "fc", **write_codes(last.weight, last.bias)}
    )
    return {
        "side": preprocessing.crop_pixels,
        "mean": preprocessing.mean[0],
        "std": preprocessing.std[0],
        "temperature": classifier.card.temperature,
        "layers": layers,
        "examples": list_examples(),
    }


def list_examples() -> list[tuple[str, str]]:
    """A digit of each class from the test split: its label, and its 8×8 values from 0 to 16 as `0` to `g`."""
    shown = {
        image.label: image
        for image in list(vk.open_dataset("digits").split("test"))[:60]
    }
    return [
        (
            label,
            "".join(
                "0123456789abcdefg"[round(value / 255 * 16)]
                for value in image.pixels.reshape(64, -1)[:, 0]
            ),
        )
        for label, image in sorted(shown.items())
    ]


def write_codes(weights: Any, bias: Any) -> dict[str, Any]:
    """Weights as text: base64 of int8 codes, and the scale of each output."""
    import torch

    flat = weights.detach().flatten(1)
    scales = flat.abs().amax(1).clamp(min=1e-8) / 127
    codes = torch.round(flat / scales[:, None]).to(torch.int8).numpy().tobytes()
    return {
        "out": len(flat),
        "codes": base64.b64encode(codes).decode(),
        "scales": [float(f"{scale:.6g}") for scale in scales],
        "bias": [float(f"{value:.6g}") for value in bias.detach()],
    }


if __name__ == "__main__":
    PAGE.write_text(assemble(), encoding="utf-8", newline="\n")
    print(f"{PAGE}: {PAGE.stat().st_size:,} bytes")
