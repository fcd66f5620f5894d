"""A Classifier as a folder for any static host: the page, the model, and the runtime that computes it there.

No torch here.
"""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

from vggkit._version import __version__
from vggkit.explanations.overlay import list_colours
from vggkit.exporting.plan import ExportPlan
from vggkit.exporting.web_runtime import NOTICE

MODEL: Final = "model.onnx"
DESCRIPTION: Final = "model.json"
RUNTIME: Final = "runtime"
PAGE: Final = (
    "index.html",
    "style.css",
    "icon.svg",
    "app.js",
    "results.js",
    "failure.js",
    "browser.js",
    "preprocess.js",
    "opened-as-file.js",
)
"""What a site has of `vggkit/page`; `service.js` is for a service."""
POLICY: Final = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'"
)
"""The page may load only what lies beside it, so an image that is dropped there cannot leave the device."""


def write_page(plan: ExportPlan, folder: Path, *, name: str, runtime: Mapping[str, bytes], explains: bool) -> None:
    """Write everything but the model's file.

    Args:
        plan: What the model computes.
        folder: An existing folder.
        name: What the page calls the model.
        runtime: The files of `web_runtime.read_web_runtime`.
        explains: Whether the model has a heatmap.
    """
    source = resources.files("vggkit").joinpath("page")
    for file in PAGE:
        text = source.joinpath(file).read_text(encoding="utf-8")
        if file == "index.html":
            text = _make_static(text)
        folder.joinpath(file).write_text(text, encoding="utf-8", newline="\n")
    described = json.dumps(_describe(plan, name, explains=explains), ensure_ascii=False, indent=1)
    folder.joinpath(DESCRIPTION).write_text(described, encoding="utf-8", newline="\n")
    folder.joinpath(RUNTIME).mkdir()
    for file, data in runtime.items():
        folder.joinpath(RUNTIME, file).write_bytes(data)
    folder.joinpath(RUNTIME, "LICENSE.txt").write_text(NOTICE, encoding="utf-8", newline="\n")


def _make_static(page: str) -> str:
    """The page for a model in the browser, with the policy that a service sends as a header."""
    replacements = {
        '<meta name="backend" content="./service.js">': '<meta name="backend" content="./browser.js">\n  '
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        "</body>": '  <script src="opened-as-file.js"></script>\n</body>',
    }
    for old, new in replacements.items():
        assert page.count(old) == 1, old
        page = page.replace(old, new)
    return page


def _describe(plan: ExportPlan, name: str, *, explains: bool) -> dict[str, Any]:
    """What the page knows of the model."""
    card = plan.card
    preprocessing = card.preprocessing.to_dict() | {"mean_colour": card.preprocessing.mean_colour()}
    licence = json.loads(json.dumps(plan.to_metadata({})["licence"]))
    return {
        "name": name,
        "architecture": plan.configuration.model,
        "labels": list(card.labels),
        "task": card.task,
        "threshold": card.threshold,
        "thresholds": list(card.thresholds),
        "preprocessing": preprocessing,
        "licence": None if licence == "unknown" else licence,
        "precision": "fp32",
        "explains": "heatmap" if explains else None,
        "heat_colours": list_colours().tolist(),
        "vggkit": __version__,
    }
