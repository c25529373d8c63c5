"""Settings that several methods share; a method adds its own as fields with a range and a description."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

Share = Annotated[float, Meta(ge=0, lt=1)]
Positive = Annotated[float, Meta(gt=0)]


class Layers(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which layers a method works on, as shell patterns of their names."""

    only: list[str] = field(default_factory=list)
    skip: list[str] = field(default_factory=list)


class Target(Layers, frozen=True, kw_only=True):
    """The share to remove, of every layer or of those that a table names."""

    sparsity: Share | None = None
    ratios: dict[str, Share] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.sparsity is None) != bool(self.ratios):
            raise ValueError("give the share to remove: either --sparsity or --ratios")
