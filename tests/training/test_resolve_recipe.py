from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggkit.errors import BadConfiguration
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configure import configure
from vggkit.training.recipe import STEPWISE, Recipe
from vggkit.training.resolve_recipe import FEW, RATES, Situation, resolve_recipe
from vggkit.weights.origin import WeightsOrigin


def situate(tiny, **changes):
    return replace(
        Situation(
            configuration=tiny,
            preprocessing=Preprocessing(),
            origin=WeightsOrigin(),
            images=500,
            bf16=True,
        ),
        **changes,
    )


def choose(recipe):
    return 32, "usual"


def settled(recipe, situation):
    return resolve_recipe(recipe, situation, choose_batch_size=choose)[0]


def test_nothing_is_left_open_and_settling_again_changes_nothing(tiny):
    recipe, reasons = resolve_recipe(Recipe(), situate(tiny), choose_batch_size=choose)
    assert "auto" not in recipe.to_dict().values()
    for name in ("batch_size", "learning_rate", "weight_decay"):
        assert getattr(recipe, name) is not None
    said = " ".join(reasons)
    for name in (
        "trainable all",
        "precision bf16",
        "augmentation photo",
        "batch size 32: usual",
        "learning rate 0.03",
    ):
        assert name in said
    assert resolve_recipe(recipe, situate(tiny), choose_batch_size=choose) == (recipe, [])


def test_the_rate_follows_the_variant_the_weights_the_optimizer_and_the_batch(tiny):
    plain, normed = situate(replace(tiny, batch_norm=False)), situate(tiny)
    assert settled(Recipe(), plain).learning_rate == pytest.approx(RATES["sgd"][0])
    assert settled(Recipe(), normed).learning_rate == pytest.approx(RATES["sgd"][1])
    given_weights = replace(normed, origin=WeightsOrigin(kind="loaded"))
    assert settled(Recipe(trainable="all"), given_weights).learning_rate == pytest.approx(RATES["sgd"][1] / 10)
    assert settled(Recipe(optimizer="muon"), normed).learning_rate == pytest.approx(RATES["muon"][1])
    assert settled(Recipe(batch_size=128), normed).learning_rate == pytest.approx(2 * RATES["sgd"][1])
    assert settled(Recipe(batch_size=32, accumulate=4), normed).learning_rate == pytest.approx(2 * RATES["sgd"][1])


def test_what_learns_follows_the_weights_and_the_images(tiny):
    few = situate(
        tiny, origin=WeightsOrigin(kind="loaded", random_keys=("classifier.0.weight", "classifier.0.bias"))
    )
    many = replace(few, images=FEW + 1)
    assert settled(Recipe(), few).trainable == "head"
    assert settled(Recipe(), few).learning_rate is None
    assert settled(Recipe(), many).trainable == "all"
    assert settled(Recipe(views=4), many).trainable == "head"
    assert settled(Recipe(), replace(few, origin=WeightsOrigin(kind="trained"))).trainable == "all"
    assert (
        settled(
            Recipe(), replace(few, origin=WeightsOrigin(kind="loaded", random_keys=("features.0.weight",)))
        ).trainable
        == "all"
    )
    for name in STEPWISE:
        if name == "whitening":  # for random weights alone
            continue
        value = {
            **{"optimizer": "adamw", "accumulate": 2, "patience": 3, "layer_decay": 0.5, "freeze_norm": True},
            **{"sync_norm": True, "gradient_compression": "bf16", "split_head": True},
        }.get(name, 0.1)
        assert settled(Recipe(**{name: value}), few).trainable == "all", name
    deep = situate(
        configure("vgg11", num_classes=3), origin=WeightsOrigin(kind="loaded", random_keys=("classifier.3.weight",))
    )
    assert settled(Recipe(), deep).trainable == "top"


def test_what_is_frozen_must_be_given(tiny):
    with pytest.raises(BadConfiguration, match="trainable=head"):
        settled(Recipe(trainable="head"), situate(tiny))
    deep = situate(
        configure("vgg11", num_classes=3), origin=WeightsOrigin(kind="loaded", random_keys=("classifier.0.weight",))
    )
    with pytest.raises(BadConfiguration, match=r"classifier\.0 random.*trainable=top"):
        settled(Recipe(trainable="head"), deep)
    with pytest.raises(BadConfiguration, match=r"features\.3 random.*trainable=all"):
        settled(
            Recipe(trainable="top"),
            replace(deep, origin=WeightsOrigin(kind="loaded", random_keys=("features.3.weight",))),
        )


