"""The doctor's page: everything on it, nothing loaded, nothing believed, and a browser that agrees."""

import base64
import io
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from vggkit.data_checks.findings import Case, Diagnosis, Finding, Kind, Member, Severity, Sides
from vggkit.images.dataset import ImageSample
from vggkit.reports.check_page import (
    MOST_CASES,
    MOST_MEMBERS,
    SEVERITIES,
    TITLES,
    find_folder,
    write_check_page,
)
from vggkit.reports.pages.rendering import SIDE_PIXELS, encode_thumbnail, percent, render_page, say_count

HOSTILE = "<script>alert('x')</script>\"&amp;"
VOID = {"meta", "link", "img", "br", "hr", "wbr"}


def paint(index: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 255, (side, side + 2, 3), np.uint8)


def member(index: int, part: str = "train", label: str = "ant", path: str | None = None) -> Member:
    path = path or f"photos/{part}/{label}/{index:03d}.png"
    return Member(path, part, label, ImageSample(path, label, paint(index)))


def finding(kind: Kind, *cases: Case, severity: Severity = "warning") -> Finding:
    return Finding(kind, severity, f"What {kind} is.", f"What to do about {kind}.", cases)


GONE = ImageSample("photos/val/bee/gone.jpg", "bee")
EVERY_KIND = (
    finding(
        "unreadable",
        Case((Member(GONE.path, "val", "bee", GONE),), f"{GONE.path}: is truncated"),
        severity="error",
    ),
    finding("missing-class", Case((), "bee: none in val"), severity="error"),
    finding("leakage", Case((member(1), member(1, "val")), "same file", 1.0), severity="error"),
    finding("contradiction", Case((member(2), member(2, label="bee")), "99 % similar", 0.99996), severity="error"),
    finding("duplicate", Case(tuple(member(3 + i) for i in range(11)), "same file", 1.0)),
    finding("near-duplicate", *(Case((member(i), member(i + 1)), "98 % similar", 0.984) for i in range(63))),
    finding("mislabelled", Case((member(4),), "labelled ant (2 %), looks like bee (97 %)", suggestion="bee")),
    finding("outlier", Case((member(5),), "far from all others"), severity="note"),
    finding("few", Case((), "bee: 7 images")),
    finding("imbalance", Case((), "ant 1,200, bee 7")),
    finding("small", Case((member(6),), "8 × 10 pixels"), severity="note"),
    finding("wrong-extension", Case((member(7),), "is a PNG"), severity="note"),
    finding("similar-names", Case((), "'Bee' and 'bee'")),
    finding("animated", Case((Member(GONE.path, "val", "bee", GONE),), "12 images"), severity="note"),
)
SICK = Diagnosis(
    data="photos",
    counts={"train": {"ant": 1200, "bee": 7}, "val": {"ant": 30}},
    n=1238,
    sides=Sides((8, 10), (500, 375), (2592, 1944)),
    formats={"JPEG": 1236, "PNG": 1},
    modes={"RGB": 1237},
    turned=3,
    image_size=224,
    model="runs/bees/best.safetensors",
    findings=EVERY_KIND,
    seconds=1.25,
)
HEALTHY = replace(SICK, findings=(), model=None, turned=0)
HOSTILES = tuple(member(i, "val", HOSTILE, f"/data/{HOSTILE}/{'x' * 250}{i}.png") for i in (1, 2))
LARGE = replace(
    SICK,
    data="/data/" + "very_long_name" * 20,
    counts={
        part: {f"class_{i}_{'long' * 20 if i == 7 else ''}": 9000 // (i + 1) for i in range(1000)}
        for part in ("train", "val", "test", "extra", HOSTILE)
    },
    findings=(
        finding("contradiction", Case((*HOSTILES, member(3, "صور", "قطة جميلة جدا")), HOSTILE, 0.5)),
        finding("mislabelled", *(Case(HOSTILES[:1], HOSTILE, suggestion="L" * 200) for _ in range(3))),
        finding("unreadable", *(Case((one,), f"{one.path}: {'y' * 300}") for one in HOSTILES)),
        finding("few", *(Case((), f"{'class' * 40} {i}") for i in range(70))),
    ),
)
EMPTY = Diagnosis("nothing", {}, 0, None, {}, {}, 0, 224, None, (), 0.0)
ALL = {"sick": SICK, "healthy": HEALTHY, "large": LARGE, "empty": EMPTY}


class Page(HTMLParser):
    """What a page consists of; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in {"td", "th", "span", "p", "div"}:
            self.texts.append(" ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def write(diagnosis: Diagnosis, folder: Path) -> str:
    write_check_page(diagnosis, folder / "page.html")
    return (folder / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=ALL)
def html(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(ALL[request.param], tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write(SICK, tmp_path_factory.mktemp("sick")))


class TestEveryPage:
    def test_loads_nothing(self, html):
        page = Page(html)
        for tag, attributes in page.tags:
            assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
            assert not any(name.startswith("on") for name in attributes)
            for name in ("src", "href", "srcset", "poster", "data", "action"):
                assert re.match("data:|#", attributes.get(name) or "#"), (tag, attributes)
        style = html.partition("<style>")[2].partition("</style>")[0]
        assert not re.search(r"url\(|@import|@font-face", style)
        # An SVG's name space is a name, not an address.
        assert "://" not in html.replace("http://www.w3.org/2000/svg", "")

    def test_is_sound(self, html):
        page = Page(html)
        ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
        assert set(ids.values()) <= {1}
        for _, attributes in page.tags:
            target = attributes.get("href") or attributes.get("aria-labelledby")
            assert not target or target.startswith("data:") or target.removeprefix("#") in ids
        assert page.all("html") == [{"lang": "en"}]
        assert all(image["alt"] for image in page.all("img"))
        assert all(cell["scope"] in ("row", "col") for cell in page.all("th"))

    def test_headings_skip_no_level(self, html):
        levels = [int(tag[1]) for tag, _ in Page(html).tags if re.fullmatch("h[1-6]", tag)]
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False))


class TestFindings:
    def test_every_kind_has_its_section(self, sick):
        assert set(TITLES) == set(get_args(Kind))
        assert set(SEVERITIES) == set(get_args(Severity))
        sections = {attributes.get("id") for attributes in sick.all("section")}
        for each in EVERY_KIND:
            assert each.kind in sections
            assert TITLES[each.kind] in sick.text
            assert each.summary in sick.text
            assert each.advice in sick.text

    def test_verdict_counts_by_severity(self, sick, tmp_path):
        assert "4 errors, 6 warnings and 4 notes: metrics measured on these images would be invalid." in sick.text
        calm = Page(write(HEALTHY, tmp_path)).text
        assert "No findings" in calm
        assert "vggkit train photos" in calm
        assert "--fix" not in calm
        noted = Page(write(replace(SICK, findings=EVERY_KIND[-1:]), tmp_path)).text
        assert "1 note: nothing that affects results." in noted

    def test_cases_say_what_tells_them_apart(self, sick):
        assert "98 % similar" in sick.text
        assert "same file" in sick.text
        assert "labelled ant (2 %), looks like bee (97 %)" in sick.text
        assert "val/bee/gone.jpg val · bee is truncated" in sick.text
        assert "bee: 7 images" in sick.text

    def test_what_is_left_out_is_said(self, sick, tmp_path):
        assert "3 more cases are not shown; vggkit check photos --json lists all 63." in sick.text
        assert "and 3 more images" in sick.text
        only = write(replace(SICK, findings=(SICK.findings[4], SICK.findings[5])), tmp_path)
        assert only.count("<img") == MOST_MEMBERS + 2 * MOST_CASES

    def test_an_image_that_is_gone_has_a_placeholder(self, tmp_path):
        html = write(replace(SICK, findings=EVERY_KIND[-1:]), tmp_path)
        assert "image no longer readable" in html
        assert "<img" not in html

    def test_findings_without_cases(self, tmp_path):
        assert "0 cases" in Page(write(replace(SICK, findings=(finding("leakage"),)), tmp_path)).text


class TestFacts:
    def test_counts_of_each_class_in_each_split(self, sick):
        assert "class train val ant 1,200 30 bee 7 0 all 2 classes 1,207 30" in sick.text
        assert "1,237 of 1,238" in sick.text
        assert "largest 2,592 × 1,944" in sick.text
        assert "JPEG 1,236 · 99.9 %" in sick.text

    def test_many_classes_are_folded_and_drawn(self, tmp_path):
        page = Page(write(LARGE, tmp_path))
        assert "990 more classes" in page.text
        assert "All 1,000 classes" in page.text
        assert "largest 9,000 median 17 smallest 9" in page.text
        assert len(page.all("path")) >= len(LARGE.counts)

    def test_undivided_images_name_no_split(self, tmp_path):
        alone = replace(
            SICK, counts={"all": {"ant": 1}}, findings=(finding("outlier", Case((member(1, "all"),), "")),)
        )
        page = Page(write(alone, tmp_path))
        assert "in 1 split" not in page.text
        assert "all · ant" not in page.text


class TestUntrustedText:
    def test_it_stays_text(self, tmp_path):
        html = write(LARGE, tmp_path)
        assert "<script" not in html
        page = Page(html)
        assert HOSTILE in page.text
        assert f"/data/{HOSTILE}/{'x' * 250}1.png" in [mark.get("title") for mark in page.all("bdi")]
        assert "قطة جميلة جدا" in page.text

    def test_in_every_place(self, tmp_path):
        cases = (Case((HOSTILES[0],), HOSTILE, 0.5, HOSTILE),)
        for kind in ("unreadable", "mislabelled", "few"):
            everywhere = replace(
                SICK,
                data=HOSTILE,
                counts={HOSTILE: {HOSTILE: 1}},
                formats={HOSTILE: 1},
                modes={HOSTILE: 1},
                model=HOSTILE,
                findings=(Finding(kind, "note", HOSTILE, HOSTILE, cases),),
            )
            assert "<script" not in write(everywhere, tmp_path)

    def test_what_cannot_be_seen_is_spelled_out(self, tmp_path):
        names = ("cat\u202egpj.exe", "bell\x07.png", "broken\udcff.png")
        held = tuple(Case((member(i, path=name),), "") for i, name in enumerate(names))
        text = Page(write(replace(SICK, findings=(finding("outlier", *held),)), tmp_path)).text
        assert r"cat\u202egpj.exe" in text
        assert r"bell\u0007.png" in text
        assert r"broken\udcff.png" in text

    def test_commands_can_be_pasted(self, tmp_path):
        text = Page(write(replace(SICK, data="it's; rm -rf /"), tmp_path)).text
        assert """vggkit check 'it'"'"'s; rm -rf /' --fix clean.csv""" in text


class TestImageDataset:
    def test_large_ones_become_small(self):
        smooth = np.broadcast_to(np.linspace(0, 255, 900).astype(np.uint8)[:, None, None], (900, 1200, 3))
        thumbnail = Image.open(io.BytesIO(encode_thumbnail(np.ascontiguousarray(smooth))))
        assert thumbnail.size == (SIDE_PIXELS, SIDE_PIXELS * 3 // 4)
        sliver = Image.open(io.BytesIO(encode_thumbnail(np.zeros((1, 5000, 3), np.uint8), side_pixels=100)))
        assert sliver.size == (100, 1)

    def test_tiny_ones_are_kept_to_the_pixel_and_enlarged_unblurred(self, tmp_path):
        page = Page(write(replace(SICK, findings=(finding("outlier", Case((member(5),), "")),)), tmp_path))
        [image] = page.all("img")
        assert image["class"] == "tiny"
        kept = Image.open(io.BytesIO(base64.b64decode(str(image["src"]).partition(",")[2])))
        np.testing.assert_array_equal(np.asarray(kept.convert("RGB")), paint(5))

    def test_photographs_take_10_kb(self, shared, tmp_path):
        photographs = sorted((shared / "hymenoptera" / "val").rglob("*.jpg"))[::10]
        members = [Member(str(path), "val", path.parent.name, ImageSample(str(path))) for path in photographs]
        html = write(replace(SICK, findings=(finding("outlier", *(Case((m,), "") for m in members)),)), tmp_path)
        assert html.count("<img") == len(members) > 10
        assert html.count('class="tiny"') == 0
        assert (len(html) - 40_000) / len(members) < 10_000


@pytest.mark.parametrize(
    ("data", "paths", "folder"),
    [
        ("photos", ["photos/a/1.png", "elsewhere/2.png"], "photos/"),
        ("photos/", ["photos/a/1.png"], "photos/"),
        ("p.tar", ["p.tar#a/1.png", "p.tar#b/2.png"], "p.tar#"),
        ("list.csv", ["/data/x/a1.png", "/data/x/a2.png"], "/data/x/"),
        ("photo", ["photos/1.png"], "photos/"),
        ("list.csv", ["/a/1.png", "/b/1.png"], ""),
        ("list.csv", ["1.png", "/b/1.png"], ""),
        ("digits", [], ""),
    ],
)
def test_folder_that_paths_share(data, paths, folder):
    assert find_folder(data, paths) == folder


def test_shares_are_never_rounded_to_all_or_nothing():
    said = [percent(share) for share in (0, 0.0001, 0.25, 0.9991, 0.99999, 1)]
    assert said == ["0.0 %", "< 0.1 %", "25.0 %", "99.9 %", "> 99.9 %", "100 %"]
    assert [say_count(1, "class", "classes"), say_count(1000, "split")] == ["1 class", "1,000 splits"]


def test_same_diagnosis_same_page(tmp_path):
    def undated() -> str:
        return re.sub("<time.*?</time>", "", write(SICK, tmp_path))

    assert undated() == undated()


def test_templates_are_part_of_the_package():
    held = {file.name for file in files("vggkit.reports.pages").iterdir()}
    assert {"layout.html", "style.css", "check.html"} <= held
    assert callable(render_page)


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_can_be_read_in_light_and_dark():
    style = files("vggkit.reports.pages").joinpath("style.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in style.split("@media", 2)[:2])
    assert light["blue"] == "#0072b2"
    assert light["orange"] == "#d55e00"
    assert light.keys() == dark.keys()
    for mode in (light, dark):

        def contrast(one: str, other: str, mode: dict[str, str] = mode) -> float:
            low, high = sorted((luminance(mode[one]), luminance(mode[other])))
            return (high + 0.05) / (low + 0.05)

        for ground in ("paper", "wash"):
            assert all(contrast(text, ground) >= 4.5 for text in ("ink", "soft", "blue-text", "orange-text"))
            assert all(contrast(drawn, ground) >= 3 for drawn in ("blue", "orange"))
        assert all(contrast("ink", f"{hue}-wash") >= 4.5 for hue in ("blue", "orange"))
        assert all(contrast(f"{hue}-text", f"{hue}-wash") >= 4.5 for hue in ("blue", "orange"))


def test_browser_shows_it_at_360_pixels_without_scrolling_sideways(tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"needs a browser on the PATH ({', '.join(names)}), and there is none")
    for name, diagnosis in ALL.items():
        write_check_page(diagnosis, tmp_path / f"{name}.html")
    # A window cannot be as narrow as a phone, a frame can.
    frames = "".join(
        f'<iframe src="{name}.html" style="width:360px;height:640px;border:0"></iframe>' for name in ALL
    )
    measure = """<script>onload = () => { for (const frame of document.querySelectorAll("iframe")) {
        const page = frame.contentDocument, images = [...page.images];
        page.querySelectorAll("details").forEach(details => details.open = true);
        document.body.append(`<${page.documentElement.clientWidth} ${page.documentElement.scrollWidth} ` +
            `${images.length} ${frame.contentWindow.getComputedStyle(page.body).margin}>`); } }</script>"""
    (tmp_path / "phones.html").write_text(f"<!doctype html><body>{measure}{frames}", encoding="utf-8")
    flags = "--headless=new --no-sandbox --disable-gpu --allow-file-access-from-files --enable-logging=stderr"
    address = (tmp_path / "phones.html").as_uri()
    command = [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    measured = re.findall(r"&lt;(\d+) (\d+) (\d+) (\w+)&gt;", done.stdout)
    assert len(measured) == len(ALL), done.stderr
    for client, scroll, _, margin in measured:
        assert int(scroll) <= int(client) <= 360
        assert margin == "0px"  # the style is in force
    assert int(measured[0][2]) > 100
    assert "CONSOLE" not in done.stderr, done.stderr
