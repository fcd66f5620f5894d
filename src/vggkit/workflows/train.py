"""Training from Python: `vggkit.train`, whose options are those of `vggkit train` by the same names."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final, get_args

from vggkit.arguments import demand_seconds
from vggkit.errors import BadConfiguration, BadInput
from vggkit.images.dataset import ImageDataset
from vggkit.images.preprocessing import FitMode
from vggkit.images.sources.tables import Columns
from vggkit.models.configuration import Configuration, Head, Scheme
from vggkit.reports.loggers import LoggerName
from vggkit.reports.plots import PlotEnding
from vggkit.training.presets import find_preset
from vggkit.training.recipe import (
    Augmentation,
    Balance,
    Mirror,
    Optimizer,
    Precision,
    Recipe,
    Schedule,
    Trainable,
)
from vggkit.weights.model import Model
from vggkit.workflows.fit_and_record import TrainingRun
from vggkit.workflows.run_config import NetworkChoice, RunConfig, locate
from vggkit.workflows.train_inputs import open_inputs
from vggkit.workflows.training_run import resume_run, start_run

BESIDE_RESUME: Final = frozenset({"data", "resume", "device", "save_seconds", "plots", "quiet"})
"""Options that may be given with `resume`; a run has all others in its folder."""


def train(
    data: str | Path | ImageDataset | None = None,
    *,
    out: str | Path | None = None,
    config: str | Path | None = None,
    preset: str | None = None,
    recipe: Recipe | None = None,
    resume: str | Path | None = None,
    model: str | Configuration | Model | None = None,
    blocks: str | None = None,
    weights: str | Path | None = None,
    head: Head | None = None,
    until: str | None = None,
    image_size: int | None = None,
    fit_mode: FitMode | None = None,
    reduced_decoding: bool | None = None,
    in_channels: int | None = None,
    dropout: float | None = None,
    initialization: Scheme | None = None,
    input_convention: str | None = None,
    allow_partial: bool | None = None,
    trainable: Trainable | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: Optimizer | None = None,
    learning_rate: float | None = None,
    layer_decay: float | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    schedule: Schedule | None = None,
    step_epochs: int | None = None,
    warmup_epochs: float | None = None,
    clip_norm: float | None = None,
    accumulate: int | None = None,
    precision: Precision | None = None,
    freeze_norm: bool | None = None,
    ema_decay: float | None = None,
    patience: int | None = None,
    label_smoothing: float | None = None,
    augmentation: Augmentation | None = None,
    mirror: Mirror | None = None,
    rand_augment: int | None = None,
    random_erasing: float | None = None,
    mixup: float | None = None,
    cutmix: float | None = None,
    balance: Balance | None = None,
    views: int | None = None,
    validation_share: float | None = None,
    fold: str | None = None,
    seed: int | None = None,
    find_learning_rate: bool | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    despite_findings: bool | None = None,
    loggers: Sequence[LoggerName] | None = None,
    plots: PlotEnding | None = None,
    save_seconds: float = 300.0,
    device: str = "auto",
    quiet: bool = False,
) -> TrainingRun:
    """Train a Classifier on labelled images, keep its best epoch, and evaluate it.

    The folder holds a subfolder for each class, or train/ and val/ (valid/, validation/, test/) that do; without
    splits, a share of each class is held out. Every option is that of `vggkit train`, by the same name; None leaves
    an option to `config`, `preset` or `recipe`, where one of these is given, else to its default. What the options
    leave open (`auto`, or None) is chosen by the network, the data and the machine.

    A Classifier that is given as `model` is trained in place, in float32. What was set on its network by hand is
    kept: parameters that need no gradients stay frozen, and modules in evaluation mode in a network in training
    mode stay in it.

    Ctrl-C and SIGTERM end a training between two steps: its state is kept, and `resume` continues it.

    Args:
        data: A folder, a table, tar shards, Parquet, hf://datasets/owner/name, a name such as digits or cifar10, or
            an opened ImageDataset. Without it: that of config or resume, else digits.
        out: The run's folder, new or empty. Without it: the next free runs/<model>-<n>.
        config: A run's folder or its config.yaml: begin with all of its options; options given beside it win.
        preset: quick, small-images, modern, paper or torchvision: begin with a recipe of that name; options given
            beside it win.
        recipe: A Recipe to begin with, in place of a preset; options given beside it win.
        resume: A run's folder: continue it where it stopped, to the very weights it would have had. Only data,
            device, save_seconds and quiet go with it.
        model: A name that `vggkit models` lists, a Configuration, or a Classifier or Model, whose network is then
            trained in place. Default: vgg11.
        blocks: Output channels of each convolution in place of the model's: commas between the convolutions of a
            block, slashes between blocks, such as 64,64/128,128/256,256.
        weights: Start from imagenet, the published weights, or from a file of a VGG's weights, such as .pth.
        head: fc (the paper's), dense or pool. Without it: the model's, and pool below 128 pixels.
        until: Cut after this layer: relu3_4 and a pool head on it, or fc6 and fc7, which keep the head up to there.
        image_size: Pixels at which images are fed. Without it: 224, or smaller images' own size.
        fit_mode: crop (the middle), pad (the whole image on the mean colour) or stretch; of predictions too.
        reduced_decoding: Decode large JPEGs at a smaller scale: faster, and slightly other pixels.
        in_channels: 3, or 1 for grey.
        dropout: Chance in [0, 1).
        initialization: How random weights are drawn.
        input_convention: What the weights are fed, where unknown: imagenet, caffe, caffe-rgb or caffe-unit.
        allow_partial: Take what fits of the weights; the rest stays random, and every key is reported.
        trainable: What learns. head: the last layer alone, on features computed once. top: the fully connected
            layers and the last block. all. gradual: the head first, then block after block from the top. auto: head
            for few images from given weights, else all.
        epochs: How often each training image is seen; head alone needs no epochs.
        batch_size: Images a step; by default what the memory holds and the machine does fast, 32 at most at 224
            pixels.
        optimizer: sgd (Nesterov), adamw, or muon: convolutions by Muon, the rest by AdamW.
        learning_rate: Highest learning rate; by default it follows batch norm, the optimizer, the batch and given
            weights.
        layer_decay: Each layer below the head learns at this share in (0, 1] of the rate of the one above it.
        momentum: Of sgd and muon, in [0, 1).
        weight_decay: Penalty on kernels and matrices, never on biases and norms; by default 5e-4 (added to the
            gradient) for sgd, 0.05 (decoupled) for the others.
        schedule: After the warm-up: cosine down to zero, step (see step_epochs), one-cycle (up for 30 % of the
            time, then down), or constant.
        step_epochs: For schedule=step: epochs between divisions by 10; by default a third of all.
        warmup_epochs: Epochs in which the learning rate rises from near zero, half of all at most; without it a
            plain VGG may diverge.
        clip_norm: Longest gradient of a step, all weights together; 0: as it comes.
        accumulate: Batches whose gradients are added up for one step.
        precision: fp32. bf16: the network computes in bfloat16 and learns in float32. amp: autocast. auto: bf16
            where the processor or GPU has it.
        freeze_norm: Batch norm stays as given: its scales and its running statistics too.
        ema_decay: Keep the exponential moving average of the weights, with this share in (0, 1) of the old ones a
            step.
        patience: Stop after so many epochs without a better validation loss.
        label_smoothing: Share in [0, 1) of the target spread over all classes.
        augmentation: photo: random crops. shift: moved a little. auto: photo from 64 pixels on, shift below.
        mirror: random: half the views. alternating: each image one way and the other in turn. auto: random for
            photos, and none for what is shifted, which may be letters.
        rand_augment: Magnitude, 0 to 30, of RandAugment's two random operations a view; 9 is usual.
        random_erasing: Chance in [0, 1] that a random rectangle of a view is erased.
        mixup: Alpha of mixup: images of a batch blended with each other; 0.2 is usual, 0 is none.
        cutmix: Alpha of CutMix: rectangles pasted from each other; 1 is usual, 0 is none. With mixup: either one.
        balance: weights: rare classes count more. sampling: they are seen more often.
        views: For trainable=head: ways each image is seen; the first as when predicting, the others augmented.
        validation_share: Share in (0, 1) of each class held out, where the data has no validation split.
        fold: Such as 2/5: train on all but the second of five folds and validate on it; its own splits are joined.
        seed: Every random draw depends on it, the epoch, the step and the image, and on nothing else.
        find_learning_rate: Search for a learning rate first, in a short run at ever higher rates.
        path_column: The table's column with the images' files, or with the images themselves.
        label_column: The table's column with the classes.
        split_column: The table's column with the split: train, val or test.
        group_column: The table's column whose equal values stay in one split: a patient, a place, a burst; None:
            `group`.
        despite_findings: Train even where the figures would be misleading, such as with a class missing from
            validation.
        loggers: What receives the figures of each epoch beside metrics.csv: tensorboard, wandb, mlflow.
        plots: Also write the figures of the report to pdf, svg or png files, in the folder plots.
        save_seconds: How often the state within an epoch is kept for resume, in seconds.
        device: auto, cpu, cuda or mps.
        quiet: No progress on standard error.

    Raises:
        BadConfiguration: For options that cannot be, or contradict each other; the message names the option.
        UnknownName: For a model or preset that does not exist; the message suggests the nearest name.
        BadData: Where the data cannot be read, or a class is missing from a split.
        BadCheckpoint: For a file of weights that does not fit, or a run that cannot be resumed.
        BadOutput: For a run's folder that is not empty or cannot be written.
        BadInput: When the loss diverges, and lower learning rates do not help.

    >>> run = train("photos/", model="vgg11_bn", epochs=3)  # doctest: +SKIP
    >>> run.classifier.predict("photo.jpg")  # doctest: +SKIP
    """
    options = {name: value for name, value in locals().items() if value is not None}
    if isinstance(data, Model):
        raise BadInput("train takes the data first, and a Classifier as model: train(data, model=classifier)")
    if recipe is not None and not isinstance(recipe, Recipe):
        raise BadConfiguration(f"recipe must be a vggkit.Recipe, such as Recipe(epochs=3); got {recipe!r:.100}")
    if isinstance(loggers, str):
        raise BadConfiguration(f"loggers must be a list of names; write loggers=[{loggers!r}]")
    if plots is not None and plots not in get_args(PlotEnding):
        raise BadConfiguration(f"plots must be one of {', '.join(get_args(PlotEnding))}; got {plots!r}")
    save_seconds = demand_seconds("save_seconds", save_seconds)
    if resume is not None:
        _refuse_others(options)
        return resume_run(resume, data, device=device, quiet=quiet, save_seconds=save_seconds, plots=plots)
    asked = _gather(options)
    built = model if isinstance(model, Model | Configuration) else None
    dataset = data
    if not isinstance(dataset, ImageDataset):
        dataset = open_inputs(asked, out=out, quiet=quiet, check_network=built is None)
    return start_run(
        asked,
        dataset,
        model=built,
        out=out,
        device=device,
        quiet=quiet,
        save_seconds=save_seconds,
        plots=plots,
    )


def _gather(options: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from options by name, which win over `config`, `preset` and `recipe`."""
    bases = [name for name in ("config", "preset", "recipe") if name in options]
    if len(bases) > 1:
        raise BadConfiguration(
            f"{' and '.join(bases)} both say how to train; give one of them, and change it by options"
        )
    base = RunConfig.read(options["config"]) if "config" in options else RunConfig()
    recipe: Recipe = options.get("recipe") or base.recipe
    if "preset" in options:
        recipe = find_preset(options["preset"]).recipe
    if "find_learning_rate" in options and "learning_rate" not in options and "config" in options:
        recipe = replace(recipe, learning_rate=None)  # of a rate that is given and one that is searched, the newer
    given = {
        kind: {field.name: options[field.name] for field in fields(kind) if field.name in options}
        for kind in (NetworkChoice, Recipe, Columns)
    }
    network, model, data = given[NetworkChoice], options.get("model"), options.get("data")
    if isinstance(model, Model):
        if others := sorted(network.keys() - {"model"}):
            raise BadConfiguration(
                f"{others[0]} is an option of a new network, and model={model!r} is trained as it is; leave it out"
            )
        base = replace(base, network=NetworkChoice.of(model))
        network = {}
    elif isinstance(model, Configuration):
        network["model"] = model.model
    elif model is not None and not isinstance(model, str):
        raise BadConfiguration(
            f"model must be a name of vggkit.list_models(), a Configuration or a Classifier; got {model!r:.100}"
        )
    if "weights" in network:
        network["weights"] = locate(str(network["weights"]))
    if data is not None:
        base = replace(base, data=locate(data.name if isinstance(data, ImageDataset) else str(data)))
    searched = options.get("find_learning_rate", base.find_learning_rate and "learning_rate" not in options)
    return replace(
        base,
        columns=replace(base.columns, **given[Columns]),
        despite_findings=options.get("despite_findings", base.despite_findings),
        loggers=tuple(options.get("loggers", base.loggers)),
        find_learning_rate=searched,
        from_python=isinstance(model, Model | Configuration) or isinstance(data, ImageDataset),
        network=replace(base.network, **network),
        recipe=replace(recipe, **given[Recipe]),
        found={},
    )


def _refuse_others(options: Mapping[str, Any]) -> None:
    usual = {"find_learning_rate": False}
    others = [name for name in options if name not in BESIDE_RESUME and options[name] != usual.get(name)]
    if others:
        raise BadConfiguration(
            f"{others[0]} does not go with resume: a run continues as it began. For a new run like it: "
            "train(config=RUN), with the options that are to differ"
        )
