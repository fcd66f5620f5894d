"""`vk.sklearn.VGGClassifier`: an estimator of scikit-learn, on arrays of images."""

import pickle
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

import vggkit as vk
from vggkit.errors import BadInput

TINY = {"blocks": "8/16", "image_size": 8, "batch_size": 16, "augmentation": "none", "precision": "fp32"}
"""A network of two convolutions."""
QUICK_CHECKS = frozenset(
    {
        "check_classifiers_classes",
        "check_classifiers_one_label",
        "check_dict_unchanged",
        "check_estimator_repr",
        "check_estimators_nan_inf",
        "check_estimators_pickle",
        "check_estimators_unfitted",
        "check_fit2d_1sample",
        "check_fit_idempotent",
        "check_n_features_in",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_set_params",
    }
)
"""The checks that run by default; the others take a minute together."""


def expected_to_fail(estimator):
    """Checks of scikit-learn that an estimator of images cannot pass, with the reason of each: none."""
    return {}


def mark_slow(generated):
    """The checks of `parametrize_with_checks`, those that are not quick marked as slow."""
    [mark] = [each for each in generated.pytestmark if each.name == "parametrize"]
    names, cases = mark.args
    marked = []
    for case in cases:
        values = getattr(case, "values", case)
        check = values[1]
        name = getattr(check, "func", check).__name__
        marks = [*getattr(case, "marks", ())] + [pytest.mark.slow] * (name not in QUICK_CHECKS)
        marked.append(pytest.param(*values, marks=marks))
    generated.pytestmark = [pytest.mark.parametrize(names, marked, ids=mark.kwargs["ids"])]
    return generated


@mark_slow
@parametrize_with_checks(
    [vk.sklearn.VGGClassifier(**TINY, epochs=4, random_state=0)], expected_failed_checks=expected_to_fail
)
def test_scikit_learns_own_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that so few epochs teach nothing
        check(estimator)


@pytest.fixture(scope="module")
def digits():
    """Images (N, H, W) of three classes, and their numbers."""
    found = load_digits()
    some = np.isin(found.target, (0, 1, 7))
    return found.images[some][:150], found.target[some][:150]


@pytest.fixture(scope="module")
def fitted(digits):
    return vk.sklearn.VGGClassifier(**TINY, epochs=6, random_state=0).fit(*digits)


def test_it_learns_arrays_of_images(digits, fitted):
    X, y = digits
    assert fitted.score(X, y) > 0.95
    assert fitted.classes_.tolist() == [0, 1, 7]
    shares = fitted.predict_proba(X)
    assert shares.shape == (150, 3)
    assert np.allclose(shares.sum(axis=1), 1)
    assert fitted.predict(X).dtype == y.dtype
    assert isinstance(fitted.classifier_, vk.Classifier)
    assert fitted.classifier_.labels == ("0", "1", "7")
    assert len(fitted.history_) == 6


def test_two_fits_with_one_seed_are_equal_and_a_pickle_predicts_the_same(digits, fitted):
    X, y = digits
    again = clone(fitted).fit(X, y)
    assert np.array_equal(again.predict_proba(X), fitted.predict_proba(X))
    loaded = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(loaded.predict_proba(X[:20]), fitted.predict_proba(X[:20]))
    other = clone(fitted).set_params(random_state=1).fit(X, y)
    assert not np.array_equal(other.predict_proba(X), fitted.predict_proba(X))


def test_rows_grey_and_colour_images_are_the_same(digits, fitted):
    X, _ = digits
    colours = np.repeat(X[..., None], 3, axis=-1)
    assert np.array_equal(fitted.predict_proba(colours), fitted.predict_proba(X))
    assert np.array_equal(fitted.predict_proba(X[..., None]), fitted.predict_proba(X))


def test_nothing_is_left_behind(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary").mkdir()
    vk.sklearn.VGGClassifier(**TINY, epochs=1, random_state=0).fit(*digits)
    assert list(tmp_path.rglob("*")) == [tmp_path / "temporary"]


@pytest.mark.filterwarnings("ignore:.*does not learn")
def test_cross_validation_works(digits):
    X, y = digits
    scores = cross_val_score(vk.sklearn.VGGClassifier(**TINY, epochs=2, random_state=0), X, y, cv=2)
    assert scores.shape == (2,)
    assert (scores > 1 / 3).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not learn")  # at a rate of 1e-6
def test_grid_search_works(digits):
    X, y = digits
    estimator = vk.sklearn.VGGClassifier(**TINY, epochs=3, random_state=0)
    search = GridSearchCV(estimator, {"learning_rate": [1e-6, 0.05]}, cv=2).fit(X, np.array(list("abcdefgh"))[y])
    assert search.best_params_ == {"learning_rate": 0.05}
    assert set(search.predict(X)) <= {"a", "b", "h"}


def test_what_it_cannot_take_is_refused(digits, fitted):
    X, y = digits
    with pytest.raises(BadInput, match=r"channels.*\(150, 8, 8, 2\)"):
        vk.sklearn.VGGClassifier(**TINY).fit(np.stack([X, X], axis=-1), y)
    with pytest.raises(BadInput, match="image_shape"):
        vk.sklearn.VGGClassifier(**TINY, image_shape=(8, 9)).fit(X.reshape(150, 64), y)
    with pytest.raises(vk.UnknownName, match="vgg11"):
        vk.sklearn.VGGClassifier("vgg12").fit(X, y)
    with pytest.raises(ValueError, match="NaN"):
        fitted.predict(np.full((1, 8, 8), np.nan))


def test_warnings_are_pythons(digits):
    X, y = digits
    with pytest.warns(UserWarning, match="does not learn"):
        vk.sklearn.VGGClassifier(**TINY, epochs=3, learning_rate=1e-9, random_state=0).fit(X, y)


def test_without_scikit_learn_the_extra_is_named_and_the_rest_works():
    code = (
        "import sys\n"
        "sys.modules['sklearn'] = None\n"
        "from vggkit import *\n"
        "import vggkit as vk\n"
        "try:\n"
        "    vk.sklearn\n"
        "except vk.MissingExtra as problem:\n"
        "    print(problem)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert 'pip install "vggkit[train]"' in done.stdout, done.stderr
