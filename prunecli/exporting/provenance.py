"""Where an ONNX file comes from, as the strings of its `metadata_props`; and what its user must know to feed it."""

from __future__ import annotations

import json
from typing import Any

import prunecli
from prunecli.measure import totals
from prunecli.sidecar import Sidecar


def provenance(sidecar: Sidecar, sha256: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Version, weights, architecture, size, steps, and how pixels become inputs. Nothing that names a folder."""
    sums = totals(sidecar.cost, shapes, sidecar.masks)
    facts: dict[str, Any] = {
        "version": prunecli.__version__,
        "weights_sha256": sha256,
        "arch": {"name": sidecar.arch.name, **sidecar.arch.args},
        "task": sidecar.task,
        "params": sums.params,
        "nonzero_params": sums.nonzero_params,
        "macs": sums.macs,
        "history": [{"command": step.command, **_told(step.options)} for step in sidecar.history],
    }
    if sidecar.data:
        facts["data"] = sidecar.data.name
        facts["input"] = {"shape": sidecar.data.shape, "mean": sidecar.data.mean, "std": sidecar.data.std}
        facts["normalisation"] = "(pixel / 255 - mean) / std"
        if sidecar.data.class_names:
            facts["class_names"] = sidecar.data.class_names
    return {f"prunecli.{key}": value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def _told(options: dict[str, Any]) -> dict[str, Any]:
    """The options that say what was done: those that were given, without files and folders."""
    told = {key: _told(value) if isinstance(value, dict) else value for key, value in options.items()}
    return {
        key: value
        for key, value in told.items()
        if not (key == "dir" or value is None or value is False or value in ("", {}))
        and not (isinstance(value, list) or _is_file(value))
    }


def _is_file(value: object) -> bool:
    return isinstance(value, str) and any(sign in value for sign in ("/", "\\", ".safetensors"))
