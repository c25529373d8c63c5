"""Arguments of a data source (`--data-arg KEY=VALUE`), checked: values are those of JSON, or text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from prunecli.errors import UsageError, nearest

COMMON = ("mean", "std", "pad", "flip")  # what every built-in source takes: normalisation and augmentation


def check_keys(name: str, args: dict[str, Any], known: Iterable[str]) -> None:
    """Raises `UsageError` for an argument that the source does not have."""
    known = list(known)
    for key in args:
        if key not in known:
            raise UsageError(f"data source {name} has no argument {key!r}", nearest(key, known))


def whole(args: dict[str, Any], key: str, default: int, low: int = 0, high: int = 2**16) -> int:
    """A whole number from `low` to `high`."""
    value = args.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise _wrong(key, value, f"a whole number from {low} to {high}")


def flag(args: dict[str, Any], key: str, default: bool) -> bool:
    """True or false."""
    value = args.get(key, default)
    if isinstance(value, bool):
        return value
    raise _wrong(key, value, "true or false")


def choice(args: dict[str, Any], key: str, choices: tuple[str, ...]) -> str:
    """One of `choices`, the first by default."""
    value = args.get(key, choices[0])
    if value in choices:
        return str(value)
    raise _wrong(key, value, "one of " + ", ".join(choices))


def per_channel(args: dict[str, Any], key: str, channels: int, low: float = -math.inf) -> list[float] | None:
    """A number above `low` for each channel, from a number for all, a list, or `0.5,0.4,0.3`; None when not given."""
    value = args.get(key)
    if value is None:
        return None
    items = value if isinstance(value, list) else str(value).split(",")
    try:
        numbers = [float(item) for item in items]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (1, channels) or not all(math.isfinite(n) and n > low for n in numbers):
        bound = "" if low == -math.inf else f" above {low:g}"
        raise _wrong(key, value, f"one number{bound}, or {channels} of them: 0.5,0.5,0.5")
    return numbers if len(numbers) == channels else numbers * channels


def _wrong(key: str, value: object, valid: str) -> UsageError:
    return UsageError(f"data argument {key}={value}: not {valid}", f"give {key} as {valid}")
