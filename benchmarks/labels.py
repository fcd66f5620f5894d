"""How well label errors and outliers are found, on the real images of ../shared/data.

Labels: a proportion is swapped for any other class. Outliers: one for each hundred, all of one kind, with random
labels. The features are those of VGG19 to relu3_4 with its published weights. The seeds are not those that the
constants were chosen with. Writes labels.md beside itself.
"""

import argparse
import datetime
import platform
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cleanlab
import numpy as np
import pyarrow.parquet
import sklearn
import torch
from cleanlab.filter import find_label_issues
from PIL import Image, ImageDraw
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import vggkit as vk
from vggkit.data_checks.findings import Finding
from vggkit.data_checks.inspection import ImageRecord
from vggkit.data_checks.label_errors import estimate_labels, extract_features, find_mislabelled, find_outliers
from vggkit.errors import BadImage
from vggkit.hardware import describe_machine
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import decode

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
WEIGHTS = DATA / "weights" / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth"
SEEDS = (10, 11, 12, 13)
Rows = tuple[np.ndarray, np.ndarray]


def read_set(name: str, each: int) -> list[ImageSample]:
    """The first images of each class."""
    images, counts = [], Counter[str]()
    if name == "cifar10":
        table = pyarrow.parquet.read_table(DATA / name / "train-00000-of-00004.parquet").slice(0, 20 * each)
        every = [
            ImageSample(f"cifar10/{number}", str(row["label"]), pixels=decode(row["image"]["bytes"]))
            for number, row in enumerate(table.to_pylist())
        ]
    else:
        every = [ImageSample(str(path), path.parent.name) for path in sorted((DATA / name).rglob("*.*"))]
    for image in every:
        if counts[image.label] < each:
            try:
                pixels = decode(image.path) if image.pixels is None else image.pixels
            except BadImage:
                continue
            images.append(replace(image, pixels=pixels))
            counts[image.label] += 1
    return images


def make_outliers(count: int) -> list[ImageSample]:
    rng = np.random.default_rng(0)
    images = []
    for number in range(count):
        page = Image.new("RGB", (300, 300), "white")
        draw = ImageDraw.Draw(page)
        for line in range(20, 280, 14):
            words = ("".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in range(8))
            draw.text((15, line), " ".join(words), fill="black")
        noise = rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)
        plain = np.full((100, 100, 3), rng.integers(0, 256, 3), np.uint8)
        for kind, pixels in (("text", np.asarray(page)), ("noise", noise), ("plain", plain)):
            images.append(ImageSample(f"{kind}/{number}", kind, pixels=pixels))
    return images


def describe(images: list[ImageSample], crop: int | None) -> Rows:
    classifier = vk.Classifier.create("vgg19", labels=["a", "b"], until="relu3_4", head="pool", weights=WEIGHTS)
    if crop:
        fed = replace(classifier.preprocessing, crop_pixels=crop, resize_pixels=crop)
        classifier = vk.Classifier(classifier.network, labels=classifier.labels, preprocessing=fed)
    features = extract_features(classifier, [ImageRecord("all", image) for image in images], device="cpu")
    return features, np.array([image.label for image in images])


def make_records(labels: np.ndarray) -> list[ImageRecord]:
    return [ImageRecord("all", ImageSample(str(number), str(label))) for number, label in enumerate(labels)]


def place(finding: Finding | None, count: int) -> np.ndarray:
    flags = np.zeros(count, dtype=bool)
    for case in finding.cases if finding else ():
        flags[int(case.members[0].path)] = True
    return flags


