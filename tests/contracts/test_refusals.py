"""A wrong model or a wrong place of data is refused before anything heavy is imported."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import vggkit as vk
from vggkit.classifier import Classifier
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.models.configuration import Configuration
from vggkit.models.vgg import VGG

HEAVY = ("torch", "torchvision", "sklearn", "scipy", "matplotlib", "openvino", "onnxruntime", "pyarrow")
CODE = """
import sys
from vggkit.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    print(ended.code, *[name for name in {heavy!r} if name in sys.modules])
"""

ONE_BY_ONE = """
import contextlib, io, json, sys
from vggkit.cli.main import main
refusals = []
for arguments in json.load(sys.stdin):
    code, told = None, io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code
    refusals.append([code, [name for name in {heavy!r} if name in sys.modules], told.getvalue()])
print(json.dumps(refusals))
"""


def alone(folder: Path) -> dict[str, str]:
    """The environment of a process that knows nothing of this machine's network, programs and home."""
    return {"PATH": "", "VGGKIT_OFFLINE": "1", "HOME": str(folder), "PYTHONPATH": ":".join(sys.path)}


def refuse(arguments: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own; it prints the exit code and the heavy packages it imported."""
    return subprocess.run(
        [sys.executable, "-c", CODE.format(heavy=HEAVY), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=alone(folder),
        timeout=120,
    )


@pytest.fixture(scope="module")
def places(tiny: Configuration, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("refusals")
    labels, seen = ["across", "down", "red"], choose_preprocessing(32)
    Classifier.create(tiny, labels=labels, preprocessing=seen).save(folder / "good.safetensors")
    (folder / "broken.safetensors").write_bytes(b"no weights")
    names = ("good.safetensors", "broken.safetensors", "missing.safetensors", "missing")
    return {name: str(folder / name) for name in names}


LINES = [
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
    "convert broken.safetensors out.pth --to timm",
    "convert good.safetensors out.txt --to timm",
    "convert good.safetensors out.npz --to caffe --reading 3",
    "convert good.safetensors out.npz --to caffe --input-convention imagenet1",
    "summary vgg12",
    "code vgg12",
]


def test_nothing_heavy_is_imported_before_a_refusal(places: dict[str, str], tmp_path: Path) -> None:
    """One after another in one process: the first that imports something heavy is named."""
    commands = [[places.get(word, word) for word in line.split()] for line in LINES]
    found = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE.format(heavy=HEAVY)],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=alone(tmp_path),
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    refusals = json.loads(found.stdout)
    for line, (code, heavy, told) in zip(LINES, refusals, strict=True):
        assert (code, heavy) == (2, []), f"{line}: {told}"
        assert told.startswith("vggkit: error: "), f"{line}: {told}"


@pytest.mark.parametrize("name", ["weights.safetensors", "other.safetensors", "weights.npz", "weights.pth"])
def test_weights_where_a_classifier_is_wanted_are_named_with_what_makes_one_of_them(
    name: str, tiny: Configuration, tmp_path: Path
) -> None:
    state = VGG(tiny).state_dict()
    arrays = {key: value.numpy() for key, value in state.items()}
    match name:
        case "weights.safetensors":
            safetensors.torch.save_file(state, tmp_path / name)
        case "other.safetensors":
            safetensors.torch.save_file({"fc.weight": torch.zeros(3, 3)}, tmp_path / name)
        case "weights.npz":
            np.savez(tmp_path / name, **arrays)
        case "weights.pth":
            torch.save({"state_dict": state}, tmp_path / name)
    found = refuse(["predict", name, "photo.jpg"], tmp_path)
    assert found.stdout in ("2\n", "2 torch\n" if name.endswith(".pth") else "2\n"), found.stderr
    assert found.stderr.startswith(f"vggkit: error: {name}: "), found.stderr
    assert len(found.stderr.splitlines()) == 1
    if name.startswith("other"):
        assert "not a VGG" in found.stderr
        return
    assert "8 convolutions" in found.stderr
    line = re.search(r"`(vk\.Classifier\.create\(.*\))`", found.stderr)
    assert line is not None, found.stderr
    with contextlib.chdir(tmp_path):
        eval(line[1], {"vk": vk})
        [made] = tmp_path.glob("*-classifier.safetensors")
    assert len(vk.load(made).labels) == 3
