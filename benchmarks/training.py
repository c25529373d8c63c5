"""Steps per second of `prunecli train`'s loop against a plain PyTorch loop with a DataLoader, side by side in one run.

    python benchmarks/training.py --mnist DIR --cifar10 DIR [--rounds 5]

The plain loop is what people write: torchvision's data set and transforms, a shuffling DataLoader (without workers and
with two: the better one counts), the same network, SGD with momentum, `loss.item()` each step. Rounds alternate between
the loops; the median of the rounds' ratios is the result.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from prunecli import data, models
from prunecli.checkpoint import Checkpoint
from prunecli.data import Order
from prunecli.measure import cost
from prunecli.options.train import TrainOptions
from prunecli.progress import Silent
from prunecli.sidecar import Arch, Sidecar
from prunecli.training import begin, fit
from prunecli.vision import torchvision


class Enough(Exception):
    """Enough steps were timed."""


class Timer(Silent):
    """Times `steps` steps after `warmup` others."""

    def __init__(self, warmup: int, steps: int) -> None:
        self.warmup, self.steps, self.done, self.begun = warmup, steps, 0, 0.0

    def status(self, text: str) -> None:
        self.done += 1
        if self.done == self.warmup:
            self.begun = time.perf_counter()
        if self.done == self.warmup + self.steps:
            raise Enough


def ours(case: dict[str, Any], opened: data.Dataset, warmup: int, steps: int) -> float:
    """Steps per second of prunecli's own `fit`."""
    torch.manual_seed(0)
    network = models.build(case["arch"], {})
    options = TrainOptions(
        arch=case["arch"],
        data="x",
        output="x.safetensors",
        epochs=100,
        batch_size=case["batch"],
        augment=case["augment"],
    )
    spec, optimizer = begin(options, [name for name, _ in network.named_parameters()])
    sidecar = Sidecar(
        arch=Arch(name=case["arch"]), data=opened.info, cost=cost(network, torch.zeros(1, *opened.info.shape)),
        training=spec, optimizer=optimizer,
    )  # fmt: skip
    timer = Timer(warmup, steps)
    try:
        fit(Checkpoint(dict(network.state_dict()), sidecar), opened, options, say=timer)
    except Enough:
        return steps / (time.perf_counter() - timer.begun)
    raise RuntimeError("the run ended before enough steps were timed")


def plain(case: dict[str, Any], dataset: Any, workers: int, warmup: int, steps: int) -> float:
    """Steps per second of the loop that people write."""
    torch.manual_seed(0)
    network = models.build(case["arch"], {}).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    loader = torch.utils.data.DataLoader(
        dataset, case["batch"], shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    begun = 0.0
    for done, (x, y) in enumerate(forever(loader)):
        if done == warmup:
            begun = time.perf_counter()
        if done == warmup + steps:
            return steps / (time.perf_counter() - begun)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        loss.item()
    raise AssertionError


def forever(loader: Any) -> Iterator[Any]:
    """Batches, epoch after epoch."""
    while True:
        yield from loader


def transforms(case: dict[str, Any]) -> Any:
    """The usual torchvision transforms of a case."""
    t = torchvision.transforms
    first = [t.Pad(2)] if case["arch"] == "lenet5" else [t.RandomCrop(32, padding=4), t.RandomHorizontalFlip()]
    return t.Compose([*first, t.ToTensor(), t.Normalize(case["mean"], case["std"])])


def unzip(directory: str, folder: Path) -> None:
    """Put MNIST's files into `folder` as torchvision reads them; it does not read them zipped."""
    (folder / "MNIST" / "raw").mkdir(parents=True)
    for file in Path(directory).glob("MNIST/raw/*.gz"):
        (folder / "MNIST" / "raw" / file.stem).write_bytes(gzip.decompress(file.read_bytes()))


def compare(case: dict[str, Any], directory: str, rounds: int) -> None:
    """Print the medians of one case."""
    opened = data.open(case["source"], directory, {}, image_size=case["size"])
    next(opened.train.batches(case["batch"], order=Order(0, 0, case["augment"])))
    if case["source"] == "mnist":
        with tempfile.TemporaryDirectory() as folder:  # the images are in memory after this
            unzip(directory, Path(folder))
            dataset = torchvision.datasets.MNIST(folder, transform=transforms(case))
    else:
        dataset = torchvision.datasets.ImageFolder(f"{directory}/train", transform=transforms(case))
    warmup, steps = case["steps"]
    results = [
        (ours(case, opened, warmup, steps), *(plain(case, dataset, w, warmup, steps) for w in (0, 2)))
        for _ in range(rounds)
    ]
    mine, alone, workers = (statistics.median(column) for column in zip(*results, strict=True))
    ratio = statistics.median(row[0] / max(row[1:]) for row in results)
    print(
        f"{case['arch']} on {case['source']}, batches of {case['batch']}, {torch.get_num_threads()} threads: "
        f"prunecli {mine:.1f} steps/s; plain loop {alone:.1f} (no workers), {workers:.1f} (2 workers); "
        f"ratio to the better one {ratio:.2f} (rounds: {', '.join(f'{r[0] / max(r[1:]):.2f}' for r in results)})",
        flush=True,
    )


CASES = {
    "mnist": {
        "arch": "lenet5", "source": "mnist", "batch": 64, "augment": False, "size": (1, 32, 32), "steps": (50, 400),
        "mean": (0.1307,), "std": (0.3081,),
    },
    "cifar10": {
        "arch": "resnet20", "source": "cifar10", "batch": 128, "augment": True, "size": (3, 32, 32), "steps": (5, 40),
        "mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616),
    },
}  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in CASES:
        parser.add_argument(f"--{name}", metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5)
    given = vars(parser.parse_args())
    for name, case in CASES.items():
        if given[name]:
            compare(case, given[name], given["rounds"])
