"""The evaluation that ends a training: of the best epoch's weights, on the test or else the validation split."""

from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from vggkit.errors import BadImage
from vggkit.evaluation.calibration import TemperatureFit, fit_temperature
from vggkit.evaluation.evaluation import Evaluation
from vggkit.evaluation.label_predictions import MultiLabelPredictions, choose_thresholds, gather_predictions
from vggkit.evaluation.measure import CALIBRATED_HERE, THRESHOLDS_HERE, predict_labelled
from vggkit.evaluation.metrics import score
from vggkit.evaluation.predictions import Predictions
from vggkit.evaluation.protocols import plan_protocol, prepare_engines
from vggkit.images.class_names import shorten_names
from vggkit.images.dataset import ImageDataset, identify_images
from vggkit.reports.progress import ProgressLine
from vggkit.training.callbacks import FitResult
from vggkit.training.distributed.process_group import ProcessGroup
from vggkit.training.recipe import Recipe
from vggkit.weights.model import Model


def evaluate_best(
    classifier: Model,
    dataset: ImageDataset,
    recipe: Recipe,
    result: FitResult,
    *,
    device: torch.device,
    line: ProgressLine,
    group: ProcessGroup,
) -> Evaluation:
    """Evaluate the best weights on the test split, or else on the validation split, on which the temperature of the
    probabilities is fitted first.
    """
    split = "test" if "test" in dataset.splits else "val"
    protocol = plan_protocol("single", classifier.preprocessing)
    if result.probe is None:
        engines = prepare_engines(classifier, protocol, device=device)

    def predict(split: str) -> Predictions | None:
        """Of all images, in the first process."""
        if result.probe is not None:
            if not group.is_first:
                return None
            logs = classifier.card.activation.log(result.probe.compute_logits(split))
            return gather_predictions(classifier.card, dataset.split(split), logs)
        images = group.take_share(dataset.split(split))
        if not images:  # there are fewer than processes
            return _join(group.gather(None))
        predictions, unreadable = predict_labelled(
            classifier,
            images,
            protocol,
            engines=engines,
            batch_size=recipe.batch_size or 32,
            on_progress=lambda done, total: line.show(f"evaluating on {split}", done, total),
        )
        if unreadable:
            raise BadImage(f"{unreadable[0]}; it could be read when the training began")
        return _join(group.gather(predictions))

    # Every split is predicted at a temperature of 1, before the Classifier gets its own.
    val = predict("val")
    headline = val if split == "val" else predict(split)

    def calibrate() -> TemperatureFit:
        assert val is not None, "the first process has all predictions"
        return fit_temperature(val, seed=recipe.seed)

    fit = group.lead(calibrate)
    line.log(fit.describe())

    def choose() -> tuple[float, ...] | None:
        if not isinstance(val, MultiLabelPredictions):
            return None
        return choose_thresholds(val.sharpen(fit.temperature))

    thresholds = group.lead(choose)
    if thresholds is not None:
        line.log(
            f"thresholds {min(thresholds):.3g} to {max(thresholds):.3g}: those of the highest F1 of each class on "
            f"the validation images"
        )
    classifier.calibrate(
        temperature=fit.temperature,
        thresholds=thresholds,
        about={**asdict(fit), "split": "val", "images": identify_images(dataset.split("val"))},
    )

    def measure() -> Evaluation:
        assert headline is not None, "the first process has all predictions"
        calibrated = headline.sharpen(fit.temperature)
        if thresholds is not None and isinstance(calibrated, MultiLabelPredictions):
            calibrated = replace(calibrated, thresholds=thresholds)
        return score(
            calibrated,
            data=dataset.name,
            split=split,
            model=classifier.configuration.model,
            protocol=str(protocol),
            temperature=fit.temperature,
            images=identify_images(dataset.split(split)),
            notes=_list_notes(
                dataset,
                split,
                epochs=len(result.history),
                calibrated=fit.temperature != 1,
                with_thresholds=thresholds is not None,
            ),
        )

    return group.lead(measure)


def _join(parts: Sequence[Predictions | None]) -> Predictions | None:
    """The predictions of all processes, in the first one."""
    there = [part for part in parts if part is not None]
    return Predictions.join(there) if len(there) > 1 else next(iter(there), None)


def _list_notes(
    dataset: ImageDataset, split: str, *, epochs: int, calibrated: bool, with_thresholds: bool
) -> tuple[str, ...]:
    """Notes for the interpretation of the metrics."""
    notes = []
    train, evaluated = dataset.count("train"), dataset.count(split)
    if absent := [label for label, count in evaluated.items() if not count]:
        notes.append(f"no images of {shorten_names(absent, most=12)}: these classes are not evaluated")
    if unlearnt := [label for label, count in train.items() if not count and evaluated[label]]:
        notes.append(
            f"no images of {shorten_names(unlearnt, most=12)} are in the training split, but some are evaluated"
        )
    if split == "val":
        if epochs > 1:
            notes.append(
                f"the best of {epochs} epochs was chosen on these same images, so these figures are slightly "
                "optimistic; images in a split test would give an unbiased estimate"
            )
        if calibrated:
            notes.append(CALIBRATED_HERE)
        if with_thresholds:
            notes.append(THRESHOLDS_HERE)
    return tuple(notes)
