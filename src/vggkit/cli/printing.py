"""Output that several verbs share."""

import json
from typing import Any

from vggkit.escaping import escape_json


def describe_evaluation(evaluation: Any) -> str:
    """The headline of an Evaluation, with its interval and its n."""
    low, high = evaluation.intervals.get(evaluation.main_figure, (None, None))
    if evaluation.task == "multi-label":
        ends = "" if low is None else f" (95 % interval {low:.4f} to {high:.4f})"
        return (
            f"mAP {evaluation.average_precision:.4f}{ends}, macro F1 {evaluation.macro_f1:.4f}, "
            f"micro F1 {evaluation.micro_f1:.4f}, loss {evaluation.loss:.4f}, n = {evaluation.n} "
            f"({evaluation.source})"
        )
    top5 = f", top-5 {evaluation.top5:.4f}" if len(evaluation.labels) > 5 else ""
    return (
        f"top-1 {evaluation.top1:.4f} (95 % interval {low:.4f} to {high:.4f}){top5}, "
        f"loss {evaluation.loss:.4f}, n = {evaluation.n} ({evaluation.source})"
    )


def print_json(value: object) -> None:
    """One JSON value on standard output."""
    print(escape_json(json.dumps(value, ensure_ascii=False, indent=2)))


def print_json_line(value: object) -> None:
    """One JSON value on one line of standard output, at once."""
    print(escape_json(json.dumps(value, ensure_ascii=False)), flush=True)
