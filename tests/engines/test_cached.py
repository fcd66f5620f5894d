"""Engines that a Classifier keeps: compiled once, renewed when weights change, gone with the Classifier."""

import copy
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch

import vggkit as vk
from vggkit.engines import cached
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.models.configuration import Configuration

LABELS = ["across", "down", "red"]
PIXELS = np.random.default_rng(0).integers(0, 255, (40, 48, 3), np.uint8)


@pytest.fixture
def classifier(tiny: Configuration) -> vk.Classifier:
    made = vk.Classifier.create(tiny, labels=LABELS, preprocessing=choose_preprocessing(32), seed=1)
    # So that every weight of the trunk matters to the logits: the last layer begins at zero.
    torch.nn.init.normal_(made.network.classifier[-1].weight, generator=torch.Generator().manual_seed(0))
    return made


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Weak references to the engines that are built while a test runs."""
    found: list[object] = []
    choose = cached.choose_engine

    def note(*args, **options):
        engine = choose(*args, **options)
        found.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr(cached, "choose_engine", note)
    return found


def probabilities(classifier: vk.Classifier, **options) -> tuple[float, ...]:
    [found] = classifier.predict(PIXELS, top=3, **options)
    by_label = dict(zip(found.labels, found.probabilities, strict=True))
    return tuple(by_label[label] for label in LABELS)


def test_the_network_is_compiled_once(classifier, built, photos):
    first = probabilities(classifier)
    assert [probabilities(classifier) for _ in range(3)] == [first] * 3
    assert vk.predict(classifier, photos / "val")
    classifier.calibrate(threshold=0.9, about={})
    assert classifier.predict(PIXELS)
    assert len(built) == 1
    classifier.embed(PIXELS)
    classifier.embed([PIXELS] * 3)
    assert len(built) == 2
    probabilities(classifier)
    assert len(built) == 2


def test_only_the_last_engines_are_kept(classifier, built):
    for layer in ("features", "relu1_1", "relu2_1", "relu3_1"):
        classifier.embed(PIXELS, layer=layer)
    assert [each() is None for each in built] == [True, True, False, False]


def step(network: torch.nn.Module) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    network(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    optimizer.step()


def move_average(network: torch.nn.Module) -> None:
    for value in network.parameters():
        value.data.mul_(0.5)


def write_by_numpy(network: torch.nn.Module) -> None:
    network.classifier[-1].weight.detach().numpy()[:] *= -1


def set_data(network: torch.nn.Module) -> None:
    network.classifier[-1].weight.data = -network.classifier[-1].weight.data


def load(network: torch.nn.Module) -> None:
    network.load_state_dict({key: value * 2 for key, value in network.state_dict().items()})


def see_other_images(network: torch.nn.Module) -> None:
    network.train()
    with torch.no_grad():
        network(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 9)
    network.eval()


@pytest.mark.parametrize("engine", ["auto", "pytorch"])
@pytest.mark.parametrize("change", [step, move_average, write_by_numpy, set_data, load, see_other_images])
def test_changed_weights_are_seen(
    classifier: vk.Classifier, change: Callable[[torch.nn.Module], None], engine: str
) -> None:
    before = probabilities(classifier, engine=engine)
    change(classifier.network)
    after = probabilities(classifier, engine=engine)
    assert after != pytest.approx(before, abs=1e-4)
    assert after == pytest.approx(probabilities(copy.deepcopy(classifier), engine=engine), abs=1e-6)


def test_another_network_and_another_temperature_are_seen(classifier, tiny):
    before = probabilities(classifier)
    classifier.embed(PIXELS, layer="probabilities")
    classifier.calibrate(temperature=3.0, about={})
    softer = probabilities(classifier)
    assert softer != pytest.approx(before, abs=1e-4)
    assert classifier.embed(PIXELS, layer="probabilities").vectors[0] == pytest.approx(softer, abs=1e-5)
    classifier.network = vk.VGG(tiny)
    assert probabilities(classifier) == pytest.approx(probabilities(copy.deepcopy(classifier)), abs=1e-6)


@pytest.mark.parametrize("engine", ["pytorch", "openvino", "onnx"])
def test_engines_go_with_the_classifier(classifier_of, built, engine):
    """At once, as nothing refers back to it."""
    pytest.importorskip({"pytorch": "torch", "onnx": "onnxruntime"}.get(engine, engine))
    made = classifier_of()
    probabilities(made, engine=engine)
    reference = weakref.ref(made)
    del made
    assert reference() is None
    assert [each() for each in built] == [None]


@pytest.fixture
def classifier_of(tiny: Configuration) -> Callable[[], vk.Classifier]:
    return lambda: vk.Classifier.create(tiny, labels=LABELS, preprocessing=choose_preprocessing(32), seed=1)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_and_pickles_answer_alike_and_hold_no_engine(classifier, built, duplicate):
    bare = len(pickle.dumps(classifier))
    first = probabilities(classifier)
    assert len(pickle.dumps(classifier)) < bare + 200
    other = duplicate(classifier)
    assert isinstance(other, vk.Classifier)
    assert other.card == classifier.card
    assert probabilities(other) == pytest.approx(first, abs=1e-6)
    assert len(built) == 2
    with torch.no_grad():
        other.network.classifier[-1].weight.neg_()
    assert probabilities(other) != pytest.approx(first, abs=1e-4)
    assert probabilities(classifier) == first
    assert len(built) == 3


def test_threads_compile_once_and_share(classifier, built):
    expected = probabilities(copy.deepcopy(classifier))
    built.clear()
    begin = Barrier(8)

    def ask(_: int) -> list[tuple[float, ...]]:
        begin.wait()
        return [probabilities(classifier) for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        found = [each for several in pool.map(ask, range(8)) for each in several]
    assert len(built) == 1
    assert all(each == pytest.approx(expected, abs=1e-6) for each in found)


def test_a_refusal_keeps_nothing(classifier, built):
    for _ in range(2):
        with pytest.raises(vk.UnknownName):
            classifier.predict(PIXELS, engine="openvno")
    assert probabilities(classifier)
    assert len(built) == 1


FORKED = """
import os, sys
import numpy as np
import vggkit as vk
from vggkit.images.preprocessing import choose_preprocessing

fed = choose_preprocessing(32)
clf = vk.Classifier.create("vgg11", labels=["a", "b"], until="pool1", preprocessing=fed, seed=1)
pixels = np.zeros((32, 32, 3), np.uint8)
first = clf.predict(pixels)
child = os.fork()
if child == 0:
    same = clf.predict(pixels) == first
    del clf  # with what it has of its parent
    os._exit(0 if same else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_compiles_its_own():
    assert subprocess.run([sys.executable, "-c", FORKED], timeout=120, check=False).returncode == 0
