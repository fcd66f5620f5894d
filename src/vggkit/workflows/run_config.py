"""The options of a training and its choices, as a YAML file that people can read, edit and run again.

Each field's comment in the file is the text under the field in the code, which is the command line's help too.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, get_args, get_origin, get_type_hints

from vggkit.arguments import is_number
from vggkit.errors import BadConfiguration, UnknownName, VggkitError
from vggkit.field_texts import read_field_texts
from vggkit.files import write_text
from vggkit.images.preprocessing import FitMode
from vggkit.images.sources.locations import is_address
from vggkit.images.sources.public_sets import NAMES
from vggkit.images.sources.tables import Columns
from vggkit.models.configuration import Head, Scheme, list_models
from vggkit.reports.loggers import LOGGERS
from vggkit.training.recipe import Recipe
from vggkit.training.search_space import demand_search
from vggkit.weights.card import read_entry
from vggkit.weights.published_classifiers import is_model_name
from vggkit.workflows.yaml_text import parse_yaml, write_comment, write_entry

if TYPE_CHECKING:
    from vggkit.weights.model import Model

FILE_NAME: Final = "config.yaml"
OPENING: Final = """\
The options of a training run, and its choices. To repeat it: vggkit train --config THIS_FILE
To continue it where it stopped: vggkit train --resume THIS_FOLDER
Options that are null or auto were left open: the run's choice is under found. --config chooses
again."""


@dataclass(frozen=True, kw_only=True)
class NetworkChoice:
    """The network that is trained, and the weights that it starts from. Raises BadConfiguration."""

    model: str = "auto"
    """A name that `vggkit models` lists. auto: the one that weights names, else vgg11."""
    blocks: str | None = None
    """Widths such as 64,64/128,128/256,256 in place of the model's: output channels of each convolution, with
    commas between the convolutions of a block and slashes between blocks."""
    weights: str | None = None
    """Weights to start from: imagenet (the published ones), or a file of a VGG's weights, such as .pth. Default:
    random."""
    head: Head | None = None
    """fc (the paper's fully connected layers), dense (the same as convolutions) or pool (global average pooling and
    one linear layer). Default: the model's, and pool for images below 128 pixels."""
    until: str | None = None
    """Cut the network after this layer, such as relu3_4 (which gets the pool head), fc6 or fc7."""
    image_size: int | None = None
    """Height and width of the network's input in pixels. Default: 224, or for random weights and smaller images
    their own size."""
    fit_mode: FitMode | None = None
    """How images become square, in training and in prediction: crop (the centre), pad (with the mean colour) or
    stretch. Default: that of the weights, else crop."""
    reduced_decoding: bool = False
    """Decode large JPEGs at a smaller scale, which is faster and changes pixels slightly."""
    in_channels: int = 3
    """Number of input channels: 3, 1 for greyscale, or 4 for images that have so many."""
    mean: tuple[float, ...] = ()
    """Subtracted from each channel's values in [0, 1], a number for each. Default: the weights', or ImageNet's."""
    std: tuple[float, ...] = ()
    """Each channel is divided by it, a number for each. Default: the weights', or ImageNet's."""
    dropout: float | None = None
    """Dropout probability in [0, 1). Default: the model's."""
    initialization: Scheme = "kaiming"
    """Scheme by which random weights are initialised."""
    input_convention: str | None = None
    """Input normalisation that the weights expect, if their file does not state it: imagenet, caffe, caffe-rgb or
    caffe-unit."""
    allow_partial: bool = False
    """Load the weights that fit and leave the others random; every key is reported."""

    def __post_init__(self) -> None:
        _check_types(self)
        for name in ("mean", "std"):
            given = getattr(self, name)
            if not isinstance(given, Sequence) or not all(map(is_number, given)):
                raise BadConfiguration(f"{name} must be numbers, one for each channel; got {given!r}")
            object.__setattr__(self, name, tuple(given))
        for name in ("image_size", "in_channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadConfiguration(f"{name} must be 1 or more; got {value}")

    def resolve(self) -> Self:
        """The choice with a model's name in place of auto."""
        if self.model != "auto":
            return self
        named = self.weights is not None and is_model_name(self.weights)
        return replace(self, model=str(self.weights) if named else "vgg11")

    @classmethod
    def of(cls, classifier: "Model") -> Self:
        """The choice that describes an existing Classifier."""
        network, preprocessing = classifier.configuration, classifier.preprocessing
        return cls(
            model=network.model,
            weights=classifier.origin.source,
            head=network.head,
            until=network.until,
            image_size=preprocessing.crop_pixels,
            fit_mode=preprocessing.fit_mode,
            reduced_decoding=preprocessing.reduced_decoding,
            in_channels=network.in_channels,
            dropout=network.dropout,
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Every option of a training, and its resolved choices. Raises BadConfiguration.

    Options and choices are separate: choices follow from the options, the data and the machine, and may be wrong
    for other options.
    """

    data: str = "digits"
    """A folder, a table, tar shards, Parquet, hf://datasets/owner/name, or a name such as digits or cifar10."""
    columns: Columns = field(default_factory=Columns)
    """Names of a table's columns, where they are not the usual ones."""
    despite_findings: bool = False
    """Train even where the figures would be misleading, such as with a class missing from validation."""
    loggers: tuple[str, ...] = ()
    """Loggers of the metrics of each epoch besides metrics.csv: tensorboard, wandb, mlflow."""
    find_learning_rate: bool = False
    """Search for a learning rate first, in a short run at ever higher rates."""
    teacher: str | None = None
    """A trained classifier whose predictions are learnt beside the labels: a file, a run's folder, a model's
    name or hf://owner/name."""
    search: int = 0
    """Search for a recipe first: the number of recipes to try, such as 12, by successive halving; 0: none. What is
    not given of learning_rate, weight_decay, trainable and the augmentation is chosen by the validation images."""
    from_python: bool = False
    """The run was started from Python with its own Classifier: --config starts from other weights."""
    network: NetworkChoice = field(default_factory=NetworkChoice)
    """The network that is trained."""
    recipe: Recipe = field(default_factory=Recipe)
    """The training recipe."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the run, and under chosen its choices where the recipe leaves them open. --resume needs it; for
    --config it may be left out."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check_types(self.columns)
        if not isinstance(self.loggers, (list, tuple)):
            raise BadConfiguration(f"loggers must be a list of names; got {self.loggers!r}")
        if not isinstance(self.found, Mapping):
            raise BadConfiguration(f"found must hold fields and their values; got {self.found!r}")
        object.__setattr__(self, "loggers", tuple(self.loggers))
        object.__setattr__(self, "network", self.network.resolve())
        object.__setattr__(self, "found", dict(self.found))
        if self.search:
            demand_search(self.search, self.recipe)
            if self.find_learning_rate:
                raise BadConfiguration("search tries learning rates; leave out find_learning_rate, or search")
        for name in self.loggers:
            if not isinstance(name, str) or name not in LOGGERS:
                raise BadConfiguration(f"loggers: {UnknownName.of('logger', name, LOGGERS)}")

    @property
    def resolved(self) -> Recipe:
        """The recipe with what the run chose where it was left open."""
        chosen, usual = self.found.get("chosen"), Recipe().to_dict()
        if not isinstance(chosen, Mapping):
            return self.recipe
        # An option that is stated now is no choice, even if the file was edited.
        left_open = {name for name, value in usual.items() if getattr(self.recipe, name) == value}
        return replace(self.recipe, **{name: value for name, value in chosen.items() if name in left_open})

    def record(self, resolved: Recipe, found: Mapping[str, Any]) -> Self:
        """The configuration of a run that is trained by the resolved recipe, and found so much."""
        chosen = {name: value for name, value in resolved.to_dict().items() if value != getattr(self.recipe, name)}
        return replace(self, found={**found, "chosen": chosen})

    def write(self, path: str | Path) -> None:
        """Write it as YAML with a comment on each field; raises BadOutput."""
        write_text(path, "\n".join(self._lines()) + "\n")

    def _lines(self) -> Iterator[str]:
        yield from (f"# {line}" for line in OPENING.splitlines())
        yield ""
        texts = read_field_texts(type(self))
        rare = [name for name in ("find_learning_rate", "teacher", "search", "from_python") if getattr(self, name)]
        for name in ("data", "despite_findings", "loggers", *rare):
            value = getattr(self, name)
            yield from write_entry(name, list(value) if name == "loggers" else value, texts.get(name, ""))
        for name in ("columns", "network", "recipe"):
            section = getattr(self, name)
            yield ""
            yield from write_comment(texts.get(name, ""))
            yield f"{name}:"
            about = read_field_texts(type(section))
            for key, value in asdict(section).items():
                value = list(value) if isinstance(value, tuple) else value  # noqa: PLW2901
                yield from write_entry(key, value, about.get(key, ""), indent="  ")
        yield ""
        yield from write_entry("found", dict(self.found), texts.get("found", ""))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The configuration in a file, or in a run's folder; options that it leaves out have their defaults.

        Raises BadConfiguration, with the file and the field.
        """
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        try:
            values = parse_yaml(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeError) as problem:
            reason = getattr(problem, "strerror", None) or problem
            raise BadConfiguration(f"{path}: cannot be read ({reason})") from problem
        except ValueError as problem:
            raise BadConfiguration(f"{path}: is not YAML ({problem})") from problem
        try:
            return cls._from_dict({} if values is None else values)
        except VggkitError as problem:
            raise BadConfiguration(f"{path}: {problem}") from problem

    @classmethod
    def _from_dict(cls, values: Any) -> Self:
        _check_keys(cls, values, "the file")
        given = dict(values)
        for name, kind in (("columns", Columns), ("network", NetworkChoice)):
            if name in given:
                if name == "network":
                    given[name] = rename_options(given[name])
                _check_keys(kind, given[name], name)
                given[name] = kind(**(given[name] or {}))
        if "recipe" in given:
            given["recipe"] = Recipe.from_dict({} if given["recipe"] is None else given["recipe"])
        if given.get("found", ()) is None:
            del given["found"]
        about = read_entry(given, "found", "data")
        if "pictures" in about:  # the name of earlier versions
            images = {"images" if name == "pictures" else name: value for name, value in about.items()}
            given["found"] = {**given["found"], "data": images}
        return cls(**given)._split_choices()

    def _split_choices(self) -> Self:
        """Earlier versions wrote the resolved recipe, and only the names of what was chosen in it."""
        names = self.found.get("chosen")
        if not isinstance(names, list):
            return self
        usual = {name: value for name, value in Recipe().to_dict().items() if name in names}
        return replace(self, recipe=replace(self.recipe, **usual)).record(self.recipe, self.found)


def rename_options(network: Any) -> Any:
    """The options of a network, as earlier versions wrote them, by their current names."""
    if not isinstance(network, Mapping) or "channels" not in network:
        return network
    return {"in_channels" if name == "channels" else name: value for name, value in network.items()}


def locate(place: str) -> str:
    """A place that is valid in every folder: a local path made absolute, a name or an address unchanged."""
    if not place or place == "-" or is_address(place) or place.startswith("hf:"):
        return place
    if place in ("imagenet", *NAMES, *list_models()) and not Path(place).exists():
        return place
    return os.path.abspath(place)  # noqa: PTH100 (a link may be exchanged on purpose; it is not followed)


def _check_keys(kind: type, values: Any, place: str) -> None:
    if values is None:
        return
    if not isinstance(values, Mapping):
        raise BadConfiguration(f"{place} must hold fields and their values; got {type(values).__name__}")
    known = [known.name for known in fields(kind)]
    for name in values:
        if name in known:
            continue
        for section, owner in (("network", NetworkChoice), ("recipe", Recipe), ("columns", Columns)):
            if owner is not kind and name in {known.name for known in fields(owner)}:
                raise BadConfiguration(f"{name} belongs under {section}:, indented")
        raise BadConfiguration(str(UnknownName.of(f"field of {place}", name, known)))


def _check_types(record: Any) -> None:
    """Check the type of each field by its annotation. Collections are checked elsewhere."""
    for name, annotation in get_type_hints(type(record)).items():
        if get_origin(annotation) in (tuple, Mapping):
            continue
        value = getattr(record, name)
        kinds: list[type] = []
        words: list[object] = []
        for choice in get_args(annotation) or (annotation,):
            if isinstance(choice, type):
                kinds.append(choice)
            else:  # one word, or a Literal of several
                words += get_args(choice) or (choice,)
        if (words and value in words) or _is_of(value, tuple(kinds)):
            continue
        rule = (
            f"one of {', '.join(map(str, words))}"
            if words
            else " or ".join(_KINDS.get(kind, "a section") for kind in kinds)
        )
        raise BadConfiguration(f"{name} must be {rule}; got {value!r}")


_KINDS: Final[Mapping[type, str]] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _is_of(value: object, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)
