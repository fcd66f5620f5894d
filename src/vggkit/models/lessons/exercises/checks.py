"""What each exercise is checked for: a check yields what is wrong, in words."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d, relu

from vggkit.models.lessons.explicit import VGG11

Check = Callable[[Any], Iterator[str]]


def check_output_side(output_side: Any) -> Iterator[str]:
    """Exercise 1."""
    reasons = {
        (224, 3, 1, 1): "a 3×3 window with padding 1 keeps the size",
        (224, 2, 0, 2): "a 2×2 pool halves it",
        (7, 2, 0, 2): "a window that does not fit is dropped, so 7 becomes 3",
        (224, 3, 0, 1): "without padding a 3×3 window loses 2",
        (32, 5, 2, 1): "padding is added on both sides",
        (227, 11, 0, 4): "AlexNet's first layer gives 55",
    }
    for (side, kernel, padding, stride), reason in reasons.items():
        expected, found = (side + 2 * padding - kernel) // stride + 1, output_side(side, kernel, padding, stride)
        if found != expected:
            yield f"output_side({side}, {kernel}, {padding}, {stride}) is {found!r}, not {expected}: {reason}"


def check_count_convolution(count_convolution: Any) -> Iterator[str]:
    """Exercise 2."""
    for inputs, outputs, kernel, height, width in (
        (3, 64, 3, 224, 224),
        (64, 128, 3, 112, 112),
        (256, 256, 1, 7, 9),
    ):
        layer = nn.Conv2d(inputs, outputs, kernel)
        parameters = sum(values.numel() for values in layer.parameters())
        work = layer.weight.numel() * height * width
        found = count_convolution(inputs, outputs, kernel, height, width)
        call = f"count_convolution({inputs}, {outputs}, {kernel}, {height}, {width})"
        if not isinstance(found, tuple) or len(found) != 2:
            yield f"{call} is {found!r}; return two numbers: parameters, multiply-adds"
            return
        if found[0] != parameters:
            hint = "; the biases are missing" if found[0] == layer.weight.numel() else ""
            yield f"{call}: {found[0]:,} parameters, and nn.Conv2d has {parameters:,}{hint}"
        if found[1] != work:
            hint = "; each weight is used at every position of the map" if found[1] < work else ""
            yield f"{call}: {found[1]:,} multiply-adds in place of {work:,}{hint}"


def check_receptive_field(receptive_field: Any) -> Iterator[str]:
    """Exercise 3."""
    cases = {
        ((3, 1),): "one 3×3",
        ((3, 1), (3, 1)): "two 3×3",
        ((3, 1), (3, 1), (3, 1)): "three 3×3",
        ((3, 1), (2, 2), (3, 1)): "a 3×3, a pool, a 3×3: behind a pool each step is two pixels",
        ((3, 1), (2, 2)) * 2 + ((3, 1), (3, 1), (2, 2)) * 3: "VGG11 up to pool5",
    }
    for layers, name in cases.items():
        side, step = 1, 1
        for kernel, stride in layers:
            side, step = side + (kernel - 1) * step, step * stride
        found = receptive_field(list(layers))
        if found != side:
            yield f"{name}: {found!r} pixels in place of {side}"


def check_conv_block(conv_block: Any) -> Iterator[str]:
    """Exercise 4."""
    torch.manual_seed(0)
    block = conv_block(3, 8, 12)
    if not isinstance(block, nn.Sequential):
        yield f"conv_block returns a {type(block).__name__}; return an nn.Sequential"
        return
    convolutions = [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)]
    if [layer.out_channels for layer in convolutions] != [8, 12]:
        yield f"conv_block(3, 8, 12) has convolutions of {[each.out_channels for each in convolutions]} channels"
        return
    if [layer.in_channels for layer in convolutions] != [3, 8]:
        yield "each convolution reads the channels that the one before it gives: 3, then 8"
        return
    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        found = block(images)
        expected = images
        for layer in convolutions:
            expected = relu(layer(expected))
        expected = max_pool2d(expected, 2)
    if found.shape != (2, 12, 6, 6):
        yield (
            f"images of 12×12 pixels become a map of {tuple(found.shape[2:])}, not (6, 6): padding=1 keeps the "
            "size, and one pool halves it"
        )
    elif not torch.allclose(found, expected, atol=1e-6):
        yield "the values are others than convolution, ReLU, convolution, ReLU, pool give"


def check_vgg11(network_class: Any) -> Iterator[str]:
    """Exercise 5, on the meta device: shapes without memory."""
    with torch.device("meta"):
        network, reference = network_class(1000), VGG11(1000)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    widths = [layer.out_channels for layer in convolutions]
    expected = [64, 128, 256, 256, 512, 512, 512, 512]
    if widths != expected:
        names = {10: ", that is VGG13", 13: ", that is VGG16", 16: ", that is VGG19"}
        also = names.get(len(widths), "")
        yield f"it has {len(widths)} convolutions{also}, of {widths} channels; A has {expected}"
        return
    matrices = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    sizes = [(layer.in_features, layer.out_features) for layer in matrices]
    if sizes != [(25088, 4096), (4096, 4096), (4096, 1000)]:
        yield f"its matrices are {sizes}; the paper's are (25088, 4096), (4096, 4096), (4096, classes)"
        return
    count, right = (sum(values.numel() for values in each.parameters()) for each in (network, reference))
    if count != right:
        yield f"it has {count:,} parameters in place of {right:,}: look at kernels and biases"
    logits = network(torch.empty(2, 3, 224, 224, device="meta"))
    if not isinstance(logits, Tensor) or logits.shape != (2, 1000):
        yield f"images (2, 3, 224, 224) give {getattr(logits, 'shape', logits)!r}; logits are (2, 1000)"
    dropouts = [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)]
    if dropouts != [0.5, 0.5]:
        yield f"nn.Dropout(0.5) belongs behind the first two matrices; it has {dropouts or 'none'}"
    with torch.device("meta"):
        if [layer.out_features for layer in network_class(7).modules() if isinstance(layer, nn.Linear)][-1] != 7:
            yield "num_classes=7 does not give 7 logits"


def check_name_network(name_network: Any) -> Iterator[str]:
    """Exercise 6."""
    for count, name in {8: "VGG11", 10: "VGG13", 13: "VGG16", 16: "VGG19", 9: "none"}.items():
        layers = [nn.Conv2d(1, 1, 3) for _ in range(count)]
        nested = nn.Sequential(nn.Sequential(*layers[:3]), nn.ModuleDict({"rest": nn.Sequential(*layers[3:])}))
        found = name_network(nested)
        if found != name:
            hint = "; look at network.modules(), which are nested" if found == "none" else ""
            yield f"a network of {count} convolutions is {name!r}, and the function returns {found!r}{hint}"


def check_initialize(initialize: Any) -> Iterator[str]:
    """Exercise 7."""
    torch.manual_seed(0)
    outer, nested = nn.Conv2d(48, 96, 3), nn.Conv2d(96, 64, 1)
    network = nn.Sequential(outer, nn.BatchNorm2d(96), nn.Sequential(nested), nn.Linear(64, 10))
    before = copy.deepcopy(network.state_dict())
    initialize(network)
    for layer, name in ((outer, "the 3×3 convolution of 96 channels"), (nested, "a nested 1×1 convolution")):
        values = layer.weight.detach()
        wanted = (2 / (values.shape[0] * values[0, 0].numel())) ** 0.5
        if abs(float(values.std()) / wanted - 1) > 0.05:
            fan_in = (2 / values[0].numel()) ** 0.5
            hint = "; this is fan_in" if abs(float(values.std()) / fan_in - 1) < 0.05 else ""
            yield f"{name}: standard deviation {float(values.std()):.4f} in place of {wanted:.4f}{hint}"
        elif abs(float(values.mean())) > 0.1 * wanted:
            yield f"{name}: the mean is {float(values.mean()):.4f}, not 0"
        elif float(values.abs().max()) < 2.5 * wanted:
            yield f"{name}: no value is far from 0; draw from a normal distribution"
        if layer.bias is None or bool(layer.bias.any()):
            yield f"{name}: its biases are not 0"
    changed = [
        key
        for key in ("1.weight", "1.bias", "3.weight", "3.bias")
        if not network.state_dict()[key].equal(before[key])
    ]
    if changed:
        yield f"{', '.join(changed)} belong to no convolution, and were changed"


def check_train_step(train_step: Any) -> Iterator[str]:
    """Exercise 8."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    reference = copy.deepcopy(network).train()
    images, labels = torch.randn(6, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer, other = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (network, reference))
    for step in (1, 2):
        other.zero_grad()
        loss = cross_entropy(reference(images), labels)
        loss.backward()
        other.step()
        found = train_step(network, optimizer, images, labels)
        if not isinstance(found, float):
            yield f"it returns a {type(found).__name__}; return the loss as a float"
            return
        if not network.training:
            yield "the network is still in evaluation mode; call network.train()"
            return
        if abs(found - float(loss.detach())) > 1e-5:
            yield f"step {step}: the loss is {found:.4f} in place of {float(loss.detach()):.4f}"
            return
        same = [
            torch.allclose(a, b, atol=1e-6)
            for a, b in zip(network.parameters(), reference.parameters(), strict=True)
        ]
        if not all(same):
            hint = (
                "were the old gradients set to 0?"
                if step == 2
                else "were backward() and step() called, in this order?"
            )
            yield f"step {step}: the weights are not those of one step; {hint}"
            return


