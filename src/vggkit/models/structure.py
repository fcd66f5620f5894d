"""The `Configuration` of a network, read back from its modules; a module that none describes is refused by name.

A network is a plain `torch.nn.Module` whose layers may be replaced or changed at any time. Files, engines and
training rely on its Configuration, which therefore has to agree with the modules.
"""

from dataclasses import replace
from types import FunctionType
from typing import Any, Final, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vggkit.errors import BadConfiguration, BadInput
from vggkit.models.configuration import Configuration
from vggkit.models.layer_records import Layer
from vggkit.models.layers import build_fully_connected, build_layer, build_pool

_FREE: Final = frozenset(
    (
        *("training", "inplace", "p", "momentum"),
        *("in_channels", "out_channels", "in_features", "out_features", "num_features"),
    )
)
"""Attributes that change no prediction; widths are those of the tensors."""
_HOOKS: Final = ("forward_hook", "forward_pre_hook", "state_dict_hook", "state_dict_pre_hook")
_FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_UNDO: Final = "restore the original module, or save the weights alone: torch.save(network.state_dict(), path)"


def read_configuration(network: nn.Module, built: Configuration, *, base: type[nn.Module]) -> Configuration:
    """The configuration of a network as it is now.

    Widths of convolutions and fully connected layers, the number and ranks of the latter, pooling (all of it) and
    dropout (all of it, but for the pool head) are read from the modules; the rest must be as it was built.

    Args:
        network: A VGG.
        built: The Configuration that it was built from.
        base: The class whose functions it runs.

    Raises BadConfiguration, naming the module, where no Configuration describes the modules.
    """
    changed = [name for name, own in vars(base).items() if isinstance(own, FunctionType) and name != "__init__"]
    changed = [name for name in changed if getattr(type(network), name) is not vars(base)[name]]
    if changed:
        _refuse(f"the class {type(network).__name__} has a {changed[0]} of its own", "use vggkit.VGG itself")
    parts = nn.Module()
    for name in ("features", "avgpool", "classifier"):
        parts.add_module(name, None)
    _compare_own("the network", network, parts)
    features, classifier = _find_layers(network, "features"), _find_layers(network, "classifier")
    if len(features) != len(built.trunk):
        cut = "; a trunk is cut with until=, such as VGG(model, until='relu3_2')"
        _refuse(f"features has {len(features)} layers in place of {len(built.trunk)}", _UNDO + cut)
    if len(classifier) % 3 != 1:
        _refuse_head(classifier, built)
    trunk = _read_trunk(features, built)
    pool = network._modules["avgpool"]
    configuration = replace(built, **trunk, **_read_pool(pool, built), **_read_head(classifier, built))
    # torch's module computes the same as ours for the paper's head.
    expected: nn.Module = build_pool(configuration)
    if built.head == "fc" and isinstance(pool, nn.AdaptiveAvgPool2d) and type(pool) is nn.AdaptiveAvgPool2d:
        expected = nn.AdaptiveAvgPool2d(pool.output_size)
    _compare("avgpool", pool, expected)
    _compare_layers(features, classifier, configuration)
    for key, shape in configuration.state_shapes().items():
        value = _find_tensor(network, key)
        if tuple(value.shape) != shape:
            hint = "; other channels are in_channels= of the VGG" if key == "features.0.weight" else ""
            _refuse(f"{key} has the shape {tuple(value.shape)}, and its neighbours require {shape}", _UNDO + hint)
    return configuration


def check_values(network: nn.Module) -> None:
    """Raise BadInput, naming the tensor, where the network's values cannot be stored in a file and used again."""
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    kinds: dict[torch.dtype, str] = {}
    normed: str | None = None
    for key, value in network.state_dict().items():
        if value.is_meta:
            raise BadInput(f"{key} has a shape and no values (device meta); load weights into the network first")
        if key.endswith("num_batches_tracked"):
            continue
        if value.dtype not in _FLOATS:
            raise BadInput(f"{key} is of type {value.dtype}, and weights are floating point; see network.float()")
        if value.dtype == torch.float32 and key.rpartition(".")[0] in norms:
            normed = key
        else:
            kinds.setdefault(value.dtype, key)
        # A sum is finite only where all of it is, and computed much faster; a large sum may also overflow.
        if not (value.sum(dtype=torch.float32).isfinite() or value.isfinite().all()):
            raise BadInput(
                f"{key} holds values that are not finite (NaN or infinity), and so would every prediction; "
                "take an earlier checkpoint, or train again at a lower learning rate"
            )
    if normed and torch.float64 in kinds:  # beside 16 bits batch norms may well be in float32
        kinds.setdefault(torch.float32, normed)
    if len(kinds) > 1:
        listed = " and ".join(f"{key} {dtype}" for dtype, key in kinds.items())
        raise BadInput(f"weights must be of one type, and {listed} are not; network.float() makes them so")


