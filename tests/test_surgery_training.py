"""A cut in the middle of training: the steps after it are those of the masked network, whatever the optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from prunecli.surgery import Plan, Structure, apply, trace

Optimizer = Callable[[Any], optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": partial(optim.SGD, lr=0.02),
    "SGD momentum": partial(optim.SGD, lr=0.02, momentum=0.9),
    "SGD nesterov, weight decay": partial(optim.SGD, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "SGD dampening": partial(optim.SGD, lr=0.02, momentum=0.9, dampening=0.3),
    "SGD fused": partial(optim.SGD, lr=0.02, momentum=0.9, fused=True),
    "Adam": partial(optim.Adam, lr=1e-2),
    "Adam amsgrad, weight decay": partial(optim.Adam, lr=1e-2, amsgrad=True, weight_decay=1e-2),
    "Adam foreach": partial(optim.Adam, lr=1e-2, foreach=True),
    "AdamW": partial(optim.AdamW, lr=1e-2, weight_decay=0.1),
    "AdamW fused": partial(optim.AdamW, lr=1e-2, fused=True),
    "RMSprop": partial(optim.RMSprop, lr=1e-3),
    "RMSprop centred, momentum": partial(optim.RMSprop, lr=1e-3, centered=True, momentum=0.9),
    "Adagrad": partial(optim.Adagrad, lr=1e-2, lr_decay=1e-2),
    "Adadelta": partial(optim.Adadelta, lr=0.5),
    "NAdam": partial(optim.NAdam, lr=1e-2),
    "RAdam": partial(optim.RAdam, lr=1e-2),
    "Adamax": partial(optim.Adamax, lr=1e-2),
    "ASGD": partial(optim.ASGD, lr=1e-2),
    "Rprop": partial(optim.Rprop, lr=1e-3),
}


class Convolutions(nn.Module):
    """A residual network with batch norm, a depthwise layer, two layers of one weight and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.inner, self.back = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1, bias=False)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.frozen, self.head = nn.Linear(8, 7).requires_grad_(False), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.stem(x)))
        x = x + self.back(torch.tanh(self.inner(self.depthwise(x))))
        x = x.mean((2, 3))
        return self.head(F.silu(self.frozen(self.second(F.silu(self.first(x))))))


