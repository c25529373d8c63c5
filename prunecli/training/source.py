"""The data that a command trains and scores on: what `--data` names or the checkpoint records, and whether it fits."""

from __future__ import annotations

import torch
from torch import nn

from prunecli import data
from prunecli.data import Dataset
from prunecli.errors import DamagedError, UsageError
from prunecli.options import Recipe, parse_pairs
from prunecli.sidecar import Data, Sidecar
from prunecli.tasks.classification import heads


def image_size(sidecar: Sidecar) -> tuple[int, int, int]:
    """(channels, height, width) of a checkpoint's inputs. Raises `DamagedError` when they are no images."""
    match sidecar.cost.input:
        case [channels, height, width]:
            return channels, height, width
    raise DamagedError(
        f"checkpoint: inputs of shape {sidecar.cost.input} are no images", "its sidecar was written for another task"
    )


def check_output(network: nn.Module, info: Data, device: torch.device | str = "cpu") -> None:
    """Run the network once, so that data that does not fit it is an error of the options and not of the first step.

    Raises `UsageError`. Leaves the network in eval mode.
    """
    try:
        with torch.no_grad():
            logits = heads(network.eval()(torch.zeros(2, *info.shape, device=device)))[0]
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"the network fails on images of shape {info.shape}: {error}", "try another --image-size or --arch"
        ) from error
    if logits.dim() != 2 or logits.shape[1] < info.classes:
        raise UsageError(
            f"the network's output is of shape {list(logits.shape)} for 2 images of {info.classes} classes",
            "it must be [images, classes]: choose another --arch, or data of as many classes",
        )


def open_data(recorded: Data | None, options: Recipe, image_size: tuple[int, int, int] | None) -> Dataset:
    """Open the source that the options name, else the recorded one; `image_size` is (channels, height, width).

    Raises `UsageError` when there is neither.
    """
    if options.data:
        name, directory = data.parse(options.data)
        arguments = parse_pairs(options.data_arg, "--data-arg")
    elif recorded:
        name, directory = recorded.name, recorded.dir
        arguments = recorded.args | parse_pairs(options.data_arg, "--data-arg")
    else:
        raise UsageError("no data: the checkpoint records none", "name a source: --data digits, --data mnist:DIR")
    share = options.val if options.val is not None else recorded.val if recorded else 0.0
    # always the same seed: the held-out examples must not change along a pipeline, or between the runs it compares
    opened = data.open(name, directory, arguments, image_size=image_size, val=share, seed=0, trust=options.trust)
    opened.info.val = share
    return opened
