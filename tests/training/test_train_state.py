import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vggkit.models.vgg import VGG
from vggkit.training import train_state as train_state_module
from vggkit.training.objective import Objective
from vggkit.training.parameter_groups import list_groups
from vggkit.training.recipe import Recipe
from vggkit.training.train_state import TrainState

CPU = torch.device("cpu")
RECIPE = Recipe(trainable="all", precision="fp32", learning_rate=0.05, weight_decay=5e-4)
DECAYS = {"sgd": 5e-4, "adamw": 0.05, "muon": 0.05}
RATES = {"sgd": 0.05, "adamw": 1e-3, "muon": 2e-3}


def build(configuration, *, seed=0):
    torch.manual_seed(seed)
    return VGG(configuration)


def learn(configuration, *, epoch=1, **changes):
    train_state = TrainState(build(configuration), replace(RECIPE, **changes), device=CPU)
    train_state.start_epoch(epoch)
    return train_state


def batches(count, size=6):
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 3, 32, 32, generator=draw), torch.randint(3, (size,), generator=draw))
        for _ in range(count)
    ]


def go(train_state, given, *, start=0, rate=0.05):
    """A step for each batch; the losses."""
    losses = []
    for number, (images, targets) in enumerate(given[start:], start=start):
        losses.append(train_state.compute(images, targets, draw=number).item())
        assert train_state.step(rate, number=number)
    return losses


def copy_state(train_state):
    return {key: value.clone() for key, value in train_state.state().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.0},
        {"clip_norm": 0.0},
        {"clip_norm": 0.05},
        {"layer_decay": 0.7},
        {"label_smoothing": 0.1},
    ],
    ids=str,
)
def test_sgd_is_torchs_in_a_plain_loop(tiny, changes):
    recipe = replace(RECIPE, **changes)
    train_state, peer = learn(tiny, **changes), build(tiny).to(memory_format=torch.channels_last).train()
    depths = {place: group.depth for group in list_groups(tiny) for place in group.modules}
    groups = [
        {
            "params": [value],
            "lr": 0.05 * recipe.layer_decay ** depths[key.rpartition(".")[0]],
            "weight_decay": 5e-4 if value.dim() > 1 else 0.0,
        }
        for key, value in peer.named_parameters()
    ]
    optimizer = torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    given = batches(6)
    for (images, targets), loss in zip(given, go(train_state, given), strict=True):
        expected = F.cross_entropy(
            peer(images.to(memory_format=torch.channels_last)), targets, label_smoothing=recipe.label_smoothing
        )
        optimizer.zero_grad()
        expected.backward()
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(peer.parameters(), recipe.clip_norm)
        optimizer.step()
        assert loss == pytest.approx(expected.item(), abs=1e-5)
    for (key, value), other in zip(
        train_state.network.state_dict().items(), peer.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, other, atol=2e-6, rtol=2e-5, msg=key)


def test_adamw_is_torchs_in_a_plain_loop(tiny):
    train_state = learn(tiny, optimizer="adamw", weight_decay=0.05)
    peer = build(tiny).to(memory_format=torch.channels_last).train()
    matrices = [value for value in peer.parameters() if value.dim() > 1]
    others = [value for value in peer.parameters() if value.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], lr=1e-3
    )
    given = batches(3)
    go(train_state, given, rate=1e-3)
    for images, targets in given:
        optimizer.zero_grad()
        F.cross_entropy(peer(images.to(memory_format=torch.channels_last)), targets).backward()
        nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
    # A bias below a batch norm has no gradient but rounding, which AdamW makes steps of.
    convolutions = {f"features.{layer.index}.bias" for layer in tiny.trunk if layer.kind == "conv"}
    for (key, value), other in zip(train_state.network.named_parameters(), peer.parameters(), strict=True):
        if key not in convolutions:
            torch.testing.assert_close(value, other, atol=2e-5, rtol=1e-3, msg=key)


