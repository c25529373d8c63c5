"""What a method that prunes while it trains costs a step, over plain training, measured side by side in one run.

    python benchmarks/methods.py [--mnist DIR] [--cifar10 DIR] [--only resnet20] [--methods swd,sfp] [--device cuda]
    python benchmarks/methods.py --methods sss:structures=blocks      # a method with a setting of its own
    python benchmarks/methods.py --width      # what RPGP's narrower networks save of a run of ResNet-56

Two runs of prunecli's own loop, one with the method and one without, take a step each in turn, so that whatever else
the machine does slows both. A round is `--block` steps of each; its ratio is that of the sums, and the median of the
rounds is the result, with quartiles. What a method does after an epoch, and its log, is timed once and counted as its
share of the data set's epoch. On a CPU the same ratio of processor time stands beside: other programs do not change it.
Networks have random weights and, where no folder is given, the data set's images random pixels: neither changes the
time of a step.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from prunecli import data, models, training
from prunecli.checkpoint import Checkpoint
from prunecli.data import Dataset
from prunecli.data.base import Augment, Fit, InMemory
from prunecli.data.memory import MemorySplit
from prunecli.errors import PruneError
from prunecli.measure import cost
from prunecli.methods import gradual
from prunecli.options.shared import Execution
from prunecli.options.train import TrainOptions
from prunecli.progress import silent
from prunecli.sidecar import Arch, Data, Method, Sidecar
from prunecli.training import Hook, Run
from prunecli.training.fit import _epoch as steps_of
from prunecli.training.run import start

# What a method is run with; `sparsity` 0.5 where nothing is said and the method takes it.
SETTINGS: dict[str, dict[str, Any]] = {
    "swd": {"sparsity": 0.9},
}
# Overhead that the project promises, for ResNets and for LeNet-5, whose step takes milliseconds.
USUAL, LIMITS = (0.05, 0.15), {"adaptive-sparsity": (0.10, 0.25), "pgp": None, "rpgp": None}
IMAGES = {"mnist": 60_000, "cifar10": 50_000}
WIDTH_LIMITS = {0.5: 0.75, 0.9: 0.5}  # of a plain run's time
TIMED = 3  # steps of an epoch, of a run with RPGP


@dataclass(frozen=True)
class Case:
    """A network with its data and batch size; `block` steps a round."""

    arch: str
    source: str
    batch: int
    augment: bool
    block: int
    arguments: tuple[tuple[str, str], ...] = ()


CASES = (
    Case("lenet5", "mnist", 128, augment=False, block=100),
    Case("resnet20", "cifar10", 128, augment=True, block=10),
    Case("resnet56", "cifar10", 128, augment=True, block=5),
)
# RPGP's ResNet-56: channels that a shortcut without weights appends cannot be cut
WIDTH = replace(CASES[-1], arguments=(("shortcut", "projection"),))


class Loop:
    """A run of prunecli's loop that is advanced by steps, and timed: seconds, and those of the processor."""

    def __init__(self, run: Run) -> None:
        self.run, self.steps = run, iter(())
        run.hook.begin(run, silent)

    def step(self) -> tuple[float, float]:
        """Take one step."""
        return self._timed(self._step)

    def after_epoch(self) -> float:
        """End the epoch; returns the seconds that the method takes for that, its log included."""
        seconds, _ = self._timed(lambda: (self.run.hook.after_epoch(self.run), self.run.told()))
        self.run.training.epoch, self.run.training.step, self.run.training.totals = self.run.training.epoch + 1, 0, []
        self.steps = iter(())
        return seconds

    def _step(self) -> None:
        if next(self.steps, None) is None:
            self.run.training.step, self.run.training.totals = 0, []
            self.steps = steps_of(self.run)
            next(self.steps)

    def _timed(self, do: Callable[[], object]) -> tuple[float, float]:
        begun, busy = time.perf_counter(), time.process_time()
        do()
        if self.run.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun, time.process_time() - busy


