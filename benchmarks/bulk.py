"""Photos to their five best classes, whole processes: `vggkit predict --out` beside the script that people run.

The script is torchvision's: its transforms, a DataLoader with 2 workers, eager float32, a CSV. Both read the same
JPEG files, those of PHOTOS again and again, and the same weights of VGG11 at 224. A run is a process from its start
to its end; they have turns, in a random order. With --memory the resident memory of one long run is watched
instead. Writes bulk.md, or bulk_memory.md, beside itself.
"""

import argparse
import csv
import datetime
import itertools
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TORCHVISION = """
import csv, sys
import torch, torchvision
from PIL import Image

class Photos(torch.utils.data.Dataset):
    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index]).convert("RGB"))

if __name__ == "__main__":
    weights, listed, out = sys.argv[1:]
    network = torchvision.models.vgg11()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    paths = open(listed).read().splitlines()
    photos = Photos(paths, torchvision.models.VGG11_Weights.DEFAULT.transforms())
    loader = torch.utils.data.DataLoader(photos, batch_size=32, num_workers=2)
    with torch.inference_mode(), open(out, "w", newline="") as file:
        writer, names = csv.writer(file), iter(paths)
        for images in loader:
            best = network(images).softmax(1).topk(5)
            for chances, classes in zip(best.values.tolist(), best.indices.tolist()):
                writer.writerow([next(names), *classes, *chances])
"""
PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "hymenoptera"
PRECISIONS = ("fp32", "bf16", "int8")
PEER = "torchvision script"
ENDING = 3
"""The last seconds of a process, in which it lets its memory go."""


def list_photos(place: Path, count: int, to: Path) -> None:
    """So many readable JPEG files, again and again."""
    found = [str(path.resolve()) for path in sorted(place.rglob("*.jpg"))]
    to.write_text("\n".join(itertools.islice(itertools.cycle(found), count)) + "\n")


def prepare(photos: Path, folder: Path) -> None:
    import torch

    import vggkit as vk
    from vggkit.engines.activation_ranges import measure_ranges
    from vggkit.images.sources.open_dataset import gather_images

    classifier = vk.Classifier.create("vgg11", labels=[str(n) for n in range(1000)], seed=0)
    torch.save(classifier.network.state_dict(), folder / "model.pth")
    images = random.Random(0).sample(list(gather_images([photos])), 32)
    batch = [classifier.preprocessing(image.decode())[None] for image in images if ".jpg" in image.path]
    classifier.keep_ranges(measure_ranges(classifier.network, batch), about={})
    classifier.save(folder / "model.safetensors")


def list_commands(folder: Path) -> dict[str, list[str]]:
    listed = str(folder / "photos.txt")
    (folder / "script.py").write_text(TORCHVISION)
    found = {PEER: [str(folder / "script.py"), str(folder / "model.pth"), listed, str(folder / "peer.csv")]}
    for precision in PRECISIONS:
        out = str(folder / f"{precision}.csv")
        found[f"vggkit {precision}"] = [
            *("-m", "vggkit", "predict", str(folder / "model.safetensors"), listed),
            *("--out", out, "--precision", precision, "--overwrite", "--quiet", "--device", "cpu"),
        ]
    return found


def run(line: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *line], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    commands = list_commands(folder)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds):
        for name in random.Random(number).sample(list(commands), len(commands)):
            seconds[name].append(run(commands[name]))
            print(f"round {number + 1}: {name} {seconds[name][-1]:.1f} s", flush=True)
    return seconds


def compare(folder: Path) -> dict[str, float]:
    """The share of photos whose best class is the script's."""
    with open(folder / "peer.csv", newline="") as file:
        expected = [row[1] for row in csv.reader(file)]
    shares = {}
    for precision in PRECISIONS:
        with open(folder / f"{precision}.csv", newline="") as file:
            found = [row["label_1"] for row in csv.DictReader(file)]
        assert len(found) == len(expected), (precision, len(found))
        shares[f"vggkit {precision}"] = sum(map(str.__eq__, found, expected)) / len(found)
    return shares


