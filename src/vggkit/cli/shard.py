"""The verb shard."""

from vggkit.cli.printing import print_json
from vggkit.images.sources.shards.manifest import Form
from vggkit.images.sources.tables import Columns
from vggkit.reports.progress import ProgressLine, only_our_errors
from vggkit.reports.terminal import print_line


def shard(
    data: str,
    out: str,
    /,
    *,
    to: Form = "tar",
    images_per_shard: int = 2048,
    validation_share: float | None = None,
    seed: int = 0,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    overwrite: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Pack labelled images into shards, which a training streams from this machine or from anywhere.

    The files are copied as they are, in random order; each is decoded once, and what cannot be read is left out. A
    manifest, shards.json, has the counts, classes and hashes, by which train, evaluate, predict and check read the
    shards, whatever their number, in constant memory. An interrupted command continues when it is repeated.

    Exit code: 0, 1 if some of the images cannot be read, 2 if the command was refused.

    Args:
        data: A folder with a subfolder for each class, a table (.csv, .parquet), tar shards,
            hf://datasets/owner/name, or the name of a public dataset such as cifar10.
        out: A new folder, or the address of one such as s3://bucket/photos. Or a manifest, such as photos.json:
            then DATA are shards already, a pattern of .tar or .parquet files, which stay where they are and are
            read once.
        to: tar (as WebDataset writes them) or parquet (as Hugging Face's datasets have them).
        images_per_shard: Number of images in each file.
        validation_share: Hold out this fraction in (0, 1) of each class, in shards of their own. Without it an
            undivided dataset is divided when a training begins.
        seed: Seed of the order of the images, and of what is held out.
        columns: Names of a table's columns.
        overwrite: Replace shards of other images or options.
        json: Print a JSON object in place of the text.
        quiet: Show no progress.
    """
    from vggkit.workflows.shard import shard as pack

    with only_our_errors(), ProgressLine(quiet=quiet, rate="images/s") as line:
        found = pack(
            data,
            out,
            to=to,
            images_per_shard=images_per_shard,
            validation_share=validation_share,
            seed=seed,
            columns=columns,
            overwrite=overwrite,
            on_progress=line.show,
        )
    if json:
        print_json(found.to_dict())
    else:
        counts = ", ".join(f"{sum(counts.values()):,} {split}" for split, counts in found.counts.items())
        before = " (there already)" if found.found_done else ""
        classes = len(next(iter(found.counts.values())))
        print_line(f"{found.manifest}: {counts}, {classes:,} classes in {found.shards:,} shards{before}")
    for omission in found.skipped:
        print_line(f"skipped: {omission.describe()}", to_stderr=True)
    if found.excluded:
        for reason in found.examples:
            print_line(f"excluded: {reason}", to_stderr=True)
        print_line(f"vggkit: error: {found.excluded:,} images cannot be read, and are in no shard", to_stderr=True)
    return 1 if found.excluded else 0