def _find_layers(network: nn.Module, place: str) -> list[nn.Module]:
    found = network.get_submodule(place) if network._modules[place] is not None else None
    if type(found) is not nn.Sequential:
        wrapped = f"; write network.{place} = nn.Sequential(…)" if isinstance(found, nn.Module) else ""
        _refuse(f"{place} is {_describe(found)} and no nn.Sequential", _UNDO + wrapped)
    _compare_own(place, found, nn.Sequential(*found))
    return list(found)


def _read_trunk(features: list[nn.Module], built: Configuration) -> dict[str, Any]:
    pairs = list(zip(built.trunk, features, strict=True))
    widths = {layer.name: _find_width(module) for layer, module in pairs if layer.kind == "conv"}
    blocks = tuple(
        tuple(widths.get(f"conv{number}_{place}") or width for place, width in enumerate(block, start=1))
        for number, block in enumerate(built.blocks, start=1)
    )
    pools = {type(module) for layer, module in pairs if layer.kind == "pool"}
    pooling = {frozenset({nn.MaxPool2d}): "max", frozenset({nn.AvgPool2d}): "average"}
    return {"blocks": blocks, "pooling": pooling.get(frozenset(pools), built.pooling)}


def _read_pool(pool: nn.Module | None, built: Configuration) -> dict[str, Any]:
    """The map that the paper's head reads; nothing where it is as built, or to be refused."""
    side = pool.output_size if isinstance(pool, nn.AdaptiveAvgPool2d) and built.head == "fc" else built.grid
    sides = _pair(side)
    if not isinstance(sides, tuple) or len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int):
        _refuse(f"avgpool gives maps of {side!r}, and a VGG's are square")
    return {"grid": sides[0]}


def _read_head(classifier: list[nn.Module], built: Configuration) -> dict[str, Any]:
    """Widths, ranks and dropout of a head whose layers have the expected order; nothing for others."""
    widths, ranks = list[int](), list[int | None]()
    for module in classifier[::3]:
        factors = [_find_width(each) for each in (module if type(module) is nn.Sequential else [module])]
        if not 1 <= len(factors) <= 2 or not factors[0] or not factors[-1]:
            return {}  # the modules there are named when they are compared
        widths.append(factors[-1])
        ranks.append(factors[0] if len(factors) == 2 else None)
    found: dict[str, Any] = {"hidden": tuple(widths[:-1]), "num_classes": widths[-1], "ranks": tuple(ranks)}
    chances = {float(module.p) for module in classifier[2::3] if isinstance(module, nn.Dropout)}
    if built.head != "pool" and len(chances) == 1:  # the pool head has one more, which is no module
        found["dropout"] = chances.pop()
    return found


def _find_width(module: nn.Module) -> int | None:
    """Rows of a convolution's or a matrix's weights; None for anything else."""
    weight = module._parameters.get("weight") if type(module) in (nn.Conv2d, nn.Linear) else None
    return weight.shape[0] if type(weight) is nn.Parameter and weight.dim() > 1 else None


def _compare_layers(features: list[nn.Module], classifier: list[nn.Module], configuration: Configuration) -> None:
    """Each module with one that was built for its place; raises BadConfiguration."""
    patterns: dict[tuple[str, int], nn.Module] = {}
    with torch.device("meta"):
        for layer, module in zip(configuration.trunk, features, strict=True):
            kind = layer.kind, layer.kernel
            if kind not in patterns:  # widths are compared by the tensors
                patterns[kind] = build_layer(_narrowed(layer), configuration)
            _compare(f"features.{layer.index}", module, patterns[kind])
        between = nn.ReLU(), nn.Dropout(configuration.dropout)
        for fc in configuration.fully_connected:
            rank = None if fc.rank is None else 1
            pattern = build_fully_connected(replace(fc, in_features=1, out_features=1, rank=rank))
            expected = (pattern, *between)
            for index, module in enumerate(classifier[fc.index : fc.index + 3], start=fc.index):
                _compare(f"classifier.{index}", module, expected[index - fc.index])


def _narrowed(layer: Layer) -> Layer:
    return replace(layer, in_channels=1, out_channels=1)


def _compare(place: str, found: nn.Module | None, expected: nn.Module) -> None:
    """One module with what belongs in its place; raises BadConfiguration."""
    _refuse_rewritten(place, found)
    if type(found) is not type(expected):
        _refuse(f"{place} is {_describe(found)}, and {type(expected).__name__} belongs there")
    _compare_own(place, found, expected)
    for name, value in vars(expected).items():
        if name.startswith("_") or name in _FREE:
            continue
        now = getattr(found, name, None)
        if now != value and not (isinstance(value, int | tuple) and _pair(now) == _pair(value)):
            _refuse(f"{place} ({type(expected).__name__}) has {name}={now!r} in place of {value!r}")
    for name, child in expected.named_children():
        _compare(f"{place}.{name}", found._modules[name], child)


