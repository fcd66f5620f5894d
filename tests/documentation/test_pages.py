"""The code blocks of the tutorials and of the lesson run in order, and print what the pages say."""

import os
import sys
from contextlib import nullcontext

import pytest
from PIL import Image

from local_hosts import start_store
from page_blocks import DOCS, PageRun, is_near, matches, read_blocks

HEAD = "vggkit train photos --weights imagenet --model vgg16 --trainable head --out runs/head"
WITHOUT_WEB = {"vggkit export runs/bees site/ --to web --precision int8": ""}  # tests/exporting/test_site.py
TINY = "--blocks 8/16 --image-size 32 --epochs 1 --batch-size 8 --quiet"
SMALL = f"{TINY} --out runs/vgg11-1"
INSTEAD = {
    "README.md": {
        HEAD: "",
        "predict runs/head": "predict runs/photos",
        "vggkit demo --out runs/demo": "",  # tests/workflows/test_demo.py
        "check photos --image-size 64": "check photos --image-size 32",
        "photos --model vgg11_bn --image-size 64 --epochs 15": (
            "photos --model vgg11_bn --until pool1 --image-size 32 --epochs 1"
        ),
    },
    "tutorials/your-photos.md": {HEAD: ""},
    "lesson/shapes.md": {
        'vk.VGG.from_pretrained("vgg19", until="relu3_4")': (
            'vk.VGG("vgg19", until="relu3_4", head="pool", num_classes=1).eval()'
        )
    },
    "compression.md": {
        "--max-size 12MB --plot": "--max-size 60kB --plot",
        'max_size="12MB"': 'max_size="60kB"',
        "--min-speedup 8 --max-loss 0.01": "--min-speedup 0.1 --max-loss 0.5",
    },
    "export.md": {"vggkit export vgg16 vgg16.safetensors --to timm": "", **WITHOUT_WEB},
    "guide-search.md": {
        "--weights imagenet --epochs 30 --search 12": "--blocks 8/16 --image-size 32 --epochs 2 --search 3"
    },
    "guide-several-labels.md": {
        "photos.csv --label-separator ';'    #": f"photos.csv --label-separator ';' {SMALL} #",
        "photos.csv                          #": f"columns.csv {SMALL}-again #",
    },
    "shell.md": {"~/.local": "home", "vggkit --tyro": "python -m vggkit --tyro"},
    "serving.md": {
        "or hf://owner/name\nvggkit serve runs/bees": "or hf://owner/name\nvggkit serve runs/bees --port 8791",
        "127.0.0.1:8000/": "127.0.0.1:8791/",
        "serve cats=runs/cats dogs=runs/dogs": "serve cats=runs/bees dogs=runs/bees --port 8792",
        "serve runs/bees --host 0.0.0.0 --token-file token": "serve runs/bees --port 8793 --token-file token",
        "http://server:8000": "http://127.0.0.1:8793",
        "from ray import serve": "from ray_stand_in import serve",
    },
    "tutorials/several-machines.md": {
        "--nnodes 2 --nproc-per-node 4": "--nnodes 1 --nproc-per-node 2",
        "first:29500": "127.0.0.1:29519",
        "train photos --out runs/photos": f"train digits {TINY} --device cpu --out runs/photos",
    },
    "scaling.md": {
        "--nproc-per-node 8": "--nproc-per-node 2",
        "--nnodes 4 --node-rank 0": "--nnodes 1 --node-rank 0",
        "--master-addr 10.0.0.1 --master-port 29500": "--master-addr 127.0.0.1 --master-port 29517",
        "--model vgg16_bn --out runs/bees": f"{TINY} --device cpu",
    },
    "large-data.md": {
        "--model vgg11_bn": TINY,
        "torchrun --nproc-per-node 4": "torchrun --nproc-per-node 2",
        "--out runs/four": f"{TINY} --device cpu --out runs/four",
        "bucket/train-{000..099}.tar": "bucket/photos/train-{00000..00000}.tar",
        "train photos.json": f"train photos.json {TINY}",
        "predict vgg16": "predict runs/bees",
        " --on ray": "",  # tests/inference/test_on_ray.py
    },
    "how-to/windows-macos.md": {'if __name__ == "__main__":': "if True:"},
}
"""What is written on a page, and what runs: published weights need a network, and large networks minutes."""
PAGES = (
    "README.md",
    "how-to/offline.md",
    "how-to/gpu.md",
    "how-to/windows-macos.md",
    "guide-several-labels.md",
    "shell.md",
    "tutorials/your-photos.md",
    "tutorials/figures.md",
    "tutorials/small-and-fast.md",
    "tutorials/serving.md",
    "tutorials/several-machines.md",
    "lesson/why.md",
    "lesson/shapes.md",
    "lesson/training.md",
    "lesson/experiments.md",
    "lesson/transfer.md",
    "lesson/exercises.md",
    "compression.md",
    "explanations.md",
    "export.md",
    "serving.md",
    "guide-search.md",
    "large-data.md",
    "scaling.md",
)
ABOUT_BEES = (
    "compression.md",
    "explanations.md",
    "export.md",
    "serving.md",
    "guide-search.md",
    "large-data.md",
    "scaling.md",
)
"""Pages about a run `runs/bees` and `photos`, which are made before."""
GUIDES = ("evaluation", "images", "inference", "training", "weights")
QUICK = ("how-to/gpu.md", "how-to/offline.md", "how-to/windows-macos.md", "shell.md")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[] if page in QUICK else [pytest.mark.slow]) for page in PAGES]
)
def test_the_blocks_run_in_order(page, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}")  # noqa: PTH120
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    if page == "README.md":
        make_photos(tmp_path)
    if page == "guide-several-labels.md":
        make_tables(tmp_path)
    if page in ABOUT_BEES:
        make_bees(tmp_path)
    with start_store(monkeypatch, "bucket") if page == "large-data.md" else nullcontext():
        PageRun(page, INSTEAD.get(page, {})).run()


