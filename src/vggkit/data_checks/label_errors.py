"""Label errors and outliers, found from the features of a Classifier's trunk.

Shape letters: N images, C channels, K classes, F features.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vggkit.data_checks.findings import Case, Finding
from vggkit.data_checks.inspection import ImageRecord
from vggkit.data_checks.rules import member
from vggkit.engines.select import choose_engine
from vggkit.engines.stream import stream_results
from vggkit.errors import BadData, BadInput, MissingExtra
from vggkit.images.near_duplicates import NearDuplicate
from vggkit.weights.model import Model

FOLDS: Final = 10
MIN_CLASS_UNITS: Final = 5
"""Images of a class, copies counted once, below which its labels are not checked."""
N_FITS: Final = 3
"""Number of fits; from the second on, a label is weighted by the probability that it is correct."""
SHRINKAGES: Final = (0.01, 0.03, 0.1, 0.3, 0.7)
"""Shrinkage of the covariance to a multiple of the identity; the most likely value is used."""
TEMPERATURES: Final = np.geomspace(0.25, 8, 21)
"""Temperatures that are tried to calibrate the classifier's probabilities."""
ERROR_RATES: Final = np.array((0.0005, *np.geomspace(0.001, 0.3, 24)))
"""Proportions of wrong labels that are considered."""
NEIGHBOUR_SHARE: Final = 0.05
"""Share of the images that count as neighbours, so that a few similar outliers are not only each other's."""
MIN_NEIGHBOURS: Final = 10
WRONG_LABEL_THRESHOLD: Final = 0.25
"""Probability that a label is wrong above which it is reported: about half of the reported ones are wrong then."""
OUTLIER_THRESHOLD: Final = 3.5
"""Robust standard deviations above the median from which on a distance to neighbours makes an outlier."""


