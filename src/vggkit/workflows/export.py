"""The verb export: a Classifier as a file that runs without vggkit, checked before it gets its name."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vggkit.engines.model_weights import ModelFile, find_weights, open_for_engine
from vggkit.engines.outputs import Output
from vggkit.errors import BadConfiguration, BadData, BadImage
from vggkit.exporting.formats import Format, FormatName, choose_format
from vggkit.exporting.forms import demand_form
from vggkit.exporting.parity import Run, check_parity
from vggkit.exporting.plan import FITTED, ExportPlan, StoredPrecision
from vggkit.exporting.programs import find_program
from vggkit.exporting.record import Export
from vggkit.exporting.snippets import write_program_snippet, write_weights_snippet
from vggkit.exporting.synthetic_images import make_synthetic_images
from vggkit.exporting.web_site import DESCRIPTION
from vggkit.files import demand_apart, demand_replaceable, demand_writable, whole_files
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import Pixels
from vggkit.images.given import ImageSources, take_sources
from vggkit.images.sources.open_dataset import count_images, gather_images
from vggkit.images.sources.tables import Columns
from vggkit.inference.bulk import OnProgress
from vggkit.interruption import handle_signals
from vggkit.weights.convert import convert
from vggkit.weights.dialects import Dialect
from vggkit.workflows.export_site import export_site

if TYPE_CHECKING:
    from vggkit.engines.model_weights import Weights
    from vggkit.weights.model import Model

MOST_IMAGES: Final = 16
"""Largest number of the caller's images that a program is checked on, taken evenly from all of them."""


def export(
    model: "Model | str | Path",
    out: str | Path,
    *,
    to: FormatName | None = None,
    data: ImageSources = (),
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    resize: bool = False,
    precision: StoredPrecision = "fp32",
    on_progress: OnProgress | None = None,
) -> Export:
    """Write a Classifier as a file that runs without vggkit, and check it before it gets its name.

    ONNX, torch.export and OpenVINO files are programs from uint8 RGB images (N, H, W, 3) to probabilities (N, K) at
    the Classifier's temperature, with labels, threshold, versions and licence in the metadata. The file's own
    runtime runs it on images, at two batch sizes and, if height and width are dynamic, at two sizes; beyond the
    tolerance nothing is kept. The batch size is dynamic; height and width are so for the heads `pool` and `dense`.

    Args:
        model: A Classifier; or its place: a file, a run's folder, a published model's name such as `vgg16`, or
            `hf://owner/name`.
        out: The file; its ending says the format: `.onnx`, `.pt2`, `.xml` (OpenVINO, with a `.bin` beside it),
            `.pth`, `.pt` or `.safetensors` (torchvision), `.h5`, `.weights.h5` or `.npz` (Keras). With `web` a
            folder.
        to: The format, where several have the ending: `onnx`, `pt2`, `openvino`, `torchvision`, `timm` or `keras`;
            `web`: a folder for any static host, whose page classifies images in the browser.
        data: Images that a program is checked on, as `predict` takes them; up to 16 are used. None: four synthetic
            ones.
        columns: Names of a table's columns.
        resize: Resize and crop in the program, so that it takes images of any size.
        precision: `fp16` stores weights in half the bytes, and `int8` (ONNX and web) in a quarter, with a scale for
            each output; programs compute in float32 in any case.
        on_progress: Called with the current task, how much of it is done, and of how much.

    Raises UnknownName for an unknown ending, BadOutput if the file cannot be written or its results differ,
    BadConfiguration if the format cannot represent the network, MissingExtra, BadCheckpoint, BadData and BadInput.

    >>> from tempfile import TemporaryDirectory
    >>> from vggkit import Classifier, export
    >>> classifier = Classifier.create("vgg11", labels=["cat", "dog"], until="pool1", seed=0)
    >>> with TemporaryDirectory() as folder:
    ...     exported = export(classifier, f"{folder}/model.onnx")
    >>> exported.input_shape, exported.least_pixels
    (('N', 'H', 'W', 3), 2)
    """
    log = on_progress or (lambda what, done, total: None)
    chosen = choose_format(out, to)
    out = Path(out)
    if chosen.name == "web":
        demand_replaceable(out, ours=DESCRIPTION)
        if resize:
            raise BadConfiguration("resize must be off for a site: the page resizes images as Pillow does")
    else:
        demand_writable(out)
    given = [] if isinstance(data, tuple | list) and not data else list(take_sources(data))
    demand_apart(out, [each for each in [model, *given] if isinstance(each, str | Path)])
    if not chosen.is_program:
        _demand_programs(chosen, resize=resize, precision=precision, data=bool(given))
    opened = open_for_engine(model, "export")
    demand_form(opened.card, chosen.name)
    with handle_signals():
        if not chosen.is_program:
            return _convert(opened, out, chosen, log)
        plan = ExportPlan.of(opened.card, chosen.name, resize=resize, precision=precision)
        images = _read_images(given, plan, columns, log) if given else None
        if chosen.name == "web":
            name = Path(model).stem if isinstance(model, str | Path) else plan.configuration.model
            return export_site(find_weights(opened), plan, out, name=name, images=images, on_progress=log)
        return _write_program(find_weights(opened), plan, out, images, log)


