"""Which layers the user means: shell patterns on layer names, and tables of shares by pattern. Imports no torch."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from prunecli.errors import TargetError, UsageError, nearest


def split(text: str) -> list[str]:
    """`layer1.*,fc` as a list of patterns."""
    return [part.strip() for part in text.split(",") if part.strip()]


def matching(patterns: Iterable[str], layers: Iterable[str]) -> list[str]:
    """The layers that some pattern names, in the layers' order."""
    patterns = list(patterns)
    return [layer for layer in layers if any(fnmatchcase(layer, p) for p in patterns)]


def require_matches(patterns: Iterable[str], layers: Collection[str], flag: str) -> None:
    """Raise `UsageError` with the nearest layer names if a pattern names no layer."""
    for pattern in patterns:
        if not matching([pattern], layers):
            parts = [layer.split(".") for layer in layers]
            known = {".".join(names[:end]) for names in parts for end in range(1, len(names) + 1)}
            hint = nearest(pattern.rstrip(".*"), known if len(layers) > 8 else layers)
            raise UsageError(f"{flag} {pattern}: no layer of this network has such a name", hint)


def parse_ratios(text: str) -> dict[str, float]:
    """A table of shares to remove by pattern: `layer1.*=0.6,layer2.*=0.3`, or a .toml or .json file of one.

    Raises what `parse_share` raises, and `UsageError` for what is no table.
    """
    if text.endswith((".toml", ".json")):
        table = _read(Path(text))
    else:
        table = {}
        for entry in split(text):
            pattern, equals, share = entry.rpartition("=")
            if not equals or not pattern:
                raise UsageError(f"--ratios {entry!r}: not pattern=share", "write --ratios 'layer1.*=0.6,layer2.*=0.3'")
            table[pattern.strip()] = share
    ratios = {pattern: parse_share(share, f"--ratios {pattern}=") for pattern, share in table.items()}
    if not ratios:
        raise UsageError(f"--ratios {text!r}: an empty table", "write --ratios 'layer1.*=0.6,layer2.*=0.3'")
    return ratios


def parse_share(value: object, flag: str) -> float:
    """A share to remove: 0.5, "0.5" or "50%".

    Raises `UsageError` for what is no share, and `TargetError` for the share that leaves nothing.
    """
    text = str(value).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise UsageError(f"{flag}{value}: not a number", "give the share to remove, such as 0.5 or 50%") from None
    if share == 1:
        raise TargetError(f"{flag}{text}: nothing would be left", "give a share below 1, such as 0.5 or 50%")
    if not 0 <= share < 1:
        percent = f"{share:g}% is {share / 100:g}; " if 1 < share < 100 and not text.endswith("%") else ""
        raise UsageError(f"{flag}{text}: not a share", f"{percent}give one from 0 to below 1, such as 0.5 or 50%")
    return share


def share_of(producers: Sequence[str], ratios: dict[str, float]) -> float | None:
    """The share that the table gives to a group, None where it does not give all `producers` the same one.

    The first pattern that names a layer decides.
    """
    shares = {next((s for p, s in ratios.items() if fnmatchcase(layer, p)), None) for layer in producers}
    return shares.pop() if len(shares) == 1 else None


def _read(file: Path) -> dict[str, Any]:
    try:
        raw = file.read_text(encoding="utf-8")
        table = tomllib.loads(raw) if file.suffix == ".toml" else json.loads(raw)
    except OSError as error:
        raise UsageError(f"--ratios {file}: {error.strerror}", "name a file that exists") from None
    except ValueError as error:
        raise UsageError(f"--ratios {file}: {error}", 'write a table such as "layer1.*" = 0.6') from None
    if not isinstance(table, dict):
        raise UsageError(f"--ratios {file}: not a table", 'write a table such as "layer1.*" = 0.6')
    return table
