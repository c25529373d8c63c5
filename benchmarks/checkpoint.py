"""Saving and loading a ResNet-50 checkpoint with SGD momentum: prunecli, torch.save/torch.load, bare safetensors.

    python benchmarks/checkpoint.py [ROUNDS]

The contestants take turns, so that all of them see the same machine. Times are medians. Memory is the peak of resident
memory over what the process held before, each measured in a process of its own; pages of mapped files count.
"Bare safetensors" has two files, weights and momentum, no sidecar, no hash, no checks. "+ fsync" flushes the files to
disk, as prunecli does and the others by themselves do not.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunecli import checkpoint as checkpoints
from prunecli import models
from prunecli.checkpoint import Checkpoint, to_array, to_tensor
from prunecli.sidecar import Arch, Cost, Optimizer, ParamGroup, Sidecar

Tensors = dict[str, Tensor]


def example() -> tuple[Tensors, Tensors]:
    """Weights of ResNet-50 and a momentum buffer for each parameter (25.6 M values each)."""
    torch.manual_seed(0)
    network = models.build("resnet50", {})
    momentum = {name: torch.randn_like(parameter) for name, parameter in network.named_parameters()}
    return dict(network.state_dict()), momentum


def flush(*paths: Path) -> None:
    """Wait until the files are on the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def contestants(folder: Path, weights: Tensors, momentum: Tensors) -> dict[str, Callable[[], object]]:
    """The operations to time, in the order of the table; each load reads what the save before it wrote."""
    parts = [folder / name for name in ("bare.safetensors", "bare.momentum.safetensors")]

    def prunecli_save(**options: int) -> None:
        groups = [ParamGroup(params=list(momentum), options={"lr": 0.1, "momentum": 0.9})]
        state = {name: {"momentum_buffer": to_array(tensor)} for name, tensor in momentum.items()}
        optimizer = Optimizer(name="SGD", groups=groups, state=state)
        sidecar = Sidecar(arch=Arch(name="resnet50"), cost=Cost(input=[3, 224, 224]), optimizer=optimizer)
        checkpoints.save(Checkpoint(weights, sidecar), folder / "ours.safetensors", **options)

    def prunecli_load() -> object:
        loaded = checkpoints.load(folder / "ours.safetensors")
        optimizer = loaded.sidecar.optimizer
        assert optimizer
        return loaded, {name: to_tensor(state["momentum_buffer"]) for name, state in optimizer.state.items()}

    def torch_save() -> None:
        torch.save({"weights": weights, "momentum": momentum}, folder / "torch.pt")

    def bare_save() -> None:
        for path, tensors in zip(parts, (weights, momentum), strict=True):
            save_file(tensors, path)

    return {
        "save  prunecli, momentum in the sidecar": prunecli_save,
        "load  prunecli, momentum in the sidecar": prunecli_load,
        "save  prunecli, momentum in a state file": lambda: prunecli_save(inline_limit=0),
        "load  prunecli, momentum in a state file": prunecli_load,
        "save  torch.save": torch_save,
        "save  torch.save + fsync": lambda: (torch_save(), flush(folder / "torch.pt")),
        "load  torch.load": lambda: torch.load(folder / "torch.pt", weights_only=True),
        "save  bare safetensors": bare_save,
        "save  bare safetensors + fsync": lambda: (bare_save(), flush(*parts)),
        "load  bare safetensors": lambda: [load_file(path) for path in parts],
    }


def peak(folder: Path, name: str) -> float:
    """MiB of resident memory that an operation adds at its peak. Runs in a fresh process."""
    operation = contestants(folder, *(example() if name.startswith("save") else ({}, {})))[name]
    Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
    before = resource_now()
    result = operation()
    del result
    return (resource_peak() - before) / 1024


def resource_now() -> int:
    """Resident memory in KiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def resource_peak() -> int:
    """The peak of resident memory in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main(rounds: int) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        operations = contestants(folder, *example())
        times: dict[str, list[float]] = {name: [] for name in operations}
        for _ in range(rounds):
            for name, operation in operations.items():
                start = time.perf_counter()
                result = operation()
                times[name].append(time.perf_counter() - start)
                del result
        print(f"ResNet-50 with SGD momentum, {rounds} rounds, {torch.get_num_threads()} threads")
        print(f"{'':42} {'median s':>9} {'least s':>9} {'peak MiB':>9}")
        spawn = multiprocessing.get_context("spawn")
        for name in operations:
            with spawn.Pool(1) as pool:
                memory = pool.apply(peak, (folder, name))
            print(f"{name:42} {statistics.median(times[name]):9.3f} {min(times[name]):9.3f} {memory:9.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