def loop(case: Case, source: Dataset, device: str, method: str | None = None, **settings: Any) -> Loop:
    """A run of a new network with `method` at work, of 100 epochs or as many as that takes. Raises `PruneError`."""
    torch.manual_seed(0)
    network = models.build(case.arch, dict(case.arguments))
    options = TrainOptions(
        arch=case.arch, data="x", output="x.safetensors", epochs=100, batch_size=case.batch, augment=case.augment,
        lr=0.01,
    )  # fmt: skip
    described, optimizer = training.begin(options, [name for name, _ in network.named_parameters()])
    hook = Hook()
    if method:
        described.method = spec(method, settings)
        hook = gradual.hook(described.method) or hook
        described.epochs = hook.epochs(source.train.steps(case.batch)) or described.epochs
    sidecar = Sidecar(
        arch=Arch(name=case.arch, args=dict(case.arguments)), data=source.info, training=described, optimizer=optimizer,
        cost=cost(network, torch.zeros(1, *source.info.shape)),
    )  # fmt: skip
    return Loop(start(Checkpoint(dict(network.state_dict()), sidecar), source, Execution(device=device), hook))


def spec(method: str, settings: dict[str, Any]) -> Method:
    """The method with `settings`, some of which are shared options and some its own."""
    takes = gradual.GRADUAL[method].takes
    own = {key: value for key, value in settings.items() if key not in takes}
    return gradual.resolve(method, {key: settings[key] for key in settings if key in takes}, own)


def opened(case: Case, directory: str | None) -> Dataset:
    """The case's data set, or as many random images of its shape."""
    shape = (1, 32, 32) if case.source == "mnist" else (3, 32, 32)
    if directory:
        return data.open(case.source, directory, {}, image_size=shape)
    count, mean, std = IMAGES[case.source], [0.5] * shape[0], [0.25] * shape[0]
    images = torch.randint(256, (count, *shape), dtype=torch.uint8)
    augment = Augment(pad=4, flip=True) if case.augment else Augment()
    part = MemorySplit(InMemory(images, torch.randint(10, (count,))), mean, std, augment, Fit(shape[1:]))
    info = Data(name=case.source, classes=10, shape=[*shape], mean=mean, std=std, train_size=count, test_size=0)
    return Dataset(info, part, part)


def settings_of(method: str, own: str) -> dict[str, Any]:
    """What a method is measured with, beside its `own` setting `KEY=VALUE`."""
    usual = SETTINGS.get(method, {"sparsity": 0.5} if "sparsity" in gradual.GRADUAL[method].takes else {})
    return usual | dict([own.split("=")] if own else [])


def rounds(mine: Loop, plain: Loop, block: int, count: int) -> Iterator[tuple[float, float, float]]:
    """Of each round the ratio of seconds, that of processor seconds, and the seconds of a plain step."""
    for number in range(count + 1):
        sums = [[0.0, 0.0], [0.0, 0.0]]
        for k in range(block):
            for which in (0, 1) if k % 2 else (1, 0):
                seconds, busy = (mine, plain)[which].step()
                sums[which][0] += seconds
                sums[which][1] += busy
        if number:  # the first one warms up
            yield sums[0][0] / sums[1][0], sums[0][1] / sums[1][1], sums[1][0] / block


def overhead(case: Case, source: Dataset, asked_for: str, device: str, epoch: int, count: int) -> str:
    """A line of the table, of `METHOD` or `METHOD:KEY=VALUE`."""
    name = f"| {case.arch} | {asked_for} | "
    method, _, own = asked_for.partition(":")
    try:
        mine = loop(case, source, device, method, **settings_of(method, own))
    except PruneError as error:
        return f"{name} refused: {error.message} | | | | |"
    plain = loop(case, source, device)
    ratios, busy, seconds = zip(*rounds(mine, plain, case.block, count), strict=True)
    step, after = statistics.median(seconds), mine.after_epoch()
    low, middle, high = statistics.quantiles(ratios, n=4)
    share = after / (epoch * step)
    limit = LIMITS.get(method, USUAL)
    asked = f"{limit[case.arch == 'lenet5']:.0%}" if limit else "none"
    processor = f"{statistics.median(busy) - 1:+.1%}" if device == "cpu" else ""
    return (
        f"{name}{1000 * step:.3g} ms | {middle - 1:+.1%} ({low - 1:+.1%} to {high - 1:+.1%}) | {processor} | "
        f"{share:+.1%} | {middle - 1 + share:+.1%} | {asked} |"
    )


