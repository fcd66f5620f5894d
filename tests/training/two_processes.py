"""Run by each of two processes: every check compares them with one process; prints what failed, as JSON."""

import json
import sys
import traceback
from dataclasses import replace

import numpy as np
import torch

from vggkit.images.dataset import ImageSample
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG
from vggkit.training.distributed.joining import join_processes
from vggkit.training.distributed.process_group import SINGLE
from vggkit.training.distributed.traffic import count_traffic
from vggkit.training.objective import Objective
from vggkit.training.recipe import Recipe
from vggkit.training.train_state import TrainState
from vggkit.training.whitening import whiten_first_layer

CPU = torch.device("cpu")
SMALL = replace(configure("vgg11", num_classes=3, head="pool"), blocks=((6,), (8,), (8, 8)), dropout=0.0)
WITH_FC = replace(
    configure("vgg11", num_classes=3, dropout=0.0), blocks=((6,), (8,), (8, 8)), hidden=(32, 16), grid=4
)
RECIPE = Recipe(trainable="all", precision="fp32", learning_rate=0.05, weight_decay=5e-4, batch_size=6)


def build(configuration, recipe, group, **options):
    torch.manual_seed(0)
    state = TrainState(VGG(configuration), recipe, device=CPU, group=group, **options)
    state.start_epoch(1)
    return state


def make_batches(sizes, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, 32, 32, generator=draw), torch.randint(3, (size,), generator=draw)) for size in sizes
    ]


def learn(state, group, batches, *, accumulate=1, start=0, rate=0.05):
    """A step for every `accumulate` batches, of each of which the process has its share."""
    for number, (images, targets) in enumerate(batches, start=start):
        share = group.find_share(len(images))
        is_last = (number + 1) % accumulate == 0
        state.compute(images[share], targets[share], draw=number, is_last=is_last)
        if is_last:
            assert state.step(rate, number=number)


def compare(
    group, configuration, *, sizes=(6, 6, 5), accumulate=1, tolerance=1e-5, rate=0.05, options=None, **changes
):
    """Two processes with half of each batch end with the weights of one with the whole of it."""
    recipe, options = replace(RECIPE, accumulate=accumulate, **changes), options or {}
    batches = make_batches(sizes)
    together = build(configuration, recipe, group, **options)
    learn(together, group, batches, accumulate=accumulate, rate=rate)
    found = together.state()
    alone = build(configuration, recipe, SINGLE, **options)
    learn(alone, SINGLE, batches, accumulate=accumulate, rate=rate)
    expected = alone.state()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        distance = (found[key].double() - value.double()).abs().max()
        assert distance <= tolerance * (1 + value.double().abs().max()), (key, distance)
    start = build(configuration, recipe, SINGLE, **options).network.state_dict()
    moved = [(found[f"network/{key}"] - value).abs().max() for key, value in start.items() if value.dim()]
    assert max(moved) > 5 * tolerance, "the weights learn"
    # Every process has the same weights, bit for bit.
    sums = [float(value.double().sum()) for value in together.network.state_dict().values()]
    assert group.maximum(*sums) == tuple(sums)


def check_plain(group):
    compare(group, SMALL)


def check_class_weights_and_clipping(group):
    weights = Objective(weights=torch.tensor([0.5, 1.0, 3.0]))
    compare(group, SMALL, options={"objective": weights}, clip_norm=0.01)


def check_accumulation(group):
    compare(group, SMALL, sizes=(6, 5, 6, 3), accumulate=2)


def check_adamw_with_average(group):
    compare(group, SMALL, optimizer="adamw", weight_decay=0.05, ema_decay=0.9, rate=1e-3)


def check_muon(group):
    compare(group, SMALL, optimizer="muon", weight_decay=0.05, rate=2e-3, tolerance=1e-4)


def check_bf16(group):
    compare(group, SMALL, precision="bf16", tolerance=3e-3, accumulate=2, sizes=(6, 6, 6, 5))


