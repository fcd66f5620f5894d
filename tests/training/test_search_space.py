"""What a search for a recipe tries, and for how long."""

import math
from collections import Counter

import pytest

from vggkit import BadConfiguration, Recipe
from vggkit.training.search_space import STRENGTHS, Round, demand_search, draw_candidates, plan_rounds


@pytest.mark.parametrize(
    ("trials", "epochs", "expected"),
    [
        (12, 30, [(12, 3), (4, 10)]),
        (27, 27, [(27, 1), (9, 3), (3, 9)]),
        (3, 9, [(3, 3)]),
        (2, 10, [(2, 3)]),
        (12, 2, [(12, 1)]),
        (9, 1, [(9, 1)]),
    ],
)
def test_rounds_are_of_a_third_of_the_recipes_and_three_times_the_epochs(trials, epochs, expected):
    assert plan_rounds(trials, epochs) == tuple(Round(*each) for each in expected)


def draw(recipe=Recipe(), trials=12, **options):  # noqa: B008 (frozen)
    return draw_candidates(recipe, trials, **{"from_weights": True, "has_head": True, "channels": 3, **options})


def test_recipes_are_spread_over_the_space_and_the_first_is_the_users():
    found = draw()
    assert [each.number for each in found] == list(range(1, 13))
    assert (found[0].rate_factor, found[0].decay_factor, found[0].trainable) == (1, 1, None)
    assert found[1].trainable == "head"
    powers = sorted(math.log10(each.rate_factor) for each in found[2:])
    gaps = [1.75 * place / 10 - 1 for place in range(11)]
    assert all(low <= power <= high for power, low, high in zip(powers, gaps, gaps[1:], strict=False))
    assert all(0.1 <= each.decay_factor <= 10 for each in found)
    assert Counter(each.trainable for each in found[2:]) == {"all": 5, "top": 5}
    assert max(Counter(each.strength for each in found[2:]).values()) <= 4
    assert draw() == found
    assert draw(Recipe(seed=1)) != found
    scratch = draw(from_weights=False)
    assert {each.trainable for each in scratch[1:]} == {"all"}
    assert {each.strength for each in draw(channels=4)} == {"light", "as given"}, "the linear probe has none"


def test_what_is_given_is_not_searched():
    found = draw(Recipe(learning_rate=0.02, trainable="top", random_erasing=0.3))
    assert {each.rate_factor for each in found} == {1}
    assert {each.trainable for each in found} == {None}
    assert {each.strength for each in found} == {"as given"}
    resolved = Recipe(trainable="top", learning_rate=0.02, weight_decay=5e-4)
    scaled = [each.scale(resolved) for each in found]
    assert {each.learning_rate for each in scaled} == {0.02}
    assert len({each.weight_decay for each in scaled}) > 6


def test_a_candidate_changes_layers_augmentation_and_rates():
    strong = next(each for each in draw() if each.strength == "strong")
    applied = strong.apply(Recipe())
    assert {name: getattr(applied, name) for name in STRENGTHS["strong"]} == STRENGTHS["strong"]
    assert strong.apply(Recipe(balance="weights")).mixup == 0
    scaled = strong.scale(Recipe(trainable="all", learning_rate=0.01, weight_decay=5e-4))
    assert scaled.learning_rate == pytest.approx(0.01 * strong.rate_factor, rel=0.06)
    assert scaled.weight_decay == pytest.approx(5e-4 * strong.decay_factor, rel=0.06)


@pytest.mark.parametrize(
    ("trials", "recipe", "message"),
    [
        (1, Recipe(), "search must be 0, for none, or the number of recipes to try, 2 or more; got 1"),
        (12, Recipe(trainable="head"), "solves the last layer directly"),
        (12, Recipe(views=4), "solves the last layer directly"),
        (
            12,
            Recipe(learning_rate=0.1, weight_decay=0.0, trainable="all", mixup=0.2),
            "has nothing to choose",
        ),
    ],
)
def test_what_leaves_nothing_to_search_is_refused(trials, recipe, message):
    with pytest.raises(BadConfiguration, match=message):
        demand_search(trials, recipe)
