"""The search for a Classifier that reaches the goals: ever smaller networks, each measured in several storages.

Each network starts from the one before, which was fine-tuned: channels go a few at a time, and the weights that are
left learn in between (Li et al. 2017, "Pruning filters for efficient ConvNets", arXiv:1608.08710, section 3.4).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from vggkit.compression.low_rank import list_factorable
from vggkit.compression.measuring import count_multiply_adds, measure_speedup, predict_all
from vggkit.compression.records import CompressionPoint, Goals, Prune, RunPrecision
from vggkit.compression.steps import Compressed, Compressor
from vggkit.errors import BadInput
from vggkit.weights.model import Model
from vggkit.weights.storage import Storage

ENERGIES: Final = (0.99, 0.95, 0.9, 0.8)
"""Shares of the fully connected layers' energy that are tried."""
REMOVED: Final = (0.3, 0.5, 0.65, 0.77, 0.88, 0.94)
"""Shares of the multiply-adds that are removed, one after the other."""
TOLERATED: Final = 0.005
"""Loss of accuracy up to which the pool head is preferred to fully connected layers where no loss is named."""

Variant = tuple[Storage, RunPrecision]


@dataclass(slots=True)
class Candidate:
    """A point, and the Classifier's file."""

    point: CompressionPoint
    """What was measured."""
    path: Path
    """Its file, in a temporary folder."""


