"""No image is lost or done twice: bulk work that is killed, stopped, or meets what it should not."""

import gc
import io
import json
import os
import random
import shutil
import signal
import tarfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import draw_class
from vggkit.classifier import Classifier
from vggkit.engines.activation_ranges import measure_ranges
from vggkit.engines.info import EngineInfo
from vggkit.engines.model_weights import ModelFile
from vggkit.errors import BadConfiguration, BadData, BadInput, BadOutput, UnknownName, VggkitError
from vggkit.images.dataset import ImageSample
from vggkit.images.preprocessing import Preprocessing
from vggkit.images.sources.open_dataset import gather_images
from vggkit.inference import bulk as bulk_running
from vggkit.inference.embed import embed, find_width
from vggkit.inference.fingerprint import digest_weights
from vggkit.inference.predict import predict
from vggkit.models.configure import configure
from vggkit.workflows import predict as bulk
from vggkit.workflows import predict_and_explain
from vggkit.workflows.predict import embed_into, predict_into

LABELS = ("across", "down", "red")


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    Classifier.create(
        tiny, labels=LABELS, seed=0, preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32)
    ).save(path)
    return path


@pytest.fixture(scope="module")
def many(photos, tmp_path_factory) -> Path:
    """A list of 401 images, a broken one among them."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "broken.jpg").write_text("x")
    files = [str(file) for file in sorted((photos / "train").rglob("*.png"))]
    lines = (files * 9)[:400]
    lines.insert(77, "broken.jpg")
    (folder / "many.txt").write_text("\n".join(lines))
    return folder / "many.txt"


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows_of(predictions):
    """What a results file holds of them."""
    rows = []
    for each in predictions:
        row = {"path": each.path, "prediction": each.label}
        for rank in range(3):
            there = rank < len(each.labels)
            row[f"label_{rank + 1}"] = each.labels[rank] if there else None
            row[f"probability_{rank + 1}"] = each.probabilities[rank] if there else None
        rows.append(row | {"problem": each.problem})
    return rows


def test_a_file_holds_what_predict_says(model, many, tmp_path):
    classifier = Classifier.load(model)
    classifier.calibrate(threshold=0.34, about={})
    expected = rows_of(predict(classifier, many, batch_size=16, precision="auto"))
    result = predict_into(classifier, many, tmp_path / "r.jsonl", batch_size=16, save_seconds=0)
    assert read_jsonl(tmp_path / "r.jsonl") == expected
    assert (result.images, result.unreadable, result.found_done) == (401, 1, 0)
    assert expected[77]["prediction"] is None
    assert "broken.jpg" in expected[77]["problem"]
    assert {"unknown", "red"} & {row["prediction"] for row in expected}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.jsonl", "r.jsonl.about.json"]


def test_every_kind_of_place_gives_its_images(model, photos, tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    files = sorted((photos / "val").rglob("*.png"))
    (tmp_path / "t.csv").write_text("\n".join(["path", *map(str, files)]))
    for name, mode in (("t.tar", "w"), ("t.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as archive:
            for number, file in enumerate(files):
                archive.add(file, f"{number:03d}.png")
    pq.write_table(pa.table({"image": [file.read_bytes() for file in files]}), tmp_path / "t.parquet")
    expected = None
    for place in (
        photos / "val",
        tmp_path / "t.csv",
        tmp_path / "t.tar",
        tmp_path / "t.tar.gz",
        tmp_path / "t.parquet",
    ):
        assert predict_into(model, place, tmp_path / "r.jsonl", batch_size=4, overwrite=True).images == 15
        rows = read_jsonl(tmp_path / "r.jsonl")
        chances = [(row["label_1"], row["probability_1"]) for row in rows]
        expected = expected or chances
        assert chances == expected, place


def test_embed_gives_what_the_last_layer_reads(model, photos, tmp_path):
    classifier = Classifier.load(model)
    found = embed(classifier, photos / "val")
    pixels = [np.asarray(Image.open(path)) for path in found.paths]
    inputs = torch.from_numpy(np.stack([classifier.preprocessing(each) for each in pixels]))
    with torch.no_grad():
        expected = classifier.network.eval().describe(inputs).numpy()
        maps = classifier.network.features(inputs)
    assert np.allclose(found.vectors, expected, atol=1e-4)
    statistics = embed(classifier, photos / "val", layer="statistics").vectors
    assert np.allclose(statistics[:, :12], maps.mean((2, 3)).numpy(), atol=1e-4)
    pooled = embed(classifier, photos / "val", layer="pool5").vectors
    assert np.allclose(pooled, maps.mean((2, 3)).numpy(), atol=1e-4)
    for name in ("fc9", "conv9_9", "statistic"):
        with pytest.raises(UnknownName, match="features"):
            embed(classifier, photos / "val", layer=name)
    embed_into(classifier, photos / "val", tmp_path / "v.npy", precision="fp32")
    assert np.array_equal(np.load(tmp_path / "v.npy"), found.vectors)


def test_the_paper_s_head_is_known_by_its_layer():
    paper = configure("vgg11")
    assert find_width(paper, "relu7") == find_width(paper, "features") == find_width(paper, "fc7") == 4096
    assert (find_width(paper, "statistics"), find_width(paper, "pool5")) == (1024, 512)


@pytest.fixture(scope="module")
def whole(model, many, tmp_path_factory) -> dict[str, bytes]:
    """The files of work that nobody interrupted, by their ending."""
    out = tmp_path_factory.mktemp("whole")
    for ending in ("csv", "parquet", "json"):
        predict_into(str(model), str(many), out / f"r.{ending}", batch_size=3, device="cpu")
    embed_into(model, many, out / "r.npy", batch_size=3)
    return {path.name.removeprefix("r."): path.read_bytes() for path in out.iterdir()}


def command(model, many, out, *options) -> list[str]:
    verb = "embed" if out.suffix == ".npy" else "predict"
    return [
        *(verb, str(model), str(many), "--out", str(out)),
        *("--batch-size", "3", "--save-seconds", "0", "--device", "cpu", "--quiet", *options),
    ]


def count_parts(out: Path) -> int:
    return len(list(out.with_name(f"{out.name}.parts").glob("[0-9]*.part")))


def signal_after(process, out: Path, parts: int, number: int) -> None:
    """Send the signal when so many parts are on the disk."""
    while count_parts(out) < parts:
        assert process.poll() is None, process.err
        time.sleep(0.001)
    process.send_signal(number)


def demand_whole(out: Path, whole: dict[str, bytes]) -> None:
    ours = {path.name.removeprefix("r."): path.read_bytes() for path in out.parent.iterdir()}
    expected = {name: data for name, data in whole.items() if name.startswith(out.suffix[1:])}
    if out.suffix == ".json":
        expected.pop("jsonl", None)
    assert ours.keys() == expected.keys()
    for name, data in expected.items():
        assert ours[name] == data, name


@pytest.mark.parametrize(("ending", "parts"), [("csv", 1), pytest.param("npy", 60, marks=pytest.mark.slow)])
def test_killed_and_started_again_the_file_is_the_same(ending, parts, model, many, whole, tmp_path, processes):
    out = tmp_path / f"r.{ending}"
    process = processes.start(*command(model, many, out))
    signal_after(process, out, parts, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert count_parts(out) >= parts
    told = json.loads(processes.run(*command(model, many, out, "--json"), code=1).out)
    assert told["found_done"] >= 3 * parts
    assert (told["images"], told["unreadable"]) == (401, 1)
    demand_whole(out, whole)


@pytest.mark.slow
def test_twenty_kills_at_random_moments(model, many, whole, tmp_path, processes):
    draw = random.Random(0)
    for number in range(10):
        out = tmp_path / str(number) / f"r.{draw.choice(['csv', 'parquet', 'json', 'npy'])}"
        for _ in range(2):
            process = processes.start(*command(model, many, out))
            time.sleep(draw.uniform(0.3, 3.0))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
        processes.run(*command(model, many, out), code=1)
        demand_whole(out, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_keeps_what_is_done_and_says_how_to_go_on(number, model, many, whole, tmp_path, processes):
    out = tmp_path / "r.csv"
    process = processes.start(*command(model, many, out, "--overwrite"))
    signal_after(process, out, 2, number)
    assert process.wait() == 128 + number
    told = process.err
    assert "continue with: the same line, without --overwrite" in told
    assert "Traceback" not in told
    done = int(told.partition("(")[2].split()[0])
    assert done >= 6
    found = predict_into(model, many, out, batch_size=3, device="cpu")
    assert found.found_done == done
    demand_whole(out, whole)


def test_what_is_killed_while_the_file_is_made_makes_it_again(model, many, whole, tmp_path, monkeypatch):
    out = tmp_path / "r.csv"
    with monkeypatch.context() as patch:

        def end(*_, **__):
            raise KeyboardInterrupt

        patch.setattr(bulk_running, "stream_columns", end)
        with pytest.raises(KeyboardInterrupt, match="401 images are done"):
            predict_into(model, many, out, batch_size=3, device="cpu")
    assert not out.exists()
    assert predict_into(model, many, out, batch_size=3, device="cpu").found_done == 401
    demand_whole(out, whole)
    # And where it ended while the parts were being removed.
    parts = tmp_path / "r.csv.parts"
    parts.mkdir()
    (parts / f"{0:012d}-{9:012d}-{0:016x}.part").write_text("left")
    assert predict_into(model, many, out, batch_size=3, device="cpu").found_done == 401
    predict_into(model, many, out, batch_size=3, device="cpu", overwrite=True)
    demand_whole(out, whole)


def test_chunks_beyond_a_gap_take_no_rows_from_the_file(model, many, whole, tmp_path, monkeypatch):
    """As a job on Ray leaves them, whose chunks come in any order."""
    out = tmp_path / "r.csv"

    def stop(what: str, done: int, total: int | None) -> None:
        if what == "computing" and done >= 93:
            raise KeyboardInterrupt

    monkeypatch.setattr(bulk_running, "MOST_ROWS", 30)
    with pytest.raises(KeyboardInterrupt):
        predict_into(model, many, out, batch_size=3, device="cpu", on_progress=stop)
    for first in (0, 30):
        next((tmp_path / "r.csv.parts").glob(f"{first:012d}-*.part")).unlink()
    assert [file.name[:25] for file in (tmp_path / "r.csv.parts").glob("*.part")] == ["000000000060-000000000090"]
    monkeypatch.setattr(bulk_running, "MOST_ROWS", 60)
    assert predict_into(model, many, out, batch_size=3, device="cpu").images == 401
    demand_whole(out, whole)


def test_a_finished_file_is_left_as_it_is(model, many, tmp_path, monkeypatch):
    for ending in ("csv", "parquet", "npy"):
        out = tmp_path / f"r.{ending}"
        make = embed_into if ending == "npy" else predict_into
        make(model, many, out)
        before = (out.read_bytes(), out.stat().st_mtime_ns)
        with monkeypatch.context() as patch:
            patch.setattr(predict_and_explain, "iterate_predictions", None)
            patch.setattr(bulk, "iterate_embeddings", None)
            assert make(model, many, out).found_done == 401
        assert (out.read_bytes(), out.stat().st_mtime_ns) == before


def stop_early(model, images, out, monkeypatch, **options):
    """Parts of the first 6 images, and no more."""

    class Enough(Exception):
        pass

    def show(what, done, total):
        if what == "computing" and done >= 7:
            raise Enough

    with pytest.raises(Enough):
        predict_into(model, images, out, batch_size=3, save_seconds=0, on_progress=show, **options)
    assert count_parts(out) == 2


@pytest.mark.parametrize("finished", [True, False])
def test_results_of_something_else_are_refused_and_kept(finished, model, tiny, photos, tmp_path, monkeypatch):
    out = tmp_path / "r.csv"
    if finished:
        predict_into(model, photos / "val", out)
    else:
        stop_early(model, photos / "val", out, monkeypatch)

    def snapshot():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = snapshot()
    classifier = Classifier.load(model)
    other = Classifier.create(tiny, labels=LABELS, seed=1, preprocessing=classifier.preprocessing)
    cropped = Classifier(
        classifier.network, labels=LABELS, preprocessing=Preprocessing(resize_pixels=40, crop_pixels=32)
    )
    hot = Classifier(classifier.network, labels=LABELS, preprocessing=classifier.preprocessing, temperature=2.0)
    for given, place, options, said in (
        (other, photos / "val", {}, "weights: .* then, .* now"),
        (cropped, photos / "val", {}, "resize_pixels: 32 then, 40 now"),
        (hot, photos / "val", {}, "temperature: 1.0 then, 2.0 now"),
        (model, photos / "val", {"top": 1}, "top: 3 then, 1 now"),
        (model, photos / "train", {}, "places: .*val then, .*train now"),
    ):
        with pytest.raises(BadOutput, match=rf"{said}.*--overwrite"):
            predict_into(given, place, out, **options)
    assert snapshot() == before
    assert predict_into(hot, photos / "val", out, overwrite=True).found_done == 0


@pytest.mark.parametrize("finished", [True, False])
def test_other_images_at_the_same_place_are_noticed(finished, model, tmp_path, monkeypatch):
    folder, out = tmp_path / "p", tmp_path / "r.csv"
    folder.mkdir()
    for number in range(9):
        Image.fromarray(draw_class("red", number)).save(folder / f"{number}.png")
    if finished:
        predict_into(model, folder, out, batch_size=3)
    else:
        stop_early(model, folder, out, monkeypatch)
    before = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(before + b"0")
    with pytest.raises(BadOutput, match="other images"):
        predict_into(model, folder, out, batch_size=3)
    (folder / "1.png").unlink()
    with pytest.raises(BadOutput, match="other images"):
        predict_into(model, folder, out, batch_size=3)
    (folder / "1.png").write_bytes(before)
    assert predict_into(model, folder, out, batch_size=3).images == 9
    Image.fromarray(draw_class("red", 9)).save(folder / "9.png")
    with pytest.raises(BadOutput, match="9 then, 10 now"):
        predict_into(model, folder, out, batch_size=3)


def test_a_file_of_somebody_else_is_not_replaced(model, photos, tmp_path):
    (tmp_path / "r.csv").write_text("mine")
    with pytest.raises(BadOutput, match="exists already"):
        predict_into(model, photos / "val", tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text() == "mine"


def test_what_cannot_be_written_is_told_before_any_work(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "ModelFile", None)
    (tmp_path / "file").write_text("x")
    for out, said in (
        (tmp_path, "ends in"),
        (tmp_path / "r.xlsx", "ends in"),
        (tmp_path / "file" / "r.csv", "file"),
    ):
        with pytest.raises(BadOutput, match=said):
            predict_into(model, photos, out)
    with pytest.raises(BadOutput, match=r"\.npy"):
        embed_into(model, photos, tmp_path / "v.csv")
    for options in ({"top": 0}, {"batch_size": 0}):
        with pytest.raises(BadInput):
            predict_into(model, photos, tmp_path / "r.csv", **options)


def test_a_full_disk_keeps_the_parts(model, many, whole, tmp_path, monkeypatch):
    out = tmp_path / "r.csv"
    write, written = Path.write_bytes, []

    def fill(path, data):
        written.append(1)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill)
        with pytest.raises(BadOutput, match="No space left"):
            predict_into(model, many, out, batch_size=3, device="cpu", save_seconds=0)
    assert count_parts(out) == 2
    assert predict_into(model, many, out, batch_size=3, device="cpu").found_done == 6
    demand_whole(out, whole)


def test_only_one_process_writes_a_file(model, many, tmp_path, processes):
    out = tmp_path / "r.csv"
    process = processes.start(*command(model, many, out))
    signal_after(process, out, 1, signal.SIGSTOP)
    try:
        with pytest.raises(BadOutput, match="another process"):
            predict_into(model, many, out, batch_size=3)
    finally:
        process.send_signal(signal.SIGCONT)
    assert process.wait() == 1  # one of the images cannot be read


def test_an_archive_that_ends_too_early_keeps_what_came_before(model, tmp_path):
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for number in range(30):
            held = io.BytesIO()
            Image.fromarray(draw_class("red", number)).save(held, "PNG")
            entry = tarfile.TarInfo(f"{number:02d}.png")
            entry.size = len(held.getvalue())
            archive.addfile(entry, io.BytesIO(held.getvalue()))
    import gzip

    packed = gzip.compress(plain.getvalue())
    (tmp_path / "t.tar.gz").write_bytes(packed[: int(0.4 * len(packed))])
    out = tmp_path / "r.csv"
    with pytest.raises(BadData, match="cannot be read as a tar archive"):
        predict_into(model, tmp_path / "t.tar.gz", out, batch_size=2, save_seconds=1000)
    assert count_parts(out) == 1
    (tmp_path / "t.tar.gz").write_bytes(packed)
    result = predict_into(model, tmp_path / "t.tar.gz", out, batch_size=2)
    assert result.images == 30
    assert 0 < result.found_done < 30
    assert result.found_done % 2 == 0


def count_images() -> int:
    return sum(type(each) is ImageSample for each in gc.get_objects())


class Held:
    """Images that are in memory at once, and the most bytes, while a file is made."""

    def __init__(self, model, place, out, make):
        self.images = 0
        gc.collect()
        self.before = count_images()  # other tests hold some
        tracemalloc.start()
        try:
            make(model, place, out, batch_size=4, save_seconds=0, on_progress=self.look)
            self.bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def look(self, what, done, total):
        if done % 20 == 0:
            self.images = max(self.images, count_images() - self.before)


def lay_out(file: Path, kind: str, count: int, folder: Path) -> Path:
    """A place with the image so many times."""
    if kind == "folders":
        for number in range(count):
            (folder / "p" / str(number // 20)).mkdir(parents=True, exist_ok=True)
            (folder / "p" / str(number // 20) / f"{number}.png").hardlink_to(file)
        return folder / "p"
    if kind == "tar":
        with tarfile.open(folder / "t.tar", "w") as archive:
            for number in range(count):
                entry = tarfile.TarInfo(f"{number:03d}.png")
                entry.size = file.stat().st_size
                archive.addfile(entry, io.BytesIO(file.read_bytes()))
        return folder / "t.tar"
    place = folder / f"t.{kind}"
    place.write_text("\n".join((["path"] if kind == "csv" else []) + [str(file)] * count))
    return place


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (predict_into, "csv"),
        pytest.param(predict_into, "folders", marks=pytest.mark.slow),
        pytest.param(predict_into, "tar", marks=pytest.mark.slow),
        pytest.param(embed_into, "txt", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(make, kind, model, photos, tmp_path):
    classifier = Classifier.load(model)
    file = next((photos / "val").rglob("*.png"))
    places = []
    for count in (40, 160):
        (tmp_path / str(count)).mkdir()
        places.append(lay_out(file, kind, count, tmp_path / str(count)))
    make(classifier, places[0], tmp_path / "warm.parquet", batch_size=4)
    few, more = (Held(classifier, place, place.parent / "r.parquet", make) for place in places)
    assert 0 < more.images <= few.images + 2
    # Three batches, and the one in hand.
    assert few.images <= 3 * 4 + 1
    assert more.bytes < 1.3 * few.bytes, (few.bytes, more.bytes)


def test_images_of_folders_come_sorted_and_links_are_not_entered(tmp_path):
    for name in (
        "b/2.png",
        "b/10.png",
        "b.png",
        "a.png",
        "b/c/1.png",
        "b-/1.png",
        ".h/1.png",
        "b/.x.png",
        "é/1.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "d.png").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    expected = sorted(
        Path(folder, name)
        for folder, folders, files in os.walk(tmp_path)
        for name in files
        if name.endswith(".png") and "/." not in f"{folder}/{name}"
    )
    assert [image.path for image in gather_images(tmp_path)] == list(map(str, expected))
    assert len(expected) == 8


def test_images_in_memory_and_no_images(model, tmp_path):
    held = [ImageSample(f"memory/{number}", None, draw_class("red", number)) for number in range(5)]
    assert predict_into(model, held, tmp_path / "r.csv").images == 5
    assert predict_into(model, held, tmp_path / "r.csv").found_done == 5
    with pytest.raises(BadOutput, match="other images"):
        predict_into(model, held[::-1], tmp_path / "r.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VggkitError, match="holds no images"):
        predict_into(model, tmp_path / "empty", tmp_path / "e.csv")
    assert not (tmp_path / "e.csv").exists()


def test_int8_by_the_ranges_of_the_file(model, photos, tmp_path):
    pytest.importorskip("openvino")
    with pytest.raises(BadConfiguration, match="--keep-ranges"):
        predict_into(model, photos / "val", tmp_path / "a.csv", precision="int8")
    assert not (tmp_path / "a.csv.parts").exists()
    classifier = Classifier.load(model)
    exact = embed(classifier, photos / "val").vectors
    images = list(gather_images(photos / "train"))
    classifier.keep_ranges(measure_ranges(classifier.network, prepare_batches(classifier, images)), about={})
    path = tmp_path / "m.safetensors"
    classifier.save(path)
    result = predict_into(path, photos / "val", tmp_path / "a.csv", precision="int8")
    assert result.images == 15
    assert result.engine.precision == "int8"
    embed_into(path, photos / "val", tmp_path / "v.npy", precision="int8")
    found = np.load(tmp_path / "v.npy")
    assert not np.array_equal(found, exact)
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.1 * exact.std()
    assert np.array_equal(found, embed(ModelFile(path), photos / "val", precision="int8").vectors)


def prepare_batches(classifier, images):
    yield np.stack([classifier.preprocessing(image.decode()) for image in images])


def test_a_file_and_its_network_in_memory_have_one_digest(model):
    classifier = Classifier.load(model)
    assert digest_weights(ModelFile(model)) == digest_weights(classifier)
    with torch.no_grad():
        classifier.network.classifier[0].bias[0] += 1e-3
    assert digest_weights(ModelFile(model)) != digest_weights(classifier)


@pytest.mark.parametrize("from_file", [True, False])
def test_probabilities_as_vectors_are_those_of_the_answers(model, photos, tmp_path, from_file):
    classifier = Classifier.load(model)
    classifier.calibrate(temperature=0.25, about={})
    classifier.save(tmp_path / "m.safetensors")
    given = ModelFile(tmp_path / "m.safetensors") if from_file else classifier
    found = embed(given, photos / "val", layer="probabilities").vectors
    for row, answer in zip(found, predict(classifier, photos / "val"), strict=True):
        chances = dict(zip(answer.labels, answer.probabilities, strict=True))
        assert row == pytest.approx([chances[label] for label in LABELS], abs=1e-5)


def test_other_ranges_are_another_model(model, photos, tmp_path):
    pytest.importorskip("openvino")
    classifier = Classifier.load(model)
    activation_ranges = measure_ranges(
        classifier.network, prepare_batches(classifier, list(gather_images(photos / "train")))
    )
    for factor in (1.0, 2.0):
        scaled = {name: (factor * low, factor * high) for name, (low, high) in activation_ranges.items()}
        classifier.keep_ranges(scaled, about={})
        if factor == 1:
            predict_into(classifier, photos / "val", tmp_path / "a.csv", precision="int8")
            predict_into(classifier, photos / "val", tmp_path / "exact.csv", precision="fp32")
    with pytest.raises(BadOutput, match="other results"):
        predict_into(classifier, photos / "val", tmp_path / "a.csv", precision="int8")
    assert predict_into(classifier, photos / "val", tmp_path / "exact.csv", precision="fp32").found_done == 15


class Reworded:
    """As if a sentence about an engine were worded otherwise."""

    def __call__(self, *_, **__) -> str:
        return "reworded"


@pytest.mark.parametrize("finished", [True, False])
def test_a_job_continues_under_the_same_engine_however_it_is_described(
    finished, model, photos, tmp_path, monkeypatch
):
    out = tmp_path / "r.csv"
    if finished:
        predict_into(model, photos / "val", out, batch_size=3)
    else:
        stop_early(model, photos / "val", out, monkeypatch)
    monkeypatch.setattr(EngineInfo, "describe", Reworded())
    found = predict_into(model, photos / "val", out, batch_size=3)
    assert found.found_done == (15 if finished else 6)
    assert isinstance(found.engine, EngineInfo)


@pytest.mark.parametrize("finished", [True, False])
def test_a_job_does_not_continue_under_another_engine(finished, model, photos, tmp_path, monkeypatch):
    out = tmp_path / "r.csv"
    if finished:
        predict_into(model, photos / "val", out, batch_size=3, engine="pytorch", precision="fp32")
    else:
        stop_early(model, photos / "val", out, monkeypatch, engine="pytorch", precision="fp32")
    with pytest.raises(BadOutput, match=r"precision: fp32 then, bf16 now.*--overwrite"):
        predict_into(model, photos / "val", out, batch_size=3, engine="pytorch", precision="bf16")
    monkeypatch.setattr(
        "vggkit.engines.pytorch.EngineInfo", lambda **values: EngineInfo(**values | {"version": "0.0"})
    )
    with pytest.raises(BadOutput, match=r"version: .* then, 0\.0 now.*--overwrite"):
        predict_into(model, photos / "val", out, batch_size=3, engine="pytorch", precision="fp32")


def test_a_job_of_version_0_1_continues_under_the_engine_that_its_sentence_names(
    model, photos, tmp_path, monkeypatch
):
    """Those files held a sentence about the engine in place of a record."""
    out = tmp_path / "r.csv"
    stop_early(model, photos / "val", out, monkeypatch, engine="pytorch", precision="fp32")
    manifest = tmp_path / "r.csv.parts" / "made_with.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"engine": "PyTorch in float32"}))
    with pytest.raises(BadOutput, match=r"engine: PyTorch in float32 then, PyTorch in bfloat16 now.*--overwrite"):
        predict_into(model, photos / "val", out, batch_size=3, engine="pytorch", precision="bf16")
    found = predict_into(model, photos / "val", out, batch_size=3, engine="pytorch", precision="fp32")
    assert found.found_done == 6
    written = json.loads(out.with_name("r.csv.about.json").read_text())["engine"]
    assert written == {
        **{"name": "pytorch", "precision": "fp32", "device": "cpu", "version": str(torch.__version__)},
        "weight_bits": None,
    }


def as_version_0_1_wrote_it(about: dict, engine: str) -> dict:
    """What it stated of a file: a sentence in place of the engine's record, and other names."""
    about = about | {"engine": engine}
    if "images" in about:
        about |= {"format_version": 1, "pictures": about.pop("images")}
    return about


