"""What GReg penalises, filters or single weights, and how those that go are picked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from prunecli.allocate.counts import prune_ceil
from prunecli.allocate.masks import by_rank, lowest
from prunecli.allocate.patterns import require_matches, share_of
from prunecli.data import Order
from prunecli.errors import TargetError
from prunecli.methods.gradual.filters import Filters, filters, rows, spread
from prunecli.methods.gradual.layers import leave, weights
from prunecli.methods.gradual.settings import Target
from prunecli.progress import Say
from prunecli.surgery import Group, Member
from prunecli.surgery.structure import layer_of
from prunecli.training import Run
from prunecli.training.randomness import derived_seed

Pick = Literal["l1", "obd", "random", "max"]


@dataclass(frozen=True)
class Part:
    """Units of which `share` is to go: filters that `members` make, or where there are none the weights themselves.

    Filters are the units of `group`. `norms` are the scales and shifts of the normalisations behind them, with axes.
    """

    key: str
    share: float
    weights: dict[str, nn.Parameter]
    members: Sequence[Member] = ()
    group: Group | None = None
    norms: Sequence[tuple[nn.Parameter, Member]] = ()

    def sums(self, values: Mapping[str, Tensor]) -> Tensor:
        """The sum of `values`, which have the weights' shapes, over each unit: [units]."""
        if not self.members:
            return values[self.key].flatten()
        total = torch.zeros(
            1 + max(int(m.unit.max()) for m in self.members), device=values[self.members[0].tensor].device
        )
        for member in self.members:
            slices = values[member.tensor].movedim(member.axis, 0).flatten(1).sum(1)
            own = (member.unit >= 0).to(slices.device)
            total.index_add_(0, member.unit.to(slices.device)[own], slices[own].to(total.dtype))
        return total

    def pick(self, scores: Tensor, count: int) -> Tensor:
        """True for the `count` lowest of `scores` [units], or as many as leave something of every axis."""
        scores, needed = self.raised(scores)
        return lowest(scores, min(count, len(scores) - needed))

    def raised(self, scores: Tensor) -> tuple[Tensor, int]:
        """`scores` [units] with those above all others that have to stay, and how many these are."""
        if self.group is None:
            return scores, 1
        needed = self.group.needed(scores.tolist())
        return scores.index_fill(0, torch.tensor(needed, device=scores.device), torch.inf), len(needed)

    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of `masks`."""
        if not self.members:
            return {name: weight.shape for name, weight in self.weights.items()}
        return {m.tensor: spread(m.unit, m.axis, self.weights[m.tensor]).shape for m in self.members}

    def masks(self, chosen: Tensor) -> dict[str, Tensor]:
        """True for what units belong to that are `chosen`, bool [units], in shapes that broadcast over the weights."""
        if not self.members:
            (weight,) = self.weights.values()
            return {self.key: torch.empty_like(weight, dtype=torch.bool).copy_(chosen.view(weight.shape))}
        units = chosen.nonzero().flatten()
        return {m.tensor: spread(rows(m, units), m.axis, self.weights[m.tensor]) for m in self.members}

    def behind(self, pruned: Mapping[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
        """Scales and shifts, and where in them [channels] units are of which `pruned`, as `masks`, has all filters."""
        going = {m.tensor: pruned[m.tensor].flatten().cpu() for m in self.members if m.tensor in pruned}
        if not going:
            return []
        left = torch.cat([m.unit[~going[m.tensor]] if m.tensor in going else m.unit for m in self.members])
        return [(norm, (m.unit >= 0) & ~torch.isin(m.unit, left)) for norm, m in self.norms]


def filter_parts(run: Run, settings: Target, say: Say) -> list[Part]:
    """The filters of layers that are named or, where none is, of convolutions by themselves.

    The first convolution, and those whose outputs are added to others (block outputs, shortcuts), are left out then.
    Raises `UsageError` for a pattern that names no layer, `TargetError` when nothing is left.
    """
    parameters = dict(run.network.named_parameters())
    stem = next((name for name in run.cost.positions if name in parameters and parameters[name].ndim > 2), None)
    found = filters(run, settings, say)
    if not settings.only and not settings.ratios:
        found = {key: group for key, group in found.items() if _alone(group, stem)}
    if not found:
        raise TargetError(
            "nothing to prune: no convolution but the first one has filters that are its alone",
            "name layers, block outputs too: --only 'layer1.*'; or prune weights: --method-arg structure=weights",
        )
    able = {key: f for key, f in found.items() if all(parameters[m.tensor].requires_grad for m in f.producers)}
    leave([layer for key, f in found.items() if key not in able for layer in f.group.layers], bool(able), say)
    parts = []
    for key, f in able.items():
        behind = [m for m in f.group.members if m.role == "norm" and m.tensor in parameters]
        norms = [(parameters[m.tensor], m) for m in behind if parameters[m.tensor].requires_grad]
        own = {m.tensor: parameters[m.tensor] for m in f.producers}
        parts.append(Part(key, f.share, own, f.producers, f.group, norms))
    return parts


def _alone(group: Filters, stem: str | None) -> bool:
    """Is this one convolution, all of whose filters can go, and not the stem?"""
    first, *others = group.producers
    return not others and first.tensor != stem and bool((first.unit >= 0).all())


def weight_parts(run: Run, settings: Target, say: Say) -> list[Part]:
    """The weights of every layer that is named or, where none is, of all layers but the first.

    Raises as `filter_parts`.
    """
    found = weights(run, settings, say)
    require_matches(settings.ratios, [layer_of(name) for name in found], "--ratios")
    if not settings.only and not settings.ratios:
        found.pop(next(iter(run.cost.positions)), None)
    shares = {
        name: share_of([layer_of(name)], settings.ratios) if settings.ratios else settings.sparsity for name in found
    }
    parts = [Part(name, share, {name: found[name]}) for name, share in shares.items() if share]
    if not parts:
        raise TargetError("nothing to prune: no weight is left", "drop --skip, or name layers: --only 'fc*'")
    return parts


def pick(run: Run, parts: Sequence[Part], how: Pick, samples: int, say: Say) -> dict[str, Tensor]:
    """What is to go, by weight: ceil(n share) of the n units of each part, never all of an axis; ties go by index.

    l1: those of least mean |w|; max: of largest; random. obd: the lowest diagonal Fisher information times w^2, summed
    over a unit and divided by the part's sum, over all parts together, of which each keeps a unit.
    """
    magnitudes = {name: w.detach().abs() for part in parts for name, w in part.weights.items()}
    ones = {name: torch.ones_like(w) for name, w in magnitudes.items()}
    if how == "obd":
        return merged(parts, _globally(parts, _saliency(run, parts, samples, say), say))
    generator = torch.Generator().manual_seed(derived_seed(run.training.seed, "greg"))
    chosen = {}
    for part in parts:
        scores = part.sums(magnitudes) / part.sums(ones)
        if how == "max":
            scores = -scores
        elif how == "random":
            scores = torch.rand(len(scores), generator=generator).to(scores.device)
        chosen[part.key] = part.pick(scores, len(scores) - prune_ceil(len(scores), part.share))
    return merged(parts, chosen)


def merged(parts: Sequence[Part], chosen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks by weight of the units that are chosen, by part; of a weight that several parts share, of all of them."""
    masks: dict[str, Tensor] = {}
    for part in parts:
        for name, mask in part.masks(chosen[part.key]).items():
            if bool(mask.any()):
                masks[name] = masks[name] | mask if name in masks else mask
    return masks