def test_one_image_a_step_is_refused_where_batch_norm_would_see_one_value(tiny):
    small = situate(tiny, preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32))
    cut = replace(small, configuration=replace(tiny, until="relu5_1"))
    with pytest.raises(BadConfiguration, match="batch_size"):
        settled(Recipe(batch_size=1), replace(cut, preprocessing=Preprocessing(resize_pixels=16, crop_pixels=16)))
    frozen = Recipe(batch_size=1, freeze_norm=True)
    assert settled(frozen, replace(cut, preprocessing=Preprocessing(resize_pixels=16, crop_pixels=16))) is not None


def test_few_steps_of_large_batches_are_pointed_out(tiny):
    few, many = replace(situate(tiny), images=1_000), replace(situate(tiny), images=40_000)
    recipe = Recipe(batch_size=1000, epochs=10, learning_rate=0.025)

    def explain(recipe, situation):
        _, reasons = resolve_recipe(recipe, situation, choose_batch_size=lambda _: (32, ""))
        return " ".join(reasons)

    assert "10 steps in all are few: with a smaller batch_size" in explain(recipe, few)
    assert "are few" not in explain(recipe, many) + explain(replace(recipe, batch_size=32, epochs=1), few)


def test_images_are_shifted_where_the_pixels_are_given(tiny):
    fed = Preprocessing(resize_pixels=256, crop_pixels=224)
    assert settled(Recipe(shift_pixels=8), replace(situate(tiny), preprocessing=fed)).augmentation == "shift"
    with pytest.raises(BadConfiguration, match="belongs to augmentation=shift"):
        Recipe(shift_pixels=8, augmentation="photo")


def test_small_images_are_shifted_and_not_mirrored(tiny):
    small = situate(tiny, preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32), bf16=False)
    recipe = settled(Recipe(), small)
    assert (recipe.augmentation, recipe.mirror, recipe.precision) == ("shift", "none", "fp32")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"step_epochs": 3}, "schedule"),
        ({"views": 2, "trainable": "all"}, "views"),
        ({"trainable": "gradual", "epochs": 1}, "epochs"),
        ({"balance": "weights", "mixup": 0.2}, "balance"),
        ({"trainable": "head", "cutmix": 1.0}, "cutmix"),
        ({"trainable": "head", "learning_rate": 0.1}, "learning_rate"),
        ({"trainable": "head", "weight_decay": 0.1}, "weight_decay"),
        ({"trainable": "head", "rand_augment": 9}, "rand_augment"),
        ({"schedule": "one-cycle", "warmup_epochs": 3.0}, "warmup_epochs"),
        ({"optimizer": "adamw", "momentum": 0.8}, "momentum"),
    ],
)
def test_contradictions_are_refused_by_name(values, told):
    with pytest.raises(BadConfiguration, match=told):
        Recipe(**values)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "trainable": st.sampled_from(["auto", "head", "top", "all", "gradual"]),
            "epochs": st.integers(-1, 3),
            "optimizer": st.sampled_from(["sgd", "adamw", "muon", "lion"]),
            "learning_rate": st.one_of(st.none(), st.floats(), st.text(max_size=3)),
            "ema_decay": st.one_of(st.none(), st.floats(-1, 2)),
            "accumulate": st.one_of(st.integers(-1, 3), st.booleans()),
            "mixup": st.floats(-1, 1),
            "views": st.integers(0, 3),
        },
    )
)
def test_a_recipe_is_whole_or_refused_in_words(values):
    try:
        recipe = Recipe(**values)
    except BadConfiguration as problem:
        assert any(field.name in str(problem) for field in fields(Recipe))  # noqa: PT017 (it may also be whole)
    else:
        assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 0),
        ("learning_rate", -1),
        ("learning_rate", float("nan")),
        ("momentum", 1),
        ("weight_decay", -0.1),
        ("label_smoothing", 1),
        ("augmentation", "wild"),
        ("validation_share", 1),
        ("seed", -1),
        ("clip_norm", -1),
    ],
)
def test_recipes_that_cannot_be(field, value):
    with pytest.raises(BadConfiguration, match=field):
        Recipe(**{field: value})
    with pytest.raises(BadConfiguration):
        Recipe.from_dict({"epoch": 1})
