"""Exported programs give what the network gives, read back by their own runtimes.

Shape letters: N images, H and W pixels, K classes.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_classifiers import FC, build, draw_photo

from vggkit.engines.model_weights import find_weights
from vggkit.exporting.plan import FITTED, ExportPlan
from vggkit.exporting.programs import find_program
from vggkit.images.preprocessing import Preprocessing

POOL = replace(FC, head="pool", hidden=(), statistics="mean+std", batch_norm=True)
KINDS = {
    "fc": (FC, {}),
    "fc, pooled to its grid": (replace(FC, grid=3), {}),
    "low rank, responses, average": (
        replace(FC, ranks=(3, None, 4), lrn_after=("relu1_1",), pooling="average"),
        {},
    ),
    "dense": (replace(FC, head="dense"), {}),
    "dense, smaller than its window": (replace(FC, head="dense", grid=4), {}),
    "pool": (POOL, {}),
    "pool, one place": (replace(POOL, statistics="mean"), {"crop_pixels": 32}),
    "cut": (replace(POOL, until="relu3_1"), {}),
    "grey": (
        replace(POOL, in_channels=1),
        {"channel_order": "L", "mean": (0.4,), "std": (0.2,)},
    ),
    "BGR to 255": (
        POOL,
        {"channel_order": "BGR", "full_value": 255.0, "mean": (103.9, 116.8, 123.7), "std": (57.0, 58.0, 59.0)},
    ),
    "four channels": (
        replace(POOL, in_channels=4),
        {"channel_order": "RGBX", "mean": (0.1, 0.2, 0.3, 0.4), "std": (0.2,) * 4},
    ),
}
QUICK = ("onnx", "openvino")


@pytest.fixture
def photo():
    return draw_photo()


def open_format(to):
    for package in {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}.get(to, ()):
        pytest.importorskip(package)
    return find_program(to)


def write(classifier, to, folder, **options):
    """The plan, and the program as its runtime runs it."""
    program = open_format(to)
    plan = ExportPlan.of(classifier.card, to, **options)
    path = folder / {"onnx": "m.onnx", "openvino": "m.xml", "pt2": "m.pt2"}[to]
    program.write(find_weights(classifier), plan, path)
    return plan, program.open(path)[0]


def draw(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def predict(classifier, batch):
    """Logits (N, K) over the temperature, of images (N, H, W, C) as they are, by the network itself."""
    images = np.stack([classifier.preprocessing.normalize(each) for each in batch])
    with torch.no_grad():
        return (classifier.network.eval()(torch.from_numpy(images)) / classifier.temperature).log_softmax(1).numpy()


@pytest.mark.parametrize("to", [*QUICK, pytest.param("pt2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_programs_give_the_networks_probabilities(kind, to, tmp_path):
    configuration, options = KINDS[kind]
    classifier = build(configuration, **options)
    plan, run = write(classifier, to, tmp_path)
    side, channels = plan.crop_pixels, plan.card.preprocessing.decoded_channels
    sizes = [(1, side, side), (4, side, side)]
    if plan.is_dynamic:
        least = plan.least_pixels
        sizes += [(2, side + 7, side + 40), (1, least, least + 3), (3, least + 32, least)]
    for shape in sizes:
        batch = draw(*shape, channels)
        found, expected = run(batch), predict(classifier, batch)
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.log(found), expected, atol=1e-4 * np.ptp(expected))


def test_a_program_of_torch_export(tmp_path):
    """The quickest of them, among the default tests."""
    classifier = build(replace(POOL, until="relu2_1"))
    _, run = write(classifier, "pt2", tmp_path)
    batch = draw(3, 70, 101, 3)
    np.testing.assert_allclose(np.log(run(batch)), predict(classifier, batch), atol=1e-3)


def test_sizes_are_free_where_the_head_allows_it():
    for kind, free in {
        "fc": False,
        "dense": True,
        "dense, smaller than its window": False,
        "pool": True,
        "cut": True,
    }.items():
        configuration, options = KINDS[kind]
        plan = ExportPlan.of(build(configuration, **options).card, "onnx")
        assert plan.is_dynamic is free, kind
        assert plan.input_shape[0] == "N"
    assert ExportPlan.of(build(FC).card, "onnx", resize=True).is_dynamic


@pytest.mark.parametrize("to", QUICK)
def test_half_the_bytes(to, tmp_path):
    # Weights that are most of the file.
    classifier = build(replace(FC, hidden=(512, 512)))
    sizes, found = {}, {}
    for precision in ("fp32", "fp16"):
        _, run = write(classifier, to, tmp_path, precision=precision)
        sizes[precision] = sum(path.stat().st_size for path in tmp_path.iterdir())
        found[precision] = run(draw(2, 64, 64, 3))
    assert sizes["fp16"] < 0.65 * sizes["fp32"]
    np.testing.assert_allclose(found["fp16"], found["fp32"], atol=1e-2)
    assert not np.array_equal(found["fp16"], found["fp32"])


PREPARATIONS = {
    "crop": {},
    "crop that nothing is cut from": {"resize_pixels": 64},
    "crop that is larger": {"resize_pixels": 51},
    "stretch": {"fit_mode": "stretch"},
    "pad": {"fit_mode": "pad", "mean": (0.2, 0.5, 0.7)},
    "bicubic": {"interpolation": "bicubic"},
}
SIZES = [(150, 211), (97, 75), (64, 64), (40, 333), (33, 35), (1, 5)]


@pytest.mark.parametrize(
    ("to", "kind"),
    [
        # OpenVINO compiles anew for each size.
        pytest.param(to, kind, marks=[] if to == "onnx" or (to, kind) == ("openvino", "pad") else pytest.mark.slow)
        for to in ("onnx", "openvino", "pt2")
        for kind in PREPARATIONS
    ],
)
def test_images_are_resized_as_pillow_does(kind, to, tmp_path, photo, monkeypatch):
    # Without fast_image_resize Preprocessing is Pillow's. Which values are a level off depends on Pillow's version:
    # some resize across first, and some down first where that is less work.
    monkeypatch.setattr("vggkit.images.resizing._find_quick", lambda: None)
    program = open_format(to)
    classifier = build(POOL, **PREPARATIONS[kind])
    plan = replace(ExportPlan.of(classifier.card, to, resize=True), outputs=(FITTED,))
    path = tmp_path / {"onnx": "m.onnx", "openvino": "m.xml", "pt2": "m.pt2"}[to]
    program.write(find_weights(classifier), plan, path)
    run = program.open(path)[0]
    for height, width in SIZES:
        image = np.tile(photo, (1, 2, 1))[:height, :width]
        batch = np.stack([image, image[:, ::-1]])
        for fitted, pixels in zip(run(batch), batch, strict=True):
            apart = np.abs(fitted.transpose(1, 2, 0) - classifier.preprocessing.fit(np.ascontiguousarray(pixels)))
            assert apart.max() <= 1, (height, width)


def test_metadata_holds_what_a_program_cannot_compute(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    classifier = build(POOL)
    classifier.card = replace(
        classifier.card, provenance={"licence": "CC0-1.0"}, labels=("a", "é", "c d", "e,", "5")
    )
    write(classifier, "onnx", tmp_path, resize=True)
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(found["labels"]) == ["a", "é", "c d", "e,", "5"]
    assert float(found["threshold"]) == 0.25
    assert found["licence"] == "CC0-1.0"
    assert json.loads(found["versions"]).keys() == {"vggkit", "onnx"}
    assert Preprocessing.from_dict(json.loads(found["preprocessing"])) == classifier.preprocessing
    assert json.loads(found["input"])["resized_inside"] is True


def test_the_engines_graph_and_the_exported_one_are_one(tmp_path):
    """The nodes between the prepared image and the softmax are the engine's."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from vggkit.engines.graph_builder import GraphBuilder
    from vggkit.engines.onnx_graph import ONNXOperations
    from vggkit.engines.outputs import plan_outputs

    classifier = build(FC)
    write(classifier, "onnx", tmp_path)
    exported = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    plan, operations = plan_outputs(FC, "logits"), ONNXOperations(onnx)
    weights = find_weights(classifier).read(plan.keys)
    images = operations.add_input("images", ["N", 3, 64, 64])
    model = operations.build(GraphBuilder(FC, plan, weights, operations).build(images, (64, 64)))
    drawn = [node.op_type for node in model.graph.node][:-1]  # without the naming of the output
    first = exported.index("Conv")
    assert exported[first : first + len(drawn)] == drawn
