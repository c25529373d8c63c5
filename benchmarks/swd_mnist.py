"""LeNet-5 with two branches on MNIST as in table 4 of Selective Weight Decay: 90 and 99 %, a_max 10 and 1e4.

    python benchmarks/swd_mnist.py --mnist DIR --out DIR [--results FILE]     # goes on where it was stopped
    python benchmarks/swd_mnist.py --out DIR --table                          # only the table of what is there

The settings of the paper and of its code: SGD with learning rate 0.1, no momentum, batches of 128, 200 epochs, no
weight decay but SWD's own with mu = 5e-4, a from 0.1 to a_max; digits resized to 32 x 32; weights and biases of all
layers compete. With these settings most runs lose their loss for good, so that there are runs with `--clip-grad 1`
too, all else equal. Accuracy is in %, of the last epoch: before the selected weights are removed and after.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from mnist_table import main

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli.checkpoint import Checkpoint
from prunecli.options.train import TrainOptions
from prunecli.progress import Stderr

PAPER = {  # by percentage and a_max: top-1 after the removal, and the change by it
    (90, 10): (98.26, -0.45), (90, 10000): (98.95, 0.0), (99, 10): (23.52, -75.4), (99, 10000): (92.47, 2.1),
}  # fmt: skip

Case = tuple[int, int, int, int]  # percentage, a_max, seed, norm that gradients are clipped to or 0
CASES: list[Case] = [
    *((percent, 10000, seed, 0) for seed in (0, 1, 2) for percent in (90, 99)), (90, 10, 0, 0), (99, 10, 0, 0),
    *((99, 10000, seed, 1) for seed in (0, 1, 2)), (90, 10, 0, 1), (99, 10, 0, 1),
]  # fmt: skip


def at(folder: Path, case: Case) -> Path:
    """Where the checkpoint of a case is."""
    percent, a_max, seed, clip = case
    return folder / f"{'clip' if clip else 'swd'}{percent}-a{a_max}-seed{seed}.safetensors"


def make(folder: Path, mnist: str, case: Case) -> None:
    """Train, as far as that is not done."""
    percent, a_max, seed, clip = case
    prunecli.train(
        TrainOptions(
            arch="lenet5-branches", data=f"mnist:{mnist}", data_arg=("border=0",), epochs=200, batch_size=128, lr=0.1,
            momentum=0.0, weight_decay=0.0, clip_grad=clip, schedule="constant", method="swd", sparsity=percent / 100,
            method_arg=("mu=5e-4", "a_min=0.1", f"a_max={a_max}", "biases=true"), seed=seed, threads=1, resume=True,
            output=str(at(folder, case)),
        ),
        Stderr(),
    )  # fmt: skip


def before(done: Checkpoint) -> float:
    """Top-1 in % of the network as trained, in the last epoch."""
    return 100 * done.sidecar.metrics.curve[-1].score["top1"]


def after(done: Checkpoint) -> float:
    """Top-1 in % without the selected weights."""
    assert done.sidecar.metrics.last
    return 100 * done.sidecar.metrics.last.values["top1"]


def shown(values: list[float], sign: str = "") -> str:
    """The mean over seeds and, of several, the range."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):{sign}.2f}"
    return f"{mean} ({min(values):{sign}.2f} to {max(values):{sign}.2f}, {len(values)} seeds)" if values[1:] else mean


def table(folder: Path) -> str:
    """The results so far, in Markdown."""
    lines = [
        "# LeNet-5 on MNIST: Selective Weight Decay's table 4",
        "",
        "    python benchmarks/swd_mnist.py --mnist DIR --out DIR",
        "",
        "Test accuracy in % after 200 epochs, before and after the weights that SWD drove down are removed, the change",
        "by the removal, and the paper's accuracy and change.",
        "",
        "| weights removed | a_max | gradients | before | after | change | paper: after | paper: change |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for percent, a_max, clip in dict.fromkeys((percent, a_max, clip) for percent, a_max, _, clip in sorted(CASES)):
        accuracy, change = PAPER[percent, a_max]
        paths = [at(folder, (percent, a_max, seed, clip)) for seed in (0, 1, 2)]
        done = [checkpoints.load(path) for path in paths if path.exists()]
        cells = [
            f"{percent} %", f"{a_max:g}", "clipped" if clip else "as in the paper",
            shown([before(c) for c in done]), shown([after(c) for c in done]),
            shown([after(c) - before(c) for c in done], "+"), f"{accuracy:.2f}", f"{change:+.2f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(__file__, __doc__, CASES, make, table)
