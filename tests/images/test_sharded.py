"""Datasets in shards: every image once, in an order that is a function of the seed, whatever is read when."""

import hashlib
import io
import json
import pickle
import tarfile
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vggkit as vk
from vggkit.errors import BadData, BadImage
from vggkit.images.dataset import ImageDataset
from vggkit.images.lazy_images import LazyImages
from vggkit.images.sources.open_dataset import count_images, iterate_images, open_dataset
from vggkit.images.sources.shards import dataset as sharded
from vggkit.images.sources.shards.dataset import verify_shards
from vggkit.images.sources.shards.manifest import Manifest, Shard, ShardIndex, read_manifest
from vggkit.images.splits import divide, hold_out

FORMS = pytest.mark.parametrize("form", ["tar", "parquet"])


def paint(number: int) -> bytes:
    """A small PNG of its own."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 images of 3 classes, undivided."""
    made = tmp_path_factory.mktemp("images")
    for number in range(45):
        place = made / ("ants", "bees", "crickets")[number % 3] / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(paint(number))
    return made


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("shards")
    for form in ("tar", "parquet"):
        vk.shard(folder, made / form, to=form, images_per_shard=7)
    return {form: made / form for form in ("tar", "parquet")}


def lazy(dataset: ImageDataset, split: str = "all") -> LazyImages:
    images = dataset.split(split)
    assert isinstance(images, LazyImages)
    return images


@FORMS
def test_shards_hold_every_image_with_its_label_once(form, folder, shards):
    plain, packed = open_dataset(folder), open_dataset(shards[form])
    assert packed.labels == plain.labels
    assert packed.count("all") == plain.count("all")
    images = packed.split("all")
    assert sorted((p.read(), p.label) for p in images) == sorted((p.read(), p.label) for p in plain.split("all"))
    assert [p.read() for p in lazy(packed).stream()] == [p.read() for p in images]
    assert [p.path for p in images[3:6]] == [p.path for p in images][3:6]
    assert pickle.loads(pickle.dumps(images[5])).read() == images[5].read()


@FORMS
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_shards_are_what_other_readers_know(form, folder, shards):
    """WebDataset's layout, Hugging Face's, and vggkit's own readers without a manifest."""
    named = open_dataset(shards[form])
    files = f"{shards[form]}/images-*.{form}"
    found = {image.path: image for image in iterate_images([files])}
    assert {path: (p.label, p.read()) for path, p in found.items()} == {
        p.path: (p.label, p.read()) for p in named.split("all")
    }
    listed = sorted(map(str, shards[form].glob(f"*.{form}")))
    if form == "tar":
        webdataset = pytest.importorskip("webdataset")
        rows = list(webdataset.WebDataset(listed, shardshuffle=False, empty_check=False).decode("rgb8"))
        classes = [(row["cls"], row["png"].tobytes()) for row in rows]
    else:
        datasets = pytest.importorskip("datasets")
        table = datasets.Dataset.from_parquet(listed, cache_dir=str(shards[form].parent / "cache"))
        classes = [(row["label"], np.asarray(row["image"]).tobytes()) for row in table]
    assert sorted(classes) == sorted(
        (named.labels.index(p.label), p.decode().tobytes()) for p in named.split("all")
    )


def test_both_forms_are_the_same_dataset(shards):
    one, other = (open_dataset(shards[form]) for form in ("tar", "parquet"))
    assert one.fingerprint() == other.fingerprint()
    assert count_images([shards["tar"]]) == 45
    ours, theirs = (divide(each, validation_share=0.2, seed=3) for each in (one, other))
    assert sorted(p.read() for p in ours.split("val")) == sorted(p.read() for p in theirs.split("val"))


