"""Style transfer from coarse to fine beside plain L-BFGS at full size: time, and the loss of the result.

Content is scikit-learn's china.jpg and style its flower.jpg, as squares; the trunk is the VGG-19 to relu3_4 of the
shared data, or the whole one with random weights where that is not there. Plain is torch's L-BFGS with its strong
Wolfe line search at full size from the content, on the same loss in fp32. Each result's loss is computed in fp32 at
full size: content and balanced style; beside it the total variation, which both minimise, too. Writes
style.md beside itself, and the images.
"""

import argparse
import datetime
import platform
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import vggkit as vk
from vggkit.features.style_loss import StyleLoss, choose_style_layers
from vggkit.features.style_transfer import (
    LOSS_SCALE,
    MARGIN,
    STYLE_BALANCE,
    crop_margin,
    extend,
    measure_variation,
)
from vggkit.hardware import computes_bf16, describe_machine
from vggkit.weights.model import Model
from vggkit.weights.open_model import open_model

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
RANGE_PENALTY = 1000.0
"""Weight of the squared distance from [0, 1] in plain steps: with less, clipping the result undoes much of it."""
WEIGHTS = SHARED / "weights" / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth"


def read_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """The middle of an image at this size."""
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    image = Image.fromarray(pixels[top : top + side, left : left + side])
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(pixels.transpose(2, 0, 1).copy())[None].float() / 255


def measure_loss(loss: StyleLoss, result: np.ndarray) -> tuple[float, float, float]:
    with torch.no_grad():
        content, style = (float(each) for each in loss(to_tensor(result)))
    return content + STYLE_BALANCE * style, content, style


def run_plain(loss: StyleLoss, content: torch.Tensor, style: torch.Tensor, steps: int) -> tuple[np.ndarray, int]:
    """The result of so many L-BFGS iterations, and the evaluations that they took."""
    start = extend(content)
    loss.refer(start, [style], [1.0])
    values = start.clone().contiguous().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [values],
        max_iter=steps,
        max_eval=10 * steps,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    evaluations = 0

    def close() -> torch.Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        content_loss, style_loss = loss(values)
        outside = (values - values.detach().clamp(0, 1)).square().mean()
        total = content_loss + STYLE_BALANCE * style_loss + measure_variation(values) + RANGE_PENALTY * outside
        (LOSS_SCALE * total).backward()
        return LOSS_SCALE * total.detach()

    optimizer.step(close)
    found = crop_margin(values.detach()).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    return (found * 255).round().astype(np.uint8), evaluations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=132)
    parser.add_argument("--plain-steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--content", type=Path, help="another content image than china.jpg")
    parser.add_argument("--style", type=Path, help="another style image than flower.jpg")
    parser.add_argument("--images", type=Path, default=Path("style-benchmark"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    trunk: Model = open_model(WEIGHTS if WEIGHTS.is_file() else vk.VGG("vgg19"))
    layers = choose_style_layers(trunk.configuration)
    china, flower = load_sample_images().images
    if options.content:
        china = np.asarray(Image.open(options.content).convert("RGB"))
    if options.style:
        flower = np.asarray(Image.open(options.style).convert("RGB"))
    photo, painting = read_square(china, options.size), read_square(flower, options.size)
    names = [
        path.name if path else name
        for path, name in zip((options.content, options.style), ("china.jpg", "flower.jpg"), strict=True)
    ]
    options.images.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu")
    plain_loss = StyleLoss(trunk.network, trunk.preprocessing, layers, precision="fp32", device=device)
    judge = StyleLoss(trunk.network, trunk.preprocessing, layers, precision="fp32", device=device)
    judge.refer(to_tensor(photo), [to_tensor(painting)], [1.0])
    rows = []

    def note(name: str, result: np.ndarray, seconds: float, evaluations: int) -> None:
        Image.fromarray(result).save(options.images / f"{name.replace(' ', '-')}.png")
        total, content, style = measure_loss(judge, result)
        rows.append(
            f"| {name} | {evaluations} | {seconds:.1f} | {total:.4f} | {content:.4f} | {style:.5f} | "
            f"{float(measure_variation(to_tensor(result))):.5f} |"
        )
        print(rows[-1], flush=True)

    for precision in ("fp32", "bf16") if computes_bf16(device) else ("fp32",):
        started = time.perf_counter()
        found = vk.style(
            photo, painting, trunk=trunk, size=options.size, steps=options.steps, precision=precision, device="cpu"
        )
        note(f"coarse to fine {precision}", found.pixels, time.perf_counter() - started, len(found.steps))
    started = time.perf_counter()
    result, evaluations = run_plain(plain_loss, to_tensor(photo), to_tensor(painting), options.plain_steps)
    note(f"{options.plain_steps} plain steps fp32", result, time.perf_counter() - started, evaluations)
    machine = describe_machine(device)
    lines = [
        "# Style transfer",
        "",
        f"{names[0]} with the style of {names[1]}, {options.size}×{options.size} pixels,",
        f"{options.threads} threads; trunk {trunk.configuration.model} to {trunk.configuration.trunk[-1].name},",
        f"style {', '.join(layers.style)}, content {layers.content}, strength 1.",
        "Plain steps are iterations of torch's L-BFGS with its strong Wolfe line search at full size,",
        f"with the same margin of {MARGIN} pixels.",
        "Seconds of one run each; the loss of the result in fp32 at full size.",
        "",
        "| run | evaluations | seconds | loss | content | style | variation |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"{machine['device']}; {machine['system']}; torch {machine['torch']}, Python {platform.python_version()}; "
        f"n = 1; {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}.",
        "",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