def check_fold_batch_norm(fold_batch_norm: Any) -> Iterator[str]:
    """Exercise 9."""
    torch.manual_seed(0)
    for bias in (True, False):
        conv, bn = nn.Conv2d(3, 5, 3, padding=1, bias=bias), nn.BatchNorm2d(5).eval()
        with torch.no_grad():
            for values in (bn.weight, bn.bias, bn.running_mean):
                assert values is not None
                values.normal_()
            assert bn.running_var is not None
            bn.running_var.uniform_(0.2, 3)
        before = copy.deepcopy((conv.state_dict(), bn.state_dict()))
        folded, images = fold_batch_norm(conv, bn), torch.randn(2, 3, 6, 6)
        if not isinstance(folded, nn.Conv2d):
            yield f"it returns a {type(folded).__name__}; return an nn.Conv2d"
            return
        with torch.no_grad():
            expected, found = bn(conv(images)), folded(images)
        given = "a convolution with a bias" if bias else "a convolution without a bias"
        if found.shape != expected.shape:
            yield f"{given}: the map is {tuple(found.shape)} in place of {tuple(expected.shape)}; keep the padding"
        elif not torch.allclose(found, expected, atol=1e-4):
            yield f"{given}: values differ by up to {float((found - expected).abs().max()):.3f}"
        after = (conv.state_dict(), bn.state_dict())
        if any(not one[key].equal(two[key]) for one, two in zip(before, after, strict=True) for key in one):
            yield "the given layers were changed; work on copies"
            return


