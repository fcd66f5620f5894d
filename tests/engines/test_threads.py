"""Several threads get what one gets, bit for bit, and the network is not touched meanwhile.

Shape letters: N images, C channels, H and W pixels.
"""

import gc
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from test_engines import CPU, KINDS, build, build_ncnn, build_onnx, build_openvino, build_pytorch, draw
from torch import nn

from conftest import draw_class
from vggkit.classifier import Classifier
from vggkit.engines.activation_ranges import measure_ranges
from vggkit.engines.select import choose_engine
from vggkit.evaluation.measure import evaluate
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.preprocessing import Preprocessing
from vggkit.inference.embed import embed
from vggkit.inference.predict import predict

NORMED = KINDS["batch norm"]
LABELS = ("across", "down", "other", "red", "striped")
NEEDED = {"pytorch": (), "openvino": ("openvino",), "onnx": ("onnx", "onnxruntime"), "ncnn": ("ncnn",)}


@pytest.fixture(params=list(NEEDED))
def engine(request) -> str:
    for package in NEEDED[request.param]:
        pytest.importorskip(package)
    return request.param


@pytest.fixture
def classifier() -> Classifier:
    """In training, its first batch norm frozen, its first kernels too, and gradients that someone needs yet."""
    network = build(NORMED).train()
    next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    network.features[0].weight.requires_grad_(False)
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    return Classifier(network, labels=LABELS, preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32))


@pytest.fixture(scope="module")
def images() -> list[ImageSample]:
    return [
        ImageSample(f"{label}/{number}", label, draw_class(label, number))
        for number in range(8)
        for label in ("red", "down")
    ]


def take_stock(network: nn.Module) -> list[object]:
    """All of a network that inference must leave alone, and which objects it consists of."""
    modules = [(name, id(module), module.training) for name, module in network.named_modules()]
    values = [
        (key, id(value), value.data_ptr(), value.stride(), value.dtype, value.requires_grad, value.sum().item())
        for key, value in [*network.named_parameters(), *network.named_buffers()]
    ]
    grads = [None if value.grad is None else value.grad.sum().item() for value in network.parameters()]
    return [modules, values, grads]


def test_predicting_in_threads_is_predicting_one_by_one(classifier, images, engine):
    before = take_stock(classifier.network)

    def ask(image: ImageSample):
        return predict(classifier, [image], engine=engine)[0]

    serial = [ask(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            assert list(pool.map(ask, images)) == serial
    assert take_stock(classifier.network) == before


def test_embedding_and_evaluating_in_threads_is_one_by_one(classifier, images, engine):
    before = take_stock(classifier.network)
    held = ImageDataset.of("held", ((None, image) for image in images))

    def ask(number: int):
        if number % 2:
            return evaluate(classifier, held, engine=engine, batch_size=3).predictions.log_probabilities.tobytes()
        return embed(classifier, images, engine=engine, batch_size=3).vectors.tobytes()

    serial = [ask(number) for number in range(2)] * 3
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(6))) == serial
    assert take_stock(classifier.network) == before


@pytest.mark.sweep(3)
def test_threads_share_an_engine(engine):
    network, batch = build(NORMED).train(), np.concatenate([draw(NORMED, 40, 40)] * 4)
    before = take_stock(network)
    shared = choose_engine(network, "cpu", output=["logits", "relu2_1"], precision="fp32", engine=engine)
    # Other numbers and sizes of images at the same time, so that models are compiled and dropped meanwhile.
    asked = [batch[: 1 + number % 9, :, : 32 + 2 * (number % 5)] for number in range(40)]
    serial = [shared.compute(each) for each in asked]
    fresh = choose_engine(network, "cpu", output=["logits", "relu2_1"], precision="fp32", engine=engine)
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(fresh.compute, asked), serial, strict=True):
            assert all(np.array_equal(one[name], other[name]) for name in other)
    assert take_stock(network) == before


@pytest.mark.sweep(3)
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_threads_share_an_engine_that_rounds(precision):
    network, batch = build(NORMED), draw(NORMED, 32, 32)
    activation_ranges = measure_ranges(network, [batch]) if precision == "int8" else None
    made = [
        build_openvino(
            network, precision=precision, activation_ranges=activation_ranges, output=["logits", "relu2_1"]
        )
    ]
    made += [build_pytorch(network, precision=precision)] if precision == "bf16" else []
    for shared in made:
        expected = shared.run(batch[:2])
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(shared.run, [batch[:2]] * 12))
        assert all(np.array_equal(each, expected) for each in found)


@pytest.mark.parametrize("make", [build_pytorch, build_openvino, build_onnx, build_ncnn])
def test_a_network_is_trained_between_two_engines(make):
    network, batch = build(NORMED), draw(NORMED, 32, 32)
    make(network).run(batch)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()(torch.from_numpy(batch)).square().sum().backward()
    optimizer.step()
    found = make(network).run(batch)
    with torch.no_grad():
        assert np.allclose(found, network.eval()(torch.from_numpy(batch)).numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [build_pytorch, build_openvino, build_onnx, build_ncnn])
@pytest.mark.parametrize("held", [torch.float16, torch.bfloat16, torch.float64])
def test_float32_is_computed_whatever_the_network_holds(make, held):
    network, batch = build(NORMED), draw(NORMED, 32, 32)
    network = network.to(held)
    peer = build(NORMED)
    peer.load_state_dict(network.state_dict())  # the same values, in float32
    before = take_stock(network)
    found = make(network).run(batch)
    assert np.array_equal(found, make(peer).run(batch))
    assert take_stock(network) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    ["openvino", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pytorch", "onnx", "ncnn"))],
    indirect=True,
)
def test_asking_again_and_again_leaves_nothing(classifier, images, engine):
    def ask() -> tuple[int, int, int]:
        predict(classifier, images, engine=engine)
        gc.collect()
        own = sum(str(type(each).__module__).startswith("vggkit.") for each in gc.get_objects())
        return own, threading.active_count(), len(warnings.filters)

    before = [ask() for _ in range(2)][-1]
    assert [ask() for _ in range(3)] == [before] * 3


def test_a_network_that_moved_is_where_it_was_moved_to():
    network = build(NORMED)
    engine = build_pytorch(network)
    batch = draw(NORMED, 32, 32)
    expected = engine.run(batch)
    network.to("meta")
    assert np.array_equal(engine.run(batch), expected)
    assert engine.device == CPU
    assert next(network.parameters()).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and there is none")
def test_threads_share_a_gpu():
    network, batch = build(NORMED).train(), draw(NORMED, 32, 32)
    before = take_stock(network)
    engine = choose_engine(network, "cuda", precision="fp32")
    expected = [engine.run(batch[number : number + 1]) for number in [0, 0, *range(5)]][2:]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine.run, [batch[number : number + 1] for number in range(5)] * 8))
    assert all(np.array_equal(each, expected[place % 5]) for place, each in enumerate(found))
    assert take_stock(network) == before
