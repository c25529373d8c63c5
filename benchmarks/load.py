"""Loading ResNet-50 cut to half its channels, ready to run: prunecli, and the whole network pickled, as others save it.

    python benchmarks/load.py [ROUNDS]

Each round is a fresh process per contestant, which imports what it needs first (torch, torchvision, prunecli), then
loads the network and runs one image through it, twice. The files are in the page cache. prunecli verifies the SHA-256
of every byte, the schema, and that every value is finite; `torch.load` of a pickle verifies nothing and runs any code.
Times are medians in milliseconds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli import models
from prunecli.checkpoint import Checkpoint
from prunecli.measure import cost
from prunecli.sidecar import Arch, Sidecar

ARCH = "torchvision:resnet50"
IMPORTS = {
    "prunecli.load": "import prunecli.loading, prunecli.models.external\nfrom prunecli.vision import torchvision",
    "torch.load of the pickled network": "from prunecli.vision import torchvision\nimport torchvision.models.resnet",
}
LOADS = {
    "prunecli.load": "network, _ = prunecli.load('half.safetensors')",
    "torch.load of the pickled network": "network = torch.load('half.pt', weights_only=False).eval()",
}
CHILD = """
import time, torch
{imports}
image = torch.zeros(1, 3, 224, 224)
times = [time.perf_counter()]
{load}
times.append(time.perf_counter())
for _ in range(2):
    with torch.inference_mode():
        network(image)
    times.append(time.perf_counter())
print(*(1000 * (after - before) for before, after in zip(times, times[1:])))
"""


def make(folder: Path) -> None:
    """The same network both ways."""
    torch.manual_seed(0)
    dense = models.build(ARCH, {})
    described = Sidecar(arch=Arch(name=ARCH), cost=cost(dense.eval(), torch.zeros(1, 3, 224, 224)))
    checkpoints.save(Checkpoint(dict(dense.state_dict()), described), folder / "dense.safetensors")
    options = prunecli.PruneOptions(
        checkpoint=str(folder / "dense.safetensors"), method="l1", sparsity=0.5, output=str(folder / "half.safetensors")
    )
    prunecli.prune(options)
    network, _ = prunecli.load(folder / "half.safetensors")
    torch.save(network, folder / "half.pt")


def measure(name: str, folder: Path) -> list[float]:
    """Milliseconds to load, to run first, to run again."""
    program = CHILD.format(imports=IMPORTS[name], load=LOADS[name])
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


def main(rounds: int) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        times: dict[str, list[list[float]]] = {name: [] for name in LOADS}
        for _ in range(rounds):
            for contestant in LOADS:
                times[contestant].append(measure(contestant, folder))
        print(f"{ARCH} at half its channels, {rounds} fresh processes each, {torch.get_num_threads()} threads")
        print(f"{'ms':36} {'load':>8} {'(worst)':>8} {'1st run':>8} {'2nd run':>8}")
        for contestant, measured in times.items():
            load, first, second = (statistics.median(column) for column in zip(*measured, strict=True))
            worst = max(numbers[0] for numbers in measured)
            print(f"{contestant:36} {load:8.1f} {worst:8.1f} {first:8.1f} {second:8.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
