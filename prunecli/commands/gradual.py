"""The pruning method of a training run, from a command's options."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from prunecli.checkpoint import Checkpoint
from prunecli.data import Dataset
from prunecli.errors import DamagedError, UsageError
from prunecli.methods import gradual
from prunecli.options.prune import PruneOptions
from prunecli.options.train import TrainOptions
from prunecli.progress import Say
from prunecli.sidecar import Method

Options = TypeVar("Options", PruneOptions, TrainOptions)


def chosen(options: Options, sums: Mapping[str, int], data: Dataset) -> tuple[Method, Options]:
    """The method with its settings, and the options with what it trains with where they say nothing.

    `sums` are those of the network before. Raises `UsageError` for settings that the method does not take.
    """
    assert options.method is not None  # the callers see to it
    method = gradual.resolve(options.method, options.given(sums["macs"], sums["params"]), options.arguments)
    recipe = dict(gradual.GRADUAL[options.method].recipe)
    hook = gradual.hook(method)
    batch_size = options.batch_size or recipe.get("batch_size")
    if hook is not None and batch_size and (epochs := hook.epochs(data.train.steps(batch_size))):
        recipe["epochs"] = epochs
    missing = {name: value for name, value in recipe.items() if getattr(options, name) is None}
    return method, replace(options, **missing)


def by_content(method: Method) -> Method:
    """The method as checkpoints and their history have it: files are known by the SHA-256 of their content.

    Raises `UsageError` for one that cannot be read.
    """
    if method.name is None:
        return method
    settings = dict(method.settings)
    for key in gradual.GRADUAL[method.name].files:
        if name := settings[key]:
            try:
                with Path(name).open("rb") as file:
                    settings[key] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise UsageError(f"--method-arg {key}={name}: {error.strerror}", "name a file that exists") from None
    return msgspec.structs.replace(method, settings=settings)


def known(method: Method) -> Method:
    """The method of a sidecar. Raises `DamagedError` for one that names a file: no path in a sidecar is opened."""
    for key in gradual.GRADUAL[method.name].files if method.name else ():
        if (name := method.settings.get(key)) and not re.fullmatch("[0-9a-f]{64}", str(name)):
            hint = "the sidecar was changed by hand; name files on the command line"
            raise DamagedError(f"training: {key} of --method {method.name} is no SHA-256 but {str(name)[:80]!r}", hint)
    return method


def leave(checkpoint: Checkpoint, say: Say) -> None:
    """Take a checkpoint out of the run of a method that it is in the middle of: its weights stay as they are.

    What the method keeps beside them is left out, which is said where it has begun to change.
    """
    training = checkpoint.sidecar.training
    if training is None or training.method.name is None:
        return
    kinds = [kind for kind, tensors in training.method.tensors.items() if tensors]
    if kinds and (training.epoch, training.step) != (0, 0):
        where = f"{checkpoint.path}: saved in the middle of --method {training.method.name}"
        say(f"warning: {where}, whose {', '.join(kinds)} beside the weights are left out")
    checkpoint.sidecar.training = msgspec.structs.replace(training, method=Method())
