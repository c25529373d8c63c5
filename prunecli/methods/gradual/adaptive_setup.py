"""What adaptive sparsity is asked to do: its settings, and the layers, limits and sparsity loss that follow."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from prunecli.allocate.patterns import require_matches, share_of
from prunecli.errors import TargetError
from prunecli.methods.gradual.bounds import Term, bound_at
from prunecli.methods.gradual.layers import weights
from prunecli.methods.gradual.settings import Positive, Target
from prunecli.methods.outcome import listed
from prunecli.progress import Say
from prunecli.surgery.structure import layer_of
from prunecli.training import Run


class Settings(Target, frozen=True, kw_only=True):
    """The share to remove is of the weights in scope; a budget counts all parameters or MACs of the network."""

    max_params: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_macs: Annotated[float, Meta(gt=0, le=1)] | None = None
    mode: Annotated[
        Literal["adaptive", "ga", "bs"],
        Meta(description="way to the bounds: learned, or fixed by Gaussian or binary search"),
    ] = "adaptive"
    average: Annotated[
        Literal["wavg", "avg", "macs"],
        Meta(description="weight of a layer in the density: its parameters, 1, or its MACs"),
    ] = "wavg"
    density: Annotated[
        Literal["counted", "gaussian"],
        Meta(description="share of a layer that budgets count: as it is, or erf(b / sqrt 2)"),
    ] = "counted"
    strength: Annotated[Positive, Meta(description="factor lambda of the sparsity loss")] = 10.0
    strength_macs: Annotated[Positive, Meta(description="factor lambda of the loss of --max-macs")] | None = None
    one_sided: Annotated[
        bool, Meta(description="choice of max(D - B, 0) as the loss of a budget, which does not pull back")
    ] = False
    limits: Annotated[
        str, Meta(description="table of least and largest shares, of Gaussian weights: conv*=0.2..0.6,fc=..0.9")
    ] = ""
    ste: Annotated[bool, Meta(description="straight-through estimator: removed weights get gradients")] = True
    centre: Annotated[
        bool | None, Meta(description="shift of each layer to mean zero in every step (default: of a new network)")
    ] = None
    classifier: Annotated[bool, Meta(description="choice whether the last layer is sparsified too")] = True
    min_weights: Annotated[int, Meta(ge=1, description="size below which a layer stays dense")] = 1000
    bound_rate: Annotated[Positive, Meta(description="learning rate of bounds, as a factor of the run's")] = 0.01

    def __post_init__(self) -> None:
        parse_limits(self.limits)
        budgets = [f for f, v in (("--max-params", self.max_params), ("--max-macs", self.max_macs)) if v is not None]
        if self.sparsity is not None and self.ratios:
            raise ValueError("--sparsity and --ratios both say what goes: give one")
        if self.mode == "adaptive":
            if self.ratios:
                raise ValueError("--ratios fixes shares: add --method-arg mode=bs, or give limits")
            if self.sparsity is not None and self.max_params is not None:
                raise ValueError("--sparsity and --max-params both say how many weights go: give one")
        elif self.sparsity is None and not self.ratios:
            raise ValueError(f"mode={self.mode} fixes shares: add --sparsity or --ratios")
        elif budgets or self.limits:
            raise ValueError(f"{[*budgets, 'limits'][0]} needs learned bounds: drop mode={self.mode}")


def parse_limits(text: str) -> dict[str, tuple[float, float]]:
    """Least and largest share to remove, by pattern of layers, of `conv*=0.2..0.6,fc=..0.9`. Raises `ValueError`."""
    limits = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        pattern, _, span = entry.rpartition("=")
        low, dots, high = span.partition("..")
        try:
            least, most = float(low or 0), float(high or 1)
        except ValueError:
            dots, least, most = "", 0.0, 0.0
        if not pattern or not dots or not 0 <= least <= most <= 1:
            raise ValueError(f"limits {entry!r} is not pattern=low..high with shares from 0 to 1")
        limits[pattern] = (least, most)
    return limits


def in_scope(run: Run, settings: Settings, say: Say) -> dict[str, nn.Parameter]:
    """The weights that get a bound. Raises `UsageError` and `TargetError` as `layers.weights` does."""
    able = weights(run, settings, say)
    require_matches(settings.ratios, [layer_of(name) for name in able], "--ratios")
    last = [name for name in run.cost.positions if name in dict(run.network.named_parameters())][-1]
    chosen = {
        name: weight
        for name, weight in able.items()
        if weight.numel() >= settings.min_weights
        and (settings.classifier or name != last)
        and (not settings.ratios or share_of([layer_of(name)], settings.ratios) is not None)
    }
    if not chosen:
        raise TargetError(
            f"nothing to prune: no layer has {settings.min_weights} weights", "lower it: --method-arg min_weights=1"
        )
    if dense := [layer_of(name) for name in able if name not in chosen]:
        say(f"layers that stay dense: {listed(dense)}")
    return chosen


def terms(run: Run, settings: Settings, sizes: dict[str, int], shares: list[float]) -> list[Term]:
    """The sparsity loss for layers of so many weights; in the fixed modes, what is asked by `shares` of layers.

    Raises `TargetError` for a budget below what stays dense.
    """
    if settings.mode != "adaptive":
        part = _shares(sizes.values(), sum(sizes.values()), run)
        return [Term(part, settings.strength, budget=1 - float(part @ torch.tensor(shares).to(part)))]
    macs = {name: size * run.cost.positions[name] for name, size in sizes.items()}
    parameters, left = dict(run.network.named_parameters()), run.sums()
    every = sum(p.numel() for p in parameters.values())
    every_mac = run.cost.other_macs + sum(p.numel() * run.cost.positions.get(n, 0) for n, p in parameters.items())
    made = []
    for flag, budget, strength, costs, rest, whole in (
        ("params", settings.max_params, settings.strength, sizes, left["params"], every),
        ("macs", settings.max_macs, settings.strength_macs or settings.strength, macs, left["macs"], every_mac),
    ):
        dense = (rest - sum(costs.values())) / whole
        if budget is None:
            continue
        if budget <= dense:
            raise TargetError(
                f"--max-{flag} of {budget:.1%}: what stays dense is {dense:.1%} of the network",
                "ask for more, or let more layers have a bound: --method-arg min_weights=1",
            )
        made.append(Term(_shares(costs.values(), whole, run), strength, dense, budget, settings.one_sided))
    if settings.sparsity is not None or not made:
        costs = {"wavg": sizes, "avg": dict.fromkeys(sizes, 1), "macs": macs}[settings.average]
        asked = None if settings.sparsity is None else 1 - settings.sparsity
        part = _shares(costs.values(), sum(costs.values()), run)
        made.append(Term(part, settings.strength, budget=asked, one_sided=settings.one_sided))
    return made


def limits(settings: Settings, layers: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """The least and the largest bound of each layer. Raises `UsageError` for a pattern that names no layer."""
    table = parse_limits(settings.limits)
    require_matches(table, layers, "--method-arg limits:")
    spans = [next((s for p, s in table.items() if fnmatchcase(layer, p)), (0.0, 1.0)) for layer in layers]
    low, high = (torch.tensor([bound_at(span[i]) for span in spans], device=device) for i in (0, 1))
    return low, high


def _shares(costs: Iterable[float], whole: float, run: Run) -> Tensor:
    return torch.tensor([cost / whole for cost in costs], device=run.device)