def check_synchronized_norm(group):
    compare(group, replace(SMALL, batch_norm=True), sync_norm=True, tolerance=2e-5)


def check_whitening(group):
    """Every process has the first one's kernels, and none trains them."""
    network = VGG(SMALL)
    draws = np.random.default_rng(group.rank)  # images that differ, as no other reason would
    images = [ImageSample(str(n), "a", draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for n in range(4)]
    whiten_first_layer(network, images, choose_preprocessing(32), group=group)
    kernels = network.features[0].weight.flatten().tolist()
    assert group.maximum(*kernels) == tuple(kernels)
    options = {"whitening": True, "batch_norm_momentum": 0.4, "bias_rate_factor": 4.0}
    compare(group, replace(SMALL, batch_norm=True), sync_norm=True, tolerance=2e-5, **options)


def check_own_norm(group):
    """Statistics are the mean of the processes', and each process has them."""
    state = build(replace(SMALL, batch_norm=True), RECIPE, group)
    learn(state, group, make_batches((6, 6)))
    means = state.network.features[1].running_mean
    assert means.abs().max() > 0
    assert group.maximum(*means.tolist()) == tuple(means.tolist())


def check_split_head(group):
    compare(group, WITH_FC, split_head=True, clip_norm=0.05)
    compare(group, WITH_FC, split_head=True, sizes=(6, 5, 6, 3), accumulate=2)
    compare(group, WITH_FC, split_head=True, optimizer="adamw", weight_decay=0.05, ema_decay=0.9, rate=1e-3)
    compare(group, WITH_FC, split_head=True, precision="bf16", tolerance=3e-3)
    compare(group, replace(WITH_FC, hidden=(16,)), split_head=True, options={"feature_scale": 3.0})
    # Each process draws its own dropout; the weights are still everywhere the same.
    state = build(replace(WITH_FC, dropout=0.5), replace(RECIPE, split_head=True), group)
    learn(state, group, make_batches((6, 6)))
    total = float(sum(value.double().sum() for key, value in state.state().items() if key.startswith("network/")))
    assert group.maximum(total) == (total,)


def check_split_head_resumes(group):
    """A state is whole: two processes, or one, continue from it."""
    recipe, batches = replace(RECIPE, split_head=True, optimizer="adamw", ema_decay=0.9), make_batches((6,) * 6)
    whole = build(WITH_FC, recipe, group)
    learn(whole, group, batches[:3], rate=1e-3)
    saved = {key: value.clone() for key, value in whole.state().items()}
    learn(whole, group, batches[3:], start=3, rate=1e-3)
    again = build(WITH_FC, recipe, group)
    again.restore(saved)
    again.start_epoch(1)
    learn(again, group, batches[3:], start=3, rate=1e-3)
    expected, found = whole.state(), again.state()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    alone = build(WITH_FC, recipe, SINGLE)
    alone.restore(saved)
    learn(alone, SINGLE, batches[3:], start=3, rate=1e-3)
    for key, value in alone.state().items():
        torch.testing.assert_close(expected[key], value, rtol=1e-4, atol=1e-5)


def check_gradual(group):
    """Layers that begin to learn later are exchanged too; torch finds them when it is set up alone."""
    for split in (False, True):
        recipe = replace(RECIPE, trainable="gradual", epochs=4, split_head=split)
        states = build(WITH_FC, recipe, group), build(WITH_FC, recipe, SINGLE)
        for state, each in zip(states, (group, SINGLE), strict=True):
            for epoch in (1, 2, 4):
                state.start_epoch(epoch)
                learn(state, each, make_batches((6, 6), seed=epoch))
        found, expected = states[0].state(), states[1].state()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5)


def count_thin(value):
    """Numbers that PowerSGD sends of a gradient: two thin matrices, where these are less than half of it."""
    rows, columns = len(value), value.numel() // len(value)
    thin = (rows + columns) * min(4, rows, columns)
    return thin if value.dim() > 1 and 2 * thin < value.numel() else value.numel()


