"""Code that runs an exported file without vggkit; the tests execute it. No torch here."""

from vggkit.exporting.formats import FormatName
from vggkit.exporting.plan import INPUT, ExportPlan
from vggkit.images.preprocessing import Preprocessing
from vggkit.task import USUAL_THRESHOLD
from vggkit.weights.card import Card
from vggkit.weights.model_card import is_torchvisions

IMAGE = "image.jpg"
"""The image in a snippet."""
MOST_INLINE = 12
"""Largest number of labels that are written into the snippet of a file of weights."""


def write_program_snippet(plan: ExportPlan, name: str) -> str:
    """Code that classifies one image by a program.

    Args:
        plan: The program's plan.
        name: The file's name.
    """
    imports, opening, running = {
        "onnx": (
            ["import onnxruntime"],
            [
                f"session = onnxruntime.InferenceSession({name!r})",
                "about = session.get_modelmeta().custom_metadata_map",
            ],
            f'probabilities = session.run(None, {{"{INPUT}": pixels}})[0][0]',
        ),
        "openvino": (
            ["import openvino"],
            [
                f"model = openvino.Core().read_model({name!r})",
                'compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})',
                'about = {key: value.value for key, value in model.get_rt_info()["vggkit"].items()}',
            ],
            f'probabilities = compiled({{"{INPUT}": pixels}})[0][0]',
        ),
        "pt2": (
            ["import torch"],
            [
                'files = {"vggkit.json": ""}',
                f"program = torch.export.load({name!r}, extra_files=files).module()",
                'about = json.loads(files["vggkit.json"])',
            ],
            "probabilities = program(torch.from_numpy(pixels))[0].detach().numpy()",
        ),
    }[plan.format]
    lines = [
        "import json",
        "import numpy as np",
        *imports,
        "from PIL import Image, ImageOps",
        "",
        *opening,
        *_read_image(plan.card.preprocessing, resize=not plan.resize),
        "pixels = np.array(image)[None]",
        running,
        'labels = json.loads(about["labels"])',
        *(
            _print_several('json.loads(about["thresholds"])')
            if plan.card.task == "multi-label"
            else _print('float(about["threshold"])')
        ),
    ]
    return "\n".join(lines) + "\n"


def write_weights_snippet(card: Card, to: FormatName, name: str, fed: Preprocessing) -> str:
    """Code that classifies one image by the network of torchvision, timm or Keras and a file of its weights.

    Args:
        card: The Classifier.
        to: The library.
        name: The file's name.
        fed: The preprocessing of that file's network; Keras' differs from the Classifier's.
    """
    c, classes, floating = card.configuration, len(card.labels), "np.float32"
    mean, std = (f"np.array({list(values)}, {floating})" for values in (fed.mean, fed.std))
    image = [
        *_read_image(fed, resize=True),
        f"pixels = np.array(image, {floating}){'[..., ::-1]' if fed.channel_order == 'BGR' else ''}",
        f"pixels = (pixels * {fed.full_value / 255:.10g} - {mean}) / {std}",
    ]
    loading = (
        f"safetensors.torch.load_file({name!r})"
        if name.lower().endswith(".safetensors")
        else f"torch.load({name!r}, weights_only=True)"
    )
    load_import = ["import safetensors.torch"] if "safetensors" in loading else ["import torch"]
    run_torch = [
        "with torch.inference_mode():",
        "    logits = network.eval()(torch.from_numpy(pixels.transpose(2, 0, 1)[None]))[0].numpy()",
    ]
    match to:
        case "torchvision":
            imports = ["import torch", "import torchvision", *load_import]
            network = [
                f"network = torchvision.models.{c.model}(num_classes={classes})",
                f"network.load_state_dict({loading})",
                *run_torch,
            ]
        case "timm":
            imports = ["import timm", "import torch", *load_import]
            network = [
                f'network = timm.create_model("{c.model}", num_classes={classes})',
                f"network.load_state_dict({loading})",
                *run_torch,
            ]
        case _:
            imports = ["import keras"]
            network = _write_keras(card, name)
    names = (
        f"labels = {list(card.labels)}" if classes <= MOST_INLINE else f"labels = [*range({classes})]  # numbers"
    )
    lines = [
        *dict.fromkeys(imports),
        "import numpy as np",
        "from PIL import Image, ImageOps",
        "",
        *image,
        *network,
        *_write_activation(card),
        names,
        *(
            _print_several(f"{list(card.thresholds) or USUAL_THRESHOLD}")
            if card.task == "multi-label"
            else _print(f"{card.threshold:g}")
        ),
    ]
    return "\n".join(lines) + "\n"


