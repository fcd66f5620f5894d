"""Features computed once: right, found again by content, and never trusted blindly.

Shape letters: N images, V views, F features.
"""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vggkit.classifier import Classifier
from vggkit.errors import BadImage
from vggkit.images.dataset import ImageSample
from vggkit.images.preprocessing import Preprocessing
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.training import feature_cache as feature_store
from vggkit.training import feature_cache as features
from vggkit.training.feature_cache import FeatureStore, extract_features, remove_oldest
from vggkit.training.logistic_regression import solve_head
from vggkit.training.recipe import Recipe
from vggkit.workflows.build_classifier import build_classifier

CPU = torch.device("cpu")
PLAIN = Recipe(trainable="head", augmentation="none", mirror="none")
VARIED = replace(PLAIN, views=3, augmentation="shift", mirror="random")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VGGKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def classifier(tiny):
    return Classifier.create(
        tiny,
        labels=["across", "down", "red"],
        preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32),
        seed=0,
    )


def extract(classifier, images, *, recipe=PLAIN, precision="fp32", **options):
    options.setdefault("views", recipe.views)
    return extract_features(classifier, images, recipe=recipe, device=CPU, precision=precision, **options)


def segments(home):
    return sorted(home.glob("features/*/*.npy"))


def test_features_are_what_the_last_layer_reads(classifier, photos):
    images = open_dataset(photos).split("train")
    heard, said = [], []
    found = extract(classifier, images, on_progress=lambda *step: heard.append(step), log=said.append)
    inputs = torch.stack([torch.from_numpy(classifier.preprocessing(image.decode())) for image in images])
    with torch.no_grad():
        expected = classifier.network.eval().describe(inputs).numpy()
    np.testing.assert_allclose(found.rows, expected, atol=1e-4)
    assert [classifier.labels[target] for target in found.targets] == [image.label for image in images]
    assert len(set(found.groups)) == len(images)
    assert heard == [(done, len(images)) for done in range(1, len(images) + 1)]
    assert found.found == 0
    assert found.engine
    assert any("features of 48 images computed by" in sentence for sentence in said)


def test_views_follow_one_another_and_the_first_is_as_when_predicting(classifier, photos):
    images = open_dataset(photos).split("val")
    plain, varied = extract(classifier, images), extract(classifier, images, recipe=VARIED)
    rows = varied.rows.reshape(len(images), 3, -1)
    assert (rows[:, 0] == plain.rows).all()
    assert varied.found == len(images)
    assert len(np.unique(rows.round(5).reshape(len(rows) * 3, -1), axis=0)) > 2 * len(images)
    assert (varied.targets == np.repeat(plain.targets, 3)).all()
    assert (varied.groups == np.repeat(plain.groups, 3)).all()


