"""Comparison of training runs by their folders; torch is not imported."""

import csv
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from vggkit.arguments import demand_path
from vggkit.errors import BadCheckpoint, BadData, BadInput, MissingExtra
from vggkit.evaluation.comparison import PairedComparison, compare_predictions
from vggkit.evaluation.evaluation import proportion_interval
from vggkit.evaluation.label_predictions import read_predictions
from vggkit.evaluation.predictions import ENDINGS
from vggkit.reports.comparison import ComparedRun, Comparison
from vggkit.training.recipe import Monitor, rank_epoch
from vggkit.weights.classifier_file import read_card
from vggkit.workflows.run_config import FILE_NAME, RunConfig
from vggkit.workflows.run_folder import read_run_state


def compare(runs: Sequence[str | Path]) -> Comparison:
    """Compare training runs: their configurations, their metrics, and whether differences are significant.

    Args:
        runs: The folders of runs, or folders that contain runs.

    Unfinished runs are shown with the best epoch so far. Raises BadCheckpoint for a folder that contains no run,
    BadInput for anything but a list of paths, BadConfiguration where a config.yaml cannot be read.
    """
    if isinstance(runs, str | PathLike) or not runs:
        raise BadInput("compare takes a list of runs' folders, such as ['runs/vgg11-1', 'runs/vgg11-2']")
    folders = list(dict.fromkeys(folder for place in runs for folder in _find_runs(demand_path(place))))
    configs = [RunConfig.read(folder / FILE_NAME) for folder in folders]
    names = [folder.resolve().name for folder in folders]
    compared = tuple(
        _read_run(folder, config, name=name if names.count(name) == 1 else str(folder))
        for folder, config, name in zip(folders, configs, names, strict=True)
    )
    return Comparison(compared, _find_differing(configs), tuple(_find_notes(compared)))


def _find_runs(place: Path) -> list[Path]:
    if (place / FILE_NAME).is_file():
        return [place]
    found = [path.parent for path in place.glob(f"*/{FILE_NAME}")] if place.is_dir() else []
    if not found:
        raise BadCheckpoint(
            f"{place}: is neither the folder of a run, which has a {FILE_NAME}, nor a folder of runs"
        )
    return sorted(found, key=lambda path: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", path.name)])


def _read_run(folder: Path, config: RunConfig, *, name: str) -> ComparedRun:
    best, history, resolved = folder / "best.safetensors", read_history(folder / "metrics.csv"), config.resolved
    about: Mapping[str, Any] = config.found.get("data") or {}
    network: Mapping[str, Any] = config.found.get("configuration") or {}
    provenance: Mapping[str, Any] = {}
    if best.is_file():
        card = read_card(best)
        provenance, network = card.provenance, card.configuration.to_dict()
    is_finished = read_run_state(folder).state == "finished" and "metrics" in provenance
    figures = dict(provenance["metrics"]) if is_finished else _figures_so_far(history, about, resolved.monitor)
    split = figures.get("split") or figures.get("part", "val")
    main = "map" if figures.get("map") is not None else "top1"
    interval = figures.get(f"{main}_interval")
    spent = sum(row["seconds"] for row in history)
    return ComparedRun(
        name=name,
        directory=str(folder),
        model=config.network.model,
        head=str(network.get("head") or config.network.head or "–"),
        trainable=resolved.trainable,
        is_finished=is_finished,
        idle_seconds=_find_idle_seconds(folder),
        epochs=1 if resolved.trainable == "head" else resolved.epochs,
        history=history,
        best_epoch=figures.get("epoch"),
        split=split,
        data=config.data,
        images=(about.get("held_out") or {}).get(split),
        n=figures.get("n"),
        figure="mAP" if main == "map" else "top-1",
        top1=figures.get(main),
        top1_interval=(interval[0], interval[1]) if interval else None,
        loss=figures.get("loss"),
        seconds=float(provenance.get("seconds", spent)) if is_finished else spent,
        peak_memory_bytes=provenance.get("peak_memory_bytes") if is_finished else None,
    )


def read_history(path: Path) -> tuple[Mapping[str, float], ...]:
    """The rows of `metrics.csv`; none where there is no such file yet. Raises BadCheckpoint for another file."""
    if not path.is_file():
        return ()
    try:
        with open(path, encoding="utf-8", newline="") as lines:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]
        for row in rows:
            _ = row["epoch"], row["train_loss"], row["val_loss"], row["val_top1"], row["seconds"]
    except (ValueError, TypeError, KeyError) as problem:
        raise BadCheckpoint(f"{path}: is not the metrics of a training ({problem})") from problem
    return tuple(rows)


