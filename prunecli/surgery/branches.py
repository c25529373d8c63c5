"""The residual branches of a network: what it adds to a shortcut, found in the graph of a run and not by names.

Of the two summands of an addition, the branch is the one that more layers make that serve nothing else. It is left out
by leaving out the modules that do nothing but compute it: see `models.absent`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, zip_longest

import torch
from torch import Tensor, nn

from prunecli.models.absent import leave_out
from prunecli.surgery.graph import Graph, Op, graph_of
from prunecli.surgery.structure import layer_of
from prunecli.surgery.twin import twin_of
from prunecli.surgery.within import tensors_in

_SCALED = {
    "linear", "batch_norm", "native_batch_norm", "cudnn_batch_norm", "instance_norm", "group_norm", "native_group_norm",
    "layer_norm", "native_layer_norm", "rms_norm", "convolution",
    *(f"conv{kind}{d}d" for kind in ("", "_transpose") for d in (1, 2, 3)),
}  # fmt: skip
_LINEAR = {"dropout", "feature_dropout", "clone", "contiguous", "alias", "detach", "view", "reshape", "flatten"} | {
    "permute", "transpose", "squeeze", "unsqueeze", "mean", "avg_pool2d", "adaptive_avg_pool2d",
}  # fmt: skip

Side = tuple[int, set[int], list[str]]  # a summand, the operations that it alone needs, and the weights among them


@dataclass(frozen=True)
class Branch:
    """A residual branch; `name` is that of the module that adds it to the shortcut.

    `modules` compute nothing else. `scale` names the weight, and the bias behind it, whose multiples are the branch's.
    One that cannot be scaled or left out says why in `reason`.
    """

    name: str
    modules: tuple[str, ...] = ()
    scale: tuple[str, ...] = ()
    reason: str | None = None


def branches(network: nn.Module, *inputs: Tensor) -> list[Branch]:
    """All residual branches in the order of their additions; the network is left as it was.

    A branch has a reason where leaving it out is not the same as a branch that puts out zeros, tried on `inputs`.
    """
    graph = graph_of(network, *inputs)
    found = [branch for place in range(len(graph.ops)) if (branch := _branch(graph, place))]
    names = [branch.name for branch in found]
    found = [replace(b, name=_main(b)) if names.count(b.name) > 1 and b.modules else b for b in found]
    able = [branch for branch in found if branch.reason is None]
    if able and (together := _why_not(network, able, inputs)):
        why = {branch.name: _why_not(network, [branch], inputs) for branch in able}
        left = [branch for branch in able if why[branch.name] is None]
        if left and _why_not(network, left, inputs):
            why = dict.fromkeys(why, together)
        found = [replace(branch, reason=why.get(branch.name, branch.reason)) for branch in found]
    return found


def projections(network: nn.Module, *inputs: Tensor) -> dict[str, set[str]]:
    """The weights of the 1 x 1 convolutions of residual shortcuts, and with each those of the branch added to it.

    Such a convolution makes, norms aside, the lighter summand of an addition, from what the branch reads too.
    """
    graph, parameters = graph_of(network, *inputs), dict(network.named_parameters())
    found: dict[str, set[str]] = {}
    for place in range(len(graph.ops)):
        if sides := _sides(graph, place):
            (value, inside, used), (_, others, branch) = sides
            name = _made_by(graph, value)
            if name in used and _pointwise(parameters[name]) and _entering(graph, inside) & _entering(graph, others):
                found.setdefault(name, set()).update(branch)
    return found


def _made_by(graph: Graph, value: int) -> str | None:
    """The weight of the layer that made a value, normalisations and what is linear without weights aside."""
    while value in graph.makers:
        op = graph.ops[graph.makers[value]]
        if "norm" not in op.name and op.name not in _LINEAR:
            return op.parameters.get("weight")
        value = op.reads[0]
    return None


def _pointwise(weight: Tensor) -> bool:
    return weight.ndim > 2 and weight[0, 0].numel() == 1


def _entering(graph: Graph, inside: set[int]) -> set[int]:
    """What these operations read that follows from the network's input: before pooling or activations, and after."""
    found: set[int] = set()
    left = [value for i in inside for value in graph.ops[i].reads if graph.makers.get(value) not in inside]
    while left:
        found.add(value := left.pop())
        if value in graph.makers and len(reads := graph.ops[graph.makers[value]].reads) == 1:
            left.extend(reads)
    return found & graph.live


def _main(branch: Branch) -> str:
    """The module that a branch ends with, as far as it is known."""
    ends = [name for name in branch.modules if any(scale.startswith(f"{name}.") for scale in branch.scale)]
    return (ends or [*branch.modules])[-1]


def modules_of(chosen: Iterable[Branch]) -> list[str]:
    """The modules of several branches, none of them inside another."""
    return outermost({name for branch in chosen for name in branch.modules})


def outermost(modules: Collection[str]) -> list[str]:
    """Those of these modules that are inside no other, in the order of their names."""
    known = {*modules}
    return [name for name in sorted(known) if known.isdisjoint(_around(name))]


