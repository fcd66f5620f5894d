"""What must stay true of the whole: floors, light imports, public names, one owner for each package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vggkit

ROOT = Path(vggkit.__file__).parent
FLOORS = {
    "arguments": 0,
    "errors": 0,
    "escaping": 0,
    "hardware": 0,
    "home": 0,
    "writing": 0,
    "column_streams": 0,
    "images": 1,
    "networks": 2,
    "engines": 3,
    "tasks": 4,
    "reports": 5,
    "workflows": 6,
    "interfaces": 7,
}
OWNERS = {
    "tyro": {"interfaces/cli.py"},
    "torchvision": {"images/sources/named.py", "tasks/training/augmentation.py"},
    "simplejpeg": {"images/decoding.py"},
    "pillow_heif": {"images/decoding.py"},
    "cykooz_resizer": {"images/resampling.py"},
    "pyarrow": {"column_streams.py", "images/sources/parquet.py"},
    "datasets": {"images/sources/hub_sets.py"},
    "faiss": {"tasks/searching.py"},
    "fsspec": {"images/sources/places.py"},
    "filelock": {"networks/publishing/turns.py"},
    "braceexpand": {"images/sources/places.py"},
    "cleanlab": {"tasks/diagnosis/labels.py"},
    "scipy": {"tasks/diagnosis/labels.py", "tasks/training/heads.py"},
    "jinja2": {"reports/pages/rendering.py"},
    "matplotlib": {"reports/plots.py"},
    "mlflow": {"reports/loggers.py"},
    "openvino": {"engines/openvino.py"},
    "onnx": {"engines/onnx.py"},
    "onnxruntime": {"engines/onnx.py"},
    "wandb": {"reports/loggers.py"},
    "yaml": {"workflows/configs.py"},
    "sklearn": {"images/sources/named.py", "tasks/diagnosis/labels.py", "tasks/evaluation/scoring.py"},
    "safetensors": {
        "networks/card.py",
        "networks/checkpoints.py",
        "networks/weight_files/safetensors_files.py",
    },
    "huggingface_hub": {"networks/publishing/hub.py"},
    "h5py": {
        "networks/weight_files/containers.py",
        "networks/weight_files/hdf5_files.py",
        "networks/weight_files/hdf5_structure.py",
        "networks/weight_writers.py",
    },
    "PIL": {
        "images/decoding.py",
        "images/heads.py",
        "images/likeness.py",
        "images/pixels.py",
        "images/preprocessing.py",
        "images/resampling.py",
        "images/thumbnails.py",
        "tasks/training/augmentation.py",
        "workflows/demonstration.py",
    },
}
TORCH_FREE = [
    "vggkit",
    "vggkit.interfaces.cli",
    "vggkit.interfaces.commands",
    "vggkit.engines.choosing",
    "vggkit.engines.onnx",
    "vggkit.engines.openvino",
    "vggkit.engines.stream",
    "vggkit.engines.weights",
    "vggkit.networks.card",
    "vggkit.networks.locating",
    "vggkit.networks.conventions",
    "vggkit.networks.dialects",
    "vggkit.networks.publishing.pretrained",
    "vggkit.networks.publishing.sharing",
    "vggkit.networks.styles.listings",
    "vggkit.tasks.inspection",
    "vggkit.tasks.training.recipe",
    "vggkit.images.sources",
    "vggkit.images.spooling",
    "vggkit.column_streams",
    "vggkit.tasks.embedding",
    "vggkit.tasks.prediction",
    "vggkit.tasks.searching",
    "vggkit.tasks.timings",
    "vggkit.reports.bench_table",
    "vggkit.workflows.bench",
    "vggkit.workflows.bulk",
    "vggkit.workflows.engine_processes",
    "vggkit.workflows.neighbours",
    "vggkit.reports.neighbour_table",
    "vggkit.reports.diagnosis_page",
    "vggkit.reports.diagnosis_table",
    "vggkit.tasks.evaluation.pairing",
    "vggkit.tasks.evaluation.scoring",
    "vggkit.reports.evaluation_page",
    "vggkit.reports.evaluation_table",
    "vggkit.tasks.training.presets",
    "vggkit.tasks.training.settling",
    "vggkit.tasks.training.strata",
    "vggkit.images.class_names",
    "vggkit.reports.comparison",
    "vggkit.reports.loggers",
    "vggkit.workflows.comparison",
    "vggkit.workflows.configs",
    "vggkit.workflows.doctor",
]


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports_of(path: Path) -> list[str]:
    """Every module that a file imports, wherever in it, but for what only type checkers see."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its floor"
            found.append(str(node.module))
    return found