def test_muon_steps_kernels_as_torchs_does_matrices(tiny):
    """The columns of a matrix may come in any order: Muon's steps do not depend on it."""
    train_state = learn(tiny, optimizer="muon", weight_decay=0.05)
    kernels = {
        key: value.detach().clone()
        for key, value in train_state.network.named_parameters()
        if key.startswith("features.") and value.dim() == 4
    }
    matrices = {key: value.reshape(len(value), -1).clone() for key, value in kernels.items()}
    peer = torch.optim.Muon(
        list(matrices.values()), lr=2e-3, momentum=0.9, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
    )
    twin = copy.deepcopy(train_state.network)
    for number, (images, targets) in enumerate(batches(3)):
        twin.load_state_dict(train_state.network.state_dict())
        twin.train().zero_grad()
        F.cross_entropy(twin(images), targets).backward()
        length = nn.utils.get_total_norm([value.grad for value in twin.parameters()])
        named = dict(twin.named_parameters())
        for key, matrix in matrices.items():
            matrix.grad = (named[key].grad / max(1.0, float(length))).reshape(matrix.shape)
        peer.step()
        go_on = train_state.compute(images, targets, draw=number)
        assert torch.isfinite(go_on)
        train_state.step(2e-3, number=number)
    now = dict(train_state.network.named_parameters())
    for key, matrix in matrices.items():
        moved = (matrix.reshape(kernels[key].shape) - kernels[key]).abs().max()
        difference = (now[key] - matrix.reshape(kernels[key].shape)).abs().max()
        assert difference < 0.05 * moved, key  # Muon's iterations are in bfloat16


@pytest.mark.sweep(5)
@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "amp"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_restored_learner_goes_on_bit_for_bit(tiny, optimizer, precision, ema_decay):
    changes = {"optimizer": optimizer, "precision": precision, "ema_decay": ema_decay}
    changes |= {"weight_decay": DECAYS[optimizer]}
    configuration = replace(tiny, dropout=0.3, hidden=(8,))
    given, rate = batches(5), RATES[optimizer]
    whole = learn(configuration, **changes)
    losses = go(whole, given[:3], rate=rate)
    kept = copy_state(whole)
    losses += go(whole, given, start=3, rate=rate)

    other = TrainState(build(configuration, seed=5), replace(RECIPE, **changes), device=CPU)
    other.start_epoch(1)
    go(other, given[:1], rate=rate)  # what it did before is forgotten
    other.restore(kept)
    assert_equal(copy_state(other), kept)
    assert go(other, given, start=3, rate=rate) == losses[3:]
    assert_equal(other.state(), whole.state())
    assert any(key.startswith("optimizer/") for key in kept)


def test_a_state_from_before_the_first_step_can_be_gone_back_to(tiny):
    train_state = learn(tiny, optimizer="adamw", weight_decay=0.05)
    kept = copy_state(train_state)
    first = go(train_state, batches(3))
    train_state.restore(kept)
    assert go(train_state, batches(3)) == first


def test_the_twin_computes_in_bfloat16_with_the_networks_own_batch_norms(tiny):
    train_state = learn(tiny, precision="bf16")
    pairs = list(zip(train_state.compute_copy.modules(), train_state.network.modules(), strict=True))
    for mine, theirs in pairs:
        if isinstance(mine, nn.BatchNorm2d):
            assert mine is theirs
            assert mine.weight.dtype == torch.float32
        elif isinstance(mine, nn.Conv2d | nn.Linear):
            assert mine is not theirs
            assert mine.weight.dtype == torch.bfloat16
    go(train_state, batches(2))
    for mine, theirs in pairs:
        if isinstance(mine, nn.Conv2d | nn.Linear):
            assert torch.equal(mine.weight, theirs.weight.to(torch.bfloat16))
    assert all(value.dtype == torch.float32 for value in train_state.network.parameters())
    assert train_state.network.features[1].num_batches_tracked == 2


@pytest.mark.parametrize("precision", ["bf16", "amp"])
def test_lower_precision_follows_float32(tiny, precision):
    given = batches(1, size=24) * 40
    exact, near = (go(learn(tiny, precision=kind), given) for kind in ("fp32", precision))
    assert exact[-1] < 0.5 * exact[0], "it learns these by heart"
    assert near == pytest.approx(exact, abs=0.1)


