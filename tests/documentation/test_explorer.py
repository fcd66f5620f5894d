"""docs/explore.html in a real browser: its numbers are those of `summarize`, its code that of `write_listing`."""

import importlib.util
import itertools
import json

import numpy as np
import pytest
import torch

import vggkit as vk
from page_blocks import DOCS

PAGE = DOCS / "explore.html"


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("explorer_build", DOCS / "explorer" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(browser):
    page = browser.new_page()
    page.complaints, page.addresses = [], []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: page.addresses.append(request.url))
    page.goto(PAGE.as_uri())
    yield page
    page.close()


def test_the_page_is_made_of_its_parts(build):
    """With the networks as they are now: `python docs/explorer/build.py` writes it again."""
    assert PAGE.read_text(encoding="utf-8") == build.assemble()
    assert PAGE.stat().st_size < 300_000


SIDES = ((32, 32), (33, 70), (96, 64), (100, 100), (224, 224), (448, 320))


def list_settings():
    for number, (model, head, sides) in enumerate(
        itertools.product(vk.list_models(), ("fc", "dense", "pool"), SIDES)
    ):
        classes, channels = (1000, 1, 10, 37)[number % 4], (3, 1, 4)[number % 3]
        yield {
            "model": model,
            "head": head,
            "height": sides[0],
            "width": sides[1],
            "classes": classes,
            "channels": channels,
        }


def test_every_number_is_that_of_summarize(page):
    settings = list(list_settings())
    found = page.evaluate(
        "settings => settings.map(each => {"
        "const rows = listLayers(networks, each); return [rows, sumLayers(rows)]})",
        settings,
    )
    for each, (rows, totals) in zip(settings, found, strict=True):
        configuration = vk.configure(
            each["model"], head=each["head"], num_classes=each["classes"], in_channels=each["channels"]
        )
        summary = vk.summarize(configuration, input=(each["height"], each["width"]))
        assert totals == {
            "parameters": summary.totals.parameters,
            "multiplyAdds": summary.totals.multiply_adds,
            "activationBytes": summary.totals.activation_bytes,
            "weightBytes": summary.totals.weight_bytes,
        }
        assert [
            (
                row["name"],
                row["kind"],
                tuple(row["shape"]),
                row["parameters"],
                row["multiplyAdds"],
                row["activationBytes"],
                row["field"],
            )
            for row in rows
        ] == [
            (
                layer.name,
                layer.kind,
                layer.output_shape,
                layer.parameters,
                layer.multiply_adds,
                layer.activation_bytes,
                layer.receptive_field_pixels,
            )
            for layer in summary.layers
        ], each


@pytest.mark.parametrize("style", ["sequential", "blocks", "explicit"])
def test_the_code_is_that_of_the_listings(page, style):
    for model in vk.list_models():
        listing = [line.strip() for line in vk.write_listing(vk.configure(model), style).splitlines()]
        settings = {"model": model, "head": "fc", "height": 224, "width": 224, "classes": 1000, "channels": 3}
        blocks = page.evaluate(
            "([settings, style]) => {const rows = listLayers(networks, settings);"
            " return [1, 2, 3, 4, 5, 6].map(block => writeCode(networks, settings, rows, block, style))}",
            [settings, style],
        )
        for block in blocks:
            for part in "\n".join(line.strip() for line in block).split("\n\n"):
                lines = [line for line in part.split("\n") if "in forward:" not in line]
                starts = [place for place, line in enumerate(listing) if line == lines[0]]
                shown = [
                    [line for line in listing[start:] if line and not line.startswith("#")]
                    if not lines[0].startswith("#")
                    else [lines[0], *(line for line in listing[start + 1 :] if line and not line.startswith("#"))]
                    for start in starts
                ]
                assert any(each[: len(lines)] == lines for each in shown), (model, lines)


def test_what_is_shown_follows_the_controls(page):
    page.click("#configurations >> text=E")
    page.check("#norm")
    page.fill("#size", "64")
    page.locator("#network [data-name=conv3_2]").dispatch_event("click")
    assert page.inner_text("#layer-name") == "conv3_2"
    [layer] = [each for each in vk.summarize("vgg19_bn", input=(64, 64)).layers if each.name == "conv3_2"]
    facts = page.inner_text("#layer-facts")
    assert f"{layer.parameters:,}" in facts
    assert " × ".join(map(str, layer.output_shape)) in facts
    assert f"{layer.receptive_field_pixels}×{layer.receptive_field_pixels} pixels" in page.inner_text("#field-text")
    assert f"{vk.summarize('vgg19_bn').totals.parameters:,}" in page.inner_text("#totals")
    page.click("#configurations >> text=C")
    assert page.is_disabled("#norm")
    assert f"{vk.summarize('vgg16_c').totals.parameters:,}" in page.inner_text("#totals")


def test_the_small_network_computes_what_pytorch_does(page, build):
    stored = json.loads((DOCS / "explorer" / "small-network.json").read_text(encoding="utf-8"))
    net = build.restore(stored)
    digits = list(vk.open_dataset("digits").split("test")) if pytest.importorskip("sklearn") else []
    pixels = build.prepare_digits(digits)
    with torch.inference_mode():
        logits = net((pixels - stored["mean"]) / stored["std"])
        maps = vk.Features(net, ["relu1_1", "pool2", "relu3_2"])((pixels[:1] - stored["mean"]) / stored["std"])
    correct = int((logits.argmax(1) == torch.tensor([int(image.label) for image in digits])).sum())
    assert f"{correct} of {len(digits)} test digits" in stored["text"]
    result = page.evaluate(
        "([grey, side]) => {const found = runNetwork(small, grey, side, side);"
        " return [found.probabilities, Object.fromEntries(found.maps.map(m => [m.name, Array.from(m.values)]))]}",
        [pixels[0].flatten().tolist(), build.SIDE],
    )
    np.testing.assert_allclose(result[0], logits[0].softmax(0), atol=1e-5)
    for name, expected in maps.items():
        np.testing.assert_allclose(result[1][name], expected.flatten(), atol=1e-4)


def test_a_value_is_the_sum_of_what_is_shown(page):
    page.click("#example")
    page.click("#map-layers >> text=relu2_1")
    page.locator("#maps canvas").nth(3).click(position={"x": 20, "y": 30})
    assert page.inner_text("#value h3").startswith("relu2_1, channel 3")
    found = page.evaluate(
        "() => [0, 1, 2, 3].map(index => {const layer = looking.maps[index];"
        " return [0, 5, layer.width - 1].map(x => "
        "explainValue(small, looking.input, looking.maps, index, 1, 0, x))})"
    )
    for each in (value for layer in found for value in layer):
        if each["kind"] == "pool":
            assert each["value"] == max(each["window"])
        else:
            total = sum(part["sum"] for part in each["parts"]) + each["bias"]
            assert each["value"] == pytest.approx(max(0, total), abs=1e-4)


def test_a_photo_shows_its_maps_and_goes_nowhere(page, tmp_path):
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    page.set_input_files("#photo", tmp_path / "a.png")
    page.wait_for_selector("#maps-note:has-text('the photo in grey')")
    page.click("#map-layers >> text=relu3_2")
    assert page.locator("#maps canvas").count() == 32
    (tmp_path / "b.png").write_bytes(b"no image")
    page.set_input_files("#photo", tmp_path / "b.png")
    page.wait_for_selector("#maps-note:has-text('cannot read')")
    page.click("#clear")
    assert "the digit at" in page.inner_text("#maps-note")
    assert page.complaints == []
    assert {address.split(":")[0] for address in page.addresses} <= {"file", "blob", "data"}
