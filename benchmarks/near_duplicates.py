"""How well and how fast copies are found, on the real images of ../shared/data.

Recall: originals and their modified copies; a copy is found when `find_near_duplicates` pairs it with its original.
False positives: pairs that are flagged in unmodified sets, for inspection. imagehash's perceptual hash is the
comparison, without special treatment of mirrored and rotated images. Writes near_duplicates.md beside itself.
"""

import argparse
import datetime
import io
import platform
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
import pyarrow.parquet
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from vggkit.errors import BadImage
from vggkit.hardware import describe_machine
from vggkit.images.decoding import decode
from vggkit.images.near_duplicates import compute_descriptor, find_near_duplicates, group

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
Change = Callable[[Image.Image], Image.Image]


def recode(kind: str, quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, kind, quality=quality)
        return Image.open(file).convert("RGB")

    return change


def resize(across: float, down: float) -> Change:
    return lambda image: image.resize(
        (round(image.width * across), round(image.height * down)), Image.Resampling.LANCZOS
    )


def crop(left: float, top: float, right: float, bottom: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        width, height = image.size
        return image.crop(
            (
                round(width * left),
                round(height * top),
                width - round(width * right),
                height - round(height * bottom),
            )
        )

    return change


def bend(gamma: float) -> Change:
    return lambda image: image.point([round(255 * (value / 255) ** gamma) for value in range(256)] * 3)


def grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def frame(share: float, colour: str) -> Change:
    return lambda image: ImageOps.expand(image, max(1, round(share * max(image.size))), fill=colour)


def blur(share: float) -> Change:
    return lambda image: image.filter(ImageFilter.GaussianBlur(max(0.5, share * min(image.size))))


def mark(image: Image.Image) -> Image.Image:
    image, (width, height) = image.copy(), image.size
    draw = ImageDraw.Draw(image, "RGBA")
    draw.rectangle((width * 0.62, height * 0.86, width * 0.97, height * 0.97), fill=(255, 255, 255, 150))
    draw.text((width * 0.65, height * 0.88), "(c) somebody", fill="black")
    return image


def chain(*changes: Change) -> Change:
    def change(image: Image.Image) -> Image.Image:
        for each in changes:
            image = each(image)
        return image

    return change


CHANGES: dict[str, Change] = {
    "JPEG, quality 95": recode("JPEG", 95),
    "JPEG, quality 30": recode("JPEG", 30),
    "WebP, quality 50": recode("WEBP", 50),
    "resized ×0.25": resize(0.25, 0.25),
    "resized ×0.5": resize(0.5, 0.5),
    "resized ×2": resize(2, 2),
    "height ×0.92": resize(1, 0.92),
    "grey": grey,
    "brightness ×0.7": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "brightness ×1.3": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "contrast ×0.6": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "contrast ×1.4": lambda image: ImageEnhance.Contrast(image).enhance(1.4),
    "gamma 0.6": bend(0.6),
    "gamma 1.6": bend(1.6),
    "mirrored": ImageOps.mirror,
    "rotated by 90°": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "rotated by 180°": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "rotated by 270°": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "cropped by 2 % a side": crop(0.02, 0.02, 0.02, 0.02),
    "cropped by 3 % a side": crop(0.03, 0.03, 0.03, 0.03),
    "cropped by 5 % a side": crop(0.05, 0.05, 0.05, 0.05),
    "cropped by 5 % left and top": crop(0.05, 0.05, 0, 0),
    "watermark": mark,
    "border of 2 %, white": frame(0.02, "white"),
    "border of 4 %, black": frame(0.04, "black"),
    "blurred, 0.5 % of the side": blur(0.005),
    "blurred, 1 % of the side": blur(0.01),
    "cropped by 3 %, mirrored, JPEG 50": chain(crop(0.03, 0.03, 0.03, 0.03), ImageOps.mirror, recode("JPEG", 50)),
    "×0.5, gamma 0.7, grey, JPEG 40": chain(resize(0.5, 0.5), bend(0.7), grey, recode("JPEG", 40)),
}


def read_set(name: str) -> list[Image.Image]:
    if name == "cifar10":
        tables = [pyarrow.parquet.read_table(path) for path in sorted((DATA / name).glob("*.parquet"))]
        return [Image.fromarray(decode(row["image"]["bytes"])) for table in tables for row in table.to_pylist()]
    images = []
    for path in sorted(path for path in (DATA / name).rglob("*") if path.is_file()):
        try:
            images.append(Image.fromarray(decode(path)))
        except BadImage:
            continue
    return images


def describe(images: list[Image.Image]) -> np.ndarray:
    return np.stack([compute_descriptor(np.asarray(image)) for image in images])


def hash_bits(images: list[Image.Image]) -> np.ndarray:
    return np.stack([imagehash.phash(image).hash.reshape(-1) for image in images])


def measure_recall(originals: list[Image.Image], change: Change) -> tuple[float, float]:
    """Share found by find_near_duplicates, and by the perceptual hash within 8 of 64 bits."""
    copies = [change(image) for image in originals]
    pairs = {
        (pair.first, pair.second)
        for pair in find_near_duplicates(np.concatenate([describe(originals), describe(copies)]))
    }
    count = len(originals)
    found = sum((row, row + count) in pairs for row in range(count)) / count
    return found, float(((hash_bits(originals) ^ hash_bits(copies)).sum(1) <= 8).mean())


def count_hash_pairs(images: list[Image.Image]) -> int:
    signs = np.where(hash_bits(images), 1, -1).astype(np.float32)
    return int((np.triu(signs @ signs.T, 1) >= 64 - 2 * 8).sum())


def search(descriptors: np.ndarray) -> tuple[int, int, float]:
    started = time.perf_counter()
    pairs = find_near_duplicates(descriptors)
    return len(pairs), len(group(pairs)), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--originals", type=int, default=150)
    count = parser.parse_args().originals
    sets = {name: read_set(name) for name in ("hymenoptera", "imagenette", "sign_digits", "cifar10")}
    chosen = {}
    for name, images in sets.items():
        rows = np.random.default_rng(1).choice(len(images), count, replace=False)
        chosen[name] = [images[row] for row in rows]
    recall = ["| copy | " + " | ".join(sets) + " |", "|---|" + "---|" * len(sets)]
    for label, change in CHANGES.items():
        shares = [measure_recall(originals, change) for originals in chosen.values()]
        recall.append(f"| {label} | " + " | ".join(f"{ours:.2f} ({theirs:.2f})" for ours, theirs in shares) + " |")
        print(recall[-1], flush=True)
    rows = [
        "| set | images | ms to describe one | pairs | groups | s to search | imagehash's pairs |",
        "|" + "---|" * 7,
    ]
    described = {}
    for name, images in sets.items():
        pixels = [np.asarray(image) for image in images]
        started = time.perf_counter()
        described[name] = np.stack([compute_descriptor(each) for each in pixels])
        cost = (time.perf_counter() - started) / len(pixels) * 1000
        hashes = str(count_hash_pairs(images)) if len(images) <= 10_000 else "-"
        pairs, groups, seconds = search(described[name])
        rows.append(f"| {name} | {len(images):,} | {cost:.2f} | {pairs} | {groups} | {seconds:.1f} | {hashes} |")
        print(rows[-1], flush=True)
    cifar = described["cifar10"]
    doubled = np.concatenate([cifar, np.roll(cifar, cifar.shape[1] // 2, axis=1)])  # upper and lower half exchanged
    scale = ["| of CIFAR-10 | s to search | pairs | memory at most, MiB |", "|---|---|---|---|"]
    for label, some in (("10,000", cifar[:10_000]), ("50,000", cifar), ("50,000 twice, halves exchanged", doubled)):
        pairs, _, seconds = search(some)
        tracemalloc.start()  # in a run of its own, for it slows the search
        find_near_duplicates(some)
        scale.append(f"| {label} | {seconds:.1f} | {pairs} | {tracemalloc.get_traced_memory()[1] / 2**20:.0f} |")
        tracemalloc.stop()
        print(scale[-1], flush=True)
    machine = describe_machine(torch.device("cpu"))
    text = "\n".join(
        [
            "# Finding near duplicates",
            "",
            f"Recall of {count} modified copies; in brackets that of imagehash's `phash` within 8 of 64 bits,",
            "which does not cover mirrored and rotated images. Copies with a side under 29 pixels are never",
            "paired. ",
            *recall,
            "",
            "Pairs in the unmodified sets; docs/decisions/near-duplicates.md reports which are real duplicates.",
            "",
            *rows,
            "",
            "Memory of the search alone, without the descriptors.",
            "",
            *scale,
            "",
            f"{machine['device']}; {machine['system']}; NumPy {np.__version__}, Pillow {Image.__version__}, "
            f"imagehash {imagehash.__version__}, Python {platform.python_version()}; "
            f"{datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
