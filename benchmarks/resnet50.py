"""ResNet-50 at half its channels: MACs, parameters, bytes, latency in PyTorch and onnxruntime, and loading.

    python benchmarks/resnet50.py [--repeats N] [--threads N] > benchmarks/results/resnet50.md

The commands do the work as they do for users: `prune --method l1` makes the checkpoints, `report --latency` times one
image of 224 pixels on two threads, one run of every network after another, `export` writes the ONNX files. Every width
of a ResNet-50 is a multiple of 64, so half of it is a multiple of 8 with `--round-to 8` and without: those two files
are equal, and what differs between their times is noise. What rounding brings is seen at 45 %.

The profile is onnxruntime's own, the median of each kernel; MACs in it are those that it executes, padding included.
The weights are random: nothing here depends on their values. Exits with 1 where onnxruntime gains less than 75 % of the
gain in MACs from half the channels, or that network takes more than 100 ms to load.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import load
import numpy as np
import onnxruntime
import torch

import prunecli
from prunecli.measure.timing import Timing

CUTS = {
    "half": (0.5, 1), "half, `--round-to 8`": (0.5, 8), "45 % less": (0.45, 1),
    "45 % less, `--round-to 8`": (0.45, 8), "45 % less, `--round-to 16`": (0.45, 16),
}  # fmt: skip
HALF = [name for name, (sparsity, _) in CUTS.items() if sparsity == 0.5]
WANTED, LOADED = 0.75, 100.0  # share of the gain in MACs; milliseconds
OTHERS = "all others"
Kernels = dict[str, tuple[float, int]]  # by kind: milliseconds and executed MACs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50, help="timed runs of each network (50)")
    parser.add_argument("--loads", type=int, default=15, help="fresh processes that load (15)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch and onnxruntime (2)")
    options = parser.parse_args()
    print(f"# ResNet-50 at half its channels\n\n`{' '.join(['python benchmarks/resnet50.py', *sys.argv[1:]])}`\n")
    print(
        f"Batch 1, 224 pixels, {options.threads} threads of {os.cpu_count()} cores, torch {torch.__version__}, ", end=""
    )
    print(f"onnxruntime {onnxruntime.__version__}, medians of {options.repeats} runs, quartiles in brackets; ", end="")
    print(f"load of the machine at the start: {os.getloadavg()[0]:.1f}.\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        load.make(folder)
        files = {"dense": folder / "dense.safetensors"} | dict(cuts(folder))
        asked = prunecli.ReportOptions(
            checkpoints=tuple(map(str, files.values())),
            latency=True, batch="1", threads=options.threads, repeats=options.repeats, compressed=False,
        )  # fmt: skip
        rows = prunecli.report(asked).rows
        sizes = [prunecli.export(prunecli.ExportOptions(checkpoint=str(path))).size for path in files.values()]
        models = [path.with_suffix(".onnx") for path in files.values()]
        kernels = profiles(models, options.repeats, options.threads)
        loads = [load.measure("prunecli.load", folder)[0] for _ in range(options.loads)]
    shares = dict(zip(files, table(list(files), rows, sizes), strict=True))
    print("\nWhere onnxruntime's time goes: milliseconds, and the millions of MACs that it executes.\n")
    print("\n".join(lines([["kernels", *files], *breakdown(kernels)])))
    reached, median = min(shares[name] for name in HALF), statistics.median(loads)
    print(f"\nonnxruntime gains {reached:.0%} of the gain in MACs from half the channels; {WANTED:.0%} are wanted.")
    took = f"{median:.0f} ms, at most {max(loads):.0f} ms in {len(loads)} processes"
    print(f"Loaded ready to run, beyond imports: {took}; {LOADED:.0f} ms are allowed.")
    return 0 if reached >= WANTED and median <= LOADED else 1


def cuts(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each cut of the dense checkpoint."""
    dense = str(folder / "dense.safetensors")
    for number, (name, (share, multiple)) in enumerate(CUTS.items()):
        output = folder / f"cut{number}.safetensors"
        options = prunecli.PruneOptions(
            checkpoint=dense, method="l1", sparsity=share, round_to=multiple, output=str(output)
        )
        prunecli.prune(options)
        yield name, output


