"""The part of a sidecar that says what was cut off the dense network, and the types that all of it is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct, field

Count = Annotated[int, Meta(ge=0, le=2**53)]
Name = Annotated[str, Meta(min_length=1, max_length=1024)]
Shape = Annotated[list[Annotated[int, Meta(ge=0, le=2**40)]], Meta(max_length=16)]


def elements(shape: Sequence[int]) -> int:
    """How many elements a tensor of `shape` has. Raises `ValueError` for a shape that no tensor can have.

    An empty tensor's other lengths count too: torch multiplies them all.
    """
    if math.prod(max(length, 1) for length in shape) >= 2**63:
        raise ValueError(f"no tensor has the shape {list(shape)}")
    return math.prod(shape)


class Strict(Struct, forbid_unknown_fields=True):
    """Base of every part: an unknown field is an error, not noise."""


class IndexSet(Strict, kw_only=True):
    """Which slices of the dense network an axis still has.

    of: Length of the axis in the dense network.
    kept: Indices of the slices that are left, ascending.
    """

    of: Annotated[int, Meta(ge=1, le=2**31)]
    kept: Annotated[list[Count], Meta(min_length=1)]

    def __post_init__(self) -> None:
        if self.kept != sorted({*self.kept}) or self.kept[-1] >= self.of:
            raise ValueError(f"kept indices must be ascending and below {self.of}")


class Gone(Strict, kw_only=True):
    """A parameter that is not there any more.

    shape: Its shape in the dense network.
    positions: Its MACs were its elements times this number.
    """

    shape: Shape
    positions: Count = 0

    def __post_init__(self) -> None:
        elements(self.shape)
        if self.positions and len(self.shape) < 2:
            raise ValueError("positions of a parameter that is no weight of a layer")


class Surgery(Strict, kw_only=True):
    """What was cut off the dense network.

    index: Sets of kept slices; several axes share a set.
    axes: For each tensor that lost slices: axis number to number of the set in `index`.
    attributes: For each module whose attributes changed (`groups`, `num_heads`, ...): attribute to new value.
    absent: For each module that was taken away as a whole, as in a residual branch: its parameters by name.
    """

    index: list[IndexSet] = field(default_factory=list)
    axes: dict[Name, dict[Annotated[str, Meta(pattern=r"^[0-9]$")], Count]] = field(default_factory=dict)
    attributes: dict[str, dict[Name, int | list[int]]] = field(default_factory=dict)
    absent: dict[Name, dict[Name, Gone]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, axes in self.axes.items():
            for axis, number in axes.items():
                if number >= len(self.index):
                    raise ValueError(f"axis {axis} of {name} names index set {number} of {len(self.index)}")
        for name in (*self.axes, *self.attributes, *(name.rpartition(".")[0] for name in self.absent)):
            if module := self.without(name):
                raise ValueError(f"{name} is part of {module}, which is absent")

    def without(self, name: str) -> str | None:
        """The absent module that the module or tensor of this name is, or was part of."""
        parts = name.split(".") if self.absent else []
        return next((m for i in range(1, len(parts) + 1) if (m := ".".join(parts[:i])) in self.absent), None)

    @property
    def gone(self) -> dict[str, Gone]:
        """Parameters of absent modules by their names in the dense network."""
        return {f"{module}.{name}": gone for module, lost in self.absent.items() for name, gone in lost.items()}
