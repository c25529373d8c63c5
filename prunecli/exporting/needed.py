"""Packages that only exporting needs."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from prunecli.errors import PruneError


def need(name: str) -> ModuleType:
    """Import a package. Raises `PruneError` with the command that installs it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise PruneError(
            f"exporting needs the package {name.split('.')[0]}, which does not load: {error}",
            "pip install onnx onnxscript onnxruntime",
        ) from error
