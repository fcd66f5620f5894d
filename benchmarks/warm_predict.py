"""What the public call costs beside the engine: one warm image through `Classifier.predict`, and the engine alone.

Both in one process, in turns, so that whatever else the machine does meets them alike; what counts is the ratio.

    python benchmarks/warm_predict.py [MODEL] [ROUNDS]
"""

import io
import statistics
import sys
import time

import numpy as np
from PIL import Image

import vggkit as vk
from vggkit.engines.select import choose_engine

MODEL = sys.argv[1] if len(sys.argv) > 1 else "vgg16"
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 15


def draw_jpeg() -> bytes:
    """A photo's size and smoothness: 500 × 375 pixels."""
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(out, "jpeg", quality=90)
    return out.getvalue()


def main() -> None:
    classifier = vk.Classifier.create(MODEL, labels=[f"class {n}" for n in range(1000)], seed=0)
    jpeg = draw_jpeg()
    batch = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    print(f"{MODEL}, one image, medians of {ROUNDS} rounds, milliseconds")
    print("| engine | precision | first call | warm call | engine alone | ratio |\n|---|---|---|---|---|---|")
    for precision in ("fp32", "auto"):
        engine = choose_engine(classifier, precision=precision)
        start = time.perf_counter()
        classifier.predict(jpeg, precision=precision)
        first = time.perf_counter() - start
        engine.run(batch)
        times: dict[str, list[float]] = {"call": [], "engine": []}
        for _ in range(ROUNDS):
            start = time.perf_counter()
            classifier.predict(jpeg, precision=precision)
            middle = time.perf_counter()
            engine.run(batch)
            times["call"].append(middle - start)
            times["engine"].append(time.perf_counter() - middle)
        call, alone = (statistics.median(times[name]) for name in ("call", "engine"))
        cells = [engine.info.name, engine.info.precision]
        cells += [f"{1000 * seconds:.1f}" for seconds in (first, call, alone)]
        print(f"| {' | '.join(cells)} | {call / alone:.2f} |", flush=True)


if __name__ == "__main__":
    main()
