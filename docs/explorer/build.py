"""Writes docs/explore.html: one file of the parts beside this script, the networks and a small trained VGG.

`python docs/explorer/build.py` puts the file together; `--train` first trains the small network again, which takes
a minute, and writes `small-network.json`.
"""

import argparse
import base64
import json
from pathlib import Path
from typing import Any

import vggkit as vk

HERE = Path(__file__).parent
PAGE = HERE.parent / "explore.html"
SCRIPTS = ("numbers.js", "code.js", "drawing.js", "network.js", "app.js", "value.js", "maps.js")
HEADS = ("fc", "dense", "pool")
SIDE = 32
"""Pixels of the small network's digits: four for each of the data set's."""


def describe_networks() -> dict[str, Any]:
    """What the page knows of each network: its trunk and what each head reads. Everything else it computes."""
    described = {}
    for name in vk.list_models():
        heads = {}
        for head in HEADS:
            network = vk.configure(name, head=head)
            heads[head] = {"grid": network.grid, "hidden": list(network.hidden)}
        trunk = [[layer.name, layer.kind, layer.kernel, layer.out_channels] for layer in vk.configure(name).trunk]
        described[name] = {"trunk": trunk, "heads": heads}
    return described


def assemble() -> str:
    """The text of the page."""
    parts = {
        "style": (HERE / "style.css").read_text(encoding="utf-8").rstrip(),
        "networks": json.dumps(describe_networks(), separators=(",", ":")),
        "small-network": (HERE / "small-network.json").read_text(encoding="utf-8").strip(),
        "script": "\n".join(
            (HERE / name).read_text(encoding="utf-8").replace('"use strict";\n\n', "") for name in SCRIPTS
        ).rstrip(),
    }
    text = (HERE / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    return text


def prepare_digits(images: list[Any]) -> Any:
    """Pixels (N, 1, SIDE, SIDE) in [0, 1] of digits of 8×8 pixels, enlarged bilinearly as the page does."""
    import numpy as np
    import torch
    from torch.nn.functional import interpolate

    pixels = np.stack([image.pixels for image in images]).astype(np.float32) / 255
    pixels = torch.tensor(pixels if pixels.ndim == 3 else pixels[..., 0])
    return interpolate(pixels[:, None], size=SIDE, mode="bilinear", align_corners=False)


def train() -> dict[str, Any]:
    """Train the small network on scikit-learn's digits, and store it in bytes."""
    import torch
    from torch.nn.functional import affine_grid, cross_entropy, grid_sample

    torch.manual_seed(0)
    digits = vk.open_dataset("digits")
    images = {name: list(digits.split(name)) for name in ("train", "test")}
    pixels = {name: prepare_digits(each) for name, each in images.items()}
    labels = {name: torch.tensor([int(image.label) for image in each]) for name, each in images.items()}
    mean, std = 0.3, 0.36
    configuration = vk.configure("vgg13_bn", blocks="8,8/16,16/32,32", num_classes=10, in_channels=1, head="pool")
    net, epochs, batch = vk.VGG(configuration), 40, 32
    steps = epochs * (len(labels["train"]) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for epoch in range(epochs):
        for chosen in torch.randperm(len(labels["train"]))[: len(labels["train"]) // batch * batch].split(batch):
            theta = torch.zeros(batch, 2, 3)
            theta[:, 0, 0] = theta[:, 1, 1] = 1
            theta += torch.randn(batch, 2, 3) * torch.tensor([[0.1, 0.08, 0.08], [0.08, 0.1, 0.08]])
            moved = grid_sample(
                pixels["train"][chosen],
                affine_grid(theta, [batch, 1, SIDE, SIDE], align_corners=False),
                align_corners=False,
            )
            loss = cross_entropy(net((moved - mean) / std), labels["train"][chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {float(loss):.3f}", flush=True)
    stored = store(net.eval(), mean, std)
    restored = restore(stored)
    with torch.inference_mode():
        correct = restored((pixels["test"] - mean) / std).argmax(1) == labels["test"]
    evaluated = f"{int(correct.sum())} of {len(correct)} test digits"
    stored["text"] = (
        f"Six convolutions of 8, 16 and 32 channels, trained on {len(labels['train']):,} of scikit-learn's "
        f"handwritten digits: {sum(p.numel() for p in restored.parameters()):,} parameters in a byte each. "
        f"It names {evaluated} correctly. Draw a digit, or show it a photo, and look at what each layer finds."
    )
    shown = {int(image.label): image for image in images["test"][:60]}
    stored["examples"] = [
        [
            label,
            "".join("0123456789abcdefg"[round(value / 255 * 16)] for value in image.pixels.reshape(64, -1)[:, 0]),
        ]
        for label, image in sorted(shown.items())
    ]
    return stored


def store(net: Any, mean: float, std: float) -> dict[str, Any]:
    """The network with its norms folded into the convolutions, as bytes with a scale for each output channel."""
    from torch import nn

    layers, modules = [], list(net.features)
    for record, module, after in zip(net.configuration.trunk, modules, [*modules[1:], None], strict=True):
        if record.kind == "conv":
            factor = after.weight / (after.running_var + after.eps).sqrt()
            weights = module.weight * factor[:, None, None, None]
            bias = (module.bias - after.running_mean) * factor + after.bias
            layers.append(
                {"name": record.name.replace("conv", "relu"), "kind": "conv", **write_codes(weights, bias)}
            )
        elif record.kind == "pool":
            layers.append({"name": record.name, "kind": "pool"})
    [last] = [module for module in net.classifier if isinstance(module, nn.Linear)]
    layers.append({"name": "fc", "kind": "fc", **write_codes(last.weight, last.bias)})
    return {"side": SIDE, "mean": mean, "std": std, "layers": layers}


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


def restore(stored: dict[str, Any]) -> Any:
    """The stored network as a VGG without batch norm, for comparison with the page."""
    import numpy as np
    import torch

    net = vk.VGG(vk.configure("vgg13", blocks="8,8/16,16/32,32", num_classes=10, in_channels=1, head="pool")).eval()
    weighted = [layer for layer in stored["layers"] if layer["kind"] != "pool"]
    modules = [module for module in net.modules() if hasattr(module, "weight") and module.weight is not None]
    for layer, module in zip(weighted, modules, strict=True):
        codes = (
            np.frombuffer(base64.b64decode(layer["codes"]), np.int8).reshape(module.weight.shape).astype(np.float32)
        )
        scales = np.asarray(layer["scales"], np.float32).reshape(-1, *[1] * (codes.ndim - 1))
        with torch.no_grad():
            module.weight.copy_(torch.tensor(codes * scales))
            module.bias.copy_(torch.tensor(layer["bias"]))
    return net


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", action="store_true", help="train the small network again")
    if parser.parse_args().train:
        (HERE / "small-network.json").write_text(json.dumps(train(), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(assemble(), encoding="utf-8", newline="\n")
    print(f"{PAGE}: {PAGE.stat().st_size:,} bytes")
