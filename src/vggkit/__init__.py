"""VGG, complete, in PyTorch: `import vggkit as vk`.

The names below are loaded when they are first used, so that importing vggkit is instant and
imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vggkit.benchmarking.timings import Bench
    from vggkit.classifier import Classifier, load
    from vggkit.data_checks.findings import Diagnosis
    from vggkit.errors import VggkitError
    from vggkit.evaluation.comparison import PairedComparison, compare_predictions, fuse
    from vggkit.evaluation.evaluation import Evaluation
    from vggkit.evaluation.measure import evaluate
    from vggkit.evaluation.predictions import Predictions
    from vggkit.images.dataset import ImageDataset, ImageSample
    from vggkit.images.preprocessing import Preprocessing
    from vggkit.images.sources.open_dataset import open_dataset
    from vggkit.inference.bulk import BulkResult
    from vggkit.inference.embed import Embeddings, embed
    from vggkit.inference.predict import Prediction, predict
    from vggkit.inference.search import Found, Neighbour
    from vggkit.models.configuration import Configuration, configure, list_models
    from vggkit.models.initialization import adapt_filters, initialize, warm_start
    from vggkit.models.listing.listing import write_listing
    from vggkit.models.summary import Summary, summarize
    from vggkit.models.vgg import VGG
    from vggkit.reports.comparison import Comparison
    from vggkit.training.recipe import Recipe
    from vggkit.weights.convert import Conversion, convert
    from vggkit.weights.identify import Identification, identify
    from vggkit.weights.pretrained import fetch
    from vggkit.workflows.bench import bench
    from vggkit.workflows.check import check
    from vggkit.workflows.compare import compare
    from vggkit.workflows.predict import embed_into, predict_into
    from vggkit.workflows.search import search
    from vggkit.workflows.train import TrainingRun, train

_HOMES = {
    "Bench": "benchmarking.timings",
    "bench": "workflows.bench",
    "VGG": "models.vgg",
    "BulkResult": "inference.bulk",
    "Embeddings": "inference.embed",
    "Found": "inference.search",
    "Neighbour": "inference.search",
    "embed": "inference.embed",
    "embed_into": "workflows.predict",
    "predict_into": "workflows.predict",
    "search": "workflows.search",
    "Predictions": "evaluation.predictions",
    "Classifier": "classifier",
    "Comparison": "reports.comparison",
    "Configuration": "models.configuration",
    "Diagnosis": "data_checks.findings",
    "Evaluation": "evaluation.evaluation",
    "PairedComparison": "evaluation.comparison",
    "ImageSample": "images.dataset",
    "ImageDataset": "images.dataset",
    "Prediction": "inference.predict",
    "Preprocessing": "images.preprocessing",
    "Recipe": "training.recipe",
    "Summary": "models.summary",
    "Conversion": "weights.convert",
    "Identification": "weights.identify",
    "TrainingRun": "workflows.train",
    "VggkitError": "errors",
    "adapt_filters": "models.initialization",
    "check": "workflows.check",
    "compare": "workflows.compare",
    "compare_predictions": "evaluation.comparison",
    "convert": "weights.convert",
    "fetch": "weights.pretrained",
    "fuse": "evaluation.comparison",
    "identify": "weights.identify",
    "configure": "models.configuration",
    "evaluate": "evaluation.measure",
    "initialize": "models.initialization",
    "list_models": "models.configuration",
    "load": "classifier",
    "open_dataset": "images.sources.open_dataset",
    "predict": "inference.predict",
    "summarize": "models.summary",
    "train": "workflows.train",
    "warm_start": "models.initialization",
    "write_listing": "models.listing.listing",
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
    "open_dataset",
    "ImageSample",
    "ImageDataset",
    "check",
    "Diagnosis",
    "train",
    "TrainingRun",
    "compare",
    "Comparison",
    "evaluate",
    "Evaluation",
    "Predictions",
    "fuse",
    "compare_predictions",
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
