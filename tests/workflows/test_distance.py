"""Distances of image files and folders, in Python and from the shell; the loss itself is the oracle."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import vggkit as vk
from vggkit.cli import main as cli
from vggkit.errors import BadConfiguration, BadData, BadInput, UnknownName
from vggkit.features.loss_config import METRICS
from vggkit.table_files import read_table
from vggkit.workflows import distance as workflow


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("trunk") / "vgg16.pth"
    torch.save(vk.VGG("vgg16", until="relu4_3", head="pool", num_classes=1).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Four images each, three of them of the same name: one pair of another size, one of two sizes."""
    root, numbers = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for folder in ("a/sub", "b/sub"):
        (root / folder).mkdir(parents=True)
    for name, size in (("0", (40, 32)), ("sub/1", (48, 48)), ("2", (32, 32)), ("alone", (32, 32))):
        image = Image.fromarray(numbers.integers(0, 255, (*size, 3), dtype=np.uint8))
        image.save(root / "a" / f"{name}.png")
        changed = image.resize((33, 32)) if name == "2" else image
        changed.save(root / "b" / f"{'other' if name == 'alone' else name}.jpg", quality=30)
    return root / "a", root / "b"


def call(*arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["distance", *map(str, arguments)])
    return ended.value.code, *capsys.readouterr()


def to_tensor(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("metric", ["content", "gram"])
def test_two_folders_are_paired_by_name(metric, folders, trunk):
    loss = vk.PerceptualLoss(METRICS[metric], trunk=trunk, input_range=(0, 1))
    first, second = folders
    found = vk.distance(first, second, metric=metric, trunk=trunk, batch_size=2)
    assert [pair.first for pair in found.pairs] == [str(first / each) for each in ("0.png", "2.png", "sub/1.png")]
    for pair in (found.pairs[0], found.pairs[2]):
        assert pair.distance == pytest.approx(float(loss(to_tensor(pair.first), to_tensor(pair.second))), rel=1e-4)
    if metric == "content":
        assert found.pairs[1].distance is None
        assert "2.png has 32×32 pixels" in found.pairs[1].problem
        assert "2.jpg has 33×32" in found.pairs[1].problem
    else:  # places are not compared
        assert found.pairs[1].distance > 0
    assert found.only_first == (str(first / "alone.png"),)
    assert found.only_second == (str(second / "other.jpg"),)


def test_what_images_are_given(folders, trunk, monkeypatch):
    """Files, and images in memory; the trunk is opened once."""
    loss = vk.PerceptualLoss(METRICS["content"], trunk=trunk, input_range=(0, 1), check_range=False)
    monkeypatch.setattr(workflow, "PerceptualLoss", lambda *_, **options: loss)
    loss.reduction = "none"
    names = [folders[0] / "0.png", folders[0] / "sub" / "1.png"]
    ours = vk.distance(names, [folders[1] / "0.jpg", folders[1] / "sub" / "1.jpg"], metric="content")
    held = vk.distance(
        [Image.open(each) for each in names],
        [np.asarray(Image.open(folders[1] / each)) for each in ("0.jpg", "sub/1.jpg")],
        metric="content",
    )
    assert [each.distance for each in ours.pairs] == [each.distance for each in held.pairs]
    assert vk.distance(names[0], names[0], metric="content").mean == 0
    black = np.zeros((64, 64, 3), np.uint8)
    assert vk.distance(black, black, metric="content").mean == 0  # no warning of its range
    small = vk.distance(black[:2], black[:2], metric="content").pairs[0]
    assert "2 pixels, which is too small" in small.problem
    missing = vk.distance("none.png", names[0], metric="content").pairs[0]
    assert missing.distance is None
    assert "none.png" in missing.problem
    with pytest.raises(BadInput, match="two images or two folders"):
        vk.distance(folders[0], names[0], metric="content")
    with pytest.raises(BadInput, match="there are 2 and 1"):
        vk.distance(names, names[:1], metric="content")


def test_folders_that_cannot_be_paired(folders, tmp_path):
    (tmp_path / "one").mkdir()
    for ending in ("png", "jpg"):
        Image.new("RGB", (32, 32)).save(tmp_path / "one" / f"same.{ending}")
    with pytest.raises(BadData, match="one name"):
        vk.distance(tmp_path / "one", folders[0], metric="content")
    with pytest.raises(BadData, match="no images of the same name"):
        vk.distance(folders[0] / "sub", folders[1], metric="content")


def test_what_is_missing_is_named_before_anything_is_fetched(folders):
    with pytest.raises(BadConfiguration, match=r"calibration=.*weights/v0.1/vgg.pth"):
        vk.distance(*folders)
    with pytest.raises(BadConfiguration, match=r"weights\.pt"):
        vk.distance(*folders, metric="dists")
    with pytest.raises(UnknownName, match="lpips"):
        vk.distance(*folders, metric="lpisp")


def test_other_networks_that_have_the_layers(folders):
    network = vk.VGG("vgg19", until="relu3_4", head="pool", num_classes=1)
    loss = vk.PerceptualLoss(
        vk.LossConfig(model="vgg19", content={"relu3_3": 1.0}), trunk=network, input_range=(0, 1)
    )
    pair = vk.distance(folders[0] / "0.png", folders[1] / "0.jpg", metric="content", trunk=network).pairs[0]
    assert pair.distance == pytest.approx(float(loss(to_tensor(pair.first), to_tensor(pair.second))), rel=1e-4)
    with pytest.raises(BadConfiguration, match=r"gram compares relu1_2.* ends with relu3_4, lacks relu4_3"):
        vk.distance(*folders, metric="gram", trunk=network)
    with pytest.raises(BadConfiguration, match="content compares relu3_3, and the trunk, a vgg11 "):
        vk.distance(*folders, metric="content", trunk=vk.VGG("vgg11", until="pool3"))
    calibration = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate((64, 128, 256, 512, 512))}
    with pytest.raises(BadConfiguration, match="lpips compares layers of vgg16; the trunk is a vgg19"):
        vk.distance(*folders, trunk=network, calibration=calibration)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_whatever_mode_the_caller_is_in(folders, mode):
    network = vk.VGG("vgg16", until="relu3_3", head="pool", num_classes=1).train()
    images = folders[0] / "0.png", folders[1] / "0.jpg"
    expected = vk.distance(*images, metric="content", trunk=network).mean
    with mode(), torch.autocast("cpu", torch.bfloat16):
        assert vk.distance(*images, metric="content", trunk=network).mean == expected
    assert network.training
    assert all(value.requires_grad for value in network.parameters())


