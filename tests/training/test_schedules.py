import math
from dataclasses import replace

import pytest

from vggkit.training.optimizers import learning_rate_at
from vggkit.training.recipe import Recipe

RECIPE = Recipe(epochs=10, learning_rate=0.4, warmup_epochs=2, weight_decay=0.0)


def rates(**changes):
    recipe = replace(RECIPE, **changes)
    return [learning_rate_at(step, recipe=recipe, steps_per_epoch=7) for step in range(7 * recipe.epochs)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step", "constant"])
def test_the_warm_up_is_a_straight_line_that_ends_below_the_highest_rate(schedule):
    found = rates(schedule=schedule)
    assert found[:14] == pytest.approx([0.4 * (step + 1) / 15 for step in range(14)])
    assert found[14] == pytest.approx(0.4)
    assert max(found) == pytest.approx(0.4)


def test_cosine_goes_down_to_nearly_nothing_by_the_formula():
    found = rates()
    assert found[14:] == pytest.approx([0.2 * (1 + math.cos(math.pi * place / 56)) for place in range(56)])
    assert 0 < found[-1] < 0.001 * 0.4


def test_linear_goes_down_to_nearly_nothing_in_a_straight_line():
    found = rates(schedule="linear")
    assert found[14:] == pytest.approx([0.4 * (1 - place / 56) for place in range(56)])
    assert found[-1] > 0


@pytest.mark.parametrize(("step_epochs", "expected"), [(None, 4), (3, 3), (1, 1)])
def test_step_divides_by_ten(step_epochs, expected):
    found = rates(schedule="step", step_epochs=step_epochs, warmup_epochs=0)
    assert found == pytest.approx([0.4 * 0.1 ** (step // 7 // expected) for step in range(70)])


def test_constant_stays():
    assert rates(schedule="constant", warmup_epochs=0) == [0.4] * 70


def test_one_cycle_rises_for_three_tenths_and_then_falls():
    found = rates(schedule="one-cycle", warmup_epochs=1.0)
    assert max(range(70), key=found.__getitem__) == 21
    assert found[21] == pytest.approx(0.4)
    assert found[:22] == sorted(found[:22])
    assert found[21:] == sorted(found[21:], reverse=True)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step", "constant", "one-cycle"])
@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(1, 1), (1, 2), (2, 1), (3, 2)])
def test_the_shortest_trainings_learn_in_every_step(schedule, epochs, steps_per_epoch):
    warmup = 1.0 if schedule == "one-cycle" else 100
    recipe = replace(RECIPE, schedule=schedule, epochs=epochs, warmup_epochs=warmup)
    for step in range(epochs * steps_per_epoch):
        assert 0 < learning_rate_at(step, recipe=recipe, steps_per_epoch=steps_per_epoch) <= 0.4


def test_the_warm_up_takes_half_of_the_training_at_most():
    found = rates(warmup_epochs=100)
    assert found == rates(warmup_epochs=5)
    assert max(range(70), key=found.__getitem__) == 35
