"""Evaluation of a Classifier on labelled images that it was not trained on."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vggkit.arguments import demand_count, demand_share
from vggkit.engines.averaged_views import Views
from vggkit.engines.info import EngineInfo, WantedEngine, explain_choice
from vggkit.engines.outputs import WantedPrecision
from vggkit.errors import BadData
from vggkit.evaluation.evaluation import Evaluation, ProtocolName
from vggkit.evaluation.label_predictions import gather_predictions
from vggkit.evaluation.metrics import score
from vggkit.evaluation.predictions import Predictions
from vggkit.evaluation.protocols import Engines, Protocol, evaluate_views, plan_protocol, prepare_engines
from vggkit.images.class_names import hint_at_lookalikes, shorten_names
from vggkit.images.dataset import ImageDataset, ImageSample, identify_images
from vggkit.images.labelled import LabelledImages
from vggkit.images.several_labels import demand_task, demand_whole_names
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.images.splits import hold_out
from vggkit.weights.card import demand_classifier, read_entry
from vggkit.weights.locate import locate_model
from vggkit.weights.model import Model

TRAINED_ON_THESE: Final = (
    "the Classifier was trained on these images: the results do not show how it performs on new ones"
)
DATA_CHANGED: Final = (
    "the Classifier was trained on a split of this dataset, which has changed since: its training images cannot be "
    "identified and are included in the results"
)
CALIBRATED_HERE: Final = (
    "the temperature was fitted on these images; the calibration on new images may be worse than shown"
)
THRESHOLDS_HERE: Final = (
    "the threshold of each class was chosen on these images, so F1, precision and recall are slightly optimistic"
)

REDUCED: Final = "large JPEGs were decoded at a smaller scale; figures at their full size may differ slightly"


def evaluate(
    model: Model | str | Path,
    data: LabelledImages,
    *,
    split: str | None = None,
    protocol: ProtocolName = "single",
    scales: Sequence[int] = (),
    train_scales: Sequence[int] = (),
    mirror: bool | None = None,
    views: Views = "one",
    wanted_precision: float | None = None,
    name: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: WantedPrecision = "fp32",
    engine: WantedEngine = "auto",
    reduced_decoding: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a Classifier on labelled images.

    Args:
        model: A Classifier; or its place: a file, a run's folder, a published model's name such as `vgg16`, or
            `hf://owner/name`. Classes are matched by name.
        data: A folder, table, archive or name or images from Python, as `open_dataset` takes them.
        split: `train`, `val`, `test` or `all`. None: the test split, else the validation split, else
            all images; of a dataset without splits that the Classifier was trained on, the images
            that were held out from training.
        protocol: `single`: one view of each image, as in prediction. The paper's (section 3.2): `dense`: the
            network applied to the whole image; `multi-scale`: the same at three sizes; `multi-crop`: 25 crops at
            each of three sizes; `dense+crops`: both, averaged.
        scales: Short sides in pixels of the evaluated sizes; by default the paper's, from `train_scales`.
        train_scales: Short side in pixels that the network was trained at, or both ends of its range; by
            default that of the preprocessing.
        mirror: Whether to average over each image and its mirror image; None: in all protocols but `single`.
        views: With the protocol single: the views of each image that are averaged, as for `predict`: `one`,
            `mirror`, or `mirror-shift`.
        wanted_precision: Search for the confidence threshold above which this share of the predictions is
            correct, above 0 and at most 1.
        name: Name of the Classifier in the result; None: the name of its model.
        batch_size: Number of images in a batch.
        device: `auto`, `cpu`, `cuda`, `mps`.
        precision: Number format of the computation; other formats than fp32 are noted in the result. `auto`:
            bf16 where the device supports it natively. `int8`: on processors only; needs the Classifier's
            activation ranges.
        engine: `pytorch`, `openvino`, `onnx` or `ncnn`; `auto`: PyTorch on CUDA and MPS and for whole images, else
            the first of ncnn (fp32 on x86 from 112 pixels on), OpenVINO, ONNX Runtime and PyTorch that is installed
            and supports the precision.
        reduced_decoding: Decode large JPEGs at a smaller scale, even where the Classifier does not: it is faster,
            reads some that are too large otherwise, and changes pixels slightly.
        on_progress: Called with the number of evaluated images and of all images.

    Raises BadData where the Classifier knows none of the classes, BadInput for wrong arguments and where the
    network's values overflow, and BadConfiguration where the engine does not support the precision or the network
    not the protocol.
    """
    batch_size = demand_count("batch_size", batch_size)
    if not isinstance(model, str | os.PathLike):
        demand_classifier(model, "evaluate")
    if wanted_precision is not None:
        wanted_precision = demand_share("wanted_precision", wanted_precision)
    classifier = Model.load(locate_model(model)) if isinstance(model, str | os.PathLike) else model
    plan = plan_protocol(
        protocol, classifier.preprocessing, scales=scales, train_scales=train_scales, mirror=mirror, views=views
    )
    opened = open_dataset(data)
    opened = opened.spelled_as(classifier.labels)
    chosen, images, notes = _choose_images(classifier, opened, split)
    notes += opened.notes
    known = _match(classifier, opened, images, notes)
    engines = prepare_engines(classifier, plan, device=device, precision=precision, engine=engine)
    if reduced_decoding and not classifier.preprocessing.reduced_decoding:
        notes.append(REDUCED)
    notes += _note_precision([each.info for each in engines.values()], precision=precision, engine=engine)
    predictions, unreadable = predict_labelled(
        classifier,
        known,
        plan,
        engines=engines,
        batch_size=batch_size,
        reduced_decoding=reduced_decoding,
        on_progress=on_progress,
    )
    if not len(predictions):
        raise BadData(f"{opened.name}: none of its {len(known)} images can be read; the first: {unreadable[0]}")
    digest = identify_images(images)
    calibration = read_entry(classifier.provenance, "calibration")
    if digest in (calibration.get("images"), calibration.get("pictures")):
        notes += [CALIBRATED_HERE] if classifier.temperature != 1 else []
        notes += [THRESHOLDS_HERE] if classifier.thresholds else []
    return score(
        predictions,
        data=opened.name,
        split=chosen,
        model=name or classifier.configuration.model,
        protocol=str(plan),
        temperature=classifier.temperature,
        threshold=classifier.threshold,
        wanted_precision=wanted_precision,
        averaged=len(plan.looks) > 1 or plan.mirror or plan.looks[0].way == "grid",
        images=digest,
        unreadable=unreadable,
        notes=tuple(notes),
    )


