"""Sparse structure selection of residual branches and of groups of convolutions: factors, and what goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gradual import check_resumed, live, prune, train
from torch import Tensor, nn
from torch.func import functional_call

import prunecli
from prunecli import ExportOptions, ReportOptions, RewindOptions, ScratchOptions
from prunecli import checkpoint as checkpoints
from prunecli.checkpoint import Checkpoint
from prunecli.cuts import Gone
from prunecli.errors import DamagedError, TargetError, UsageError
from prunecli.training import Run

SMALL: dict[str, Any] = {"arch": "resnet20", "arch_arg": ("width=4", "in_channels=1"), "image_size": 8}
BLOCKS = {"method": "sss", "method_arg": ("structures=blocks", "gamma=2")}
PART = {**SMALL, **BLOCKS, "only": ("layer2.0", "layer3.*"), "schedule": "constant"}  # the others have no factor
IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Grouped(nn.Module):
    """Two convolutions in groups, behind one of which is a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, groups=4), nn.BatchNorm2d(16)
        self.conv3, self.conv4 = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 24, 1, groups=6)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return self.fc(self.conv4(self.conv3(x).relu()).relu().mean((2, 3)))


class Twice(nn.Module):
    """Its convolution in groups runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 1, groups=4), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(self.conv(self.stem(x))).mean((2, 3)))


class Few(nn.Module):
    """Its convolution has fewer groups than channels in each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 1, groups=2), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(self.stem(x)).mean((2, 3)))


class Dropping(nn.Module):
    """Residual branches beside dropout, whose random numbers the search for branches must not take."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = (nn.Linear(n, 16) for n in (64, 16, 16))
        self.fc, self.drop = nn.Linear(16, 10), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1)).relu()
        x = x + self.drop(self.one(x))
        return self.fc((x + self.two(x)) * self.drop(torch.ones_like(x)))


class Frozen(Dropping):
    """Its second branch is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.two.requires_grad_(False)


GROUPS: dict[str, Any] = {"arch": "test_gradual_sss_blocks:Grouped", "trust": ("test_gradual_sss_blocks",)}
GROUPS |= {"image_size": 8}


def logits(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network.eval()(IMAGES)


def at_work(run: Run) -> Run:
    """All factors, scales and shifts are different."""
    draw = torch.Generator().manual_seed(0)
    for tensors in ({n: p.data for n, p in run.network.named_parameters() if p.ndim == 1}, run.hook.tensors["lambda"]):
        for tensor in tensors.values():
            tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.2)
    return run


@pytest.fixture
def blocks(tmp_path: Path) -> Run:
    return at_work(live(tmp_path, "sss", {"structures": "blocks"}, {}, **SMALL))


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return at_work(live(tmp_path, "sss", {"structures": "groups"}, {}, **GROUPS))


