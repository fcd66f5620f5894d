"""How long the static page of `vggkit export MODEL site/ --to web` takes in headless Chromium.

VGG11 of random weights with a pool head, whole and with half the channels, stored in int8, 224 pixels. For each:
the bytes that a visitor loads, the seconds until the page is ready, and of a result (decoding a JPEG of 640 × 480
pixels, resizing, the network, the heatmap), once it is warm, beside `Classifier.predict` of the same files on the
same machine. Needs playwright, Chromium and onnxruntime-web. Writes web_page.md beside itself.
"""

import argparse
import datetime
import functools
import shutil
import statistics
import tempfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import sync_playwright

import vggkit as vk
from vggkit.hardware import describe_machine
from vggkit.models.configure import configure

HALF = "32/64/128,128/256,256/256,256"
NETWORKS = {"VGG11, pool head": {}, "VGG11, half the channels, pool head": {"blocks": HALF}}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name)
        pass


def write_photos(folder: Path, count: int) -> list[Path]:
    """JPEGs with a photo's size and smoothness."""
    files = []
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 255, (30, 40, 3), np.uint8)
        files.append(folder / f"{number}.jpg")
        Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return files


def time_page(site: Path, files: list[Path], chromium: str) -> tuple[float, list[float]]:
    """Seconds until the page is ready, and those of each answer, one image at a time."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page()
            began = time.perf_counter()
            page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
            page.wait_for_function("!document.querySelector('#files').disabled && document.querySelector('h1')")
            page.evaluate("import('./browser.js').then((b) => b.describe())")
            ready = time.perf_counter() - began
            taken = []
            for file in files:
                data = list(file.read_bytes())
                taken.append(
                    page.evaluate(
                        "async (data) => { const { classify } = await import('./browser.js');"
                        "const file = new File([new Uint8Array(data)], 'a.jpg', { type: 'image/jpeg' });"
                        "return (await classify([file], { top: 5, explain: true })).seconds; }",
                        data,
                    )
                )
            browser.close()
            return ready, taken[1:]
    finally:
        server.shutdown()
        server.server_close()


def time_predict(classifier: vk.Classifier, files: list[Path]) -> list[float]:
    taken = []
    for file in files:
        began = time.perf_counter()
        classifier.predict(file, device="cpu", precision="fp32")
        taken.append(time.perf_counter() - began)
    return taken[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    rows = []
    for name, options in NETWORKS.items():
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            network = configure("vgg11", head="pool", **options)
            classifier = vk.Classifier.create(network, labels=[f"class {n}" for n in range(10)], seed=0)
            classifier.export(folder / "site", to="web", precision="int8")
            loaded = sum(file.stat().st_size for file in (folder / "site").rglob("*") if file.is_file())
            files = write_photos(folder, runs + 1)
            ready, in_page = time_page(folder / "site", files, chromium)
            in_python = time_predict(classifier, files)
        page, python = statistics.median(in_page), statistics.median(in_python)
        size = f"{(loaded / 1e6):.1f}"
        rows.append(f"| {name} | {size} | {ready:.1f} | {page:.2f} | {python:.3f} | {page / python:.1f} |")
        print(rows[-1], flush=True)
    machine = describe_machine(torch.device("cpu"))
    text = "\n".join(
        [
            "# The static page",
            "",
            "`vggkit export MODEL site/ --to web --precision int8` in headless Chromium, 224 pixels, random",
            "weights. Loaded: all files of the site. Ready: from opening the page to the compiled model, from a",
            "server on the same machine. A result: a JPEG of 640 × 480 pixels decoded, resized and classified,",
            f"with its heatmap, medians of {runs} after a first one; beside it `Classifier.predict` in float32",
            "with the engine of `auto` (OpenVINO), without a heatmap, on all cores. The page computes in one",
            "thread, as plain static hosts send no COOP and COEP headers.",
            "",
            "| network | MB loaded | ready, s | a result, s | predict, s | ratio |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"{machine['device']}; {machine['system']}; torch {machine['torch']}; "
            f"{datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
