"""Bulk jobs on a Ray cluster: every image once, and the bytes of a job without Ray, whatever is killed."""

import os
import pickle
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import vggkit as vk
from conftest import draw_class
from vggkit.errors import BadInput, MissingExtra
from vggkit.inference import on_ray
from vggkit.inference.bulk_work import PredictWork

COUNT = 150


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of them broken."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(COUNT):
        Image.fromarray(draw_class("red", number)).save(folder / f"{number:03d}.png")
    for number in (5, 77):
        (folder / f"{number:03d}.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "CHUNK_ROWS", 8)


def test_what_does_not_go_with_it_is_refused(made, images, tmp_path, processes):
    with pytest.raises(BadInput, match="on must be one of local, ray; got 'spark'"):
        vk.predict_into(made, images, tmp_path / "r.parquet", on="spark")
    with pytest.raises(BadInput, match="explain writes files"):
        vk.predict_into(made, images, tmp_path / "r.parquet", on="ray", explain=tmp_path / "why")
    with pytest.raises(BadInput, match="takes a Classifier's place"):
        vk.embed_into(vk.load(made), images, tmp_path / "r.parquet", on="ray")
    process = processes.start("predict", made, images, "--on", "ray")
    assert process.wait() == 2
    assert process.err == (
        "vggkit: error: --on ray is for --out: predictions go to a file there; name one, such as found.parquet\n"
    )


def test_without_ray_the_line_that_installs_it_is_shown(made, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r'^on=ray needs ray: pip install "vggkit\[ray\]"$'):
        vk.predict_into(made, images, tmp_path / "r.parquet", on="ray")


def test_an_actor_computes_chunks_and_reports_errors(made, images):
    """As Ray calls it."""
    work = PredictWork(
        model=str(made),
        top=2,
        batch_size=4,
        device="cpu",
        precision="fp32",
        engine="pytorch",
        reduced_decoding=False,
        views="one",
    )
    info = work.open().info
    kinds = {"path": "path", "prediction": "text"}
    kinds |= {"label_1": "text", "probability_1": "number", "label_2": "text", "probability_2": "number"}
    kinds["problem"] = "text"
    samples = pickle.dumps([vk.ImageSample(str(images / f"{number:03d}.png")) for number in range(3, 7)])

    def call(work: PredictWork, expected: object) -> dict[str, list]:
        spec = pickle.dumps((work, expected, kinds, str(images)))
        rows = {"first": [0], "stop": [4], "digest": ["0"], "images": [samples], "spec": [spec]}
        return on_ray._Actor()(rows)

    found = call(work, info)
    assert found["data"] == call(work, info)["data"]
    assert not found["problem"][0]
    for wrong, message in (
        ((work, None), "the machines of the Ray cluster compute differently"),
        ((replace(work, model="gone.pth"), info), "gone.pth"),
    ):
        assert message in str(pickle.loads(call(*wrong)["problem"][0]))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two processors, no dashboard, a small store of objects."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=10**8, log_to_driver=False)
        yield
        ray.shutdown()


def list_workers() -> list[int]:
    """Processes of actors, of the cluster that this process has started."""
    parents, names = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(place.name)] = (place / "cmdline").read_text()
        except OSError:  # it has ended
            continue

    def is_ours(number: int) -> bool:
        while number > 1:
            number = parents.get(number, 0)
            if number == os.getpid():
                return True
        return False

    return [number for number, name in names.items() if name.startswith("ray::MapWorker") and is_ours(number)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
def test_a_worker_is_killed_and_every_image_is_there_once(cluster, made, images, tmp_path, small_chunks):
    options = {"batch_size": 4, "device": "cpu", "precision": "fp32"}
    vk.predict_into(made, images, tmp_path / "here.parquet", **options)
    killed = []

    def kill(what: str, done: int, total: int | None) -> None:
        if what == "computing" and done >= 16 and not killed:
            killed.extend(list_workers())
            for number in killed:
                os.kill(number, signal.SIGKILL)

    found = vk.predict_into(made, images, tmp_path / "ray.parquet", on="ray", on_progress=kill, **options)
    assert killed
    assert (found.images, found.unreadable) == (COUNT, 2)
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "here.parquet").read_bytes()
    again = vk.predict_into(made, images, tmp_path / "ray.parquet", on="ray", **options)
    assert again.found_done == COUNT


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's
def test_a_stopped_job_continues_with_ray_and_without(cluster, made, images, tmp_path, small_chunks, monkeypatch):
    options = {"batch_size": 4, "device": "cpu", "precision": "fp32", "layer": "features"}
    vk.shard(one_class(images, tmp_path), tmp_path / "shards", images_per_shard=40)
    monkeypatch.chdir(tmp_path)
    for place in (images, Path("shards")):
        whole = tmp_path / f"{place.name}.parquet"
        vk.embed_into(made, place, whole, **options)
        for then in ("ray", "local"):
            out = tmp_path / f"{place.name}-{then}.parquet"

            def stop(what: str, done: int, total: int | None) -> None:
                if what == "computing" and done >= 40:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                vk.embed_into(made, place, out, on="ray", on_progress=stop, **options)
            assert not out.exists()
            found = vk.embed_into(made, place, out, on=then, **options)
            assert found.found_done >= 8
            assert out.read_bytes() == whole.read_bytes()


def one_class(images: Path, tmp_path: Path) -> Path:
    """A folder with one class, those of the images that can be read."""
    folder = tmp_path / "labelled" / "red"
    folder.mkdir(parents=True)
    for file in images.glob("*.png"):
        if file.read_bytes() != b"no image":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder.parent
