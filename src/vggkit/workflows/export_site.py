"""The verb export with `--to web`: a Classifier as a folder for any static host."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vggkit.errors import BadConfiguration
from vggkit.exporting.heatmap import HEATMAP, has_heatmap
from vggkit.exporting.onnx_file import open_onnx, write_onnx
from vggkit.exporting.parity import check_parity
from vggkit.exporting.plan import ExportPlan
from vggkit.exporting.record import Export
from vggkit.exporting.synthetic_images import make_synthetic_images
from vggkit.exporting.web_runtime import read_web_runtime
from vggkit.exporting.web_site import DESCRIPTION, MODEL, write_page
from vggkit.files import whole_folder
from vggkit.images.decoding import Pixels
from vggkit.inference.bulk import OnProgress

if TYPE_CHECKING:
    from vggkit.engines.model_weights import Weights

LARGE_BYTES: Final = 50_000_000
"""Bytes of a model above which people wait long for the page, so that a smaller one is recommended."""


def export_site(
    weights: "Weights",
    plan: ExportPlan,
    out: Path,
    *,
    name: str,
    images: Sequence[Pixels] | None,
    on_progress: OnProgress,
) -> Export:
    """Write the folder; its model is checked with ONNX Runtime before the folder has its name.

    Args:
        weights: The network's.
        plan: What the model computes.
        out: The folder: a new one, an empty one, or a site that was exported before, which it replaces.
        name: What the page calls the model.
        images: What it is checked on; None: synthetic images.
        on_progress: Called with the current task, how much of it is done, and of how much.

    Raises BadOutput, BadDownload where the runtime is neither here nor can be fetched, and BadConfiguration.
    """
    channels = plan.card.preprocessing.decoded_channels
    if channels != 3:
        raise BadConfiguration(f"a browser reads images of 3 channels, and this network takes {channels}")
    runtime = read_web_runtime(lambda told: on_progress(told, 0, None))
    explains = has_heatmap(plan.configuration, plan.crop_pixels)
    if explains:
        plan = replace(plan, outputs=(*plan.outputs, HEATMAP))
    with whole_folder(out, ours=DESCRIPTION) as folder:
        on_progress(f"writing {MODEL}", 0, None)
        write_onnx(weights, plan, folder / MODEL)
        run, version = open_onnx(folder / MODEL)
        parity = check_parity(
            run,
            weights,
            plan,
            images or make_synthetic_images(channels),
            runtime=version,
            name=f"{len(images)} of the given images" if images else "4 synthetic images",
            fit=None,
            on_progress=lambda done, total: on_progress("checking", done, total),
        )
        del run  # it may hold the file open
        write_page(plan, folder, name=name, runtime=runtime, explains=explains)
        files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        sizes = {path: (folder / path).stat().st_size for path in files}
    advice = ""
    if sizes[Path(MODEL)] > LARGE_BYTES:
        advice = f"# people wait for {sizes[Path(MODEL)] / 1e6:,.0f} MB: --precision int8 stores a quarter\n"
    return Export(
        path=out,
        files=tuple(out / path for path in files),
        format=plan.format,
        size_bytes=sum(sizes.values()),
        precision=plan.precision,
        input_shape=plan.input_shape,
        least_pixels=plan.least_pixels,
        resize=False,
        parity=parity,
        conversion=None,
        snippet=f"{advice}python -m http.server --bind 127.0.0.1 --directory {out}",
        task=plan.card.task,
    )