def test_small_steps_are_not_lost_in_bfloat16(tiny):
    """Each is below half of bfloat16's spacing; together they move the weights all the same."""
    train_state = learn(tiny, precision="bf16", momentum=0.0, weight_decay=0.0)
    before = copy.deepcopy(train_state.network.state_dict())
    go(train_state, batches(1) * 20, rate=1e-5)
    key = "features.0.weight"
    moved = train_state.network.state_dict()[key] - before[key]
    assert moved.abs().max() > 0
    assert moved.abs().max() < 2**-9 * before[key].abs().max()


SPLITS = {"whole": [12], "halves": [6, 6], "uneven": [7, 4, 1], "singles": [1] * 12}
WEIGHTS = torch.tensor([0.1, 1.0, 10.0])


@pytest.mark.parametrize("split", list(SPLITS))
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["plain", "weights", "shares", "weights and shares"])
def test_a_step_is_torchs_of_all_its_batches_together(tiny, split, smoothing, kind):
    """In float64 and at once, whatever batches they came in, the rare classes crowded into one of them."""
    weights = WEIGHTS if "weights" in kind else None
    images = batches(1, size=12)[0][0]
    targets = torch.tensor([0, 0, 0, 0, 1, 0, 0, 2, 2, 1, 0, 2])
    if "shares" in kind:
        targets = torch.rand(12, 3, generator=torch.Generator().manual_seed(2)).softmax(1)
    peer = build(replace(tiny, batch_norm=False)).double().train()
    expected = F.cross_entropy(
        peer(images.double()),
        targets.double() if "shares" in kind else targets,
        weight=None if weights is None else weights.double(),
        label_smoothing=smoothing,
    )
    expected.backward()
    recipe = replace(RECIPE, label_smoothing=smoothing, momentum=0.0, weight_decay=0.0, clip_norm=0.0)
    train_state = TrainState(
        build(replace(tiny, batch_norm=False)),
        recipe,
        device=CPU,
        objective=Objective(label_smoothing=smoothing, weights=weights),
    )
    train_state.start_epoch(1)
    for number in range(2):  # what a step divides by is its own
        before = {key: value.detach().clone() for key, value in train_state.network.named_parameters()}
        total = weight = 0.0
        for part, rows in zip(images.split(SPLITS[split]), targets.split(SPLITS[split]), strict=True):
            loss = train_state.compute(part, rows, draw=0).item()
            total, weight = total + loss * train_state.weigh(rows), weight + train_state.weigh(rows)
        rate = 1e-3 if number == 0 else 0.0
        assert train_state.step(rate, number=number)
        if number == 0:
            assert total / weight == pytest.approx(expected.item(), rel=1e-5)
            for key, value in peer.named_parameters():
                moved = (before[key] - dict(train_state.network.named_parameters())[key].detach()) / rate
                torch.testing.assert_close(
                    moved.double(), value.grad, rtol=2e-3, atol=3e-4 * float(value.grad.abs().max()) + 1e-4, msg=key
                )