class Attention(nn.Module):
    """Word and frozen position embeddings, attention of two heads, a gated layer, a decoder of the same table."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(4, 8), nn.Embedding(5, 8).requires_grad_(False)
        self.num_heads, self.head_dim = 2, 4
        self.qkv, self.out = nn.Linear(8, 24, bias=False), nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.up, self.down = nn.Linear(8, 12), nn.Linear(6, 8)
        self.decode = nn.Linear(8, 4, bias=False)
        self.decode.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words) + self.positions.weight
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = (q @ k.mT * 0.5).softmax(-1) @ v
        x = x + self.scale * self.out(y.transpose(1, 2).flatten(2))
        a, b = self.up(x).chunk(2, -1)
        return self.decode(x + self.down(F.silu(a) * b)).mean(1)


GENERATOR = torch.Generator().manual_seed(0)
X = {
    Convolutions: torch.randn(6, 3, 5, 5, generator=GENERATOR, dtype=torch.float64),
    Attention: torch.randint(4, (6, 5), generator=GENERATOR),
}
Y = torch.arange(6) % 3


def scheduled(kind: Optimizer, network: nn.Module) -> tuple[optim.Optimizer, optim.lr_scheduler.LRScheduler]:
    """An optimizer of what is not frozen, whose rate falls at every step."""
    optimizer = kind([p for p in network.parameters() if p.requires_grad])
    return optimizer, optim.lr_scheduler.ExponentialLR(optimizer, 0.99)


def gradients(network: nn.Module, masks: dict[str, Tensor] | None = None) -> float:
    """The loss; its gradients are left at the parameters, those of masked entries zero."""
    network.zero_grad()
    loss = F.cross_entropy(network(X[type(network)]), Y)
    loss.backward()
    for name, parameter in network.named_parameters() if masks else ():
        if parameter.grad is not None:
            parameter.grad *= masks[name]
    return loss.item()


def train(
    network: nn.Module, optimizer: optim.Optimizer, schedule: optim.lr_scheduler.LRScheduler, steps: int,
    masks: dict[str, Tensor] | None = None,
) -> list[float]:  # fmt: skip
    """So many steps on gradients that are there, each followed by the next gradients; returns the losses."""
    losses = []
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        losses.append(gradients(network, masks))
    return losses


def entries(structure: Structure, plan: Plan) -> dict[str, Tensor]:
    """What the plan leaves of every parameter, 1 and 0 in its own shape."""
    masks = {name: torch.ones(shape, dtype=torch.float64) for name, shape in structure.dense.items()}
    for (name, axis), keep in structure.keep_masks(plan).items():
        masks[name] *= keep.view([-1 if d == axis else 1 for d in range(masks[name].ndim)])
    return masks


def left(tensor: Tensor, mask: Tensor) -> Tensor:
    """The entries of a tensor that a mask leaves, in a row."""
    return tensor.detach()[mask > 0]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("network_class", [Convolutions, Attention])
def test_training_goes_on_as_in_the_masked_network(network_class: type[nn.Module], kind: str) -> None:
    network = oracle.randomise(network_class())
    optimizer, schedule = scheduled(OPTIMIZERS[kind], network)
    gradients(network)
    train(network, optimizer, schedule, 5)
    structure = trace(network, X[network_class], heads=True)
    plan = oracle.half(structure)
    assert len(plan.kept) >= 3
    masks = entries(structure, plan)
    masked, masked_optimizer, masked_schedule = copy.deepcopy((network, optimizer, schedule))
    with torch.no_grad():
        for name, tensor in masked.named_parameters():
            tensor *= masks[name]
            for key, value in masked_optimizer.state.get(tensor, {}).items():
                if isinstance(value, Tensor) and value.shape == tensor.shape:
                    masked_optimizer.state[tensor][key] = value * masks[name]
        for name, tensor in masked.named_buffers():
            if name in masks:
                tensor.copy_(torch.where(masks[name] > 0, tensor, 0.0))
    gradients(masked, masks)
    before = dict(network.named_parameters())
    apply(network, structure, plan, optimizer=optimizer)
    assert all(p is before[name] for name, p in network.named_parameters())
    gradients(network)
    expected = train(masked, masked_optimizer, masked_schedule, 20, masks)
    assert train(network, optimizer, schedule, 20) == pytest.approx(expected, rel=1e-9)
    whole = dict(masked.named_parameters())
    for name, parameter in network.named_parameters():
        assert not left(whole[name], 1 - masks[name]).any()
        apart = (parameter.detach().flatten() - left(whole[name], masks[name])).abs().max()
        assert apart <= 1e-9 * parameter.abs().max(), name


@pytest.mark.parametrize("kind", [*OPTIMIZERS, "Adafactor"])
@pytest.mark.parametrize("network_class", [Convolutions, Attention])
def test_after_a_cut_the_schedule_drives_and_everything_lives(network_class: type[nn.Module], kind: str) -> None:
    network = oracle.randomise(network_class())
    optimizer, schedule = scheduled(OPTIMIZERS.get(kind, optim.Adafactor), network)
    gradients(network)
    train(network, optimizer, schedule, 3)
    tied = {n: t for n, t in trace(network, X[network_class]).aliases.items() if n in network.state_dict()}
    structure = trace(network, X[network_class], heads=True)
    apply(network, structure, oracle.half(structure), optimizer=optimizer)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    rate = optimizer.param_groups[0]["lr"]
    train(network, optimizer, schedule, 2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate * 0.99**2)
    for name, parameter in network.named_parameters():
        moved = parameter != before[name]
        if parameter.requires_grad:
            assert bool(moved.all()), name
        else:
            assert parameter.grad is None
            assert not bool(moved.any()), name
    assert tied
    state = network.state_dict(keep_vars=True)
    assert all(state[alias] is state[name] for alias, name in tied.items())
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        shape = parameter.shape
        for value in (v for v in optimizer.state[parameter].values() if isinstance(v, Tensor) and v.numel() > 1):
            assert value.ndim == len(shape)
            assert all(n in (1, m) for n, m in zip(value.shape, shape, strict=True))


def test_a_saved_state_of_a_cut_optimizer_loads_into_a_new_one() -> None:
    network = oracle.randomise(Convolutions())
    optimizer, schedule = scheduled(OPTIMIZERS["Adam"], network)
    gradients(network)
    train(network, optimizer, schedule, 3)
    structure = trace(network, X[Convolutions])
    apply(network, structure, oracle.half(structure), optimizer=optimizer)
    again = copy.deepcopy(network)
    other, other_schedule = scheduled(OPTIMIZERS["Adam"], again)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_schedule.load_state_dict(schedule.state_dict())
    for one in (network, again):
        gradients(one)
    assert train(network, optimizer, schedule, 3) == train(again, other, other_schedule, 3)


def test_gradients_masks_and_scores_are_cut_along() -> None:
    """Gradients of before the cut serve the step after it; masks and scores stay those of the same weights."""
    network = oracle.randomise(Convolutions())
    gradients(network)
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    masks = {name: p.detach() > 0 for name, p in parameters.items()}
    scores = {name: (p.grad * p).detach() for name, p in parameters.items()}
    structure = trace(network, X[Convolutions])
    plan = oracle.half(structure)
    kept = entries(structure, plan)
    grads = {name: left(p.grad, kept[name]) for name, p in parameters.items()}
    apply(network, structure, plan, along=[masks, scores])
    for name, parameter in parameters.items():
        assert torch.equal(parameter.grad.flatten(), grads[name])
        assert torch.equal(masks[name], parameter > 0)
        assert torch.equal(scores[name], parameter.grad * parameter)


def test_what_goes_along_may_name_a_tied_tensor_by_any_of_its_names() -> None:
    network = Convolutions()
    scores = {name: network.first.weight.detach() * 2 for name in ("first.weight", "second.weight")}
    apply(network, structure := trace(network, X[Convolutions].float()), oracle.half(structure), along=[scores])
    assert torch.equal(scores["first.weight"], network.first.weight * 2)
    assert torch.equal(scores["second.weight"], network.first.weight * 2)
    assert len(network.first.weight) < 8