def width(case: Case, source: Dataset, pruned: float, device: str, epoch: int, epochs: int, every: int) -> str:
    """The time of a run with RPGP beside that of a plain one, `epochs` long, from three steps of `every` epoch-th.

    Others are a step of two images long: how many filters go after an epoch follows from its number alone.
    """
    mine, plain = loop(case, source, device, "rpgp", sparsity=pruned), loop(case, source, device)
    mine.run.training.epochs = epochs
    ratios, busy, after = [], [], []
    for number in range(epochs):
        timed = number % every == every // 2
        if timed:
            pairs = [(mine.step(), plain.step()) for _ in range(TIMED + 1)][1:]  # the first of a width is slower
            sums = torch.tensor(pairs, dtype=torch.float64).sum(0)
            (mine_s, mine_busy), (plain_s, plain_busy) = sums.tolist()
            ratios.append(mine_s / plain_s)
            busy.append(mine_busy / plain_busy)
        else:
            mine.run.training.batch_size = 2
            mine.step()
            mine.run.training.batch_size = case.batch
        seconds = mine.after_epoch()
        if timed:
            after.append(seconds * TIMED / (plain_s * epoch))
    share, later = statistics.mean(ratios), statistics.mean(after)
    processor = f"{statistics.mean(busy):.2f}" if device == "cpu" else ""
    return (
        f"| {case.arch} | {pruned:g} | {share:.2f} | {processor} | {later:.2f} | {share + later:.2f} | "
        f"{WIDTH_LIMITS[pruned]} | {ratios[-1]:.2f} |"
    )


def few(source: Dataset, case: Case) -> Dataset:
    """As much of the training data as the steps of an epoch take, of which all but the first are timed."""
    assert isinstance(source.train, MemorySplit)
    whole = source.train
    part = InMemory(whole.images[: (TIMED + 1) * case.batch], whole.labels[: (TIMED + 1) * case.batch])
    mean, std = source.info.mean, source.info.std
    return Dataset(source.info, MemorySplit(part, mean, std, whole.augment, Fit(part.shape[1:])), source.test)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="DIR")
    parser.add_argument("--cifar10", metavar="DIR")
    parser.add_argument("--only", default="lenet5,resnet20,resnet56", metavar="ARCH,...")
    parser.add_argument("--methods", default=",".join(gradual.GRADUAL), metavar="METHOD[:KEY=VALUE],...")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--block", type=int, help="steps of each in a round (default: 100, 10 or 5 by network)")
    parser.add_argument("--width", action="store_true", help="the time of RPGP's run beside a plain one")
    parser.add_argument("--epochs", type=int, default=500, help="of --width; the paper's 500 for ResNet-56")
    parser.add_argument("--every", type=int, default=20, help="of --width: one in so many epochs is timed")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    on = torch.cuda.get_device_name() if given.device.startswith("cuda") else f"CPU, {given.threads} threads"
    print(f"{on}, torch {torch.__version__}, batches of 128\n")
    (widths if given.width else overheads)(given)


def widths(given: argparse.Namespace) -> None:
    """The table of `--width`."""
    print("| network | pruned | steps | processor | after epochs | run of plain | limit | last step |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    source = opened(WIDTH, given.cifar10)
    epoch = source.train.steps(WIDTH.batch)
    for share in WIDTH_LIMITS:
        print(width(WIDTH, few(source, WIDTH), share, given.device, epoch, given.epochs, given.every), flush=True)


def overheads(given: argparse.Namespace) -> None:
    """The table of methods."""
    print("| network | method | plain step | step | processor | after epoch | overhead | limit |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        if case.arch not in given.only.split(","):
            continue
        case = replace(case, block=given.block or case.block)
        source = opened(case, getattr(given, case.source))
        epoch = source.train.steps(case.batch)
        for method in given.methods.split(","):
            print(overhead(case, source, method, given.device, epoch, given.rounds), flush=True)
            gc.collect()


if __name__ == "__main__":
    main()
