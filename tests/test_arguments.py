"""Numbers and paths as people give them: read as they are meant, or refused by name."""

import json
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import vggkit as vk
from vggkit.errors import BadCheckpoint, BadConfiguration, BadInput, UnknownName, VggkitError
from vggkit.evaluation.protocols import plan_protocol

SMALL = vk.Preprocessing(resize_pixels=32, crop_pixels=32)
TWO = [np.int64(2), np.uint8(2), np.array(2), torch.tensor(2)]
NO_COUNT = [2.0, np.float64(2), 0, -1, True, np.True_, torch.tensor(True), "2", None, float("nan"), np.array([2])]
NO_NUMBER = [True, np.True_, "0.5", None, float("nan"), float("inf"), -1, [0.5]]
COUNTS: dict[str, Callable[[object], object]] = {
    "num_classes": lambda value: vk.Configuration(blocks=((3,),), num_classes=value).num_classes,
    "in_channels": lambda value: vk.Configuration(blocks=((3,),), in_channels=value).in_channels,
    "grid": lambda value: vk.Configuration(blocks=((3,),), grid=value).grid,
    "hidden": lambda value: vk.Configuration(blocks=((3,),), hidden=[value]).hidden[0],
    "blocks": lambda value: vk.Configuration(blocks=[[value]]).blocks[0][0],
    "crop_pixels": lambda value: vk.Preprocessing(crop_pixels=value).crop_pixels,
    "resize_pixels": lambda value: vk.Preprocessing(resize_pixels=value).resize_pixels,
    "epochs": lambda value: vk.Recipe(epochs=value).epochs,
    "accumulate": lambda value: vk.Recipe(accumulate=value).accumulate,
    "views": lambda value: vk.Recipe(views=value).views,
    "each of scales": lambda value: (
        plan_protocol("dense", vk.Preprocessing(crop_pixels=1), scales=[value]).looks[0].scale
    ),
}


@pytest.fixture(scope="module")
def classifier() -> vk.Classifier:
    return vk.Classifier.create("vgg11", labels=["a", "b"], until="pool1", preprocessing=SMALL, seed=0)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    return tmp_path / "p.png"


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_whole_numbers_whoever_made_them(name: str) -> None:
    for value in TWO:
        found = COUNTS[name](value)
        assert (type(found), found) == (int, 2)
    for value in NO_COUNT:
        with pytest.raises((BadConfiguration, BadInput), match=name):
            COUNTS[name](value)


def test_counts_of_functions(classifier: vk.Classifier, image: Path, tmp_path: Path) -> None:
    asked: dict[str, Callable[[object], object]] = {
        "top": lambda value: vk.predict(classifier, image, top=value),
        "batch_size": lambda value: vk.predict(classifier, image, batch_size=value),
        "batch_size ": lambda value: vk.embed(classifier, image, batch_size=value),
        "batch_size must": lambda value: vk.evaluate(classifier, image, batch_size=value),
        "top ": lambda value: vk.predict_into(classifier, image, tmp_path / "x.csv", top=value),
        "image_size": lambda value: vk.check(tmp_path, image_size=value or 0),
        "rounds": lambda value: vk.bench(classifier, rounds=value),
        "each of batch_sizes": lambda value: vk.bench(classifier, batch_sizes=[value]),
        "in_channels": lambda value: vk.adapt_filters(torch.zeros(4, 3, 3, 3), value),
    }
    for name, ask in asked.items():
        for value in NO_COUNT:
            with pytest.raises(BadInput, match=name):
                ask(value)
    assert len(vk.predict(classifier, image, top=np.int64(1), batch_size=np.int32(4))[0].labels) == 1
    assert vk.embed(classifier, image, batch_size=torch.tensor(3)).vectors.shape == (1, 128)
    assert vk.summarize(classifier.configuration, input=(np.int64(32), np.int16(40))).input_pixels == (32, 40)
    assert vk.adapt_filters(torch.ones(4, 3, 3, 3), np.int64(1)).shape == (4, 1, 3, 3)


