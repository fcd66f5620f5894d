"""What explaining a folder costs beside predicting it: both write a file of predictions, in turns in one process.

`predict` is `predict_into` to CSV; `predict --explain` adds Grad-CAM in closed form and an overlay of each image;
`explain` writes overlays, maps, the table and the contact sheet. By gradients is Layer-CAM at pool5, which takes
PyTorch's forward and backward pass, as other libraries compute Grad-CAM too.

    python benchmarks/explain.py [MODEL] [IMAGES] [ROUNDS]

The weights are random: the time does not depend on them.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import vggkit as vk
from vggkit.engines.outputs import WantedPrecision

MODEL = sys.argv[1] if len(sys.argv) > 1 else "vgg16"
COUNT = int(sys.argv[2]) if len(sys.argv) > 2 else 64
ROUNDS = int(sys.argv[3]) if len(sys.argv) > 3 else 5


def draw_folder(folder: Path) -> None:
    """JPEGs of a photo's size and smoothness: 500 × 375 pixels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        noise = rng.integers(0, 255, (24, 32, 3), np.uint8)
        image = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:03d}.jpg", quality=90)


def list_ways(model: Path, photos: Path, precision: WantedPrecision) -> dict[str, Callable[[Path], object]]:
    """What is timed, each given a folder for its results."""
    ways: dict[str, Callable[[Path], object]] = {
        "predict": lambda out: vk.predict_into(model, photos, out / "p.csv", precision=precision),
        "predict --explain": lambda out: vk.predict_into(
            model, photos, out / "p.csv", precision=precision, explain=out / "why"
        ),
        "explain": lambda out: vk.explain_into(model, photos, out / "why", precision=precision),
    }
    if precision == "fp32":
        ways["by gradients"] = lambda out: vk.explain_into(
            model, photos, out / "why", layer="pool5", method="layer-cam"
        )
    return ways


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        draw_folder(here / "photos")
        made = vk.Classifier.create(MODEL, labels=[f"class {n}" for n in range(1000)], seed=0)
        made.save(here / "model.safetensors")
        del made
        model, photos = here / "model.safetensors", here / "photos"
        print(f"{MODEL}, {COUNT} images of 500 × 375 pixels, medians of {ROUNDS} rounds in turns")
        print("| precision | what | images/s | of predict |\n|---|---|---|---|")
        precisions: tuple[WantedPrecision, ...] = ("fp32", "auto")
        for precision in precisions:
            ways = list_ways(model, photos, precision)
            times: dict[str, list[float]] = {name: [] for name in ways}
            for round_number in range(ROUNDS + 1):
                for name, run in ways.items():
                    out = Path(tempfile.mkdtemp(dir=here))
                    start = time.perf_counter()
                    run(out)
                    if round_number:  # the first one warms up
                        times[name].append(time.perf_counter() - start)
            base = statistics.median(times["predict"])
            for name, seconds in times.items():
                median = statistics.median(seconds)
                print(f"| {precision} | {name} | {COUNT / median:.2f} | {base / median:.2f} |", flush=True)


if __name__ == "__main__":
    main()
