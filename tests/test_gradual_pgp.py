"""Progressive gradient pruning: its widths in closed form, its scores by hand, its cuts of a live run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradual import Listening, check_resumed, live, prune, train
from torch import Tensor

from prunecli.criteria import l1
from prunecli.criteria.gradients import add_gradients, add_magnitudes, add_products, signed, taylor
from prunecli.errors import PruneError, UsageError
from prunecli.progress import Silent
from prunecli.training import Run

RESNET = {"arch": "resnet20", "arch_arg": ("width=4", "shortcut=projection"), "data": "digits"}
CONVOLUTIONS = ("conv1", "conv2", "conv3")
SIZES = {"conv1": 6, "conv2": 16, "conv3": 120}


def step(run: Run, seed: int = 1) -> None:
    """A step of training on noise, with the method at work."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((16, *run.cost.input), generator=generator)
    run.optimizer.zero_grad()
    run.hook.before_forward(run)
    F.cross_entropy(run.network(x), torch.arange(16) % 10).backward()
    run.hook.after_backward(run)
    run.optimizer.step()


def epoch(run: Run) -> None:
    """The end of an epoch."""
    run.hook.after_epoch(run)
    run.training.epoch += 1


def widths(run: Run, *layers: str) -> list[int]:
    """Output channels of layers."""
    return [len(run.network.get_parameter(f"{layer}.weight")) for layer in layers]


def zeros(weight: Tensor) -> list[int]:
    """The filters that are zero."""
    return [i for i, row in enumerate(weight.detach().flatten(1)) if not row.any()]


def momentum(run: Run, name: str) -> Tensor:
    """The momentum of a parameter."""
    return run.optimizer.state[run.network.get_parameter(name)]["momentum_buffer"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("share", "final"), [(0.3, [5, 12, 84]), (0.5, [3, 8, 60]), (0.7, [2, 5, 36])], ids=["30", "50", "70"]
)
def test_widths_follow_the_schedule_to_the_papers_networks(tmp_path: Path, share: float, final: list[int]) -> None:
    log = train(tmp_path, epochs=4, batch_size=800, method="rpgp", sparsity=share).sidecar.metrics.curve
    now = dict(SIZES)
    for t, entry in enumerate(log, start=1):
        zeroed = 0
        for layer, n0 in SIZES.items():
            weak = math.floor(now[layer] - n0 * (1 - share) ** (t / 4) + 1e-9)
            hard = weak if t == 4 else weak // 2
            now[layer], zeroed = now[layer] - hard, zeroed + weak - hard
        assert [entry.method[f"filters/{layer}"] for layer in SIZES] == [*now.values()]
        assert entry.method["zeroed"] == zeroed / sum(now.values())
    assert [*now.values()] == final
    macs = [entry.method["macs"] for entry in log]
    assert all(later < earlier for earlier, later in zip([416_520, *macs], macs, strict=False))


@pytest.mark.parametrize(
    ("arguments", "final"),
    [
        ({"exponent": "code"}, [math.ceil(n * 0.5 ** (5 / 4)) for n in SIZES.values()]),
        ({"r": 1}, [3, 8, 60]),
        ({"r": 0}, [3, 8, 60]),
    ],
)
def test_settings_of_the_schedule(tmp_path: Path, arguments: dict[str, Any], final: list[int]) -> None:
    run = live(tmp_path, "rpgp", {"criterion": "l1"} | arguments, {"sparsity": 0.5})
    for _ in range(3):
        epoch(run)
    if "r" in arguments:  # all at once, or nothing before the last epoch
        assert widths(run, "conv3") == [120 if arguments["r"] == 0 else math.ceil(120 * 0.5**0.75)]
        assert len(zeros(run.network.get_parameter("conv3.weight"))) == (
            math.floor(120 * (1 - 0.5**0.75)) if arguments["r"] == 0 else 0
        )
    epoch(run)
    assert widths(run, *CONVOLUTIONS) == final


