"""Labels and pictures held against what a Classifier's trunk sees in them.

Shape letters: N pictures, C channels, K classes, F features.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.pytorch import PyTorchEngine
from vggkit.engines.stream import stream_answers
from vggkit.errors import BadData, MissingExtra
from vggkit.hardware import choose_device
from vggkit.images.likeness import Alike
from vggkit.networks.classifier import Classifier
from vggkit.tasks.diagnosis.findings import Case, Finding
from vggkit.tasks.diagnosis.rules import member
from vggkit.tasks.diagnosis.survey import Sighting

FOLDS: Final = 5
NEIGHBOURS: Final = 10
FAR: Final = 4.5
"""How many robust standard deviations beyond the median a picture's distance to its neighbours must be."""
STRENGTHS: Final = (0.0003, 0.003, 0.03)
"""Inverse regularisation of the linear classifier; the one of the best held-out likelihood is taken."""


def extract_features(
    classifier: Classifier,
    sightings: Sequence[Sighting],
    *,
    batch_size: int = 32,
    device: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """(N, F) of readable sightings: mean and standard deviation of each channel of the trunk's last map."""
    engine = PyTorchEngine(classifier.network, choose_device(device), output="statistics")
    pictures = [sighting.picture for sighting in sightings]
    rows = []
    answers = stream_answers(engine, classifier.preprocessing, pictures, batch_size=batch_size)
    for done, answer in enumerate(answers, start=1):
        assert answer.output is not None, f"{answer.picture.path} was readable a moment ago: {answer.problem}"
        rows.append(answer.output)
        if on_progress:
            on_progress(done, len(pictures))
    return np.stack(rows)


def number_units(sightings: Sequence[Sighting], alike: Sequence[Alike]) -> NDArray[np.int_]:
    """Equal numbers (N,) for sightings that must stay together: copies, near copies, and those of one group.

    Raises MissingExtra without SciPy, which comes with scikit-learn.
    """
    try:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
    except ImportError as problem:
        raise MissingExtra.of("scikit-learn", "checking labels", "check") from problem
    together: dict[object, int] = {}
    ties = [(pair.first, pair.second) for pair in alike]
    for number, sighting in enumerate(sightings):
        marks = (sighting.digest or None, sighting.picture.group)
        ties += [(together.setdefault(mark, number), number) for mark in marks if mark is not None]
    size = (len(sightings), len(sightings))
    ends = np.array(ties or [(0, 0)]).T
    _, numbers = connected_components(coo_array((np.ones(ends.shape[1]), ends), shape=size), directed=False)
    return np.asarray(numbers)


def predict_held_out(
    features: NDArray[np.float32], labels: NDArray[np.int_], groups: NDArray[np.int_]
) -> NDArray[np.float64]:
    """Probabilities (N, K) of each picture's class from a linear classifier that never saw it.

    Logistic regression on standardised features, in FOLDS stratified folds; pictures of one group
    (copies of each other) stay in one fold.

    Args:
        features: (N, F).
        labels: (N,) numbers of classes, 0 to K - 1, each at least FOLDS times.
        groups: (N,) numbers; equal ones stay together.

    Raises MissingExtra without scikit-learn.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import log_loss
        from sklearn.model_selection import StratifiedGroupKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as problem:
        raise MissingExtra.of("scikit-learn", "checking labels", "check") from problem
    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(features, labels, groups))
    best, least = None, np.inf
    for strength in STRENGTHS:
        probabilities = np.zeros((len(labels), int(labels.max()) + 1))
        for learn, hold in folds:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
            model.fit(features[learn], labels[learn])
            probabilities[hold[:, None], model.classes_[None]] = model.predict_proba(features[hold])
        loss = log_loss(labels, probabilities, labels=np.arange(probabilities.shape[1]))
        if loss < least:
            best, least = probabilities, loss
    assert best is not None, "one of the strengths gives a finite loss"
    return best


def find_mislabelled(
    sightings: Sequence[Sighting], features: NDArray[np.float32], groups: NDArray[np.int_]
) -> Finding | None:
    """Pictures whose label is likely wrong: confident learning (Northcutt, Jiang and Chuang, 2021) by cleanlab.

    Args:
        sightings: Readable ones, N of them.
        features: (N, F) of theirs.
        groups: (N,) numbers; equal ones are copies of each other.

    Classes with fewer pictures than FOLDS are left out. Raises BadData where fewer than two are left,
    and MissingExtra.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as problem:
        raise MissingExtra.of("cleanlab", "checking labels", "check") from problem
    counts = Counter(sighting.label for sighting in sightings)
    names = sorted(label for label, count in counts.items() if count >= FOLDS)
    if len(names) < 2:
        raise BadData(f"checking labels takes two classes of {FOLDS} readable pictures each, or more")
    chosen = np.array([index for index, sighting in enumerate(sightings) if sighting.label in names])
    labels = np.array([names.index(sightings[index].label) for index in chosen])
    probabilities = predict_held_out(features[chosen], labels, groups[chosen])
    ranked = find_label_issues(
        labels, probabilities, return_indices_ranked_by="self_confidence", filter_by="both", n_jobs=1
    )
    cases = []
    for place in ranked:
        seen = int(probabilities[place].argmax())
        chance, own = probabilities[place, seen], probabilities[place, labels[place]]
        said = f"labelled {names[labels[place]]} ({own:.0%}), looks like {names[seen]} ({chance:.0%})"
        cases.append(Case((member(sightings[chosen[place]]),), said, suggestion=names[seen]))
    if not cases:
        return None
    right = float((probabilities.argmax(1) == labels).mean())
    return Finding(
        "mislabelled",
        "warning",
        f"{len(cases):,} {'label is' if len(cases) == 1 else 'labels are'} likely wrong",
        f"Held-out predictions from this Classifier's features agree with {100 * right:.1f} % of all labels, "
        "and most clearly not with these. Look at them; --fix leaves them in, and notes the likelier class.",
        tuple(cases),
    )


def find_outliers(sightings: Sequence[Sighting], features: NDArray[np.float32]) -> Finding | None:
    """Pictures unlike all others: far from their nearest neighbours among the features.

    The distance is the mean cosine distance to the NEIGHBOURS nearest; a picture counts whose
    logarithm is FAR robust standard deviations (median absolute deviation) above the median.

    Raises MissingExtra without scikit-learn.
    """
    try:
        from sklearn.neighbors import NearestNeighbors
        from sklearn.preprocessing import StandardScaler
    except ImportError as problem:
        raise MissingExtra.of("scikit-learn", "finding outliers", "check") from problem
    if len(sightings) <= 2 * NEIGHBOURS:
        return None
    scaled = StandardScaler().fit_transform(features)
    distances, _ = NearestNeighbors(n_neighbors=NEIGHBOURS + 1, metric="cosine").fit(scaled).kneighbors(scaled)
    logs = np.log(np.maximum(distances[:, 1:].mean(1), 1e-9))
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle))
    scores = (logs - middle) / max(spread, 1e-9)
    cases = [
        Case((member(sightings[place]),), f"{np.exp(logs[place] - middle):.1f} times as far from others as most")
        for place in np.argsort(-scores)
        if scores[place] > FAR
    ]
    if not cases:
        return None
    return Finding(
        "outlier",
        "note",
        f"{len(cases):,} {'picture is' if len(cases) == 1 else 'pictures are'} unlike all others",
        "They may not belong here, or be the only ones of their kind. Look at them.",
        tuple(cases),
    )