class TestKept:
    def test_nothing_is_computed_or_decoded_again(self, classifier, photos, monkeypatch):
        images = open_dataset(photos).split("train")
        first = extract(classifier, images, recipe=VARIED)

        def fail(*_, **__):
            raise AssertionError("it is known")

        monkeypatch.setattr(features, "choose_engine", fail)
        monkeypatch.setattr(features, "decode", fail)
        again = extract(classifier, images, recipe=VARIED)
        assert (again.rows == first.rows).all()
        assert (again.found, again.engine) == (len(images) * 3, None)

    def test_a_renamed_file_costs_nothing_and_a_new_one_only_itself(self, classifier, photos, tmp_path):
        folder = tmp_path / "mine"
        shutil.copytree(photos, folder)
        before = extract(classifier, open_dataset(folder).split("val"))
        (folder / "val" / "red" / "100.png").rename(folder / "val" / "red" / "zzz.png")
        Image.new("RGB", (40, 40), "blue").save(folder / "val" / "red" / "new.png")
        after = extract(classifier, open_dataset(folder).split("val"))
        assert (len(after.rows), after.found) == (len(before.rows) + 1, len(before.rows))
        assert set(map(tuple, before.rows)) < set(map(tuple, after.rows))

    def test_pixels_in_memory_are_known_by_their_values(self, classifier):
        def draw(level):
            return ImageSample("memory", "red", np.full((40, 40, 3), level, np.uint8))

        extract(classifier, [draw(1)])
        assert extract(classifier, [draw(1)]).found == 1
        assert extract(classifier, [draw(2)]).found == 0

    @pytest.mark.parametrize("change", ["weights", "preprocessing", "precision", "seed", "mirror"])
    def test_what_matters_is_told_apart(self, classifier, photos, change):
        images = open_dataset(photos).split("val")
        extract(classifier, images, recipe=VARIED)
        recipe, precision = VARIED, "fp32"
        match change:
            case "weights":
                with torch.no_grad():
                    classifier.network.features[1].running_mean += 0.01
            case "preprocessing":
                fed = replace(classifier.preprocessing, mean=(0.5, 0.5, 0.5))
                classifier = Classifier(classifier.network, labels=classifier.labels, preprocessing=fed)
            case "precision":
                precision = "bf16"
            case "seed":
                recipe = replace(VARIED, seed=1)
            case "mirror":
                recipe = replace(VARIED, mirror="none")
        shared = len(images) if change in ("seed", "mirror") else 0  # the views as when predicting
        assert extract(classifier, images, recipe=recipe, precision=precision).found == shared

    def test_the_last_layer_does_not_matter(self, classifier, photos):
        images = open_dataset(photos).split("val")
        extract(classifier, images)
        with torch.no_grad():
            classifier.network.classifier[-1].weight += 1
        assert extract(classifier, images).found == len(images)

    @pytest.mark.parametrize("damage", ["cut", "foreign", "other kind", "empty"])
    def test_a_damaged_segment_is_made_again(self, classifier, photos, home, damage):
        images = open_dataset(photos).split("val")
        first = extract(classifier, images)
        [segment] = segments(home)
        whole = segment.read_bytes()
        match damage:
            case "cut":
                segment.write_bytes(whole[: len(whole) // 2])
            case "foreign":
                segment.write_bytes(b"no array")
            case "other kind":
                np.save(segment, np.zeros((3, 3)))
            case "empty":
                segment.write_bytes(b"")
        again = extract(classifier, images)
        np.testing.assert_allclose(again.rows, first.rows, atol=1e-6)
        assert again.found == 0
        assert extract(classifier, images).found == len(images)

    def test_what_was_computed_before_a_stop_is_kept(self, classifier, photos, monkeypatch, home):
        monkeypatch.setattr(feature_store, "SEGMENT_ROWS", 10)
        images = open_dataset(photos).split("train")

        class Stop(Exception):
            pass

        def stop(done, total):
            if done == 25:
                assert len(segments(home)) == 2
                raise Stop

        with pytest.raises(Stop):
            extract(classifier, images, on_progress=stop)
        assert extract(classifier, images).found >= 25

    def test_a_place_that_cannot_be_written_is_done_without(self, classifier, photos, home):
        home.write_text("a file")  # root may write anywhere, but not into this
        said = []
        found = extract(classifier, open_dataset(photos).split("val"), log=said.append)
        assert np.isfinite(found.rows).all()
        assert any("not cached" in sentence for sentence in said)

    def test_two_at_once_do_each_other_no_harm(self, home):
        first, second = FeatureStore("key", width=2), FeatureStore("key", width=2)
        row = np.ones(2, np.float32)
        first.keep(b"a" * 31 + b"\0", 0, row)
        second.keep(b"b" * 32, 1, 2 * row)
        first.flush()
        second.flush()
        both = FeatureStore("key", width=2)
        assert both.find(b"a" * 31 + b"\0", 0).tolist() == [1, 1]
        assert both.find(b"b" * 32, 1).tolist() == [2, 2]
        assert both.find(b"b" * 32, 0) is None
        assert FeatureStore("key", width=3).find(b"b" * 32, 1) is None


def test_opening_a_new_store_makes_room(home, monkeypatch):
    monkeypatch.setattr(feature_store.remove_oldest, "__kwdefaults__", {"limit": 100})
    for key in ("first", "second"):
        store = FeatureStore(key, width=50)
        store.keep(b"a" * 32, 0, np.ones(50, np.float32))
        store.flush()
        os.utime(store.folder, (1e9, 1e9))
    FeatureStore("third", width=50)
    assert segments(home) == []


def test_the_oldest_stores_go_first(tmp_path):
    for age, name in enumerate(["new", "middle", "old", "mine"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.npy").write_bytes(bytes(1000))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    remove_oldest(tmp_path, spare=tmp_path / "mine", limit=4000)
    assert len(list(tmp_path.iterdir())) == 4
    remove_oldest(tmp_path, spare=tmp_path / "mine", limit=2500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "new"]


def test_equal_files_and_groups_belong_together(classifier):
    pixels = [np.full((40, 40, 3), level, np.uint8) for level in (1, 1, 2, 3, 4)]
    groups = [None, None, "patient", "patient", None]
    images = [ImageSample(f"{n}", "red", p, group=g) for n, (p, g) in enumerate(zip(pixels, groups, strict=True))]
    numbers = extract(classifier, images).groups
    assert numbers[0] == numbers[1]
    assert numbers[2] == numbers[3]
    assert len(set(numbers)) == 3


def test_an_unreadable_image_is_named(classifier, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(BadImage, match=r"bad\.png"):
        extract(classifier, [ImageSample(str(tmp_path / "bad.png"), "red")])


@pytest.mark.slow
def test_a_head_on_real_photos(shared):
    images = open_dataset(shared / "hymenoptera")
    weights = shared / "weights" / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth"
    classifier = build_classifier(images, "vgg19", weights=weights, until="relu3_4", head="pool")
    train = extract(classifier, images.split("train"), precision="auto")
    val = extract(classifier, images.split("val"))
    solution = solve_head(train.rows, train.targets, classes=2, groups=train.groups)
    right = (val.rows @ solution.weight.T + solution.bias).argmax(1) == val.targets
    assert len(right) == 153
    assert right.mean() >= 0.87