def test_what_a_batch_adds_and_what_the_sums_come_to() -> None:
    weights = [torch.tensor([[1.0, -2.0], [3.0, 4.0]])]
    batches = [torch.tensor([[1.0, 1.0], [2.0, -1.0]]), torch.tensor([[-1.0, 2.0], [0.5, 1.0]])]
    found = {}
    for name, add, score in (("gn_g", add_gradients, l1), ("gn_s", add_magnitudes, l1), ("tw", add_products, signed)):
        sums = [torch.zeros(2, 2)]
        for gradient in batches:
            add(sums, weights, [gradient])
        found[name] = score(sums[0]).tolist()
    assert found == {"gn_g": [3.0, 2.5], "gn_s": [5.0, 4.5], "tw": [6.0, 7.5]}  # |1-2-1-4| and |6-4+1.5+4|
    activation = torch.tensor([[[1.0, -1.0], [2.0, 2.0]], [[3.0, 1.0], [-1.0, 4.0]]])  # [N 2, channels 2, places 2]
    gradient = torch.tensor([[[1.0, 9.0], [1.0, 0.0]], [[2.0, 1.0], [9.0, -1.0]]])
    assert taylor(activation, gradient, 1).tolist() == [(1 + 0 + 6 + 1) / 4, (2 + 0 + 0 - 4) / 4]


@pytest.mark.parametrize("criterion", ["gn_g", "gn_s", "tw", "taylor", "l1", "l2"])
def test_scores_of_a_live_run_are_those_of_its_gradients(tmp_path: Path, criterion: str) -> None:
    run = live(tmp_path, "rpgp", {"criterion": criterion}, {"sparsity": 0.5})
    weight, heard = run.network.get_parameter("conv2.weight"), []
    handle = run.network.conv2.register_forward_hook(lambda _m, _i, z: heard.append(z) or z.retain_grad())
    total: Any = 0.0
    for seed in (1, 2):
        before = weight.detach().clone()
        step(run, seed)
        g, z = weight.grad, heard[-1]
        assert g is not None
        total = total + {
            "gn_g": g,
            "gn_s": g.abs(),
            "tw": before * g,
            "taylor": (z.relu() * z.grad).mean((0, 2, 3)).view(-1, 1),
        }.get(criterion, 0.0)
    handle.remove()
    expected = {"gn_g": lambda: total.abs(), "gn_s": lambda: total, "l1": weight.abs}.get(criterion, lambda: total)()
    expected = weight.flatten(1).norm(dim=1) if criterion == "l2" else expected.flatten(1).sum(1).abs()
    order = expected.argsort().tolist()
    before = weight.detach().clone()
    run.training.epoch = 1  # of 4: the p of epoch 2 is 0.5^(1/2), so that 4 of 16 are weak
    run.hook.after_epoch(run)
    kept = sorted(order[2:])
    assert torch.equal(before[kept] * torch.tensor([i not in order[:4] for i in kept]).view(-1, 1, 1, 1), weight[:, :])
    assert not run.hook.tensors["scores"]


def test_a_pass_of_its_own_scores_the_network_as_it_is_and_changes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = live(tmp_path, "pgp", {}, {"sparsity": 0.5}, **RESNET)
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, *run.cost.input, generator=generator), torch.arange(8)) for _ in range(2)]
    monkeypatch.setattr(type(run.data.train), "batches", lambda *_, **order: batches if "order" not in order else [])
    step(run)  # whose gradients are still there
    state = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    run.hook.gather(run)  # type: ignore[attr-defined]
    assert all(torch.equal(tensor, state[name]) for name, tensor in run.network.state_dict().items())
    assert run.network.training
    assert all(parameter.grad is None for parameter in run.network.parameters())
    run.network.eval()
    weight = run.network.get_parameter("layer1.0.conv1.weight")
    total = sum(torch.autograd.grad(F.cross_entropy(run.network(x), y), weight)[0] for x, y in batches)
    assert torch.allclose(run.hook.tensors["scores"]["layer1.0.conv1.weight"], total, rtol=1e-4, atol=1e-6)


def test_the_further_pass_shows_where_it_is(tmp_path: Path) -> None:
    train(tmp_path, say := Listening(), method="pgp", sparsity=0.3, epochs=1)
    shown = [line for line in say.statuses if "scores of filters" in line]
    assert shown == [f"epoch 1/1  scores of filters  step {step}/6" for step in range(1, 7)]


