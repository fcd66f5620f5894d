"""The evaluation that ends a training: of the best epoch's weights, on the test or else the validation split."""

from dataclasses import asdict

import torch

from vggkit.errors import BadImage
from vggkit.evaluation.calibration import TemperatureFit, fit_temperature
from vggkit.evaluation.evaluation import Evaluation
from vggkit.evaluation.measure import CALIBRATED_HERE, predict_labelled
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
            return Predictions.of(
                result.probe.compute_logits(split),
                result.probe.features[split].targets,
                labels=classifier.labels,
                paths=[image.name for image in dataset.split(split)],
            )
        images = group.take_share(dataset.split(split))
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
        parts = group.gather(predictions)
        return Predictions.join(parts) if len(parts) > 1 else next(iter(parts), None)

    # Every split is predicted at a temperature of 1, before the Classifier gets its own.
    val = predict("val")
    headline = val if split == "val" else predict(split)

    def calibrate() -> TemperatureFit:
        assert val is not None, "the first process has all predictions"
        return fit_temperature(val, seed=recipe.seed)

    fit = group.lead(calibrate)
    line.log(fit.describe())
    classifier.calibrate(
        temperature=fit.temperature,
        about={**asdict(fit), "split": "val", "images": identify_images(dataset.split("val"))},
    )

    def measure() -> Evaluation:
        assert headline is not None, "the first process has all predictions"
        return score(
            headline.sharpen(fit.temperature),
            data=dataset.name,
            split=split,
            model=classifier.configuration.model,
            protocol=str(protocol),
            temperature=fit.temperature,
            images=identify_images(dataset.split(split)),
            notes=_list_notes(dataset, split, epochs=len(result.history), calibrated=fit.temperature != 1),
        )

    return group.lead(measure)


def _list_notes(dataset: ImageDataset, split: str, *, epochs: int, calibrated: bool) -> tuple[str, ...]:
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
    return tuple(notes)
