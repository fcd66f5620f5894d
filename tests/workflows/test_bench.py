"""Every engine has its turn in a process of its own; who cannot run says why, and the others go on."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from vggkit.benchmarking import runner as contenders
from vggkit.benchmarking.processes import EngineChoice, EngineProcess
from vggkit.classifier import Classifier
from vggkit.engines.outputs import list_reads
from vggkit.engines.select import resolve_choice
from vggkit.errors import BadConfiguration, BadData, BadInput, BadOutput
from vggkit.hardware import computes_bf16
from vggkit.images.preprocessing import Preprocessing
from vggkit.weights.classifier_file import read_card
from vggkit.workflows import bench as benches
from vggkit.workflows.bench import bench

for package in ("openvino", "onnx", "onnxruntime"):
    pytest.importorskip(package)
QUICK = {"rounds": 2, "seconds": 0.01, "device": "cpu", "batch_sizes": (4,)}


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    Classifier.create(
        tiny,
        labels=("across", "down", "red"),
        seed=0,
        preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32),
    ).save(path)
    return path


@pytest.fixture(scope="module")
def found(model, photos):
    return bench(model, photos / "train", **QUICK)


@pytest.fixture
def choice(model, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((3, 3, 32, 32), np.float32))
    return EngineChoice(
        model=str(model),
        engine="openvino",
        precision="fp32",
        device="cpu",
        activation_ranges={},
        images=str(tmp_path / "images.npy"),
    )


@pytest.fixture
def keep(monkeypatch):
    """Lets these alone run, as `engine precision`: each has a process, which imports what it needs."""

    def keep(*names):
        listed = benches.list_runs
        monkeypatch.setattr(
            benches,
            "list_runs",
            lambda *arguments, **options: [
                each for each in listed(*arguments, **options) if f"{each.engine} {each.precision}" in names
            ],
        )

    return keep


def find(bench_of, engine, precision):
    return next(each for each in bench_of.engines if (each.engine, each.precision) == (engine, precision))


@pytest.mark.slow
def test_every_engine_that_runs_here_is_measured(found):
    assert len(found.engines) == 6
    for each in found.engines:
        able = each.precision != "bf16" or computes_bf16("cpu")
        assert (each.problem is None) == able, each
        if able:
            assert set(each.images_per_second) == {1, 4}
            speeds = [spread.median for spread in each.images_per_second.values()]
            assert each.speed == max(speeds) > 0
            assert 0 < each.latency_p50_seconds.least <= each.latency_p95_seconds.most
            assert each.start_seconds > 0.1  # an interpreter starts in it
            assert 3e7 < each.peak_memory_bytes < 4e9
    running = [each.speed for each in found.engines]
    assert running == sorted(running, reverse=True)
    exact = find(found, "pytorch", "fp32")
    assert exact.agreement is None
    assert exact.times_reference.median == 1
    assert find(found, "openvino", "fp32").agreement.error < 1e-4
    assert find(found, "onnx", "fp32").agreement.same_class == find(found, "onnx", "fp32").agreement.images
    if computes_bf16("cpu"):
        assert 1e-4 < find(found, "openvino", "bf16").agreement.error < 0.3
    json.dumps(found.to_dict())


def test_who_runs_hangs_on_the_processor(able):
    found = {(each.engine, each.precision): each.problem for each in contenders.list_runs("cpu")}
    slow = None if able else "this processor has no fast bfloat16"
    assert found == {
        ("pytorch", "fp32"): None,
        ("pytorch", "bf16"): slow,
        ("onnx", "fp32"): None,
        ("ncnn", "fp32"): None,
        ("openvino", "fp32"): None,
        ("openvino", "bf16"): slow,
        ("openvino", "int8"): None,
    }


def test_what_predict_takes_is_marked(found):
    (auto,) = [each for each in found.engines if each.is_auto]
    assert (auto.engine, auto.precision) == ("openvino", "bf16" if computes_bf16("cpu") else "fp32")
    (default,) = [each for each in found.engines if each.is_python_default]
    assert (default.engine, default.precision) == (
        resolve_choice("cpu", precision="fp32", pixels=found.input_pixels)[1],
        "fp32",
    )


@pytest.mark.slow
def test_images_are_made_up_where_there_are_none(model, monkeypatch, keep):
    keep("pytorch fp32", "openvino fp32")
    monkeypatch.setattr(contenders, "find_available_memory", lambda: 0)  # each process ends with its turn
    found = bench(model, **(QUICK | {"rounds": 1}))
    assert found.images is None
    assert find(found, "openvino", "fp32").speed > 0
    assert find(found, "pytorch", "fp32").peak_memory_bytes > 3e7


def test_an_engine_that_is_not_installed_says_how_it_would_be(model, photos, tmp_path, monkeypatch, keep):
    keep("onnx fp32", "openvino fp32")
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no such thing')")
    (tmp_path / "queue.py").write_text("raise SystemExit('a file of somebody else')")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sitecustomize.py").write_text("print('a greeting that is no answer')")
    (tmp_path / "path").mkdir()
    for name in ("onnxruntime.py", "sitecustomize.py"):
        (tmp_path / name).rename(tmp_path / "path" / name)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    found = bench(Classifier.load(model), [photos / "val"], **QUICK)
    assert 'pip install "vggkit[onnx]"' in find(found, "onnx", "fp32").problem
    assert find(found, "onnx", "fp32").speed == 0
    assert found.engines[-1].problem is not None
    assert find(found, "openvino", "fp32").problem is None
    assert found.model == "a Classifier in memory"


def test_ranges_are_kept_where_they_are_wanted(model, photos, tmp_path, keep):
    keep("openvino int8")
    path = tmp_path / "m.safetensors"
    Classifier.load(model).save(path)
    before = path.read_bytes()
    with pytest.raises(BadInput, match="name some"):
        bench(path, keep_ranges=True, **QUICK)
    with pytest.raises(BadInput, match="cuda:99"):
        bench(path, photos, keep_ranges=True, **(QUICK | {"device": "cuda:99"}))
    with pytest.raises(BadInput, match="is an address"):
        bench("hf://owner/name", photos, keep_ranges=True, **QUICK)
    assert path.read_bytes() == before
    bench(path, photos / "train", keep_ranges=True, **QUICK)
    card = read_card(path)
    assert set(card.activation_ranges) == set(list_reads(card.configuration))
    assert card.provenance["ranges"] == {"data": str(photos / "train"), "images": 16}
    for one, other in zip(
        Classifier.load(path).network.state_dict().values(),
        Classifier.load(model).network.state_dict().values(),
        strict=True,
    ):
        assert one.equal(other)
    classifier = Classifier.load(model)
    bench(classifier, photos / "train", keep_ranges=True, **QUICK)
    assert classifier.activation_ranges == card.activation_ranges


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root writes anywhere")
def test_a_file_that_cannot_be_written_is_told_before_any_work(model, photos, tmp_path):
    path = tmp_path / "folder" / "m.safetensors"
    Classifier.load(model).save(path)
    path.parent.chmod(0o500)
    try:
        with pytest.raises(BadOutput):
            bench(path, photos / "train", keep_ranges=True, **QUICK)
    finally:
        path.parent.chmod(0o700)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"rounds": 0}, "rounds"), ({"seconds": 0.0}, "seconds"), ({"batch_sizes": (8, 0)}, "batch_sizes")],
)
def test_numbers_that_cannot_be(model, options, said):
    with pytest.raises(BadInput, match=said):
        bench(model, **(QUICK | options))


def test_images_that_cannot_be_read(model, tmp_path):
    (tmp_path / "a.jpg").write_text("x")
    with pytest.raises(BadData, match=r"no image of it can be read; the first: .*a\.jpg"):
        bench(model, tmp_path, **QUICK)


def test_a_process_that_dies_is_a_reason_and_another_takes_its_place(choice, tmp_path):
    with EngineProcess(choice) as process:
        assert process.start() > 0
        assert process.start() == 0  # it runs already
        assert process.compute(tmp_path / "logits.npy").shape == (3, 3)
        assert len(process.time(1, 0.0)) == 5
        assert len(process.time(2, 0.0)) == 1
        if sys.platform != "win32":
            process._process.send_signal(signal.SIGKILL)
            with pytest.raises(BadConfiguration, match="signal 9, perhaps for want of memory"):
                process.time(1, 0.0)
        process.end()
        assert process.find_memory()[0] > 3e7
        running = process._process
    assert running.poll() == 0  # it ended by itself, as nobody asked any more


def test_a_process_that_fails_says_its_last_words(choice, tmp_path):
    (tmp_path / "images.npy").write_bytes(b"no array")
    with EngineProcess(choice) as process, pytest.raises(BadConfiguration, match=r"ended with 1: .*Error"):
        process.start()


def test_what_an_engine_refuses_is_its_reason(choice, tmp_path):
    wrong = replace(choice, precision="int8")
    with EngineProcess(wrong) as process, pytest.raises(BadConfiguration, match="--keep-ranges"):
        process.start()


@pytest.mark.slow
def test_too_many_images_together_cost_their_number_alone(model, monkeypatch, keep):
    keep("pytorch fp32", "openvino fp32")
    ask = EngineProcess.time

    def refuse(self, batch_size, seconds):
        if batch_size > 1 and self.choice.engine == "pytorch":
            raise BadConfiguration("its process was ended by signal 9, perhaps for want of memory")
        return ask(self, batch_size, seconds)

    monkeypatch.setattr(EngineProcess, "time", refuse)
    found = bench(model, **QUICK)
    assert set(find(found, "pytorch", "fp32").images_per_second) == {1}
    assert set(find(found, "openvino", "fp32").images_per_second) == {1, 4}


@pytest.mark.slow
def test_from_the_shell_on_a_processor_with_avx2_alone(model, photos, tmp_path, capsys):
    """In a process of its own, for what oneDNN may use is settled once for a process and those that it starts."""
    pytest.importorskip("matplotlib")
    from vggkit.cli import main as cli

    line = ["bench", str(model), str(photos / "val"), "--rounds", "1", "--seconds", "0.01", "--batch-sizes", "1"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vggkit", *line, "--device", "cpu", "--json", "--quiet"),
            *("--plot", str(tmp_path / "b.png")),
        ],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    engines = {(each["engine"], each["precision"]): each for each in json.loads(done.stdout)["engines"]}
    assert len(engines) == 7
    for (_, precision), each in engines.items():
        assert each["problem"] == ("this processor has no fast bfloat16" if precision == "bf16" else None)
    assert [name for name, each in engines.items() if each["is_auto"]] == [
        (resolve_choice("cpu", precision="fp32", pixels=found.input_pixels)[1], "fp32")
    ]
    assert 1e-4 < engines["openvino", "int8"]["agreement"]["error"] < 0.2
    assert (tmp_path / "b.png").stat().st_size > 10_000
    with pytest.raises(SystemExit) as ended:
        cli.main([*line, "--plot", "b.gif"])
    assert ended.value.code == 2
    assert ".png" in capsys.readouterr().err
