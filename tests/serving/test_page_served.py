"""The page in a real browser, before a real service."""

import pytest


@pytest.fixture
def page(browser, service):
    context = browser.new_context()
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    complaints = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    outside = []
    opened.on("request", lambda request: outside.append(request.url))
    opened.goto(f"http://127.0.0.1:{service.port}/")
    opened.wait_for_selector("h1:has-text('stripes')")
    yield opened
    context.close()
    assert [each for each in complaints if "Failed to load resource" not in each] == []
    assert {each.split("/")[2] for each in outside if each.startswith("http")} == {f"127.0.0.1:{service.port}"}


def test_images_are_classified_and_explained(page, service, images, tmp_path):
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    page.set_input_files("#files", sorted(tmp_path.iterdir()))
    page.wait_for_selector(f"text={len(images)} images classified")
    names = page.locator(".name").all_inner_texts()
    shown = dict(zip(names, page.locator(".label").all_inner_texts(), strict=True))
    for name, data in images.items():
        [expected] = service.client.post("/predict", files=[("files", (name, data))]).json()["predictions"]
        assert shown[name] == expected["label"]
    assert shown["broken.jpg"].startswith("broken.jpg: ")
    assert page.locator('.canvas[data-laid="true"] .heat').count() == len(images)


def test_an_image_that_nothing_reads_is_told_in_words(page, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    page.set_input_files("#files", tmp_path / "broken.jpg")
    page.wait_for_selector(".label.problem:has-text('broken.jpg')")
