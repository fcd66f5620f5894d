"""One Classifier or several on the same images: measured, fused, compared, and told how sure to be."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from vggkit.engines.info import WantedEngine
from vggkit.engines.outputs import WantedPrecision, check_precision
from vggkit.errors import BadConfiguration, BadInput
from vggkit.evaluation.calibration import fit_temperature
from vggkit.evaluation.comparison import PairedComparison, compare_predictions, fuse
from vggkit.evaluation.evaluation import Evaluation, ProtocolName
from vggkit.evaluation.measure import CALIBRATED_HERE, evaluate
from vggkit.evaluation.metrics import score
from vggkit.files import demand_writable, name_apart
from vggkit.images.dataset import ImageDataset
from vggkit.reports.evaluation_page import Story, suggest_steps, write_report
from vggkit.weights.card import Card, read_card, read_entry
from vggkit.weights.locate import locate_model, locate_own_model
from vggkit.weights.model import Model
from vggkit.weights.sharing import is_address
from vggkit.workflows.compare import read_history
from vggkit.workflows.run_config import FILE_NAME

OnProgress = Callable[[str, int, int], None]
"""Hears what is being done, how much of it is, and of how much."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What came of it."""

    evaluations: tuple[Evaluation, ...]
    """Of each Classifier, and last, where there are several, of all as one."""
    comparisons: tuple[PairedComparison, ...]
    """Each Classifier against each one before it."""
    card: Card
    """The first Classifier's."""
    said: tuple[str, ...] = ()
    """What was done to the Classifier, for people."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON: the evaluation's own where there is one alone."""
        if len(self.evaluations) == 1:
            return self.evaluations[0].to_dict()
        return {
            "evaluations": [each.to_dict() for each in self.evaluations],
            "comparisons": [each.to_dict() for each in self.comparisons],
        }


def measure(
    models: Sequence[str | Path],
    data: ImageDataset,
    *,
    split: str | None = None,
    protocol: ProtocolName = "single",
    scales: Sequence[int] = (),
    train_scales: Sequence[int] = (),
    mirror: bool | None = None,
    wanted_precision: float | None = None,
    calibrate: bool = False,
    batch_size: int = 32,
    device: str = "auto",
    precision: WantedPrecision = "fp32",
    engine: WantedEngine = "auto",
    on_progress: OnProgress | None = None,
) -> Measurement:
    """Measure Classifiers on the same images; several are also fused, and compared pair by pair.

    Args:
        models: Classifiers' files or runs' folders, one or more.
        data: Labelled images.
        split: As in `evaluate`; likewise `protocol`, `scales`, `train_scales`, `mirror`, `wanted_precision`,
            `batch_size`, `device`, `precision` and `engine`.
        protocol: See `split`.
        scales: See `split`.
        train_scales: See `split`.
        mirror: See `split`.
        wanted_precision: See `split`.
        calibrate: Fit the temperature on these images, and with `wanted_precision` the threshold below which
            the answer is "unknown", and keep both in the Classifier's file.
        batch_size: See `split`.
        device: See `split`.
        precision: See `split`.
        engine: See `split`.
        on_progress: Hears how far it is.

    Raises what `evaluate` and `load` do, and BadInput where nothing can be calibrated.
    """
    if calibrate and (len(models) > 1 or protocol != "single" or mirror):
        raise BadInput(
            "calibrate is for one Classifier, looked at as predict does: with --protocol single and no --mirror"
        )
    if calibrate:
        demand_writable(locate_own_model(models[0]))
    names = _name(models)
    _demand_same_classes(models, names)
    if precision == "int8":
        _demand_ranges(models)
    evaluations, cards = [], []
    said: tuple[str, ...] = ()
    for place, name in zip(models, names, strict=True):
        classifier = Model.load(locate_model(place))

        def show(done: int, total: int, name: str = name) -> None:
            if on_progress is not None:
                on_progress(f"measuring {name}", done, total)

        found = evaluate(
            classifier,
            data,
            split="val" if calibrate and split is None and "val" in data.splits else split,
            protocol=protocol,
            scales=scales,
            train_scales=train_scales,
            mirror=mirror,
            wanted_precision=None if calibrate else wanted_precision,
            name=name,
            batch_size=batch_size,
            device=device,
            precision=precision,
            engine=engine,
            on_progress=show,
        )
        if calibrate:
            found, said = _calibrate(classifier, place, found, wanted_precision)
        evaluations.append(found)
        cards.append(classifier.card)
    comparisons = tuple(
        compare_predictions(one.predictions, other.predictions, names=(one.model, other.model))
        for one, other in combinations(evaluations, 2)
    )
    if len(evaluations) > 1:
        evaluations.append(fuse(evaluations, wanted_precision=wanted_precision))
    return Measurement(tuple(evaluations), comparisons, cards[0], said)


