"""The paper's tests: what is looked at, and that a sliding head is a sliding window."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import draw_class
from vggkit.classifier import Classifier
from vggkit.engines.select import resolve_choice
from vggkit.errors import BadConfiguration, BadInput, UnknownName
from vggkit.evaluation.measure import evaluate
from vggkit.evaluation.protocols import Look, evaluate_views, plan_protocol, prepare_engines, prepare_view
from vggkit.images.dataset import ImageSample
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configure import configure

LABELS = ("across", "down", "red")
CPU = torch.device("cpu")
FED = Preprocessing(resize_pixels=64, crop_pixels=64)


@pytest.fixture
def papers(tiny):
    """The paper's head on a small trunk: fully connected layers that read a map of 2×2 at 64 pixels."""
    network = replace(tiny, head="fc", grid=2, hidden=(9, 9), num_classes=3)
    return Classifier.create(network, labels=LABELS, preprocessing=FED, seed=0)


def image(height=64, width=64, seed=0):
    rng = np.random.default_rng(seed)
    return ImageSample(f"memory/{seed}", "red", rng.integers(0, 256, (height, width, 3)).astype(np.uint8))


def ask(classifier, images, name, **options):
    plan = plan_protocol(name, classifier.preprocessing, **options)
    found = list(evaluate_views(classifier, images, plan, prepare_engines(classifier, plan, device=CPU)))
    assert [each[0] for each in found] == list(images)
    return [None if logs is None else np.exp(logs) for _, logs, _ in found]


def test_scales_are_the_papers():
    fed = Preprocessing()

    def scales(name, **options):
        return [look.scale for look in plan_protocol(name, fed, **options).looks]

    assert scales("dense") == [256]
    assert scales("dense", train_scales=(384,)) == [384]
    assert scales("dense", train_scales=(256, 512)) == [384]
    assert scales("multi-scale") == scales("multi-crop") == [224, 256, 288]
    assert scales("multi-scale", train_scales=(384,)) == [336, 384, 432]
    assert scales("multi-scale", train_scales=(512, 256)) == [256, 384, 512]
    assert scales("dense+crops", train_scales=(256, 512)) == [256, 384, 512] * 2
    assert scales("multi-scale", scales=(224, 320)) == [224, 320]
    assert not plan_protocol("single", fed).mirror
    assert plan_protocol("dense", fed).mirror
    assert str(plan_protocol("multi-crop", fed)) == (
        "multi-crop: 25 crops of 224 pixels, short side 224, 256, 288, and mirrored"
    )
    assert str(plan_protocol("dense+crops", fed, mirror=False, scales=(256,))) == (
        "dense+crops: the whole image, short side 256 and 25 crops of 224 pixels, short side 256"
    )


def test_what_cannot_be_looked_at_is_told():
    fed = Preprocessing()
    with pytest.raises(UnknownName, match="multi-scale"):
        plan_protocol("multiscale", fed)
    with pytest.raises(BadInput, match="takes no scales"):
        plan_protocol("single", fed, scales=(256,))
    with pytest.raises(BadInput, match="200 pixels is smaller"):
        plan_protocol("dense", fed, scales=(200,))
    with pytest.raises(BadInput, match="two ends"):
        plan_protocol("dense", fed, train_scales=(256, 384, 512))


def test_dense_is_the_head_itself_at_the_size_it_was_made_for(papers):
    images = [image(seed=k) for k in range(3)]
    single = ask(papers, images, "single")
    dense = ask(papers, images, "dense", scales=(64,), mirror=False)
    np.testing.assert_allclose(dense, single, rtol=1e-5)