def scale_behind(graph: Graph, weight: str) -> tuple[str, ...]:
    """The weight and bias that scale what a layer with this weight puts out, before anything else reads it.

    Those of the normalisation behind it where that is the only reader, else the layer's own; none where one of them is
    used at several places.
    """
    users = graph.users.get(weight, set())
    if len(users) != 1:
        return ()
    (op,) = (graph.ops[place] for place in users)
    readers = [graph.ops[place] for place in graph.readers.get(op.makes[0], ()) if place < len(graph.ops)]
    norms = [scale for reader in readers if "norm" in reader.name and (scale := _scale(reader))]
    scale = norms[0] if len(readers) == 1 and norms else _scale(op)
    return scale if all(len(graph.users[name]) == 1 for name in scale) else ()


def _around(module: str) -> list[str]:
    """The names of all modules that this one is in."""
    return [*accumulate(module.split("."), "{}.{}".format)][:-1]


def _branch(graph: Graph, place: int) -> Branch | None:
    """What an operation adds to a shortcut, if it does."""
    if (sides := _sides(graph, place)) is None:
        return None
    _, (value, inside, used) = sides
    modules = _modules(graph, inside)
    own = {name for i in inside for name in graph.ops[i].parameters.values()}
    branch = Branch(graph.ops[place].module, tuple(modules))
    scale = _scale_of(graph, value)
    if any(not graph.users.get(name, inside) <= inside for name in own) or any(
        len(graph.users[name]) > 1 for name in scale
    ):
        return replace(branch, reason="it shares weights with other layers")
    if not scale:
        return replace(branch, reason="what is added comes from no layer whose weights a factor could go into")
    if any({layer_of(name), *_around(layer_of(name))}.isdisjoint(modules) for name in used):
        return replace(branch, reason="one of its layers is no module of its own, or puts out more than a tensor")
    return replace(branch, scale=scale)


def _sides(graph: Graph, place: int) -> tuple[Side, Side] | None:
    """The lighter and the heavier summand of an operation, if it is an addition of these."""
    op = graph.ops[place]
    if op.name != "add" or len(op.reads) != 2 or not graph.live.issuperset(op.reads):
        return None
    served = ((value, _serving(graph, place, value)) for value in op.reads)
    lighter, heavier = sorted(((v, inside, _weights(graph, inside)) for v, inside in served), key=lambda s: len(s[2]))
    return None if len(lighter[2]) == len(heavier[2]) else (lighter, heavier)


def _serving(graph: Graph, place: int, value: int) -> set[int]:
    """The operations that nothing but this operand of the operation `place` needs."""
    inside: set[int] = set()
    for i in range(place - 1, -1, -1):
        makes = [v for v in graph.ops[i].makes if graph.readers.get(v)]
        if makes and all(graph.readers[v] - {place if v == value else -1} <= inside for v in makes):
            inside.add(i)
    return inside


def _weights(graph: Graph, inside: set[int]) -> list[str]:
    """The weights that multiply among these operations: no normalisations."""
    ops = [graph.ops[i] for i in sorted(inside)]
    return [name for op in ops if "norm" not in op.name for arg, name in op.parameters.items() if arg == "weight"]


def _modules(graph: Graph, inside: set[int]) -> list[str]:
    """The outermost modules that do nothing but these operations, and put out one tensor."""
    values, within = {value for i in inside for value in graph.ops[i].makes}, inside | graph.idle
    found = {
        name
        for name, calls in graph.calls.items()
        if name and all(call.output in values and within.issuperset(range(call.start, call.end or 0)) for call in calls)
    }
    return outermost(found)


def _scale_of(graph: Graph, value: int) -> tuple[str, ...]:
    """The parameters whose multiples are the multiples of a value: those of the layer that made it, nothing else's."""
    while value in graph.makers:
        op = graph.ops[graph.makers[value]]
        scale = _scale(op)
        if scale or op.name not in _LINEAR:
            return scale
        value = op.reads[0]
    return ()


def _scale(op: Op) -> tuple[str, ...]:
    """The parameters that an operation is linear in: weight and bias of a layer, a factor of channels."""
    names = ("self", "other") if op.name == "mul" else ("weight", "bias") if op.name in _SCALED else ()
    found = tuple(op.parameters[name] for name in names if name in op.parameters)
    return found if op.name == "mul" or "weight" in op.parameters else ()


def _why_not(network: nn.Module, chosen: Sequence[Branch], inputs: Sequence[Tensor]) -> str | None:
    """Why these branches cannot be left out: the network then computes something else, or does not run."""
    zeroed, without = twin_of(network, None).eval(), twin_of(network, None).eval()
    parameters = dict(zeroed.named_parameters())
    leave_out(without, modules_of(chosen))
    devices = [x.device for x in inputs if x.is_cuda]
    with torch.no_grad(), torch.random.fork_rng(devices):  # dropout must not move the generator of a run
        for name in (name for branch in chosen for name in branch.scale):
            parameters[name].zero_()
        expected = zeroed(*inputs)
        try:
            found = without(*inputs)
            without.train()(*inputs)
        except Exception as error:  # of any kind: it is the network's own code that runs
            said, _, _ = str(error).partition("\n")
            return f"the network does not run without it: {type(error).__name__}: {said}"
    pairs = [*zip_longest(tensors_in(expected), tensors_in(found), fillvalue=torch.zeros(()))]
    same = all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(a.abs().max())) for a, b in pairs
    )
    return None if same else "the network without it computes something else than with zeros in its place"
