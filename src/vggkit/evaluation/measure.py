"""How good a Classifier is, on labelled images it was not trained on."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vggkit.arguments import demand_count, demand_share
from vggkit.engines.info import EngineInfo, WantedEngine, explain_choice
from vggkit.engines.outputs import WantedPrecision
from vggkit.errors import BadData
from vggkit.evaluation.evaluation import Evaluation, ProtocolName
from vggkit.evaluation.metrics import score
from vggkit.evaluation.predictions import Predictions
from vggkit.evaluation.protocols import Engines, Protocol, look_at, plan_protocol, prepare_engines
from vggkit.images.class_names import hint_at_lookalikes, shorten_names
from vggkit.images.dataset import ImageDataset, ImageSample, identify_images
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.images.splits import hold_out
from vggkit.weights.card import demand_classifier, read_entry
from vggkit.weights.model import Model

LEARNT: Final = "the Classifier was trained on these very images: the figures say nothing about new ones"
CHANGED: Final = (
    "the Classifier was trained on a part of this place, which holds other images by now: those that it learnt "
    "from cannot be told from the rest, and count"
)
CALIBRATED_HERE: Final = "the temperature was fitted on these very images; new ones may be less well calibrated"


def evaluate(
    classifier: Model,
    data: str | Path | ImageDataset,
    *,
    split: str | None = None,
    protocol: ProtocolName = "single",
    scales: Sequence[int] = (),
    train_scales: Sequence[int] = (),
    mirror: bool | None = None,
    wanted_precision: float | None = None,
    name: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: WantedPrecision = "fp32",
    engine: WantedEngine = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Compare a Classifier's answers with the labels of images.

    Args:
        classifier: The Classifier to measure; classes are matched by name.
        data: What `open_dataset` takes, or labelled images already opened.
        split: `train`, `val`, `test` or `all`. None: the test split, else the validation split, else
            everything; of a place the Classifier was trained on without splits, the share that
            was held out then.
        protocol: `single`: one view, as in prediction; `dense`, `multi-scale`, `multi-crop`,
            `dense+crops`: the paper's tests, see `plan_protocol`.
        scales: Short sides in pixels that these look at; none: as in the paper, from `train_scales`.
        train_scales: Short side that the network was trained at, or both ends of a range; none: as the
            preprocessing resizes.
        mirror: Average over each image and its mirror image; None: in all protocols but `single`.
        wanted_precision: Look for the probability from which on answers are right that often.
        name: What the Classifier is called; None: after its model.
        batch_size: Images that pass through the network together.
        device: `auto`, `cpu`, `cuda`, `mps`.
        precision: What is computed in; what is not fp32 is noted, for figures are those of that precision. auto:
            bf16 where the device multiplies it by itself. int8 is for processors, and needs the Classifier's
            `ranges`.
        engine: What computes; auto: PyTorch on CUDA and MPS and for whole images, else OpenVINO, ONNX Runtime
            or PyTorch, the first that is installed and computes in that precision.
        on_progress: Called with the number of images done and of all.

    Raises BadData where no class of the images is known to the Classifier, BadInput, also where the network's
    values overflow, BadConfiguration for
    an engine that does not compute so, and MissingExtra without scikit-learn.
    """
    batch_size = demand_count("batch_size", batch_size)
    demand_classifier(classifier, "evaluate")
    if wanted_precision is not None:
        wanted_precision = demand_share("wanted_precision", wanted_precision)
    plan = plan_protocol(
        protocol, classifier.preprocessing, scales=scales, train_scales=train_scales, mirror=mirror
    )
    opened = data if isinstance(data, ImageDataset) else open_dataset(data)
    opened = opened.spelled_as(classifier.labels)
    split, images, notes = _choose(classifier, opened, split)
    known = _match(classifier, opened, images, notes)
    engines = prepare_engines(classifier, plan, device=device, precision=precision, engine=engine)
    notes += _note_precision([each.info for each in engines.values()], precision=precision, engine=engine)
    predictions, unreadable = ask(
        classifier, known, plan, engines=engines, batch_size=batch_size, on_progress=on_progress
    )
    if not len(predictions):
        raise BadData(f"{opened.name}: none of its {len(known)} images can be read; the first: {unreadable[0]}")
    digest = identify_images(images)
    calibration = read_entry(classifier.provenance, "calibration")
    if classifier.temperature != 1 and calibration.get("pictures") == digest:
        notes.append(CALIBRATED_HERE)
    return score(
        predictions,
        data=opened.name,
        split=split,
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


def ask(
    classifier: Model,
    images: Sequence[ImageSample],
    protocol: Protocol,
    *,
    engines: Engines,
    batch_size: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Predictions, tuple[str, ...]]:
    """The answers to labelled images of classes the Classifier knows, and why others cannot be read.

    Args:
        classifier: The Classifier to ask.
        images: Labelled ones.
        protocol: How each is looked at.
        engines: What `prepare_engines` gave for the protocol.
        batch_size: Images that pass through the network together.
        on_progress: Called with the number of images done and of all.
    """
    numbers = {label: number for number, label in enumerate(classifier.labels)}
    rows: list[NDArray[np.float64]] = []
    paths, targets, unreadable = [], [], []
    looked = look_at(classifier, images, protocol, engines, batch_size=batch_size)
    for done, (image, logs, problem) in enumerate(looked, start=1):
        if logs is None:
            unreadable.append(str(problem))
        else:
            rows.append(logs)
            paths.append(image.path)
            targets.append(numbers[str(image.label)])
        if on_progress:
            on_progress(done, len(images))
    predictions = Predictions(
        paths=tuple(paths),
        targets=np.asarray(targets, np.int64),
        log_probabilities=np.asarray(rows, np.float64).reshape(len(rows), len(numbers)),
        labels=classifier.labels,
    )
    return predictions, tuple(unreadable)


def _note_precision(used: Sequence[EngineInfo], *, precision: WantedPrecision, engine: WantedEngine) -> list[str]:
    """Which engines computed, where they round more than float32 does or do not compute in what was requested."""
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
) -> list[ImageSample]:
    """The images of classes that the Classifier knows by name; what does not match is noted, on both sides."""
    unknown = sorted({str(p.label) for p in images} - set(classifier.labels))
    hint = hint_at_lookalikes(unknown, classifier.labels)
    if len(unknown) == len({p.label for p in images}):
        raise BadData(
            f"{opened.name}: none of its classes ({', '.join(unknown[:5])}) is known to this Classifier "
            f"({', '.join(classifier.labels[:5])}){hint}"
        )
    known = [image for image in images if image.label in set(classifier.labels)]
    if unknown:
        notes.append(
            f"{len(images) - len(known)} images of classes unknown to the Classifier were left out: "
            + shorten_names(unknown, most=12)
            + hint
        )
    if absent := sorted(set(classifier.labels) - {str(p.label) for p in known}):
        notes.append(f"no images of {shorten_names(absent, most=12)}: nothing is measured of them")
    return known


