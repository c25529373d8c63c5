"""GReg-1 behind batch norms, without and with `norms=true`, and one-shot L1: ResNet-20 on a part of MNIST.

    python benchmarks/greg_norms.py MNIST_DIR OUT [--seeds 3] [-o benchmarks/results/greg_norms.md]

The first 10,000 training images and all test images are taken, at 16 x 16. What is in OUT already is not made again,
and an unfinished run goes on.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from greg import TRAIN, curve, given, prunecli, top1

BASE = (
    "--arch resnet20 --arch-arg width=8 --arch-arg in_channels=1 --image-size 16 --epochs 8 --batch-size 64 --lr 0.05"
)
GROWTH = (
    "--lr 1e-3 --batch-size 64 --method-arg delta=0.03 --method-arg k_u=1 --method-arg tau=30 --method-arg k_s=1500"
)
TUNING = "--epochs 10 --lr 1e-2 --batch-size 64 --schedule multistep --milestones 5,8"
WAYS = {"false": "`norms=false`, as in the paper", "true": "`norms=true`", "l1": "cut by L1 at once"}


def main() -> None:
    """Make what is missing of every seed, and write the table."""
    options, data = given(__doc__, "greg_norms.md")
    rows: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
    for seed in range(options.seeds):
        for way, row in compared(data, options.out.resolve(), seed).items():
            rows[way].append(row)
        options.output.write_text(table(rows), encoding="utf-8")


def compared(data: Path, out: Path, seed: int) -> dict[str, tuple[float, ...]]:
    """Of each way: top-1 before and after the removal, ratio of kept to pruned weights, top-1 after fine-tuning."""
    own = ["--data", f"mnist:{data}", "--threads", "1"]
    base = prunecli(out / f"base{seed}", ["train", *BASE.split(), "--seed", str(seed), *own])
    rows = {}
    for norms in ("false", "true"):
        pruning = ["prune", base, "--method", "greg1", "--sparsity", "0.9", "--method-arg", f"norms={norms}"]
        grown = prunecli(out / f"norms_{norms}{seed}", [*pruning, *GROWTH.split(), *own])
        tuned = prunecli(out / f"norms_{norms}{seed}_tuned", ["finetune", grown, *TUNING.split(), *own])
        last = curve(grown)[-1]
        rows[norms] = (last["score"]["top1"], top1(grown), last["method"]["ratio"], top1(tuned))
    cutting = ["prune", base, "--method", "l1", "--sparsity", "0.9", "--only", "layer*.conv1", "--threads", "1"]
    cut = prunecli(out / f"l1{seed}", cutting, resume=False)
    tuned = prunecli(out / f"l1{seed}_tuned", ["finetune", cut, *TUNING.split(), *own])
    return rows | {"l1": (top1(base), top1(cut), float("nan"), top1(tuned))}


def table(rows: dict[str, list[tuple[float, ...]]]) -> str:
    """The result in Markdown."""
    lines = [
        "# GReg-1 behind batch norms",
        "",
        "    python benchmarks/greg_norms.py MNIST_DIR OUT",
        "",
        f"ResNet-20 of width 8 on the first {TRAIN:,} images of MNIST at 16 x 16; 90 % of the filters of the first",
        "convolution of each block go, those of smallest L1 norm. The penalty grows and acts with",
        f"`{GROWTH}`;",
        f"then `finetune {TUNING}`.",
        "Top-1 in %, mean over seeds and each.",
        "",
        "| | before the removal | after | kept / pruned weights | after fine-tuning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way, label in WAYS.items():
        before, after, ratio, tuned = (list(column) for column in zip(*rows[way], strict=True))
        shown = "–" if way == "l1" else " ".join(f"{value:.3g}" for value in ratio)
        lines.append(f"| {label} | {percent(before)} | {percent(after)} | {shown} | {percent(tuned)} |")
    return "\n".join(lines) + "\n"


def percent(values: list[float]) -> str:
    """`97.12 (97.00 97.24)`."""
    return f"{100 * statistics.mean(values):.2f} ({' '.join(f'{100 * value:.2f}' for value in values)})"


if __name__ == "__main__":
    main()
