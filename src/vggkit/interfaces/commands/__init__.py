"""The verbs of the command line: they translate options into calls and results into text.

Arguments before `/` are positional, the others options; tyro reads both, and the help, from here.
"""

from vggkit.interfaces.commands.asking import demo, predict
from vggkit.interfaces.commands.learning import check, evaluate, train
from vggkit.interfaces.commands.networks import code, convert, identify, models, summary

__all__ = ["check", "code", "convert", "demo", "evaluate", "identify", "models", "predict", "summary", "train"]
