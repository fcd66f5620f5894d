"""Evaluate one Classifier or several on the same images: compare them, combine them, calibrate one."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggkit.engines.averaged_views import Views
from vggkit.engines.info import WantedEngine
from vggkit.engines.model_weights import ModelFile
from vggkit.engines.outputs import WantedPrecision, check_precision
from vggkit.errors import BadConfiguration, BadInput
from vggkit.evaluation.calibration import fit_temperature
from vggkit.evaluation.comparison import PairedComparison, compare_predictions, fuse
from vggkit.evaluation.evaluation import Evaluation, ProtocolName
from vggkit.evaluation.label_predictions import MultiLabelPredictions, choose_thresholds
from vggkit.evaluation.metrics import score
from vggkit.files import demand_writable, name_apart
from vggkit.images.dataset import ImageDataset
from vggkit.reports.evaluation_page import Story, suggest_steps, write_report
from vggkit.weights.card import Card, read_entry
from vggkit.weights.classifier_file import read_card
from vggkit.weights.hub import is_address
from vggkit.weights.locate import locate_model, locate_own_model
from vggkit.weights.published import find_published
from vggkit.weights.published_classifiers import is_model_name
from vggkit.workflows.compare import read_history
from vggkit.workflows.explain_errors import explain_errors
from vggkit.workflows.run_config import FILE_NAME

if TYPE_CHECKING:
    from vggkit.weights.model import Model

OnProgress = Callable[[str, int, int], None]
"""Called with the name of a step, how much of it is done, and how much it is in all."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of evaluating one Classifier or several."""

    evaluations: tuple[Evaluation, ...]
    """One for each Classifier, and for several a last one for their ensemble."""
    comparisons: tuple[PairedComparison, ...]
    """Every pair of Classifiers."""
    card: Card
    """The card of the first Classifier."""
    messages: tuple[str, ...] = ()
    """Changes to the Classifier's file, in sentences."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON: for a single Classifier that of its evaluation."""
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
    views: Views = "one",
    wanted_precision: float | None = None,
    calibrate: bool = False,
    batch_size: int = 32,
    device: str = "auto",
    precision: WantedPrecision = "fp32",
    engine: WantedEngine = "auto",
    reduced_decoding: bool = False,
    on_progress: OnProgress | None = None,
) -> Measurement:
    """Evaluate Classifiers on the same images; several are also compared pairwise and combined to an ensemble.

    Args:
        models: Classifiers' files or runs' folders, one or more.
        data: Labelled images.
        split: `train`, `val`, `test` or `all`; None: test, else val, else all images that were not trained on.
        protocol: `single`, `dense`, `multi-scale`, `multi-crop` or `dense+crops`.
        scales: Short sides in pixels of the evaluated sizes; by default the paper's.
        train_scales: Short side in pixels that the network was trained at, or both ends of its range.
        mirror: Whether to average over mirror images too; None: in all protocols but `single`.
        views: With the protocol single: the views of each image that are averaged, as for `predict`: `one`,
            `mirror`, or `mirror-shift`.
        wanted_precision: Search for the confidence threshold that gives this precision, above 0 and at most 1.
        calibrate: Fit a temperature to these images, with `wanted_precision` also a confidence threshold, and
            store both in the Classifier's file.
        batch_size: Number of images in a batch.
        device: `auto`, `cpu`, `cuda` or `mps`.
        precision: `fp32`, `bf16`, `int8` or `auto`.
        engine: `auto`, `pytorch`, `openvino`, `onnx` or `ncnn`.
        reduced_decoding: Decode large JPEGs at a smaller scale, even where the Classifier does not: it is faster,
            reads some that are too large otherwise, and changes pixels slightly.
        on_progress: Called with the current task, the number of evaluated images and of all images.

    Raises the errors of `evaluate` and of loading, and BadInput where calibration is not possible.
    """
    if calibrate and (len(models) > 1 or protocol != "single" or mirror or views != "one"):
        raise BadInput(
            "calibration takes one Classifier and one view of each image: --protocol single without --mirror and "
            "--views"
        )
    if calibrate:
        demand_writable(locate_own_model(models[0]))
    names = _name(models)
    _demand_same_classes(models, names)
    if wanted_precision is not None and any(
        not is_address(place) and read_card(locate_model(place)).task == "multi-label" for place in models
    ):
        raise BadInput(
            "wanted_precision is for one label an image; several labels have a threshold for each class, which "
            "training and --calibrate choose for the highest F1"
        )
    if precision == "int8":
        _demand_ranges(models)
    # These import torch, which the checks above do not need.
    from vggkit.evaluation.measure import evaluate
    from vggkit.weights.model import Model

    evaluations, cards = [], []
    messages: tuple[str, ...] = ()
    for place, name in zip(models, names, strict=True):
        classifier = Model.load(locate_model(place))

        def show(done: int, total: int, name: str = name) -> None:
            if on_progress is not None:
                on_progress(f"evaluating {name}", done, total)

        found = evaluate(
            classifier,
            data,
            split="val" if calibrate and split is None and "val" in data.splits else split,
            protocol=protocol,
            scales=scales,
            train_scales=train_scales,
            mirror=mirror,
            views=views,
            wanted_precision=None if calibrate else wanted_precision,
            name=name,
            batch_size=batch_size,
            device=device,
            precision=precision,
            engine=engine,
            reduced_decoding=reduced_decoding,
            on_progress=show,
        )
        if calibrate:
            found, messages = _calibrate(classifier, place, found, wanted_precision)
        evaluations.append(found)
        cards.append(classifier.card)
    comparisons = tuple(
        compare_predictions(one.predictions, other.predictions, names=(one.model, other.model))
        for one, other in combinations(evaluations, 2)
    )
    if len(evaluations) > 1:
        evaluations.append(fuse(evaluations, wanted_precision=wanted_precision))
    return Measurement(tuple(evaluations), comparisons, cards[0], messages)


