"""`--to web` in a real browser: what the page shows is what `predict` gives, and no image leaves it."""

import functools
import io
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vggkit as vk
from conftest import draw_class
from vggkit.errors import BadConfiguration, BadDownload, BadOutput
from vggkit.exporting import web_runtime
from vggkit.images.preprocessing import choose_preprocessing

LABELS = ("across", "down", "red")
STAND_IN = {"ort.wasm.min.mjs": b"", "ort-wasm-simd-threaded.mjs": b"", "ort-wasm-simd-threaded.wasm": b""}


@pytest.fixture(scope="module")
def classifier(tiny, tmp_path_factory) -> vk.Classifier:
    """Trained, so that no two classes are equally probable."""
    untrained = vk.Classifier.create(tiny, labels=LABELS, preprocessing=choose_preprocessing(64), seed=1)
    images = [(draw_class(label, number, side=64), label) for label in LABELS for number in range(12)]
    out = tmp_path_factory.mktemp("run") / "run"
    return vk.train(images, model=untrained, epochs=3, batch_size=6, out=out, device="cpu", quiet=True).classifier


@pytest.fixture
def no_runtime(monkeypatch):
    """The runtime's files are empty: for what does not open the page."""
    monkeypatch.setattr("vggkit.workflows.export_site.read_web_runtime", lambda on_fetch: STAND_IN)


@pytest.fixture(scope="module")
def site(classifier, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("site") / "flowers"
    try:
        classifier.export(folder, to="web")
    except BadDownload as problem:
        pytest.skip(f"needs onnxruntime-web: {problem}")
    with serve_folder(folder) as address:
        yield address, folder


class serve_folder:
    """A plain static host."""

    def __init__(self, folder: Path) -> None:
        handler = functools.partial(_Quiet, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name)
        pass


def encode(pixels: np.ndarray, kind: str) -> bytes:
    kept = io.BytesIO()
    Image.fromarray(pixels).save(kept, kind, quality=92)
    return kept.getvalue()


def test_fifty_images_get_the_classes_of_predict_and_none_leaves_the_page(site, classifier, browser, tmp_path):
    address, _ = site
    files = []
    for number in range(50):
        pixels = draw_class(LABELS[number % 3], number, side=70 + 3 * number)
        pixels = pixels[: 60 + number]  # of many shapes
        kind = "JPEG" if number % 2 else "PNG"
        files.append(tmp_path / f"{number:02}.{kind.lower()}")
        files[-1].write_bytes(encode(pixels, kind))
    page = browser.new_page()
    complaints, sent = [], []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: sent.append((request.method, request.url)))
    page.goto(address)
    page.wait_for_selector("h1:has-text('flowers'), h1:has-text('custom')")
    before = len(sent)
    page.set_input_files("#files", files)
    page.wait_for_selector("text=50 images classified", timeout=60_000)
    shown = page.locator(".label").all_inner_texts()
    values = page.locator(".bar:first-child .bar-value").all_inner_texts()
    expected = classifier.predict(files)
    assert shown == [each.label for each in expected]
    for text, each in zip(values, expected, strict=True):
        assert float(text.removesuffix(" %")) == pytest.approx(100 * each.probabilities[0], abs=1)
    assert page.locator(".heat:visible").count() == 50
    assert [each for each in sent[before:] if not each[1].startswith(("blob:", "data:"))] == []
    assert {url.split("/")[2] for _, url in sent if url.startswith("http")} == {address.split("/")[2]}
    assert complaints == []
    page.close()


def test_the_heatmap_is_explains(site, classifier, browser, tmp_path):
    _, folder = site
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.stack([classifier.card.preprocessing.fit(draw_class(label, 3, side=64)) for label in LABELS])
    probabilities, maps = session.run(["probabilities", "heatmap"], {"images": images})
    for image, row, found in zip(images, probabilities, maps, strict=True):
        [explanation] = classifier.explain([image], method="grad-cam", label=LABELS[int(row.argmax())])
        assert explanation.map is not None
        np.testing.assert_allclose(found / found.size, explanation.map, atol=1e-5 * max(1, explanation.map.max()))


def test_a_page_that_was_opened_from_a_file_says_what_to_do(site, browser):
    _, folder = site
    page = browser.new_page()
    page.goto((folder / "index.html").as_uri())
    page.wait_for_selector("#alert:has-text('python -m http.server')")
    page.close()


@pytest.mark.parametrize(("head", "hidden", "grid"), [("fc", (16, 12), 2), ("pool", (), 1), ("dense", (16,), 2)])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_head_and_precision(head, hidden, grid, precision, tiny, no_runtime, tmp_path):
    from dataclasses import replace

    network = replace(tiny, head=head, hidden=hidden, grid=grid) if head != "pool" else tiny
    made = vk.Classifier.create(network, labels=LABELS, preprocessing=choose_preprocessing(64), seed=2)
    exported = made.export(tmp_path / "site", to="web", precision=precision)
    assert exported.parity is not None
    described = json.loads((tmp_path / "site" / "model.json").read_text(encoding="utf-8"))
    assert described["labels"] == list(LABELS)
    assert described["explains"] == "heatmap"
    assert "python -m http.server" in exported.snippet


def test_int8_stores_a_quarter(tiny, no_runtime, tmp_path):
    wide = vk.Classifier.create("vgg11", labels=LABELS, until="pool2", preprocessing=choose_preprocessing(32))
    sizes = {
        precision: wide.export(tmp_path / f"{precision}.onnx", precision=precision).size_bytes
        for precision in ("fp32", "int8")
    }
    assert sizes["int8"] < 0.27 * sizes["fp32"]


def test_what_cannot_be_exported_is_refused(classifier, tiny, no_runtime, tmp_path):
    from dataclasses import replace

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(BadOutput, match="holds other files"):
        classifier.export(tmp_path / "full", to="web")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    with pytest.raises(BadConfiguration, match="resize"):
        classifier.export(tmp_path / "site", to="web", resize=True)
    four = vk.Classifier.create(
        replace(tiny, in_channels=4), labels=LABELS, preprocessing=choose_preprocessing(64, in_channels=4)
    )
    with pytest.raises(BadConfiguration, match="3 channels"):
        four.export(tmp_path / "site", to="web")
    assert not (tmp_path / "site").exists()
    classifier.export(tmp_path / "site", to="web")
    classifier.export(tmp_path / "site", to="web")  # its own is replaced


def test_the_runtime_is_known_by_its_digest(classifier, tmp_path, monkeypatch):
    monkeypatch.setenv("VGGKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    with pytest.raises(BadDownload, match=f"npm pack onnxruntime-web@{web_runtime.VERSION}"):
        classifier.export(tmp_path / "site", to="web")
    (tmp_path / "home" / "web").mkdir(parents=True, exist_ok=True)
    (tmp_path / "home" / "web" / web_runtime.ARCHIVE).write_bytes(b"another one")
    with pytest.raises(BadDownload, match="is not onnxruntime-web"):
        classifier.export(tmp_path / "site", to="web")
    assert not (tmp_path / "site").exists()