def check_gradients(run: Run, scaled: dict[str, Tensor], leaves: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    """The method's gradients are those of a network with the parameters `scaled`, made of `leaves` and `weights`."""
    functional_call(run.network.eval(), weights | scaled, (IMAGES,)).square().sum().backward()
    run.hook.before_forward(run)
    run.network(IMAGES).square().sum().backward()
    run.hook.after_backward(run)
    for name, parameter in run.network.named_parameters():
        assert torch.equal(parameter, weights[name]), name
        assert torch.allclose(parameter.grad, weights[name].grad, rtol=1e-4, atol=1e-4), name
    for slope, leaf in zip(run.hook._slopes.values(), leaves.values(), strict=True):
        assert torch.allclose(slope, leaf.grad, rtol=1e-4, atol=1e-4)


def leaves_of(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    weights = {name: p.detach().clone().requires_grad_() for name, p in run.network.named_parameters()}
    return {name: factor.clone().requires_grad_() for name, factor in run.hook.tensors["lambda"].items()}, weights


def test_a_branch_has_one_factor_on_its_last_batch_norm(blocks: Run) -> None:
    leaves, weights = leaves_of(blocks)
    assert [*leaves] == [f"layer{stage}.{block}.bn2.weight" for stage in (1, 2, 3) for block in (0, 1, 2)]
    assert all(len(leaf) == 1 for leaf in leaves.values())
    scaled = {n: weights[n] * leaves[n.removesuffix("bias") + "weight"] for n in weights if n.endswith("bn2.bias")}
    scaled |= {name: weights[name] * leaf for name, leaf in leaves.items()}
    check_gradients(blocks, scaled, leaves, weights)


def test_a_group_has_one_factor_on_the_batch_norm_behind_it_or_itself(groups: Run) -> None:
    leaves, weights = leaves_of(groups)
    assert {name: len(leaf) for name, leaf in leaves.items()} == {"bn2.weight": 4, "conv4.weight": 6}
    bn, conv = (leaf.repeat_interleave(4) for leaf in leaves.values())
    scaled = {"bn2.weight": weights["bn2.weight"] * bn, "bn2.bias": weights["bn2.bias"] * bn}
    scaled |= {"conv4.weight": weights["conv4.weight"] * conv[:, None, None, None]}
    check_gradients(groups, scaled | {"conv4.bias": weights["conv4.bias"] * conv}, leaves, weights)


def test_branches_of_factor_zero_go_and_others_keep_their_factor(blocks: Run) -> None:
    factors = blocks.hook.tensors["lambda"]
    for name in ("layer1.0", "layer2.0", "layer3.2"):
        factors[f"{name}.bn2.weight"].zero_()
    scale, mask = blocks.network.layer1[1].bn2.weight, torch.ones(4, 4, 3, 3)
    blocks.mask({"layer1.0.conv1.weight": mask, "layer1.1.conv1.weight": mask})
    expected = scale.detach() * factors["layer1.1.bn2.weight"]
    with blocks.hook.evaluating(blocks):
        before = logits(blocks.network)
    state = blocks.network.layer1[0].conv1.weight
    blocks.optimizer.state[state] = {"momentum_buffer": torch.ones_like(state)}
    blocks.hook.end(blocks)
    assert torch.allclose(logits(blocks.network), before, rtol=1e-6, atol=1e-6)
    assert torch.allclose(scale, expected, rtol=1e-6)
    assert {*blocks.masks} == {"layer1.1.conv1.weight"}
    driven = [p for group in blocks.optimizer.param_groups for p in group["params"]]
    assert {*map(id, driven)} == {*map(id, blocks.network.parameters())}
    assert state not in blocks.optimizer.state
    assert {name.rpartition(".")[0] for name in blocks.cuts.absent} == {"layer1.0", "layer2.0", "layer3.2"}
    assert blocks.sums()["sparsity"] > 0.3


def test_groups_of_factor_zero_are_cut(groups: Run) -> None:
    factors = groups.hook.tensors["lambda"]
    factors["bn2.weight"][[1, 2]], factors["conv4.weight"][:] = 0, 0
    with groups.hook.evaluating(groups):
        before = logits(groups.network)
    groups.hook.end(groups)
    network = groups.network
    assert torch.allclose(logits(network), before, rtol=1e-5, atol=1e-6)
    assert (network.conv1.out_channels, network.conv2.out_channels, network.conv2.groups) == (8, 8, 2)
    assert (network.conv4.out_channels, network.conv4.groups) == (4, 1)  # a layer never loses all


@pytest.mark.parametrize(
    ("network", "words"),
    [("Twice", "conv runs more than once"), ("Few", "conv loses channels of every group")],
)
def test_groups_that_cannot_go_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, words: str
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    with pytest.raises(TargetError, match=words):
        live(tmp_path, "sss", {"structures": "groups"}, {}, **GROUPS | {"arch": f"{__name__}:{network}"})


def test_branches_that_are_not_trained_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    options = GROUPS | {"arch": f"{__name__}:Frozen"}
    assert [*live(tmp_path, "sss", {"structures": "blocks"}, {}, **options).hook.tensors["lambda"]] == ["one.weight"]
    with pytest.raises(TargetError, match="two is not trained"):
        live(tmp_path, "sss", {"structures": "blocks"}, {"only": ["two"]}, **options)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network trained on real digits that lost some branches, beside the snapshot of its beginning."""
    folder = tmp_path_factory.mktemp("blocks")
    train(folder, **PART, epochs=3, keep="0")
    return folder / "x.safetensors"


def test_training_takes_branches_away_without_a_loss(cut: Path) -> None:
    sidecar = checkpoints.load(cut).sidecar
    log, last = sidecar.metrics.curve[-1], sidecar.metrics.last
    assert log.method["zero"] == 1
    assert last
    assert last.values == pytest.approx(log.score, rel=1e-5)
    assert {name.rpartition(".")[0] for name in sidecar.surgery.absent} == {
        "layer2.0",
        *(f"layer3.{i}" for i in range(3)),
    }
    assert sidecar.optimizer
    assert not any(name.startswith("layer3.") for group in sidecar.optimizer.groups for name in group.params)


def test_every_other_command_takes_the_result(cut: Path, tmp_path: Path) -> None:
    absent = checkpoints.load(cut).sidecar.surgery.absent
    run: dict[str, Any] = {"threads": 1, "output": str(tmp_path / "next.safetensors")}
    tuned = prunecli.finetune(prunecli.FinetuneOptions(checkpoint=str(cut), epochs=1, **run)).checkpoint
    assert tuned.sidecar.surgery.absent == absent
    drawn = prunecli.scratch(ScratchOptions(checkpoint=str(cut), epochs=0, output=str(tmp_path / "drawn.safetensors")))
    assert {name: w.shape for name, w in drawn.checkpoint.weights.items()} == {
        n: w.shape for n, w in tuned.weights.items()
    }
    with pytest.raises(UsageError, match="has lost"):
        prunecli.scratch(
            ScratchOptions(checkpoint=str(cut), shape="guided", epochs=0, output=str(tmp_path / "g.safetensors"))
        )
    wide = prunecli.scratch(
        ScratchOptions(checkpoint=str(cut), shape="uniform", epochs=0, output=str(tmp_path / "wide.safetensors"))
    )
    assert {*wide.checkpoint.trained} == {n for n in wide.checkpoint.weights if n.endswith(("weight", "bias"))}
    assert any(name.startswith("layer3.1.") for name in wide.checkpoint.trained)
    exported = prunecli.export(ExportOptions(checkpoint=str(cut), output=str(tmp_path / "x.onnx")))
    assert exported.path.stat().st_size < 40_000  # of 75 kB


def test_a_snapshot_rewinds_to_what_is_left(cut: Path, tmp_path: Path) -> None:
    snapshot = str(cut.with_name("x.epoch0.safetensors"))
    output = str(tmp_path / "rewound.safetensors")
    prunecli.rewind(RewindOptions(checkpoint=str(cut), to=snapshot, output=output))
    rewound, early = checkpoints.load(output), checkpoints.load(snapshot)
    assert rewound.weights.keys() == checkpoints.load(cut).weights.keys()
    assert all(torch.equal(tensor, early.weights[name]) for name, tensor in rewound.weights.items())
    assert [*rewound.trained] == [name for name in early.trained if name in rewound.weights]
    prunecli.rewind(RewindOptions(checkpoint=str(cut), to=snapshot, regime="lr-rewind", output=output))
    assert rewound.trained == checkpoints.load(output).trained


def test_a_second_prune_cuts_channels_of_what_is_left(cut: Path, tmp_path: Path) -> None:
    output = tmp_path / "narrow.safetensors"
    prunecli.prune(prunecli.PruneOptions(checkpoint=str(cut), method="l1", sparsity=0.5, output=str(output)))
    network, narrow = prunecli.load(output)
    assert network.layer1[0].conv1.out_channels == network.conv1.out_channels == 2
    assert narrow.sidecar.surgery.absent == checkpoints.load(cut).sidecar.surgery.absent
    gone = prune(output, **BLOCKS, only=("layer1.1",), output=str(tmp_path / "less.safetensors"))
    lost = gone.sidecar.surgery
    assert lost.absent["layer1.1.conv1"]["weight"].shape == [4, 4, 3, 3]  # of the dense network
    assert not any(name.startswith("layer1.1") for name in (*lost.axes, *lost.attributes))
    dense = checkpoints.load(cut.with_name("x.epoch0.safetensors"))
    row = prunecli.report(ReportOptions(checkpoints=(str(tmp_path / "less.safetensors"),), structure=True)).rows[0]
    sums, outline = row.sums, row.structure
    assert sums.original_params == sum(dense.weights[name].numel() for name in dense.trained)
    assert outline is not None
    assert "layer1.1.conv2" in outline.absent
    assert "10 more are gone" in outline.summary
    (layer,) = (layer for layer in sums.layers if layer.name == "layer1.1.conv2")
    assert (layer.shape, layer.original_shape, layer.macs, layer.original_macs) == ((0, 4, 3, 3), (4, 4, 3, 3), 0, 9216)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer9": {}}, "takes layer9 away"),
        ({"layer1.0.conv1": {}}, "takes layer1.0.conv1.weight"),
        ({"layer1.0.conv1": {"weight": Gone(shape=[4, 4, 3, 9])}}, "takes layer1.0.conv1.weight"),
        ({"layer1.0.conv1": {"weight": Gone(shape=[4, 4, 3, 3])}}, "does not run"),  # its batch norm asks for a shape
        ({"fc": {"weight": Gone(shape=[10, 16]), "bias": Gone(shape=[10])}}, "has no output"),
        ({"avgpool": {}}, "has no output"),
    ],
)
def test_a_sidecar_that_takes_away_what_it_must_not_is_refused(cut: Path, change: dict[str, Any], words: str) -> None:
    changed = checkpoints.load(cut)
    changed.sidecar.surgery.absent |= change
    changed.weights = {name: w for name, w in changed.weights.items() if not changed.sidecar.surgery.without(name)}
    with pytest.raises(DamagedError, match=words):
        checkpoints.build(changed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer1.0.bn2": {}}, "of layer1.0.bn2, which surgery says is absent"),
        ({"layer3": {}}, "part of layer3"),
        ({"": {}}, "absent"),
        ({"fc": {"bias": {"shape": [10], "positions": 1}}}, "no weight of a layer"),
        ({"layer9": {"weight": {"shape": [-4]}}}, "shape"),
        ({"layer9": {"weight": {"shape": [2**40, 2**40]}}}, "no tensor has the shape"),
    ],
)
def test_a_damaged_list_of_what_is_absent_is_told(
    cut: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    for end in ("safetensors", "json"):
        (tmp_path / f"x.{end}").write_bytes(cut.with_suffix(f".{end}").read_bytes())
    sidecar = json.loads((tmp_path / "x.json").read_text())
    sidecar["surgery"]["absent"] |= change
    del sidecar["checksum"]
    (tmp_path / "x.json").write_text(json.dumps(sidecar))
    with pytest.raises(DamagedError) as error:
        prunecli.report(ReportOptions(checkpoints=(str(tmp_path / "x.safetensors"),)))
    assert words in error.value.message


@pytest.mark.parametrize("what", ["absent", "axes"])
def test_what_is_absent_is_said_once(cut: Path, what: str) -> None:
    surgery = json.loads(cut.with_suffix(".json").read_text())["surgery"]
    name = next(iter(surgery["absent"]))
    surgery["index"].append({"of": 4, "kept": [0]})
    surgery[what][f"{name}.weight"] = {} if what == "absent" else {"0": 0}
    broken: Checkpoint = checkpoints.load(cut)
    with pytest.raises(ValueError, match="is part of"):
        type(broken.sidecar.surgery)(**surgery)


@pytest.mark.parametrize("steps", [3, 8])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, steps: int) -> None:
    check_resumed(tmp_path, steps, **PART)


@pytest.mark.parametrize(("network", "what"), [("Grouped", "groups"), ("Dropping", "blocks")])
def test_killed_runs_of_other_networks_do_so_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, what: str
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    arch = f"{__name__}:{network}"
    check_resumed(tmp_path, 8, **GROUPS | {"arch": arch}, method="sss", method_arg=(f"structures={what}", "gamma=1"))


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"arch": "lenet5", "method_arg": ("structures=blocks",)}, TargetError, "no residual branch"),
        ({**SMALL, "method_arg": ("structures=groups",)}, TargetError, "no layer in scope is a convolution in larger"),
        ({**SMALL, "method_arg": ("structures=blocks",), "only": ("layer9",)}, UsageError, "layer9"),
        ({**SMALL, "method_arg": ("structures=blocks",), "skip": ("layer*",)}, TargetError, "all are skipped"),
        ({**SMALL, "method_arg": ("structures=stages",)}, UsageError, "structures"),
    ],
)
def test_networks_without_such_structures_are_refused_before_training(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as error:
        train(tmp_path, method="sss", **options)
    assert words in error.value.message
    assert not list(tmp_path.iterdir())