def check_compression(group):
    """Fewer bytes, nearly the same weights, and exact continuation."""
    batches, rate = make_batches((6,) * 24), 0.01
    results = {}
    for way in ("none", "bf16", "powersgd"):
        recipe = replace(RECIPE, gradient_compression=way)
        whole = build(WITH_FC, recipe, group)
        learn(whole, group, batches[:13], rate=rate)  # powersgd compresses from the eleventh step on
        saved = {key: value.clone() for key, value in whole.state().items()}
        with count_traffic() as traffic:
            learn(whole, group, batches[13:14], start=13, rate=rate)
        learn(whole, group, batches[14:], start=14, rate=rate)
        again = build(WITH_FC, recipe, group)
        again.restore(dict(group.lead_tensors(lambda saved=saved: (saved, None))[0]))
        again.start_epoch(1)
        learn(again, group, batches[13:], start=13, rate=rate)
        expected, found = whole.state(), again.state()
        different = [key for key, value in expected.items() if not torch.equal(found[key], value)]
        assert different == [], (way, different)
        results[way] = traffic.bytes, expected
    weights = sum(value.numel() for value in VGG(WITH_FC).parameters())
    assert 0 <= results["none"][0] - 4 * weights < 100
    assert 0 <= results["bf16"][0] - 2 * weights < 100
    assert 0 <= results["powersgd"][0] - 4 * sum(map(count_thin, VGG(WITH_FC).parameters())) < 200
    assert results["powersgd"][0] < results["none"][0] / 1.5
    exact = results["none"][1]
    for way, most in (("bf16", 0.02), ("powersgd", 0.5)):
        assert any(not torch.equal(exact[key], value) for key, value in results[way][1].items() if key in exact)
        lost = {
            key: (results[way][1][key] - exact[key]).norm() / exact[key].norm()
            for key in exact
            if key.startswith("network/")
        }
        assert max(lost.values()) < most, (way, lost)


def check_bytes_of_a_split_head(group):
    """At exact gradients the fully connected layers cost their activations, and not their weights."""
    wide = replace(WITH_FC, hidden=(512, 512))
    state = build(wide, replace(RECIPE, split_head=True), group)
    images, targets = make_batches((8,))[0]
    share = group.find_share(8)
    with count_traffic() as traffic:
        state.compute(images[share], targets[share], draw=0)
    convolutions = sum(value.numel() for value in VGG(wide).features.parameters()) + 3  # and the last bias
    reads, hidden, classes = 8 * 4 * 4, 512, 3
    activations = 8 * 2 * (reads + hidden + classes)
    assert traffic.bytes == 4 * (convolutions + activations) + 8  # and the number of images
    weights = 4 * sum(value.numel() for value in VGG(wide).parameters())
    assert weights > 10 * traffic.bytes


def check_exchange(group):
    """Uneven shares hold each value once."""
    for count in (1, 2, 7, 12):
        values = list(range(count))
        parts = group.gather(list(group.take_share(values)))
        assert not group.is_first or [value for part in parts for value in part] == values
    assert group.lead(lambda: "first" if group.is_first else 1 / 0) == "first"
    assert group.sum(1.0, float(group.rank)) == (2.0, 1.0)
    rows, text = group.lead_tensors(lambda: ({"a": torch.arange(3), "b": torch.ones(2, 2).bfloat16()}, "text"))
    assert text == "text"
    assert rows["a"].tolist() == [0, 1, 2]
    assert rows["b"].dtype == torch.bfloat16
    assert np.array_equal(group.lead(lambda: np.arange(4)), np.arange(4))


def main():
    failed = {}
    with join_processes("cpu") as group:
        for name, check in sorted(globals().items()):
            if name.startswith("check_") and (not sys.argv[1:] or name in sys.argv[1:]):
                try:
                    check(group)
                except Exception:
                    failed[name] = traceback.format_exc()
    print(json.dumps({"failed": failed}))


main()
