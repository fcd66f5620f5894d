"""The state of a training: float32 master weights, their copy that computes, and the optimizers.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

import copy
import gc
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Final

import torch
from torch import Tensor

from vggkit.errors import BadConfiguration
from vggkit.hardware import derive_seed
from vggkit.models.vgg import VGG
from vggkit.task import Task
from vggkit.training.caller_settings import NO_SETTINGS, CallerSettings, set_norm_momentum
from vggkit.training.distillation import Teacher
from vggkit.training.distributed.gradients import GradientExchange
from vggkit.training.distributed.process_group import SINGLE, ProcessGroup
from vggkit.training.distributed.split_head import SplitHead, SplitWeights, measure_length
from vggkit.training.distributed.synchronized_norm import average_statistics
from vggkit.training.forward_pass import ForwardPass
from vggkit.training.objective import Objective
from vggkit.training.optimizers import build_optimizers, name_last_weight, open_layers, scale_rates, set_rate
from vggkit.training.parameter_groups import list_learnt
from vggkit.training.precision import choose_autocast, copy_in_bfloat16
from vggkit.training.recipe import Recipe

PLANES: Final = torch.channels_last
"""The memory layout of maps; the fast convolutions of processors and GPUs read them so."""


class TrainState:
    """A network, its optimizers, and all that the next step depends on.

    With precision bf16 a copy of the network computes, in bfloat16 but for its batch norms, which are the
    network's own. Its gradients update the network's float32 master weights, which are then rounded into the copy
    again. Small updates are not lost in this way, and nothing is cast while computing, as autocast does
    (Micikevicius et al. 2018, arXiv:1710.03740, section 3.1).

    Args:
        network: Learns in place, in float32.
        recipe: A resolved recipe.
        device: Where to learn; the network moves there.
        objective: The loss; None: the plain cross-entropy with the recipe's smoothing.
        feature_scale: Root mean square of what the last layer reads, where it is known and above 1. That layer
            learns as if it read numbers of about 1, as a fresh network's does: else its gradients, which grow
            with what it reads, would leave the others nothing when they are clipped, and its steps break it.
        caller_settings: Settings of the network that training preserves.
        teacher: A trained network that it learns from beside the labels.
        group: The processes that learn together, each from its part of every batch. They have the same weights
            after each step, and call each method together.
    """

    def __init__(
        self,
        network: VGG,
        recipe: Recipe,
        *,
        device: torch.device,
        objective: Objective | None = None,
        feature_scale: float = 1.0,
        caller_settings: CallerSettings = NO_SETTINGS,
        teacher: Teacher | None = None,
        group: ProcessGroup = SINGLE,
    ) -> None:
        self._teacher, self._group = teacher, group
        self.network: VGG = network.to(device, memory_format=PLANES)  # type: ignore[call-overload]
        self.recipe, self.device, self.caller_settings = recipe, device, caller_settings
        if recipe.batch_norm_momentum is not None:
            set_norm_momentum(self.network, recipe.batch_norm_momentum)
        self.compute_copy = copy_in_bfloat16(self.network) if recipe.precision == "bf16" else self.network
        self.average = copy.deepcopy(self.network).requires_grad_(False) if recipe.ema_decay else None
        self._objective = objective or Objective(label_smoothing=recipe.label_smoothing)
        self._autocast = choose_autocast(device) if recipe.precision == "amp" else None
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._autocast is torch.float16)
        self._split: SplitHead | None = None
        if recipe.split_head and group.size > 1:
            if self._scaler.is_enabled():
                raise BadConfiguration(
                    "split_head=true cannot be combined with precision=amp on a GPU without bfloat16; take "
                    "precision=fp32"
                )
            self._split = SplitHead(self.compute_copy, group)
        self._forward = ForwardPass(
            self.compute_copy,
            split=self._split,
            sync_norm=recipe.sync_norm and group.size > 1,
            keeps_maps=teacher is not None,
        )
        self._exchange: GradientExchange | None = None
        self._sent_before: dict[str, Tensor] = {}
        learning = [key for key in list_learnt(network.configuration, recipe) if key not in caller_settings.frozen]
        whole: dict[str, Tensor] = dict(self.network.named_parameters())
        working = dict(self.compute_copy.named_parameters())
        self._weights: SplitWeights | None = None
        self._parts: dict[str, Tensor] = {}
        if self._split is not None:
            self._weights = SplitWeights(self._split, self.network, self.average)
            self._parts = self._weights.parts
            whole |= self._parts
            working |= dict(self._split.named_parts())
        self._working = [working[key] for key in learning]
        self._whole = [whole[key].detach() for key in learning]
        # Muon steps matrices: a kernel a row, its numbers as they lie in memory.
        shape = _as_matrix if recipe.optimizer == "muon" else lambda value: value
        self._stepped = {key: shape(value) for key, value in zip(learning, self._whole, strict=True)}
        self._gradients = [torch.zeros_like(value) for value in self._whole]
        self._own_gradients = [
            gradient for key, gradient in zip(learning, self._gradients, strict=True) if key in self._parts
        ]
        for value, gradient in zip(self._stepped.values(), self._gradients, strict=True):
            value.grad = shape(gradient)
        self._fresh = True
        self._weight = self._unit = 1.0
        self.feature_scale = max(1.0, feature_scale)
        scales = scale_rates(self.network, recipe, feature_scale=self.feature_scale)
        last = name_last_weight(network)
        self._last = learning.index(last) if last in learning else None
        # Its rate is divided by the scale, and its decay must not change.
        self.optimizers = build_optimizers(self._stepped, scales, recipe, decays={last: self.feature_scale})

    @property
    def task(self) -> Task:
        """Whether its targets are one class an image, or 0 or 1 for each."""
        return self._objective.task

    @property
    def evaluated(self) -> VGG:
        """The network that is evaluated and saved: the moving average, where there is one."""
        return self.network if self.average is None else self.average

    def start_epoch(self, epoch: int) -> None:
        """Unfreeze the layers that are trained in this epoch, counted from 1."""
        open_layers(self.compute_copy, self.recipe, epoch, caller_settings=self.caller_settings)
        if self._group.size == 1:
            return
        if self._split is not None:
            for key, part in self._split.named_parts():
                part.requires_grad_(self.compute_copy.get_parameter(key).requires_grad)
        if self._exchange is None or not self._exchange.fits(self._forward):
            self._exchange = None
            gc.collect()  # the earlier one's hooks on parameters
            self._exchange = GradientExchange(
                self._forward,
                compression=self.recipe.gradient_compression,
                group=self._group,
                device=self.device,
            )
            self._exchange.restore(self._sent_before)
        self._sent_before = {}

    def weigh(self, targets: Tensor) -> float:
        """The weight of a batch in a mean over several: its number of images, or the sum of their class weights."""
        return self._objective.weigh(targets)

    def compute(self, images: Tensor, targets: Tensor, *, draw: int, is_last: bool = True) -> Tensor:
        """Loss of a batch, whose gradients join those of the batches since the last step.

        A step takes the gradient of the mean over all of its batches' images, as if they were one batch.

        Args:
            images: (N, C, H, W), float32; of several processes each has its part of the batch.
            targets: As for `Objective`.
            draw: A number that dropout draws by, of no other batch.
            is_last: Whether a step follows, so that processes exchange their gradients.

        Returns the mean loss of these images in nats, or with a teacher its loss, a scalar on the device.
        """
        weight, size = self.weigh(targets), self._group.size
        if self._fresh:  # gradients are added up in units of the first batch's, and divided in the step
            self._weight, self._unit = 0.0, weight if size == 1 else float(self.recipe.batch_size or 1)
        self._weight += weight
        kind = torch.bfloat16 if self.recipe.precision == "bf16" else torch.float32
        images = images.to(self.device, kind, memory_format=PLANES, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        forward = self._forward if self._exchange is None else self._exchange.forward
        with nullcontext() if is_last or self._exchange is None else self._exchange.wait():
            # Dropout uses torch's generator, whose state is restored.
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(derive_seed(self.recipe.seed, "dropout", draw, *self._group.seed_parts))
                with torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None):
                    maps, logits = forward(images)
            loss = self._objective.compute(logits.float(), targets)
            if self._teacher is not None:
                loss = self._teacher.join(loss, images, logits, maps)
            if is_last and size > 1 and not self._fresh:
                self._lay_out()
            # The exchange divides the sum by the number of processes.
            self._scaler.scale(loss * (weight / self._unit * size)).backward()
        self._collect()
        return loss.detach()

    @torch.no_grad()
    def _lay_out(self) -> None:
        """Give the gradients of earlier batches back to the compute copy, to be sent with the last one's."""
        for gradient, working in zip(self._gradients, self._working, strict=True):
            if working.requires_grad:
                working.grad = gradient.to(working.dtype, copy=True)
        self._fresh = True

    @torch.no_grad()
    def _collect(self) -> None:
        """Add the gradients of a batch from the compute copy to those of the master weights."""
        there = [
            (gradient, working.grad)
            for gradient, working in zip(self._gradients, self._working, strict=True)
            if working.grad is not None
        ]
        ours, given = [ours for ours, _ in there], [given for _, given in there]
        if self._fresh:
            torch._foreach_copy_(ours, given)
        else:
            torch._foreach_add_(ours, given)
        self._fresh = False
        for working in self._working:
            working.grad = None

    @torch.no_grad()
    def step(self, rate: float, *, number: int) -> bool:
        """Update the weights at a learning rate; returns whether the gradient was finite.

        One that is not moves nothing; with float16, whose loss is scaled, that is no sign of divergence.
        `number` counts the steps from 0.
        """
        learning = [working.requires_grad for working in self._working]
        present = [gradient for gradient, learns in zip(self._gradients, learning, strict=True) if learns]
        for optimizer in self.optimizers:
            self._scaler.unscale_(optimizer)
        if self._last is not None and self.feature_scale > 1:
            self._gradients[self._last].div_(self.feature_scale)
        for gradient in self._own_gradients:  # of these the sum over the processes is complete
            gradient.div_(self._group.size)
        (weight,) = self._group.sum(self._weight)
        share = self._unit / weight
        length = measure_length(present, self._own_gradients, self._group) * share
        if self.recipe.clip_norm and length > self.recipe.clip_norm:
            share *= self.recipe.clip_norm / length
        if share != 1:
            torch._foreach_mul_(present, share)
        if math.isfinite(length):
            set_rate(self.optimizers, rate)
            with self._frozen_left_out(learning):
                for optimizer in self.optimizers:
                    optimizer.step()
            if self.compute_copy is not self.network:
                torch._foreach_copy_(self._working, self._whole)
            if self._group.size > 1 and not self.recipe.sync_norm:
                average_statistics(self.network, self._group.size)
            if self.average is not None:
                self._move_average(number)
        self._scaler.update()
        self._fresh = True
        return math.isfinite(length) or self._scaler.is_enabled()

    @contextmanager
    def _frozen_left_out(self, learning: list[bool]) -> Iterator[None]:
        """Parameters that are frozen in this epoch get no gradient, so that optimizers do not decay them either."""
        frozen = [value for value, learns in zip(self._stepped.values(), learning, strict=True) if not learns]
        gradients = [value.grad for value in frozen]
        for value in frozen:
            value.grad = None
        try:
            yield
        finally:
            for value, gradient in zip(frozen, gradients, strict=True):
                value.grad = gradient

    def _move_average(self, number: int) -> None:
        """Nearer to the weights; in the first steps faster, lest the random start weigh for long."""
        assert self.average is not None
        assert self.recipe.ema_decay is not None
        decay = min(self.recipe.ema_decay, (1 + number) / (10 + number))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)
        for mine, theirs in zip(self.average.buffers(), self.network.buffers(), strict=True):
            mine.copy_(theirs)
        if self._weights is not None:
            self._weights.move_average(1 - decay)

    def join_parts(self) -> None:
        """Make `network` and `evaluated` whole where processes have a part of them each."""
        if self._weights is not None:
            self._weights.write_back()

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, by key; they change during training.

        Of several processes the first one's is complete; files of one and of several processes are alike.
        """
        self.join_parts()
        found = {f"network/{key}": value for key, value in self.network.state_dict().items()}
        if self.average is not None:
            found |= {f"average/{key}": value for key, value in self.average.state_dict().items()}
        for key, value in self._stepped.items():
            for optimizer in self.optimizers:
                for name, moment in optimizer.state.get(value, {}).items():
                    if isinstance(moment, Tensor):
                        is_part = key in self._parts and moment.shape == self._parts[key].shape
                        split = self._split if is_part else None
                        found[f"optimizer/{key}/{name}"] = moment if split is None else split.join(key, moment)
        found |= self._sent_before if self._exchange is None else self._exchange.state()
        found["feature_scale"] = torch.tensor(self.feature_scale, dtype=torch.float64)
        return found | {
            f"scaler/{name}": torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
            for name, value in self._scaler.state_dict().items()
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state`, which a TrainState of the same network and recipe gave."""
        for name, network in (("network", self.network), ("average", self.average)):
            if network is not None:
                network.load_state_dict({k: state[f"{name}/{k}"] for k in network.state_dict()})
        split = self._split
        if self._weights is not None:
            self._weights.restore()
        self._exchange, self._sent_before = None, {k: v for k, v in state.items() if k.startswith("powersgd/")}
        owners = {
            id(value): optimizer
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for value in group["params"]
        }
        for key, value in self._stepped.items():
            moment = owners[id(value)].state[value]
            moment.clear()
            start = f"optimizer/{key}/"
            for name, whole in ((k.removeprefix(start), v) for k, v in state.items() if k.startswith(start)):
                given = whole
                if split is not None and key in self._parts and whole.dim():
                    given = split.cut(key, whole)
                # As the weights lie in memory: fused steps go through both in one pass.
                like = value if given.shape == value.shape else given.to(self.device)
                moment[name] = torch.empty_like(like, dtype=given.dtype).copy_(given)
        scaler = {k.removeprefix("scaler/"): v.item() for k, v in state.items() if k.startswith("scaler/")}
        if scaler:
            self._scaler.load_state_dict(scaler)
        if self.compute_copy is not self.network:
            for working, whole in zip(self.compute_copy.parameters(), self.network.parameters(), strict=True):
                working.copy_(whole)
        self._fresh = True


def _as_matrix(value: Tensor) -> Tensor:
    """A view (O, C·H·W) of kernels (O, C, H, W) that lie in channels_last; anything else as it is."""
    return value.permute(0, 2, 3, 1).view(len(value), -1) if value.dim() == 4 else value