def check_rename_weights(rename_weights: Any) -> Iterator[str]:
    """Exercise 10."""
    places = (0, 3, 6, 8, 11, 13, 16, 18)
    names = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2")
    layers = [f"features.{place}" for place in places] + [f"classifier.{place}" for place in (0, 3, 6)]
    pairs = {
        f"{layer}.{kind}": f"{name}.{kind}"
        for layer, name in zip(layers, (*names, "fc6", "fc7", "fc8"), strict=True)
        for kind in ("weight", "bias")
    }
    weights = {key: torch.tensor(float(number)) for number, key in enumerate(pairs)}
    found = rename_weights(dict(weights))
    if not isinstance(found, dict):
        yield f"it returns a {type(found).__name__}; return a dict"
        return
    for key, name in pairs.items():
        if name not in found:
            yield f"{name} is missing"
            return
        if not torch.equal(found[name], weights[key]):
            yield f"{name} is not {key}"
            return
    if len(found) > len(pairs):
        yield f"{sorted(set(found) - set(pairs.values()))[0]} is a name too many"


CHECKS: Final[tuple[Check, ...]] = (
    check_output_side,
    check_count_convolution,
    check_receptive_field,
    check_conv_block,
    check_vgg11,
    check_name_network,
    check_initialize,
    check_train_step,
    check_fold_batch_norm,
    check_rename_weights,
)
"""In the order of the tasks."""
