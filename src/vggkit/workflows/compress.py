"""A Classifier made smaller and faster, with what that cost: `vggkit.compress`.

What is asked for is either goals (size, loss, speed), for which a combination of steps is searched, or the steps
themselves.
"""

import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from vggkit.arguments import demand_count, demand_share, is_number, plain_number
from vggkit.classifier import Classifier
from vggkit.compression.fine_tuning import FineTuning
from vggkit.compression.images import RoleImages, divide_roles
from vggkit.compression.low_rank import check_ranks
from vggkit.compression.measuring import predict_all
from vggkit.compression.rebuild import build_network, copy_state
from vggkit.compression.records import CompressionPoint, CompressionRecord, Goals
from vggkit.compression.search import Candidate, Search, Variant
from vggkit.compression.steps import Compressed, Compressor
from vggkit.errors import BadConfiguration, BadInput
from vggkit.evaluation.calibration import fit_temperature
from vggkit.evaluation.comparison import PairedComparison, compare_predictions
from vggkit.evaluation.label_predictions import MultiLabelPredictions, choose_thresholds
from vggkit.files import demand_apart, demand_writable
from vggkit.hardware import choose_device, name_processor
from vggkit.images.labelled import LabelledImages
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.images.sources.tables import Columns
from vggkit.interruption import handle_signals
from vggkit.models.configuration import Head
from vggkit.notebook import write_html
from vggkit.reports.progress import ProgressLine
from vggkit.weights.card import demand_classifier
from vggkit.weights.locate import locate_model
from vggkit.weights.model import Model
from vggkit.weights.storage import Storage

RECORD_BYTES: Final = 8_192
"""Bytes of the largest size that are set apart for the record of the compression."""
_SIZES: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True, slots=True)
class Compression:
    """The result of a compression."""

    classifier: Classifier
    """The compressed Classifier."""
    record: CompressionRecord
    """Before and after, and every network that was measured on the way."""

    def __repr__(self) -> str:
        before, chosen = self.record.before, self.record.chosen
        return f"Compression({chosen.name}: {before.size_bytes:,} to {chosen.size_bytes:,} bytes)"

    def _repr_html_(self) -> str:
        rows = [
            (
                f"{point.name}, {point.storage}, {point.precision}",
                f"{point.size_bytes / 1e6:,.3g} MB",
                "" if point.top1 is None else f"{100 * point.top1:.1f} %",
                "" if point.speedup is None else f"{point.speedup:.2g}×",
            )
            for point in self.record.points
        ]
        header = ("network", "file", self.record.before.figure, "speed")
        return write_html(f"Compression: {self.record.chosen.name}", rows, header=header)


