"""GReg-1 against one-shot L1 pruning at 90 %, after equal fine-tuning: LeNet-5 on a part of MNIST.

    python benchmarks/greg.py MNIST_DIR OUT [--seeds 3] [-o benchmarks/results/greg.md]

The first 10,000 training images and all test images are taken. What is in OUT already is not made again, and an
unfinished run goes on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
from pathlib import Path

TRAIN = 10_000  # images
SPARSITY = 0.9
BASE = "--arch lenet5 --epochs 15 --batch-size 64 --lr 0.02 --weight-decay 5e-4"
# the paper's rate and ratio to stop at; lambda grows a hundred times as fast and further, since a run has some dozen
# epochs in place of hundreds and the ratio of norms is about lambda over the gradients that push back
GROWTH = (
    "--lr 1e-3 --batch-size 64 --method-arg delta=0.05 --method-arg k_u=1 --method-arg tau=300 --method-arg k_s=2000"
)
PUSHING = "--lr 1e-3 --batch-size 64 --schedule constant"
TUNING = "--epochs 20 --lr 1e-2 --batch-size 64 --schedule multistep --milestones 10,15"


def main() -> None:
    """Make what is missing of every seed, and write the table."""
    options, data = given(__doc__, "greg.md")
    rows = []
    for seed in range(options.seeds):
        rows.append(compared(data, options.out.resolve(), seed))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(table(rows), encoding="utf-8")


def given(description: str | None, results: str) -> tuple[argparse.Namespace, Path]:
    """The options, and the folder with the data."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / results)
    options = parser.parse_args()
    return options, part_of(options.mnist.resolve(), options.out.resolve() / "data")


def part_of(source: Path, target: Path) -> Path:
    """A folder of IDX files that hold the first training images and labels, and all for the test."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*-ubyte*")):
        whole = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        header, item = (16, 28 * 28) if "images" in path.name else (8, 1)
        if path.name.startswith("train"):
            whole = whole[:4] + TRAIN.to_bytes(4, "big") + whole[8 : header + TRAIN * item]
        (target / path.name.removesuffix(".gz")).write_bytes(whole)
    return target


def compared(data: Path, out: Path, seed: int) -> dict[str, float]:
    """Accuracies of one seed: of the base, before and after the removal, and of both ways in the end."""
    own = ["--data", f"mnist:{data}", "--threads", "1"]
    base = prunecli(out / f"base{seed}", ["train", *BASE.split(), "--seed", str(seed), *own])
    grown = prunecli(
        out / f"greg{seed}", ["prune", base, "--method", "greg1", "--sparsity", str(SPARSITY), *GROWTH.split(), *own]
    )
    greg = prunecli(out / f"greg{seed}_tuned", ["finetune", grown, *TUNING.split(), *own])
    cut = prunecli(
        out / f"l1{seed}",
        ["prune", base, "--method", "l1", "--sparsity", str(SPARSITY), "--only", "conv[23]", "--threads", "1"],
        resume=False,
    )
    epochs = str(len(curve(grown)))
    pushed = prunecli(out / f"l1{seed}_pushed", ["finetune", cut, "--epochs", epochs, *PUSHING.split(), *own])
    longer = prunecli(out / f"l1{seed}_pushed_tuned", ["finetune", pushed, *TUNING.split(), *own])
    shot = prunecli(out / f"l1{seed}_tuned", ["finetune", cut, *TUNING.split(), *own])
    last = curve(grown)[-1]
    return {
        "base": top1(base),
        "before": last["score"]["top1"],
        "removed": top1(grown),
        "ratio": last["method"]["ratio"],
        "greg1": top1(greg),
        "cut": top1(cut),
        "l1": top1(shot),
        "longer": top1(longer),
        "widths": widths(greg) == widths(shot),
    }


def prunecli(output: Path, command: list[str], *, resume: bool = True) -> str:
    """Run a command unless its output is there; returns the checkpoint's path."""
    path = output.with_name(output.name + ".safetensors")
    if not path.exists():
        going_on = ["--resume"] * resume
        subprocess.run([sys.executable, "-m", "prunecli", *command, *going_on, "-o", str(path)], check=True)
    return str(path)


def sidecar(checkpoint: str) -> dict:
    return json.loads(Path(checkpoint).with_suffix(".json").read_text(encoding="utf-8"))


def curve(checkpoint: str) -> list[dict]:
    return sidecar(checkpoint)["metrics"]["curve"]


def top1(checkpoint: str) -> float:
    return sidecar(checkpoint)["metrics"]["last"]["values"]["top1"]


def widths(checkpoint: str) -> dict[str, int]:
    """Slices that each axis keeps."""
    cuts = sidecar(checkpoint)["surgery"]
    return {
        f"{name} {axis}": len(cuts["index"][number]["kept"])
        for name, axes in cuts["axes"].items()
        for axis, number in axes.items()
    }


def table(rows: list[dict[str, float]]) -> str:
    """The result in Markdown."""
    lines = [
        "# GReg-1 against one-shot L1 pruning",
        "",
        f"LeNet-5 on the first {TRAIN:,} images of MNIST; {SPARSITY:.0%} of the filters of conv2 and conv3 go, those",
        "of smallest L1 norm (GReg leaves the stem alone). GReg-1's penalty grows and acts with",
        f"`{GROWTH}`; then both ways are fine-tuned alike, by",
        f"`finetune {TUNING}`.",
        '"L1, longer" was trained before that, cut, for as many epochs as GReg\'s penalty took, at its rate.',
        "Top-1 in % after the last epoch; made by `benchmarks/greg.py`.",
        "",
        "| seed | base | before removal | after | kept / pruned norm | **GReg-1** | cut by L1 | **L1** | L1, longer |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = ("base", "before", "removed", "ratio", "greg1", "cut", "l1", "longer")
    means = {name: statistics.mean(row[name] for row in rows) for name in names}
    for label, row in [*((str(i), row) for i, row in enumerate(rows)), ("mean", means)]:
        shown = [f"{row[n]:.3g}" if n == "ratio" else f"{row[n]:.2%}".rstrip("%") for n in names]
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
    same = all(row["widths"] for row in rows)
    lines += ["", f"The networks of both ways have {'the same' if same else 'NOT the same'} widths.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
