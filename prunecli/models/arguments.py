"""What constructors of networks accept: argument types with ranges, and the check of user-given arguments.

Arguments come from the command line or from a sidecar, which is untrusted. The ranges hold every network of practical
size and keep the largest product below what a machine could be tricked into allocating.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from prunecli.errors import UsageError

Classes = Annotated[int, Meta(ge=1, le=10**7)]
Channels = Annotated[int, Meta(ge=1, le=4096)]
Width = Annotated[int, Meta(ge=1, le=1024)]
ImageSide = Annotated[int, Meta(ge=1, le=2**15)]
Gamma = Annotated[float, Meta(ge=0, le=100)]


def options(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only arguments of a network's constructor and their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def check(network: str, function: Callable[..., Any], args: dict[str, Any]) -> dict[str, Any]:
    """`args` in the types that the constructor `function` declares.

    Raises UsageError naming the first argument that is unknown, of the wrong type, or out of range.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    defaults = options(function)
    checked = {}
    for name, value in args.items():
        if name not in defaults:
            raise UsageError(f"{network} has no argument {name!r}", f"it takes {', '.join(defaults)}")
        checked[name] = convert(network, name, value, hints[name], defaults[name])
    return checked


def convert(network: str, name: str, value: Any, hint: Any, default: Any) -> Any:
    """One argument's value as its type `hint`. Raises UsageError."""
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        message = f"argument {name!r} of {network} is {value!r}: {error}"
        raise UsageError(message, f"leave {name!r} out for its default, {default!r}") from None
