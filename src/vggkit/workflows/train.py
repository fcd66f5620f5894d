"""Training from Python: `vggkit.train`, whose options are those of `vggkit train` by the same names."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from torch import Tensor

from vggkit.arguments import demand_seconds
from vggkit.errors import BadConfiguration
from vggkit.images.dataset import ImageDataset
from vggkit.images.labelled import LabelledImages
from vggkit.images.preprocessing import FitMode
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.images.sources.tables import Columns
from vggkit.models.configuration import Configuration, Head, Scheme
from vggkit.reports.loggers import LoggerName
from vggkit.reports.plots import PlotEnding
from vggkit.task import Task
from vggkit.training.checkpoint import Epoch
from vggkit.training.distributed.joining import join_processes
from vggkit.training.recipe import (
    Augmentation,
    Balance,
    GradientCompression,
    Mirror,
    Monitor,
    Optimizer,
    Precision,
    Recipe,
    Schedule,
    Trainable,
)
from vggkit.weights.model import Model
from vggkit.workflows.earlier_calls import accept_model_first
from vggkit.workflows.fit_and_record import TrainingRun
from vggkit.workflows.resume_run import resume_run
from vggkit.workflows.run_config import RunConfig
from vggkit.workflows.several_processes import find_interrupted
from vggkit.workflows.train_inputs import open_inputs
from vggkit.workflows.train_options import gather_options, refuse_beside_resume
from vggkit.workflows.training_run import start_run


@accept_model_first
def train(
    data: LabelledImages | None = None,
    *,
    out: str | Path | None = None,
    config: str | Path | None = None,
    preset: str | None = None,
    recipe: Recipe | None = None,
    resume: str | Path | None = None,
    model: str | Configuration | Model | None = None,
    blocks: str | None = None,
    weights: str | Path | Mapping[str, Tensor] | None = None,
    head: Head | None = None,
    until: str | None = None,
    image_size: int | None = None,
    fit_mode: FitMode | None = None,
    reduced_decoding: bool | None = None,
    in_channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
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
    bias_rate_factor: float | None = None,
    whitening: bool | None = None,
    batch_norm_momentum: float | None = None,
    freeze_norm: bool | None = None,
    ema_decay: float | None = None,
    patience: int | None = None,
    monitor: Monitor | None = None,
    label_smoothing: float | None = None,
    sync_norm: bool | None = None,
    gradient_compression: GradientCompression | None = None,
    split_head: bool | None = None,
    augmentation: Augmentation | None = None,
    shift_pixels: int | None = None,
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
    search: int | None = None,
    teacher: str | Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    task: Task | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    root: str | None = None,
    suffix: str | None = None,
    despite_findings: bool | None = None,
    loggers: Sequence[LoggerName] | None = None,
    plots: PlotEnding | None = None,
    save_seconds: float = 300.0,
    device: str = "auto",
    quiet: bool = False,
    on_epoch: Callable[[Epoch], object] | None = None,
) -> TrainingRun:
    """Train a Classifier on labelled images, save its best epoch, and evaluate it.

    The folder holds a subfolder for each class, or train/ and val/ (valid/, validation/, test/) that do; without
    splits, a share of each class is held out. Every option is that of `vggkit train`, by the same name; None leaves
    an option to `config`, `preset` or `recipe`, where one of these is given, else to its default. What the options
    leave open (`auto`, or None) is chosen by the network, the data and the machine.

    A Classifier that is given as `model` is trained in place, in float32. Settings of its network are preserved:
    parameters that need no gradients stay frozen, and modules in evaluation mode in a network in training mode
    stay in it.

    Ctrl-C and SIGTERM end a training between two steps: its state is saved, and `resume` continues it.

    In a script that torchrun starts, its processes train together: each calls this function, has its part of every
    batch, and gets the result; the first one writes the run's folder and calls `on_epoch`.

    Args:
        data: A folder, a table, tar shards, Parquet, hf://datasets/owner/name, a name such as digits or cifar10, an
            opened ImageDataset, or images from Python, such as a list of (image, label) or a torchvision Dataset
            (see `open_dataset`). Without it: that of config or resume, else digits.
        out: The run's folder, new or empty. Without it: the next free runs/<model>-<n>.
        config: A run's folder or its config.yaml: use all of its options; others given take precedence.
        preset: quick, small-images, modern, paper or torchvision: use the recipe of that name; others given take
            precedence.
        recipe: A Recipe in place of a preset; other options given take precedence.
        resume: A run's folder: continue it where it stopped, with the same result as without the interruption. Only
            data, epochs, device, save_seconds, plots and quiet may be given with it; with more epochs than it had,
            the learning rate schedule is stretched to them.
        model: A name that `vggkit models` lists, a Configuration, or a Classifier or Model, whose network is then
            trained in place. Default: the model that weights names, else vgg11.
        blocks: Widths such as 64,64/128,128/256,256 in place of the model's: output channels of each convolution,
            with commas between the convolutions of a block and slashes between blocks.
        weights: Weights to start from: imagenet (the published ones), or a file of a VGG's weights, such as .pth.
            Default: random. From Python also a state dict in memory, such as `network.state_dict()`, which is read
            as its file would be.
        head: fc (the paper's fully connected layers), dense (the same as convolutions) or pool (global average
            pooling and one linear layer). Default: the model's, and pool for images below 128 pixels.
        until: Cut the network after this layer, such as relu3_4 (which gets the pool head), fc6 or fc7.
        image_size: Height and width of the network's input in pixels. Default: 224, or for random weights and
            smaller images their own size.
        fit_mode: How images become square, in training and in prediction: crop (the centre), pad (with the mean
            colour) or stretch. Default: that of the weights, else crop.
        reduced_decoding: Decode large JPEGs at a smaller scale, which is faster and changes pixels slightly.
        in_channels: Number of input channels: 3, 1 for greyscale, or 4 for images that have so many.
        mean: Subtracted from each channel's values in [0, 1], a number for each. Default: the weights', or
            ImageNet's.
        std: Each channel is divided by it, a number for each. Default: the weights', or ImageNet's.
        dropout: Dropout probability in [0, 1). Default: the model's.
        initialization: Scheme by which random weights are initialised.
        input_convention: Input normalisation that the weights expect, if their file does not state it: imagenet,
            caffe, caffe-rgb or caffe-unit.
        allow_partial: Load the weights that fit and leave the others random; every key is reported.
        trainable: Which layers are trained. head: the last layer alone, on features that are computed once. top:
            the fully connected layers and the last block of convolutions. all: all layers. gradual: the fully
            connected layers first, then one more block after another. auto: head for few images and loaded weights,
            else all.
        epochs: Number of passes over the training images; trainable=head needs none.
        batch_size: Images in a batch, of all processes together. Default: as many as fit in memory and the machine
            computes fast, at most 32 at 224 pixels for each process.
        optimizer: sgd (with Nesterov momentum), adamw, or muon (Muon for convolutions and AdamW for the rest).
        learning_rate: Peak learning rate. Default: chosen by the optimizer, the batch size, batch norm and the
            origin of the weights.
        layer_decay: Factor in (0, 1] by which the learning rate decreases from each layer to the one below it.
        momentum: Momentum of sgd and muon, in [0, 1).
        weight_decay: Weight decay of kernels and matrices; biases and norms have none. Default: 5e-4 (added to the
            gradient) for sgd, 0.05 (decoupled) for the others.
        schedule: Learning rate after the warm-up: cosine (decays to zero), linear (decays to zero in a straight
            line), step (divided by 10 every step_epochs), one-cycle (rises for 30 % of the steps, then decays to
            zero), or constant.
        step_epochs: For schedule=step: number of epochs between divisions by 10. Default: a third of all epochs.
        warmup_epochs: Number of epochs in which the learning rate rises from near zero, at most half of all.
            Without a warm-up a VGG without batch norm may diverge.
        clip_norm: Maximum norm of the gradient of all weights together, to which a longer one is scaled; 0: no
            limit.
        accumulate: Number of batches whose gradients are accumulated for one optimizer step.
        precision: fp32. bf16: compute in bfloat16, with master weights in float32. amp: torch's autocast. auto:
            bf16 where the processor or GPU supports it, else fp32.
        bias_rate_factor: Factor of the learning rate of biases, those of batch norm too. Short trainings learn them
            faster than kernels (Jordan 2024 has 64 with sgd).
        whitening: Set the first convolution to the principal directions of patches of the training images, each
            scaled to unit variance and with both signs, and do not train it (Jordan 2024, section 3.2). For random
            weights.
        batch_norm_momentum: Weight in (0, 1] of the newest batch in the running statistics of batch norm. Default:
            0.1. Short trainings of large batches take more, such as 0.4.
        freeze_norm: Keep batch norm as it is: its weights, biases and running statistics.
        ema_decay: Evaluate and save an exponential moving average of the weights, with this decay in (0, 1).
        patience: Stop early, after this number of epochs without a lower validation loss.
        monitor: Metric of the validation images by which the best epoch is chosen and saved: top1 (then the loss),
            loss, or macro-f1 (then the loss), in which rare classes count as much as frequent ones. For several
            labels an image it is map, the mean average precision, in place of top1.
        label_smoothing: Probability in [0, 1) of the target that is distributed evenly over all classes.
        sync_norm: On several processes (torchrun): normalise by the statistics of all images of a batch, and not by
            those of each process alone.
        gradient_compression: On several processes: how gradients are sent. none: exactly. bf16: rounded to
            bfloat16, half the bytes. powersgd: each matrix as two thin ones, with what is lost added to the next
            step (Vogels et al. 2019).
        split_head: On several processes: split the fully connected layers over them, and exchange activations in
            place of their gradients, which stay exact (Krizhevsky 2014).
        augmentation: photo: random resized crops. shift: random translations by a few pixels. auto: photo for
            images of 64 pixels or more, else shift.
        shift_pixels: Farthest translation in pixels of augmentation=shift, each way. Default: an eighth of the
            input's side.
        mirror: Horizontal flips. random: with probability 0.5. alternating: in every second epoch (Jordan 2024).
            auto: random with augmentation=photo, else none, as small images may be letters or digits.
        rand_augment: Magnitude, 0 to 30, of RandAugment with two operations; 9 is usual.
        random_erasing: Probability in [0, 1] that a random rectangle of an image is erased.
        mixup: Alpha of mixup, which blends images of a batch; 0.2 is usual, 0 is none.
        cutmix: Alpha of CutMix, which pastes rectangles between images of a batch; 1 is usual, 0 is none. With
            mixup too, each batch gets one of the two at random.
        balance: For uneven classes. weights: weigh the loss by inverse class frequency; for several labels an
            image, images with a label as much as those without it. sampling: draw rare classes more often, where an
            image has one label.
        views: For trainable=head: number of views of each image, the first as in prediction, the others augmented.
        validation_share: Fraction in (0, 1) of each class that is held out where the data has no validation split.
        fold: Cross-validation, such as 2/5: validate on the second of five folds and train on the others. The
            data's own train and val splits are joined.
        seed: Seed of every random draw.
        find_learning_rate: Search for a learning rate first, in a short run at ever higher rates.
        search: Search for a recipe first: the number of recipes to try, such as 12, by successive halving on the
            validation images; 0 or None: none. What is not given of learning_rate, weight_decay, trainable and the
            augmentation is chosen, and the best recipe is then trained in full. A search that was killed continues
            with resume.
        teacher: A trained classifier of these classes, a file or a run, whose predictions are learnt too.
        path_column: The table's column with the images' files, or with the images themselves.
        label_column: The table's column with the classes.
        label_separator: Separator of several labels in a cell of that column, such as ; or |. An image then has any
            number of labels, and an empty cell none: multi-label.
        task: single-label: every image has exactly one class. multi-label: any number of them. Default: multi-label
            for labels with a separator, for lists of labels, and for columns of 0 and 1 where some row has several
            or none.
        split_column: The table's column with the split: train, val or test.
        group_column: The table's column whose equal values stay in one split: a patient, a place, a burst; None:
            `group`.
        root: Folder that the table's paths are relative to. Default: the table's own.
        suffix: Ending that the table's paths lack, such as .jpg. Default: files are looked for with any.
        despite_findings: Train even where the figures would be misleading, such as with a class missing from
            validation.
        loggers: Loggers of the metrics of each epoch besides metrics.csv: tensorboard, wandb, mlflow.
        plots: Also write the figures of the report to pdf, svg or png files, in the folder plots.
        save_seconds: Seconds between two saves of the state within an epoch, for resume.
        device: auto, cpu, cuda or mps.
        quiet: Show no progress on standard error, but warnings. Messages are sent to the logger `vggkit` of
            Python's logging in any case.
        on_epoch: Called with each Epoch when it is over and its state is saved; a true value ends the training
            after it: the best epoch is evaluated and the report is written, and `resume` can continue the run.
            Epoch 0 is the linear probe with which fine-tuning may begin.

    Raises:
        BadConfiguration: For options that are invalid or contradict each other; the message names the option.
        UnknownName: For a model or preset that does not exist; the message suggests the nearest name.
        BadData: Where the data cannot be read, or a class is missing from a split.
        BadCheckpoint: For a file of weights that does not fit, or a run that cannot be resumed.
        BadOutput: For a run's folder that is not empty or cannot be written.
        BadInput: When the loss diverges, and lower learning rates do not help.

    >>> run = train("photos/", model="vgg11_bn", epochs=3)  # doctest: +SKIP
    >>> run.classifier.predict("photo.jpg")  # doctest: +SKIP
    >>> run = train("photos/", on_epoch=lambda epoch: epoch.val_top1 > 0.95)  # doctest: +SKIP
    """
    options = {name: value for name, value in locals().items() if value is not None}
    if data is not None and not isinstance(data, str | Path):
        columns = Columns(task=task) if task is not None else Columns()
        data = options["data"] = open_dataset(data, columns=columns)
    if recipe is not None and not isinstance(recipe, Recipe):
        raise BadConfiguration(f"recipe must be a vggkit.Recipe, such as Recipe(epochs=3); got {recipe!r:.100}")
    if isinstance(loggers, str):
        raise BadConfiguration(f"loggers must be a list of names; write loggers=[{loggers!r}]")
    if plots is not None and plots not in get_args(PlotEnding):
        raise BadConfiguration(f"plots must be one of {', '.join(get_args(PlotEnding))}; got {plots!r}")
    if on_epoch is not None and not callable(on_epoch):
        raise BadConfiguration(f"on_epoch must be a function of an Epoch, such as print; got {on_epoch!r:.100}")
    save_seconds = demand_seconds("save_seconds", save_seconds)
    if resume is not None:
        refuse_beside_resume(options)
    chosen = gather_options(options) if resume is None else RunConfig()
    with join_processes(device) as group:
        again = find_interrupted(out, group) if resume is None else Path(resume)
        if again is not None:
            return resume_run(
                again,
                data,
                epochs=epochs if resume is not None else None,
                device=group.device,
                quiet=quiet,
                save_seconds=save_seconds,
                plots=plots,
                on_epoch=on_epoch,
                group=group,
            )
        built = model if isinstance(model, Model | Configuration) else None
        dataset = data
        if not isinstance(dataset, ImageDataset):
            dataset = open_inputs(
                chosen, data=str(data or ""), out=out, quiet=quiet, check_network=built is None, group=group
            )
        return start_run(
            chosen,
            dataset,
            model=built,
            state=weights if isinstance(weights, Mapping) else None,
            out=out,
            device=group.device,
            quiet=quiet,
            save_seconds=save_seconds,
            plots=plots,
            on_epoch=on_epoch,
            may_be_unstarted=group.restarts > 0,
            group=group,
        )