def name_results(path: Path, models: Sequence[str | Path]) -> list[Path]:
    """Where the tables of a measurement go: `path` alone, or before it one of each Classifier, beside it."""
    return [*(name_apart(path, _name(models)) if len(models) > 1 else ()), path]


def write_results(found: Measurement, path: Path, *, models: Sequence[str | Path]) -> list[Path]:
    """The answers as a table; of several Classifiers each one's beside it, for what they are compared by.

    Raises BadOutput, and MissingExtra for Parquet without pyarrow.
    """
    paths = name_results(path, models)
    for one, place in zip(found.evaluations, paths, strict=True):
        one.predictions.save(place)
    return paths


def report_on(found: Measurement, data: ImageDataset, path: str | Path, *, models: Sequence[str | Path]) -> None:
    """Write the report of a measurement; raises BadOutput.

    Args:
        found: What was measured.
        data: On what.
        path: An .html file.
        models: The Classifiers' files or runs' folders; the learning curve of a run's is shown.
    """
    alone = len(models) == 1
    folder = Path(models[0]) if Path(models[0]).is_dir() else Path(models[0]).parent
    history = read_history(folder / "metrics.csv") if alone and (folder / FILE_NAME).is_file() else ()
    provenance = found.card.provenance if alone else {}
    best_epoch = read_entry(provenance, "metrics").get("epoch")
    write_report(
        found.evaluations,
        path,
        images=[image for split in data.splits.values() for image in split],
        story=Story(
            history=history,
            best_epoch=best_epoch,
            provenance=provenance,
            steps=suggest_steps(models[0], data.name),
        ),
        comparisons=found.comparisons,
    )


def _name(models: Sequence[str | Path]) -> list[str]:
    """What each is called: its run's folder or its file; the whole path where two would be the same."""
    short = []
    for place in map(Path, models):
        best = place.name == "best.safetensors" and place.resolve().parent.name
        short.append(best or place.resolve().name.removesuffix(".safetensors"))
    return [str(place) if short.count(name) > 1 else name for place, name in zip(models, short, strict=True)]


def _demand_same_classes(models: Sequence[str | Path], names: Sequence[str]) -> None:
    """Before any work: Classifiers of different classes cannot be held against each other."""
    if len(models) < 2 or any(is_address(place) for place in models):
        return
    classes = [set(read_card(locate_model(place)).labels) for place in models]
    for name, known in zip(names, classes, strict=True):
        if other := sorted(known ^ classes[0]):
            raise BadInput(
                f"{names[0]} and {name} do not name the same classes ({', '.join(other[:5])}), and their answers "
                "cannot be held against each other; measure each alone"
            )


def _demand_ranges(models: Sequence[str | Path]) -> None:
    """Before any work: int8 needs the ranges of each Classifier."""
    for place in models:
        if not is_address(place):
            try:
                check_precision("int8", read_card(locate_model(place)).ranges)
            except BadConfiguration as problem:
                raise BadConfiguration(f"{place}: {problem}") from problem


def _calibrate(
    classifier: Model,
    place: str | Path,
    found: Evaluation,
    wanted_precision: float | None,
) -> tuple[Evaluation, tuple[str, ...]]:
    """Temperature and threshold fitted, kept in the file, and the figures that come of it."""
    target = locate_model(place)
    raw = found.predictions.sharpen(1 / classifier.temperature)
    before = read_entry(classifier.provenance, "calibration").get("wanted_precision")
    if wanted_precision is None and classifier.threshold > 0 and isinstance(before, float):
        wanted_precision = before  # a threshold is one of probabilities, which are others now
    fit = fit_temperature(raw)
    renewed = score(
        raw.sharpen(fit.temperature),
        data=found.data,
        split=found.split,
        model=found.model,
        protocol=found.protocol,
        temperature=fit.temperature,
        wanted_precision=wanted_precision,
        images=found.images,
        unreadable=found.unreadable,
        notes=tuple(dict.fromkeys([*found.notes, *([CALIBRATED_HERE] if fit.temperature != 1 else [])])),
    )
    if wanted_precision is not None and renewed.rejection is None:
        raise BadInput(
            f"no threshold gives a precision of {wanted_precision:g} on these {found.n} images, for even the "
            "surest answers are wrong too often; want less, or train it better. Nothing was changed"
        )
    about = {
        **asdict(fit),
        "data": found.data,
        "part": found.split,
        "pictures": found.images,
        "wanted_precision": wanted_precision,
    }
    threshold = 0.0 if renewed.rejection is None else renewed.rejection.threshold
    classifier.calibrate(temperature=fit.temperature, threshold=threshold, about=about)
    classifier.save(target)
    said = [fit.describe()]
    if wanted_precision is not None:
        said.append(f"threshold {threshold:.4g}: less sure answers are “unknown” from now on")
    return renewed, (*said, f"kept in {target}")