def _write_program(
    weights: "Weights", plan: ExportPlan, out: Path, images: Sequence[Pixels] | None, log: OnProgress
) -> Export:
    """Write, check, and give the file its name."""
    program = find_program(plan.format)
    files = program.list_files(out)
    name = f"{len(images)} of the given images" if images else "4 synthetic images"
    with whole_files(files) as folder:
        log(f"writing {out.name}", 0, None)
        program.write(weights, plan, folder / out.name)
        run, runtime = program.open(folder / out.name)
        fit = _write_fitting(weights, plan, folder / f"fitting{out.suffix}") if plan.resize else None
        parity = check_parity(
            run,
            weights,
            plan,
            images or make_synthetic_images(plan.card.preprocessing.decoded_channels),
            runtime=runtime,
            name=name,
            fit=fit,
            on_progress=lambda done, total: log("checking", done, total),
        )
        del run, fit  # Windows cannot move files that are open
        sizes = [(folder / path.name).stat().st_size for path in files]
    return Export(
        path=out,
        files=files,
        format=plan.format,
        size_bytes=sum(sizes),
        precision=plan.precision,
        input_shape=plan.input_shape,
        least_pixels=plan.least_pixels,
        resize=plan.resize,
        parity=parity,
        conversion=None,
        snippet=write_program_snippet(plan, out.name),
        task=plan.card.task,
    )


def _write_fitting(weights: "Weights", plan: ExportPlan, path: Path) -> Run:
    """A program of the exported one's resizing alone."""
    program = find_program(plan.format)
    outputs: tuple[Output, ...] = (FITTED,)
    program.write(weights, replace(plan, outputs=outputs), path)
    return program.open(path)[0]


def _convert(opened: "Model | ModelFile", out: Path, chosen: Format, log: OnProgress) -> Export:
    """Write weights in a library's layout; `convert` reads them back and compares the logits."""
    log(f"writing {out.name}", 0, None)
    dialect: Dialect = "keras" if chosen.name == "keras" else "timm" if chosen.name == "timm" else "torchvision"
    with tempfile.TemporaryDirectory(prefix="vggkit-export-") as name:
        if isinstance(opened, ModelFile):
            source = opened.path
        else:
            source = Path(name) / "model.safetensors"
            opened.save(source)
        conversion = convert(source, out, to=dialect)
    assert conversion.preprocessing is not None
    return Export(
        path=out,
        files=(out,),
        format=chosen.name,
        size_bytes=out.stat().st_size,
        precision="fp32",
        input_shape=None,
        least_pixels=None,
        resize=False,
        parity=None,
        conversion=conversion,
        snippet=write_weights_snippet(opened.card, chosen.name, out.name, conversion.preprocessing),
        task=opened.card.task,
    )


def _demand_programs(chosen: Format, *, resize: bool, precision: StoredPrecision, data: bool) -> None:
    """Raise BadConfiguration for options of programs with a format of weights."""
    given = {"resize": resize, "precision": precision != "fp32", "data": data}
    for name, is_given in given.items():
        if is_given:
            raise BadConfiguration(
                f"{name} must be left out for {chosen.title}, which are no program; name a .onnx, .pt2 or .xml file"
            )


def _read_images(
    given: Sequence[str | Path | ImageSample], plan: ExportPlan, columns: Columns, log: OnProgress
) -> list[Pixels]:
    """Up to `MOST_IMAGES` images, evenly from all; raises BadData if none can be read."""
    log("listing images", 0, None)
    total = count_images(given, columns=columns)
    every = (
        None if total is None or total <= MOST_IMAGES else {n * total // MOST_IMAGES for n in range(MOST_IMAGES)}
    )
    images = gather_images(given, columns=columns)
    found, first = list[Pixels](), ""
    for image in islice((each for n, each in enumerate(images) if every is None or n in every), MOST_IMAGES):
        try:
            found.append(image.decode(channels=plan.card.preprocessing.decoded_channels))
        except BadImage as problem:
            first = first or f"; the first: {problem}"
    if not found:
        raise BadData(f"no image of the given ones can be read{first}")
    return found
