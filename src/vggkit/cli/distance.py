"""The verb distance."""

from pathlib import Path
from typing import Literal

from vggkit.cli.failures import Failures
from vggkit.cli.printing import print_json
from vggkit.files import demand_apart, demand_writable
from vggkit.reports.progress import ProgressLine
from vggkit.reports.terminal import print_line


def distance(
    first: str,
    second: str,
    /,
    *,
    metric: Literal["lpips", "dists", "gram", "content"] = "lpips",
    trunk: str = "vgg16",
    calibration: Path | None = None,
    out: Path | None = None,
    batch_size: int = 8,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Compare images perceptually: how different two images look, or the images of two folders pair by pair.

    Exit code: 0, 1 where some of the pairs could not be compared, 2 where none could or the command was refused.

    Args:
        first: An image, or a folder: every image below it is compared with the one of the same name in the other
            folder, whatever the endings.
        second: The other image, or the other folder.
        metric: lpips and dists approximate how different two images look to people, and need --calibration. gram
            compares textures and colours wherever they are in the image, content what is where.
        trunk: The network: a model's name (the published ImageNet weights), a file of weights, also of a part of a
            network, a classifier's file or a run's folder. A VGG16 for lpips and dists; for the others any that has
            their layers: relu3_3 for content, relu1_2, relu2_2, relu3_3 and relu4_3 for gram.
        calibration: For lpips and dists their trained weights, as the authors publish them: weights/v0.1/vgg.pth of
            the package lpips, or weights.pt of DISTS.
        out: Write the distances to this table (.csv, .parquet, .jsonl or .json), with the columns first, second,
            distance and problem.
        batch_size: Number of pairs of one size that pass through the network together.
        device: auto, cpu, cuda or mps.
        precision: Precision of the computation: fp32, or bf16: on a CPU faster; distances differ by about 1e-6.
        json: Print a JSON object in place of the text: metric, mean, pairs, and only_first and only_second, the
            images without a partner.
        quiet: Show no progress.
    """
    from vggkit.features.loss_config import METRICS, demand_calibration
    from vggkit.table_files import demand_table

    demand_calibration(calibration, METRICS[metric])  # refused before torch is imported
    if out is not None:
        demand_apart(out, [first, second])
        demand_table(out)
        demand_writable(out)
    from vggkit.workflows.distance import distance as compare

    reasons = f"Column problem of {out} says why." if out is not None else "With --json each has its reason."
    with ProgressLine(quiet=quiet, rate="pairs/s") as line:
        line.show("opening the network", 0, None)
        found = compare(
            first,
            second,
            metric=metric,
            trunk=trunk,
            calibration=calibration,
            batch_size=batch_size,
            device=device,
            precision=precision,
            on_progress=lambda done, total: line.show("comparing", done, total),
        )
        for names, only in ((found.only_first, first), (found.only_second, second)):
            if names:
                more = ", …" if len(names) > 3 else ""
                line.log(f"without a partner, in {only} alone: {len(names):,} ({', '.join(names[:3])}{more})")
        with Failures(line, all_are_in=reasons, of="pairs") as failures:
            for pair in found.pairs:
                failures.count(pair.problem)
    if out is not None:
        found.write(out)
    if json:
        print_json(found.to_dict())
        return failures.exit_code
    compared = [pair for pair in found.pairs if pair.distance is not None]
    if out is None:
        for pair in compared:
            both = f"{pair.first} {pair.second}: " if len(found.pairs) > 1 else ""
            print_line(f"{both}{pair.distance:.4g}")
    if found.mean is not None and (out is not None or len(compared) > 1):
        where = f"{out}: " if out is not None else ""
        print_line(f"{where}mean {metric} {found.mean:.4g}, n = {len(compared)}")
    return failures.exit_code
