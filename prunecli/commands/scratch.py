"""`scratch`: the pruned architecture, or one of the same size, trained from new weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from prunecli import checkpoint as checkpoints
from prunecli.checkpoint import Checkpoint, pack_mask
from prunecli.commands.history import measured, step
from prunecli.commands.running import UNRECORDED, Written, carry_out
from prunecli.commands.train import new_network
from prunecli.errors import UsageError
from prunecli.measure import cost
from prunecli.options.scratch import ScratchOptions
from prunecli.progress import Say, silent
from prunecli.retraining import weights
from prunecli.retraining.budget import macs_ratio
from prunecli.retraining.recipe import original, scratch_run
from prunecli.retraining.shape import Pruned, dense, has_whole_heads, sums_of, take_shape
from prunecli.retraining.snapshot import at_start, cut_snapshot, other_run
from prunecli.sidecar import Metrics
from prunecli.training import describe, image_size, open_data, prepare
from prunecli.training.randomness import derived_seed


@dataclass(frozen=True)
class Scratched(Written):
    """A scratch run's result. `ratio`: the large network's MACs over this one's; `epochs`: the length of its run."""

    ratio: float = 1.0
    epochs: int = 0
    trained: bool = True

    def data(self) -> dict[str, Any]:
        """The result for programs."""
        return super().data() | {"macs_ratio": self.ratio, "epochs": self.epochs, "trained": self.trained}

    def text(self) -> str:
        """The result for people."""
        done = "trained for" if self.trained else "not trained, finetune does it:"
        length = f"{self.epochs} epoch{'s' * (self.epochs != 1)}"
        return super().text() + f"\n  {done} {length}; the large network has {self.ratio:.2f} x its MACs"


def run(options: ScratchOptions, say: Say = silent) -> Scratched:
    """Train `options.checkpoint`'s architecture from scratch and write `options.output`.

    With `epochs` 0 only the initial checkpoint is written, at the beginning of its budget's run. Raises `UsageError`
    for options that do not fit the checkpoints, `TargetError` when no network is as small as wanted.
    """
    prepare(options)
    source = checkpoints.load(options.checkpoint)
    to = checkpoints.load(options.to) if options.to else None
    guide = checkpoints.load(options.guide) if options.guide else None
    for note in other_run(source, to) if to else ():
        say(f"warning: {note}")
    initial, ratio = _initial(source, to, guide, options)
    training = initial.sidecar.training
    assert training is not None  # _initial describes the run
    # in the history, checkpoints are known by their content
    named = dataclasses.replace(options, to=to.sha256 if to else None, guide=guide.sha256 if guide else None)
    if options.epochs == 0:
        return Scratched(_write(initial, named), ratio=ratio, epochs=training.epochs, trained=False)
    data = open_data(source.sidecar.data, options, image_size(source.sidecar))
    initial.sidecar.data = data.info
    written = carry_out("scratch", initial, data, named, say)
    return Scratched(written.checkpoint, written.notes, ratio, training.epochs)


def _initial(
    source: Checkpoint, to: Checkpoint | None, guide: Checkpoint | None, options: ScratchOptions
) -> tuple[Checkpoint, float]:
    """The network in its shape, with its first weights, at the beginning of its run; and the ratio of MACs."""
    seed = original(source)[0].seed if options.seed is None else options.seed
    heads = has_whole_heads(guide or source)  # of the one whose widths are taken
    network, large = _large(source, seed, options, heads)
    guiding = _large(guide, seed, options, heads)[1] if guide else None
    drawn = {name: module.weight.detach() for name, module in weights.layers(network).items()}
    generator = torch.Generator().manual_seed(derived_seed(seed, "scratch"))
    surgery, masks = take_shape(options.shape, network, large, guiding, options.match, generator)
    weights.fit_scale(network, drawn)
    if options.init.startswith("sparse"):
        if not masks:
            raise UsageError(f"--init {options.init}: the network has no masks", "use --init random")
        weights.sparse(network, masks, options.init == "sparse", generator)
    state = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    state |= {name: state[name] * mask for name, mask in masks.items()}
    sidecar = msgspec.structs.replace(
        source.sidecar,
        cost=cost(network, torch.zeros(1, *source.sidecar.cost.input)),
        surgery=surgery,
        masks={name: pack_mask(mask) for name, mask in masks.items()},
        metrics=Metrics(split=source.sidecar.metrics.split),
    )
    initial = Checkpoint(state, sidecar, sha256=source.sha256)
    ratio = macs_ratio(large.sums({}), sums_of(initial))
    record, known = source.sidecar.surgery, {*source.trained}  # of a larger shape, what is absent there trains again
    trained = [name for name, _ in network.named_parameters() if name in known or record.without(name)]
    sidecar.training, sidecar.optimizer = scratch_run(options, source, trained, ratio)
    if to:
        at_start(to, "--init ticket")
        initial.weights, _ = cut_snapshot(initial, to)
    return initial, ratio


def _large(source: Checkpoint, seed: int, options: ScratchOptions, heads: bool) -> tuple[nn.Module, Pruned]:
    """The dense network of `source` with weights that no other run draws, and what can be cut from it."""
    network = new_network(source.sidecar.arch, derived_seed(seed, "scratch"), options.trust)
    return network, dense(source, network, heads=heads)


def _write(initial: Checkpoint, options: ScratchOptions) -> Checkpoint:
    """Write the checkpoint untrained."""
    sidecar = initial.sidecar
    assert sidecar.training is not None and sidecar.optimizer is not None  # noqa: PT018  # _initial describes the run
    recorded = {f.name: getattr(options, f.name) for f in dataclasses.fields(options) if f.name not in UNRECORDED}
    recorded |= describe(sidecar.training, sidecar.optimizer)
    entry = step("scratch", recorded, parent=initial.sha256, measured=measured(initial), notes=("not trained",))
    sidecar.history = [*sidecar.history, entry]
    path = Path(options.output)
    return Checkpoint(initial.weights, sidecar, path, checkpoints.save(initial, path))
