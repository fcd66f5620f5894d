"""Decode, resize, crop and normalise, beside torchvision's pipeline on PIL; what reduced decoding gains and costs.

One thread on one core where the system lets us choose it. Both run in turn over all images; the table gives
medians and the ratio's median of the rounds. Writes decoding.md beside itself.
"""

import argparse
import datetime
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torchvision
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.datasets.folder import pil_loader

import vggkit as vk
from vggkit.errors import BadImage
from vggkit.hardware import describe_machine
from vggkit.images.decoding import decode

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
WEIGHTS = DATA / "weights" / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth"
SIDES = (112, 64)
"""Pixels fed where accuracy is compared: photographs of 500 pixels are decoded reduced only for small networks."""


def readable(folder: Path, pattern: str) -> list[Path]:
    found = []
    for path in sorted(folder.rglob(pattern)):
        try:
            decode(path)
        except BadImage:
            continue
        found.append(path)
    return found


def race(paths: Sequence[Path], rivals: Sequence[Callable[[Path], object]], rounds: int) -> list[list[float]]:
    """Seconds an image, by rival and round; they take turns."""
    times: list[list[float]] = [[] for _ in rivals]
    for _ in range(rounds):
        for rival, spent in zip(rivals, times, strict=True):
            started = time.perf_counter()
            for path in paths:
                rival(path)
            spent.append((time.perf_counter() - started) / len(paths))
    return times


def ratio(slow: list[float], fast: list[float]) -> str:
    ratios = sorted(s / f for s, f in zip(slow, fast, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def compare_pipelines(paths: list[Path], rounds: int) -> list[str]:
    transform = torchvision.models.VGG11_Weights.IMAGENET1K_V1.transforms()
    ours = vk.Preprocessing()
    levels = np.float32(ours.std)[:, None, None] * 255
    farthest, unequal = 0.0, []
    for path in paths:
        apart = np.abs((ours(decode(path)) - transform(pil_loader(path)).numpy()) * levels)
        farthest = max(farthest, float(apart.max()))
        unequal.append((apart > 0.5).mean())
    assert farthest <= 1.001, f"pixels are {farthest} levels apart"
    rivals = [
        pil_loader,
        decode,
        lambda path: transform(pil_loader(path)),
        lambda path: ours(decode(path)),
    ]
    loading, decoding, theirs, own = race(paths, rivals, rounds)
    rows = []
    for name, slow, fast in (
        ("decode alone", loading, decoding),
        ("decode, resize, crop, normalise", theirs, own),
    ):
        speeds = " | ".join(f"{1 / statistics.median(times):.0f}" for times in (slow, fast))
        rows.append(f"| {name} | {speeds} | {ratio(slow, fast)} |")
    return [
        "| images a second, one core | torchvision on PIL | vggkit | ratio |",
        "|---|---|---|---|",
        *rows,
        "",
        f"n = {len(paths)} photographs of hymenoptera, mostly 500×375, {rounds} rounds in turn. Largest difference",
        f"before normalisation: {farthest:.2f} levels of 255, in {np.mean(unequal):.2%} of the values.",
    ]


def compare_scales(paths: list[Path], rounds: int) -> list[str]:
    def feed(path: Path, how: vk.Preprocessing) -> np.ndarray:
        return how(decode(path, least_side=how.least_side))

    lines = [
        "| fed | full, 1/s | reduced, 1/s | ratio | mean difference | largest |",
        "|---|---|---|---|---|---|",
    ]
    for side in (224, *SIDES):
        full = vk.Preprocessing(crop_pixels=side, resize_pixels=round(side * 8 / 7))
        small = replace(full, reduced_decoding=True)
        slow, fast = race(paths, [partial(feed, how=how) for how in (full, small)], rounds)
        apart = [
            np.abs(small.fit(decode(path, least_side=small.least_side)).astype(int) - full.fit(decode(path)))
            for path in paths
        ]
        speeds = " | ".join(f"{1 / statistics.median(times):.0f}" for times in (slow, fast))
        mean, most = np.mean([a.mean() for a in apart]), max(a.max() for a in apart)
        lines.append(f"| {side} | {speeds} | {ratio(slow, fast)} | {mean:.2f} | {most} |")
    sizes = Counter("×".join(map(str, decode(path).shape[1::-1])) for path in paths)
    named = ", ".join(f"{count} of {size}" for size, count in sizes.most_common())
    return [
        *lines,
        "",
        f"n = {len(paths)} (of hymenoptera, sign_digits and exif_orientation): {named}; {rounds} rounds.",
    ]


def see(clf: vk.Classifier, paths: list[Path], how: vk.Preprocessing) -> np.ndarray:
    """Means and standard deviations of relu3_4, (N, 512)."""
    found: list[torch.Tensor] = []
    handle = clf.network.classifier.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].flatten(1)))
    with torch.inference_mode():
        for start in range(0, len(paths), 32):
            batch = [how(decode(path, least_side=how.least_side)) for path in paths[start : start + 32]]
            clf.network(torch.from_numpy(np.stack(batch)))
    handle.remove()
    return torch.cat(found).numpy()