def compress(
    model: Model | str | Path,
    data: LabelledImages | None = None,
    *,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    out: str | Path | None = None,
    max_size: str | int | None = None,
    max_loss: float | None = None,
    min_speedup: float | None = None,
    head: Literal["pool"] | None = None,
    prune: float | None = None,
    ranks: Sequence[int] = (),
    energy: float | None = None,
    storage: Storage | None = None,
    epochs: int = 5,
    learning_rate: float | None = None,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> Compression:
    """Make a Classifier smaller and faster, and measure what that costs.

    With goals (`max_size`, `max_loss`, `min_speedup`) a combination is searched: the pool head, channels of
    convolutions removed, low rank, and weights in fewer bits. Without goals the named steps alone are done. With
    neither, `max_loss=0.005` is the goal where there is data; without data the weights are stored in int8.

    Images have one role each: networks are fitted on the training split, compared on the validation split, and the
    one that is chosen is measured once, beside the Classifier as it was, on the test split. Of data without splits
    60, 20 and 20 % of each class; data that the Classifier was trained on is divided as it was then.

    Args:
        model: A Classifier, which is not changed; or its place: a file, a run's folder, a published model's name
            such as `vgg16`, or `hf://owner/name`.
        data: Labelled images of its classes, as `train` takes them. Without any, nothing is pruned or fitted.
        columns: Names of a table's columns.
        out: The file of the compressed Classifier; None: it is only returned.
        max_size: Largest size of the file: bytes, or text such as `12MB` (10⁶) or `12MiB` (2²⁰).
        max_loss: Largest loss of top-1 accuracy, or of micro F1 for several labels an image, in [0, 1), on the
            images that networks are compared on.
        min_speedup: Least throughput at batch 8 on this machine, over that of the Classifier as it was, in float32.
        head: `pool`: one matrix on the means of the channels in place of the fully connected layers.
        prune: Share in (0, 1) of the multiply-adds to remove, as channels of convolutions.
        ranks: Rank of each fully connected layer but the last; one for all, or one for each.
        energy: Share in (0, 1] of the energy of these layers to keep, by which their ranks are chosen.
        storage: How the file holds the weights: `fp32`, `fp16`, `int8` or `int4`; they are restored in float32.
        epochs: Passes over the training images after channels or the head changed, with the Classifier as it was as
            the teacher; 0: none.
        learning_rate: Of these; None: half of that of the Classifier's own training.
        seed: Seed of every random draw.
        device: `auto`, `cpu`, `cuda` or `mps`.
        quiet: No progress on standard error.

    Raises BadInput for goals that cannot be reached, with the closest that was found, for ranks above a matrix and
    for steps that need images where there are none; BadConfiguration for options that contradict each other;
    BadData, BadImage, BadOutput and MissingExtra. Nothing is written then, nor where it is stopped.
    """
    goals = _read_goals(max_size, max_loss, min_speedup)
    steps = _Steps.check(head=head, prune=prune, ranks=ranks, energy=energy, storage=storage)
    tuning = FineTuning(
        epochs=demand_count("epochs", epochs, least=0),
        learning_rate=learning_rate,
        seed=demand_count("seed", seed, least=0),
    )
    _check_together(goals, steps, has_data=data is not None)
    if goals == Goals() and steps == _Steps():
        goals, steps = (Goals(max_loss=0.005), steps) if data is not None else (goals, _Steps(storage="int8"))
    if out is not None:
        demand_writable(out)
        demand_apart(out, [locate_model(model)] if isinstance(model, str | Path) else [])
    original = _open(model)
    if steps.ranks:
        check_ranks(original.configuration, steps.ranks)
    with ExitStack() as stack:
        line = stack.enter_context(ProgressLine(quiet=quiet))
        signals = stack.enter_context(handle_signals())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vggkit-compress-")))
        images = None
        if data is not None:
            line.show("opening the images", 0, None)
            dataset = open_dataset(data, columns=columns).spelled_as(original.labels)
            if out is not None:
                demand_apart(out, dataset.list_sources())
            images = divide_roles(dataset, original, seed=tuning.seed)
            for role in images.roles:
                line.log(f"{role.images:,} images to {_PURPOSES[role.purpose]}: {role.split} of {dataset.name}")
        compressor = Compressor(
            original=original,
            images=images,
            fine_tuning=tuning,
            device=choose_device(device),
            folder=folder,
            on_progress=line.show,
            log=line.log,
            signals=signals,
        )
        spared = goals.max_size_bytes and max(1, goals.max_size_bytes - RECORD_BYTES)
        search = Search(compressor, replace(goals, max_size_bytes=spared or None))
        chosen = search.run() if goals != Goals() else _follow(steps, compressor, search)
        made = Classifier.of(Model.load(chosen.path))
        comparison = None
        if images is not None:
            _calibrate(made, images, compressor, chosen.point)
            comparison = _compare(original, made, images, compressor, chosen.point)
        record = CompressionRecord(
            before=search.before.point,
            chosen=chosen.point,
            points=search.points,
            goals=goals,
            roles=() if images is None else images.roles,
            comparison=comparison,
            machine=name_processor(),
        )
        record = _finish(made, record, out=Path(out) if out is not None else folder / "finished.safetensors")
    return Compression(made, record)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """The steps that were named."""

    head: Head | None = None
    prune: float | None = None
    ranks: tuple[int, ...] = ()
    energy: float | None = None
    storage: Storage | None = None

    @classmethod
    def check(cls, *, ranks: Sequence[int], energy: float | None, storage: Any, head: Any, prune: Any) -> "_Steps":
        """The steps of these options; raises BadInput and BadConfiguration."""
        if head not in (None, "pool"):
            raise BadInput(f"head must be pool, the only one that another can be replaced by; got {head!r}")
        if storage is not None and storage not in get_args(Storage):
            raise BadInput(f"storage must be one of {', '.join(get_args(Storage))}; got {storage!r}")
        if prune is not None and not 0 < demand_share("prune", prune) < 1:
            raise BadInput(f"prune must be a share above 0 and below 1, got {prune!r}")
        if energy is not None:
            energy = demand_share("energy", energy)
        chosen = (ranks,) if isinstance(ranks, int) else tuple(ranks)
        chosen = tuple(demand_count("each of ranks", rank) for rank in chosen)
        if chosen and energy is not None:
            raise BadConfiguration("ranks and energy both choose the ranks; give one of them")
        if head == "pool" and (chosen or energy is not None):
            raise BadConfiguration("head=pool leaves only the last fully connected layer, which keeps its rank")
        return cls(head=head, prune=prune, ranks=chosen, energy=energy, storage=storage)


_PURPOSES: Final = {
    "fit": "rank channels, fit layers and train on",
    "choose": "compare networks on",
    "report": "report on",
}


def _read_goals(max_size: str | int | None, max_loss: float | None, min_speedup: float | None) -> Goals:
    size = None if max_size is None else read_size(max_size)
    loss, speedup = plain_number(max_loss), plain_number(min_speedup)
    if loss is not None and not (is_number(loss) and 0 <= loss < 1):
        percent = f"; {loss:g} points are {loss / 100:g}" if is_number(loss) and 1 <= loss <= 100 else ""
        raise BadInput(f"max_loss must be a loss of accuracy of 0 or more and below 1, got {max_loss!r}{percent}")
    if speedup is not None and not (is_number(speedup) and speedup > 0):
        raise BadInput(f"min_speedup must be a number above 0, such as 8; got {min_speedup!r}")
    return Goals(max_size_bytes=size, max_loss=loss, min_speedup=speedup)


def read_size(given: str | int) -> int:
    """Bytes, of a number or of text such as `12MB`, `5.3 MB` or `500 KiB`; raises BadInput.

    >>> read_size("5.3MB"), read_size("1 MiB"), read_size(800)
    (5300000, 1048576, 800)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?i?B)?\s*", str(given), re.IGNORECASE | re.ASCII)
    size = 0 if found is None else round(float(found[1]) * _SIZES[(found[2] or "").upper()])
    if size < 1:
        raise BadInput(f"max_size must be bytes, or a size such as 12MB, 5.3MB or 500KiB; got {given!r}")
    return size


def _check_together(goals: Goals, steps: _Steps, *, has_data: bool) -> None:
    """Raise BadConfiguration for goals beside steps, BadInput for what needs images where there are none."""
    if goals != Goals() and steps != _Steps():
        raise BadConfiguration(
            "max_size, max_loss and min_speedup choose the steps, and steps were named too (head, prune, ranks, "
            "energy, storage); give either"
        )
    needing = {"max_loss": goals.max_loss, "prune": steps.prune, "head=pool": steps.head}
    for name, value in needing.items():
        if value is not None and not has_data:
            raise BadInput(
                f"{name} needs labelled images, which layers are fitted and accuracy is measured on; name some: "
                "vggkit compress MODEL DATA"
            )


def _open(model: Model | str | Path) -> Model:
    """A copy of the Classifier, its network on the CPU in float32 and in evaluation mode."""
    if isinstance(model, str | Path):
        model = Model.load(locate_model(model))
    card = demand_classifier(model, "compress")
    network = build_network(card.configuration, copy_state(model.network))
    held = Model(network, labels=card.labels, preprocessing=card.preprocessing, task=card.task)
    held.card = card
    return held


def _follow(steps: _Steps, compressor: Compressor, search: Search) -> Candidate:
    """The named steps, in the order in which each finds the least left to do."""
    made = compressor.fold(Compressed(compressor.original))
    if steps.head == "pool":
        made = compressor.put_pool_head(made)
    if steps.prune is not None:
        made = compressor.prune(made, steps.prune)
    if steps.ranks:
        made = compressor.factorize(made, ranks=check_ranks(made.model.configuration, steps.ranks))
    elif steps.energy is not None:
        made = compressor.factorize(made, energy=steps.energy)
    if steps.head is not None or steps.prune is not None:
        made = compressor.fine_tune(made)
    storage: Storage = steps.storage or "fp32"
    variants: tuple[Variant, ...] = ((storage, "fp32"),)
    return search.try_variants(made, variants)[0]


def _calibrate(made: Model, images: RoleImages, compressor: Compressor, point: CompressionPoint) -> None:
    """Fit the temperature of the probabilities on the images that networks are compared on."""
    made.card = replace(made.card, temperature=1.0, thresholds=())
    found = predict_all(made, images.choose, precision=point.precision, device=compressor.device)
    fit = fit_temperature(found, seed=compressor.fine_tuning.seed)
    digest = next(role.digest for role in images.roles if role.purpose == "choose")
    thresholds = None
    if isinstance(found, MultiLabelPredictions):
        thresholds = choose_thresholds(found.sharpen(fit.temperature))
    made.calibrate(
        temperature=fit.temperature,
        thresholds=thresholds,
        about={**asdict(fit), "split": "val", "images": digest},
    )


def _compare(
    original: Model, made: Model, images: RoleImages, compressor: Compressor, point: CompressionPoint
) -> PairedComparison:
    """Accuracy before and after on the images for the report."""

    def predict(model: Model, precision: Any) -> Any:
        return predict_all(
            model,
            images.report,
            precision=precision,
            device=compressor.device,
            on_progress=lambda done, total: compressor.on_progress("measuring the result", done, total),
        )

    return compare_predictions(
        predict(original, "fp32"), predict(made, point.precision), names=("before", "compressed")
    )


def _finish(made: Classifier, record: CompressionRecord, *, out: Path) -> CompressionRecord:
    """Write the Classifier with the record of its compression; gives the record with the size of that file."""
    provenance = {"compression": record.to_dict() | {"points": len(record.points)}}
    made.save(out, provenance=provenance)
    return replace(record, chosen=replace(record.chosen, size_bytes=out.stat().st_size))
