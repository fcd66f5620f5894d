"""Weights in any file, read safely: `open_weights` finds out what a file is from its content.

Nothing in here runs code from a file, follows a link out of it, or believes a size before it
has compared it with the file's own.
"""

from vggkit.networks.weight_files.containers import open_weights
from vggkit.networks.weight_files.opened import TensorEntry, WeightFile

__all__ = ["TensorEntry", "WeightFile", "open_weights"]
