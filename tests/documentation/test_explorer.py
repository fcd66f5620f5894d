"""docs/explore.html in a real browser: its numbers are those of `summarize`, its code that of `write_listing`."""

import base64
import importlib.util
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

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
    assert PAGE.stat().st_size < 500_000


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


RUN = """([grey, side]) => {
  const found = runNetwork(small, grey, side, side);
  return [found.probabilities, Object.fromEntries(found.maps.map(m => [m.name, Array.from(m.values)]))];
}"""


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return list(vk.open_dataset("digits").split("test"))


def test_the_small_network_computes_what_the_bundled_classifier_does(page, digits):
    """But for the bytes that its weights are rounded to."""
    classifier = vk.load("digits")
    pixels = torch.from_numpy(np.stack([classifier.preprocessing(image.pixels) for image in digits]))
    grey = (pixels * classifier.preprocessing.std[0] + classifier.preprocessing.mean[0]).flatten(1).tolist()
    side = pixels.shape[-1]
    with torch.inference_mode():
        expected = (classifier.network.eval()(pixels) / classifier.card.temperature).softmax(1)
        maps = vk.Features(classifier.network, ["relu1_1", "pool2", "relu3_2"])(pixels[:1])
    probabilities, found = page.evaluate(RUN, [grey[0], side])
    np.testing.assert_allclose(probabilities, expected[0], atol=0.02)
    for name, values in maps.items():
        np.testing.assert_allclose(found[name], values.flatten(), atol=0.02 * float(values.max()))
    labels = page.evaluate(
        "([digits, side]) => digits.map(grey => {const p = runNetwork(small, grey, side, side).probabilities;"
        " return p.indexOf(Math.max(...p))})",
        [grey[::30], side],
    )
    assert labels == expected[::30].argmax(1).tolist()
    correct = int((expected.argmax(1) == torch.tensor([int(image.label) for image in digits])).sum())
    text = page.inner_text("#try")
    assert f"{correct} of {len(digits)} test digits" in text
    assert f"{sum(p.numel() for p in classifier.network.parameters()):,} parameters" in text


def test_a_drawn_digit_is_recognised(page):
    for label, shades in page.evaluate("() => small.examples")[::3]:
        page.evaluate("example => {small.examples.splice(0, small.examples.length, example)}", [label, shades])
        page.click("#example")
        probabilities = page.evaluate("() => JSON.parse($('probabilities').dataset.probabilities)")
        assert max(probabilities) == probabilities[int(label)]
    pad = page.locator("#pad")
    pad.scroll_into_view_if_needed()
    page.click("#clear")
    box = pad.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.8 * box["height"], steps=4)
    page.mouse.up()
    page.wait_for_function("() => !waiting")
    assert page.evaluate("() => JSON.parse($('probabilities').dataset.probabilities)[1]") > 0.5


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


DROP = """async ([name, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const moved = new DataTransfer();
  moved.items.add(new File([bytes], name, { type: "image/png" }));
  const drop = new DragEvent("drop", { dataTransfer: moved, bubbles: true, cancelable: true });
  document.querySelector("#pad").dispatchEvent(drop);
}"""


def test_the_maps_follow_a_photo_that_is_dropped_or_chosen(page, tmp_path):
    classifier = vk.load("digits")
    preprocessing = classifier.preprocessing
    draws = np.random.default_rng(0)
    page.click("#map-layers >> text=relu3_2")
    seen = []
    for name in ("a", "b"):
        photo = Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((288, 288))
        photo.save(tmp_path / f"{name}.png")
        if name == "a":
            data = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
            page.evaluate(DROP, ["a.png", data])
        else:
            page.set_input_files("#photo", tmp_path / "b.png")
        first = photo.getpixel((0, 0))[0]
        page.wait_for_function(
            "first => looking.photo && pen.getImageData(0, 0, 1, 1).data[0] === first", arg=first
        )
        assert "the photo in grey" in page.inner_text("#maps-note")
        assert page.locator("#maps canvas").count() == 128
        shrunk = np.asarray(photo, np.float32).reshape(96, 3, 96, 3, 3).mean((1, 3)) @ (0.299, 0.587, 0.114) / 255
        prepared = torch.tensor((shrunk - preprocessing.mean[0]) / preprocessing.std[0], dtype=torch.float32)
        with torch.inference_mode():
            [expected] = vk.Features(classifier.network.eval(), ["relu3_2"])(prepared[None, None]).values()
        found = page.evaluate("() => Array.from(looking.maps.find(m => m.name === 'relu3_2').values)")
        np.testing.assert_allclose(found, expected.flatten(), atol=0.03 * float(expected.max()))
        seen.append(found)
    assert seen[0] != seen[1]
    (tmp_path / "c.png").write_bytes(b"no image")
    page.set_input_files("#photo", tmp_path / "c.png")
    page.wait_for_selector("#maps-note:has-text('cannot read')")
    page.click("#clear")
    assert "the digit at" in page.inner_text("#maps-note")
    assert page.complaints == []
    assert {address.split(":")[0] for address in page.addresses} <= {"file", "blob", "data"}
