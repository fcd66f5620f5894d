"""Least cross-entropy of a linear layer with a penalty, for several selections of the rows at once, by L-BFGS.

Shape letters: N rows, F features, R rotated features (R <= N, F), K classes, M problems solved together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vggkit.errors import MissingExtra

SMALL: Final = 2_000_000_000
"""Products of a step, at most, up to which one thread computes it, in less than a tenth of a second."""
WIDE: Final = 20_000_000
"""Numbers in a matrix from which float32 has to do."""
REMEMBERED: Final = 10
"""Steps from which L-BFGS knows how the loss curves."""
STEPS: Final = 500
"""Of L-BFGS, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSpace:
    """Features in which the problem is easy: standardised, and rotated onto their principal axes."""

    rows: Tensor
    """(N, R)."""
    scales: Tensor
    """(R,) variance along each."""
    axes: NDArray[np.float64]
    """(F, R), orthonormal."""
    mean: NDArray[np.float64]
    """(F,)."""
    deviation: NDArray[np.float64]
    """(F,), infinite for features that are constant."""

    @classmethod
    def of(cls, features: NDArray[np.float32]) -> "FeatureSpace":
        count, width = features.shape
        kind = np.float64 if count * width <= WIDE else np.float32
        mean = features.mean(0, dtype=np.float64)
        deviation = features.std(0, dtype=np.float64)
        highest = np.abs(features).max(0).astype(np.float64)
        deviation[deviation <= 1e-6 * np.maximum(highest, 1e-12)] = np.inf
        scaled = torch.from_numpy(((features - mean.astype(kind)) / deviation.astype(kind)).astype(kind))
        # The smaller of the two Gram matrices has the same axes.
        gram = (scaled @ scaled.T if count < width else scaled.T @ scaled).double()
        values, vectors = torch.linalg.eigh(gram)
        large = values > max(count, width) ** 0.5 * torch.finfo(scaled.dtype).eps * values.max().clamp(min=1e-30)
        values, vectors = values[large], vectors[:, large]
        axes = scaled.T.double() @ (vectors / values.sqrt()) if count < width else vectors
        return cls(scaled @ axes.to(scaled), values / count, axes.numpy(), mean, deviation)

    def unfold(self, solved: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weight (K, F) and bias (K,) on the features as they came, of what was solved, (R + 1, K)."""
        wide = solved.double().numpy()
        weight = (self.axes @ wide[:-1]).T / self.deviation
        bias = wide[-1] - weight @ self.mean
        return weight.astype(np.float32), bias.astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class PenalizedProblem:
    """Cross-entropy of rows towards shares of classes, or for and against each, M times for different rows."""

    rows: Tensor
    """(N, R)."""
    goals: Tensor
    """(N, K) target share of each class."""
    shares: Tensor
    """(N, M) how much each row counts in the sum; nothing, where it is held out."""
    scales: Tensor
    """(R,) variance of each feature."""
    against: Tensor | None = None
    """One-vs-rest: (N, K) how much each row counts against each class, as `goals` for it; None: multinomial."""

    def to(self, kind: torch.dtype) -> "PenalizedProblem":
        """The same in another precision."""
        rows, goals, shares, scales = (part.to(kind) for part in (self.rows, self.goals, self.shares, self.scales))
        return PenalizedProblem(
            rows, goals, shares, scales, None if self.against is None else self.against.to(kind)
        )

    def start(self) -> Tensor:
        """Zeros (M, R + 1, K): a weight for each feature, and the bias."""
        shape = self.shares.shape[1], self.rows.shape[1] + 1, self.goals.shape[1]
        return torch.zeros(shape, dtype=self.rows.dtype)

    def score(self, solved: Tensor) -> Tensor:
        """Logits (N, M, K)."""
        many, _, classes = solved.shape
        flat = solved.transpose(0, 1).reshape(-1, many * classes)
        return torch.addmm(flat[-1], self.rows, flat[:-1]).view(-1, many, classes)

    def solve(self, strength: float, start: Tensor, *, flat: float) -> tuple[Tensor, int]:
        """Weights and biases (M, R + 1, K) of the least loss, and the steps that took; `start` may be near.

        `flat` is the share of the loss that a step must gain for another one; 0: up to numerical precision.
        Raises MissingExtra without SciPy.
        """
        try:
            from scipy import optimize
        except ImportError as absent:
            raise MissingExtra.of("SciPy", "solving the last layer", "train") from absent
        # Along each axis the loss curves at most as half its variance, and the penalty; in units of that the
        # problem is round.
        curves = 0.5 * torch.cat([self.scales, self.scales.new_ones(1)]) + strength
        units = curves.rsqrt()[:, None]
        goals, shares = self.goals[:, None], self.shares
        # The slope of the loss by the logits is in both cases: totals times probability, less the goals.
        totals = goals.sum(2, keepdim=True) if self.against is None else goals + self.against[:, None]

        def measure(place: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            solved = torch.from_numpy(place).view(start.shape).to(start) * units
            logits = self.score(solved)
            logs = logits.log_softmax(2) if self.against is None else F.logsigmoid(logits)
            fit = (
                (goals * logs).sum(2)
                if self.against is None
                else (totals * logs - (totals - goals) * logits).sum(2)
            )
            loss = -(shares * fit).sum() + strength / 2 * solved[:, :-1].square().sum()
            slopes = (totals * logs.exp_() - goals) * shares[:, :, None]
            many, _, classes = solved.shape
            pulled = (self.rows.T @ slopes.flatten(1)).view(-1, many, classes).transpose(0, 1)
            gradient = torch.cat([pulled + strength * solved[:, :-1], slopes.sum(0)[:, None]], 1)
            return float(loss), (gradient * units).double().flatten().numpy()

        found = optimize.minimize(
            measure,
            (start / units).double().flatten().numpy(),
            method="L-BFGS-B",
            jac=True,
            options={
                "maxcor": REMEMBERED,
                "maxiter": STEPS,
                "ftol": max(flat, torch.finfo(start.dtype).eps),
                "gtol": 1e-9,
            },
        )
        return torch.from_numpy(found.x).view(start.shape).to(start) * units, int(found.nit)


@contextmanager
def limit_threads(products: int) -> Iterator[None]:
    """One thread for small work: where others use the processors too, threads that wait for each other after
    every few microseconds were measured to take twenty times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if products <= SMALL else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
