"""Scores of filters that gather from batch to batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunecli.criteria import Scorer, l1, l2
from prunecli.criteria.gradients import add_gradients, add_magnitudes, add_products, signed, taylor
from prunecli.errors import UsageError
from prunecli.methods.gradual.filters import Filters, unit_scores
from prunecli.methods.gradual.saved import check, check_all
from prunecli.surgery.structure import layer_of

Criterion = Literal["gn_g", "gn_s", "tw", "taylor", "l1", "l2"]
Add = Callable[[list[Tensor], list[Tensor], list[Tensor]], None]

ADD: dict[Criterion, Add] = {"gn_g": add_gradients, "gn_s": add_magnitudes, "tw": add_products}
SCORE: dict[Criterion, Scorer] = {"gn_g": l1, "gn_s": l1, "tw": signed, "taylor": signed, "l1": l1, "l2": l2}


class Gathered:
    """Sums over batches by weight name, float32: of the weight's shape or, Taylor's, [channels]. They begin empty.

    `sums` is the dictionary that they are in, `names` are those of the weights that score a group. Raises `UsageError`
    for Taylor's criterion where one of these is no layer's whose activations can be heard.
    """

    def __init__(self, criterion: Criterion, network: nn.Module, names: Iterable[str], sums: dict[str, Tensor]) -> None:
        self.criterion, self.sums = criterion, sums
        self.layers = {name: network.get_parameter(name) for name in names}
        for name in sums.keys() - self.layers.keys():  # of layers that have one filter by now
            del sums[name]
        if criterion == "taylor":
            for name in self.layers:
                if not isinstance(network.get_submodule(layer_of(name)), _ConvNd | nn.Linear):
                    raise _unheard(name)
            check("scores", sums, {n: (_channels(network, n),) for n in self.layers}, torch.float32)
        elif sums:
            check_all("scores", sums, {name: weight.shape for name, weight in self.layers.items()}, torch.float32)

    @property
    def of_gradients(self) -> bool:
        """Does a batch add anything? The norms of weights need none."""
        return self.criterion not in ("l1", "l2")

    @torch.no_grad()
    def add(self) -> None:
        """A backward pass is over."""
        if self.criterion not in ADD:
            return
        if not self.sums:
            self.sums.update({name: torch.zeros_like(w, dtype=torch.float32) for name, w in self.layers.items()})
        found = [(self.sums[name], weight, weight.grad) for name, weight in self.layers.items()]
        lists = [*zip(*(entry for entry in found if entry[2] is not None), strict=True)]
        if lists:
            ADD[self.criterion](*map(list, lists))

    @contextmanager
    def listening(self, network: nn.Module) -> Iterator[None]:
        """While it holds, forward and backward passes add what Taylor's criterion has of their activations."""
        names = self.layers if self.criterion == "taylor" else ()
        modules = [(name, network.get_submodule(layer_of(name))) for name in names]
        handles = [module.register_forward_hook(partial(self._hear, name)) for name, module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def scores(self, filters: Filters) -> Tensor:
        """Scores [units] of a group. Raises `UsageError` where no activation was heard."""
        if not self.of_gradients:
            return unit_scores(filters, dict(self.layers), SCORE[self.criterion])
        if missing := [member.tensor for member in filters.scorers if member.tensor not in self.sums]:
            raise _unheard(missing[0])
        return unit_scores(filters, self.sums, SCORE[self.criterion])

    def _hear(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        axis = output.ndim - 1 if isinstance(module, nn.Linear) else 1
        activation = output.detach().relu()  # a copy: what comes next may work in place

        def add(gradient: Tensor) -> None:
            found = taylor(activation, gradient, axis)
            self.sums[name] = self.sums[name] + found if name in self.sums else found

        if output.requires_grad:
            output.register_hook(add)
        else:  # all before it is frozen
            add(torch.zeros_like(activation))


def _channels(network: nn.Module, name: str) -> int:
    """Of the output of the layer with this weight."""
    layer = network.get_submodule(layer_of(name))
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _unheard(name: str) -> UsageError:
    problem = f"--method-arg criterion=taylor: {name} is not the weight of a layer that is called"
    return UsageError(problem, "choose another criterion, such as gn_s")
