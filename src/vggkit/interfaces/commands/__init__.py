"""The verbs of the command line: they translate options into calls and results into text.

Arguments before `/` are positional, the others options; tyro reads both, and the help, from here.
"""

from vggkit.interfaces.commands.asking import demo, embed, predict, search
from vggkit.interfaces.commands.defaults import find_defaults
from vggkit.interfaces.commands.learning import check, compare, train
from vggkit.interfaces.commands.measuring import evaluate
from vggkit.interfaces.commands.networks import code, convert, identify, models, summary
from vggkit.interfaces.commands.shipping import bench

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