def write_speeds(photos: Path, folder: Path, count: int, rounds: int) -> str:
    prepare(photos, folder)
    list_photos(photos, count, folder / "photos.txt")
    seconds = measure(folder, rounds)
    shares = compare(folder)
    rows = []
    for name, found in seconds.items():
        ratios = sorted(peer / own for peer, own in zip(seconds[PEER], found, strict=True))
        half = statistics.median(found)
        rows.append(
            f"| {name} | {half:.1f} ({min(found):.1f} to {max(found):.1f}) | {count / half:.1f} | "
            f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}) | "
            f"{f'{shares[name]:.3f}' if name in shares else ''} |"
        )
    return "\n".join(
        [
            "# Predicting the five most probable classes of a folder of photos",
            "",
            f"{count:,} JPEG files (`{photos.name}`, repeated) through VGG11 at 224 pixels. The times are those of",
            "whole processes: start of the interpreter, imports, 531 MB of weights, decoding, computation, a CSV",
            "file. The script uses torchvision's transforms, a DataLoader with 2 workers and eager float32.",
            f"Medians of {rounds} rounds (minimum to maximum). The weights are random, so that the best classes",
            "are nearly tied.",
            "",
            "| | seconds | photos a second | times the script | same best class |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def watch(folder: Path) -> list[tuple[float, int]]:
    """(Seconds, resident bytes) of a run, each second."""
    line = [
        *("-m", "vggkit", "predict", str(folder / "small.safetensors"), str(folder / "photos.txt")),
        *("--out", str(folder / "small.parquet"), "--overwrite", "--quiet", "--device", "cpu"),
    ]
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *line], stdout=subprocess.DEVNULL)
    found = []
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        resident = next((line for line in lines if line.startswith("VmRSS")), None)
        if resident is not None:
            found.append((time.perf_counter() - started, int(resident.split()[1]) * 1024))
        time.sleep(1)
    assert process.returncode == 0, process.returncode
    return found[:-ENDING]


def write_memory(photos: Path, folder: Path, count: int) -> str:
    import vggkit as vk

    classifier = vk.Classifier.create("vgg11", labels=["a", "b"], until="pool2", head="pool", seed=0)
    classifier.save(folder / "small.safetensors")
    list_photos(photos, count, folder / "photos.txt")
    found = watch(folder)
    after = [size for seconds, size in found if seconds >= 60]
    rows = [f"| {seconds:.0f} | {size / 2**20:.0f} |" for seconds, size in found[:: max(1, len(found) // 12)]]
    first = after[0]
    return "\n".join(
        [
            "# Memory of a long prediction run",
            "",
            f"`vggkit predict --out` on {count:,} JPEG files (`{photos.name}`, repeated) to Parquet, by VGG11 up",
            f"to pool2 at 224 pixels, so that decoding is most of the work: {found[-1][0]:.0f} seconds. Resident",
            "memory was sampled every second; after the first minute it differed from its value then by",
            f"{min(after) / first - 1:+.1%} to {max(after) / first - 1:+.1%}.",
            "",
            "| seconds | MiB |",
            "|---|---|",
            *rows,
        ]
    )


def main() -> None:
    import torch

    from vggkit.hardware import describe_machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?", default=PHOTOS, help="a folder with JPEG files")
    parser.add_argument("--count", type=int, help="files; 800, or 100000 with --memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    asked = parser.parse_args()
    if not asked.photos.is_dir():
        print(f"skipped: {asked.photos} is not there; name a folder with JPEG files")
        return
    with tempfile.TemporaryDirectory() as name:
        if asked.memory:
            text = write_memory(asked.photos, Path(name), asked.count or 100_000)
        else:
            text = write_speeds(asked.photos, Path(name), asked.count or 800, asked.rounds)
    machine = describe_machine(torch.device("cpu"))
    versions = [f"{package} {__import__(package).__version__}" for package in ("torchvision", "openvino")]
    text += (
        f"\n\n{machine['device']}; {machine['system']}; torch {machine['torch']}, {', '.join(versions)}, "
        f"Python {platform.python_version()}; {datetime.datetime.now(datetime.UTC).date()}.\n"
    )
    Path(__file__).with_name("bulk_memory.md" if asked.memory else "bulk.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
