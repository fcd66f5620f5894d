"""The input pipeline of a training alone: images per second from a folder, tar shards, Parquet shards and S3.

The same real photos are stored in each way, and an epoch of training batches is prepared, decoded, augmented and
normalised at 224 pixels, with nothing trained; with 1 and with 2 threads that prepare images. S3 is moto's server,
a process of its own on this machine: its cost is the client's and the server's work, and no network. Each
measurement is a process of its own, and the kinds take turns. Beside them webdataset reads the same tar shards with
torchvision's transforms, by 1 and by 2 workers. Writes streams.md beside itself.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "hymenoptera"
KINDS = ("folder", "tar", "parquet", "s3 tar", "s3 parquet", "webdataset")
PORT = 5717
STORE = {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def store(folder: Path, copies: int) -> dict[str, str]:
    """The readable photos `copies` times over in each way; returns the place of each."""
    import vggkit as vk
    from vggkit.errors import BadImage

    for image in vk.open_dataset(PHOTOS).split("train"):
        try:
            image.decode()
        except BadImage:
            continue
        for copy in range(copies):
            place = folder / "folder" / str(image.label) / f"{copy:03d}_{Path(image.path).name}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(image.path)
    places = {"folder": str(folder / "folder"), "tar": str(folder / "tar"), "parquet": str(folder / "parquet")}
    places |= {"s3 tar": "s3://photos/tar", "s3 parquet": "s3://photos/parquet"}
    for kind, place in places.items():
        if kind != "folder":
            vk.shard(folder / "folder", place, to=kind.rpartition(" ")[2], images_per_shard=128)
    return places | {"webdataset": str(folder / "tar")}


def measure(kind: str, place: str, workers: int) -> dict[str, float]:
    """Images a second of an epoch in this process, from the first batch on."""
    if kind == "webdataset":
        return measure_webdataset(place, workers)
    import torch

    import vggkit as vk
    from vggkit.images.preprocessing import Preprocessing
    from vggkit.training.augmentation import View
    from vggkit.training.batches import TrainingBatches

    opened = vk.open_dataset(place)
    preprocessing = Preprocessing()
    batches = TrainingBatches(
        opened.split("all"),
        labels=opened.labels,
        preprocessing=preprocessing,
        view=View(preprocessing, "photo", "random", None, 0.0),
        batch_size=32,
        seed=0,
        device=torch.device("cpu"),
        threads=workers,
    )
    batches._held._most = 0  # no cache of decoded images: a set that is streamed does not fit
    return count(images for images, _ in batches.of_epoch(1))


def measure_webdataset(place: str, workers: int) -> dict[str, float]:
    import torch
    import webdataset
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224, scale=(0.35, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    shards = sorted(map(str, Path(place).glob("*.tar")))
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(1000).decode("pil")
    dataset = dataset.to_tuple("jpg;png;gif", "cls").map_tuple(transform, lambda label: label)
    loader = torch.utils.data.DataLoader(dataset.batched(32), batch_size=None, num_workers=workers)
    return count(images for images, _ in loader)


def count(batches) -> dict[str, float]:
    first = next(batches)
    started, images = time.perf_counter(), 0
    for batch in batches:
        images += len(batch)
    return {"rate": images / (time.perf_counter() - started), "n": images + len(first)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=3, metavar=("KIND", "PLACE", "WORKERS"))
    options = parser.parse_args()
    os.environ.update(STORE)
    if options.measure:
        kind, place, workers = options.measure
        print(json.dumps(measure(kind, place, int(workers))))
        return
    if not PHOTOS.is_dir():
        sys.exit(f"needs the real photos in {PHOTOS}")
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-p", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with tempfile.TemporaryDirectory() as made:
            wait_for_server()
            urllib.request.urlopen(urllib.request.Request(f"{STORE['AWS_ENDPOINT_URL']}/photos", method="PUT"))
            places = store(Path(made), options.copies)
            for _ in range(options.rounds):
                for workers in (1, 2):
                    for kind, place in places.items():
                        line = [sys.executable, "-W", "ignore", __file__, "--measure", kind, place, str(workers)]
                        said = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout
                        found.setdefault((kind, workers), []).append(json.loads(said.splitlines()[-1]))
                        print(kind, workers, found[kind, workers][-1], flush=True)
    finally:
        server.terminate()
        server.wait()
    write(found, options.rounds)


def wait_for_server() -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{STORE['AWS_ENDPOINT_URL']}/moto-api/data.json", timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    sys.exit("moto's server did not start")


def write(found: dict[tuple[str, int], list[dict[str, float]]], rounds: int) -> None:
    import torch

    from vggkit.hardware import describe_machine

    rows = []
    for kind in KINDS:
        cells = []
        for workers in (1, 2):
            ratios = sorted(
                run["rate"] / other["rate"]
                for run, other in zip(found[kind, workers], found["folder", workers], strict=True)
            )
            rates = [run["rate"] for run in found[kind, workers]]
            cells.append(f"{statistics.median(rates):.0f}")
            cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        rows.append(f"| {kind} | {' | '.join(cells)} |")
    machine = describe_machine(torch.device("cpu"))
    text = "\n".join(
        [
            "# Input pipeline: training batches from a folder, shards and S3",
            "",
            f"{int(found['folder', 1][0]['n']):,} real photos (about 500×375) at 224 pixels, augmented, nothing",
            "trained; images per second, and their ratio to the folder's in the same round: medians of "
            f"{rounds} rounds (least to most).",
            "",
            "| from | 1 thread | ratio to folder | 2 threads | ratio to folder |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "S3 is moto's server on the same two processors: it takes part of them from the pipeline, which a",
            "store elsewhere would not, and has no network's delay, which a store elsewhere would have. webdataset",
            "decodes with Pillow in 1 and 2 worker processes, and resizes with torchvision.",
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