@pytest.mark.parametrize("split", ["uneven", "singles"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "amp"])
def test_a_gradient_is_clipped_by_the_length_that_it_has_in_the_whole_step(tiny, split, precision):
    images, targets = batches(1, size=12)[0][0], torch.tensor([0, 0, 0, 0, 1, 0, 0, 2, 2, 1, 0, 2])
    moved = []
    for sizes in (SPLITS[split], [12]):
        train_state = TrainState(
            build(replace(tiny, batch_norm=False)),
            replace(RECIPE, clip_norm=0.5, precision=precision, momentum=0.0, weight_decay=0.0),
            device=CPU,
            objective=Objective(weights=WEIGHTS),
        )
        train_state.start_epoch(1)
        before = copy.deepcopy(list(train_state.network.parameters()))
        for part, rows in zip(images.split(sizes), targets.split(sizes), strict=True):
            train_state.compute(part, rows, draw=0)
        train_state.step(1.0, number=0)
        steps = [old - new for old, new in zip(before, train_state.network.parameters(), strict=True)]
        moved.append(nn.utils.get_total_norm(steps).item())
    assert moved[1] == pytest.approx(0.5, rel=1e-3), "the gradient is longer than that"
    assert moved[0] == pytest.approx(moved[1], rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("trainable", ["top", "all"])
def test_frozen_batch_norm_stays_bit_for_bit(tiny, precision, trainable):
    train_state = learn(tiny, freeze_norm=True, precision=precision, trainable=trainable)
    with torch.no_grad():
        train_state.network.features[1].running_mean += 0.3
    before = copy.deepcopy(train_state.network.state_dict())
    go(train_state, batches(3))
    after = train_state.network.state_dict()
    norms = {f"features.{layer.index}" for layer in tiny.trunk if layer.kind == "bn"}
    for key, value in before.items():
        if key.rpartition(".")[0] in norms:
            assert torch.equal(value, after[key]), key
    last = tiny.fully_connected[-1].index
    assert not torch.equal(before[f"classifier.{last}.weight"], after[f"classifier.{last}.weight"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_layers_do_not_move_nor_decay(tiny, optimizer, precision):
    train_state = learn(tiny, optimizer=optimizer, precision=precision, trainable="top", weight_decay=0.5)
    before = copy.deepcopy(train_state.network.state_dict())
    go(train_state, batches(3))
    moved = {
        key
        for key, value in train_state.network.state_dict().items()
        if not torch.equal(value, before[key]) and value.dim() == 4
    }
    top = {f"features.{layer.index}.weight" for layer in tiny.trunk if layer.name in ("conv5_1", "conv5_2")}
    assert moved == top
    frozen = [layer.index for layer in tiny.trunk if layer.kind == "bn" and not layer.name.startswith("bn5")]
    for index in frozen:
        for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            name = f"features.{index}.{key}"
            assert torch.equal(before[name], train_state.network.state_dict()[name]), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradual_opens_layers_as_told(tiny, optimizer, precision):
    train_state = learn(
        tiny, trainable="gradual", epochs=4, optimizer=optimizer, precision=precision, weight_decay=0.5
    )
    blocks = {f"features.{layer.index}.weight": int(layer.name[4]) for layer in tiny.trunk if layer.kind == "conv"}
    for epoch, opened in ((1, set()), (2, {4, 5}), (3, {1, 2, 3, 4, 5})):
        train_state.start_epoch(epoch)
        before = copy.deepcopy(train_state.network.state_dict())
        go(train_state, batches(2))
        after = train_state.network.state_dict()
        assert {block for key, block in blocks.items() if not torch.equal(before[key], after[key])} == opened


def test_the_average_by_its_formula_follows_faster_at_first(tiny):
    train_state = learn(tiny, ema_decay=0.5)
    average = train_state.average
    assert average is not None
    assert train_state.evaluated is average
    expected = [value.detach().clone() for value in train_state.network.parameters()]
    for number, batch in enumerate(batches(12)):
        go(train_state, [batch] * (number + 1), start=number)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = [
            decay * old + (1 - decay) * new.detach()
            for old, new in zip(expected, train_state.network.parameters(), strict=True)
        ]
    for value, other in zip(average.parameters(), expected, strict=True):
        torch.testing.assert_close(value, other, atol=1e-6, rtol=1e-5)
    for value, other in zip(average.buffers(), train_state.network.buffers(), strict=True):
        assert torch.equal(value, other)
    assert not any(value.requires_grad for value in average.parameters())


def test_a_gradient_that_is_no_number_moves_nothing(tiny):
    train_state = learn(tiny, ema_decay=0.9)
    given = batches(3)
    go(train_state, given[:1])
    before = copy_state(train_state)
    images, targets = given[1]
    train_state.compute(images * float("nan"), targets, draw=1)
    assert not train_state.step(0.05, number=1)
    for key, value in train_state.state().items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(value, before[key]), key


def test_dropout_depends_on_seed_and_draw_alone_and_leaves_torchs_generator(tiny):
    dropping = replace(tiny, dropout=0.5, hidden=(16,))
    images, targets = batches(1)[0]
    state = torch.random.get_rng_state()
    train_state = TrainState(build(dropping), RECIPE, device=CPU)
    torch.random.set_rng_state(state)
    train_state.start_epoch(1)
    first = train_state.compute(images, targets, draw=3).item()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(5)
    assert train_state.compute(images, targets, draw=3).item() == first
    assert train_state.compute(images, targets, draw=4).item() != first
    other = TrainState(build(dropping), replace(RECIPE, seed=1), device=CPU)
    other.start_epoch(1)
    assert other.compute(images, targets, draw=3).item() != first


def test_class_weights_and_shares_of_classes_are_torchs(tiny):
    network, (images, targets) = build(tiny), batches(1)[0]
    weights = torch.tensor([0.5, 1.0, 2.0])
    logits = copy.deepcopy(network).train()(images)
    train_state = TrainState(network, RECIPE, device=CPU, objective=Objective(weights=weights))
    train_state.start_epoch(1)
    expected = F.cross_entropy(logits, targets, weight=weights).item()
    assert train_state.compute(images, targets, draw=0).item() == pytest.approx(expected, abs=1e-5)
    shares = torch.rand(6, 3).softmax(1)
    plain = learn(tiny)
    expected = F.cross_entropy(logits, shares).item()
    assert plain.compute(images, shares, draw=0).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_float16_scales_its_loss_and_goes_on_bit_for_bit(tiny, optimizer, monkeypatch):
    """As on GPUs that have no bfloat16."""
    monkeypatch.setattr(train_state_module, "choose_autocast", lambda device: torch.float16)
    changes = {"precision": "amp", "optimizer": optimizer, "weight_decay": DECAYS[optimizer]}
    given, rate = batches(5), RATES[optimizer]
    whole = learn(tiny, **changes)
    losses = go(whole, given[:3], rate=rate)
    assert losses == pytest.approx(
        go(learn(tiny, **changes | {"precision": "fp32"}), given[:3], rate=rate), abs=0.02
    )
    kept = copy_state(whole)
    losses += go(whole, given, start=3, rate=rate)
    other = learn(tiny, **changes)
    other.restore(kept)
    assert go(other, given, start=3, rate=rate) == losses[3:]
    assert_equal(other.state(), whole.state())


def test_a_float16_gradient_that_overflows_moves_nothing_and_halves_the_scale(tiny, monkeypatch):
    monkeypatch.setattr(train_state_module, "choose_autocast", lambda device: torch.float16)
    train_state = learn(tiny, precision="amp")
    images, targets = batches(1)[0]
    kept = copy_state(train_state)
    train_state.restore(kept | {"scaler/scale": torch.tensor(2.0**40, dtype=torch.float64)})
    before = copy.deepcopy(list(train_state.network.parameters()))
    train_state.compute(images, targets, draw=0)
    assert train_state.step(0.05, number=0), "it is no divergence"
    assert all(map(torch.equal, before, train_state.network.parameters()))
    assert train_state.state()["scaler/scale"] == 2.0**39


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_last_layer_learns_as_if_it_read_numbers_of_about_one(tiny, optimizer):
    """A peer whose head reads features divided by the scale, from weights multiplied by it: the same function, and
    after steps with clipping and decay still the same.
    """
    scale, rate = 8.0, RATES[optimizer]
    tiny = replace(tiny, batch_norm=False)  # biases before a norm have gradients of rounding alone
    recipe = replace(RECIPE, optimizer=optimizer, weight_decay=0.1, clip_norm=0.5)
    train_state = TrainState(build(tiny), recipe, device=CPU, feature_scale=scale)
    train_state.start_epoch(1)
    peer = build(tiny).to(memory_format=torch.channels_last).train()
    with torch.no_grad():
        peer.classifier[-1].weight.mul_(scale)
    decaying = [value for value in peer.parameters() if value.dim() > 1]
    others = [value for value in peer.parameters() if value.dim() == 1]
    groups = [{"params": decaying, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    given = batches(4)
    if optimizer == "sgd":
        stepper = torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, nesterov=True)
    else:
        stepper = torch.optim.AdamW(groups, lr=rate)
    for number, (images, targets) in enumerate(given):
        train_state.compute(images, targets, draw=number)
        train_state.step(rate, number=number)
        stepper.zero_grad()
        last = peer.classifier[-1]
        logits = F.linear(peer.describe(images) / scale, last.weight, last.bias)
        F.cross_entropy(logits, targets).backward()
        nn.utils.clip_grad_norm_(peer.parameters(), 0.5)
        stepper.step()
    theirs = dict(peer.named_parameters())
    for key, value in train_state.network.named_parameters():
        expected = theirs[key] / scale if key == "classifier.0.weight" else theirs[key]
        torch.testing.assert_close(value, expected, rtol=2e-3, atol=2e-5)
