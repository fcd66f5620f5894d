"""Every head leaves torch: torch.export and ONNX give the network's logits, at other sizes too.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

from dataclasses import replace

import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

from vggkit.models.configuration import Configuration
from vggkit.models.vgg import VGG

PAPERS = Configuration(blocks=((4,), (6,), (8, 8), (8,), (10,)), hidden=(12, 9), grid=7, num_classes=5, dropout=0.5)
POOL = replace(PAPERS, head="pool", hidden=(), statistics="mean+std", batch_norm=True)
BATCH = {0: Dim.DYNAMIC}
ALL = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
Sizes = list[tuple[int, int, int]]


def build(configuration: Configuration) -> VGG:
    torch.manual_seed(0)
    network = VGG(configuration).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
    return network


CASES = [
    pytest.param(PAPERS, (224, 224), BATCH, [(1, 224, 224), (5, 224, 224)], id="fc", marks=pytest.mark.slow),
    pytest.param(
        replace(PAPERS, grid=2),
        (96, 128),
        BATCH,
        [(1, 96, 128), (3, 96, 128)],
        id="fc, pooled to its grid",
        marks=pytest.mark.slow,
    ),
    pytest.param(POOL, (224, 224), ALL, [(1, 224, 224), (3, 32, 32), (2, 300, 333)], id="pool, mean+std"),
    pytest.param(
        replace(PAPERS, head="dense", ranks=(3, None, 2)),
        (224, 224),
        ALL,
        [(1, 224, 224), (1, 256, 224), (3, 224, 384), (2, 300, 333)],
        id="dense, low rank",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        replace(PAPERS, head="dense"),
        (224, 224),
        ALL,
        [(1, 224, 224), (2, 384, 256)],
        id="dense",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        replace(POOL, statistics="mean", lrn_after=("relu1_1",), pooling="average", until="relu4_1"),
        (224, 224),
        ALL,
        [(1, 224, 224), (2, 40, 64)],
        id="pool, LRN, average, cut",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("configuration", "sample", "dynamic", "sizes"), CASES)
def test_exported_programs_give_the_networks_logits(
    configuration: Configuration, sample: tuple[int, int], dynamic: dict[int, object], sizes: Sizes
) -> None:
    network = build(configuration)
    program = torch.export.export(network, (torch.randn(2, 3, *sample),), dynamic_shapes={"images": dynamic})
    exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None
    session = onnxruntime.InferenceSession(
        exported.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    [entry] = session.get_inputs()
    assert [isinstance(side, str) for side in entry.shape] == [axis in dynamic for axis in range(4)]
    torch_module = program.module()
    for count, height, width in sizes:
        images = torch.randn(count, 3, height, width)
        with torch.no_grad():
            expected = network(images)
            assert expected.std() > 0.01
            # torch.export holds a map of one pixel apart; ONNX does not.
            if min(height, width) > 32:
                torch.testing.assert_close(torch_module(images), expected, atol=1e-5, rtol=1e-4)
        [logits] = session.run(None, {entry.name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-3)


def test_a_dense_head_is_the_same_while_exporting(monkeypatch: pytest.MonkeyPatch) -> None:
    # The spare row and column that keep the sizes free must not count.
    network = build(replace(PAPERS, head="dense"))
    with torch.no_grad():
        for sides in ((224, 224), (256, 320)):
            images = torch.randn(2, 3, *sides)
            expected = network(images)
            with monkeypatch.context() as exporting:
                exporting.setattr(torch.compiler, "is_exporting", lambda: True)
                padded = network(images)
            torch.testing.assert_close(padded, expected, atol=1e-5, rtol=1e-4)