def ask_cleanlab(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The customary way: logistic regression, and what both rules of cleanlab flag."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=300))
        chances = cross_val_predict(model, features, labels, cv=5, method="predict_proba")
        return find_label_issues(labels, chances, filter_by="both", n_jobs=1)


def measure_labels(name: str, rows: Rows, share: float) -> str:
    features, truth = rows
    _, classes = np.unique(truth, return_inverse=True)
    count, kinds = len(classes), int(classes.max()) + 1
    found: dict[str, list[np.ndarray]] = {"ours": [], "theirs": []}
    wrong, scores = [], []
    for seed in SEEDS if share else SEEDS[:1]:
        rng = np.random.default_rng(seed)
        swapped = rng.choice(count, round(share * count), replace=False)
        given = classes.copy()
        given[swapped] = (given[swapped] + rng.integers(1, kinds, len(swapped))) % kinds
        wrong.append(given != classes)
        found["ours"].append(place(find_mislabelled(make_records(given), features, np.arange(count)), count))
        found["theirs"].append(ask_cleanlab(features, given))
        if share:
            scores.append(
                average_precision_score(wrong[-1], estimate_labels(features, given, np.arange(count)).wrong)
            )
    row = f"| {name} | {count:,} | {share:.0%} |"
    truly = np.concatenate(wrong)
    for flags in found.values():
        every = np.concatenate(flags)
        right = (every & truly).sum()
        row += f" {every.sum() / len(flags):.0f} |"
        row += f" {right / max(every.sum(), 1):.2f} | {right / truly.sum():.2f} |" if share else " - | - |"
    return row + (f" {np.mean(scores):.2f} |" if share else " - |")


def measure_outliers(name: str, rows: Rows, foreign: dict[str, np.ndarray]) -> str:
    features, truth = rows
    clean = place(find_outliers(make_records(truth), features), len(truth)).sum()
    row = f"| {name} | {len(truth):,} | {clean} |"
    for kind, many in foreign.items():
        if kind == name:
            row += " - |"
            continue
        rng = np.random.default_rng(SEEDS[0])
        some = many[rng.choice(len(many), max(2, len(truth) // 100), replace=False)]
        given = np.concatenate([truth, rng.choice(np.unique(truth), len(some))])
        flags = place(find_outliers(make_records(given), np.concatenate([features, some])), len(given))
        row += f" {flags[len(truth) :].sum()} of {len(some)}, {flags[: len(truth)].sum()} |"
    return row


def time_steps(count: int, size: int, kinds: int) -> str:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, kinds, count)
    features = (rng.standard_normal((kinds, size))[labels] + 4 * rng.standard_normal((count, size))).astype(
        np.float32
    )
    records = make_records(labels)
    started = time.perf_counter()
    find_mislabelled(records, features, np.arange(count))
    between = time.perf_counter()
    find_outliers(records, features)
    return f"| {count:,} | {size:,} | {kinds} | {between - started:.1f} | {time.perf_counter() - between:.1f} |"


def read_features(cache: Path | None) -> dict[str, Rows]:
    if cache and cache.exists():
        with np.load(cache) as kept:
            return {name[2:]: (kept[name], kept[f"y {name[2:]}"]) for name in kept.files if name.startswith("x ")}
    each = {"hymenoptera": 400, "imagenette": 60, "sign_digits": 30, "cifar10": 100}
    sets = {name: describe(read_set(name, many), 64 if name == "cifar10" else None) for name, many in each.items()}
    sets["outliers"] = describe(make_outliers(10), None)
    if cache:
        np.savez(cache, **{f"{axis} {name}": rows[n] for name, rows in sets.items() for n, axis in enumerate("xy")})
    return sets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, help="an .npz file that keeps the features")
    sets = read_features(parser.parse_args().cache)
    drawn, kinds = sets.pop("outliers")
    labels = []
    for name, rows in sets.items():
        for share in (0, 0.05, 0.1):
            labels.append(measure_labels(name, rows, share))
            print(labels[-1], flush=True)
    foreign = {kind: drawn[kinds == kind] for kind in ("text", "noise", "plain")}
    foreign |= {name: sets[name][0] for name in ("sign_digits", "hymenoptera")}
    outliers = [measure_outliers(name, rows, foreign) for name, rows in sets.items()]
    print(*outliers, sep="\n", flush=True)
    times = [time_steps(10_000, 512, 10), time_steps(10_000, 1024, 10), time_steps(10_000, 1024, 100)]
    print(*times, sep="\n", flush=True)
    machine = describe_machine(torch.device("cpu"))
    text = "\n".join(
        [
            "# Finding label errors and outliers",
            "",
            "Features of VGG19 to relu3_4 at 224 pixels, CIFAR-10 at 64. A proportion of the labels is swapped at",
            f"random, with {len(SEEDS)} seeds each, and one if none is swapped; images that are flagged then are",
            "either doubtful images of the set itself or false positives. The customary method for comparison is",
            "logistic regression and cleanlab's `both`.",
            "",
            "| set | images | swapped | flagged | precision | recall | flagged, customary | precision | recall "
            "| average precision |",
            "|" + "---|" * 10,
            *labels,
            "",
            "Outliers: one foreign image for each hundred, all of one kind, with random labels. Each cell gives",
            "how many of them are flagged, and how many images of the set itself.",
            "",
            "| set | images | flagged without outliers | " + " | ".join(foreign) + " |",
            "|" + "---|" * (3 + len(foreign)),
            *outliers,
            "",
            "Seconds without the network, random features:",
            "",
            "| images | features | classes | wrong labels | outliers |",
            "|---|---|---|---|---|",
            *times,
            "",
            f"{machine['device']}; {machine['system']}; NumPy {np.__version__}, "
            f"scikit-learn {sklearn.__version__}, cleanlab {cleanlab.__version__}, "
            f"Python {platform.python_version()}; {datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
