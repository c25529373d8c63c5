"""Cross-checks of a sidecar against the tensors that it describes: names, shapes and indices must agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from prunecli.encoding import arrays
from prunecli.errors import DamagedError
from prunecli.sidecar import Optimizer, Sidecar
from prunecli.tensorfile import RawTensor

RawTensors = Mapping[str, RawTensor]


def check(sidecar: Sidecar, weights: RawTensors, state: RawTensors | None, path: Path) -> None:
    """Raise `DamagedError`, naming the sidecar's `path`, at the first disagreement. `state=None`: it was not opened."""
    for problem in _problems(sidecar, weights, state):
        raise DamagedError(
            f"{path}: {problem}", "the sidecar was not written for these weights; restore both files, or rerun the step"
        )


def _problems(sidecar: Sidecar, weights: RawTensors, state: RawTensors | None) -> Iterator[str]:
    for name, mask in sidecar.masks.items():
        if name not in weights:
            yield f"mask of {name!r}, which is no tensor of the weights"
        elif tuple(mask.shape) != weights[name].shape:
            yield f"mask of {name!r} has shape {mask.shape}, the tensor {list(weights[name].shape)}"
    for name, axes in sidecar.surgery.axes.items():
        for axis, number in axes.items():
            kept = len(sidecar.surgery.index[number].kept)
            # A tensor that the weights lack is a buffer that is not stored; `checkpoint.build` looks at it.
            if name in weights and weights[name].shape[int(axis) : int(axis) + 1] != (kept,):
                yield f"surgery keeps {kept} slices on axis {axis} of {name!r}, shape {list(weights[name].shape)}"
    for name in weights if sidecar.surgery.absent else ():
        if module := sidecar.surgery.without(name):
            yield f"tensor {name!r} of {module}, which surgery says is absent"
    for name in sidecar.cost.positions:
        if name not in weights:
            yield f"cost of {name!r}, which is no tensor of the weights"
    if sidecar.optimizer:
        yield from _optimizer_problems(sidecar.optimizer, weights)
    for name, array in arrays(sidecar):
        if array.data is not None:
            continue
        if sidecar.state is None:
            yield f"array {name!r} has no data"
        elif state is not None:
            stored = state.get(name)
            if stored is None or (stored.dtype, stored.shape) != (array.dtype, tuple(array.shape)):
                yield f"array {name!r} of {array.dtype} {array.shape} is not in the state file"


def _optimizer_problems(optimizer: Optimizer, weights: RawTensors) -> Iterator[str]:
    seen: set[str] = set()
    for group in optimizer.groups:
        for name in group.params:
            if name not in weights or name in seen:
                yield f"optimizer group with {name!r}, which is " + ("named twice" if name in seen else "no tensor")
            seen.add(name)
    for name, state in optimizer.state.items():
        if name not in seen:
            yield f"optimizer state of {name!r}, which is in no group"
        for key, array in state.items():
            if array.shape not in ([], [1]) and tuple(array.shape) != weights[name].shape:
                yield f"optimizer state {key!r} of {name!r} has shape {array.shape}, not {list(weights[name].shape)}"
