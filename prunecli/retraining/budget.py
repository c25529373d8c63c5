"""How long the small network trains from scratch, and the large network's schedule over that length.

Liu et al., *Rethinking the Value of Network Pruning* (ICLR 2019), section 3: Scratch-E gives the small network the
large one's epochs, Scratch-B its computation, with the learning rate dropping at the same fractions of the longer run.
"""

from __future__ import annotations

import msgspec

from prunecli.measure import Totals
from prunecli.sidecar import Schedule
from prunecli.training.schedule import stretched

IMAGENET_EPOCHS = 90


def macs_ratio(large: Totals, small: Totals) -> float:
    """MACs of the large network over the small one's; where that is masked, of non-zero convolution weights alone."""
    if not small.masked_params:
        return large.macs / small.macs
    left = [sum(row.effective_macs for row in t.layers if row.kind.startswith("conv")) for t in (large, small)]
    return left[0] / left[1] if all(left) else large.effective_macs / max(small.effective_macs, 1)


def budget_epochs(budget: str, epochs: int, ratio: float) -> int:
    """Epochs of a scratch run: the large network's `epochs`, times `ratio` (its MACs over the small one's) for B.

    `B-imagenet` is the paper's rule for ImageNet: it counts from 90 epochs, and twice as many are the most.
    """
    if budget == "E":
        return epochs
    if budget == "B":
        return int(epochs * ratio + 1e-9)
    return 2 * IMAGENET_EPOCHS if ratio >= 2 else int(IMAGENET_EPOCHS * ratio + 1e-9)


def budget_schedule(budget: str, schedule: Schedule, epochs: int, new_epochs: int) -> Schedule:
    """The `schedule` of the large network's `epochs` over `new_epochs`; whole epochs stay whole, rounded down."""
    if budget == "B-imagenet":
        return Schedule(kind="step", step_size=max(1, int(new_epochs / 3)), gamma=0.1)
    if 0 in (epochs, new_epochs) or epochs == new_epochs:
        return schedule
    new = stretched(schedule, new_epochs / epochs)
    return msgspec.structs.replace(
        new,
        milestones=[_whole(old, moved) for old, moved in zip(schedule.milestones, new.milestones, strict=True)],
        step_size=new.step_size and _whole(schedule.step_size or 0, new.step_size),
    )


def _whole(old: float, moved: float) -> float:
    return float(max(1, int(moved + 1e-9))) if old and old == int(old) else moved