def make_photos(folder):
    """The folder of the start page."""
    from conftest import fill_folder

    fill_folder(folder / "photos", ("ants", "bees"), 12)
    (folder / "photos" / "bees" / "000.png").rename(folder / "photos" / "bees" / "1092977343.jpg")


def make_tables(folder):
    """The tables of images with several labels, and a photo."""
    from conftest import draw_class

    names = ("sun", "sea", "boat")
    rows, columns = ["path,label"], ["path,sun,sea,boat"]
    for number in range(24):
        labels = [name for place, name in enumerate(names) if number >> place & 1]
        Image.fromarray(draw_class("across" if "sun" in labels else "down", number)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{';'.join(labels)}")
        columns.append(f"{number}.png," + ",".join(str(int(name in labels)) for name in names))
    (folder / "photos.csv").write_text("\n".join(rows), encoding="utf-8")
    (folder / "columns.csv").write_text("\n".join(columns), encoding="utf-8")
    Image.open(folder / "3.png").save(folder / "photo.jpg")


def make_bees(folder):
    """`photos`, single images of it, a classifier that was trained on it, and a stand-in for Ray Serve."""
    import vggkit as vk
    from conftest import draw_class

    for split, numbers in {"train": range(16), "val": range(50, 58), "test": range(80, 88)}.items():
        for label, kind in {"ant": "across", "bee": "down"}.items():
            (folder / "photos" / split / label).mkdir(parents=True)
            for number in numbers:
                path = folder / "photos" / split / label / f"{number:03}.png"
                Image.fromarray(draw_class(kind, number)).save(path)
    for name in ("cat", "bee", "a", "b"):
        Image.open(folder / "photos" / "val" / "bee" / "050.png").convert("RGB").save(folder / f"{name}.jpg")
    recipe = vk.Recipe(epochs=6, batch_size=8, optimizer="adamw", learning_rate=3e-3, augmentation="none")
    vk.train("photos", blocks="8/16,16/24", image_size=32, recipe=recipe, out="runs/bees", quiet=True)
    (folder / "ray_stand_in.py").write_text(RAY)


RAY = """
class serve:
    deployment = batch = staticmethod(lambda **options: lambda wrapped: wrapped)
    run = staticmethod(lambda bound: None)


serve.deployment = staticmethod(lambda **options: lambda kind: type(kind.__name__, (kind,), {"bind": lambda: None}))
"""


ELSEWHERE = {
    **{f"guide-{name}.md": "contracts/test_readme.py" for name in GUIDES},
    "inside.md": "contracts/test_inside_page.py",
    "interoperability.md": "test_interoperability.py",
    "migration.md": "test_migration.py",
    "perceptual-losses.md": "features/test_docs_page.py",
    "three-ways.md": "test_three_ways.py",
}
"""Pages that other tests run."""


def test_every_page_with_code_is_run():
    """By this file or by another; a page that is added must be named in one of them."""
    for path in sorted(DOCS.rglob("*.md")):
        page = path.relative_to(DOCS).as_posix()
        kinds = {kind for kind, _ in read_blocks(page)}
        assert kinds <= {"shown"} or (page in PAGES) != (page in ELSEWHERE), page
    for page, test in ELSEWHERE.items():
        text = (DOCS.parent / "tests" / test).read_text(encoding="utf-8")
        assert page in text or page.removeprefix("guide-").removesuffix(".md") in text, page


def test_what_does_not_run_is_no_code():
    """Blocks of text that nothing prints show files and tables; code and commands have a language that runs."""
    pages = [*sorted(DOCS.rglob("*.md")), *(DOCS.parent / name for name in ("CONTRIBUTING.md", "SECURITY.md"))]
    for path in pages:
        for kind, text in read_blocks(os.path.relpath(path, DOCS)):
            assert kind in ("python", "bash", "text", "measured", "json", "shown"), path
            first = text.split()[0]
            assert kind != "shown" or first not in ("vggkit", "torchrun", "python", "pip", "import", "from"), path


def test_code_fits_the_column():
    """87 characters at 1280 pixels; longer lines would have to be scrolled."""
    for path in sorted(DOCS.rglob("*.md")):
        inside = False
        for line in path.read_text(encoding="utf-8").splitlines():
            inside = not inside if line.lstrip().startswith("```") else inside
            assert not inside or len(line) <= 87, (path, line)


def test_a_text_block_is_compared():
    assert matches("1 a\n…\nend\n", "1 a\n2\n3\nend\n")
    assert matches("accuracy … of 3\n", "accuracy 0.3 of 3\n")
    assert matches("…\n", "anything\n")
    assert not matches("1\n", "2\n")
    assert is_near("accuracy 0.90, loss 2.1\n", "accuracy 0.93, loss 2.4\n")
    assert not is_near("accuracy 0.90\n", "accuracy 0.70\n")
    assert not is_near("accuracy 0.90\n", "loss 0.90\n")
    assert not matches("1\n", "1\n2\n")
