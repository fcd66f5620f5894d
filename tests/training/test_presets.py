import pytest

from vggkit.errors import UnknownName
from vggkit.models.configure import configure
from vggkit.training.optimizers import learning_rate_at
from vggkit.training.presets import PRESETS, find_preset
from vggkit.training.recipe import Recipe


def test_names():
    assert list(PRESETS) == ["quick", "small-images", "modern", "paper", "torchvision"]
    for name, preset in PRESETS.items():
        assert find_preset(name) is preset
        assert preset.recipe != Recipe()
        assert Recipe.from_dict(preset.recipe.to_dict()) == preset.recipe
    assert len({preset.about for preset in PRESETS.values()}) == len(PRESETS)
    with pytest.raises(UnknownName, match="Did you mean 'modern'"):
        find_preset("modren")


def rates(name, **fields):
    """The rate of each epoch's first step."""
    recipe = Recipe(**{**PRESETS[name].recipe.to_dict(), **fields})
    return [learning_rate_at(5 * epoch, recipe=recipe, steps_per_epoch=5) for epoch in range(recipe.epochs)]


def test_the_paper_divides_by_ten_three_times_in_74_epochs():
    found = rates("paper")
    assert len(found) == 74
    assert sorted({round(rate, 9) for rate in found}) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])
    recipe = PRESETS["paper"].recipe
    assert recipe.batch_size * recipe.accumulate == 256
    assert (recipe.momentum, recipe.weight_decay, recipe.clip_norm) == (0.9, 5e-4, 0)


def test_torchvision_divides_by_ten_each_30_of_90_epochs_and_leaves_the_rate_to_the_network():
    found = rates("torchvision", learning_rate=0.1)
    assert len(found) == 90
    assert (found[29], found[30], found[60]) == pytest.approx((0.1, 0.01, 0.001))
    recipe = PRESETS["torchvision"].recipe
    assert (recipe.learning_rate, recipe.weight_decay, recipe.batch_size * recipe.accumulate) == (None, 1e-4, 256)


def test_small_images_stay_small():
    recipe = PRESETS["small-images"].recipe
    assert (recipe.augmentation, recipe.mirror, recipe.rand_augment) == ("shift", "alternating", None)
    assert (recipe.optimizer, recipe.schedule, recipe.whitening, recipe.shift_pixels) == ("muon", "linear", True, 2)


def test_the_network_of_a_preset_gives_way_to_the_one_that_is_named():
    preset = PRESETS["small-images"]
    assert preset.choose_network(()) == preset.network
    configuration = configure(preset.network["model"], blocks=preset.network["blocks"], head="pool", num_classes=10)
    assert configuration.batch_norm
    assert configuration.minimum_side <= 32
    for name in ("model", "blocks", "until", "head"):
        assert preset.choose_network([name]) == {"initialization": "dirac"}
    assert preset.choose_network(["weights"]) == {}
    assert PRESETS["modern"].choose_network(()) == {}
