"""How many of vggkit's files a command enters: four commands, run for real on a few generated images.

A file counts where one of its functions is called; what an import alone runs does not. A file's distance is the
smallest number of files on the stack when one of its functions is called: 1 for the command line, 2 for what it
calls in another file, and so on; it begins again in each thread. `--source` names another version's `src` folder to
count that one. Prints a table, and with `--list` the files of each command in the order in which it enters them,
each after its distance.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SOURCE = Path(__file__).resolve().parents[1] / "src"
JOURNEYS = {
    "train": "train photos --until pool1 --image-size 32 --epochs 1 --out run --device cpu",
    "predict --out": "predict run photos/val --out predictions.csv --device cpu",
    "identify": "identify weights.pth",
    "evaluate": "evaluate run photos --device cpu",
}
FOLLOW = """
import inspect, sys, threading
import vggkit
from pathlib import Path
try:
    from vggkit.cli.main import main
except ImportError:  # version 0.1
    from vggkit.interfaces.cli import main
root = str(Path(vggkit.__file__).parent)
seen = {}
def follow(frame, event, argument):
    code = frame.f_code
    if event != "call" or seen is None or not code.co_filename.startswith(root):
        return
    distance, last = 0, None
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(root):
            if not frame.f_code.co_flags & inspect.CO_NEWLOCALS:  # a module is being imported
                return
            distance += name != last
            last = name
        frame = frame.f_back
    entered = code.co_filename[len(root) + 1:]
    seen[entered] = min(distance, seen.get(entered, distance))
threading.setprofile(follow)
sys.setprofile(follow)
try:
    main(sys.argv[2:])
except SystemExit as ended:
    sys.setprofile(None)
    Path(sys.argv[1]).write_text("\\n".join(f"{distance} {name}" for name, distance in seen.items()))
    sys.exit(ended.code)
"""
SAVE = """
import torch, vggkit
torch.save(vggkit.load("run").network.state_dict(), "weights.pth")
"""


def fill_folder(folder: Path) -> None:
    """Two classes, dark and bright, in train/ and val/."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        for label, level in (("dark", 0), ("bright", 120)):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(level, level + 100, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")


def count(source: Path) -> dict[str, dict[str, int]]:
    """The files that each command enters, in the order in which it does, and the distance of each."""
    environment = {**os.environ, "PYTHONPATH": str(source)}
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill_folder(folder / "photos")
        for journey, line in JOURNEYS.items():
            if journey == "identify":
                subprocess.run([sys.executable, "-c", SAVE], cwd=folder, env=environment, check=True)
            command = [
                sys.executable,
                "-c",
                FOLLOW,
                "seen.txt",
                *line.split(),
                *(["--quiet"] if "run" in line else []),
            ]
            subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
            lines = (folder / "seen.txt").read_text().split("\n")
            found[journey] = {name: int(distance) for distance, name in (line.split(" ") for line in lines)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=SOURCE)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    found = count(options.source.resolve())
    print("| command | distance up to 3 | up to 4 | up to 5 | all files |\n|---|---|---|---|---|")
    for journey, files in found.items():
        near = (sum(distance <= limit for distance in files.values()) for limit in (3, 4, 5))
        print("|", " | ".join([f"`{journey}`", *map(str, near), str(len(files))]), "|")
    for journey, files in found.items() if options.list else ():
        print(f"\n{journey}:", *(f"{distance} {name}" for name, distance in files.items()), sep="\n  ")


if __name__ == "__main__":
    main()
