"""What the service returns is what `predict`, `explain` and `embed` give of the same file."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

import vggkit as vk
from conftest import draw_class
from vggkit.explanations.overlay import scale_map

from .conftest import LABELS, encode


def post(service, images, path="/predict", **options):
    files = [("files", (name, data)) for name, data in images.items()]
    return service.client.post(path, files=files, params=options)


def test_several_images_get_the_probabilities_of_predict(service, images, model_file):
    expected = vk.predict(model_file, list(images.values()))
    found = post(service, images).json()
    assert [each["name"] for each in found["predictions"]] == list(images)
    for each, wanted in zip(found["predictions"], expected, strict=True):
        assert each["labels"] == list(wanted.labels)
        assert np.allclose(each["probabilities"], wanted.probabilities, atol=1e-5)
        assert each["label"] == wanted.labels[0]
        assert (each["unknown"], each["problem"], each["heatmap"]) == (False, None, None)
    assert found["model"] == "stripes"
    assert found["seconds"] > 0


def test_the_three_kinds_of_bodies_give_the_same(service, images):
    name, data = next(iter(images.items()))
    expected = post(service, {name: data}).json()["predictions"]
    encoded = base64.b64encode(data).decode()
    as_json = {"json": {"images": [{"data": encoded, "name": f"C:\\photos\\{name}"}]}}
    assert service.client.post("/predict", **as_json).json()["predictions"] == expected
    for kind in ("image/png", "application/octet-stream", "Image/X-Unknown; charset=x"):
        found = service.client.post("/predict", content=data, headers={"content-type": kind}).json()
        assert found["predictions"] == [expected[0] | {"name": "image 0"}]


def test_options_are_in_the_address(service, images):
    [one] = post(service, dict([*images.items()][:1]), top=1).json()["predictions"]
    assert len(one["labels"]) == len(one["probabilities"]) == 1
    [unknown] = post(service, dict([*images.items()][:1]), threshold=1).json()["predictions"]
    assert (unknown["unknown"], unknown["label"], unknown["labels"][0]) == (True, "unknown", one["labels"][0])
    other = post(service, images, model="other").json()
    assert (other["model"], sorted(other["predictions"][0]["labels"])) == ("other", ["no", "yes"])


@pytest.mark.parametrize("name", ["stripes", "other"])
def test_a_heat_map_is_that_of_explain(service, images, model_file, other_file, name):
    expected = vk.explain({"stripes": model_file, "other": other_file}[name], list(images.values()))
    found = post(service, images, explain=True, model=name).json()["predictions"]
    for each, wanted in zip(found, expected, strict=True):
        heat = each["heatmap"]
        assert (heat["label"], heat["layer"]) == (wanted.label, wanted.layer)
        assert (each["height"], each["width"]) == wanted.size
        assert heat["box"] == list(wanted.box)
        image = Image.open(io.BytesIO(base64.b64decode(heat["image"].partition(",")[2])))
        assert image.size == (112, 112)
        alpha = np.asarray(image.convert("RGBA"))[..., 3] / 255 / 0.85
        scaled = Image.fromarray(scale_map(wanted.map)).resize(image.size, Image.Resampling.BICUBIC)
        assert np.abs(alpha - np.asarray(scaled).clip(0, 1)).max() < 0.02


def test_a_photograph_that_lies_on_its_side_is_described_upright(service):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = draw_class("across", 4, side=50)
    [found] = post(service, {"turned.jpg": encode(pixels, "JPEG", exif=exif)}, explain=True).json()["predictions"]
    assert (found["width"], found["height"]) == pixels.shape[:2]


def test_vectors_are_those_of_embed(service, images, model_file):
    expected = vk.embed(model_file, list(images.values())).vectors
    found = post(service, images, "/embed").json()
    assert found["layer"] == "features"
    assert np.allclose([each["vector"] for each in found["embeddings"]], expected, atol=1e-5)


def test_an_image_with_a_problem_does_not_keep_others_from_their_result(service, images):
    given = {"notes.txt": b"no image", **images, "cut.png": images["a.png"][:60], "empty": b""}
    for path, key in (("/predict", "predictions"), ("/embed", "embeddings")):
        answer = post(service, given, path)
        assert answer.status_code == 200
        problems = {each["name"]: each["problem"] for each in answer.json()[key]}
        assert [name for name, problem in problems.items() if problem] == ["notes.txt", "cut.png", "empty"]
        assert all(problem is None or problem.startswith(f"{name}: ") for name, problem in problems.items())
    refused = post(service, {"notes.txt": b"no image", "empty": b""})
    assert refused.status_code == 422
    assert refused.json()["error"] == "bad_image"
    assert [each["name"] for each in refused.json()["images"]] == ["notes.txt", "empty"]


def test_a_model_is_described(service, model_file):
    found = service.client.get("/model").json()
    card = vk.ModelFile(model_file).card
    assert found["labels"] == list(LABELS)
    assert found["configuration"] == card.configuration.to_dict()
    assert found["preprocessing"] == card.preprocessing.to_dict()
    assert found["engine"]["precision"] == "fp32"
    assert found["limits"]["max_images"] == 32
    assert re.fullmatch("[0-9a-f]{12}", found["version"])
    other = service.client.get("/model", params={"model": "other"}).json()
    assert other["version"] != found["version"]
    assert str(model_file.parent) not in str(found)  # where files lie is nobody's business
    assert service.client.get("/models").json() == {"models": ["stripes", "other"]}
    assert service.client.get("/model", params={"model": "none"}).json()["error"] == "unknown_model"


def test_probes_metrics_description_and_page(service, images):
    assert service.client.get("/health").json() == {"status": "ok"}
    assert service.client.get("/ready").json() == {"status": "ready"}
    post(service, images)
    text = service.client.get("/metrics").text
    assert 'vggkit_requests_total{route="/predict",status="200"}' in text
    assert 'vggkit_images_total{model="stripes",result="computed"}' in text
    assert "vggkit_queue_images 0.0" in text
    docs = service.client.get("/docs")
    assert docs.headers["content-type"].startswith("text/html")
    assert "<script" not in docs.text
    assert set(re.findall(r'(?:src|href)="(?!data:)([^"#]+)', docs.text)) == {"docs.css", "openapi.json"}
    assert service.client.get("/docs.css").status_code == 200
    page = service.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    described = service.client.get("/openapi.json").json()
    assert {"/predict", "/embed", "/model", "/models", "/health", "/ready", "/metrics"} == set(described["paths"])


def test_each_request_has_its_number_and_its_line_without_what_was_sent(service, images):
    answer = service.client.post(
        "/predict", files={"files": ("secret name.png", images["a.png"])}, headers={"x-request-id": "abc-1"}
    )
    assert answer.headers["x-request-id"] == "abc-1"
    forged = service.client.get("/ready", headers={"x-request-id": "a b"})
    assert re.fullmatch("[0-9a-f]{32}", forged.headers["x-request-id"])
    refused = service.client.get("/nothing")
    assert refused.json()["request_id"] == refused.headers["x-request-id"]
    while True:  # a thread writes it
        lines = [line for line in service.read_log() if line.get("request_id") == "abc-1"]
        if lines:
            break
    [line] = lines
    assert (line["route"], line["status"], line["images"]) == ("/predict", 200, 1)
    assert "secret" not in service.log.read_text(encoding="utf-8")
