"""Values with a notation of their own on the command line: amounts, key=value pairs, lists of numbers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from prunecli.errors import UsageError

SUFFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True)
class Amount:
    """`20M` (absolute) or `50%` (relative, value 0.5)."""

    value: float
    relative: bool

    def of(self, whole: float) -> float:
        """The absolute amount, given what 100 % is."""
        return self.value * whole if self.relative else self.value


def parse_amount(text: str, flag: str) -> Amount:
    """Read `50%`, `20M`, `1.5k` or `300`. Raises `UsageError` naming `flag`."""
    number, suffix = text.strip(), ""
    if number and (number[-1] in "%kKMG"):
        number, suffix = number[:-1], number[-1]
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise UsageError(f"{flag} {text!r}: not an amount", "write a number such as 50%, 20M, 1.5k or 300")
    return Amount(value / 100, True) if suffix == "%" else Amount(value * SUFFIX[suffix], False)


def parse_pairs(pairs: tuple[str, ...], flag: str) -> dict[str, Any]:
    """Read `key=value` pairs; values are JSON where they parse as JSON, else strings. Raises `UsageError`."""
    result = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{flag} {pair!r}: not key=value", f"write {flag} width=32")
        try:
            result[key] = json.loads(text)
        except ValueError:
            result[key] = text
    return result


def parse_numbers(text: str, flag: str) -> list[float]:
    """Read `80,120` or `0.5,0.75`. Raises `UsageError`."""
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = [math.nan]
    if not all(math.isfinite(n) and n >= 0 for n in numbers):
        raise UsageError(f"{flag} {text!r}: not a list of numbers", f"write {flag} 80,120")
    return numbers