@pytest.mark.parametrize("value", [32, "256", {256: 1}, None], ids=repr)
def test_rows_of_counts_are_rows(value: object, classifier: vk.Classifier) -> None:
    for name, ask in {
        "scales": lambda: plan_protocol("dense", SMALL, scales=value),
        "train_scales": lambda: plan_protocol("dense", SMALL, train_scales=value),
        "batch_sizes": lambda: vk.bench(classifier, batch_sizes=value),
    }.items():
        with pytest.raises(BadInput, match=f"{name} must be a list of whole numbers"):
            ask()


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "momentum", "validation_share", "mixup"])
def test_numbers_of_a_recipe(name: str) -> None:
    for value in (np.float32(0.5), np.float64(0.5), Fraction(1, 2), 0.5):
        found = vk.Recipe(**{name: value})
        assert (type(getattr(found, name)), getattr(found, name)) == (float, 0.5)
        assert yaml.safe_load(yaml.safe_dump(found.to_dict()))[name] == 0.5
    for value in NO_NUMBER:
        if value is not None or name not in ("learning_rate", "weight_decay"):
            with pytest.raises(BadConfiguration, match=name):
                vk.Recipe(**{name: value})


def test_numbers_of_other_records(classifier: vk.Classifier, tmp_path: Path) -> None:
    fed = vk.Preprocessing(
        crop_pixels=np.int64(32),
        resize_pixels=np.int64(32),
        mean=np.array([0.5, 0.25, 0.125], np.float32),
        std=[np.float32(0.5)] * 3,
        reduced_decoding=np.True_,
    )
    assert (fed.mean, fed.std, fed.reduced_decoding) == ((0.5, 0.25, 0.125), (0.5, 0.5, 0.5), True)
    network = vk.VGG(classifier.configuration, num_classes=np.int64(2), dropout=np.float32(0.25))
    made = vk.Classifier(
        network,
        labels=["a", "b"],
        preprocessing=fed,
        temperature=np.float32(2),
        activation_ranges={"images": (np.float32(-1), 1)},
    )
    made.calibrate(threshold=np.float64(0.5), about={})
    made.save(tmp_path / "x.safetensors")
    assert vk.load(tmp_path / "x.safetensors").card == made.card
    assert json.dumps(made.card.to_dict())
    for values in (
        "imagenet",
        0.5,
        [0.5, 0.5],
        {0: 1},
        np.zeros((3, 3)),
        [True, 0.5, 0.5],
        [float("nan"), 0.5, 0.5],
    ):
        with pytest.raises(BadConfiguration, match="mean must be 3 numbers"):
            vk.Preprocessing(mean=values)


def test_a_share_is_no_percentage(classifier: vk.Classifier, image: Path) -> None:
    for value, said in (
        (95, r"95 % is 0\.95"),
        (0, "above 0"),
        (float("nan"), "share"),
        ("0.9", "share"),
        (True, "share"),
    ):
        with pytest.raises(BadInput, match=f"wanted_precision must be a share.*{said}|{said}"):
            vk.evaluate(classifier, image, wanted_precision=value)
    for value in (95, True, "0.5", float("nan")):
        with pytest.raises(BadConfiguration, match="threshold must be a number from 0 to 1"):
            classifier.calibrate(threshold=value, about={})


def test_seconds(classifier: vk.Classifier, image: Path, tmp_path: Path) -> None:
    for value in (-1, float("nan"), "x", None, True):
        with pytest.raises(BadInput, match="save_seconds must be a number of 0 or more"):
            vk.predict_into(classifier, image, tmp_path / "x.csv", save_seconds=value)
        with pytest.raises(BadInput, match="save_seconds must be a number of 0 or more"):
            vk.train(tmp_path, model=classifier, save_seconds=value)
        with pytest.raises(BadInput, match="seconds must be a number"):
            vk.bench(classifier, seconds=value)


def test_a_seed_is_a_whole_number() -> None:
    def first(seed: object) -> torch.Tensor:
        made = vk.Classifier.create("vgg11", labels=["a"], until="relu1_1", seed=seed)
        return made.network.features[0].weight

    assert torch.equal(first(np.int64(3)), first(3))
    for seed in (3.0, "3", -1, True, float("nan"), [3]):
        with pytest.raises(BadInput, match="seed must be a whole number of 0 or more"):
            first(seed)


