"""What is released: the wheel's and the sdist's contents, and that they work with nothing but the core packages."""

import email
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

import vggkit

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="no source tree here")


def build(out, *arguments, source=ROOT):
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "build", "--no-isolation", *arguments, "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    build(out, "--wheel")
    [path] = out.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
    package = ROOT / "src"
    expected = {
        path.relative_to(package).as_posix()
        for path in (package / "vggkit").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == expected
    assert {"vggkit/py.typed", "vggkit/__init__.pyi", "vggkit/weights/digits.safetensors"} <= names
    assert wheel.stat().st_size < 2_500_000


def test_its_metadata_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as opened:
        [place] = [name for name in opened.namelist() if name.endswith("METADATA")]
        found = email.message_from_bytes(opened.read(place))
        [entries] = [name for name in opened.namelist() if name.endswith("entry_points.txt")]
        assert "vggkit = vggkit.cli.main:main" in opened.read(entries).decode()
        assert any(name.endswith("licenses/LICENSE") for name in opened.namelist())
    assert (found["Name"], found["Version"]) == ("vggkit", vggkit.__version__)
    assert found["License-Expression"] == "MIT"
    assert "Typing :: Typed" in found.get_all("Classifier")
    for url in found.get_all("Project-URL"):
        assert "arxiv.org" in url  # no address that does not exist yet
    core = [each for each in map(Requirement, found.get_all("Requires-Dist")) if each.marker is None]
    assert {"torch", "numpy", "safetensors", "tyro"} <= {each.name for each in core}
    assert not {"scikit-learn", "torchvision", "openvino"} & {each.name for each in core}


def link_core(target):
    """Link the core packages of this environment, and what they need, into the site-packages of an empty one."""
    left, done = ["vggkit"], set()
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in done:
            continue
        done.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for each in map(Requirement, found.requires or ()):
            if each.marker is None or each.marker.evaluate({"extra": ""}):
                left.append(each.name)
        if name == "vggkit":
            continue
        for file in found.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (target / top).exists():
                (target / top).symlink_to(Path(found.locate_file(top)).resolve())
    return done


@pytest.mark.slow
def test_sdist_and_wheel_install_and_work_with_only_the_core(tmp_path):
    """The environment is empty but for the core packages, linked from this one: no network is needed."""
    if importlib.util.find_spec("ensurepip") is None or sys.platform == "win32":
        pytest.skip("needs ensurepip, and links to folders")
    try:
        importlib.metadata.distribution("vggkit")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("vggkit is on the path here and not installed, so its core packages are unknown")
    build(tmp_path / "dist")  # the sdist, and from it the wheel
    [sdist], [wheel] = (tmp_path / "dist").glob("*.tar.gz"), (tmp_path / "dist").glob("*.whl")
    with tarfile.open(sdist) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "tests/conftest.py"} <= names
    assert not any(name.startswith((".venv", "runs/", "dist/")) for name in names)

    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    [packages] = (tmp_path / "env" / "lib").glob("python*/site-packages")
    linked = link_core(packages)
    assert "torch" in linked
    assert not linked & {"scikit-learn", "openvino", "torchvision", "pytest"}
    install = [str(python), "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", str(wheel)]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"VGGKIT_OFFLINE": "1", "VGGKIT_HOME": str(tmp_path / "home")}
    place = tmp_path / "elsewhere"
    place.mkdir()

    def run(*command, code=0):
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == code, f"{command}: {done.stdout[-1500:]}{done.stderr[-1500:]}"
        return done.stdout

    run(*install)
    command = str(python.with_name("vggkit"))
    assert run(command, "--version").strip() == f"vggkit {vggkit.__version__}"
    assert "vgg16_bn" in run(command, "models")
    Image.new("L", (200, 300), 240).save(place / "photo.png")
    [line] = run(command, "predict", "digits", "photo.png", "--json").splitlines()
    assert len(json.loads(line)["labels"]) == 5
    code = (
        "import torch, vggkit as vk\n"
        "net = vk.VGG('vgg11', num_classes=10, head='pool')\n"
        "print(vk.__file__, tuple(net(torch.zeros(1, 3, 64, 64)).shape))\n"
        "print(vk.load('digits'))\n"
        "from vggkit import *\n"
    )
    out = run(str(python), "-c", code)
    assert str(packages) in out
    assert "(1, 10)" in out
    found = json.loads(run(command, "doctor", "--json", "--quiet"))
    assert found["problems"] == []
    states = {(each["engine"], each["precision"]): each["status"] for each in found["engines"]}
    assert states["pytorch", "fp32"] == "works"
    assert states["openvino", "fp32"] == "not installed"
    assert all(each["version"] is None for each in found["extras"]["fast"])
    # What an extra is for is refused with the line that installs it.
    for extra, *arguments in (
        ("train", "train", "digits"),
        ("train", "summary", "vgg11", "--plot", "drawn.png"),
        ("serve", "serve", "digits", "--port", "0"),
        ("onnx", "export", "digits", "digits.onnx"),
        ("fast", "predict", "digits", "photo.png", "--engine", "openvino"),
        ("weights", "predict", "hf://owner/name", "photo.png"),
    ):
        refused = subprocess.run(
            [command, *arguments], cwd=place, env=environment, capture_output=True, text=True, timeout=200
        )
        assert refused.returncode == 2, f"{arguments}: {refused.stderr[-1500:]}"
        assert f'pip install "vggkit[{extra}]"' in refused.stderr, f"{arguments}: {refused.stderr[-1500:]}"
        assert "Traceback" not in refused.stderr


def test_the_files_beside_the_code_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == vggkit.__version__
    assert citation["cff-version"] == "1.2.0"
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\]", changes, flags=re.M)
    assert versions[0] in ("Unreleased", vggkit.__version__)
    assert vggkit.__version__ in versions
    kinds = set(re.findall(r"^### (.+)$", changes, flags=re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}  # Keep a Changelog 1.1.0
    assert "Report it in private" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_issue_templates_are_forms():
    templates = list((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    if not templates:
        pytest.skip("an sdist has none")
    for path in templates:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem != "config":
            assert {"name", "description", "body"} <= set(form), path
            ids = [each["id"] for each in form["body"] if "id" in each]
            assert len(ids) == len(set(ids))
    assert "vggkit doctor" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8")


def test_llms_txt_leads_to_files_that_exist():
    text = (ROOT / "llms.txt").read_text(encoding="utf-8")
    assert text.startswith("# vggkit\n\n> ")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        assert (ROOT / link).is_file(), link


@pytest.mark.slow
def test_the_bill_of_materials_lists_what_is_pinned(tmp_path):
    tool = shutil.which("cyclonedx-py", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("cyclonedx-bom is not installed")
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "cyclonedx-py requirements requirements.lock" in recipe
    out = tmp_path / "vggkit.cdx.json"
    options = ("--pyproject", "pyproject.toml", "--mc-type", "library", "--of", "JSON", "-o", str(out))
    subprocess.run(
        [tool, "requirements", "requirements.lock", *options],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=200,
    )
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["bomFormat"] == "CycloneDX"
    assert found["metadata"]["component"]["name"] == "vggkit"
    assert {"torch", "numpy", "safetensors"} <= {each["name"] for each in found["components"]}