def _choose(
    classifier: Model, opened: ImageDataset, split: str | None
) -> tuple[str, tuple[ImageSample, ...], list[str]]:
    """The split to measure on, its images, and what to say about the choice."""
    trained_on = read_entry(classifier.provenance, "data")
    same = trained_on.get("fingerprint") == opened.fingerprint()
    notes: list[str] = []
    fold = trained_on.get("fold")
    if same and ("val" not in opened.splits or fold) and split in (None, "val", "train"):
        divided = hold_out(
            opened, validation_share=trained_on["validation_share"], seed=trained_on["seed"], fold=fold
        )
        chosen = split or ("test" if "test" in divided.splits else "val")
        if split is None and chosen == "val":
            notes.append(f"of {opened.name} only the split {chosen} counts: the Classifier was trained on the rest")
    else:
        divided = opened
        chosen = split or next((name for name in ("test", "val", "all") if name in opened.splits), "")
        if not chosen:
            raise BadData(
                f"{opened.name}: has only the split train; say --split train to measure on it all the same"
            )
    images = divided.split(chosen)
    held_out, digest = read_entry(trained_on, "held_out"), identify_images(images)
    learnt = digest not in held_out.values() if held_out else chosen in ("train", "all")
    if same and learnt:
        # The same images by another way may be divided otherwise than when they were learnt from.
        if split is None and chosen not in ("train", "all"):
            raise BadData(
                f"{opened.name}: the Classifier was trained on these very images, divided otherwise: by other "
                "splits or groups, or by a version of vggkit that dealt such groups in another way. Give them as "
                f"they were given to train ({trained_on.get('name')}, with the same columns), or say --split to "
                "measure all the same"
            )
        notes = [LEARNT]
    elif digest == trained_on.get("learnt"):  # the training split, given by itself
        notes = [LEARNT]
    elif not same and chosen == "all" and _is_place(opened.name, trained_on.get("name")):
        notes.append(CHANGED)
    return chosen, images, notes


def _is_place(name: str, other: object) -> bool:
    return isinstance(other, str) and os.path.realpath(name) == os.path.realpath(other)
