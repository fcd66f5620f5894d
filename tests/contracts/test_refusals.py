"""A wrong model or a wrong place of data is refused before anything heavy is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from vggkit.classifier import Classifier
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.models.configuration import Configuration

HEAVY = ("torch", "torchvision", "sklearn", "scipy", "matplotlib", "openvino", "onnxruntime", "pyarrow")
NOT_YET = ("convert",)
CODE = """
import sys
from vggkit.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    print(ended.code, *[name for name in {heavy!r} if name in sys.modules])
"""


@pytest.fixture(scope="module")
def places(tiny: Configuration, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("refusals")
    labels, seen = ["across", "down", "red"], choose_preprocessing(32)
    Classifier.create(tiny, labels=labels, preprocessing=seen).save(folder / "good.safetensors")
    (folder / "broken.safetensors").write_bytes(b"no weights")
    names = ("good.safetensors", "broken.safetensors", "missing.safetensors", "missing")
    return {name: str(folder / name) for name in names}


@pytest.mark.parametrize(
    "line",
    [
        *(
            line.format(model)
            for model in ("missing.safetensors", "broken.safetensors", "vgg12", "vgg11_lrn")
            for line in (
                "predict {} photo.jpg",
                "predict {} photo.jpg --out out.csv",
                "embed {} photo.jpg --out out.npy",
                "evaluate {} digits",
                "check digits --model {}",
                "bench {}",
                "train digits --weights {}",
            )
        ),
        "predict good.safetensors missing",
        "embed good.safetensors missing --out out.npy",
        "search missing.safetensors photo.jpg",
        "evaluate good.safetensors missing",
        "check missing",
        "train missing",
        "train missing --model vgg11_bn",
        "train digits --model vgg12",
        "train --resume missing",
        "compare missing",
        "identify missing",
        "identify broken.safetensors",
        "convert missing out.pth --to timm",
        "summary vgg12",
        "code vgg12",
    ],
)
def test_nothing_heavy_is_imported_before_a_refusal(
    line: str, places: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if line.startswith(NOT_YET):
        request.applymarker(pytest.mark.xfail(reason="imports torch or scikit-learn first"))
    arguments = [places.get(word, word) for word in line.split()]
    found = subprocess.run(
        [sys.executable, "-c", CODE.format(heavy=HEAVY), *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "", "VGGKIT_OFFLINE": "1", "HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        timeout=120,
    )
    assert found.stdout == "2\n", found.stderr
    assert found.stderr.startswith("vggkit: error: "), found.stderr
