"""What must stay true of the whole: floors, light imports, public names, one owner for each package."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import vggkit

ROOT = Path(vggkit.__file__).parent
FLOORS = {
    "_version": 0,
    "arguments": 0,
    "errors": 0,
    "escaping": 0,
    "field_texts": 0,
    "files": 0,
    "hardware": 0,
    "interruption": 0,
    "notebook": 0,
    "paths": 0,
    "table_files": 0,
    "task": 0,
    "images": 1,
    "models": 2,
    "weights": 3,
    "engines": 4,
    "training": 5,
    "evaluation": 5,
    "data_checks": 5,
    "features": 5,
    "compression": 6,
    "inference": 6,
    "benchmarking": 7,
    "explanations": 7,
    "exporting": 8,
    "reports": 8,
    "workflows": 9,
    "serving": 9,
    "classifier": 10,
    # Training and compression give a Classifier, which has the verbs.
    "workflows.compress": 11,
    "workflows.fit_and_record": 11,
    "workflows.training_run": 12,
    "workflows.resume_run": 13,
    "workflows.train": 14,
    "sklearn": 15,
    "workflows.demo": 15,
    "cli": 16,
}
OWNERS = {
    "fastapi": {"serving/app.py", "serving/process.py"},
    "starlette": {
        "serving/app.py",
        "serving/bodies.py",
        "serving/guard.py",
        "serving/process.py",
        "serving/service.py",
    },
    "uvicorn": {"serving/process.py", "serving/protocol.py", "serving/supervisor.py"},
    "h11": {"serving/protocol.py"},
    "pydantic": {"serving/responses.py", "serving/bodies.py"},
    "python_multipart": {"serving/bodies.py"},
    "prometheus_client": {"serving/metrics.py"},
    "captum": {"explanations/gradients.py"},
    "tyro": {"cli/options.py", "cli/values.py"},
    "docstring_parser": {"cli/options.py"},
    "lazy_loader": {"__init__.py"},
    "torchvision": {"images/sources/public_sets.py", "training/augmentation.py"},
    "simplejpeg": {"images/decoding.py"},
    "pillow_heif": {"images/decoding.py"},
    "cykooz_resizer": {"images/resizing.py"},
    "pyarrow": {"table_files.py", "images/sources/parquet.py", "images/sources/shards/writing.py"},
    "datasets": {"images/sources/hub_sets.py"},
    "faiss": {"inference/search.py"},
    "fsspec": {"images/sources/locations.py"},
    "filelock": {"files.py"},
    "ray": {"inference/on_ray.py"},
    "braceexpand": {"images/sources/locations.py"},
    "cleanlab": {"data_checks/label_errors.py"},
    "scipy": {"data_checks/label_errors.py", "training/penalized_problem.py"},
    "jinja2": {"reports/pages/rendering.py"},
    "matplotlib": {"reports/plots.py"},
    "mlflow": {"reports/loggers.py"},
    "openvino": {"engines/openvino.py"},
    "ncnn": {"engines/ncnn.py"},
    "onnx": {"engines/onnx.py"},
    "onnxruntime": {"engines/onnx.py"},
    "wandb": {"reports/loggers.py"},
    "yaml": {"workflows/yaml_text.py"},
    "sklearn": {
        "images/sources/public_sets.py",
        "data_checks/label_errors.py",
        "sklearn.py",
    },
    "safetensors": {
        "weights/card.py",
        "weights/model_file.py",
        "weights/formats/safetensors.py",
    },
    "huggingface_hub": {"weights/hub.py"},
    "h5py": {
        "weights/formats/keras.py",
        "weights/writers.py",
    },
    "PIL": {
        "explanations/contact_sheet.py",
        "explanations/measures.py",
        "explanations/overlay.py",
        "images/decoding.py",
        "images/image_header.py",
        "images/near_duplicates.py",
        "images/pixels.py",
        "images/preprocessing.py",
        "images/resizing.py",
        "images/writing.py",
        "reports/pages/rendering.py",
        "training/augmentation.py",
        "workflows/demo.py",
    },
}
TORCH_FREE = [
    "vggkit",
    "vggkit.cli.main",
    "vggkit.cli.bench",
    "vggkit.cli.check",
    "vggkit.cli.compare",
    "vggkit.cli.doctor",
    "vggkit.cli.compress",
    "vggkit.cli.evaluate",
    "vggkit.cli.filters",
    "vggkit.cli.explain",
    "vggkit.cli.export",
    "vggkit.cli.models",
    "vggkit.cli.options",
    "vggkit.cli.predict",
    "vggkit.cli.serve",
    "vggkit.cli.shard",
    "vggkit.cli.style",
    "vggkit.cli.train",
    "vggkit.engines.select",
    "vggkit.engines.ncnn",
    "vggkit.engines.onnx",
    "vggkit.exporting.onnx_file",
    "vggkit.exporting.openvino_file",
    "vggkit.exporting.programs",
    "vggkit.engines.openvino",
    "vggkit.engines.openvino_graph",
    "vggkit.engines.stream",
    "vggkit.engines.model_weights",
    "vggkit.weights.card",
    "vggkit.weights.storage",
    "vggkit.compression.records",
    "vggkit.reports.compression",
    "vggkit.weights.locate",
    "vggkit.weights.input_conventions",
    "vggkit.weights.dialects",
    "vggkit.weights.identify",
    "vggkit.weights.pretrained",
    "vggkit.weights.hub",
    "vggkit.models.listing.listing",
    "vggkit.models.summary",
    "vggkit.training.recipe",
    "vggkit.images.sources",
    "vggkit.images.sources.spooling",
    "vggkit.table_files",
    "vggkit.inference.embed",
    "vggkit.inference.on_ray",
    "vggkit.inference.predict",
    "vggkit.inference.search",
    "vggkit.benchmarking.timings",
    "vggkit.reports.bench_table",
    "vggkit.serving.serve",
    "vggkit.serving.supervisor",
    "vggkit.workflows.bench",
    "vggkit.workflows.predict",
    "vggkit.workflows.explain",
    "vggkit.workflows.export",
    "vggkit.explanations.explain",
    "vggkit.explanations.folder",
    "vggkit.benchmarking.packages",
    "vggkit.benchmarking.processes",
    "vggkit.workflows.doctor",
    "vggkit.reports.checkup_table",
    "vggkit.weights.bundled",
    "vggkit.workflows.search",
    "vggkit.workflows.shard",
    "vggkit.reports.search_table",
    "vggkit.reports.check_page",
    "vggkit.reports.check_table",
    "vggkit.evaluation.comparison",
    "vggkit.evaluation.metrics",
    "vggkit.reports.evaluation_page",
    "vggkit.reports.evaluation_table",
    "vggkit.training.presets",
    "vggkit.training.resolve_recipe",
    "vggkit.training.parameter_groups",
    "vggkit.images.class_names",
    "vggkit.reports.comparison",
    "vggkit.reports.loggers",
    "vggkit.workflows.compare",
    "vggkit.workflows.run_config",
    "vggkit.workflows.run_folder",
    "vggkit.workflows.train_inputs",
    "vggkit.weights.origin",
    "vggkit.workflows.check",
]


UPWARDS = {
    "classifier.py": {"vggkit.workflows.compress"},
    "models/vgg.py": {"vggkit.weights.published_classifiers"},
    "models/summary.py": {"vggkit.reports.tables", "vggkit.reports.terminal"},
}
"""Imports that may go up, made when a method is called: `VGG.from_pretrained`, `Classifier.compress`, and `str` of
a Summary; see docs/decisions/rooms.md.
"""


@functools.cache
def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


@functools.cache
def parse(path: Path) -> ast.Module:
    """A file without what only type checkers see, and without the imports that may go up."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    upwards = UPWARDS.get(path.relative_to(ROOT).as_posix(), set())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
        elif isinstance(node, ast.FunctionDef):
            node.body = [line for line in node.body if getattr(line, "module", None) not in upwards]
    return tree