def table(names: Sequence[str], rows: Sequence[Any], sizes: Sequence[int]) -> Iterator[float]:
    """Print what each network costs; give what onnxruntime gains of the gain in MACs."""
    cells = [["", "MACs", "fewer", "parameters", "stored", "ONNX", "PyTorch", "faster", "onnxruntime", "faster"]]
    cells[0] += ["of the gain in MACs"]
    dense = rows[0]
    for name, row, size in zip(names, rows, sizes, strict=True):
        ours, runtime = row.timings
        fewer = dense.sums.macs / row.sums.macs
        faster = [first.median_ms / timing.median_ms for first, timing in zip(dense.timings, row.timings, strict=True)]
        stored = row.bytes + row.sidecar_bytes
        cells.append([
            name, f"{row.sums.macs / 1e9:.3f} G", f"{fewer:.2f}", f"{row.sums.params / 1e6:.2f} M",
            f"{stored / 1e6:.1f} MB", f"{size / 1e6:.1f} MB", quartiles(ours), f"{faster[0]:.2f}",
            quartiles(runtime), f"{faster[1]:.2f}", f"{faster[1] / fewer:.0%}",
        ])  # fmt: skip
        yield faster[1] / fewer
    print("\n".join(lines(cells)))


def quartiles(timing: Timing) -> str:
    return f"{timing.median_ms:.1f} ms ({timing.q1_ms:.1f}–{timing.q3_ms:.1f})"


def profiles(models: Sequence[Path], repeats: int, threads: int) -> list[Kernels]:
    """What the kernels of each model take, the models in turn."""
    sessions = []
    for model in models:
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(model.with_suffix(""))
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        sessions.append(onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"]))
    image = np.zeros((1, 3, 224, 224), np.float32)
    for _ in range(repeats):
        for session in sessions:
            session.run(None, {"input": image})
    return [summed(json.loads(Path(session.end_profiling()).read_text())) for session in sessions]


def summed(events: list[Any]) -> Kernels:
    """The medians of all kernels, by kind."""
    times: dict[str, list[float]] = {}
    kinds: dict[str, tuple[str, int]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"], []).append(event["dur"] / 1000)
            kinds[event["name"]] = kind(event["args"])
    result: Kernels = {}
    for name, (what, macs) in kinds.items():
        before = result.get(what, (0.0, 0))
        result[what] = before[0] + statistics.median(times[name]), before[1] + macs
    return result


def kind(event: dict[str, Any]) -> tuple[str, int]:
    """What a kernel is, and its MACs."""
    operator = event["op_name"]
    if operator in ("Conv", "FusedConv"):
        (output,) = event["output_type_shape"][0].values()
        (weight,) = event["input_type_shape"][1].values()
        return f"convolutions to {output[2]} × {output[3]}", math.prod(output) * math.prod(weight[1:])
    if operator.startswith("Reorder"):
        return "channels to blocks of 16 and back", 0
    return ("additions and ReLUs of their own" if operator in ("Add", "Relu") else OTHERS), 0


def breakdown(kernels: Sequence[Kernels]) -> Iterator[list[str]]:
    """A row a kind of kernel."""
    for what in sorted(dict.fromkeys(what for taken in kernels for what in taken), key=OTHERS.__eq__):
        cells = [taken.get(what, (0.0, 0)) for taken in kernels]
        yield [what, *(f"{time:.2f}" + (f", {macs / 1e6:.0f}" if macs else "") for time, macs in cells)]
    yield ["together", *(f"{sum(time for time, _ in taken.values()):.2f}" for taken in kernels)]


def lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    for number, row in enumerate(rows):
        yield f"| {' | '.join(row)} |"
        if number == 0:
            yield "|" + " --- |" + " ---: |" * (len(row) - 1)


if __name__ == "__main__":
    sys.exit(main())
