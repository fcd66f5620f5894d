"""Images from a folder, a table, tar shards and Parquet: how many a second, and whether memory stays flat.

The same real photos are stored in each way, many times over, and pass through decoding and
preprocessing as in a prediction, with 1 and 2 threads that decode; each measurement is a process of its
own, and the four kinds take turns. Writes sources.md beside itself.
"""

import argparse
import csv
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import PIL

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "hymenoptera"
KINDS = ("folder", "table", "tar", "parquet")


def store(folder: Path, copies: int) -> None:
    """The readable photos `copies` times over in each way; links in the folder, bytes in the others."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vggkit.errors import BadImage
    from vggkit.images.sources.open_dataset import open_dataset

    chosen = []
    for image in open_dataset(PHOTOS).split("train"):
        try:
            image.decode()
        except BadImage:
            continue
        chosen.append(image)
    names = [(f"{copy:03d}_{Path(p.path).name}", p) for copy in range(copies) for p in chosen]
    for name, image in names:
        place = folder / "folder" / str(image.label) / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(image.path)
    with open(folder / "table.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows([f"folder/{p.label}/{name}", p.label] for name, p in names)
    with tarfile.open(folder / "photos.tar", "w") as archive:
        for name, image in names:
            archive.add(image.path, arcname=f"{image.label}/{name}")
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.string())]
    )
    with pq.ParquetWriter(folder / "photos.parquet", schema) as writer:
        for start in range(0, len(names), 500):
            rows = [
                {"image": {"bytes": Path(p.path).read_bytes(), "path": name}, "label": p.label}
                for name, p in names[start : start + 500]
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def measure(place: str, workers: int) -> dict[str, float]:
    """Images a second, and resident memory at a quarter of the way and at the end, in this process."""
    import numpy as np

    from vggkit.engines.stream import stream_results
    from vggkit.images.preprocessing import Preprocessing
    from vggkit.images.sources.open_dataset import iterate_images

    class Nothing:
        def run(self, batch: np.ndarray) -> np.ndarray:
            return batch[:, 0, 0, :2]

    samples: list[tuple[int, int]] = []
    done = 0
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            samples.append((done, pages * 4096))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    for answer in stream_results(Nothing(), Preprocessing(), iterate_images([place]), decoders=workers):
        assert answer.output is not None, answer.problem
        done += 1
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    quarter = [size for count, size in samples if count > done / 4] or [0]
    return {
        "rate": done / seconds,
        "n": done,
        "early_mb": statistics.median(quarter[: max(1, len(quarter) // 6)]) / 1e6,
        "late_mb": statistics.median(quarter[-max(1, len(quarter) // 6) :]) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("PLACE", "WORKERS"))
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]))))
        return
    if not PHOTOS.is_dir():
        sys.exit(f"needs the real photos in {PHOTOS}")
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        store(folder, options.copies)
        places = dict(zip(KINDS, ("folder", "table.csv", "photos.tar", "photos.parquet"), strict=True))
        for _ in range(options.rounds):
            for workers in (1, 2):
                for kind, name in places.items():
                    command = [sys.executable, __file__, "--measure", str(folder / name), str(workers)]
                    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                    found.setdefault((kind, workers), []).append(json.loads(said))
    write(found, options.rounds)


def write(found: dict[tuple[str, int], list[dict[str, float]]], rounds: int) -> None:
    import torch

    from vggkit.hardware import describe_machine

    rows = []
    for kind in KINDS:
        cells = []
        for workers in (1, 2):
            rates = sorted(run["rate"] for run in found[kind, workers])
            cells.append(f"{statistics.median(rates):.0f} ({rates[0]:.0f} to {rates[-1]:.0f})")
        runs = found[kind, 2]
        early, late = (statistics.median(run[name] for run in runs) for name in ("early_mb", "late_mb"))
        cells += [f"{early:.0f}", f"{late:.0f}", f"{100 * (late / early - 1):+.1f} %"]
        rows.append(f"| {kind} | {' | '.join(cells)} |")
    machine = describe_machine(torch.device("cpu"))
    n = int(found["folder", 1][0]["n"])
    text = "\n".join(
        [
            "# Throughput and memory of image sources",
            "",
            f"{n:,} real photos (about 500×375), decoded, resized, cropped and normalised to 224 pixels; images",
            f"per second with 1 and with 2 threads, medians of {rounds} processes in turn (minimum to maximum).",
            "Memory is that of the process with 2 threads, after a quarter of the images and at the end.",
            "",
            "| from | 1 thread | 2 threads | MB at a quarter | MB at the end | change |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"{machine['device']}; {machine['system']}; Pillow {PIL.__version__}, "
            f"Python {platform.python_version()}; {datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