def demand_models(models: Sequence[str | Path]) -> None:
    """Refuse, before any work and without torch, files that are no Classifiers; nothing is downloaded.

    Raises BadCheckpoint, and UnknownName for a model without published weights.
    """
    for place in models:
        if is_model_name(place):
            find_published(str(place))
        elif not is_address(place):
            read_card(locate_model(place))


def name_results(path: Path, models: Sequence[str | Path]) -> list[Path]:
    """The paths of the predictions tables: `path`, and before it for several Classifiers one beside it for each."""
    return [*(name_apart(path, _name(models)) if len(models) > 1 else ()), path]


def write_results(found: Measurement, path: Path, *, models: Sequence[str | Path]) -> list[Path]:
    """Write the predictions table; for several Classifiers that of the ensemble, and beside it that of each.

    Raises BadOutput, and MissingExtra for Parquet without pyarrow.
    """
    paths = name_results(path, models)
    for one, place in zip(found.evaluations, paths, strict=True):
        one.predictions.save(place)
    return paths


def report_on(
    found: Measurement,
    data: ImageDataset,
    path: str | Path,
    *,
    models: Sequence[str | Path],
    device: str = "auto",
) -> None:
    """Write the evaluation report; raises BadOutput.

    Args:
        found: The result of the evaluation.
        data: The dataset.
        path: The .html file to write.
        models: The Classifiers' files or runs' folders; of a single one the training curves are shown, and its
            most confident errors are explained.
        device: The device that computes the explanations.
    """
    alone = len(models) == 1
    folder = Path(models[0]) if Path(models[0]).is_dir() else Path(models[0]).parent
    history = read_history(folder / "metrics.csv") if alone and (folder / FILE_NAME).is_file() else ()
    provenance = found.card.provenance if alone else {}
    best_epoch = read_entry(provenance, "metrics").get("epoch")
    images = [image for split in data.splits.values() for image in split]
    predictions = found.evaluations[-1].predictions
    write_report(
        found.evaluations,
        path,
        images=images,
        explanations=explain_errors(ModelFile(models[0]), predictions, images, device=device) if alone else {},
        story=Story(
            history=history,
            best_epoch=best_epoch,
            provenance=provenance,
            steps=suggest_steps(models[0], data.name, task=data.task),
        ),
        comparisons=found.comparisons,
    )


