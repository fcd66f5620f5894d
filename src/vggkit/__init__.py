"""VGG, complete, in PyTorch: `import vggkit as vk`.

The names below are loaded when they are first used, so that importing vggkit is instant and
imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vggkit.errors import VggkitError
    from vggkit.images.pictures import Picture, PictureSet
    from vggkit.images.preprocessing import Preprocessing
    from vggkit.images.sources.opening import open_pictures
    from vggkit.networks.classifier import Classifier, load
    from vggkit.networks.configurations import Configuration, configure, list_models
    from vggkit.networks.conversion import Conversion, convert
    from vggkit.networks.initialization import adapt_filters, initialize, warm_start
    from vggkit.networks.publishing.pretrained import fetch
    from vggkit.networks.recognition.identification import Identification, identify
    from vggkit.networks.styles.listings import write_listing
    from vggkit.networks.vgg import VGG
    from vggkit.reports.comparison import Comparison
    from vggkit.tasks.diagnosis.findings import Diagnosis
    from vggkit.tasks.embedding import Embeddings, embed
    from vggkit.tasks.evaluation.answers import Answers
    from vggkit.tasks.evaluation.figures import Evaluation
    from vggkit.tasks.evaluation.measuring import evaluate
    from vggkit.tasks.evaluation.pairing import PairedComparison, compare_answers, fuse
    from vggkit.tasks.inspection import Summary, summarize
    from vggkit.tasks.prediction import Prediction, predict
    from vggkit.tasks.searching import Found, Neighbour
    from vggkit.tasks.timings import Bench
    from vggkit.tasks.training.recipe import Recipe
    from vggkit.workflows.bench import bench
    from vggkit.workflows.bulk import embed_into, predict_into
    from vggkit.workflows.bulk_running import BulkResult
    from vggkit.workflows.comparison import compare
    from vggkit.workflows.doctor import check
    from vggkit.workflows.neighbours import search
    from vggkit.workflows.runs import TrainingRun, train

_HOMES = {
    "Bench": "tasks.timings",
    "bench": "workflows.bench",
    "VGG": "networks.vgg",
    "BulkResult": "workflows.bulk_running",
    "Embeddings": "tasks.embedding",
    "Found": "tasks.searching",
    "Neighbour": "tasks.searching",
    "embed": "tasks.embedding",
    "embed_into": "workflows.bulk",
    "predict_into": "workflows.bulk",
    "search": "workflows.neighbours",
    "Answers": "tasks.evaluation.answers",
    "Classifier": "networks.classifier",
    "Comparison": "reports.comparison",
    "Configuration": "networks.configurations",
    "Diagnosis": "tasks.diagnosis.findings",
    "Evaluation": "tasks.evaluation.figures",
    "PairedComparison": "tasks.evaluation.pairing",
    "Picture": "images.pictures",
    "PictureSet": "images.pictures",
    "Prediction": "tasks.prediction",
    "Preprocessing": "images.preprocessing",
    "Recipe": "tasks.training.recipe",
    "Summary": "tasks.inspection",
    "Conversion": "networks.conversion",
    "Identification": "networks.recognition.identification",
    "TrainingRun": "workflows.runs",
    "VggkitError": "errors",
    "adapt_filters": "networks.initialization",
    "check": "workflows.doctor",
    "compare": "workflows.comparison",
    "compare_answers": "tasks.evaluation.pairing",
    "convert": "networks.conversion",
    "fetch": "networks.publishing.pretrained",
    "fuse": "tasks.evaluation.pairing",
    "identify": "networks.recognition.identification",
    "configure": "networks.configurations",
    "evaluate": "tasks.evaluation.measuring",
    "initialize": "networks.initialization",
    "list_models": "networks.configurations",
    "load": "networks.classifier",
    "open_pictures": "images.sources.opening",
    "predict": "tasks.prediction",
    "summarize": "tasks.inspection",
    "train": "workflows.runs",
    "warm_start": "networks.initialization",
    "write_listing": "networks.styles.listings",
}

__all__ = [  # noqa: RUF022 (as people meet them)
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vggkit' has no attribute {name!r}")
    value = getattr(import_module(f"vggkit.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
