"""How an option field is declared and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from prunecli.errors import UsageError, nearest


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    metavar: str | None = None,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A dataclass field that becomes `--name`. `flag` replaces or adds spellings ("-o/--output"); a tuple repeats.

    `parse` makes the field's value of what is written on the command line or, as text, in a config file.
    """
    return dataclasses.field(default=default, metadata={"help": help, "flag": flag, "metavar": metavar, "parse": parse})


def argument(help: str, *, metavar: str | None = None, many: bool = False) -> Any:
    """A dataclass field that becomes a positional argument (`many`: any number of them, as a tuple)."""
    default = () if many else dataclasses.MISSING
    return dataclasses.field(
        default=default, metadata={"help": help, "argument": True, "metavar": metavar, "many": many}
    )


def check(holds: bool, flag: str, value: object, expected: str) -> None:
    """Raise `UsageError` naming `flag` and its value unless `holds`."""
    if not holds:
        raise UsageError(f"{flag} {value}: out of range", f"give {expected}")


def check_output(output: str, example: str) -> None:
    """Raise `UsageError` unless `output` is given and names a checkpoint."""
    if not output:
        raise UsageError("--output is missing", f"say what to write: -o {example}")
    if not output.endswith(".safetensors"):
        raise UsageError(
            f"--output {output!r}: not the name of a checkpoint", f"give a name that ends in .safetensors: -o {example}"
        )


def choice(value: str | None, flag: str, choices: Iterable[str]) -> None:
    """Raise `UsageError` with the nearest valid choices unless `value` is one of them (or None)."""
    if value is not None and value not in (listed := list(choices)):
        raise UsageError(f"{flag}: unknown value {value!r}", nearest(value, listed))