@functools.cache
def imports_of(path: Path) -> list[str]:
    """Every module that a file imports, wherever in it."""
    found = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its floor"
            found.append(str(node.module))
    return found


def floor_of(module: str) -> int | None:
    """The floor of `vggkit.workflows.train` or of what it is in; None for a name that is on none."""
    parts = module.split(".")[1:]
    names = [".".join(parts[:length]) for length in (2, 1)]
    return next((FLOORS[name] for name in names if name in FLOORS), None)


def module_of(path: Path) -> str:
    return ".".join(("vggkit", *path.relative_to(ROOT).with_suffix("").parts))


def test_imports_only_go_down():
    for path in modules():
        here = floor_of(module_of(path))
        if here is None:
            assert path.stem in ("__init__", "__main__", "_version"), f"{path}: belongs to no floor"
            continue
        for module in imports_of(path):
            there = floor_of(module) if module.startswith("vggkit.") else None
            assert there is None or there <= here, f"{path} (floor {here}) imports {module} (floor {there})"


def test_no_package_imports_one_on_its_own_floor():
    for path in modules():
        here = module_of(path).split(".")[1]
        for module in imports_of(path):
            there = module.split(".")[1] if module.startswith("vggkit.") else None
            if there in FLOORS and there != here and FLOORS[there] > 0:
                assert FLOORS[there] != FLOORS.get(here), f"{path} imports {module}, which is on the same floor"