def test_an_undivided_dataset_is_divided_class_by_class(shards, folder, tmp_path):
    packed = open_dataset(shards["tar"])
    divided = divide(packed, validation_share=0.2, seed=0)
    assert divided.count("val") == {"ants": 3, "bees": 3, "crickets": 3}
    assert divided.count("train") == {"ants": 12, "bees": 12, "crickets": 12}
    held = [p.read() for p in divided.split("val")]
    assert held == [p.read() for p in divide(packed, validation_share=0.2, seed=0).split("val")]
    assert held != [p.read() for p in divide(packed, validation_share=0.2, seed=1).split("val")]
    # Written anew, in another order and other shards, the same images are held out.
    vk.shard(folder, tmp_path / "again", images_per_shard=11, seed=9)
    again = divide(open_dataset(tmp_path / "again"), validation_share=0.2, seed=0)
    assert sorted(p.read() for p in again.split("val")) == sorted(held)
    folds = [hold_out(packed, validation_share=0.2, seed=0, fold=f"{number}/5") for number in range(1, 6)]
    assert Counter(p.path for fold in folds for p in fold.split("val")) == Counter(
        p.path for p in packed.split("all")
    )


def test_equal_files_are_on_one_side(tmp_path):
    for number in range(40):
        place = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(exist_ok=True, parents=True)
        place.write_bytes(paint(number % 2 + 2 * (number // 8)))  # each four times
    vk.shard(tmp_path / "images", tmp_path / "shards")
    for seed in range(5):
        divided = divide(open_dataset(tmp_path / "shards"), validation_share=0.2, seed=seed)
        val, train = ({p.read() for p in divided.split(name)} for name in ("val", "train"))
        assert val
        assert not val & train
    with pytest.raises(BadData, match="class 'a' has fewer than 6 different images"):
        hold_out(open_dataset(tmp_path / "shards"), validation_share=0.2, seed=0, fold="1/6")


def test_an_epoch_has_every_image_once_and_readers_share_it(shards):
    images = lazy(open_dataset(shards["tar"]))
    order = draw(images)
    assert sorted(order.tolist()) == list(range(45))
    assert order.tolist() == draw(images).tolist()
    for other in (draw(images, epoch=2), draw(images, seed=1)):
        assert other.tolist() != order.tolist()
    for counts in ([23, 22], [12, 11, 11, 11], [45, 0], [1] * 45):
        parts = images.draw_parts(seed=0, epoch=1, counts=counts)
        assert list(map(len, parts)) == counts
        assert sorted(np.concatenate(parts).tolist()) == list(range(45))


def draw(images: LazyImages, *, seed: int = 0, epoch: int = 1) -> np.ndarray:
    """The order of a reader that is alone."""
    [order] = images.draw_parts(seed=seed, epoch=epoch, counts=[len(images)])
    return order


def test_readers_have_shards_of_their_own_and_images_stay_near(tmp_path, monkeypatch):
    """A manifest of many shards; no file is there, as none is read."""
    monkeypatch.setattr(sharded, "BUFFER", 300)
    counts = [100] * 80
    images = describe(counts)
    shard_of = np.repeat(np.arange(80), 100)
    parts = images.draw_parts(seed=0, epoch=1, counts=[2000] * 4)
    lanes = [set(shard_of[part].tolist()) for part in parts]
    assert all(len(one & other) <= 1 for number, one in enumerate(lanes) for other in lanes[:number])
    alone = shard_of[draw(images)]
    places = [np.flatnonzero(alone == shard) for shard in range(80)]
    assert max(np.ptp(place) for place in places) <= 100 + 300
    # Neighbours come from several shards, and not in their order.
    assert np.mean([len(set(alone[first : first + 32].tolist())) for first in range(0, 8000, 32)]) > 3


def describe(counts: list[int], labels: tuple[str, ...] = ("a", "b")) -> sharded.ShardedImages:
    n = sum(counts)
    numbers = np.arange(n)
    index = ShardIndex(
        numbers * 1024, numbers % 7 + 1, (numbers % 2).astype(np.int32), np.full(n, 32, np.int32),
        numbers.astype(np.uint64), np.arange(1, n + 1), np.full(n, 120, np.uint8),
    )  # fmt: skip
    shards = tuple(Shard(f"{number}.tar", "all", count, 0, "") for number, count in enumerate(counts))
    manifest = Manifest(form="tar", labels=labels, counts={}, shards=shards, index_sha256="")
    places = [f"/nowhere/{shard.file}" for shard in shards]
    files = sharded.ShardFiles(places, shards, "tar", index.offsets, index.sizes, reopen=(sharded._reopen, "", ""))
    return sharded.ShardedImages(sharded.Sharded("m", manifest, index, files), numbers)


@FORMS
def test_files_are_brought_before_their_images_and_dropped_after(form, shards):
    images = lazy(open_dataset(shards[form]))
    alone = [image.read() for image in lazy(open_dataset(shards[form]))]
    files = images.held.files
    brought, released = [], []
    bring, release = files.bring, files.release
    files.bring = lambda shard: (brought.append(shard), bring(shard))
    files.release = lambda shard: (released.append(shard), release(shard))
    order = draw(images)
    start = 20
    with images.follow(order[start:]) as advance:
        for place, number in enumerate(order[start:]):
            advance(place, place + 1)
            image = images[int(number)]
            assert files.find_shard(image.key) in brought
            assert image.read() == alone[number]
    needed = set(files.find_shards(images.numbers[order[start:]]).tolist())
    assert sorted(brought) == sorted(released) == sorted(needed)
    assert not files._copies
    if files._folder is not None:
        files._pool.shutdown()
        assert not list(files._folder.iterdir())


def rewrite(manifest: Path, change) -> None:
    """Change a manifest as a liar would, who knows its own digest too."""
    values = json.loads(manifest.read_text())
    del values["digest"]
    change(values)
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    values["digest"] = hashlib.sha256(text.encode()).hexdigest()[:32]
    manifest.write_text(json.dumps(values))


@pytest.fixture
def copied(shards, tmp_path) -> Path:
    for file in shards["tar"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_manifest_that_was_edited_is_refused(copied):
    manifest = copied / "shards.json"
    manifest.write_text(manifest.read_text().replace('"ants"', '"aunts"'))
    with pytest.raises(BadData, match=r"shards\.json: was changed after it was written.*vggkit shard"):
        open_dataset(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["counts"]["all"].update(ants=99), r"counts 99 images of 'ants' in all, and its index has 15"),
        (lambda m: m["shards"][0].update(images=8), "counts 46 images, and its index has 45"),
        (lambda m: m["shards"][0].update(size_bytes=8), r"images-00000\.tar: has [\d,]+ bytes, and .* states 8"),
        (lambda m: m.update(index_sha256="0" * 64), r"shards\.npz: is not the index that .*SHA-256 is another"),
        (
            lambda m: m["shards"].append(m["shards"][0] | {"file": "gone.tar", "images": 0}),
            r"gone\.tar: is missing",
        ),
        (lambda m: m.update(labels=["ants"]), "names classes that .* does not have"),
        (lambda m: m.update(form="zip"), "names the form 'zip'"),
        (lambda m: m.update(format_version=9), "has format version 9"),
        (lambda m: m.pop("shards"), "is not a manifest of shards that can be read"),
    ],
)
def test_a_manifest_that_lies_is_refused_at_once(change, message, copied):
    rewrite(copied / "shards.json", change)
    with pytest.raises(BadData, match=message):
        open_dataset(copied)


def test_a_shard_cut_in_half_is_refused_at_once(copied):
    shard = copied / "images-00003.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(BadData, match=r"images-00003\.tar: has [\d,]+ bytes.*cut short or replaced; copy it again"):
        open_dataset(copied)
    shard.unlink()
    with pytest.raises(BadData, match=r"images-00003\.tar: is missing"):
        open_dataset(copied)


def test_a_shard_of_other_contents_is_refused_when_it_is_read(copied):
    shard = copied / "images-00003.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    images = open_dataset(copied)
    with pytest.raises(BadData, match=r"images-00003\.tar: its contents are not those.*SHA-256"):
        verify_shards(images)
    with pytest.raises(BadData, match=r"images-00003\.tar: its contents are not those"):
        [image.read() for image in lazy(images).stream()]


def test_a_shard_that_is_cut_while_it_is_used_is_an_error(copied):
    images = open_dataset(copied).split("all")
    shard = copied / "images-00000.tar"
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(BadData, match=r"images-00000\.tar: has 0 bytes of an image of"):
        images[5].read()
    shard.unlink()
    with pytest.raises(BadImage, match="its shard cannot be read"):
        images[5].read()


def test_other_json_is_no_manifest(tmp_path):
    (tmp_path / "shards.json").write_text("[1, 2]")
    with pytest.raises(BadData, match="is not a manifest of shards, as vggkit shard writes it"):
        open_dataset(tmp_path)
    with pytest.raises(BadData, match=r"none\.json: no such file"):
        open_dataset(tmp_path / "none.json")
    with pytest.raises(BadData, match="has no columns to be named"):
        open_dataset(tmp_path, columns=vk.Columns(label_column="x"))


def test_shards_of_others_get_a_manifest_where_they_are(folder, tmp_path):
    """Written by tar itself: plain folders, a text beside the images, and names in several ways."""
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}-0.tar", "w") as archive:
            archive.add(folder / "ants" / "0.png", "ants/0.png")
            archive.add(folder / "bees" / ("1.png" if split == "val" else "4.png"), "bees/1.png")
            broken = tarfile.TarInfo("bees/broken.png")
            archive.addfile(broken)
    found = vk.shard(f"{tmp_path}/*.tar", tmp_path / "insects.json")
    assert (found.images, found.excluded) == (4, 2)
    assert not (tmp_path / "shards.json").exists()
    opened = open_dataset(tmp_path / "insects.json")
    assert opened.count("val") == {"ants": 1, "bees": 1}
    assert opened.split("train")[1].path == f"{tmp_path}/train-0.tar#bees/1.png"
    assert opened.split("train")[1].read() == (folder / "bees" / "4.png").read_bytes()
    manifest, _ = read_manifest(str(tmp_path / "insects.json"))
    assert [shard.file for shard in manifest.shards] == ["train-0.tar", "val-0.tar"]
    assert vk.shard(f"{tmp_path}/*.tar", tmp_path / "insects.json").found_done
    with tarfile.open(tmp_path / "more.tar.gz", "w:gz") as archive:
        archive.add(folder / "ants" / "0.png", "ants/0.png")
    with pytest.raises(BadData, match=r"all \.tar or all \.parquet"):
        vk.shard(tmp_path / "more.tar.gz", tmp_path / "more.json")


def test_parquet_of_others_gets_a_manifest(shards, tmp_path):
    found = vk.shard(shards["parquet"], tmp_path / "all.json")
    assert found.images == 45
    opened = open_dataset(tmp_path / "all.json")
    assert opened.fingerprint() == open_dataset(shards["tar"]).fingerprint()
    assert len({p.read() for p in lazy(opened).stream()}) == 45


@pytest.mark.parametrize("images", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_million_images_take_some_bytes_each_and_no_objects(images, folder, tmp_path):
    """Listed, split and shuffled; the shards are links to one, and their images are read as any others."""
    vk.shard(folder, tmp_path / "once", images_per_shard=45)
    manifest, part = read_manifest(str(tmp_path / "once" / "shards.json"))
    [shard] = manifest.shards
    copies = images // 45
    place = tmp_path / "many"
    place.mkdir()
    for number in range(copies):
        (place / f"{number}.tar").hardlink_to(tmp_path / "once" / shard.file)
    whole = ShardIndex.join([replace(part, contents=part.contents + number) for number in range(copies)])
    assert sum(getattr(whole, name).nbytes for name in ShardIndex.__slots__) < 70 * len(whole)
    shards = tuple(replace(shard, file=f"{number}.tar") for number in range(copies))
    counts = {"all": dict.fromkeys(manifest.labels, 15 * copies)}
    made = replace(manifest, shards=shards, counts=counts, index_sha256=whole.digest())
    (place / "shards.json").write_bytes(made.pack())
    (place / "shards.npz").write_bytes(whole.pack())
    del whole, shards, made
    tracemalloc.start()
    try:
        divided = divide(open_dataset(place), validation_share=0.1, seed=0)
        train = lazy(divided, "train")
        order = draw(train)
        with train.follow(order[-40:]) as advance:
            for done, number in enumerate(order[-40:].tolist()):
                advance(done, done + 1)
                assert train[number].read()
        assert len(train.number_classes(divided.labels)) == len(order) == sum(divided.count("train").values())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(train) + len(divided.split("val")) == copies * 45
    # The index, numbers, and their sorting; an ImageSample alone takes more.
    assert peak < 10_000_000 + 250 * images