class Place:
    """A path as other libraries have them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_paths(classifier: vk.Classifier, image: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    classifier.save(Place(file))
    assert vk.load(Place(file)).labels == ("a", "b")
    assert vk.identify(Place(file)).num_classes == 2
    made = vk.Classifier.create(
        classifier.configuration, labels=["a", "b"], weights=Place(file), preprocessing=SMALL
    )
    assert torch.equal(made.network.features[0].weight, classifier.network.features[0].weight)
    assert vk.predict_into(classifier, image, Place(tmp_path / "x.csv")).images == 1
    for value, said in (
        (os.fsencode(file), "got bytes.*os.fsdecode"),
        (3, "got int"),
        (classifier, "got Classifier; save it"),
        ([file], "got list"),
    ):
        for ask in (
            vk.load,
            vk.identify,
            classifier.save,
            lambda value: vk.convert(value, tmp_path / "y.pth", to="torchvision"),
            lambda value: vk.convert(file, value, to="torchvision"),
            lambda value: vk.Classifier.create("vgg11", labels=["a"], weights=value),
            lambda value: vk.search(value, image),
            lambda value: vk.compare([value]),
            lambda value: vk.predict_into(classifier, image, value),
        ):
            with pytest.raises(VggkitError, match=said):
                ask(value)


def test_verbs_say_what_they_take(classifier: vk.Classifier, image: Path, tmp_path: Path) -> None:
    verbs = {
        "predict": lambda given: vk.predict(given, image),
        "embed": lambda given: vk.embed(given, image),
        "evaluate": lambda given: vk.evaluate(given, tmp_path),
        "check": lambda given: vk.check(tmp_path, given),
    }
    for verb, ask in verbs.items():
        for given, said in (
            (classifier.network, r"vggkit\.Classifier\(network, labels="),
            (3, "got int"),
        ):
            with pytest.raises(BadInput, match=f"{verb} takes a Classifier.*{said}"):
                ask(given)
        with pytest.raises(BadCheckpoint, match="is an image, not a Classifier's"):
            ask(image)
        with pytest.raises(BadCheckpoint, match="did you mean vgg19"):
            ask("vgg61")
    for given in (image, classifier.network, 3):
        with pytest.raises(BadConfiguration, match=r"model must be .*vggkit\.list_models\(\)"):
            vk.train(tmp_path, model=given)
    for verb, ask in {
        "summarize": vk.summarize,
        "write_listing": lambda given: vk.write_listing(given, "blocks"),
    }.items():
        for given, said in ((vk.VGG, "type"), (None, "NoneType")):
            with pytest.raises(BadConfiguration, match=f"{verb} takes a Configuration.*{said}"):
                ask(given)
        with pytest.raises(UnknownName, match="vgg16"):
            ask("vgg61")
        assert ask("vgg16") == ask(vk.configure("vgg16"))
    for given in (classifier, classifier.network):
        assert vk.summarize(given) == vk.summarize(classifier.configuration)
    for layer in (3, None, ["pool1"], b"pool1", "Pool1"):
        with pytest.raises(UnknownName, match="pool1"):
            vk.embed(classifier, image, layer=layer)
    for ask, said in (
        (lambda: vk.fuse([]), "two Evaluations"),
        (lambda: vk.fuse(3), "two Evaluations"),
        (lambda: vk.compare([]), "list of runs"),
        (lambda: vk.compare("runs"), "list of runs"),
        (lambda: vk.compare_predictions(1, 2), "two Predictions"),
        (lambda: vk.initialize("vgg11"), "a network"),
        (lambda: vk.adapt_filters(np.zeros((4, 3, 3, 3)), 1), "a tensor"),
        (lambda: vk.adapt_filters(torch.zeros(3), 1), "a tensor"),
    ):
        with pytest.raises(BadInput, match=said):
            ask()


def test_records_of_a_classifier_are_of_their_kind(classifier: vk.Classifier) -> None:
    network = classifier.network
    for options, said in (
        ({"preprocessing": "imagenet"}, r"preprocessing must be a Preprocessing.*got str"),
        ({"preprocessing": {"crop_pixels": 32}}, r"Preprocessing\.from_dict; got dict"),
        ({"provenance": 3}, "provenance must be a Mapping"),
    ):
        with pytest.raises(BadConfiguration, match=said):
            vk.Classifier(network, **{"labels": ["a", "b"], "preprocessing": SMALL, **options})
    with pytest.raises(BadConfiguration, match="preprocessing must be a Preprocessing"):
        vk.Classifier.create("vgg11", labels=["a"], preprocessing="imagenet")
    with pytest.raises(BadConfiguration, match="about must be a mapping"):
        classifier.calibrate(threshold=0.5, about=3)
    with pytest.raises(BadConfiguration, match="provenance must be a mapping"):
        classifier.save("x.safetensors", provenance=3)


def test_training_says_at_once_what_it_would_misread(classifier: vk.Classifier, tmp_path: Path) -> None:
    for options, said in (
        ({"recipe": {"epochs": 1}}, r"Recipe\(epochs=3\)"),
        ({"loggers": "tensorboard"}, r"loggers=\['tensorboard'\]"),
        ({"plots": "jpg"}, "png, pdf, svg"),
    ):
        with pytest.raises(BadConfiguration, match=said):
            vk.train(tmp_path, model=classifier, out=tmp_path / "run", quiet=True, **options)
    assert not (tmp_path / "run").exists()