def predict_labelled(
    classifier: Model,
    images: Sequence[ImageSample],
    protocol: Protocol,
    *,
    engines: Engines,
    batch_size: int = 32,
    reduced_decoding: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Predictions, tuple[str, ...]]:
    """The predictions for labelled images, and the reasons why others cannot be read.

    Args:
        classifier: The Classifier.
        images: Labelled images, of classes that the Classifier knows.
        protocol: The evaluated views of each image.
        engines: The engines of `prepare_engines` for the protocol.
        batch_size: Number of images in a batch.
        reduced_decoding: As for `evaluate`.
        on_progress: Called with the number of evaluated images and of all images.
    """
    rows: list[NDArray[np.float64]] = []
    read, unreadable = [], []
    looked = evaluate_views(
        classifier, images, protocol, engines, batch_size=batch_size, reduced_decoding=reduced_decoding
    )
    for done, (image, logs, problem) in enumerate(looked, start=1):
        if logs is None:
            unreadable.append(str(problem))
        else:
            rows.append(logs)
            read.append(image)
        if on_progress:
            on_progress(done, len(images))
    logs = np.asarray(rows, np.float64).reshape(len(rows), len(classifier.labels))
    return gather_predictions(classifier.card, read, logs), tuple(unreadable)


def _note_precision(used: Sequence[EngineInfo], *, precision: WantedPrecision, engine: WantedEngine) -> list[str]:
    """The engines, where they are less precise than float32 or differ from the request."""
    coarse = dict.fromkeys(info.describe() for info in used if info.precision != "fp32")
    notes = [f"computed by {' and '.join(coarse)}; figures in float32 may differ"] if coarse else []
    if precision == "bf16":
        exact = [info for info in used if info.precision == "fp32"]
        notes += dict.fromkeys(
            f"computed by {explain_choice(info, precision=precision, engine=engine)}" for info in exact
        )
    return notes