def _compare_own(place: str, found: nn.Module, expected: nn.Module) -> None:
    """Functions, hooks and the names of what a module holds; raises BadConfiguration."""
    replaced = [name for name in vars(found) if isinstance(getattr(type(found), name, None), FunctionType)]
    if replaced:
        _refuse(f"{place} has its {replaced[0]} replaced", f"restore it: del {_spell(place)}.{replaced[0]}")
    hooks = [kind for kind in _HOOKS if getattr(found, f"_{kind}s")]
    if hooks:
        kind = hooks[0].replace("_", " ")
        _refuse(f"{place} has a {kind}, which may change its output", "remove it first: handle.remove()")
    for kind in ("modules", "parameters", "buffers"):
        mine, theirs = (_list_names(module, kind) for module in (found, expected))
        for name in (*theirs, *mine):
            if (name in mine) != (name in theirs):
                difference = "has none of" if name in theirs else "has one more of"
                _refuse(f"{place} {difference} its {kind}: {name}")
        if mine != theirs:
            _refuse(f"{place} has its {kind} in another order: {', '.join(mine)}")
    if found._non_persistent_buffers_set:
        _refuse(f"{place} has a buffer that its state dict leaves out: {min(found._non_persistent_buffers_set)}")


def _list_names(module: nn.Module, kind: str) -> list[str]:
    """Names of its modules, parameters or buffers; a parameter that is None is none."""
    held: dict[str, object] = getattr(module, f"_{kind}")
    return [name for name, value in held.items() if kind == "modules" or value is not None]


def _refuse_rewritten(place: str, found: nn.Module | None) -> None:
    """Refuse a module whose weights are recomputed in each pass, as by weight norm, with code that removes it."""
    if found is None:
        return
    names = [*found._parameters, *found._buffers]
    spelled = _spell(place)
    if parametrize.is_parametrized(found):
        name = next(iter(found.parametrizations))  # type: ignore[arg-type]
        line = f"torch.nn.utils.parametrize.remove_parametrizations({spelled}, {name!r})"
    elif any(name.endswith("_mask") for name in names):
        name = next(name.removesuffix("_mask") for name in names if name.endswith("_mask"))
        line = f"torch.nn.utils.prune.remove({spelled}, {name!r})"
    elif any(name.endswith("_g") for name in names):
        line = f"torch.nn.utils.remove_weight_norm({spelled})"
    elif any(name.endswith("_orig") for name in names):
        line = f"torch.nn.utils.remove_spectral_norm({spelled})"
    else:
        return
    _refuse(f"{place} computes its weights from other tensors", f"make them permanent first: {line}")


def _refuse_head(classifier: list[nn.Module], built: Configuration) -> NoReturn:
    """Refuse a head whose layers are not in the order of a VGG's, with code that builds it so if there is any."""
    kinds = [type(module).__name__ for module in classifier]
    line = _write_head(classifier, built)
    _refuse(
        f"classifier is {', '.join(kinds) or 'empty'}, and a VGG's is Linear, ReLU and Dropout for each hidden "
        "layer and a Linear at its end",
        f"write network.classifier = {line}, with the weights you have" if line else _UNDO,
    )


def _write_head(classifier: list[nn.Module], built: Configuration) -> str | None:
    """Code of the same head in a VGG's order; None where there is none."""
    layers: list[nn.Linear] = []
    chances: list[float] = []
    expected: type[nn.Module] = nn.Linear
    for module in classifier:
        if type(module) is nn.Dropout and chances and expected is nn.Linear:
            chances[-1] = float(module.p)
        elif type(module) is not expected:
            return None
        elif isinstance(module, nn.Linear):
            layers.append(module)
            expected = nn.ReLU
        else:
            chances.append(0.0)
            expected = nn.Linear
    if expected is nn.Linear or len(set(chances)) > 1 or (built.head == "pool" and set(chances) - {built.dropout}):
        return None
    spelled = [f"nn.Linear({layer.weight.shape[1]}, {layer.weight.shape[0]})" for layer in layers]
    return f"nn.Sequential({f', nn.ReLU(), nn.Dropout({chances[0]:g}), '.join(spelled)})"


def _find_tensor(network: nn.Module, key: str) -> Tensor:
    """A parameter or buffer as an ordinary tensor; raises BadConfiguration for another kind."""
    place, _, name = key.rpartition(".")
    module = network.get_submodule(place)
    value: Tensor | None = module._parameters.get(name, module._buffers.get(name))
    assert value is not None, "names were compared before"
    if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided or value.is_quantized:
        kind = type(value).__name__ if type(value) not in (Tensor, nn.Parameter) else value.layout
        _refuse(f"{key} is no ordinary tensor ({kind})", "make it one first, such as by to_dense() or dequantize()")
    return value


def _spell(place: str) -> str:
    """A module in code: network.features[3]."""
    if place == "the network":
        return "network"
    return "network" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in place.split("."))


def _describe(found: nn.Module | None) -> str:
    """A module in a few words; repr where it is short."""
    text = repr(found)
    return text if "\n" not in text and len(text) < 120 else type(found).__name__


def _pair(value: object) -> object:
    """A side as torch writes it for two: 2 and (2, 2) are the same."""
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _refuse(what: str, remedy: str = _UNDO) -> NoReturn:
    raise BadConfiguration(f"{what}; no Configuration says what this network computes: {remedy}")