@pytest.mark.parametrize("reset", ["weights", "code"])
def test_momentum_is_cut_and_zeroed_with_the_weights(tmp_path: Path, reset: str) -> None:
    run = live(tmp_path, "rpgp", {"criterion": "l1", "reset": reset}, {"sparsity": 0.5, "only": ["conv2"]})
    step(run)
    names = ("conv2.weight", "conv2.bias", "conv3.weight")
    before = {name: (run.network.get_parameter(name).detach().clone(), momentum(run, name).clone()) for name in names}
    order = before["conv2.weight"][0].abs().flatten(1).sum(1).argsort().tolist()
    run.training.epoch = 1
    run.hook.after_epoch(run)  # 4 of 16 are weak, and 2 of them go
    kept = sorted(order[2:])
    soft = torch.tensor([unit in order[2:4] for unit in kept])
    for name in names:
        cleared = soft if name == "conv2.weight" or (name, reset) == ("conv2.bias", "code") else soft & False
        for now, then in zip((run.network.get_parameter(name), momentum(run, name)), before[name], strict=True):
            if name == "conv3.weight":
                assert torch.equal(now, then[:, kept])
            else:
                assert torch.equal(now, then[kept] * ~cleared.view(-1, *[1] * (then.ndim - 1))), name
    step(run)  # the optimizer goes on with what it has
    assert widths(run, *CONVOLUTIONS) == [6, 14, 120]


