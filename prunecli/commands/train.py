"""`train`: a network from new or given weights to a trained checkpoint."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecli import checkpoint as checkpoints
from prunecli import models, training
from prunecli.checkpoint import Checkpoint
from prunecli.commands import gradual
from prunecli.commands.history import measured
from prunecli.commands.running import Written, carry_out
from prunecli.data import Dataset
from prunecli.errors import DamagedError, UsageError
from prunecli.measure import cost
from prunecli.options import parse_pairs
from prunecli.options.train import TrainOptions
from prunecli.progress import Say, silent
from prunecli.sidecar import Arch, Method, Sidecar
from prunecli.training.randomness import derived_seed


def run(options: TrainOptions, say: Say = silent) -> Written:
    """Train `options.arch` on `options.data` and write `options.output`.

    Raises `UsageError` for options that mean nothing, `DamagedError` for damaged data or weights, `Interrupted` after
    Ctrl-C or SIGTERM, with the run saved for `--resume`.
    """
    training.prepare(options)
    arguments = parse_pairs(options.arch_arg, "--arch-arg")
    data = _open(options, models.input_shape(options.arch, arguments))
    known = models.options(options.arch, options.trust)
    arch = Arch(name=options.arch, args=_with_classes(arguments, data.info.classes if "num_classes" in known else None))
    network = new_network(arch, options.seed or 0, options.trust)
    _load(network, options.init)
    training.check_output(network, data.info)
    weights = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    sidecar = Sidecar(arch=arch, data=data.info, cost=cost(network, torch.zeros(1, *data.info.shape)))
    initial, method = Checkpoint(weights=weights, sidecar=sidecar), Method()
    if options.method:
        method, options = gradual.chosen(options, measured(initial), data)
    sidecar.training, sidecar.optimizer = training.begin(options, [name for name, _ in network.named_parameters()])
    sidecar.training.method = method
    if options.init:  # in the history, files are known by their content
        with Path(options.init).open("rb") as file:
            options = replace(options, init=hashlib.file_digest(file, "sha256").hexdigest())
    return carry_out("train", initial, data, options, say)


def new_network(arch: Arch, seed: int, trust: tuple[str, ...]) -> nn.Module:
    """`arch` with new random weights, a pure function of `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        return models.build(arch.name, arch.args, trust)


def _open(options: TrainOptions, shape: tuple[int, int, int] | None) -> Dataset:
    """The data with images of the network's shape, or of their own where it is a user's, and of `--image-size`."""
    if options.image_size:
        shape = (shape or training.open_data(None, options, None).info.shape)[0], options.image_size, options.image_size
    return training.open_data(None, options, shape)


def _with_classes(arguments: dict[str, Any], classes: int | None) -> dict[str, Any]:
    """The arguments with the data's number of classes, unless the network takes no such argument (`classes` None)."""
    if classes is None:
        return arguments
    given = arguments.get("num_classes", classes)
    if isinstance(given, int) and given < classes:
        raise UsageError(f"--arch-arg num_classes={given}: the data has {classes} classes", "leave num_classes out")
    return {**arguments, "num_classes": given}


def _load(network: nn.Module, path: str | None) -> None:
    if path is None:
        return
    weights = checkpoints.read_weights(path)
    expected = network.state_dict()
    for name in [*expected, *weights]:
        if name not in weights or name not in expected:
            where = path if name not in weights else "the network"
            raise DamagedError(
                f"--init {path}: no tensor {name!r} in {where}", "give weights of the same --arch and --arch-arg"
            )
        if weights[name].shape != expected[name].shape:
            raise DamagedError(
                f"--init {path}: {name} has shape {list(weights[name].shape)}, "
                f"the network's {list(expected[name].shape)}",
                "give weights of the same --arch, --arch-arg and number of classes",
            )
    network.load_state_dict(weights)
