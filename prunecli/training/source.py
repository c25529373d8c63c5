"""The data that a command trains and scores on: the source that `--data` names, or the one the checkpoint records."""

from __future__ import annotations

from prunecli import data
from prunecli.data import Dataset
from prunecli.errors import UsageError
from prunecli.options import Recipe, parse_pairs
from prunecli.sidecar import Data


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
