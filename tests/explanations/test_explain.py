"""Explanations of a Classifier's predictions: every method, the bad inputs, and a model that stays as it was.

Shape letters: N images, C channels, H and W pixels or places.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import vggkit as vk
from conftest import draw_class
from vggkit.errors import BadConfiguration, BadInput, BadOutput, MissingExtra, UnknownName
from vggkit.explanations import gradients
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.features import Features

SIDE = 64
ON_PIXELS = ("integrated-gradients", "occlusion", "saliency")


def see(side, **options):
    return Preprocessing(resize_pixels=side, crop_pixels=side, **options)


@pytest.fixture(scope="module")
def classifier(tiny):
    seen = see(SIDE)
    return vk.Classifier.create(tiny, labels=["across", "down", "red"], preprocessing=seen, seed=3)


@pytest.fixture(scope="module")
def images():
    return [draw_class(label, 1, side=72) for label in ("across", "down", "red")]


def feed(classifier, images):
    return torch.from_numpy(np.stack([classifier.preprocessing(each) for each in images]))


def test_the_default_is_grad_cam_of_the_most_probable_class(classifier, images):
    found = classifier.explain(images)
    predicted = classifier.predict(images)
    assert [each.label for each in found] == [each.label for each in predicted]
    for each, prediction in zip(found, predicted, strict=True):
        assert each.probability == pytest.approx(prediction.probabilities[0], rel=1e-4)
        assert (each.method, each.layer) == ("grad-cam", "relu5_2")  # what the last pool reads
        assert each.map.shape == (4, 4)
        assert each.map.min() >= 0
        assert each.size == (72, 80)
    assert repr(found) == "Explanations(grad-cam at relu5_2 of 3 images)"
    assert repr(found[:1]) == "Explanations(grad-cam at relu5_2 of 1 image)"


@pytest.mark.parametrize("layer", ["relu5_2", "pool5", "relu3_1", "bn4_1"])
def test_grad_cam_is_the_same_in_closed_form_and_by_gradients(classifier, images, layer):
    fed = feed(classifier, images)
    found = Features(classifier, [layer, "logits"])(fed.requires_grad_())
    score = found["logits"][:, 1] - found["logits"][:, 2]
    (gradient,) = torch.autograd.grad(score.sum(), found[layer])
    expected = (gradient.mean((2, 3), keepdim=True) * found[layer]).sum(1).relu().detach().numpy()
    ours = classifier.explain(images, layer=layer, contrast=("down", "red"))
    assert {each.label for each in ours} == {"down"}
    assert {each.contrast for each in ours} == {"red"}
    np.testing.assert_allclose([each.map for each in ours], expected, atol=1e-5 * expected.max())


def test_layer_cam_weighs_each_place(classifier, images):
    fed = feed(classifier, images)
    found = Features(classifier, ["relu2_1", "logits"])(fed.requires_grad_())
    (gradient,) = torch.autograd.grad(found["logits"][:, 0].sum(), found["relu2_1"])
    expected = (gradient.relu() * found["relu2_1"]).sum(1).relu().detach().numpy()
    ours = classifier.explain(images, method="layer-cam", layer="relu2_1", label="across")
    np.testing.assert_allclose([each.map for each in ours], expected, atol=1e-5 * expected.max())


def test_methods_on_pixels(classifier, images):
    """Integrated gradients sum to the difference of the scores, as their paper promises."""
    pytest.importorskip("captum")
    fed = feed(classifier, images)
    maps = {
        method: np.stack([each.map for each in classifier.explain(images, method=method, label="red")])
        for method in ON_PIXELS
    }
    assert {each.shape for each in maps.values()} == {(3, SIDE, SIDE)}
    network = classifier.network
    score = Features(network, "logits")
    with torch.no_grad():
        difference = score(fed)["logits"][:, 2] - score(torch.zeros_like(fed))["logits"][:, 2]
    np.testing.assert_allclose(maps["integrated-gradients"].sum((1, 2)), difference, rtol=0.05, atol=0.02)
    fed.requires_grad_()
    (gradient,) = torch.autograd.grad(score(fed)["logits"][:, 2].sum(), fed)
    expected = gradient.abs().amax(1).numpy()
    np.testing.assert_allclose(maps["saliency"], expected, atol=1e-5 * expected.max())
    covered = fed.detach().clone()
    covered[:, :, :8, :8] = 0
    with torch.no_grad():
        corner = (score(fed)["logits"] - score(covered)["logits"])[:, 2].numpy()
    # No window but the first covers the outermost corner.
    np.testing.assert_allclose(maps["occlusion"][:, 0, 0], corner, atol=1e-4)


@pytest.mark.parametrize("method", ["grad-cam", "layer-cam", *ON_PIXELS])
def test_the_model_is_left_as_found(classifier, images, method, monkeypatch):
    if method in ON_PIXELS:
        pytest.importorskip("captum")
    network = classifier.network
    network.train()
    first = network.features[0]
    first.weight.requires_grad_(False)
    network.classifier[0].weight.grad = torch.ones_like(network.classifier[0].weight)

    def describe():
        values = {name: value.detach().clone() for name, value in network.state_dict().items()}
        hooks = [(len(each._forward_hooks), len(each._backward_hooks)) for each in network.modules()]
        kinds = [(value.requires_grad, value.grad is None) for value in network.parameters()]
        inplace = [each.inplace for each in network.modules() if isinstance(each, torch.nn.ReLU)]
        return values, (hooks, kinds, inplace, [each.training for each in network.modules()])

    try:
        values, others = describe()
        assert not any(map(any, others[0]))  # a network with hooks is refused by `Classifier.card`
        options = {"layer": "relu3_1"} if method.endswith("cam") else {}
        classifier.explain(images[:1], method=method, **options)

        def fail(*given):
            raise RuntimeError("in the middle")

        monkeypatch.setattr(gradients.GradientExplainer, "_choose", fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            classifier.explain(images[:1], method=method, **options)
        after, others_after = describe()
        assert others_after == others
        assert all(torch.equal(value, after[name]) for name, value in values.items())
        assert torch.equal(network.classifier[0].weight.grad, torch.ones_like(network.classifier[0].weight))
    finally:
        network.classifier[0].weight.grad = None
        first.weight.requires_grad_(True)
        network.eval()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_whatever_mode_the_caller_is_in(classifier, images, mode):
    expected = classifier.explain(images, layer="relu4_1")
    with mode():
        found = classifier.explain(images, layer="relu4_1")
    assert all(np.array_equal(one.map, two.map) for one, two in zip(found, expected, strict=True))


@pytest.mark.parametrize("method", ["grad-cam", "layer-cam", "saliency"])
def test_under_autocast_all_is_float32(classifier, images, method):
    if method in ON_PIXELS:
        pytest.importorskip("captum")
    [expected] = classifier.explain(images[:1], method=method)
    with torch.autocast("cpu", torch.bfloat16):
        [found] = classifier.explain(images[:1], method=method)
    assert np.array_equal(found.map, expected.map)


def test_a_network_of_inference_mode(tiny, images):
    with torch.inference_mode():
        network = vk.VGG(tiny)
    made = vk.Classifier(network, labels=["a", "b", "c"], preprocessing=see(64))
    assert made.explain(images[:1])[0].map.shape == (4, 4)
    with pytest.raises(BadInput, match="inference_mode"):
        made.explain(images[:1], layer="relu3_1")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"method": "grad_cam"}, UnknownName, "Did you mean 'grad-cam'"),
        ({"label": "dwon"}, UnknownName, "Did you mean 'down'"),
        ({"contrast": ("down", "rd")}, UnknownName, "Did you mean 'red'"),
        ({"contrast": ("down", "down")}, BadInput, "two different classes"),
        ({"contrast": "down"}, BadInput, "two different classes"),
        ({"label": "down", "contrast": ("down", "red")}, BadConfiguration, "contrast alone"),
        ({"layer": "relu5_3"}, UnknownName, "relu5_2"),
        ({"layer": "fc6"}, BadInput, "has no height and width.* the last one is pool5"),
        ({"method": "saliency", "layer": "relu5_2"}, BadConfiguration, "explains the pixels"),
        ({"method": "layer-cam", "engine": "openvino"}, BadConfiguration, "leave engine=openvino out"),
        ({"layer": "relu2_1", "precision": "bf16"}, BadConfiguration, "takes gradients"),
    ],
)
def test_what_cannot_be_explained(classifier, images, options, error, said):
    with pytest.raises(error, match=said):
        classifier.explain(images[:1], **options)


def test_a_map_of_one_place(tiny, images):
    made = vk.Classifier.create(tiny, labels=["a", "b", "c"], preprocessing=see(32))
    assert made.explain(images[:1])[0].map.shape == (2, 2)
    with pytest.raises(BadInput, match=r"pool5 is 1 × 1 for images of 32 × 32 pixels.*the last one is relu5_2"):
        made.explain(images[:1], layer="pool5")


def test_captum_is_named_where_it_is_missing(classifier, images, monkeypatch):
    def find(name):
        raise ImportError(name)

    monkeypatch.setattr(gradients.importlib, "import_module", find)
    with pytest.raises(MissingExtra, match=r"vggkit\[explain\]"):
        classifier.explain(images[:1], method="occlusion")


def test_other_images(tiny, tmp_path, images):
    """Small ones, a grey network, and one that is no image."""
    small = vk.Classifier.create(tiny, labels=["a", "b", "c"], preprocessing=see(64))
    assert small.explain(images[0][:10, :12])[0].map.shape == (4, 4)
    grey = vk.Classifier.create(
        replace(tiny, in_channels=1),
        labels=["a", "b", "c"],
        preprocessing=see(64, channel_order="L", mean=(0.5,), std=(0.2,)),
    )
    for method in ("grad-cam", "layer-cam"):
        assert grey.explain(images[0], method=method)[0].map.shape == (4, 4)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    [one] = small.explain(broken)
    assert one.map is None
    assert "broken.png" in one.problem
    with pytest.raises(BadInput, match="nothing to save"):
        one.save(tmp_path / "x.png")
    assert "broken.png" in one._repr_html_()
    with pytest.raises(BadInput, match="uint8"):
        small.explain(np.full((40, 40, 3), np.nan, np.float32))


def test_saving(classifier, images, tmp_path):
    found = classifier.explain(images)
    found.save(tmp_path / "sheet.png")
    for ending in (".png", ".jpg", ".webp"):
        classifier.explain(images[0]).save(tmp_path / f"why{ending}")
        with Image.open(tmp_path / f"why{ending}") as image:
            assert image.width > 2 * 224  # the image, and the image under its map
    found[0].save(tmp_path / "map.npy")
    assert np.array_equal(np.load(tmp_path / "map.npy"), found[0].map)
    for target in (found, found[0]):
        with pytest.raises(BadOutput, match="must end in"):
            target.save(tmp_path / "why.gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("map.npy", "sheet.png", "why.jpg", "why.png", "why.webp")
    ]
    page = found._repr_html_()
    assert page.count("data:image/jpeg") == 3
    assert "grad-cam at relu5_2" in page


def test_no_torch_where_another_engine_computes(classifier, tmp_path):
    """In a process of its own: the closed form, from a file to a folder of overlays."""
    pytest.importorskip("openvino")
    import subprocess
    import sys

    classifier.save(tmp_path / "model.safetensors")
    Image.fromarray(draw_class("red", 1)).save(tmp_path / "red.png")
    code = (
        "import sys, vggkit as vk\n"
        "vk.explain_into('model.safetensors', ['red.png'], 'why', engine='openvino', device='cpu')\n"
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert found.stdout == "False\n", found.stderr
    assert (tmp_path / "why" / "red.png.jpg").is_file()
