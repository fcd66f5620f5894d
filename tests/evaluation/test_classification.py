"""Confusions, rates and areas below curves, beside scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggkit.evaluation.classification import (
    count_confusions,
    find_average_precision,
    find_class_rates,
    find_roc_auc,
)

metrics = pytest.importorskip("sklearn.metrics")


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 60), classes=st.integers(2, 6), seed=st.integers(0, 999))
def test_confusions_and_rates_are_scikit_learns(n, classes, seed):
    draws = np.random.default_rng(seed)
    true, predicted = draws.integers(0, classes, (2, n))  # some classes are absent, or never predicted
    numbers = list(range(classes))
    confusion = count_confusions(true, predicted, classes)
    assert np.array_equal(confusion, metrics.confusion_matrix(true, predicted, labels=numbers))
    *theirs, support = metrics.precision_recall_fscore_support(true, predicted, labels=numbers, zero_division=0.0)
    ours = find_class_rates(confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1))
    assert np.array_equal(support, confusion.sum(axis=1))
    for own, other in zip(ours, theirs, strict=True):
        assert own == pytest.approx(other, abs=1e-15)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(2, 80), levels=st.sampled_from((2, 5, 1000)), seed=st.integers(0, 999))
def test_areas_below_curves_are_scikit_learns_with_ties_too(n, levels, seed):
    draws = np.random.default_rng(seed)
    scores = (draws.integers(0, levels, n) / levels).astype(np.float32)
    positive = draws.random(n) < 0.4
    positive[0], positive[1] = True, False
    assert find_roc_auc(positive, scores) == pytest.approx(metrics.roc_auc_score(positive, scores), abs=1e-12)
    theirs = metrics.average_precision_score(positive, scores)
    assert find_average_precision(positive, scores) == pytest.approx(theirs, abs=1e-12)


def test_an_average_precision_of_one_class_alone_is_one():
    assert find_average_precision(np.ones(3, bool), np.array([0.1, 0.2, 0.3])) == 1.0


def test_nothing_of_scikit_learn_is_imported_to_evaluate():
    import subprocess
    import sys

    code = (
        "import sys, numpy as np\n"
        "from vggkit.evaluation.metrics import score\n"
        "from vggkit.evaluation.predictions import Predictions\n"
        "import inspect\n"
        "assert not {'sklearn', 'pandas', 'scipy', 'torch'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
