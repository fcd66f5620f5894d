"""The verbs of the command line: they translate options into calls and results into text.

Arguments before `/` are positional, the others options; tyro reads both, and the help, from here.
"""

from vggkit.cli.bench import bench
from vggkit.cli.defaults import find_defaults
from vggkit.cli.evaluate import evaluate
from vggkit.cli.models import code, convert, identify, models, summary
from vggkit.cli.predict import demo, embed, predict, search
from vggkit.cli.train import check, compare, train

__all__ = [
    "bench",
    "check",
    "code",
    "compare",
    "convert",
    "demo",
    "embed",
    "evaluate",
    "find_defaults",
    "identify",
    "models",
    "predict",
    "search",
    "summary",
    "train",
]
