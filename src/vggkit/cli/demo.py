"""The verb demo."""

from pathlib import Path

from vggkit.cli.printing import describe_evaluation
from vggkit.hardware import choose_device, keep_freed_memory
from vggkit.reports.terminal import print_line


def demo(*, out: Path = Path("runs/demo"), device: str = "auto", seed: int = 0, quiet: bool = False) -> None:
    """Train a VGG11 with batch normalisation on real handwritten digits, evaluate it, and classify some digits.

    The data, 1,797 images of 8×8 pixels, come with scikit-learn; nothing is downloaded.

    Args:
        out: Folder of the results; those of an earlier demo are replaced.
        device: auto, cpu, cuda or mps.
        seed: Seed of every random number.
        quiet: Show no progress.
    """
    from vggkit.workflows.demo import demonstrate

    if choose_device(device).type == "cpu":
        keep_freed_memory()
    found = demonstrate(out, device=device, seed=seed, quiet=quiet)
    print_line(describe_evaluation(found.run.evaluation))
    for image, prediction in zip(found.images, found.predictions, strict=True):
        best_class = f"{prediction.labels[0]} {100 * prediction.probabilities[0]:.1f} %"
        print_line(f"{prediction.path}: {best_class} (true: {image.label})")
    print_line(f"results: {found.sheet}")
    for name in ("report.html", "learning_curve.png", "confusion_matrix.png"):
        print_line(f"         {found.run.directory / name}")
    best = found.run.directory / "best.safetensors"
    print_line(f"next:    vggkit predict {best} {found.predictions[0].path}")
    print_line(f"         vggkit evaluate {best} digits")
    print_line("         vggkit train YOUR_IMAGES/ --model vgg11_bn")
