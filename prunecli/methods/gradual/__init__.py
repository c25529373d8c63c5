"""The methods that prune while they train: a file a method, one table that lists them. Imports no torch.

A method's file exports `Settings`, which `--method-arg` fills, and `Method`, a hook of the training loop made of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from prunecli import sidecar
from prunecli.errors import DamagedError, UsageError, nearest

if TYPE_CHECKING:
    from prunecli.training import Hook


class Row(NamedTuple):
    """A method: its file, what is said of it, the shared options that it takes.

    `recipe` has, by option, what it trains with where no option says; `files` are the settings that name files.
    """

    module: str
    summary: str
    takes: tuple[str, ...]
    recipe: Mapping[str, Any] = MappingProxyType({})
    files: tuple[str, ...] = ()


REQUIRED = object()  # unlike any value

GREG = MappingProxyType({"lr": 1e-3, "schedule": "constant", "batch_size": 256})

GRADUAL = {
    "pgp": Row(
        "pgp", "progressive gradient pruning (Nguyen-Meidine et al. 2019)", ("sparsity", "ratios", "only", "skip")
    ),
    "psfp": Row("psfp", "progressive soft filter pruning (He et al. 2018)", ("sparsity", "ratios", "only", "skip")),
    "rpgp": Row(
        "rpgp",
        "progressive gradient pruning by the gradients of training itself (Nguyen-Meidine et al. 2019)",
        ("sparsity", "ratios", "only", "skip"),
    ),
    "sfp": Row("sfp", "soft filter pruning (He et al. 2018)", ("sparsity", "ratios", "only", "skip")),
    "greg1": Row(
        "greg1",
        "growing regularisation of filters chosen beforehand, GReg-1 (Wang et al. 2021)",
        ("sparsity", "ratios", "only", "skip"),
        GREG,
        files=("indices",),
    ),
    "greg2": Row(
        "greg2",
        "growing regularisation that picks filters itself, GReg-2 (Wang et al. 2021)",
        ("sparsity", "ratios", "only", "skip"),
        GREG,
    ),
    "sss": Row(
        "sss",
        "sparse structure selection of channels, groups or residual blocks (Huang and Wang 2018)",
        ("only", "skip"),
    ),
    "swd": Row(
        "swd",
        "selective weight decay (Tessier et al. 2022)",
        ("sparsity", "only", "skip"),
    ),
    "swd-structured": Row(
        "swd_structured",
        "selective weight decay of channels, by batch-norm scale (Tessier et al. 2022)",
        ("sparsity", "only", "skip"),
    ),
    "slimming": Row(
        "slimming",
        "batch-norm scales under a penalty, the smallest cut at the end (Liu et al. 2017)",
        ("sparsity", "only", "skip"),
    ),
    "adaptive-sparsity": Row(
        "adaptive",
        "learned bounds below which weights are zero (Retsinas et al. 2020)",
        ("sparsity", "ratios", "max_params", "max_macs", "only", "skip"),
    ),
}


def resolve(name: str, given: dict[str, Any], arguments: dict[str, Any]) -> sidecar.Method:
    """The method with its settings: the shared options that were `given`, and `--method-arg` `arguments`.

    Raises `UsageError` for what the method does not take, and for values out of range.
    """
    row, kind = GRADUAL[name], _load(name).Settings
    for key in given:
        if key not in row.takes:
            flag = "--" + key.replace("_", "-")
            takes = ", ".join("--" + option.replace("_", "-") for option in row.takes)
            raise UsageError(f"{flag} means nothing with --method {name}", f"it takes {takes} and --method-arg")
    own = {*kind.__struct_encode_fields__} - {*row.takes}
    for key in arguments:
        if key not in own:
            raise UsageError(f"--method-arg {key}: --method {name} has no such setting", nearest(key, own))
    try:
        settings = msgspec.convert(given | arguments, kind)
    except msgspec.ValidationError as error:
        raise _wrong_setting(name, kind, arguments, str(error)) from error
    return sidecar.Method(name=name, settings=msgspec.to_builtins(settings))


def hook(method: sidecar.Method) -> Hook | None:
    """The method at work, or None where none is. Raises `DamagedError` for one that the sidecar does not describe."""
    if method.name is None:
        return None
    hint = "the sidecar was changed by hand, or written by another version of prunecli"
    if method.name not in GRADUAL:
        raise DamagedError(f"training: no method is called {method.name!r}", hint)
    module = _load(method.name)
    try:
        return module.Method(msgspec.convert(method.settings, module.Settings))  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        raise DamagedError(f"training: settings of --method {method.name}: {error}", hint) from error


def changed(method: sidecar.Method) -> list[str]:
    """The settings that are not at their default."""
    assert method.name is not None  # the caller sees to it
    properties = _properties(_load(method.name).Settings)
    return [key for key, value in method.settings.items() if properties[key].get("default", REQUIRED) != value]


@dataclass(frozen=True)
class Setting:
    """A setting that `--method-arg` sets: which values it takes, in words, and what it means."""

    name: str
    default: Any
    values: str
    meaning: str


def settings_of(name: str) -> tuple[Setting, ...]:
    """What `--method-arg` sets."""
    properties = _properties(_load(name).Settings).items()
    return tuple(
        Setting(key, value.get("default"), _range(value), value["description"])
        for key, value in properties
        if key not in GRADUAL[name].takes
    )


def _range(schema: Mapping[str, Any]) -> str:
    """The values that a JSON Schema allows: `above 0`, `0 to below 1`, `l1, smooth`."""
    if names := schema.get("enum"):
        return ", ".join(sorted(names, key=lambda name: name != schema.get("default")))
    low, high = (
        schema.get("minimum", schema.get("exclusiveMinimum")),
        schema.get("maximum", schema.get("exclusiveMaximum")),
    )
    if low is None:
        return {"boolean": "true, false", "string": "text"}[schema["type"]]
    whole = "whole, " * (schema["type"] == "integer")
    if high is None:
        return f"{whole}above {low}" if "exclusiveMinimum" in schema else f"{whole}{low} and more"
    return f"{whole}{low} to {'below ' * ('exclusiveMaximum' in schema)}{high}"


def _wrong_setting(name: str, kind: type[Any], arguments: Mapping[str, Any], problem: str) -> UsageError:
    """The error about a value that the settings do not take, or about one that they lack."""
    reason, _, where = problem.partition(" - at `$.")
    key = where.rstrip("`").partition("[")[0]
    if reason.startswith(lacks := "Object missing required field `"):
        missing = reason.removeprefix(lacks).rstrip("`")
        flag = "--" + missing if missing in GRADUAL[name].takes else f"--method-arg {missing}=..."
        return UsageError(f"--method {name}: {flag} is missing", f"add it: {flag}" + " 0.5" * (missing == "sparsity"))
    told = _properties(kind).get(key, {}).get("description")
    flag = f"--method-arg {key}={arguments[key]}: " if key in arguments else f"--{key.replace('_', '-')}: " * bool(key)
    return UsageError(
        f"--method {name}: {flag}{reason}",
        f"{key}: {told}" if told else "--method-arg help lists what it takes",
    )


def _properties(kind: type[Any]) -> dict[str, Any]:
    definition: dict[str, dict[str, Any]] = next(iter(msgspec.json.schema(kind)["$defs"].values()))["properties"]
    return {key: {**value.get("anyOf", [{}])[0], **value} for key, value in definition.items()}  # of `X | None`, X


def _load(name: str) -> Any:
    return import_module(f"prunecli.methods.gradual.{GRADUAL[name].module}")
