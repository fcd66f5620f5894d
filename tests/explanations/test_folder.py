"""A folder of explanations, from Python and the shell, alone and beside predictions."""

import json

import numpy as np
import pytest
from PIL import Image

import vggkit as vk
from conftest import draw_class
from vggkit.cli import main as cli
from vggkit.errors import BadOutput
from vggkit.explanations.folder import ExplanationFolder
from vggkit.explanations.overlay import draw_heat, lay_map
from vggkit.explanations.plan import ExplanationPlan
from vggkit.images.preprocessing import Preprocessing
from vggkit.table_files import read_table


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    seen = Preprocessing(resize_pixels=64, crop_pixels=64)
    vk.Classifier.create(tiny, labels=["across", "down", "red"], preprocessing=seen, seed=3).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    """Two of one name, a file that is no image, and one of three endings."""
    folder = tmp_path / "photos"
    for name in ("a/1.png", "b/1.png", "b/1.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_class("red", 1, side=72)).save(folder / name)
    (folder / "b" / "2.png").write_bytes(b"no image")
    return folder


def call(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return ended.value.code


def list_files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_is_written(model, photos, tmp_path):
    out = tmp_path / "why"
    result = vk.explain_into(model, photos, out)
    assert (result.images, result.unreadable, result.layer) == (4, 1, "relu5_2")
    overlays, maps = ["a/1.png.jpg", "b/1.jpg", "b/1.png.jpg"], ["a/1.png.npy", "b/1.npy", "b/1.png.npy"]
    assert list_files(out) == sorted(
        [*overlays, *maps, "contact_sheet.jpg", "explanations.csv", "explanations.json"]
    )
    table = read_table(out / "explanations.csv")
    assert sorted(filter(None, table["overlay"])) == overlays
    assert "2.png" in next(filter(None, table["problem"]))
    about = json.loads((out / "explanations.json").read_text(encoding="utf-8"))
    assert (about["method"], about["layer"]) == ("grad-cam", "relu5_2")
    [alone] = vk.load(model).explain(photos / "a" / "1.png")
    np.testing.assert_allclose(np.load(out / "a" / "1.png.npy"), alone.map, rtol=0.1, atol=0.02 * alone.map.max())


def test_other_files_are_not_replaced(model, photos, tmp_path):
    for out in (photos, photos / "a"):
        with pytest.raises(BadOutput, match="holds other files"):
            vk.explain_into(model, photos, out)
    out = tmp_path / "why"
    vk.explain_into(model, photos / "a", out, method="layer-cam")
    vk.explain_into(model, photos / "a", out)  # its own may be written again
    assert json.loads((out / "explanations.json").read_text(encoding="utf-8"))["method"] == "grad-cam"


def test_names_stay_below_the_folder(model, tmp_path):
    plan = ExplanationPlan.of(vk.ModelFile(model).card)
    folder = ExplanationFolder(tmp_path / "why", plan, ["photos.tar"], with_maps=False)
    names = {
        path: folder.name_overlay(path)
        for path in ("../../etc/x.jpg", "/etc/x", "photos.tar#a/1.png", "image 0", "c:\\x\\y.png", "a\nb.jpg", "..")
    }
    assert len(set(names.values())) == len(names)
    assert names["photos.tar#a/1.png"] == "photos.tar/a/1.png.jpg"
    for name in names.values():
        assert (tmp_path / "why" / name).resolve().is_relative_to(tmp_path / "why")


def test_the_shell(model, photos, tmp_path, capsys):
    out = tmp_path / "why"
    assert call("explain", model, photos, "--out", out, "--label", "red") == 1  # one is no image
    said = capsys.readouterr()
    assert "3 of 4 images, grad-cam at relu5_2; computed by" in said.out
    assert "2.png" in said.err
    assert set(read_table(out / "explanations.csv")["label"]) == {"red", ""}
    assert call("explain", model, photos, "--out", out, "--contrast", "red", "down", "--json") == 1
    assert json.loads(capsys.readouterr().out)["images"] == 4
    for options, words in (
        ([photos, "--label", "rde"], "Did you mean 'red'"),
        ([photos, "--layer", "fc6"], "pool5"),
        ([photos / "b" / "2.png"], "2.png"),
        ([], "vggkit explain MODEL IMAGE"),
        ([photos, "--class", "red"], "did you mean --label?"),
        ([photos, "--class=red"], "did you mean --label?"),
        ([photos, "--output", "x"], "did you mean --out?"),
    ):
        assert call("explain", model, *options, "--out", tmp_path / "other") == 2
        assert words in capsys.readouterr().err


def test_of_one_image_the_shell_says_the_class_and_the_overlay(model, photos, tmp_path, capsys):
    out = tmp_path / "why"
    assert call("explain", model, photos / "b" / "1.jpg", "--out", out, "--label", "red") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{out}: red ")
    assert "1 image, grad-cam at relu5_2" in first
    assert second == f"look at: {out / '1.jpg'}"
    assert (out / "1.jpg").is_file()


def test_predictions_are_the_same_when_they_are_explained(model, photos, tmp_path, capsys):
    vk.predict_into(model, photos, tmp_path / "alone.csv", precision="fp32")
    vk.predict_into(model, photos, tmp_path / "both.csv", precision="fp32", explain=tmp_path / "why")
    alone, both = read_table(tmp_path / "alone.csv"), read_table(tmp_path / "both.csv")
    for name in ("path", "prediction", "problem"):
        assert alone[name] == both[name]
    assert list_files(tmp_path / "why") == [
        *("a/1.png.jpg", "b/1.jpg", "b/1.png.jpg", "contact_sheet.jpg", "explanations.json")
    ]
    assert call("predict", model, photos / "a", "--explain", tmp_path / "here") == 0
    assert "1.png" in capsys.readouterr().out
    assert "1.png.jpg" in list_files(tmp_path / "here")


@pytest.mark.parametrize("fit_mode", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("size", [(90, 200), (200, 90), (40, 44), (500, 4000)])
@pytest.mark.parametrize("sides", [(64, 64), (80, 64), (50, 64)])
def test_where_the_network_looks(fit_mode, size, sides):
    """Of an image whose colours are its places, each place of what is fed lies where `locate` says."""
    height, width = size
    down, across = np.mgrid[:height, :width]
    pixels = np.stack([255 * (across + 0.5) / width, 255 * (down + 0.5) / height, 0 * across + 255], axis=-1)
    seen = Preprocessing(resize_pixels=sides[0], crop_pixels=sides[1], fit_mode=fit_mode)
    fed = seen.fit(pixels.round().astype(np.uint8)).astype(float)
    left, top, right, bottom = seen.locate(height, width)
    for row, column in ((20, 25), (32, 32), (45, 40)):
        if fed[row, column, 2] == 255:  # not on padding
            found = fed[row, column, :2] / 255 * (width, height)
            place = left + (column + 0.5) / 64 * (right - left), top + (row + 0.5) / 64 * (bottom - top)
            assert np.abs(found - place).max() <= 0.01 * max(width, height)


def test_a_map_lies_on_what_it_is_of():
    """A hot place in the right lower quarter of the crop is drawn there, and what was not fed has no heat."""
    values = np.zeros((4, 4), np.float32)
    values[3, 3] = 5
    heat, inside = lay_map(values, (50, 0, 150, 100), (100, 200))
    assert inside == (50, 0, 150, 100)
    assert np.unravel_index(heat.argmax(), heat.shape) == pytest.approx((90, 140), abs=12)
    assert heat.max() == pytest.approx(1, abs=0.05)
    assert not heat[:, :50].any()
    assert not heat[:, 150:].any()
    assert not lay_map(np.zeros((4, 4), np.float32), (-20, -20, 80, 80), (60, 60))[0].any()


def test_a_map_of_pixels_can_be_seen_beside_an_extreme_one():
    """Most of a square speaks weakly, one pixel elsewhere a thousand times as much."""
    values = np.random.default_rng(0).random((224, 224)).astype(np.float32) * 0.01
    values[100:200, 100:200] += 1
    values[10, 10] = 1000
    heat, _ = lay_map(values, (0, 0, 224, 224), (224, 224))
    assert heat[110:190, 110:190].mean() > 0.5
    assert heat[:80, 120:].mean() < 0.1


def test_a_map_of_zeros_has_no_colour(model, photos):
    [found] = vk.load(model).explain(photos / "a" / "1.png")
    found.map[:] = 0
    pixels = found.image.decode()
    drawn = draw_heat(pixels, found)
    assert (drawn == drawn[..., :1]).all()