def extract_features(
    classifier: Model,
    records: Sequence[ImageRecord],
    *,
    batch_size: int = 32,
    device: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """(N, F) of readable records: mean and standard deviation of each channel of the trunk's last map.

    Raises BadData where an image was removed since, and BadInput where the network's values overflow.
    """
    engine = choose_engine(classifier, device, output="statistics", precision="fp32")
    images = [record.image for record in records]
    rows, lost = [], []
    predictions = stream_results(engine, classifier.preprocessing, images, batch_size=batch_size)
    for done, result in enumerate(predictions, start=1):
        if result.overflows:
            lost.append(result.problem)
        elif result.output is None:
            raise BadData(f"{result.image.path}: was readable, and is not any more ({result.problem})")
        else:
            rows.append(result.output)
        if on_progress:
            on_progress(done, len(images))
    if lost:
        raise BadInput(
            f"the Classifier gives no finite features of {len(lost):,} of {len(images):,} images; check without "
            f"it, or with another one. The first: {lost[0]}"
        )
    return np.stack(rows)


def group_copies(records: Sequence[ImageRecord], pairs: Sequence[NearDuplicate]) -> NDArray[np.int_]:
    """Equal numbers (N,) for records that must stay together: copies, near copies, and those of one group.

    Raises MissingExtra without SciPy, which comes with scikit-learn.
    """
    try:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
    except ImportError as problem:
        raise MissingExtra.of("scikit-learn", "checking labels", "check") from problem
    together: dict[object, int] = {}
    ties = [(pair.first, pair.second) for pair in pairs]
    for number, record in enumerate(records):
        marks = (record.digest or None, record.image.group)
        ties += [(together.setdefault(mark, number), number) for mark in marks if mark is not None]
    size = (len(records), len(records))
    ends = np.array(ties or [(0, 0)]).T
    _, numbers = connected_components(coo_array((np.ones(ends.shape[1]), ends), shape=size), directed=False)
    return np.asarray(numbers)


@dataclass(frozen=True, slots=True)
class LabelEstimate:
    """Estimated label errors, by held-out predictions."""

    loss: float
    """Mean negative log likelihood of the labels as they are given."""
    share: float
    """Share of labels that are wrong, as estimated."""
    probabilities: NDArray[np.float64]
    """(N, K) probabilities of each image's class, by a classifier that was fitted without it."""
    wrong: NDArray[np.float64]
    """(N,) probability that each label is wrong."""


def assign_folds(labels: NDArray[np.int_], groups: NDArray[np.int_]) -> NDArray[np.int_]:
    """The fold (N,) of each image: groups stay together, and each class is spread as evenly as possible."""
    _, members = np.unique(groups, return_inverse=True)
    votes = np.zeros((members.max() + 1, labels.max() + 1), dtype=np.int64)
    np.add.at(votes, (members, labels), 1)
    order = np.random.default_rng(0).permutation(len(votes))
    order = order[np.argsort(votes.argmax(1)[order], kind="stable")]
    folds = np.empty(len(votes), dtype=np.int64)
    folds[order] = np.arange(len(votes)) % FOLDS
    return np.asarray(folds[members])


def predict_held_out(
    features: NDArray[np.float64],
    labels: NDArray[np.int_],
    folds: NDArray[np.int_],
    *,
    weights: NDArray[np.float64],
    shrinkages: Sequence[float],
) -> dict[float, NDArray[np.float64]]:
    """Logits (N, K) for each shrinkage, of linear discriminant analysis fitted without the image's fold.

    What folds share is summed once, and each fold's split taken away.

    Args:
        features: (N, F), standardised.
        labels: (N,) numbers of classes, 0 to K - 1.
        folds: (N,) from `assign_folds`.
        weights: (N,) how much each image counts, above 0.
        shrinkages: Each above 0, to 1.
    """
    counted = np.zeros((len(labels), int(labels.max()) + 1))
    counted[np.arange(len(labels)), labels] = weights
    size = features.shape[1]
    scatter, sums, counts = features.T @ (features * weights[:, None]), counted.T @ features, counted.sum(0)
    logits = {shrinkage: np.empty_like(counted) for shrinkage in shrinkages}
    for fold in np.unique(folds):
        held = folds == fold
        rows = features[held]
        learnt = np.maximum(counts - counted[held].sum(0), 1e-9)
        means = (sums - counted[held].T @ rows) / learnt[:, None]
        within = scatter - rows.T @ (rows * weights[held, None]) - means.T @ (means * learnt[:, None])
        within /= learnt.sum()
        level = max(float(np.trace(within)) / size, 1e-6)
        for shrinkage in shrinkages:
            drawn = (1 - shrinkage) * within
            drawn[np.diag_indices(size)] += shrinkage * level
            solved = np.linalg.solve(drawn, means.T)
            offsets = np.log(learnt / learnt.sum()) - 0.5 * (means.T * solved).sum(0)
            logits[shrinkage][held] = rows @ solved + offsets
    return logits


def fit_label_noise(logits: NDArray[np.float64], labels: NDArray[np.int_]) -> LabelEstimate:
    """The maximum likelihood estimate where a share of labels is wrong, all other classes equally probable.

    Temperature and share are those of the greatest likelihood of the labels; by Bayes' rule they give how
    likely each label is wrong. A classifier of low accuracy gets a high temperature, and reports no label.
    """
    rows, others = np.arange(len(labels)), max(logits.shape[1] - 1, 1)
    best: tuple[float, float, float] = (np.inf, 1.0, float(ERROR_RATES[0]))
    for temperature in TEMPERATURES:
        own = _soften(logits, temperature)[rows, labels]
        for share in ERROR_RATES:
            loss = -float(np.log((1 - share) * own + share * (1 - own) / others + 1e-300).mean())
            best = min(best, (loss, float(temperature), float(share)))
    loss, temperature, share = best
    probabilities = _soften(logits, temperature)
    own = probabilities[rows, labels]
    right, wrong = (1 - share) * own, share * (1 - own) / others
    return LabelEstimate(loss, share, probabilities, wrong / (right + wrong))


def estimate_labels(
    features: NDArray[np.float32], labels: NDArray[np.int_], groups: NDArray[np.int_]
) -> LabelEstimate:
    """Probabilities that labels are wrong, by linear classifiers fitted without the image and its copies.

    Args:
        features: (N, F).
        labels: (N,) numbers of classes, 0 to K - 1, each of MIN_CLASS_UNITS or more, copies counted once.
        groups: (N,) numbers; equal ones stay together.
    """
    scaled, folds = _standardise(features).astype(np.float64), assign_folds(labels, groups)
    weights = np.ones(len(labels))
    tried = predict_held_out(scaled, labels, folds, weights=weights, shrinkages=SHRINKAGES)
    estimates = {shrinkage: fit_label_noise(logits, labels) for shrinkage, logits in tried.items()}
    shrinkage = min(estimates, key=lambda tried: estimates[tried].loss)
    estimate = estimates[shrinkage]
    for _ in range(N_FITS - 1):
        weights = np.maximum(1 - estimate.wrong, 0.01)
        logits = predict_held_out(scaled, labels, folds, weights=weights, shrinkages=[shrinkage])
        estimate = fit_label_noise(logits[shrinkage], labels)
    return estimate


def find_mislabelled(
    records: Sequence[ImageRecord], features: NDArray[np.float32], groups: NDArray[np.int_]
) -> Finding | None:
    """Images whose label is likely wrong, by predictions of classifiers that were fitted without them.

    Confident learning (Northcutt, Jiang and Chuang, 2021) by cleanlab gives the number of suspect labels of each
    class; of these, those are reported whose label is wrong with a probability above WRONG_LABEL_THRESHOLD and for
    which another class is clearly more probable, the least certain first.

    Args:
        records: N readable images.
        features: (N, F) their features.
        groups: (N,) numbers; images with equal ones are copies of each other.

    Classes of fewer than MIN_CLASS_UNITS images are left out; None where fewer than two remain. Raises
    MissingExtra.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as problem:
        raise MissingExtra.of("cleanlab", "checking labels", "check") from problem
    units: dict[int, list[str]] = {}
    for record, number in zip(records, groups, strict=True):
        units.setdefault(int(number), []).append(record.label)
    counts = Counter(Counter(sorted(labels)).most_common(1)[0][0] for labels in units.values())
    places = {
        label: place
        for place, label in enumerate(sorted(name for name in counts if counts[name] >= MIN_CLASS_UNITS))
    }
    if len(places) < 2 or not np.isfinite(features).all():
        return None
    names = list(places)
    chosen = np.array([index for index, record in enumerate(records) if record.label in places])
    labels = np.array([places[records[index].label] for index in chosen])
    estimate = estimate_labels(features[chosen], labels, groups[chosen])
    suspect = find_label_issues(labels, estimate.probabilities, filter_by="low_self_confidence", n_jobs=1)
    likelier = estimate.probabilities.argmax(1)
    sure = (likelier != labels) & (estimate.probabilities.max(1) > 0.5)  # another class, and one that is clear
    flagged = np.flatnonzero(suspect & sure & (estimate.wrong > WRONG_LABEL_THRESHOLD))
    cases = []
    for place in flagged[np.argsort(-estimate.wrong[flagged], kind="stable")]:
        chances = estimate.probabilities[place]
        seen, own = int(chances.argmax()), labels[place]
        detail = f"labelled {names[own]} ({chances[own]:.0%}), looks like {names[seen]} ({chances[seen]:.0%})"
        cases.append(Case((member(records[chosen[place]]),), detail, suggestion=names[seen]))
    if not cases:
        return None
    right = float((estimate.probabilities.argmax(1) == labels).mean())
    return Finding(
        "mislabelled",
        "warning",
        f"{len(cases):,} {'label is' if len(cases) == 1 else 'labels are'} likely wrong",
        f"Held-out predictions from this Classifier's features agree with {100 * right:.1f} % of all labels, "
        "and disagree most clearly with these. Review them; --fix keeps them and notes the more likely class.",
        tuple(cases),
    )


def find_outliers(records: Sequence[ImageRecord], features: NDArray[np.float32]) -> Finding | None:
    """Images unlike all others: far from their nearest neighbours among the features.

    The distance is the mean one to the share NEIGHBOUR_SHARE of all images, or to the nearer half of the
    image's own class where that is less: a small distinct class is not an outlier. An outlier is an image
    whose log distance is OUTLIER_THRESHOLD robust standard deviations (median absolute deviation) above the median.
    """
    if len(records) <= 2 * MIN_NEIGHBOURS or not np.isfinite(features).all():
        return None
    _, labels = np.unique([record.label for record in records], return_inverse=True)
    distances = measure_distances(_standardise(np.sqrt(np.maximum(features, 0))), labels)
    middle = float(np.median(distances))
    if middle < 0.01:
        return None
    logs = np.log(np.maximum(distances, 1e-9) / middle)
    spread = max(1.4826 * float(np.median(np.abs(logs))), 0.02)
    cases = [
        Case((member(records[place]),), f"{np.exp(logs[place]):.1f} times the median distance to other images")
        for place in np.argsort(-logs, kind="stable")
        if logs[place] > OUTLIER_THRESHOLD * spread
    ]
    if not cases:
        return None
    return Finding(
        "outlier",
        "note",
        f"{len(cases):,} {'image is an outlier' if len(cases) == 1 else 'images are outliers'}",
        "They may not belong to the dataset, or be the only ones of their kind. Review them.",
        tuple(cases),
    )


def measure_distances(rows: NDArray[np.float32], labels: NDArray[np.int_]) -> NDArray[np.float64]:
    """The mean distance (N,) of each of the rows (N, F) to its neighbours, as in `find_outliers`; N > 1."""
    count = len(rows)
    near = min(max(MIN_NEIGHBOURS, round(NEIGHBOUR_SHARE * count)), count - 1)
    classes = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)]
    squares = (rows**2).sum(1)
    found = np.empty(count)
    for fellows in classes:
        half = (len(fellows) - 1) // 2
        for start in range(0, len(fellows), 512):
            some = fellows[start : start + 512]
            away = np.sqrt(np.maximum(squares[some, None] + squares - 2 * (rows[some] @ rows.T), 0))
            away[np.arange(len(some)), some] = np.inf
            found[some] = np.partition(away, near - 1, axis=1)[:, :near].mean(1)
            if half >= MIN_CLASS_UNITS:
                own = np.partition(away[:, fellows], half - 1, axis=1)[:, :half].mean(1)
                found[some] = np.minimum(found[some], own)
    return found


def _standardise(features: NDArray[np.float32]) -> NDArray[np.float32]:
    wide = features.astype(np.float64)
    deviations = wide.std(0)
    steady = deviations <= 1e-6 * np.maximum(np.abs(wide).max(0), 1e-12)
    scaled = (wide - wide.mean(0)) / np.where(steady, 1, deviations)
    scaled[:, steady] = 0
    return np.asarray(scaled, dtype=np.float32)


def _soften(logits: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    cooled = logits / temperature
    powers = np.exp(cooled - cooled.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))
