"""A million images: how long until they are listed, split, and in a training, and how much memory that takes.

The readable photos of `../shared/data/hymenoptera` are written into a shard, and all others are links to this file,
so that the disk holds each photo once. Each measurement is a process of its own: `open_dataset`, the split of the
undivided images, the order of an epoch, and `vggkit.train` until its third batch is done. Writes million.md beside
itself.
"""

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "hymenoptera"


def repeat(folder: Path, images: int) -> Path:
    """Shards of so many images, in a folder beside one with those of the photos once; returns the first."""
    import vggkit as vk
    from vggkit.images.sources.shards.manifest import FILE_NAME, ShardIndex, name_index, read_manifest

    photos = [image for split in vk.open_dataset(PHOTOS).splits.values() for image in split]
    table = folder / "photos.csv"
    table.write_text("\n".join(["path,label", *(f'"{image.path}",{image.label}' for image in photos)]))
    once = folder / "once"
    vk.shard(table, once)
    manifest, index = read_manifest(str(once / FILE_NAME))
    [shard] = manifest.shards
    copies = math.ceil(images / shard.images)
    place = folder / "million"
    place.mkdir()
    shards = []
    for number in range(copies):
        file = f"images-{number:05d}.tar"
        os.link(once / shard.file, place / file)
        shards.append(replace(shard, file=file))
    # As if the contents were others: else all copies of a photo would be held out together.
    parts = [replace(index, contents=index.contents + number) for number in range(copies)]
    joined = ShardIndex.join(parts)
    [counted] = manifest.counts.values()
    counts = {"all": {label: count * copies for label, count in counted.items()}}
    whole = replace(manifest, shards=tuple(shards), counts=counts, index_sha256=joined.digest())
    (place / name_index(FILE_NAME)).write_bytes(joined.pack())
    (place / FILE_NAME).write_bytes(whole.pack())
    return place


def measure(place: str) -> dict[str, float]:
    """Seconds and bytes in this process."""
    import resource

    started = time.perf_counter()
    import vggkit as vk
    from vggkit.images.splits import divide

    # The first training imports what torch needs for optimizers.
    found = {"first": time_training(str(Path(place).with_name("once"))) + time.perf_counter() - started}
    found["once"] = time_training(str(Path(place).with_name("once")))
    started = time.perf_counter()
    opened = vk.open_dataset(place)
    found["list"] = time.perf_counter() - started
    found["images"] = len(opened.split("all"))
    started = time.perf_counter()
    train = divide(opened, validation_share=0.1, seed=0).split("train")
    found["split"] = time.perf_counter() - started
    started = time.perf_counter()
    train.draw_parts(seed=0, epoch=1, counts=[len(train)])
    found["shuffle"] = time.perf_counter() - started
    del opened, train
    found["train"] = time_training(place)
    unit = 1 if sys.platform == "darwin" else 1024
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return found


def time_training(place: str) -> float:
    """Seconds until three batches are done."""
    import vggkit as vk
    from vggkit.errors import Stopped
    from vggkit.training.batches import TrainingBatches

    of_epoch = TrainingBatches.of_epoch

    def stopping(self, epoch, *, start=0):
        for number, batch in enumerate(of_epoch(self, epoch, start=start)):
            if number == 3:
                raise Stopped(15)
            yield batch

    recipe = vk.Recipe(batch_size=32, epochs=1)
    network = {"model": "vgg11_bn", "until": "pool2", "image_size": 64}
    TrainingBatches.of_epoch = stopping
    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder, suppress(Stopped):
            vk.train(place, **network, recipe=recipe, out=f"{folder}/run", quiet=True)
    finally:
        TrainingBatches.of_epoch = of_epoch
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", metavar="PLACE")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    if not PHOTOS.is_dir():
        sys.exit(f"needs the real photos in {PHOTOS}")
    with tempfile.TemporaryDirectory() as made:
        place = repeat(Path(made), options.images)
        runs = []
        for _ in range(options.rounds):
            command = [sys.executable, __file__, "--measure", str(place)]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            runs.append(json.loads(found.splitlines()[-1]))
            print(runs[-1], flush=True)
    write(runs)


def write(runs: list[dict[str, float]]) -> None:
    import torch

    from vggkit.hardware import describe_machine

    def show(name: str) -> str:
        values = sorted(run[name] for run in runs)
        return f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"

    steps = {
        "list": "`open_dataset`: manifest and index read, lengths of the shards compared",
        "split": "the undivided images split, class by class",
        "shuffle": "the order of an epoch",
        "train": "`vggkit.train` until its third batch is done (it lists and splits again)",
        "once": "the same of the photos once",
        "first": "the same in a new process: `import torch` and what optimizers need are in it",
    }
    machine = describe_machine(torch.device("cpu"))
    peak = statistics.median(run["peak_bytes"] for run in runs)
    text = "\n".join(
        [
            "# A million images",
            "",
            f"{int(runs[0]['images']):,} photos in tar shards, medians of {len(runs)} processes (least to most).",
            "",
            "| step | seconds |",
            "|---|---|",
            *(f"| {what} | {show(name)} |" for name, what in steps.items()),
            "",
            f"Peak resident memory of the process, the training included: {peak / 1e6:,.0f} MB.",
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