def _name(models: Sequence[str | Path]) -> list[str]:
    """The name of each: of its run's folder or its file; the whole path where two names would be the same."""
    short = []
    for place in map(Path, models):
        best = place.name == "best.safetensors" and place.resolve().parent.name
        short.append(best or place.resolve().name.removesuffix(".safetensors"))
    return [str(place) if short.count(name) > 1 else name for place, name in zip(models, short, strict=True)]


def _demand_same_classes(models: Sequence[str | Path], names: Sequence[str]) -> None:
    """Refuse, before any work, Classifiers of different classes."""
    if len(models) < 2 or any(is_address(place) for place in models):
        return
    classes = [set(read_card(locate_model(place)).labels) for place in models]
    for name, known in zip(names, classes, strict=True):
        if other := sorted(known ^ classes[0]):
            raise BadInput(
                f"{names[0]} and {name} have different classes ({', '.join(other[:5])}), and cannot be compared; "
                "evaluate each alone"
            )


def _demand_ranges(models: Sequence[str | Path]) -> None:
    """Refuse int8, before any work, where a Classifier has no activation ranges."""
    for place in models:
        if not is_address(place):
            try:
                check_precision("int8", read_card(locate_model(place)).activation_ranges)
            except BadConfiguration as problem:
                raise BadConfiguration(f"{place}: {problem}") from problem


def _calibrate(
    classifier: "Model",
    place: str | Path,
    found: Evaluation,
    wanted_precision: float | None,
) -> tuple[Evaluation, tuple[str, ...]]:
    """Fit temperature and threshold, store them in the file, and evaluate with them."""
    from vggkit.evaluation.measure import CALIBRATED_HERE, THRESHOLDS_HERE

    target = locate_model(place)
    raw = found.predictions.sharpen(1 / classifier.temperature)
    before = read_entry(classifier.provenance, "calibration").get("wanted_precision")
    if wanted_precision is None and classifier.threshold > 0 and isinstance(before, float):
        wanted_precision = before  # the stored threshold is for other probabilities
    fit = fit_temperature(raw)
    fitted, thresholds = raw.sharpen(fit.temperature), None
    if isinstance(fitted, MultiLabelPredictions):
        thresholds = choose_thresholds(fitted)
        fitted = replace(fitted, thresholds=thresholds)
    renewed = score(
        fitted,
        data=found.data,
        split=found.split,
        model=found.model,
        protocol=found.protocol,
        temperature=fit.temperature,
        wanted_precision=wanted_precision,
        images=found.images,
        unreadable=found.unreadable,
        notes=tuple(
            dict.fromkeys(
                [
                    *found.notes,
                    *([CALIBRATED_HERE] if fit.temperature != 1 else []),
                    *([THRESHOLDS_HERE] if thresholds else []),
                ]
            )
        ),
    )
    if wanted_precision is not None and renewed.rejection is None:
        raise BadInput(
            f"no threshold gives a precision of {wanted_precision:g} on these {found.n} images, for even the "
            "most confident predictions are wrong too often; use a lower precision, or train further. Nothing was "
            "changed"
        )
    about = {
        **asdict(fit),
        "data": found.data,
        "split": found.split,
        "images": found.images,
        "wanted_precision": wanted_precision,
    }
    threshold = 0.0 if renewed.rejection is None else renewed.rejection.threshold
    classifier.calibrate(temperature=fit.temperature, threshold=threshold, thresholds=thresholds, about=about)
    classifier.save(target)
    messages = [fit.describe()]
    if wanted_precision is not None:
        messages.append(f"threshold {threshold:.4g}: predictions of lower confidence are “unknown” from now on")
    if thresholds is not None:
        messages.append(
            f"thresholds {min(thresholds):.3g} to {max(thresholds):.3g}: those of the highest F1 of each class"
        )
    return renewed, (*messages, f"stored in {target}")
