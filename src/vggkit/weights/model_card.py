"""A model card for the hub: the README.md of a repository, written from a Classifier's own card. No torch here."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from vggkit.escaping import escape_controls, escape_markdown
from vggkit.models.configuration import Configuration, find_configuration
from vggkit.weights.card import Card
from vggkit.weights.published import PUBLISHED

LICENCES: Final = {"BSD-3-Clause": "bsd-3-clause", "MIT": "mit", "Apache-2.0": "apache-2.0", "CC0-1.0": "cc0-1.0"}
"""The hub's names of licences; any other is written unchanged."""
SHOWN_LABELS: Final = 20


def write_model_card(card: Card, *, repository: str = "owner/name") -> str:
    """The README.md for a Classifier: front matter for the hub, then text for people.

    Args:
        card: The Classifier's metadata; `provenance["licence"]` states its licence, else
            that of the weights it started from holds.
        repository: The repository that it is for.
    """
    model, name = card.configuration.model, repository.rpartition("/")[2]
    title = "a VGG" if model == "custom" else model
    paragraphs = [
        f"# {escape_markdown(name)}",
        f"An image classifier, {title} with {len(card.labels)} classes, made with vggkit: network, weights, "
        "preprocessing and labels in one file, `model.safetensors`.",
        "## Use it",
        *_uses(card, repository),
        "## Classes",
        _describe_metrics(card.provenance),
        f"Classes: {_list_labels(card.labels)}.",
        "## Network",
        _describe_network(card.configuration),
        "## Preprocessing",
        _describe_preprocessing(card),
        "## Training data",
        _describe_data(card.provenance),
        "## Licence",
        _describe_licence(card.provenance),
    ]
    return "\n".join(_front_matter(card, name)) + "\n\n" + "\n\n".join(paragraphs) + "\n"


def _front_matter(card: Card, name: str) -> list[str]:
    """The metadata that the hub reads, as YAML."""
    licence = _licence(card.provenance)
    lines = [
        "---",
        f"license: {_quote(LICENCES.get(licence, licence.lower()))}",
        "library_name: vggkit",
        "pipeline_tag: image-classification",
        "tags:",
        *(f"- {tag}" for tag in ("vggkit", "vgg", "image-classification", "pytorch")),
    ]
    if card.configuration.model != "custom":
        lines.append(f"- {card.configuration.model}")
    metrics = _metrics(card.provenance)
    if metrics:
        lines += [
            "model-index:",
            f"- name: {_quote(name)}",
            "  results:",
            "  - task:",
            "      type: image-classification",
            "    dataset:",
            f"      name: {_quote(_data_name(card.provenance))}",
            "      type: other",
            f"      split: {_quote(_find_split(metrics))}",
            "    metrics:",
            *(
                [
                    "    - type: mAP",
                    f"      name: {_quote('mean average precision, ' + _interval(metrics))}",
                    f"      value: {float(metrics['map']):.4f}",
                ]
                if "map" in metrics
                else [
                    "    - type: accuracy",
                    f"      name: {_quote('top-1, ' + _interval(metrics))}",
                    f"      value: {float(metrics['top1']):.4f}",
                ]
            ),
        ]
    return [*lines, "---"]


def _quote(text: str) -> str:
    """A JSON string, which YAML reads as a string in all cases: `no`, `1.0`, `a: b`."""
    return json.dumps(escape_controls(text), ensure_ascii=False)


def _uses(card: Card, repository: str) -> list[str]:
    c = card.configuration
    here = [
        "With vggkit, including preprocessing and labels:",
        "```python\n"
        "import vggkit as vk\n\n"
        f'clf = vk.load("hf://{repository}")\n'
        'for prediction in vk.predict(clf, "image.jpg", top=3):\n'
        f"    print(prediction.{'labels' if card.task == 'single-label' else 'predicted'})\n"
        "```",
    ]
    if not is_torchvisions(c):
        return [
            *here,
            "torchvision and timm cannot load it, because its network is not one of theirs. "
            f"`vggkit code` writes VGGs as standalone listings; this one is {_describe_difference(c)}.",
        ]
    return [
        *here,
        "In torchvision, which uses the same keys (prepare images as described below):",
        "```python\n"
        "from huggingface_hub import hf_hub_download\n"
        "from safetensors.torch import load_file\n"
        f"from torchvision.models import {c.model}\n\n"
        f"model = {c.model}(num_classes={c.num_classes})\n"
        f'model.load_state_dict(load_file(hf_hub_download("{repository}", "model.safetensors")))\n'
        "```",
        "In timm, once its keys are timm's:",
        "```bash\n"
        f"hf download {repository} model.safetensors --local-dir .\n"
        "vggkit convert model.safetensors timm.safetensors --to timm\n"
        "```",
        "```python\n"
        "import timm\n\n"
        f'model = timm.create_model("{c.model}", num_classes={c.num_classes}, checkpoint_path="timm.safetensors")\n'
        "```",
    ]


def is_torchvisions(configuration: Configuration) -> bool:
    """Whether torchvision builds the same network, so that it loads the same state dict."""
    if configuration.model not in {record.model for record in PUBLISHED}:
        return False
    theirs = find_configuration(configuration.model)
    return replace(theirs, num_classes=configuration.num_classes, dropout=configuration.dropout) == configuration


def _describe_difference(c: Configuration) -> str:
    parts = [f"{c.model} with a {c.head} head" if c.model != "custom" else f"a custom network with a {c.head} head"]
    if c.until:
        parts.append(f"cut after {c.until}")
    if c.in_channels != 3:
        parts.append(f"for {c.in_channels} channel{'s' * (c.in_channels > 1)}")
    return ", ".join(parts)


