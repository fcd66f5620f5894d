"""The code blocks of the tutorials and of the lesson run in order, and print what the pages say."""

import pytest

from page_blocks import DOCS, PageRun, matches, read_blocks

HEAD = "vggkit train photos --weights imagenet --model vgg16 --trainable head --out runs/head"
INSTEAD = {
    "README.md": {
        "vggkit demo --out runs/demo": "",  # tests/workflows/test_demo.py
        "check photos --image-size 64": "check photos --image-size 32",
        "photos --model vgg11_bn --image-size 64 --epochs 15": (
            "photos --model vgg11_bn --until pool1 --image-size 32 --epochs 1"
        ),
    },
    "tutorials/your-photos.md": {HEAD: ""},
}
"""What is written on a page, and what runs: published weights need a network, and large networks minutes."""
PAGES = (
    "README.md",
    "how-to/offline.md",
    "how-to/gpu.md",
    "how-to/windows-macos.md",
    "tutorials/your-photos.md",
    "tutorials/figures.md",
    "tutorials/small-and-fast.md",
    "tutorials/serving.md",
    "tutorials/several-machines.md",
)
QUICK = ("how-to/gpu.md", "how-to/offline.md", "how-to/windows-macos.md")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[] if page in QUICK else [pytest.mark.slow]) for page in PAGES]
)
def test_the_blocks_run_in_order(page, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    if page == "README.md":
        make_photos(tmp_path)
    PageRun(page, INSTEAD.get(page, {})).run()


def make_photos(folder):
    """The folder of the start page."""
    from conftest import fill_folder

    fill_folder(folder / "photos", ("ants", "bees"), 12)
    (folder / "photos" / "bees" / "000.png").rename(folder / "photos" / "bees" / "1092977343.jpg")


def test_every_page_with_code_is_run():
    """By this file or by another; a page that is added must be named in one of them."""
    elsewhere = {
        "guide-evaluation.md",
        "guide-images.md",
        "guide-inference.md",
        "guide-training.md",
        "guide-weights.md",
        "inside.md",
        "migration.md",
        "perceptual-losses.md",
        "three-ways.md",
    }
    for path in sorted(DOCS.rglob("*.md")):
        page = path.relative_to(DOCS).as_posix()
        kinds = {kind for kind, _ in read_blocks(page)}
        assert kinds <= {"shown"} or page in elsewhere or page in PAGES, page


def test_a_text_block_is_compared():
    assert matches("1 a\n…\nend\n", "1 a\n2\n3\nend\n")
    assert matches("accuracy … of 3\n", "accuracy 0.3 of 3\n")
    assert matches("…\n", "anything\n")
    assert not matches("1\n", "2\n")
    assert not matches("1\n", "1\n2\n")
