"""The nearest images, with brute force and FAISS's own index as oracles."""

import shutil
import sys

import numpy as np
import pytest

from vggkit.classifier import Classifier
from vggkit.errors import BadData, BadInput, MissingExtra
from vggkit.images.preprocessing import Preprocessing
from vggkit.inference import search as searching
from vggkit.inference.embed import embed
from vggkit.inference.search import VectorIndex
from vggkit.reports.plots import demand_drawable
from vggkit.reports.search_table import draw_search, plot_search
from vggkit.table_files import name_about
from vggkit.workflows.predict import embed_into, predict_into
from vggkit.workflows.search import search

faiss = pytest.importorskip("faiss")
LABELS = ("across", "down", "red")


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    preprocessing = Preprocessing(resize_pixels=32, crop_pixels=32)
    Classifier.create(tiny, labels=LABELS, seed=0, preprocessing=preprocessing).save(path)
    return path


@pytest.fixture(scope="module")
def mixed(photos, tmp_path_factory):
    """The images to search among, two broken ones included."""
    folder = tmp_path_factory.mktemp("mixed") / "train"
    shutil.copytree(photos / "train", folder)
    for name in ("across/000.png", "red/zzz.png"):
        (folder / name).write_text("x")
    return folder


@pytest.mark.sweep(5)
@pytest.mark.parametrize("ending", ["parquet", "npy"])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_nearest_are_found_whatever_the_chunks(ending, chunk, model, mixed, photos, tmp_path, monkeypatch):
    classifier = Classifier.load(model)
    index = tmp_path / f"v.{ending}"
    embed_into(classifier, mixed, index, batch_size=32, precision="fp32")
    held, asked = embed(classifier, mixed), embed(classifier, photos / "val")
    width = held.vectors.shape[1]
    monkeypatch.setattr(searching, "CHUNK_BYTES", 4 * width * chunk)
    found = search(index, photos / "val", model=classifier, top=5)

    there = [number for number, problem in enumerate(held.problems) if problem is None]
    assert len(there) == len(held.paths) - 2
    length = np.linalg.norm(held.vectors[there].astype(np.float64), axis=1, keepdims=True)
    rows = (held.vectors[there] / length).astype(np.float32)
    oracle = faiss.IndexFlatIP(width)
    oracle.add(rows)
    queries = asked.vectors / np.linalg.norm(asked.vectors, axis=1, keepdims=True)
    scores, numbers = oracle.search(queries.astype(np.float32), 5)
    assert [each.path for each in found] == list(asked.paths)
    for each, near, row in zip(found, numbers, scores, strict=True):
        assert [n.similarity for n in each.similar] == pytest.approx(row.tolist(), abs=1e-5)
        # Which of two equally near ones comes first is the oracle's own affair.
        exact = {held.paths[there[number]]: score for number, score in zip(near, row, strict=True)}
        for neighbour in each.similar:
            assert neighbour.path in exact or neighbour.similarity == pytest.approx(row[-1], abs=1e-5)


def test_an_image_is_nearest_to_itself_and_equal_ones_come_in_their_order(model, photos, tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    first, second = sorted((photos / "val" / "red").iterdir())[:2]
    for name, source in (("a.png", first), ("b.png", second), ("c.png", first), ("d.png", first)):
        shutil.copy(source, folder / name)
    embed_into(model, folder, tmp_path / "v.parquet")
    (found,) = search(tmp_path / "v.parquet", folder / "c.png", top=100, keep_query=True)
    assert [each.path[-5:] for each in found.similar] == ["a.png", "c.png", "d.png", "b.png"]
    assert found.similar[0].similarity == pytest.approx(1, abs=1e-6)
    (others,) = search(tmp_path / "v.parquet", folder / "c.png", top=2)
    assert [each.path[-5:] for each in others.similar] == ["a.png", "d.png"]
    (tmp_path / "link.png").symlink_to(folder / "c.png")
    (others,) = search(tmp_path / "v.parquet", tmp_path / "link.png")
    assert [each.path[-5:] for each in others.similar] == ["a.png", "d.png", "b.png"]


def test_zeros_and_a_single_number_are_taken(tmp_path):
    rows = np.array([[0.0, 0.0], [0.0, 2.0], [3.0, 0.0]], np.float32)
    near = searching._normalize(rows)
    assert near.tolist() == [[0, 0], [0, 1], [1, 0]]


def test_an_index_refuses_what_it_was_not_made_with(model, tiny, photos, tmp_path):
    index = tmp_path / "v.npy"
    mine = tmp_path / "mine.safetensors"
    shutil.copy(model, mine)
    embed_into(mine, photos / "val", index)
    classifier = Classifier.load(model)
    other = Classifier.create(tiny, labels=LABELS, seed=9, preprocessing=classifier.preprocessing)
    cropped = Classifier(
        classifier.network, labels=LABELS, preprocessing=Preprocessing(resize_pixels=40, crop_pixels=32)
    )
    for given, said in ((other, "weights"), (cropped, "resize_pixels: 32 then, 40 now")):
        with pytest.raises(BadInput, match=f"another Classifier.*{said}"):
            search(index, photos / "val", model=given)
    # How sure its answers are does not matter to vectors.
    sure = Classifier(classifier.network, labels=LABELS, preprocessing=classifier.preprocessing, temperature=2.0)
    expected = search(index, photos / "val", model=sure, top=2)
    assert search(index, photos / "val", top=2) == expected
    mine.unlink()
    with pytest.raises(BadData, match=r"mine\.safetensors, which is no longer there.*--model"):
        search(index, photos / "val")
    assert search(index, photos / "val", model=model, top=2) == expected
    with pytest.raises(BadInput, match="top"):
        search(index, photos / "val", model=model, top=0)


def test_what_is_no_index_says_so(model, photos, tmp_path):
    predict_into(model, photos / "val", tmp_path / "r.parquet")
    embed_into(model, photos / "val", tmp_path / "v.npy")
    name_about(tmp_path / "v.npy").unlink()
    (tmp_path / "x.parquet").write_text("x")
    for name in ("r.parquet", "v.npy", "x.parquet"):
        with pytest.raises(BadData, match="holds no vectors"):
            VectorIndex.open(tmp_path / name)
    with pytest.raises(BadData, match="vggkit embed"):
        VectorIndex.open(tmp_path / "none.parquet")
    embed_into(Classifier.load(model), photos / "val", tmp_path / "memory.npy")
    with pytest.raises(BadInput, match="in memory"):
        search(tmp_path / "memory.npy", photos / "val")


def test_without_faiss_the_line_that_installs_it_is_named(model, photos, tmp_path, monkeypatch):
    embed_into(model, photos / "val", tmp_path / "v.npy")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtra, match=r'pip install "vggkit\[search\]"'):
        search(tmp_path / "v.npy", photos / "val")


def test_they_are_shown_as_a_table_and_as_a_sheet(model, photos, tmp_path, real_plots):
    import io

    from rich.console import Console

    embed_into(model, photos / "val", tmp_path / "v.parquet")
    found = search(tmp_path / "v.parquet", photos / "val" / "red", top=3)
    out = io.StringIO()
    Console(file=out, width=300).print(draw_search(found))
    for each in found:
        assert each.path in out.getvalue()
        for near in each.similar:
            assert f"{near.similarity:.4f}" in out.getvalue()
    from PIL import Image

    plot_search(found, tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width > 4 * 200
        assert sheet.height > 5 * 200
    with pytest.raises(Exception, match=r"\.png"):
        demand_drawable(tmp_path / "s.bmp")
