"""A program that uses vggkit as people do; `mypy --strict` reads it, and nothing runs it."""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import vggkit as vk


def build() -> vk.VGG:
    assert_type(vk.list_models(), list[str])
    own = vk.configure("vgg11_bn", blocks="64,64/128,128", num_classes=10, head="pool")
    assert_type(own.parameters, int)
    assert_type(own.trunk, tuple[vk.Layer, ...])
    network = vk.VGG(own)
    assert_type(network.configuration, vk.Configuration)
    assert_type(vk.summarize(own, input=(64, 64)).layers, tuple[vk.LayerSummary, ...])
    assert_type(vk.write_listing(own, "sequential"), str)
    logits: torch.Tensor = network(torch.randn(1, 3, 64, 64))
    assert_type(logits.shape, torch.Size)
    return network


def ask(photo: Image.Image, pixels: NDArray[np.uint8]) -> list[str | None]:
    classifier = vk.load("vgg16")
    assert_type(classifier, vk.Classifier)
    assert_type(vk.Classifier.from_pretrained(Path("runs/bees")), vk.Classifier)
    for images in ("cat.jpg", Path("photos"), photo, pixels, b"the bytes of a file", ["a.jpg", "b.jpg"]):
        for prediction in classifier.predict(images, top=3, precision="auto", engine="openvino"):
            assert_type(prediction, vk.Prediction)
            assert_type(prediction.probabilities, tuple[float, ...])
    assert_type(classifier.predict(["cat.jpg", photo, pixels]), list[vk.Prediction])
    embeddings = classifier.embed("photos", layer="relu7")
    assert_type(embeddings, vk.Embeddings)
    assert_type(embeddings.vectors, NDArray[np.float32])
    return [each.problem for each in classifier.predict("photos")]


def measure(classifier: vk.Classifier) -> float:
    data = vk.open_dataset("photos", columns=vk.Columns())
    assert_type(data, vk.ImageDataset)
    assert_type(data.splits["val"][0], vk.ImageSample)
    evaluation = classifier.evaluate(data, split="val", protocol="multi-crop")
    assert_type(evaluation, vk.Evaluation)
    assert_type(evaluation.top1_interval, tuple[float, float])
    assert_type(evaluation.predictions, vk.Predictions)
    assert_type(classifier.compare("runs/other", data), vk.PairedComparison)
    assert_type(classifier.bench(["cat.jpg"], rounds=3).engines, tuple[vk.EngineTimings, ...])
    for model in (classifier, "vgg16", Path("runs/bees")):
        assert_type(vk.predict(model=model, images="cat.jpg"), list[vk.Prediction])
        assert_type(vk.embed(model=model, images="photos").layer, str)
        assert_type(vk.evaluate(model=model, data=data).n, int)
        assert_type(vk.check(data, model=model).findings, tuple[vk.Finding, ...])
        assert_type(vk.bench(model=model, rounds=3), vk.Bench)
        assert_type(vk.predict_into(model=model, images="photos", out="p.csv").images, int)
        assert_type(vk.embed_into(model=model, images="photos", out="v.npy"), vk.BulkResult)
        assert_type(vk.search("v.npy", "cat.jpg", model=model), list[vk.SearchResult])
    assert_type(classifier.push_to_hub("owner/name", private=True), str)
    return evaluation.top1


def look_inside(photo: Image.Image) -> NDArray[np.uint8]:
    found = vk.filters("vgg16", layer="relu3_1", data="photos", channels="0-15")
    assert_type(found, vk.Filters)
    assert_type(found.patches[0][0], vk.Patch)
    result = vk.style(photo, ["waves.jpg", "night.jpg"], style_weights=(2, 1), keep_colours="luminance")
    assert_type(result, vk.StyleTransfer)
    assert_type(result.steps[-1], vk.StyleStep)
    assert_type(result.save("image.png"), Path)
    return result.pixels


def learn() -> vk.Classifier:
    created = vk.Classifier.create("vgg11_bn", labels=["ants", "bees"], weights="imagenet")
    assert_type(created, vk.Classifier)
    created.save("start.safetensors", provenance={"from": "consumer"})
    assert_type(vk.Recipe(epochs=3).epochs, int)
    return created


def convert(file: Path) -> dict[str, Any]:
    assert_type(vk.identify(file).configuration, vk.Configuration | None)
    return vk.convert(file, "out.pth", to="timm").to_dict()


def refuse() -> str:
    try:
        vk.load("no-such.safetensors")
    except (vk.BadCheckpoint, vk.BadDownload, vk.MissingExtra) as problem:
        return str(problem)
    except vk.VggkitError:
        raise
    return vk.__version__