def _write_keras(card: Card, name: str) -> list[str]:
    """Lines that compute logits with Keras' own VGG16 or VGG19, or with a network built from layers."""
    c = card.configuration
    if is_torchvisions(c) and c.model in ("vgg16", "vgg19") and not name.lower().endswith(".npz"):
        options = f"weights={name!r}, classes={c.num_classes}, classifier_activation=None"
        network = f"network = keras.applications.{c.model.upper()}({options})"
        return [network, "logits = keras.ops.convert_to_numpy(network(pixels[None]))[0]"]
    kernels = c.kernels or tuple((3,) * len(block) for block in c.blocks)
    blocks = [list(zip(widths, sides, strict=True)) for widths, sides in zip(c.blocks, kernels, strict=True)]
    side = card.preprocessing.crop_pixels
    lines = [
        f"network = keras.Sequential([keras.Input(({side}, {side}, {c.in_channels}))])",
        f"for block, convolutions in enumerate({blocks}, 1):",
        "    for number, (width, kernel) in enumerate(convolutions, 1):",
        '        place = f"block{block}_conv{number}"',
        '        network.add(keras.layers.Conv2D(width, kernel, padding="same", activation="relu", name=place))',
        "    network.add(keras.layers.MaxPooling2D())",
        "network.add(keras.layers.Flatten())",
        f"for number, width in enumerate({list(c.hidden)}, 1):",
        '    network.add(keras.layers.Dense(width, activation="relu", name=f"fc{number}"))',
        f'network.add(keras.layers.Dense({c.num_classes}, name="predictions"))',
    ]
    if name.lower().endswith(".npz"):
        lines += [
            f"values = np.load({name!r})",
            "for layer in network.layers:",
            "    if layer.weights:",
            '        layer.set_weights([values[f"{layer.name}/{kind}"] for kind in ("kernel", "bias")])',
        ]
    else:
        lines.append(f"network.load_weights({name!r})")
    return [*lines, "logits = keras.ops.convert_to_numpy(network(pixels[None]))[0]"]


def _read_image(preprocessing: Preprocessing, *, resize: bool) -> list[str]:
    """Lines that read the image and, unless the program does it, resize and crop it."""
    fourth = preprocessing.decoded_channels == 4
    opened = f'image = ImageOps.exif_transpose(Image.open("{IMAGE}")).convert("{"RGBA" if fourth else "RGB"}")'
    if not resize:
        return [opened]
    crop, short = preprocessing.crop_pixels, preprocessing.resize_pixels
    filter_name = f"Image.Resampling.{preprocessing.interpolation.upper()}"
    match preprocessing.fit_mode:
        case "stretch":
            return [opened, f"image = image.resize(({crop}, {crop}), {filter_name})"]
        case "pad":
            colour = tuple(preprocessing.mean_colour())
            mode = "RGBA" if fourth else "RGB"
            return [
                opened,
                f"sides = [max(1, round({crop} * side / max(image.size))) for side in image.size]",
                f"middle = tuple(({crop} - side) // 2 for side in sides)",
                f"image, resized = Image.new({mode!r}, ({crop}, {crop}), {colour}), "
                f"image.resize(sides, {filter_name})",
                "image.paste(resized, middle)",
            ]
    first = f"round((side - {crop}) / 2)"
    if short < crop:
        first += f" if side >= {crop} else -(({crop} - side) // 2)"
    return [
        opened,
        f"sides = [int({short} * side / min(image.size)) for side in image.size]",
        f"left, top = ({first} for side in sides)",
        f"image = image.resize(sides, {filter_name}).crop((left, top, left + {crop}, top + {crop}))",
    ]


def _write_activation(card: Card) -> list[str]:
    """Lines that make probabilities of logits."""
    if card.task == "multi-label":
        return [f"probabilities = 1 / (1 + np.exp(-logits / {card.temperature:.10g}))"]
    return [
        f"probabilities = np.exp((logits - logits.max()) / {card.temperature:.10g})",
        "probabilities /= probabilities.sum()",
    ]


def _print_several(thresholds: str) -> list[str]:
    """Lines that print every label whose probability reaches its threshold; `thresholds` is an expression."""
    return [
        f"for place in np.flatnonzero(probabilities >= np.array({thresholds})):",
        '    print(labels[place], f"{probabilities[place]:.4f}")',
    ]


def _print(threshold: str) -> list[str]:
    """Lines that print the prediction; `threshold` is a number or an expression."""
    return [
        "best = probabilities.argmax()",
        f'print(labels[best] if probabilities[best] >= {threshold} else "unknown", f"{{probabilities[best]:.4f}}")',
    ]