def _describe_network(c: Configuration) -> str:
    rows = {
        "network": "custom" if c.model == "custom" else c.model,
        "convolutions by block": ", ".join(str(len(block)) for block in c.blocks),
        "batch normalisation": "yes" if c.batch_norm else "no",
        "cut after": c.until or "not cut",
        "head": {"fc": "fully connected", "dense": "fully connected, slid over the map", "pool": "pooled"}[c.head],
        "channels": str(c.in_channels),
        "classes": str(c.num_classes),
        "parameters": f"{c.parameters:,}",
    }
    return _draw_table(rows)


def _describe_preprocessing(card: Card) -> str:
    p = card.preprocessing
    side = f"{p.crop_pixels} × {p.crop_pixels} pixels"
    fits = {
        "crop": {"short side resized to": f"{p.resize_pixels} pixels", "middle cropped to": side},
        "pad": {"long side resized to": f"{p.crop_pixels} pixels", "padded with the mean to": side},
        "stretch": {"stretched to": side},
    }
    rows = {
        **fits[p.fit_mode],
        "resampling": f"{p.interpolation}, antialiased",
        "channels": {"L": "grey"}.get(p.channel_order, p.channel_order),
        "values": f"0 to {p.full_value:g}",
        "minus mean": ", ".join(f"{value:g}" for value in p.mean),
        "divided by": ", ".join(f"{value:g}" for value in p.std),
    }
    return _draw_table(rows)


def _describe_metrics(provenance: Mapping[str, Any]) -> str:
    metrics = _metrics(provenance)
    if not metrics:
        return "It was not evaluated: its file states no accuracy."
    sentence = f"Top-1 accuracy {_percent(metrics['top1'])} ({escape_markdown(_interval(metrics))})"
    if "map" in metrics:
        sentence = f"Mean average precision {_percent(metrics['map'])} ({escape_markdown(_interval(metrics))})"
        sentence += f", macro F1 {_percent(metrics['macro_f1'])}, micro F1 {_percent(metrics['micro_f1'])}"
    elif isinstance(metrics.get("top5"), int | float) and metrics["top5"] < 1:
        sentence += f", top-5 {_percent(metrics['top5'])}"
    sentence += f", on {escape_markdown(_data_name(provenance))}."
    if _find_split(metrics) == "val":
        sentence += " The epoch was chosen on the same images, so this estimate is optimistic."
    return sentence


def _describe_data(provenance: Mapping[str, Any]) -> str:
    data, recipe = _mapping(provenance, "data"), _mapping(provenance, "recipe")
    sentences = [f"Images: {escape_markdown(_data_name(provenance))}."]
    images = _mapping(data, "images") or _mapping(data, "pictures")
    if images:
        counts = ", ".join(f"{split} {count}" for split, count in images.items())
        sentences.append(f"Splits: {escape_markdown(counts)}.")
    if data.get("fingerprint"):
        sentences.append(f"Fingerprint of their files: {escape_markdown(str(data['fingerprint']))}.")
    weights = _mapping(provenance, "weights")
    if weights:
        start = weights.get("published") or weights.get("file") or "another file"
        sentences.append(f"It started from the weights of {escape_markdown(str(start))}.")
    if recipe:
        settings = (f"{name} {value}" for name, value in recipe.items() if isinstance(value, str | int | float))
        sentences.append(f"Recipe: {escape_markdown(', '.join(settings))}.")
    return " ".join(sentences)


def _describe_licence(provenance: Mapping[str, Any]) -> str:
    weights = _mapping(provenance, "weights")
    sentences = [f"It is under {escape_markdown(_licence(provenance))}."]
    if _licence(provenance) == "unknown":
        sentences = ["Its publisher stated none; ask the publisher before using it."]
    if weights.get("licence"):
        terms = f"{weights['licence']}: {weights.get('terms', 'no more is known')}"
        sentences.append(f"It started from weights under {escape_markdown(terms)}.")
    return " ".join(sentences)


def _licence(provenance: Mapping[str, Any]) -> str:
    return str(provenance.get("licence") or _mapping(provenance, "weights").get("licence") or "unknown")


def _metrics(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    metrics = _mapping(provenance, "metrics")
    return metrics if isinstance(metrics.get("top1"), int | float) else {}


def _find_split(metrics: Mapping[str, Any]) -> str:
    """The split that was measured; version 0.1 wrote it as `part`."""
    return str(metrics.get("split", metrics.get("part", "test")))


def _interval(metrics: Mapping[str, Any]) -> str:
    text = f"{_find_split(metrics)} split, n = {metrics.get('n', 'unknown')}"
    interval = metrics.get("map_interval" if "map" in metrics else "top1_interval")
    if isinstance(interval, list | tuple) and len(interval) == 2:
        text += f", 95 % interval {_percent(interval[0])} to {_percent(interval[1])}"
    return text


def _data_name(provenance: Mapping[str, Any]) -> str:
    """The data's name without the folders of the machine."""
    name = str(_mapping(provenance, "data").get("name") or "images of its author")
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] or name


def _mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _list_labels(labels: tuple[str, ...]) -> str:
    more = f" and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
    return ", ".join(map(escape_markdown, labels[:SHOWN_LABELS])) + more


def _draw_table(rows: Mapping[str, str]) -> str:
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {name} | {escape_markdown(value)} |" for name, value in rows.items())]
    )
