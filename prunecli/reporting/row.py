"""What is known of one checkpoint, from its files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli import files
from prunecli.measure import Totals, disk_sizes, totals
from prunecli.reporting.lineage import Identity, Link, chain, identity, parent, story
from prunecli.reporting.structure import Outline
from prunecli.sidecar import Score, Sidecar

if TYPE_CHECKING:
    from prunecli.measure.timing import Timing


@dataclass(frozen=True)
class Row:
    """One checkpoint. Bytes are those of the weights file; `sidecar_bytes` those of sidecar and optimizer state."""

    name: str
    path: Path
    sidecar: Sidecar
    sums: Totals
    bytes: int
    sidecar_bytes: int
    compressed: int | None
    lineage: tuple[Link, ...] = ()
    parent: str | None = None  # name of the reported checkpoint that this one was made from
    timings: tuple[Timing, ...] = ()
    structure: Outline | None = None

    @property
    def masked(self) -> bool:
        """Whether some of its weights are masked."""
        return bool(self.sidecar.masks)

    @property
    def last(self) -> Score | None:
        """The scores of these weights."""
        return self.sidecar.metrics.last

    @property
    def story(self) -> str:
        """How it was made, as one line; a snapshot from the middle of a run says where it was taken."""
        run = self.sidecar.training
        where = f" at epoch {run.epoch}" if run and (run.epoch, run.step) < (run.epochs, 0) else ""
        return story(self.lineage, self.parent) + where

    def metrics(self) -> dict[str, float | None]:
        """The numbers that gates and tables know by name; None where a checkpoint has no such number.

        `top1`, `best_top1` (0 to 1) and `loss` are on the split that `split` names, `test_top1` on the test split;
        `latency_*` are milliseconds at the
        first batch size; everything else is a count, bytes, or a share from 0 to 1.
        """
        sums, scores = self.sums, self.sidecar.metrics
        last = scores.last.values if scores.last else {}
        best = scores.best.values if scores.best else {}
        test = scores.test.values if scores.test else last if scores.split == "test" else {}
        first: dict[str, float] = {}
        for timing in self.timings:
            first.setdefault(timing.backend, timing.median_ms)
        return {
            "params": sums.params,
            "nonzero": sums.nonzero_params,
            "macs": sums.macs,
            "effective_macs": sums.effective_macs,
            "flops": 2 * sums.macs,
            "sparsity": sums.sparsity,
            "sparsity_all": sums.sparsity_all,
            "bytes": self.bytes,
            "compressed": self.compressed,
            "top1": last.get("top1"),
            "loss": last.get("loss"),
            "best_top1": best.get("top1"),
            "test_top1": test.get("top1"),
            "latency": first.get("onnxruntime"),
            "latency_pytorch": first.get("pytorch"),
        }

    def data(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        sidecar, sums = self.sidecar, self.sums
        return {
            "name": self.name,
            "path": str(self.path),
            "sha256": sidecar.weights.sha256 if sidecar.weights else None,
            "arch": {"name": sidecar.arch.name, "args": sidecar.arch.args},
            "task": sidecar.task,
            "data": sidecar.data.name if sidecar.data else None,
            "input": sidecar.cost.input,
            **self.metrics(),
            "original_params": sums.original_params,
            "original_macs": sums.original_macs,
            "masked_params": sums.masked_params,
            "sidecar_bytes": self.sidecar_bytes,
            "split": sidecar.metrics.split,
            "last": _score(sidecar.metrics.last),
            "best": _score(sidecar.metrics.best),
            "test": _score(sidecar.metrics.test),
            "timings": [asdict(timing) for timing in self.timings],
            "parent": self.parent,
            "lineage": [link.data() for link in self.lineage],
            "structure": self.structure.data() if self.structure else None,
            "layers": [{**asdict(layer), "sparsity": layer.sparsity} for layer in sums.layers],
        }


def read_rows(paths: Sequence[str], *, compressed: bool = True) -> list[Row]:
    """Read checkpoints, verified, and find who was made from whom. Raises `DamagedError` for a bad one."""
    contents = [files.read(path) for path in paths]
    names = short_names(paths)
    known = {identity(sidecar): name for name, (sidecar, _) in zip(names, contents, strict=True)}
    return [
        _row(name, path, sidecar, {key: shape for key, (_, shape) in header.items()}, known, compressed)
        for name, path, (sidecar, header) in zip(names, paths, contents, strict=True)
    ]


def _row(
    name: str,
    path: str,
    sidecar: Sidecar,
    shapes: Mapping[str, tuple[int, ...]],
    known: Mapping[Identity, str],
    compressed: bool,
) -> Row:
    where = files.paths(path)
    size, packed = disk_sizes(where.weights, compressed=compressed)
    beside = [where.sidecar, where.state] if sidecar.state else [where.sidecar]
    links = chain(sidecar, known)
    return Row(
        name=name,
        path=where.weights,
        sidecar=sidecar,
        sums=totals(sidecar.cost, shapes, sidecar.masks, sidecar.surgery),
        bytes=size,
        sidecar_bytes=sum(disk_sizes(file, compressed=False)[0] for file in beside),
        compressed=packed,
        lineage=links,
        parent=parent(links),
    )


def short_names(paths: Sequence[str]) -> list[str]:
    """File names without their ending, with as many parent folders as it takes to tell them apart."""
    parts = [(*Path(path).parts[:-1], Path(path).name.removesuffix(files.WEIGHTS)) for path in paths]
    depth = 1
    while len({p[-depth:] for p in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


def _score(score: Score | None) -> dict[str, float] | None:
    return {"epoch": score.epoch, **score.values} if score else None
