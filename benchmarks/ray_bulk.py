"""Bulk prediction on a local Ray cluster beside the command without Ray: whole processes, the same bytes.

VGG11 at 224 pixels in the precision that `auto` chooses, photos of `../shared/data/hymenoptera` again and again,
to Parquet. One machine cannot show what Ray is for, which is several of them; it shows the cost: the start of a
cluster, and the way of images' names and rows through it. Three lines take turns: without Ray, with Ray that starts
its cluster, and with Ray on a cluster that is there already. Writes ray_bulk.md beside itself.
"""

import argparse
import datetime
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "hymenoptera"
LINES = ("without Ray", "Ray, cluster started", "Ray, cluster there")


def prepare(folder: Path, count: int) -> None:
    import vggkit as vk

    classifier = vk.Classifier.create("vgg11", labels=[str(number) for number in range(1000)], seed=0)
    classifier.save(folder / "model.safetensors")
    found = [str(path.resolve()) for path in sorted(PHOTOS.rglob("*.jpg"))]
    (folder / "photos.txt").write_text("\n".join(itertools.islice(itertools.cycle(found), count)) + "\n")


def run(folder: Path, line: str) -> float:
    out = folder / f"{LINES.index(line)}.parquet"
    command = [
        *(sys.executable, "-m", "vggkit", "predict", str(folder / "model.safetensors"), str(folder / "photos.txt")),
        *("--out", str(out), "--overwrite", "--quiet", "--on", "local" if line == LINES[0] else "ray"),
    ]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    if line == LINES[1]:
        environment["RAY_ADDRESS"] = "local"
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    if not PHOTOS.is_dir():
        sys.exit(f"needs the real photos in {PHOTOS}")
    import ray

    seconds: dict[str, list[float]] = {line: [] for line in LINES}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        prepare(folder, options.photos)
        for _ in range(options.rounds):
            for line in LINES:
                if line == LINES[2]:
                    context = ray.init(include_dashboard=False, log_to_driver=False, object_store_memory=10**9)
                    os.environ["RAY_ADDRESS"] = context.address_info["address"]
                seconds[line].append(run(folder, line))
                if line == LINES[2]:
                    ray.shutdown()
                    del os.environ["RAY_ADDRESS"]
                print(line, f"{seconds[line][-1]:.1f} s", flush=True)
            same = {(folder / f"{number}.parquet").read_bytes() for number in range(len(LINES))}
            assert len(same) == 1, "the files differ"
    write(seconds, options.photos)


def write(seconds: dict[str, list[float]], photos: int) -> None:
    import torch

    from vggkit.hardware import describe_machine

    rows = []
    for line, found in seconds.items():
        ratios = sorted(each / alone for each, alone in zip(found, seconds[LINES[0]], strict=True))
        half = statistics.median(found)
        rows.append(
            f"| {line} | {half:.1f} ({min(found):.1f} to {max(found):.1f}) | {photos / half:.1f} | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    machine = describe_machine(torch.device("cpu"))
    text = "\n".join(
        [
            "# Bulk prediction on Ray, on one machine",
            "",
            f"{photos:,} photos by VGG11 at 224 pixels to Parquet, whole processes; medians of "
            f"{len(seconds[LINES[0]])} rounds (least to most). The three files are equal, byte for byte.",
            "",
            "| | seconds | photos/s | time, without Ray = 1 |",
            "|---|---|---|---|",
            *rows,
            "",
            f"{machine['device']}; {machine['system']}; Python {platform.python_version()}; "
            f"{datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