class Search:
    """Makes networks, measures them, and chooses.

    Args:
        compressor: Carries out the steps.
        goals: What is to be reached.
    """

    def __init__(self, compressor: Compressor, goals: Goals) -> None:
        self.compressor, self.goals = compressor, goals
        self.candidates: list[Candidate] = []
        self._int8_problem: str | None = None
        self.before = self._measure(Compressed(compressor.original), compressor.original.card.storage, "fp32")

    @property
    def points(self) -> tuple[CompressionPoint, ...]:
        """All that were measured, the Classifier as it was first."""
        return (self.before.point, *(candidate.point for candidate in self.candidates))

    def run(self) -> Candidate:
        """The candidate that reaches the goals best.

        With `max_loss` it is the smallest file within it, or with `min_speedup` alone beside it the fastest;
        without it the most accurate one. Raises BadInput where none reaches them, with the closest.
        """
        spare = 1  # one network more than needed, which in a finer storage may be better
        for made in self._make_networks():
            found = self.try_variants(made)
            reached = [each for each in self.candidates if self.goals.meets(each.point, self.before.point)]
            if self.goals.max_loss is None:
                if reached and not spare:
                    break
                spare -= bool(reached)
            elif self._lost_too_much(found):
                break
        return self.choose()

    def try_variants(self, made: Compressed, variants: tuple[Variant, ...] | None = None) -> list[Candidate]:
        """Measure a network in each storage and precision."""
        ranges_problem = self.compressor.find_ranges(made.model)
        self._int8_problem = ranges_problem or self._int8_problem
        found = []
        for storage, precision in variants or self._list_variants(int8=ranges_problem is None):
            candidate = self._measure(made, storage, precision)
            self.candidates.append(candidate)
            found.append(candidate)
            self.compressor.log(describe_point(candidate.point, self.before.point))
        return found

    def choose(self) -> Candidate:
        """The best of those that were measured; raises BadInput where none reaches the goals."""
        before, goals = self.before.point, self.goals
        reached = [each for each in self.candidates if goals.meets(each.point, before)]
        if not reached:
            raise BadInput(self._explain_miss())
        if goals.max_loss is not None and goals.max_size_bytes is None and goals.min_speedup is not None:
            return max(reached, key=lambda each: (each.point.speedup or 0.0, -each.point.size_bytes))
        if goals.max_loss is not None:
            return min(reached, key=lambda each: (each.point.size_bytes, -(each.point.speedup or 0.0)))
        return max(reached, key=lambda each: (each.point.top1 or 0.0, -each.point.size_bytes))

    def _make_networks(self) -> Iterator[Compressed]:
        """Networks, each smaller than the one before."""
        compressor = self.compressor
        base = compressor.fold(Compressed(compressor.original))
        yield base
        wide = bool(list_factorable(base.model.configuration))
        if wide:
            for energy in ENERGIES:
                yield compressor.factorize(base, energy=energy)
        if compressor.images is None:
            return
        if wide:
            pooled = compressor.fine_tune(compressor.put_pool_head(base))
            yield pooled
            base = pooled if self._is_worth(pooled) else compressor.factorize(base, energy=ENERGIES[1])
        for removed in REMOVED:
            smaller = compressor.prune(base, removed)
            if smaller is base:
                continue
            base = compressor.fine_tune(smaller)
            yield base

    def _is_worth(self, made: Compressed) -> bool:
        """Whether the pool head that was just measured loses little."""
        tops = [each.point.top1 or 0.0 for each in self.candidates if each.point.steps == made.steps]
        allowed = TOLERATED if self.goals.max_loss is None else self.goals.max_loss
        return (self.before.point.top1 or 0.0) - max(tops) <= allowed

    def _lost_too_much(self, found: list[Candidate]) -> bool:
        """Whether not even the best variant of a network is within the loss: smaller ones will not be."""
        tops = [each.point.top1 or 0.0 for each in found]
        pruned = any(isinstance(step, Prune) for each in found for step in each.point.steps)
        assert self.goals.max_loss is not None
        return pruned and (self.before.point.top1 or 0.0) - max(tops) > self.goals.max_loss

    def _list_variants(self, *, int8: bool) -> tuple[Variant, ...]:
        if self.compressor.images is None:
            return (("fp16", "fp32"), ("int8", "fp32"), ("int4", "fp32"))
        plain: tuple[Variant, ...] = (("int8", "fp32"), ("int4", "fp32"))
        return (*plain, ("int8", "int8"), ("int4", "int8")) if int8 else plain

    def _measure(self, made: Compressed, storage: Storage, precision: RunPrecision) -> Candidate:
        """The point of a Classifier as its file gives it."""
        compressor, top1 = self.compressor, None
        path = compressor.folder / f"{len(self.candidates)}-{storage}-{precision}.safetensors"
        model = (
            compressor.round(made) if storage == "int4" and made.model is not compressor.original else made.model
        )
        model.card = replace(model.card, storage=storage)
        model.save(path)
        model = Model.load(path)
        if compressor.images is not None:
            predictions = predict_all(
                model,
                compressor.images.choose,
                precision=precision,
                device=compressor.device,
                on_progress=lambda done, total: compressor.on_progress("comparing on images", done, total),
            )
            top1 = predictions.headline
        speed: tuple[float, float] | tuple[None, None] = (None, None)
        if compressor.images is not None or self.goals.min_speedup is not None:
            compressor.on_progress("measuring speed", 0, None)
            speed = measure_speedup(compressor.original, model, precision=precision, device=compressor.device)
        point = CompressionPoint(
            steps=made.steps,
            storage=storage,
            precision=precision,
            size_bytes=path.stat().st_size,
            parameters=model.configuration.parameters,
            multiply_adds=count_multiply_adds(model.configuration, compressor.pixels),
            top1=top1,
            figure="top-1" if model.task == "single-label" else "micro F1",
            images_per_second=speed[0],
            speedup=speed[1],
        )
        return Candidate(point, path)

    def _explain_miss(self) -> str:
        """The goals, the candidate that comes closest, and what to ask for."""
        before, goals = self.before.point, self.goals

        def rank(candidate: Candidate) -> tuple[int, float]:
            point = candidate.point
            misses = goals.list_misses(point, before)
            far = {
                "max_size": point.size_bytes / (goals.max_size_bytes or 1),
                "max_loss": 1 + 20 * ((before.top1 or 0.0) - (point.top1 or 0.0) - (goals.max_loss or 0.0)),
                "min_speedup": (goals.min_speedup or 0.0) / (point.speedup or 1e-9),
            }
            return len(misses), sum(far[name] for name in misses)

        closest = min(self.candidates, key=rank).point
        misses = " and ".join(goals.list_misses(closest, before))
        slow = "min_speedup" in misses and self._int8_problem is not None
        hint = f" ({self._int8_problem})" if slow else ""
        more = "" if self.compressor.images is not None else "; with images of its classes networks are pruned too"
        return (
            f"{misses} cannot be reached; the closest of {len(self.candidates)} that were measured is "
            f"{describe_point(closest, before)}{hint}: ask for that, or for less{more}"
        )


def describe_point(point: CompressionPoint, before: CompressionPoint) -> str:
    """A point in one line: how it was made, its size, its loss, and its speed."""
    parts = [f"{point.name}, {point.storage}: {point.size_bytes / 1e6:.3g} MB"]
    if point.top1 is not None and before.top1 is not None:
        parts.append(f"{point.figure} {100 * point.top1:.1f} % ({100 * (point.top1 - before.top1):+.1f})")
    if point.speedup is not None:
        parts.append(f"{point.speedup:.2g} times as fast in {point.precision}")
    return ", ".join(parts)
