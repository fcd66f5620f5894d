"""The page in a real browser: what a service would reply is made here, so that it can be slow, busy or gone."""

import base64
import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from page_files import ADDRESS, fulfill_file

LIMITS = {"max_request_bytes": 200_000, "max_images": 3, "timeout_seconds": 30.0}
BOX = (20.0, 5.0, 80.0, 65.0)


def write_png(array: np.ndarray) -> bytes:
    kept = io.BytesIO()
    Image.fromarray(array).save(kept, "PNG")
    return kept.getvalue()


HEATMAP = (
    "data:image/png;base64," + base64.b64encode(write_png(np.full((8, 8, 4), (255, 0, 0, 255), np.uint8))).decode()
)


class Service:
    """Replies as `vggkit serve` does, and keeps what it was sent."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        self.addresses: list[str] = []
        self.before_predict: Callable[[Any], bool] = lambda _route: False
        """True where it has replied by itself."""
        self.token = ""
        self.gone = False

    def handle(self, route: Any) -> None:
        name = route.request.url.removeprefix(ADDRESS).split("?")[0]
        if self.gone:
            route.abort("connectionrefused")
        elif name in ("model", "predict") and self.token not in route.request.headers.get("authorization", ""):
            route.fulfill(status=401, json={"error": "unauthorized", "message": "A token is needed."})
        elif name == "model":
            route.fulfill(json=self.describe())
        elif name == "predict":
            if not self.before_predict(route):
                self.predict(route)
        else:
            fulfill_file(route)

    def describe(self) -> dict[str, Any]:
        return {
            "name": "flowers",
            "architecture": "vgg11",
            "labels": ["daisy", "=rose", "tulip"],
            "preprocessing": {"crop_pixels": 224},
            "licence": None,
            "engine": {"name": "openvino", "precision": "fp32"},
            "explains": "relu5_2",
            "limits": LIMITS,
        }

    def predict(self, route: Any) -> None:
        self.addresses.append(route.request.url)
        parts = route.request.post_data_buffer.split(b'filename="')[1:]
        names = [part.split(b'"')[0].decode() for part in parts]
        self.requests.append(names)
        predictions = [self.predict_one(name, "explain=true" in route.request.url) for name in names]
        if all(each["problem"] for each in predictions):
            images = [{"name": each["name"], "problem": each["problem"]} for each in predictions]
            route.fulfill(
                status=422, json={"error": "bad_image", "message": images[0]["problem"], "images": images}
            )
            return
        route.fulfill(json={"model": "flowers", "version": "1", "predictions": predictions, "seconds": 0.02})

    def predict_one(self, name: str, explained: bool) -> dict[str, Any]:
        if "broken" in name:
            nothing = {"width": None, "height": None, "label": None, "unknown": False, "heatmap": None}
            problem = f"{name}: is not an image of a known format"
            return {"name": name, "labels": [], "probabilities": [], "problem": problem} | nothing
        heatmap = {"image": HEATMAP, "label": "daisy", "layer": "relu5_2", "box": BOX}
        return {
            "name": name,
            "width": 100,
            "height": 70,
            "label": "unknown" if "odd" in name else "daisy",
            "unknown": "odd" in name,
            "labels": ["daisy", "=rose", "tulip"],
            "probabilities": [0.9, 0.0999, 0.0001],
            "heatmap": heatmap if explained else None,
            "problem": None,
        }


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def open_page(browser: Any, service: Service) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end nothing may have been written to its console."""
    contexts, complaints = [], []

    def open_page(**options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.route("**/*", service.handle)
        page.goto(ADDRESS)
        return page

    yield open_page
    for context in contexts:
        context.close()
    # The browser itself writes a line of every reply that is an error, and of every connection that fails.
    assert [each for each in complaints if "Failed to load resource" not in each] == []


@pytest.fixture
def photo(tmp_path: Path) -> Callable[[str], Path]:
    def write(name: str) -> Path:
        array = np.zeros((70, 100, 3), np.uint8)
        array[:, :, 1] = np.linspace(0, 255, 100)
        (tmp_path / name).write_bytes(b"no image" if "broken" in name else write_png(array))
        return tmp_path / name

    return write


def test_a_chosen_image_gets_its_classes_and_its_heatmap_where_it_belongs(open_page, photo, service):
    page = open_page()
    page.set_input_files("#files", [photo("a.png")])
    page.wait_for_selector('.canvas[data-laid="true"]')
    assert page.inner_text("h1") == "flowers"
    assert page.inner_text(".label") == "daisy"
    assert page.locator(".bar").all_inner_texts() == ["daisy\n90.0 %", "=rose\n10.0 %", "tulip\n< 0.1 %"]
    assert page.get_attribute(".photo", "alt") == "a.png: daisy, 90.0 %"
    shown, heat = page.locator(".photo").bounding_box(), page.locator(".heat").bounding_box()
    scale = shown["width"] / 100
    expected = [shown["x"] + 20 * scale, shown["y"] + 5 * scale, 60 * scale, 60 * scale]
    assert [heat[side] for side in ("x", "y", "width", "height")] == pytest.approx(expected, abs=1)
    page.locator("#strength").fill("0")
    assert page.locator(".heat").evaluate("element => getComputedStyle(element).opacity") == "0"
    page.locator("#explain").uncheck()
    page.locator("#clear").click()
    page.set_input_files("#files", [photo("a.png")])
    page.wait_for_selector(".card")
    assert ["explain=true" in each for each in service.addresses] == [True, False]
    page.locator("#explain").check()  # asks again, for there is no heatmap yet
    page.wait_for_selector('.canvas[data-laid="true"]')


def test_many_images_go_in_batches_and_stay_in_order(open_page, photo, service):
    page = open_page()
    names = [f"{number}.png" for number in range(7)]
    page.set_input_files("#files", [photo(name) for name in names])
    page.wait_for_selector("text=7 images classified")
    assert service.requests == [names[:3], names[3:6], names[6:]]
    assert page.locator(".name").all_inner_texts() == names


def test_what_cannot_be_classified_is_said_beside_the_rest(open_page, photo, service, tmp_path):
    page = open_page()
    (tmp_path / "large.png").write_bytes(b"\0" * 300_000)
    (tmp_path / "notes.txt").write_text("notes")
    files = [photo("a.png"), photo("broken.png"), tmp_path / "large.png", tmp_path / "notes.txt", photo("odd.png")]
    page.set_input_files("#files", files)
    page.wait_for_selector("text=2 images classified")
    assert page.locator("#alert").inner_text() == "1 file left out, not an image: notes.txt"
    told = dict(zip(page.locator(".name").all_inner_texts(), page.locator(".label").all_inner_texts(), strict=True))
    assert told["broken.png"] == "broken.png: is not an image of a known format"
    assert told["large.png"] == "large.png: has 0.3 MB, more than the 0.2 MB that are accepted"
    assert told["odd.png"] == "Unknown"
    assert not any("large.png" in names for names in service.requests)
    page.locator("#clear").click()
    page.set_input_files("#files", [photo("broken.png")])  # the whole request is refused then
    page.wait_for_selector("text=broken.png: is not an image")


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_images_are_dropped_and_pasted(event, open_page, photo):
    page = open_page()
    page.wait_for_selector("h1:has-text('flowers')")
    data = page.evaluate_handle(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
            return data;
        }""",
        list(photo("a.png").read_bytes()),
    )
    if event == "drop":
        page.dispatch_event("body", "dragenter", {"dataTransfer": data})
        assert page.locator("#drop.over").count() == 1
        page.dispatch_event("body", "drop", {"dataTransfer": data})
        assert page.locator("#drop.over").count() == 0
    else:
        page.evaluate("data => dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }))", data)
    page.wait_for_selector(".label:has-text('daisy')")


def test_text_that_is_dropped_or_pasted_gets_a_hint(open_page):
    page = open_page()
    page.wait_for_selector("h1:has-text('flowers')")
    page.evaluate("dispatchEvent(new ClipboardEvent('paste', { clipboardData: new DataTransfer() }))")
    page.wait_for_selector("#alert:has-text('no image in the clipboard')")
    page.evaluate("dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer() }))")
    page.wait_for_selector("#alert:has-text('Only files can be dropped')")


def test_a_slow_service_can_be_waited_for_or_left(open_page, photo, service):
    held = []
    service.before_predict = lambda route: held.append(route) is None
    page = open_page()
    page.set_input_files("#files", [photo(f"{number}.png") for number in range(5)])
    page.wait_for_selector("text=Classifying 5 images…")
    assert page.locator("#status.busy").count() == 1
    page.locator("#status button").click()
    page.wait_for_selector("text=Cancelled.")
    assert page.locator(".card").count() == 0
    service.before_predict = lambda _route: False
    page.set_input_files("#files", [photo("a.png")])
    page.wait_for_selector(".label:has-text('daisy')")


def test_a_busy_service_is_asked_again(open_page, photo, service):
    refusals = iter([True])

    def refuse_once(route: Any) -> bool:
        if not next(refusals, False):
            return False
        overloaded = {"error": "overloaded", "message": "The queue is full."}
        route.fulfill(status=503, headers={"Retry-After": "3"}, json=overloaded)
        return True

    service.before_predict = refuse_once
    page = open_page()
    page.set_input_files("#files", [photo("a.png")])
    page.wait_for_selector("text=trying again in 3 s")
    page.wait_for_selector(".label:has-text('daisy')")


def test_a_service_that_stopped_is_named_and_nothing_is_lost(open_page, photo, service):
    page = open_page()
    page.wait_for_selector("h1:has-text('flowers')")
    service.gone = True
    page.set_input_files("#files", [photo("a.png")])
    page.wait_for_selector("#alert:has-text('does not answer')")
    service.gone = False
    page.locator("#alert button").click()
    page.wait_for_selector(".label:has-text('daisy')")
    assert page.locator("#alert").is_hidden()


def test_a_token_is_requested_and_kept_for_the_session(open_page, photo, service):
    service.token = "Bearer secret"
    page = open_page()
    page.wait_for_selector("#token-dialog[open]")
    page.fill("#token", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#token-dialog[open]")
    page.fill("#token", "secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('flowers')")
    page.reload()
    page.wait_for_selector("h1:has-text('flowers')")
    page.set_input_files("#files", [photo("a.png")])
    page.wait_for_selector(".label:has-text('daisy')")


def test_predictions_are_kept_as_csv_that_no_spreadsheet_computes(open_page, photo):
    page = open_page()
    page.set_input_files("#files", [photo("a.png"), photo("broken, =1.png"), photo("=odd.png")])
    page.wait_for_selector("text=2 images classified")
    with page.expect_download() as download:
        page.locator("#csv").click()
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["path"] for row in rows] == ["a.png", "broken, =1.png", "'=odd.png"]
    assert [row["prediction"] for row in rows] == ["daisy", "", "unknown"]
    assert rows[0]["label_2"] == "'=rose"
    assert float(rows[0]["probability_1"]) == 0.9
    assert rows[1]["problem"] == "broken, =1.png: is not an image of a known format"


def test_the_keyboard_reaches_everything(open_page, photo):
    page = open_page()
    page.set_input_files("#files", [photo("a.png")])
    page.wait_for_selector(".card")
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == ["files", "explain", "strength", "top", "csv", "clear", ""]
    page.locator("#clear").press("Enter")
    assert page.locator(".card").count() == 0
    assert page.evaluate("document.activeElement.id") == "files"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(scheme, open_page, photo):
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, color_scheme=scheme)
    page.set_input_files("#files", [photo("a.png"), photo(f"{'long' * 20}.png")])
    page.wait_for_selector("text=2 images classified")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#camera-label").is_visible()
    for element in page.locator("button:visible, label.button:visible").all():
        assert element.bounding_box()["height"] >= 44
