"""Fine-tuning all layers or the head alone, on the same photos from the same weights: accuracy, time, memory.

`vggkit train` in a process of its own for each strategy and seed; the photos of hymenoptera divided by
folder, VGG-19 to relu3_4 with Oxford's weights. Writes fine_tuning.md beside itself.
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
from pathlib import Path

from vggkit.weights.classifier_file import read_card

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WEIGHTS = SHARED / "weights" / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth"
STRATEGIES = ("head", "top", "gradual", "all")


def learn(strategy: str, seed: int, epochs: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vggkit", "train", str(SHARED / "hymenoptera"), "--model", "vgg19"]
        command += ["--until", "relu3_4", "--head", "pool", "--weights", str(WEIGHTS), "--trainable", strategy]
        command += ["--seed", str(seed), "--epochs", str(epochs), "--out", f"{folder}/run", "--json", "--quiet"]
        started = time.perf_counter()
        told = subprocess.run(
            command,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "VGGKIT_HOME": f"{folder}/home"},
        ).stdout
        seconds = time.perf_counter() - started
        peak = read_card(f"{folder}/run/best.safetensors").provenance["peak_memory_bytes"]
        return {"seconds": seconds, "peak": peak, **json.loads(told)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    options = parser.parse_args()

    import torch

    from vggkit.evaluation.evaluation import proportion_interval
    from vggkit.hardware import describe_machine

    rows = []
    for strategy in options.strategies:
        runs = [learn(strategy, seed, options.epochs) for seed in range(options.seeds)]
        hits, n = sum(round(run["top1"] * run["n"]) for run in runs), sum(run["n"] for run in runs)
        low, high = proportion_interval(hits, n)
        rows.append(
            f"| {strategy} | {hits / n:.3f} ({low:.3f} to {high:.3f}) | {runs[0]['n']} × {len(runs)} | "
            f"{statistics.median(run['seconds'] for run in runs):.0f} | "
            f"{max(run['peak'] for run in runs) / 1e9:.2f} |"
        )
        print(rows[-1], file=sys.stderr)
    machine = describe_machine(torch.device("cpu"))
    text = "\n".join(
        [
            "# Fine-tuning all layers, or the head alone",
            "",
            "The photos of hymenoptera, 244 for training and 153 held out by folder; VGG-19 to relu3_4 with",
            f"Oxford's ImageNet weights. Fine-tuning takes {options.epochs} epochs, the best of which is selected",
            "by the held-out photos, which biases its accuracy upwards slightly; the head alone is a linear probe",
            "and selects nothing by them. Times and peak memory are those of whole processes, including decoding",
            "and evaluation; intervals are Wilson's, 95 %.",
            "",
            "| trainable | top-1 | n × seeds | seconds | GB |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"{machine['device']}; {machine['system']}; torch {machine['torch']}, "
            f"Python {platform.python_version()}; {datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
