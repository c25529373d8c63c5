"""Options of the methods that prune while they train, the same in `train` and `prune`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from prunecli.allocate.patterns import parse_ratios, parse_share
from prunecli.errors import UsageError
from prunecli.options.fields import option
from prunecli.options.values import Amount, parse_amount, parse_pairs

BUDGETS = ("max_macs", "max_params")
SHARED = ("sparsity", "ratios", *BUDGETS, "only", "skip")


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """What to remove, how much of it, and where."""

    sparsity: float | None = option(
        None,
        "Share to remove, 0.5 or 50%, of each layer or of all together, as the method (one-shot: --scope) has it.",
        metavar="SHARE",
        parse=partial(parse_share, flag="--sparsity "),
    )
    ratios: str | None = option(
        None, "Share to remove by layer: 'layer1.*=0.6,layer2.*=0.3', or a .toml or .json table.", metavar="TABLE"
    )
    max_macs: str | None = option(
        None, "Largest network within this many MACs: 50% of the input's, or 20M.", metavar="AMOUNT"
    )
    max_params: str | None = option(
        None, "Largest network within this many parameters (masks: non-zero ones): 50% or 1.5M.", metavar="AMOUNT"
    )
    only: tuple[str, ...] = option((), "Prune only layers of this name pattern. Repeatable.", metavar="PATTERN")
    skip: tuple[str, ...] = option(
        (), "Leave what layers of this name pattern write alone: --skip 'layer4.*'. Repeatable.", metavar="PATTERN"
    )
    method_arg: tuple[str, ...] = option(
        (), "Setting of a method that prunes while it trains; help lists them. Repeatable.", metavar="KEY=VALUE"
    )

    def given(self, macs: float, params: float) -> dict[str, Any]:
        """The shared options that were given; budgets as the share that is left of `macs` and `params`.

        Raises `UsageError` for a budget larger than the network.
        """
        given: dict[str, Any] = {name: value for name in SHARED if (value := getattr(self, name)) not in (None, ())}
        if self.ratios is not None:
            given["ratios"] = parse_ratios(self.ratios)
        for name, whole in zip(BUDGETS, (macs, params), strict=True):
            if name in given:
                flag = "--" + name.replace("_", "-")
                given[name] = amount = _share(parse_amount(given[name], flag), whole)
                if not 0 < amount <= 1:
                    raise UsageError(f"{flag} {getattr(self, name)}: not within the network's {whole:,.0f}", "ask less")
        return given

    @property
    def arguments(self) -> dict[str, Any]:
        """`--method-arg` by name."""
        return parse_pairs(self.method_arg, "--method-arg")


def _share(amount: Amount, whole: float) -> float:
    return amount.of(whole) / whole
