"""The steps of the graph against the network itself: names, shapes and weights are those that real hooks see.

Shape letters: C channels, H and W pixels.
"""

import doctest
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vggkit.errors import BadInput, UnknownName
from vggkit.models import graph as graph_module
from vggkit.models.configuration import MODELS, Configuration, layer_names
from vggkit.models.configure import configure
from vggkit.models.graph import IMAGES, Graph
from vggkit.models.listing.listing import write_listing
from vggkit.models.vgg import VGG
from vggkit.weights.card import INPUT_RANGE


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    """Small networks of every head, kernel, rank and cut."""
    widths = st.integers(1, 4)
    blocks = tuple(tuple(draw(st.lists(widths, min_size=1, max_size=3))) for _ in range(draw(st.integers(1, 3))))
    kernels = tuple(tuple(draw(st.sampled_from([1, 3, 5])) for _ in block) for block in blocks)
    relus = [f"relu{b}_{c}" for b, block in enumerate(blocks, start=1) for c, _ in enumerate(block, start=1)]
    head = draw(st.sampled_from(["fc", "dense", "pool"]))
    hidden = tuple(draw(st.lists(st.integers(1, 5), max_size=2)))
    found = Configuration(
        blocks=blocks,
        kernels=kernels,
        batch_norm=draw(st.booleans()),
        lrn_after=tuple(draw(st.lists(st.sampled_from(relus), max_size=2))),
        pooling=draw(st.sampled_from(["max", "average"])),
        head=head,
        grid=draw(st.integers(1, 3)),
        statistics=draw(st.sampled_from(["mean", "mean+std"])),
        hidden=hidden,
        ranks=tuple(draw(st.sampled_from([None, 1, 2])) for _ in range(len(hidden) + 1)),
        num_classes=draw(st.integers(1, 4)),
        in_channels=draw(st.integers(1, 3)),
    )
    if head == "pool" and draw(st.booleans()):
        found = replace(found, until=draw(st.sampled_from([layer.name for layer in found.trunk])))
    return found


def hook_shapes(network: nn.Module, images: torch.Tensor) -> tuple[dict[str, tuple[int, ...]], torch.Tensor]:
    """The shape of what each module gives for one image, in the order in which they compute."""
    found: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda _m, _i, given, name=name: found.update({name: tuple(given.shape[1:])}))
    with torch.no_grad():
        logits = network(images)
    return found, logits


@settings(deadline=None, max_examples=60)
@given(configuration=configurations(), extra=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_steps_are_what_hooks_see(configuration, extra):
    height, width = (configuration.minimum_side + each for each in extra)
    graph = Graph(configuration, input_pixels=(height, width))
    with torch.device("meta"):
        network = VGG(configuration).eval()
        seen, logits = hook_shapes(network, torch.empty(1, configuration.in_channels, height, width))
    modules = [step.module for step in graph.steps if step.module is not None]
    # A matrix that slides over the map computes as a convolution, and its module is not called.
    called = [step for step in graph.steps if step.module in seen]
    assert [step.module for step in called] == [name for name in seen if name in modules]
    slides = configuration.head == "dense"
    assert all(step.module in seen for step in graph.steps if step.module and not (step.kind == "fc" and slides))
    for step in called:
        assert step.output_shape == seen[step.module], step.name
    assert graph.steps[-1].output_shape == tuple(logits.shape[1:])
    keys = [key for step in graph.steps for key in step.weights]
    assert keys == [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    assert sum(step.parameters for step in graph.steps) == sum(value.numel() for value in network.parameters())


@settings(deadline=None, max_examples=60)
@given(configuration=configurations())
def test_each_step_reads_what_the_one_before_gives(configuration):
    graph = Graph(configuration)
    for before, step in zip(graph.steps, graph.steps[1:], strict=False):
        assert step.input_shape == before.output_shape
    assert graph.steps[0].reads == IMAGES
    for step in graph.steps:
        assert step.reads is None or step.reads in (IMAGES, *graph.names)
    assert graph.names == tuple(dict.fromkeys(graph.names))
    for name in graph.names:
        assert graph.find(name).name == name
    uncut = replace(configuration, until=None)
    hidden = set(layer_names(uncut)) - {layer.name for layer in uncut.trunk}
    assert hidden <= set(Graph(uncut).names)
    assert {layer.name for layer in uncut.trunk} == {step.name for step in Graph(uncut).trunk}


@pytest.mark.parametrize("name", MODELS)
def test_a_listing_has_the_same_steps(name):
    """What people read and paste computes the steps of the graph, in its order."""
    configuration = configure(name, num_classes=3)
    space: dict[str, object] = {}
    exec(write_listing(configuration, style="sequential"), space)
    [network] = [kind for kind in space.values() if isinstance(kind, type) and issubclass(kind, nn.Module)]
    graph = Graph(configuration)
    with torch.device("meta"):
        seen, logits = hook_shapes(network().eval(), torch.empty(1, 3, 224, 224))
    for step in graph.steps:
        if step.module is not None:
            assert seen[step.module] == step.output_shape, step.name
    assert tuple(logits.shape[1:]) == graph.steps[-1].output_shape


def test_names_are_those_of_the_literature():
    # LPIPS and Gatys et al. tap these of VGG16 and VGG19; torchvision's indices of them are well known.
    taps = {"relu1_2": 3, "relu2_2": 8, "relu3_3": 15, "relu4_3": 22, "relu5_3": 29, "pool5": 30}
    graph = Graph(configure("vgg16"))
    assert {name: graph.find(name).module for name in taps} == {k: f"features.{v}" for k, v in taps.items()}
    assert Graph(configure("vgg19")).find("relu5_4").module == "features.35"
    assert Graph(configure("vgg16_bn")).find("relu5_3").module == "features.42"
    assert graph.names[-5:] == ("fc6", "relu6", "fc7", "relu7", "fc8")
    assert (graph.find("fc7").module, graph.find("relu7").module) == ("classifier.3", "classifier.4")
    with pytest.raises(UnknownName, match="Did you mean 'relu5_3'"):
        graph.find("relu5_4")


def test_the_range_of_the_images_has_one_name():
    assert IMAGES == INPUT_RANGE


def test_images_that_are_too_small():
    with pytest.raises(BadInput, match="at least 32 pixels high and wide, got 31×64"):
        Graph(configure("vgg11"), input_pixels=(31, 64))


def test_examples_of_the_docstrings():
    assert doctest.testmod(graph_module).failed == 0


def test_torch_is_not_imported():
    code = "import sys, vggkit.models.graph; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