def floor_of(module: str) -> int | None:
    parts = module.split(".")
    return FLOORS.get(parts[1]) if len(parts) > 1 else None


def test_imports_only_go_down():
    for path in modules():
        parts = path.relative_to(ROOT).with_suffix("").parts
        here = FLOORS.get(parts[0])
        if here is None:
            assert parts[0] in ("__init__", "__main__"), f"{path}: belongs to no floor"
            continue
        for module in imports_of(path):
            there = floor_of(module) if module.startswith("vggkit.") else None
            assert there is None or there <= here, f"{path} (floor {here}) imports {module} (floor {there})"


def test_tasks_do_not_import_each_other():
    for path in modules():
        parts = path.relative_to(ROOT).parts
        if parts[0] == "tasks":
            own = f"vggkit.tasks.{Path(parts[1]).stem}"
            for module in imports_of(path):
                assert not module.startswith("vggkit.tasks.") or module.startswith(own), f"{path} imports {module}"


def test_no_import_cycle():
    graph = {}
    for path in modules():
        name = "vggkit." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        graph[name] = [m for m in imports_of(path) if m.startswith("vggkit.")]
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for other in graph.get(name, []):
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
        "print": {"reports/terminal.py", "interfaces/cli.py", "interfaces/commands/printing.py"},
        "Console": {"reports/terminal.py"},
        "Text": {"reports/terminal.py", "reports/progress.py"},
        "Text.assemble": set(),
    }
    for path in modules():
        place = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and not place.startswith("networks/styles/"):  # code that people paste
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
        "from vggkit.interfaces.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['--help'])\n"
        "heavy = [m for m in ('torch', 'numpy', 'PIL', 'tyro', 'rich') if m in sys.modules]\n"
        "print(heavy, len([m for m in sys.modules if m.startswith('vggkit')]))"
    )
    found = run(code).stdout.rsplit(maxsplit=1)
    assert found[0] == "[]"
    # Imports decide how long it takes.
    assert int(found[1]) < 15


def test_public_names_are_what_they_say():
    assert sorted(vggkit.__all__) == sorted(vggkit._HOMES)
    for name in vggkit.__all__:
        value = getattr(vggkit, name)
        assert value.__doc__, name
        assert value.__module__ == f"vggkit.{vggkit._HOMES[name]}", name
    assert set(dir(vggkit)) == {*vggkit.__all__, "__version__"}
    with pytest.raises(AttributeError, match="vgg12"):
        _ = vggkit.vgg12
    assert vggkit.__all__ == [
        "VGG",
        "Configuration",
        "configure",
        "list_models",
        "Classifier",
        "Preprocessing",
        "load",
        "identify",
        "Identification",
        "convert",
        "Conversion",
        "fetch",
        "Recipe",
        "open_pictures",
        "Picture",
        "PictureSet",
        "check",
        "Diagnosis",
        "train",
        "TrainingRun",
        "compare",
        "Comparison",
        "evaluate",
        "Evaluation",
        "Answers",
        "fuse",
        "compare_answers",
        "PairedComparison",
        "predict",
        "Prediction",
        "embed",
        "Embeddings",
        "search",
        "Found",
        "Neighbour",
        "predict_into",
        "embed_into",
        "BulkResult",
        "bench",
        "Bench",
        "summarize",
        "Summary",
        "write_listing",
        "initialize",
        "warm_start",
        "adapt_filters",
        "VggkitError",
    ]


def test_every_public_function_takes_its_options_by_keyword():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert node.args.kwarg is None, f"{path}: {node.name} takes **{node.args.kwarg.arg}"
                # The verbs of the command line take their positional arguments with defaults.
                if path.parent.name != "commands" and not (node.args.posonlyargs):
                    optional = node.args.args[len(node.args.args) - len(node.args.defaults) :]
                    assert len(optional) <= 1, f"{path}: {node.name} has options that are not keyword-only"
