"""What a Classifier's card states of its training, as pairs of a name and a value for reports."""

from collections.abc import Mapping
from typing import Any, Final

from vggkit.reports.tables import describe_seconds
from vggkit.weights.card import read_entry

OF_A_PROBE: Final = ("views", "balance", "label_smoothing", "precision", "validation_share", "fold", "seed")
"""Fields of a recipe that a linear probe uses."""
OF_VIEWS: Final = ("augmentation", "mirror", "rand_augment", "random_erasing")
"""Those that it uses where it sees several views of each image."""


def list_facts(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The known facts of the training, as pairs of a name and a value."""
    machine = read_entry(provenance, "machine")
    weights = provenance.get("weights")
    seconds, memory = provenance.get("seconds"), provenance.get("peak_memory_bytes")
    found = {
        "Training data": str(read_entry(provenance, "data").get("name", "")),
        "Initial weights": str(weights.get("file") or weights.get("source", "a file"))
        if isinstance(weights, Mapping)
        else "random"
        if provenance.get("recipe")
        else "",
        "Started": str(provenance.get("started", "")).replace("T", " ").replace("+00:00", " UTC"),
        "Duration": describe_seconds(float(seconds)) if seconds else "",
        "Peak memory": f"{memory / 1e9:.2f} GB" if memory else "",
        "Hardware": str(machine.get("device", "")),
        "Software": ", ".join(
            f"{name} {machine[key]}" if name else str(machine[key])
            for name, key in (("", "system"), ("torch", "torch"), ("Python", "python"))
            if key in machine
        ),
        "Licence of the initial weights": str(weights.get("licence", "")) if isinstance(weights, Mapping) else "",
    }
    return [(name, value) for name, value in found.items() if value]


def list_recipe(provenance: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The recipe of the training, as pairs of a name and a value; of a linear probe the fields that it uses."""
    recipe, probe = read_entry(provenance, "recipe"), read_entry(provenance, "linear_probe")
    if recipe.get("trainable") != "head":
        return [(name.replace("_", " "), value) for name, value in recipe.items()]
    used = [name for name in OF_A_PROBE if name in recipe]
    if recipe.get("views", 1) > 1:
        used += [name for name in OF_VIEWS if name in recipe]
    penalty = [("L2 penalty", probe["l2_penalty"])] if "l2_penalty" in probe else []
    tried = [("L2 penalties tried", probe["tried"])] if probe.get("tried") else []
    return [
        ("trainable", "head: a linear probe, solved at once"),
        *penalty,
        *tried,
        *[(name.replace("_", " "), recipe[name]) for name in used],
    ]


def read_image_counts(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """The number of images of each split that was trained with; earlier versions called it `pictures`."""
    return read_entry(provenance, "data", "images") or read_entry(provenance, "data", "pictures")