def imports_with_packages(path: Path) -> set[str]:
    """What is loaded when a file is imported: the modules it names, and the packages around each of them."""
    loaded = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vggkit."):
            names = {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names if alias.name.startswith("vggkit.")}
        else:
            continue
        for name in names:
            parts = name.split(".")
            loaded |= {".".join(parts[:length]) for length in range(2, len(parts) + 1)}
    return loaded


def test_no_import_cycle():
    """Not between modules, and not between a package's `__init__` and what lies in the package."""
    files = {}
    for path in modules():
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(("vggkit", *(part for part in parts if part != "__init__")))] = path
    del files["vggkit"]  # names are loaded from it when they are used
    graph = {name: (imports_with_packages(path) & set(files)) - {name} for name, path in files.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_each_package_has_its_owner():
    for path in modules():
        place = path.relative_to(ROOT).as_posix()
        for module in imports_of(path):
            allowed = OWNERS.get(module.split(".")[0])
            assert allowed is None or place in allowed, f"{place} imports {module}; its owner is {allowed}"


def test_what_people_are_told_goes_through_one_door():
    """Names and texts of others are escaped there, see reports/terminal.py."""
    doors = {
        "print": {"reports/terminal.py", "cli/main.py", "cli/printing.py"},
        "Console": {"reports/terminal.py"},
        "Text": {"reports/terminal.py", "reports/progress.py"},
        "Text.assemble": set(),
    }
    for path in modules():
        place = path.relative_to(ROOT).as_posix()
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call) and not place.startswith("models/lessons/"):  # code that people paste
                called = ast.unparse(node.func)
                assert place in doors.get(called, {place}), f"{place} calls {called}; see reports/terminal.py"


def test_no_dumping_grounds():
    for path in modules():
        assert path.stem not in {"utils", "common", "helpers", "base", "misc", "manager"}, path


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_light_modules_import_no_torch():
    """One after another in one process: the first that is not light is named."""
    code = (
        "import importlib, sys\n"
        f"for name in {TORCH_FREE}:\n"
        "    importlib.import_module(name)\n"
        "    for heavy in ('torch', 'torchvision', 'sklearn', 'scipy', 'matplotlib', 'timm', 'pandas'):\n"
        "        assert heavy not in sys.modules, f'{name} imports {heavy}'\n"
        "print('done')\n"
    )
    found = run(code)
    assert found.stdout == "done\n", found.stderr


def test_help_is_instant_and_imports_nothing_heavy():
    code = (
        "import sys, contextlib, io\n"
        "from vggkit.cli.main import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['--help'])\n"
        "heavy = [m for m in ('torch', 'numpy', 'PIL', 'tyro', 'rich') if m in sys.modules]\n"
        "print(heavy, len([m for m in sys.modules if m.startswith('vggkit')]))"
    )
    found = run(code).stdout.rsplit(maxsplit=1)
    assert found[0] == "[]"
    # Imports decide how long it takes.
    assert int(found[1]) < 15


def test_every_public_function_takes_its_options_by_keyword():
    for path in modules():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert node.args.kwarg is None, f"{path}: {node.name} takes **{node.args.kwarg.arg}"
                # The verbs of the command line take their positional arguments with defaults.
                if path.parent.name != "cli" and not (node.args.posonlyargs):
                    optional = node.args.args[len(node.args.args) - len(node.args.defaults) :]
                    assert len(optional) <= 1, f"{path}: {node.name} has options that are not keyword-only"