def _globally(parts: Sequence[Part], saliency: Mapping[str, Tensor], say: Say) -> dict[str, Tensor]:
    scores, least = {}, {}
    for part in parts:
        units = part.sums(saliency)
        units = units / units.sum().clamp(min=torch.finfo(units.dtype).tiny)
        raised, least[part.key] = part.raised(units)
        scores[part.key] = raised if least[part.key] > 1 else units
    total = sum(map(len, scores.values()))
    kept, held = by_rank(scores, {}, total - prune_ceil(total, parts[0].share), least)
    for key in held:
        say(f"warning: {key} keeps {least[key]} of its units: a layer never loses all")
    return {key: ~mask for key, mask in kept.items()}


def _saliency(run: Run, parts: Sequence[Part], samples: int, say: Say) -> dict[str, Tensor]:
    """F w^2 by weight, F the mean over examples of the squared gradient of the loss of one (optimal brain damage)."""
    found = {name: w for part in parts for name, w in part.weights.items()}
    squares = [torch.zeros_like(w) for w in found.values()]
    batches = run.data.train.batches(64, order=Order(run.training.seed, 0), device=str(run.device))
    examples = ((x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(y)))
    run.network.eval()  # a batch norm knows no single example
    for count, (x, y) in enumerate(islice(examples, samples), 1):
        loss = run.task.loss(run.network(x), y)
        gradients = torch.autograd.grad(loss, [*found.values()], allow_unused=True, materialize_grads=True)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 / count)
        say.status(f"picking what goes  example {count}/{samples}")
    run.network.train()
    return {name: f * w.detach().square() for (name, w), f in zip(found.items(), squares, strict=True)}
