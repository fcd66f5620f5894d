"""What people look at: the table in terminals and pipes, the image in its three formats."""

import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from vggkit.errors import BadOutput, MissingExtra
from vggkit.models.configuration import MODELS, Configuration
from vggkit.models.configure import configure
from vggkit.models.summary import summarize
from vggkit.reports.plots import draw_to, plot_summary
from vggkit.reports.tables import binary_unit, decimal_unit, draw_summary

VGG11 = summarize(MODELS["vgg11"])


def shown(configuration: Configuration, *, width: int, side: int = 224, encoding: str = "utf-8") -> list[str]:
    """The lines that a pipe of that width and encoding receives."""
    raw = BytesIO()
    stream = TextIOWrapper(raw, encoding=encoding, newline="\n")
    Console(file=stream, width=width).print(draw_summary(summarize(configuration, input=(side, side))))
    stream.flush()
    return raw.getvalue().decode(encoding).splitlines()


class TestTable:
    def test_at_80_columns(self) -> None:
        lines = [line.rstrip() for line in shown(MODELS["vgg11"], width=80)]
        assert lines[0] == "vgg11, 1,000 classes, 224×224 pixels"
        assert lines[2].split() == ["output", "parameters", "share", "mult-adds", "share", "memory", "sees"]
        assert lines[3].split() == ["layer", "C×H×W", "%", "G", "%", "MiB", "pixels"]
        rows = {line.split()[0]: line.split()[1:] for line in lines[5:] if line}
        assert rows["input"] == ["3×224×224", "0.574", "1"]
        assert rows["conv1_1"] == ["64×224×224", "1,792", "<0.1", "0.087", "1.1", "12.250", "3"]
        assert rows["pool5"] == ["512×7×7", "0.096", "150"]
        assert rows["fc6"] == ["4096", "102,764,544", "77.3", "0.103", "1.4", "0.016", "all"]
        assert rows["total"] == ["132,863,336", "100.0", "7.609", "100.0", "34.775"]
        assert "507 MiB" in lines[-2]

    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("head", ["fc", "dense", "pool"])
    def test_nothing_is_cut_off_at_80_columns(self, name: str, head: str) -> None:
        lines = shown(configure(name, head=head), width=80, side=1024)  # type: ignore[arg-type]
        text = "\n".join(lines)
        assert "…" not in text
        assert max(map(len, lines)) <= 80
        for layer in summarize(configure(name, head=head), input=(1024, 1024)).layers:  # type: ignore[arg-type]
            [row] = [line for line in lines if line.split()[:1] == [layer.name]]
            assert "×".join(map(str, layer.output_shape)) in row
            assert not layer.parameters or f"{layer.parameters:,}" in row

    def test_numbers_stand_under_each_other(self) -> None:
        lines = shown(MODELS["vgg16"], width=80)
        numbers = ("102,764,544", "1,792", "138,357,544")
        ends = {line.index(number) + len(number) for line in lines for number in numbers if number in line}
        assert len(ends) == 1

    def test_blocks_are_ruled_off(self) -> None:
        lines = shown(MODELS["vgg11"], width=80)
        before = [lines[place - 1].split()[0] for place, line in enumerate(lines) if line.startswith("╌")]
        assert before == ["pool1", "pool2", "pool3", "pool4", "pool5"]
        cut = shown(configure("vgg11", until="relu3_1"), width=80)
        before = [cut[place - 1].split()[0] for place, line in enumerate(cut) if line.startswith("╌")]
        assert before == ["pool1", "pool2", "conv3_1"]

    def test_wide_terminals_get_bars(self) -> None:
        lines = {line.split()[0]: line for line in shown(MODELS["vgg11"], width=120) if line}
        assert "█" * 9 in lines["fc6"]
        assert "█" * 3 not in lines["fc7"]
        assert "█" not in "".join(shown(MODELS["vgg11"], width=80))

    @pytest.mark.parametrize("width", [80, 120])
    def test_a_pipe_gets_no_colours(self, width: int) -> None:
        assert "\x1b" not in "".join(shown(MODELS["vgg11"], width=width))

    @pytest.mark.parametrize("width", [80, 120])
    def test_a_terminal_without_unicode(self, width: int) -> None:
        lines = shown(MODELS["vgg11"], width=width, encoding="ascii")
        assert lines[0].endswith("224x224 pixels")
        assert "\n".join(lines).isascii()
        assert ("#########" in "".join(lines)) == (width == 120)

    def test_units(self) -> None:
        assert [decimal_unit(n) for n in (0, 640, 999, 1000, 86_704_128, 7_609_090_048)] == [
            "0", "640", "999", "1.00 k", "86.7 M", "7.61 G",
        ]  # fmt: skip
        assert [binary_unit(n) for n in (12, 1024, 531_453_344)] == ["12 B", "1.00 KiB", "507 MiB"]


