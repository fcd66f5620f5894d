"""What the rounds of a bench come to."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vggkit.benchmarking.timings import Rounds, Spread

SECONDS = st.lists(st.floats(1e-4, 10), min_size=1, max_size=40)


def test_figures_are_those_of_each_round():
    rounds = Rounds()
    for one, eight in (([0.1, 0.3, 0.2, 0.2], [0.4]), ([0.5, 0.1], [0.2, 0.6])):
        rounds.add(1, one)
        rounds.add(8, eight)
    assert rounds.find_speeds() == {1: [5.0, 2 / 0.6], 8: [20.0, 20.0]}
    assert rounds.find_best() == 8
    assert rounds.find_latencies(0.5) == [0.2, 0.1]
    assert rounds.find_latencies(0.95) == [0.3, 0.5]


@given(SECONDS, st.floats(0.01, 1))
def test_a_latency_is_numpys_quantile(seconds, share):
    rounds = Rounds()
    rounds.add(1, seconds)
    expected = np.quantile(seconds, share, method="inverted_cdf")
    assert rounds.find_latencies(share) == [expected]


@given(SECONDS)
def test_a_spread_holds_its_median(values):
    found = Spread.of(values)
    assert found.least <= found.median <= found.most
    assert found.median == np.median(values)