def _figures_so_far(
    history: Sequence[Mapping[str, float]], about: Mapping[str, Any], monitor: Monitor
) -> dict[str, Any]:
    """The validation metrics of the best epoch so far."""
    if not history:
        return {}
    best = max(
        history,
        key=lambda row: rank_epoch(
            monitor,
            val_top1=row["val_top1"],
            val_loss=row["val_loss"],
            val_macro_f1=row.get("val_macro_f1"),
            val_map=row.get("val_map"),
        ),
    )
    counts: Mapping[str, Any] = about.get("images") or about.get("pictures") or {}
    n, top1 = counts.get("val"), best["val_top1"]
    return {
        "split": "val",
        "epoch": int(best["epoch"]),
        "n": n,
        "top1": top1,
        "top1_interval": proportion_interval(round(top1 * n), n) if n else None,
        "loss": best["val_loss"],
        **({"map": best["val_map"]} if "val_map" in best else {}),
    }


def _find_idle_seconds(folder: Path) -> float:
    written = [entry.stat().st_mtime for entry in folder.iterdir() if entry.is_file()]
    return max(0.0, time.time() - max(written))


def _find_differing(configs: Sequence[RunConfig]) -> dict[str, tuple[Any, ...]]:
    """Fields of the data, the network and the recipe that are not the same in all runs, with their values."""
    known = [
        {"data": config.data, **asdict(config.columns), **asdict(config.network), **config.resolved.to_dict()}
        for config in configs
    ]
    values = {name: tuple(each[name] for each in known) for name in known[0]}
    return {name: found for name, found in values.items() if len(set(found)) > 1}


def _find_notes(runs: Sequence[ComparedRun]) -> Iterator[str]:
    """Remarks on comparability and significance."""
    measured = [run for run in runs if run.top1 is not None]
    groups: dict[tuple[str, str | None], list[ComparedRun]] = {}
    for run in measured:
        groups.setdefault((run.split, run.images), []).append(run)
    if len(groups) > 1:
        listed = "; ".join(
            f"{', '.join(run.name for run in group)} on {split} of {group[0].data}"
            for (split, _), group in groups.items()
        )
        yield f"the metrics are of different images and cannot be compared: {listed}"
        return
    if len({run.figure for run in measured}) > 1:
        yield "some give an image one label and others several, and their figures cannot be compared"
        return
    if any(run.images is None for run in measured) and len(measured) > 1:
        yield "it is not known whether the metrics are of the same images"
        return
    ranked = sorted(measured, key=lambda run: -(run.top1 or 0.0))
    if len(ranked) > 1 and ranked[0].top1_interval and ranked[1].top1_interval:
        first, second = ranked[:2]
        paired = _pair(second, first)
        if paired is not None:
            yield paired.describe()
        elif first.top1 != second.top1 and second.top1_interval[1] > first.top1_interval[0]:  # type: ignore[index]
            yield (
                f"{first.name} is {100 * (first.top1 - second.top1):.1f} percentage points above {second.name}, "  # type: ignore[operator]
                f"which may be by chance for {first.n:,} images: the confidence intervals overlap"
            )


def _pair(first: ComparedRun, second: ComparedRun) -> PairedComparison | None:
    """The paired comparison of two finished runs, where both have their predictions tables; else None."""
    if not (first.is_finished and second.is_finished):
        return None
    tables = [find_results(Path(run.directory)) for run in (first, second)]
    if None in tables:
        return None
    try:
        one, two = (read_predictions(table) for table in tables if table is not None)
        return compare_predictions(one, two, names=(first.name, second.name))
    except (BadData, MissingExtra):
        return None


def find_results(folder: Path) -> Path | None:
    """The predictions table of a run; None where there is none."""
    return next((path for ending in ENDINGS if (path := folder / f"results{ending}").is_file()), None)
