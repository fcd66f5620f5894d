"""The table and the plot of a compression."""

from dataclasses import replace

import pytest

from vggkit.compression.records import CompressionPoint, CompressionRecord, FineTune, Fold, Goals, LowRank, Prune
from vggkit.reports.compression import describe_result, draw_compression, list_frontier, plot_compression
from vggkit.reports.terminal import write_plainly

BEFORE = CompressionPoint(
    steps=(),
    storage="fp32",
    precision="fp32",
    size_bytes=515_000_000,
    parameters=128_000_000,
    multiply_adds=7_609_000_000,
    top1=0.9,
    images_per_second=10.0,
    speedup=1.0,
)
SMALL = replace(BEFORE, steps=(Fold(grid=4), LowRank(ranks=(812, 640))), storage="int8", size_bytes=33_000_000)
TINY = replace(
    BEFORE,
    steps=(Prune(removed=0.5), FineTune(epochs=5)),
    storage="int4",
    precision="int8",
    size_bytes=2_300_000,
    top1=0.895,
    speedup=6.0,
)
WORSE = replace(TINY, storage="int8", size_bytes=3_000_000, top1=0.89)


@pytest.fixture
def record() -> CompressionRecord:
    return CompressionRecord(
        before=BEFORE,
        chosen=TINY,
        points=(BEFORE, SMALL, WORSE, TINY),
        goals=Goals(max_loss=0.01),
        roles=(),
        comparison=None,
        machine="a processor",
    )


def test_the_table_fits_into_80_columns_and_marks_what_was_chosen(record):
    lines = write_plainly(draw_compression(record)).splitlines()
    assert max(map(len, lines)) <= 80
    [chosen] = [line for line in lines if "*" in line]
    assert chosen.split()[:4] == ["-50", "%", "multiply-adds", "*"]
    assert any(line.startswith("fc6 folded, ranks 812, 640") for line in lines)
    assert "size: 515 MB to 2.3 MB, 223.9 times smaller; multiply-adds: 7.61 G to 7.61 G" in lines


def test_only_points_that_none_beats_are_on_the_frontier(record):
    assert list_frontier(record) == [SMALL, TINY]


def test_results_say_how_to_get_the_speed(record):
    assert describe_result(record)[-1] == "speed: 6 times as fast at batch 8 on this machine with --precision int8"


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_plot_has_every_point_also_without_speeds(record, tmp_path, ending):
    pytest.importorskip("matplotlib")
    plot_compression(record, tmp_path / f"plot.{ending}", title="a $name$")
    assert (tmp_path / f"plot.{ending}").stat().st_size > 5_000
    still = tuple(replace(point, speedup=None, images_per_second=None) for point in record.points)
    silent = replace(record, points=still, chosen=replace(TINY, speedup=None))
    plot_compression(silent, tmp_path / f"silent.{ending}", title="a name")
    assert (tmp_path / f"silent.{ending}").is_file()
