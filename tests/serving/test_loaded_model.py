"""A model computes the same as `predict`, `embed` and `explain` with every engine, also when its file is gone."""

import importlib.util

import numpy as np
import pytest

import vggkit as vk
from conftest import draw_class
from vggkit.engines.activation_ranges import measure_ranges
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.serving.loaded_model import Computing, LoadedModel, Wanted

from .conftest import LABELS, run_service

EVERYTHING = Wanted.CLASSES | Wanted.VECTOR | Wanted.MAP
ENGINES = [("pytorch", "fp32"), ("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "int8")]


@pytest.fixture(scope="module")
def ranged(tiny, tmp_path_factory):
    """A file with the activation ranges that int8 needs, where OpenVINO can measure them."""
    file = tmp_path_factory.mktemp("ranged") / "m.safetensors"
    made = vk.Classifier.create(tiny, labels=LABELS, preprocessing=choose_preprocessing(64), seed=1)
    if importlib.util.find_spec("openvino"):
        batch = np.stack([made.preprocessing(draw_class(label, 1)) for label in LABELS])
        made.keep_ranges(measure_ranges(made.network, [batch]), about={"images": 3})
    made.save(file)
    return file


@pytest.mark.parametrize(("engine", "precision"), ENGINES)
def test_every_engine_gives_what_the_verbs_give(ranged, tmp_path, engine, precision):
    pytest.importorskip({"pytorch": "torch", "onnx": "onnxruntime"}.get(engine, engine))
    images = [draw_class(label, number) for number, label in enumerate(LABELS)]
    options = {"engine": engine, "precision": precision}
    predictions = vk.predict(ranged, images, **options)
    finer = options | {"precision": "auto" if precision == "int8" else precision}
    vectors = vk.embed(ranged, images, **finer).vectors
    explanations = vk.explain(ranged, images, **options)

    file = tmp_path / "m.safetensors"
    file.write_bytes(ranged.read_bytes())
    model = LoadedModel("m", file, Computing(device="cpu", **options))
    file.write_bytes(b"")
    inputs = np.stack([model.card.preprocessing(image) for image in images])
    found = model.compute(inputs, [EVERYTHING] * len(images))
    for each, prediction, vector, explanation in zip(found, predictions, vectors, explanations, strict=True):
        assert model.card.labels[each.logits.argmax()] == prediction.labels[0]
        assert np.allclose(each.vector, vector, atol=1e-4)
        assert explanation.label == prediction.labels[0]
        assert np.allclose(each.map, explanation.map, atol=1e-4)
    alone = model.compute(inputs[:1], [Wanted.CLASSES])
    assert np.allclose(alone[0].logits, found[0].logits, atol=1e-4)
    assert (alone[0].vector, alone[0].map) == (None, None)
    [first, second] = model.compute(inputs[:2], [Wanted.VECTOR, Wanted.CLASSES | Wanted.MAP])
    assert (first.logits, first.map, second.vector) == (None, None, None)
    assert np.allclose(second.map, found[1].map, atol=1e-4)


def test_a_network_whose_last_map_is_a_single_place_is_not_explained(tiny, images, tmp_path):
    file = tmp_path / "m.safetensors"
    preprocessing = choose_preprocessing(16)
    vk.Classifier.create(tiny, labels=LABELS, preprocessing=preprocessing, until="relu5_2", seed=1).save(file)
    with run_service({"m": file}, tmp_path / "log") as service:
        sent = {"content": images["a.png"], "headers": {"content-type": "image/png"}}
        assert service.client.get("/model").json()["explains"] is None
        refused = service.client.post("/predict?explain=true", **sent)
        assert (refused.status_code, refused.json()["error"]) == (422, "bad_parameters")
        assert "single place" in refused.json()["message"]
        assert service.client.post("/predict", **sent).status_code == 200