def test_dense_is_the_head_itself_at_224_at_full_size():
    """The paper's fc6 to fc8 on a small trunk, which cannot change what they do."""
    configuration = replace(
        configure("vgg11", num_classes=3), blocks=((2,), (2,), (2, 2), (4, 4), (8, 8)), hidden=(4096, 4096)
    )
    classifier = Classifier.create(configuration, labels=LABELS, preprocessing=Preprocessing(), seed=0)
    images = [image(224, 224)]
    single = ask(classifier, images, "single", mirror=False)
    assert len(set(single[0])) == 3
    # 224 pixels as they are: the preprocessing's own resizing is left out.
    classifier.card = replace(classifier.card, preprocessing=Preprocessing(resize_pixels=224))
    dense = ask(classifier, images, "dense", mirror=False)
    np.testing.assert_allclose(dense, ask(classifier, images, "single"), rtol=1e-4)


def test_dense_is_a_sliding_window_over_a_larger_image(papers):
    """Windows of the last map, each through the paper's layers, and the scores averaged before the softmax."""
    asked = image(96, 160, seed=5)
    (found,) = ask(papers, [asked], "dense", scales=(96,), mirror=False)
    network = papers.network.eval()
    inputs = torch.from_numpy(prepare_view(asked, papers.preprocessing, Look("whole", 96))[0][None])
    assert inputs.shape == (1, 3, 96, 160)
    with torch.no_grad():
        maps = network.features(inputs)
        assert maps.shape[-2:] == (3, 5)
        scores = [
            network.classifier(maps[..., row : row + 2, column : column + 2].flatten(1))
            for row in range(2)
            for column in range(4)
        ]
    expected = torch.stack(scores).mean(0)[0].softmax(0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_mirror_images_and_scales_are_averaged_as_probabilities(papers):
    asked = image(80, 120, seed=7)
    flipped = ImageSample("flipped", "red", np.ascontiguousarray(asked.pixels[:, ::-1]))
    each = [
        ask(papers, [one], "dense", scales=(scale,), mirror=False)[0]
        for scale in (64, 72, 80)
        for one in (asked, flipped)
    ]
    (together,) = ask(papers, [asked], "multi-scale", scales=(64, 72, 80))
    np.testing.assert_allclose(together, np.mean(each, axis=0), rtol=2e-2)
    exact = replace(asked, pixels=asked.pixels[:80, :80])
    single = ask(papers, [exact], "single", mirror=True)
    assert single[0].sum() == pytest.approx(1)


def test_crops_are_a_grid_from_edge_to_edge(papers):
    asked = image(96, 128, seed=2)
    crops = prepare_view(asked, papers.preprocessing, Look("grid", 96))
    assert len(crops) == 25
    assert {crop.shape for crop in crops} == {(3, 64, 64)}
    whole = papers.preprocessing.normalize(asked.pixels)
    np.testing.assert_array_equal(crops[0], whole[:, :64, :64])
    np.testing.assert_array_equal(crops[12], whole[:, 16:80, 32:96])
    np.testing.assert_array_equal(crops[24], whole[:, -64:, -64:])
    with torch.no_grad():
        logits = papers.network.eval()(torch.from_numpy(np.stack([*crops, *(c[..., ::-1] for c in crops)])))
    (found,) = ask(papers, [asked], "multi-crop", scales=(96,))
    np.testing.assert_allclose(found, logits.softmax(1).mean(0), rtol=1e-4)
    both = ask(papers, [asked], "dense+crops", scales=(96,))[0]
    dense = ask(papers, [asked], "dense", scales=(96,))[0]
    np.testing.assert_allclose(both, (found + dense) / 2, rtol=1e-4)


def test_a_head_that_reads_a_pooled_map_cannot_slide(papers):
    papers.card = replace(papers.card, preprocessing=Preprocessing(resize_pixels=96, crop_pixels=96))
    with pytest.raises(BadConfiguration, match="multi-crop"):
        ask(papers, [image()], "dense")
    assert ask(papers, [image(96, 96)], "multi-crop", scales=(96,))[0].sum() == pytest.approx(1)


def test_a_pool_head_looks_at_the_whole_image(tiny):
    classifier = Classifier.create(tiny, labels=LABELS, preprocessing=FED, seed=0)
    asked = image(64, 128)
    (found,) = ask(classifier, [asked], "dense", mirror=False)
    with torch.no_grad():
        logits = classifier.network.eval()(torch.from_numpy(FED.normalize(asked.pixels)[None]))
    np.testing.assert_allclose(found, logits.softmax(1)[0], rtol=1e-4)


def test_a_thread_of_an_image_takes_no_gigabytes(papers):
    long = ImageSample("memory", "red", np.zeros((4, 40_000, 3), np.uint8))
    (inputs,) = prepare_view(long, papers.preprocessing, Look("whole", 64))
    assert inputs.shape[1] == 64
    assert inputs.shape[2] <= 2**21 / 64
    assert len(prepare_view(long, papers.preprocessing, Look("grid", 64))) == 25


def test_each_protocol_measures_and_names_itself(papers, tmp_path):
    for label in LABELS:
        (tmp_path / label).mkdir()
    from PIL import Image

    for label in LABELS:
        for number in range(2):
            Image.fromarray(draw_class(label, number, side=70)).save(tmp_path / label / f"{number}.png")
    (tmp_path / "red" / "broken.png").write_text("no")
    papers.calibrate(temperature=2.0, about={})
    for name in ("single", "dense", "multi-scale", "multi-crop", "dense+crops"):
        found = evaluate(papers, tmp_path, protocol=name)
        assert found.n == 6
        assert len(found.unreadable) == 1
        assert found.protocol.startswith(f"{name}:")
        np.testing.assert_allclose(found.predictions.probabilities.sum(1), 1)


def test_whole_images_stay_with_pytorch_unless_an_engine_was_named(papers, able):
    pytest.importorskip("openvino")
    plan = plan_protocol("dense+crops", FED)

    def log(**options):
        engines = prepare_engines(papers, plan, device="cpu", **options)
        return {way: engine.info.describe() for way, engine in engines.items()}

    pixels = papers.preprocessing.crop_pixels
    chosen = {"openvino": "OpenVINO", "ncnn": "ncnn"}[resolve_choice("cpu", precision="fp32", pixels=pixels)[1]]
    assert log() == {"whole": "PyTorch in float32", "grid": f"{chosen} in float32"}
    assert log(precision="bf16") == {
        "whole": "PyTorch in bfloat16",
        "grid": "OpenVINO in bfloat16" if able else "OpenVINO in float32",
    }
    assert log(engine="openvino") == {"whole": "OpenVINO in float32", "grid": "OpenVINO in float32"}


@pytest.mark.parametrize("name", ["openvino", "onnx", "ncnn"])
@pytest.mark.parametrize("protocol", ["single", "dense", "multi-crop"])
def test_every_engine_looks_alike(papers, name, protocol):
    pytest.importorskip({"onnx": "onnxruntime"}.get(name, name))
    plan = plan_protocol(protocol, FED)
    asked = [image(70 + 9 * seed, 96, seed=seed) for seed in range(3)]
    one, other = (
        [
            logs
            for _, logs, _ in evaluate_views(
                papers, asked, plan, prepare_engines(papers, plan, device=CPU, engine=engine)
            )
        ]
        for engine in ("pytorch", name)
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_sliding_head_reads_what_the_papers_does_in_int8_too(papers):
    pytest.importorskip("openvino")
    from vggkit.engines.activation_ranges import list_reads, measure_ranges

    sliding = replace(papers.configuration, head="dense")
    assert list_reads(sliding) == list_reads(papers.configuration)
    asked = [image(64, 64 + 8 * seed, seed=seed) for seed in range(4)]
    fed = np.stack([prepare_view(each, FED, Look("middle", 64))[0] for each in asked])
    papers.keep_ranges(measure_ranges(papers.network, [fed]), about={})
    exact = ask(papers, asked, "dense")
    plan = plan_protocol("dense", FED)
    engines = prepare_engines(papers, plan, device=CPU, precision="int8")
    assert engines["whole"].info.precision == "int8"
    for (_, logs, _), expected in zip(evaluate_views(papers, asked, plan, engines), exact, strict=True):
        np.testing.assert_allclose(np.exp(logs), expected, atol=0.03)
