"""Shards in an S3-compatible store, moto's, on this machine: written, streamed, and refused clearly."""

import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vggkit as vk
from conftest import fill_folder
from local_hosts import start_store
from vggkit.errors import BadData, BadDownload, BadOutput
from vggkit.images.sources.open_dataset import count_images, iterate_images, open_dataset

LABELS = ("across", "down", "red")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of fsspec's HTTP library
    pytest.mark.skipif(sys.platform == "win32", reason="moto's server is started as a process"),
]


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """An address of a store with a bucket, `photos`; its credentials are in the environment."""
    with pytest.MonkeyPatch.context() as patch, start_store(patch, "photos") as address:
        yield address


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("images")
    fill_folder(made / "train", LABELS, 8)
    fill_folder(made / "val", LABELS, 3, start=100)
    return made


@pytest.fixture(scope="module", params=["tar", pytest.param("parquet", marks=pytest.mark.slow)])
def shards(request: pytest.FixtureRequest, folder: Path, store: str) -> str:
    place = f"s3://photos/{request.param}"
    vk.shard(folder, place, to=request.param, images_per_shard=5)
    return place


def put(bucket_and_key: str, data: bytes) -> None:
    import fsspec

    with fsspec.open(f"s3://{bucket_and_key}", "wb") as file:
        file.write(data)


def get(bucket_and_key: str) -> bytes:
    import fsspec

    with fsspec.open(f"s3://{bucket_and_key}", "rb") as file:
        return file.read()


def test_written_there_and_here_they_are_the_same(shards, folder, tmp_path):
    vk.shard(folder, tmp_path / "here", to=shards.rpartition("/")[2], images_per_shard=5)
    for file in (tmp_path / "here").iterdir():
        assert get(f"{shards.removeprefix('s3://')}/{file.name}") == file.read_bytes()
    assert vk.shard(folder, shards, to=shards.rpartition("/")[2], images_per_shard=5).found_done
    with pytest.raises(BadOutput, match="holds shards of other images or options"):
        vk.shard(folder, shards, seed=3)


def test_they_are_listed_split_and_read_as_those_here(shards, folder):
    opened = open_dataset(shards)
    assert opened.count("train") == dict.fromkeys(LABELS, 8)
    assert count_images([shards]) == 33
    expected = sorted((p.read(), p.label) for p in open_dataset(folder).split("train"))
    images = opened.split("train")
    assert sorted((p.read(), p.label) for p in images) == expected  # each by itself
    assert sorted((p.read(), p.label) for p in images.stream()) == expected
    assert len({p.path for p in iterate_images([shards])}) == 33
    files = images.held.files
    [order] = images.draw_parts(seed=0, epoch=1, counts=[24])
    with images.follow(order) as advance:
        for place, number in enumerate(order):
            advance(place, place + 1)
            assert images[int(number)].read()
    files._pool.shutdown()
    assert not list(files._folder.iterdir())


def test_a_training_streams_them(shards, tmp_path):
    recipe = vk.Recipe(epochs=1, batch_size=8)
    network = {"model": "vgg11_bn", "until": "pool2", "image_size": 32}
    run = vk.train(shards, **network, recipe=recipe, out=tmp_path / "run", device="cpu", quiet=True)
    assert run.evaluation.predictions.paths[0].startswith(f"{shards}/val-00000")
    assert np.isfinite(run.history[0].train_loss)


def test_a_manifest_here_of_shards_there(shards, tmp_path):
    form = shards.rpartition("/")[2]
    found = vk.shard(f"{shards}/*.{form}", tmp_path / "photos.json")
    assert found.images == 33
    opened = open_dataset(tmp_path / "photos.json")
    assert opened.split("val")[0].path.startswith(f"{shards}/val-00000.{form}#")
    assert {p.read() for p in opened.split("val")} == {p.read() for p in open_dataset(shards).split("val")}


def test_a_store_that_refuses_is_one_clear_error(store, folder, processes):
    """No such bucket, no such key, a key without a manifest, and one that is cut."""
    with pytest.raises(BadDownload, match=r"s3://nowhere/photos/shards\.json: is not there"):
        open_dataset("s3://nowhere/photos")
    with pytest.raises(BadDownload, match=r"s3://photos/none/shards\.json: is not there.*needs its manifest"):
        open_dataset("s3://photos/none")
    with pytest.raises(BadDownload, match=r"s3://photos/none\.tar: is not there"):
        open_dataset("s3://photos/none.tar")
    with pytest.raises(BadDownload, match=r"s3://nowhere/out: is not there.*The specified bucket does not exist"):
        vk.shard(folder, "s3://nowhere/out")
    vk.shard(folder, "s3://photos/cut", images_per_shard=5)
    data = get("photos/cut/train-00001.tar")
    put("photos/cut/train-00001.tar", data[: len(data) // 2])
    with pytest.raises(BadData, match=r"s3://photos/cut/train-00001\.tar: has [\d,]+ bytes.*cut short or replaced"):
        open_dataset("s3://photos/cut")
    put("photos/cut/train-00001.tar", data[:-1] + b"x")
    opened = open_dataset("s3://photos/cut")
    with pytest.raises(BadData, match=r"train-00001\.tar: its contents are not those"):
        [p.read() for p in opened.split("train").stream()]
    import fsspec

    fsspec.filesystem("s3").rm("s3://photos/cut/train-00001.tar")
    fsspec.filesystem("s3").invalidate_cache()
    with pytest.raises(BadData, match=r"s3://photos/cut/train-00001\.tar: is missing"):
        open_dataset("s3://photos/cut")


def test_a_store_that_knows_no_such_user_is_one_clear_line(store, folder, processes):
    vk.shard(folder, "s3://photos/secret", images_per_shard=5)
    demand_credentials(store, after=b"0")
    try:
        process = processes.start("check", "s3://photos/secret", environment=os.environ)
        assert process.wait() == 2  # it does not hang
        lines = process.err.splitlines()
        assert len(lines) == 1, process.err
        assert "s3://photos/secret/shards.json" in lines[0]
        assert "refuses access" in lines[0]
    finally:
        demand_credentials(store, after=b"inf")


def demand_credentials(store: str, *, after: bytes) -> None:
    """Let the store demand those of a user that it knows, after so many requests."""
    headers = {"Content-Type": "text/plain"}
    reset = urllib.request.Request(f"{store}/moto-api/reset-auth", data=after, headers=headers, method="POST")
    urllib.request.urlopen(reset).close()