def compare_accuracy(folder: Path) -> list[str]:
    clf = vk.Classifier.create("vgg19", labels=["ants", "bees"], until="relu3_4", head="pool", weights=WEIGHTS)
    clf.network.eval()
    train, val = readable(folder / "train", "*.jpg"), readable(folder / "val", "*.jpg")
    labels = [np.array([path.parent.name == "bees" for path in part]) for part in (train, val)]
    lines = [
        "| fed | images reduced | right, full | right, reduced | only full right | only reduced right | "
        "reduced - full, 95 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for side in SIDES:
        full = replace(clf.preprocessing, crop_pixels=side, resize_pixels=round(side * 8 / 7))
        small = replace(full, reduced_decoding=True)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        model.fit(see(clf, train, full), labels[0])
        right = [model.predict(see(clf, val, how)) == labels[1] for how in (full, small)]
        apart = right[1].astype(int) - right[0]
        half = 1.96 * apart.std(ddof=1) / np.sqrt(len(val))
        reduced = sum(decode(p, least_side=small.least_side).shape != decode(p).shape for p in val)
        lines.append(
            f"| {side} | {reduced} of {len(val)} | {right[0].mean():.3f} | {right[1].mean():.3f} | "
            f"{(apart < 0).sum()} | {(apart > 0).sum()} | "
            f"{apart.mean():+.3f} ({apart.mean() - half:+.3f} to {apart.mean() + half:+.3f}) |"
        )
    return [
        *lines,
        "",
        "Means and standard deviations of VGG19's relu3_4 (Oxford's weights); a logistic regression fitted on",
        f"{len(train)} training photographs of hymenoptera decoded in full, evaluated on n = {len(val)} others",
        "decoded both ways. So few photographs exclude a loss of many points, but not a small one.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    folder = DATA / "hymenoptera"
    photographs = readable(folder, "*.jpg")
    larger = [
        *(path for path in photographs if min(decode(path).shape[:2]) >= 600),
        *(path for path in readable(DATA / "sign_digits", "*.JPG") if min(decode(path).shape[:2]) >= 600),
        *readable(DATA / "odd_images" / "exif_orientation", "*.jpg"),
    ]
    text = "\n".join(
        [
            "# Decoding and preparing images",
            "",
            "JPEG files to the input of VGG (short side 256, centre crop 224, normalised), one thread on one core;",
            "minimum and maximum of the rounds in brackets.",
            "",
            *compare_pipelines(photographs, rounds),
            "",
            "## Reduced decoding (`reduced_decoding`)",
            "",
            "The smallest of 1/8, 1/4, 1/2 that does not require enlarging; differences of fitted images in levels",
            "of 255. The larger images are all in the data with a short side of 600 pixels or more.",
            "",
            *compare_scales(larger, rounds),
            "",
            "Effect on accuracy, at sizes small enough for photographs of 500 pixels to be reduced at all:",
            "",
            *compare_accuracy(folder),
            "",
            f"{describe_machine(torch.device('cpu'))['device']}; {platform.system()} {platform.machine()}; "
            f"Pillow {version('pillow')}, simplejpeg {version('simplejpeg')}, NumPy {np.__version__}, "
            f"torch {torch.__version__}, torchvision {torchvision.__version__}, "
            f"Python {platform.python_version()}; {datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
