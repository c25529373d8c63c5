"""prunecli prunes neural networks by operating on checkpoint files.

The seven commands are functions here too (`train`, `prune`, `finetune`, `rewind`, `scratch`, `export`, `report`): each
takes its options dataclass from `prunecli.options` and returns a result. `load` gives a network ready to run.
Names are imported on first use, so that importing `prunecli` is free.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunecli.commands.export import run as export
    from prunecli.commands.finetune import run as finetune
    from prunecli.commands.prune import run as prune
    from prunecli.commands.report import run as report
    from prunecli.commands.rewind import run as rewind
    from prunecli.commands.scratch import run as scratch
    from prunecli.commands.train import run as train
    from prunecli.loading import load
    from prunecli.options.export import ExportOptions
    from prunecli.options.prune import PruneOptions
    from prunecli.options.report import ReportOptions
    from prunecli.options.rewind import RewindOptions
    from prunecli.options.scratch import ScratchOptions
    from prunecli.options.train import FinetuneOptions, TrainOptions

__all__ = [
    "ExportOptions", "FinetuneOptions", "PruneOptions", "ReportOptions", "RewindOptions", "ScratchOptions",
    "TrainOptions", "export", "finetune", "load", "prune", "report", "rewind", "scratch", "train",
]  # fmt: skip

COMMANDS = ("train", "prune", "finetune", "rewind", "scratch", "export", "report")
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":
        return import_module("prunecli.loading").load
    if name in COMMANDS:
        return import_module(f"prunecli.commands.{name}").run
    if name in __all__:
        stem = name.removesuffix("Options").lower()
        return getattr(import_module("prunecli.options." + ("train" if stem == "finetune" else stem)), name)
    raise AttributeError(f"module 'prunecli' has no attribute {name!r}")
