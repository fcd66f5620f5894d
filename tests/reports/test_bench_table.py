"""A bench as people see it: every engine, why some do not run, and what to do next."""

from dataclasses import replace

import pytest
from rich.console import Console

from vggkit.benchmarking.timings import Agreement, Bench, EngineTimings, Spread
from vggkit.errors import BadOutput
from vggkit.reports.bench_table import draw_bench, plot_bench, suggest


def spread(value: float) -> Spread:
    return Spread(value, 0.9 * value, 1.1 * value)


def time(engine, precision, speed, **options) -> EngineTimings:
    about = {
        "latency_p50_seconds": spread(1 / speed),
        "latency_p95_seconds": spread(1.2 / speed),
        "images_per_second": {1: spread(speed / 2), 8: spread(speed)},
        "best_batch_size": 8,
        "times_reference": spread(speed / 14),
        "start_seconds": 0.5,
        "peak_memory_bytes": 900 << 20,
        "agreement": Agreement(102, 101, (0.947, 0.998), 0.004),
    }
    return EngineTimings(engine=engine, precision=precision, device="cpu", **(about | options))


@pytest.fixture
def bench() -> Bench:
    return Bench(
        model="bees.safetensors",
        network="vgg11",
        input_pixels=224,
        images="102 of photos/",
        rounds=5,
        machine="a processor",
        versions={"torch": "2.15"},
        engines=(
            time("openvino", "int8", 117.0),
            time("openvino", "bf16", 62.0, is_auto=True),
            time("openvino", "fp32", 31.0, is_python_default=True),
            time("pytorch", "fp32", 14.0, agreement=None, is_reference=True),
            EngineTimings(engine="onnx", precision="fp32", device="cpu", problem="pip install it"),
        ),
    )


def show(bench: Bench, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(draw_bench(bench))
    return captured.get()


def test_the_table_fits_a_terminal_and_says_everything(bench):
    text = show(bench)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.startswith("OpenVINO int8"))
    assert row.split()[2:] == ["8.55", "10.3", "117", "(105-129)", "8", "8.4", "900", "MiB", "101", "95-100%"]
    assert any(line.startswith("OpenVINO bf16 * ") for line in lines)
    assert any(line.startswith("OpenVINO fp32 + ") for line in lines)
    both = time("openvino", "fp32", 31.0, is_auto=True, is_python_default=True)
    assert "OpenVINO fp32 *+ " in show(replace(bench, engines=(both,)))
    assert next(line for line in lines if line.startswith("PyTorch fp32")).endswith("exact")
    assert "ONNX Runtime fp32 does not run here: pip install it" in text
    assert "102 of photos/" in text


def test_devices_are_named_where_there_are_several(bench):
    gpu = replace(time("pytorch", "bf16", 29000.0), device="cuda")
    text = show(replace(bench, engines=(gpu, *bench.engines)))
    assert "PyTorch bf16 cuda" in text
    assert "29.0k (26-32k)" in text
    assert "…" not in text


def test_without_the_reference_nothing_is_exact(bench):
    failed = EngineTimings(engine="pytorch", precision="fp32", device="cpu", is_reference=True, problem="it died")
    alone = replace(bench.engines[0], agreement=None, times_reference=None)
    text = show(replace(bench, engines=(alone, failed), unreadable=3))
    assert "exact" not in text
    assert "it died" in text
    assert "3 images cannot be read" in text


def test_made_up_images_say_nothing_about_classes(bench):
    made_up = replace(bench, images=None)
    assert "random images" in show(made_up)
    assert "0.004" in show(made_up)
    assert "YOUR_IMAGES" in suggest(made_up, ranges_kept=False)[0]


def test_int8_is_suggested_where_it_is_worth_it(bench):
    said = suggest(bench, ranges_kept=False)
    assert "1.9 times" in said[0]
    assert "101 of 102" in said[0]
    assert said[1].endswith("--keep-ranges")
    assert said[2].endswith("--precision int8")
    assert not any("--keep-ranges" in line for line in suggest(bench, ranges_kept=True))
    slower = replace(bench.engines[0], images_per_second={8: spread(65.0)})
    assert suggest(replace(bench, engines=(slower, *bench.engines[1:])), ranges_kept=False) == []
    assert suggest(replace(bench, engines=bench.engines[1:]), ranges_kept=False) == []


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_image(bench, tmp_path, ending):
    pytest.importorskip("matplotlib")
    plot_bench(bench, tmp_path / f"b.{ending}")
    plot_bench(replace(bench, engines=bench.engines[4:]), tmp_path / f"none.{ending}")
    assert (tmp_path / f"b.{ending}").stat().st_size > (tmp_path / f"none.{ending}").stat().st_size
    with pytest.raises(BadOutput, match=r"\.png"):
        plot_bench(bench, tmp_path / "b.gif")
