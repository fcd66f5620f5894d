"""The verb style."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vggkit.cli.printing import print_json
from vggkit.errors import BadInput
from vggkit.files import demand_apart, name_apart
from vggkit.reports.progress import ProgressLine
from vggkit.reports.terminal import print_line

if TYPE_CHECKING:
    from vggkit.images.decoding import Pixels


def style(
    content: str,
    styles: tuple[str, ...],
    /,
    *,
    out: Path,
    trunk: str = "vgg19",
    style_weights: tuple[float, ...] = (),
    strength: float = 1.0,
    keep_colours: Literal["none", "luminance", "matching"] = "none",
    size: int = 512,
    style_scale: float = 1.0,
    optimizer: Literal["lbfgs", "adam"] = "lbfgs",
    steps: int = 132,
    start: Literal["content", "noise"] = "content",
    smoothness: float = 1.0,
    image_every: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Make an image with the content of one image in the style of others (Gatys, Ecker and Bethge 2016).

    The pixels are optimised from coarse to fine: a small image first, which is then enlarged.

    Args:
        content: The image whose content is kept.
        styles: The images whose style is taken, one or several.
        out: The image to write (.png, .jpg or .webp).
        trunk: The VGG that compares: a model's name such as vgg19 (the published ImageNet weights), a classifier's
            file, or a file of weights, also of a part of a network. relu1_1, relu2_1 … relu5_1 are compared for
            style, and relu4_2 for content, as far as it has them.
        style_weights: Weight of each style image; without it all are equal.
        strength: Weight of the style beside the content; 1: balanced.
        keep_colours: none: the colours are the style's. luminance: only luminance is transferred, the colours are
            exactly the content's. matching: the style images are given the content's mean and covariance of colours
            first.
        size: Long side of the result in pixels.
        style_scale: Size of the style images relative to the result; smaller makes finer strokes.
        optimizer: lbfgs or adam.
        steps: Evaluations of the loss over all sizes, equally many of each.
        start: content, or noise.
        smoothness: Weight of the total variation, against noise; 0: none.
        image_every: Also write the image as it is after every so many steps, beside OUT.
        seed: Seed of the noise.
        device: auto, cpu, cuda or mps.
        precision: Precision of the network; the image and the losses are in float32. auto: bf16 where the device
            supports it natively.
        json: Print a JSON object in place of the text.
        quiet: Show no progress.
    """
    from vggkit.arguments import demand_count
    from vggkit.hardware import choose_device, keep_freed_memory
    from vggkit.images.writing import demand_image_path, write_image
    from vggkit.workflows.style import style as transfer

    if not styles:
        raise BadInput("style needs an image and one style at least: vggkit style CONTENT STYLE --out image.png")
    demand_image_path(out)
    demand_apart(out, (content, *styles))
    every = None if image_every is None else demand_count("image_every", image_every)
    if choose_device(device).type == "cpu":
        keep_freed_memory()
    with ProgressLine(quiet=quiet, rate="steps/s") as line:

        def keep(step: int, pixels: "Pixels") -> None:
            if every is not None:
                (path,) = name_apart(out, [f"{step:04d}"])
                write_image(path, pixels)
                line.log(f"image after {step} steps: {path}")

        found = transfer(
            content,
            styles,
            trunk=trunk,
            style_weights=style_weights,
            strength=strength,
            keep_colours=keep_colours,
            size=size,
            style_scale=style_scale,
            optimizer=optimizer,
            steps=steps,
            start=start,
            smoothness=smoothness,
            seed=seed,
            device=device,
            precision=precision,
            on_log=line.log,
            on_progress=lambda done, total: line.show("transferring the style", done, total),
            on_image=keep,
            image_every=every or steps,
        )
        found.save(out)
    if json:
        print_json({"path": str(out), **found.to_dict()})
        return
    height, width = found.pixels.shape[:2]
    last = found.steps[-1]
    print_line(
        f"{out}: {width}×{height} pixels; loss {last.loss:.4f} (content {last.content_loss:.4f}, "
        f"style {last.style_loss:.5f}) after {len(found.steps)} steps"
    )