class TestImageSample:
    @pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".PNG"])
    def test_the_suffix_names_the_format(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / "new folder" / f"vgg11{suffix}"
        plot_summary(VGG11, path)
        starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
        assert path.read_bytes().startswith(starts[suffix.lower()])
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
    def test_the_same_summary_gives_the_same_file(self, suffix: str, tmp_path: Path) -> None:
        for name in ("one", "two"):
            plot_summary(VGG11, tmp_path / f"{name}{suffix}")
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()

    @pytest.mark.parametrize(
        "configuration",
        [MODELS["vgg11"], MODELS["vgg19_bn"], configure("vgg19", until="relu3_4")],
        ids=lambda c: c.model,
    )
    def test_it_says_what_the_summary_says(
        self, configuration: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import matplotlib.figure

        figures = []
        saved = matplotlib.figure.Figure.savefig
        monkeypatch.setattr(
            matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (figures.append(self), saved(self, *a, **k))
        )
        summary = summarize(configuration)
        plot_summary(summary, tmp_path / "it.png")
        [figure] = figures
        assert figure.get_suptitle() == f"{summary.description}, 224×224 pixels"
        left, right = figure.axes
        assert left.get_title("left") == f"parameters: {configuration.parameters:,}"
        names = [layer.name for layer in summary.layers if layer.kind in ("conv", "fc")]
        assert [label.get_text() for label in left.get_yticklabels()] == names
        assert sum(bar.get_width() for bar in left.patches[: len(names)]) == configuration.parameters
        assert sum(bar.get_width() for bar in right.patches[: len(names)]) == summary.totals.multiply_adds
        # Labels stand inside the image.
        figure.canvas.draw()
        for axes in figure.axes:
            box = axes.get_window_extent()
            assert all(text.get_window_extent().x1 <= box.x1 for text in axes.texts)

    def test_it_is_an_image(self, tmp_path: Path) -> None:
        plot_summary(VGG11, tmp_path / "it.png")
        with Image.open(tmp_path / "it.png") as image:
            assert image.width == 1440
            colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
        assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours

    @pytest.mark.parametrize("name", ["it.bmp", "it", "png"])
    def test_another_suffix(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(BadOutput, match=r"must end in \.png, \.pdf, \.svg"):
            plot_summary(VGG11, tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_leaves_the_older_image(self, tmp_path: Path) -> None:
        path = tmp_path / "it.png"
        path.write_bytes(b"older")
        with pytest.raises(KeyError), draw_to(path, width_inches=2, height_inches=2):
            raise KeyError
        assert path.read_bytes() == b"older"
        assert list(tmp_path.iterdir()) == [path]

    def test_matplotlib_is_named_where_it_is_absent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingExtra, match=r'plotting needs matplotlib: pip install "vggkit\[train\]"'):
            plot_summary(VGG11, tmp_path / "it.png")
        assert list(tmp_path.iterdir()) == []
