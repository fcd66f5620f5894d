"""A trained network as the teacher of another: its probabilities and its last maps are learnt beside the labels.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from vggkit.engines.pytorch import replicate_network
from vggkit.errors import BadConfiguration
from vggkit.models.vgg import VGG
from vggkit.task import Task
from vggkit.training.recipe import Recipe
from vggkit.weights.locate import locate_model
from vggkit.weights.model import Model

TEMPERATURE: Final = 4.0
"""Softens both networks' probabilities, so that those of wrong classes count (Hinton et al. 2015)."""
SOFT_SHARE: Final = 0.9
"""Share of the loss that is the teacher's probabilities; the labels are the rest."""
FEATURE_WEIGHT: Final = 1.0
"""Weight of the maps' loss beside both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationWeights:
    """How a teacher's loss is put together."""

    temperature: float = TEMPERATURE
    """What both networks' logits are divided by, above 0."""
    soft_share: float = SOFT_SHARE
    """Share in [0, 1] of the teacher's probabilities in the loss; the rest is the cross-entropy of the labels."""
    feature_weight: float = FEATURE_WEIGHT
    """Weight of the maps' loss, 0 or more."""


class Teacher:
    """A network whose predictions another one learns; it learns nothing itself.

    The loss of a batch is (1 - a) times the cross-entropy of its labels, plus a T² times the Kullback-Leibler
    divergence of the softened probabilities (Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural
    network", arXiv:1503.02531), plus the difference of both networks' similarities between the images of the batch,
    by the maps of the trunk's end, pool5 of a whole VGG (Tung and Mori 2019, "Similarity-preserving knowledge
    distillation", arXiv:1907.09682). Similarities have no channels, so the student may have others.

    Args:
        network: The trained network.
        device: Where it computes.
        dtype: What it computes in.
        weights: How the loss is put together.
        task: single-label; or multi-label, where each class has a divergence of its own, of yes and no, and their
            mean counts.
    """

    def __init__(
        self,
        network: VGG,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        weights: DistillationWeights = DistillationWeights(),
        task: Task = "single-label",
    ) -> None:
        self._network, self._weights = replicate_network(network, device, dtype), weights
        self._task = task

    def join(self, hard: Tensor, images: Tensor, logits: Tensor, maps: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            hard: The student's cross-entropy with the labels.
            images: (N, C, H, W), as the student sees them.
            logits: (N, K) of the student.
            maps: (N, C', H', W'), the last maps of the student's trunk.
        """
        with torch.no_grad():
            wanted_maps = self._network.features(images)
            wanted = self._network.read(wanted_maps, self._network.classifier).float()
        given = self._weights
        soft = diverge(logits.float() / given.temperature, wanted / given.temperature, self._task)
        loss = (1 - given.soft_share) * hard + given.soft_share * given.temperature**2 * soft
        if given.feature_weight and len(images) > 1:
            loss = loss + given.feature_weight * compare_similarities(maps, wanted_maps)
        return loss


def diverge(logits: Tensor, wanted: Tensor, task: Task) -> Tensor:
    """Mean Kullback-Leibler divergence of the probabilities of logits (N, K) from those of the wanted ones.

    Multi-label that of yes and no, mean over the classes.
    """
    if task == "single-label":
        return F.kl_div(logits.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
    chances = wanted.sigmoid()
    yes = F.logsigmoid(wanted) - F.logsigmoid(logits)
    no = F.logsigmoid(-wanted) - F.logsigmoid(-logits)
    return (chances * yes + (1 - chances) * no).mean()


def compare_similarities(maps: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared distance of the rows, of length 1 each, of two matrices (N, N) of similarities of images."""
    first, second = (_find_similarities(each) for each in (maps, wanted))
    return (first - second).square().sum(1).mean()


def _find_similarities(maps: Tensor) -> Tensor:
    rows = maps.float().flatten(1)
    return F.normalize(rows @ rows.T, dim=1)


def open_teacher(place: str | Path, student: Model, recipe: Recipe, *, device: torch.device) -> Teacher:
    """The Classifier at a place as the teacher of another.

    Args:
        place: A file, a run's folder, a model's name or `hf://owner/name`.
        student: The Classifier that learns.
        recipe: Resolved.
        device: Where both compute.

    Raises BadConfiguration where it cannot teach the student, and what `Model.load` does.
    """
    if recipe.trainable == "head":
        raise BadConfiguration(
            "a teacher is learnt from by steps, and trainable=head solves the last layer directly; take "
            "trainable=top or all, or leave out teacher"
        )
    model = Model.load(locate_model(place))
    _demand_alike(model, student)
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    return Teacher(model.network, device=device, dtype=dtype, task=student.task)


def _demand_alike(teacher: Model, student: Model) -> None:
    """Raise BadConfiguration where a Classifier cannot teach another: another task, other classes, other inputs."""
    if teacher.task != student.task:
        raise BadConfiguration(
            f"a teacher is of the same task as the network that learns: it is {teacher.task}, and the images are "
            f"{student.task}"
        )
    if teacher.labels != student.labels:
        raise BadConfiguration(
            f"a teacher names the same classes in the same order: it names {', '.join(teacher.labels[:4])} …, and "
            f"the network that learns {', '.join(student.labels[:4])} …"
        )
    if teacher.preprocessing != student.preprocessing:
        raise BadConfiguration(
            "a teacher sees the same input: the same image size, channels, mean and deviation as the network that "
            f"learns; it has {teacher.preprocessing}, and the other {student.preprocessing}"
        )