def _match(
    classifier: Model, opened: ImageDataset, images: Sequence[ImageSample], notes: list[str]
) -> Sequence[ImageSample]:
    """The images of classes that the Classifier knows by name; unmatched classes on both sides are noted."""
    demand_task(opened, classifier.task)
    names, labels = set(classifier.labels), {label for image in images for label in image.classes}
    unknown = sorted(labels - names)
    if classifier.task == "multi-label":
        demand_whole_names(opened.name, unknown, classifier.labels)
    hint = hint_at_lookalikes(unknown, classifier.labels)
    if len(unknown) == len(labels):
        raise BadData(
            f"{opened.name}: none of its classes ({', '.join(unknown[:5])}) is known to the Classifier "
            f"({', '.join(classifier.labels[:5])}){hint}"
        )
    # All of them stay the sequence that they are, which may hold none of them in memory.
    known = images
    if unknown and classifier.task == "multi-label":
        known = [replace(image, labels=tuple(names.intersection(image.classes))) for image in images]
        count = sum(not names.issuperset(image.classes) for image in images)
        notes.append(
            f"labels of {count:,} images that the Classifier does not know were left out: "
            + shorten_names(unknown, most=12)
            + hint
        )
    elif unknown:
        known = [image for image in images if image.label in names]
        notes.append(
            f"{len(images) - len(known)} images of classes that the Classifier does not know were excluded: "
            + shorten_names(unknown, most=12)
            + hint
        )
    if absent := sorted(names - labels):
        notes.append(f"no images of {shorten_names(absent, most=12)}: these classes are not evaluated")
    return known


def _choose_images(
    classifier: Model, dataset: ImageDataset, split: str | None
) -> tuple[str, Sequence[ImageSample], list[str]]:
    """The split to measure on, its images, and notes about the choice; `split` is the requested one or None."""
    trained_on = read_entry(classifier.provenance, "data")
    same = trained_on.get("fingerprint") == dataset.fingerprint()
    notes: list[str] = []
    fold = trained_on.get("fold")
    if same and ("val" not in dataset.splits or fold) and split in (None, "val", "train"):
        divided = hold_out(
            dataset,
            validation_share=trained_on["validation_share"],
            seed=trained_on["seed"],
            fold=fold,
            copy_groups=trained_on.get("ties", ()),
        )
        chosen = split or ("test" if "test" in divided.splits else "val")
        if split is None and chosen == "val":
            notes.append(
                f"measured on the validation split of {dataset.name} only: the Classifier was trained on the rest"
            )
    else:
        divided = dataset
        chosen = split or next((name for name in ("test", "val", "all") if name in dataset.splits), "")
        if not chosen:
            raise BadData(
                f"{dataset.name}: has only the split train; pass --split train to measure on it all the same"
            )
    images = divided.split(chosen)
    held_out, digest = read_entry(trained_on, "held_out"), identify_images(images)
    learnt = digest not in held_out.values() if held_out else chosen in ("train", "all")
    if same and learnt:
        # The same images, given in another way, may be divided otherwise than for training.
        if split is None and chosen not in ("train", "all"):
            raise BadData(
                f"{dataset.name}: the Classifier was trained on these images, divided in another way: by other "
                "splits or groups, or by a version of vggkit that assigned groups to splits differently. Give the "
                f"data as it was given for training ({trained_on.get('name')}, with the same columns), or pass "
                "--split to measure all the same"
            )
        notes = [TRAINED_ON_THESE]
    elif digest == trained_on.get("learnt"):  # the training split, given by itself
        notes = [TRAINED_ON_THESE]
    elif not same and chosen == "all" and _is_same_place(dataset.name, trained_on.get("name")):
        notes.append(DATA_CHANGED)
    return chosen, images, notes


def _is_same_place(name: str, other: object) -> bool:
    return isinstance(other, str) and os.path.realpath(name) == os.path.realpath(other)