def test_a_trunk_that_ends_early(folders, trunk):
    calibration = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate((64, 128, 256, 512, 512))}
    with pytest.raises(BadConfiguration, match=r"relu5_3, and the trunk ends with relu4_3"):
        vk.distance(*folders, trunk=trunk, calibration=calibration)


def test_the_verb(folders, trunk, tmp_path, capsys):
    first, second = folders
    table = tmp_path / "distances.csv"
    code, out, err = call(first, second, "--metric", "content", "--trunk", trunk, "--out", table, capsys=capsys)
    assert code == 1
    assert out.startswith(f"{table}: mean content ")
    assert "n = 2" in out
    assert "in " + str(first) + " alone: 1" in err
    assert "2.png has 32×32 pixels" in err
    rows = read_table(table)
    assert list(rows) == ["first", "second", "distance", "problem"]
    assert rows["distance"][1] == ""
    same = ("--metric", "content", "--trunk", trunk, "--quiet", "--json")
    code, out, _ = call(first / "0.png", first / "0.png", *same, capsys=capsys)
    assert code == 0
    assert json.loads(out)["pairs"][0]["distance"] == 0
    code, _, err = call(first / "2.png", second / "2.jpg", "--metric", "content", "--trunk", trunk, capsys=capsys)
    assert code == 2
    assert "Traceback" not in err
    for number in range(3):
        for folder in folders:
            (tmp_path / folder.name).mkdir(exist_ok=True)
            (tmp_path / folder.name / f"{number}.png").write_bytes(b"no image")
    Image.new("RGB", (32, 32)).save(tmp_path / "a" / "3.png")
    Image.new("RGB", (33, 32)).save(tmp_path / "b" / "3.png")
    code, _, err = call(tmp_path / "a", tmp_path / "b", "--metric", "content", "--trunk", trunk, capsys=capsys)
    assert code == 2
    assert "and 1 more; 4 of 4 pairs failed" in err
    code, _, err = call(first, second, "--metric", "content", "--out", tmp_path / "t.txt", capsys=capsys)
    assert code == 2
    assert ".csv" in err