def test_files_of_version_0_1_are_recognised(model, photos, tmp_path):
    out = tmp_path / "r.csv"
    predict_into(model, photos / "val", out, engine="pytorch", precision="fp32")
    beside = out.with_name("r.csv.about.json")
    about = json.loads(beside.read_text())
    beside.write_text(json.dumps(as_version_0_1_wrote_it(about, "PyTorch in float32")))
    before = out.read_bytes()
    assert predict_into(model, photos / "val", out, engine="pytorch", precision="fp32").found_done == 15
    assert out.read_bytes() == before
    with pytest.raises(BadOutput, match="engine: PyTorch in float32 then, PyTorch in bfloat16 now"):
        predict_into(model, photos / "val", out, engine="pytorch", precision="bf16")


def test_chunks_of_version_0_1_are_continued(model, photos, tmp_path, monkeypatch):
    """They held the column `prediction` under the name `answer`."""
    whole, out = tmp_path / "whole.csv", tmp_path / "r.csv"
    predict_into(model, photos / "val", whole, batch_size=3)
    stop_early(model, photos / "val", out, monkeypatch)
    for chunk in (tmp_path / "r.csv.parts").glob("*.part"):
        with np.load(chunk) as held:
            lists = json.loads(held["lists"].tobytes())
        lists = {"answer" if name == "prediction" else name: column for name, column in lists.items()}
        with chunk.open("wb") as file:
            np.savez(file, lists=np.frombuffer(json.dumps(lists).encode(), np.uint8))
    assert predict_into(model, photos / "val", out, batch_size=3).found_done == 6
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("ending", ["csv", "npy"])
def test_a_job_that_writes_among_its_images_does_not_list_its_own_files(
    model, photos, tmp_path, ending, monkeypatch
):
    folder = tmp_path / "photos"
    shutil.copytree(photos / "val", folder)
    (folder / "notes.docx").write_text("x")
    out = folder / f"r.{ending}"
    make = embed_into if ending == "npy" else predict_into
    if ending == "csv":
        stop_early(model, folder, out, monkeypatch)
    for _ in range(2):  # computed, and found finished
        found = make(model, folder, out, batch_size=3)
        assert [(each.reason, each.count) for each in found.skipped] == [("not-an-image", 1)]
    relative = Path(os.path.relpath(folder))
    found = make(model, relative, out, overwrite=True)
    assert found.skipped[0].examples == (str(relative / "notes.docx"),)


@pytest.mark.parametrize("verb", [predict_into, embed_into])
def test_a_place_without_images_is_refused_before_an_engine_is_built(verb, model, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "choose_engine", None)
    (tmp_path / "empty").mkdir()
    for place in ("nowhere", tmp_path / "empty"):
        with pytest.raises(VggkitError, match=Path(place).name):
            verb(model, place, tmp_path / "v.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
