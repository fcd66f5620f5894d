"""The verb compress."""

from pathlib import Path
from typing import Literal

from vggkit.cli.printing import print_json
from vggkit.errors import BadInput
from vggkit.images.sources.tables import Columns
from vggkit.reports.terminal import open_terminal, print_line
from vggkit.weights.storage import Storage


def compress(
    model: str,
    data: str = "",
    /,
    *,
    out: Path | None = None,
    max_size: str | None = None,
    max_loss: float | None = None,
    min_speedup: float | None = None,
    head: Literal["pool"] | None = None,
    prune: float | None = None,
    ranks: tuple[int, ...] = (),
    energy: float | None = None,
    storage: Storage | None = None,
    epochs: int = 5,
    learning_rate: float | None = None,
    seed: int = 0,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    device: str = "auto",
    plot: Path | None = None,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Make a classifier smaller and faster, and measure what that costs.

    With goals (--max-size, --max-loss, --min-speedup) a combination is searched: one matrix in place of the fully
    connected layers, channels of convolutions removed, low rank, and weights in fewer bits. Without goals the named
    steps alone are done. The result is a classifier's file like any other.

    With DATA and neither goals nor steps, the smallest file within half a percentage point is searched; without
    DATA the weights are stored in int8.

    Args:
        model: A model's name such as vgg16 (the published ImageNet weights), a classifier's file, a run's folder,
            or hf://owner/name.
        data: Labelled images of its classes, as `vggkit train` takes them. Networks are fitted on the training
            split, compared on the validation split, and the chosen one is measured on the test split; data without
            splits is divided.
        out: The file of the compressed classifier. Without it: the name of MODEL with -compressed, in this folder.
        max_size: Largest size of the file, such as 12MB (millions of bytes) or 12MiB.
        max_loss: Largest loss of top-1 accuracy, or of micro F1 for several labels an image, such as 0.003, on the
            images that networks are compared on.
        min_speedup: Least throughput at batch 8 on this machine, over that of the classifier as it was, in float32.
        head: pool: one matrix on the means of the channels in place of the fully connected layers.
        prune: Share of the multiply-adds to remove, such as 0.5, as channels of convolutions.
        ranks: Rank of each fully connected layer but the last: one for all, or one for each.
        energy: Share of the energy of these layers to keep, such as 0.95, by which their ranks are chosen.
        storage: How the file holds the weights; they are restored in float32.
        epochs: Passes over the training images after channels or the head changed, with the classifier as it was as
            the teacher; 0: none.
        learning_rate: Of these. Default: half of that of the classifier's own training.
        seed: Seed of every random draw.
        columns: Names of a table's columns.
        device: auto, cpu, cuda or mps.
        plot: Also draw what was measured in this file (.png, .pdf or .svg).
        json: Print a JSON object in place of the table.
        quiet: Show no progress.
    """
    from vggkit.reports.compression import draw_compression, plot_compression
    from vggkit.reports.plots import demand_drawable
    from vggkit.weights.locate import locate_model
    from vggkit.workflows.compress import compress as make_smaller

    if plot is not None:
        demand_drawable(plot)
    target = out or _name_output(model)
    if target.suffix != ".safetensors":
        raise BadInput(f"{target}: a classifier's file must end in .safetensors")
    found = make_smaller(
        locate_model(model),
        data or None,
        columns=columns,
        out=target,
        max_size=max_size,
        max_loss=max_loss,
        min_speedup=min_speedup,
        head=head,
        prune=prune,
        ranks=ranks,
        energy=energy,
        storage=storage,
        epochs=epochs,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        quiet=quiet,
    )
    if json:
        print_json(found.record.to_dict())
    else:
        open_terminal().print(draw_compression(found.record))
    print_line(f"written: {target}", to_stderr=True)
    if plot is not None:
        plot_compression(found.record, plot, title=str(model))
        print_line(f"drawn: {plot}", to_stderr=True)


def _name_output(model: str) -> Path:
    """The name of the model with -compressed: of a run's folder that of the folder."""
    place = Path(model)
    stem = place.name.removesuffix(".safetensors") if place.name != "best.safetensors" else place.parent.name
    return Path(f"{stem or 'classifier'}-compressed.safetensors")