def test_the_projection_chooses_for_its_stage_and_the_stem_for_the_first(tmp_path: Path) -> None:
    run = live(tmp_path, "rpgp", {"criterion": "l2"}, {"sparsity": 0.5}, **RESNET)
    run.training.epoch = 3
    network = run.network
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    run.hook.after_epoch(run)
    for scorer, *others in (
        ("conv1", "layer1.0.conv2", "layer1.2.conv2"),
        ("layer2.0.downsample.0", "layer2.0.conv2", "layer2.2.conv2"),
        ("layer3.0.downsample.0", "layer3.1.conv2"),
        ("layer3.1.conv1",),
    ):
        norms = before[f"{scorer}.weight"].flatten(1).norm(dim=1)
        kept = sorted(norms.argsort()[len(norms) // 2 :].tolist())
        for layer in (scorer, *others):
            now = network.get_parameter(f"{layer}.weight")
            whole = before[f"{layer}.weight"]
            assert len(now) == len(kept)
            if now.shape[1] == whole.shape[1]:  # the stem: nothing of its input is cut
                assert torch.equal(now, whole[kept])
            else:
                assert all(_is_part(row, whole[unit]) for row, unit in zip(now, kept, strict=True)), layer
    assert network(torch.zeros(2, *run.cost.input)).shape == (2, 10)


def _is_part(row: Tensor, whole: Tensor) -> bool:
    """Are the channels of a filter channels of another, in this order?"""
    found = [i for channel in row for i, other in enumerate(whole) if torch.equal(channel, other)]
    return len(found) == len(row) and found == sorted(found)


def test_a_projection_still_chooses_when_a_single_channel_is_left_for_it_to_read(tmp_path: Path) -> None:
    run = live(tmp_path, "rpgp", {"criterion": "l1"}, {"sparsity": 0.8}, **RESNET)
    run.training.epoch = 3
    run.hook.after_epoch(run)
    assert widths(run, "conv1", "layer2.0.downsample.0") == [1, 2]
    run.training.step = 1
    run.hook.begin(run, Silent())
    assert "layer2.0.downsample.0.weight" in run.hook.gathered.layers  # type: ignore[attr-defined]
    run.hook.after_epoch(run)
    assert widths(run, "conv1", "layer2.0.downsample.0") == [1, 2]


def test_outputs_behind_projections_may_stay_whole(tmp_path: Path) -> None:
    run = live(tmp_path, "rpgp", {"criterion": "l1", "residual": "no-downsample"}, {"sparsity": 0.5}, **RESNET)
    run.training.epoch = 3
    run.hook.after_epoch(run)
    stages = [widths(run, f"layer{i}.0.conv1", f"layer{i}.1.conv2") for i in (1, 2, 3)]
    assert stages == [[2, 2], [4, 8], [8, 16]]


NETWORK = """
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.grouped = nn.Conv2d(8, 16, 3, groups=4)
        self.up = nn.ConvTranspose2d(16, 12, 2, groups=2)
        self.last = nn.ConvTranspose2d(12, 10, 1)
        self.head = nn.Conv2d(10, 10, 1)

    def forward(self, x):
        x = self.depthwise(self.stem(x)).relu()
        return self.head(self.last(self.up(self.grouped(x)).relu())).mean((2, 3))
"""


@pytest.mark.parametrize("criterion", ["gn_s", "taylor", "l2"])
def test_grouped_depthwise_and_transposed_convolutions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, criterion: str
) -> None:
    (tmp_path / "convolutions.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"arch": "convolutions:Network", "trust": ("convolutions",), "image_size": 8, "batch_size": 700}
    made = train(
        tmp_path, method="rpgp", sparsity=0.5, method_arg=(f"criterion={criterion}",), epochs=3, lr=0.01, **own
    )
    shapes = {n.removesuffix(".weight"): tuple(w.shape[:2]) for n, w in made.weights.items() if w.ndim == 4}
    assert shapes == {
        "stem": (4, 1),
        "depthwise": (4, 1),
        "grouped": (8, 2),  # two of four groups
        "up": (8, 3),
        "last": (6, 5),
        "head": (10, 5),
    }


BARE = """
import torch
from torch import nn
from torch.nn.functional import conv2d

class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(8, 1, 3, 3))
        self.last = nn.Conv2d(8, 10, 3)

    def forward(self, x):
        return self.last(conv2d(x, self.first).relu()).mean((2, 3))

class Frozen(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 10))
        self[0].requires_grad_(False)
"""


def test_taylor_refuses_weights_that_no_layer_has_and_frozen_layers_score_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare.py").write_text(BARE)
    monkeypatch.syspath_prepend(str(tmp_path))
    own: dict[str, Any] = {"trust": ("bare",), "image_size": 8, "batch_size": 700, "epochs": 1, "sparsity": 0.5}
    own |= {"method": "rpgp", "method_arg": ("criterion=taylor",)}
    with pytest.raises(UsageError, match="taylor: first is not the weight of a layer"):
        train(tmp_path, arch="bare:Bare", **own)
    made = train(tmp_path, arch="bare:Frozen", **own)
    assert [made.weights[name].shape[0] for name in ("0.weight", "2.weight")] == [4, 4]


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        (3, {"method": "rpgp"}),
        (8, {"method": "rpgp", "optimizer": "adamw", "lr": 0.003}),
        (6, {"method": "pgp"}),
        (9, {"method": "rpgp", "method_arg": ("criterion=taylor",), "precision": "bf16"}),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, steps: int, options: dict[str, Any]) -> None:
    check_resumed(tmp_path, steps, sparsity=0.5, epochs=3, **options)


def test_a_trained_network_shrinks_in_mixed_precision_and_scores_are_float32(tmp_path: Path) -> None:
    base = train(tmp_path, epochs=1)
    assert base.path
    made = prune(base.path, method="pgp", sparsity=0.5, precision="bf16", optimizer="adamw", lr=0.003)
    assert made.weights["fc1.weight"].shape == (84, 60)
    assert all(weight.dtype == torch.float32 for weight in made.weights.values())
    assert [step.command for step in made.sidecar.history] == ["train", "prune"]
    run = live(tmp_path, "rpgp", {}, {"sparsity": 0.5})
    with torch.autocast("cpu", torch.bfloat16):
        step(run)
    assert {sums.dtype for sums in run.hook.tensors["scores"].values()} == {torch.float32}


def test_layers_of_one_filter_stay_and_do_not_stop_a_run(tmp_path: Path) -> None:
    run = live(tmp_path, "rpgp", {"criterion": "l1"}, {"sparsity": 0.95})
    for _ in range(4):
        epoch(run)
        run.training.step = 1  # goes on in the middle of the next
        if run.training.epoch < 4:
            run.hook.begin(run, Silent())
        run.training.step = 0
    assert widths(run, *CONVOLUTIONS) == [1, 1, 6]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"sparsity": None}, "--sparsity"),
        ({"method_arg": ("r=2",)}, "removed at once"),
        ({"method_arg": ("criterion=fpgm",)}, "gn_g, gn_s"),
        ({"method_arg": ("residual=no",)}, "no-downsample"),
        ({"max_macs": "50%"}, "--max-macs"),
        ({"only": ("conv9",)}, "conv9"),
        ({"skip": ("conv*",)}, "nothing to prune"),
    ],
)
def test_what_it_does_not_take_is_refused_before_training(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(PruneError) as error:
        train(tmp_path, **({"method": "rpgp", "sparsity": 0.5} | options))
    assert words in error.value.message + error.value.hint
    assert not list(tmp_path.iterdir())
