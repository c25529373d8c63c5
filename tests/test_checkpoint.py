"""Checkpoints: what is saved is what is loaded, and the network built from it is the one that was saved."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from prunecli import files, models
from prunecli.checkpoint import Checkpoint, build, load, pack_mask, read_weights, save, to_array, to_tensor, unpack_mask
from prunecli.errors import DamagedError, PruneError, UsageError
from prunecli.sidecar import Arch, Cost, IndexSet, Optimizer, ParamGroup, Schedule, Sidecar, Surgery, Training

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def plain(**parts: Any) -> Sidecar:
    return Sidecar(arch=parts.pop("arch", Arch(name="lenet5")), cost=Cost(input=[1, 32, 32]), **parts)


def with_momentum(weights: dict[str, Tensor]) -> Sidecar:
    state = {name: {"momentum_buffer": to_array(torch.randn_like(tensor))} for name, tensor in weights.items()}
    groups = [ParamGroup(params=list(weights), options={"lr": 0.1, "nesterov": True})]
    rng = {"cpu": to_array(torch.ones(9))}
    training = Training(epochs=3, batch_size=4, seed=0, lr=0.1, schedule=Schedule(), rng=rng)
    return plain(optimizer=Optimizer(name="SGD", groups=groups, state=state), training=training)


def lenet(path: Path) -> tuple[nn.Module, Checkpoint]:
    network = models.build("lenet5", {}).eval()
    save(Checkpoint(dict(network.state_dict()), plain()), path)
    return network, load(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


def test_every_dtype_and_shape_survives(path: Path) -> None:
    weights = {str(dtype): torch.tensor([[1, 0], [2, 5]]).to(dtype) for dtype in DTYPES}
    weights |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "strided": torch.arange(6.0).reshape(2, 3).T}
    sha256 = save(Checkpoint(weights, plain()), path)
    loaded = load(path)
    assert loaded.sha256 == sha256
    assert loaded.path == path
    for tensors in (loaded.weights, load_file(path)):
        assert tensors.keys() == weights.keys()
        for name, tensor in weights.items():
            assert tensors[name].dtype == tensor.dtype
            assert torch.equal(tensors[name], tensor)


def test_weights_file_is_what_safetensors_writes(path: Path) -> None:
    weights = {str(dtype): torch.tensor([1, 0, 2]).to(dtype) for dtype in DTYPES}
    weights |= {"b": torch.ones(3), "ä": torch.ones(2)}
    save(Checkpoint(weights, plain()), path)
    assert path.read_bytes() == safetensors_bytes(weights, metadata={"format": "pt"})


def test_bytes_depend_on_the_content_alone(path: Path) -> None:
    weights = {"a": torch.randn(3, 4), "b": torch.randn(3)}
    sidecar = with_momentum(weights)
    contents = []
    for order in (["a", "b"], ["b", "a"]):
        save(Checkpoint({name: weights[name] for name in order}, sidecar), path)
        contents.append((path.read_bytes(), path.with_suffix(".json").read_bytes()))
    assert contents[0] == contents[1]
    reloaded = load(path)
    save(reloaded, path)
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == contents[0]


@pytest.mark.parametrize("limit", [0, 10**6])
def test_optimizer_state_survives_inside_and_beside_the_sidecar(path: Path, limit: int) -> None:
    weights = {"a": torch.randn(3, 4), "b": torch.randn(3)}
    sidecar = with_momentum(weights)
    before = copy.deepcopy(sidecar)
    save(Checkpoint(weights, sidecar), path, inline_limit=limit)
    assert sidecar == before, "saving changes nothing in memory"
    loaded = load(path).sidecar
    assert loaded.optimizer == before.optimizer
    assert loaded.training == before.training
    state = path.with_name("x.state.safetensors")
    assert state.exists() == (limit == 0)
    raw = json.loads(path.with_suffix(".json").read_text())
    assert (raw["optimizer"]["state"]["a"]["momentum_buffer"]["data"] is None) == (limit == 0)
    if limit == 0:
        assert load_file(state).keys() == {"optimizer/a/momentum_buffer", "optimizer/b/momentum_buffer", "rng/cpu"}


def test_state_file_goes_when_the_new_checkpoint_has_none(path: Path) -> None:
    weights = {"a": torch.ones(3)}
    save(Checkpoint(weights, with_momentum(weights)), path, inline_limit=0)
    save(Checkpoint(weights, plain()), path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["x.json", "x.safetensors"]


def test_output_may_be_the_input(path: Path) -> None:
    save(Checkpoint({"a": torch.arange(1000.0), "b": torch.zeros(3)}, plain()), path)
    loaded = load(path)
    loaded.weights["b"] += 1
    save(loaded, path)
    assert torch.equal(load(path).weights["a"], torch.arange(1000.0))
    assert torch.equal(load(path).weights["b"], torch.ones(3))
    assert torch.equal(loaded.weights["a"], torch.arange(1000.0)), "the old file lives on in memory"


def test_training_mapped_weights_changes_no_file(path: Path) -> None:
    network, checkpoint = lenet(path)
    before = path.read_bytes()
    built = build(checkpoint).train()
    optimizer = torch.optim.SGD(built.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        built(torch.randn(2, 1, 32, 32)).square().sum().backward()
        optimizer.step()
    assert path.read_bytes() == before
    assert not torch.equal(built.conv1.weight, network.conv1.weight)
    assert torch.equal(load(path).weights["conv1.weight"], network.conv1.weight)


def test_tied_and_sliced_tensors_are_saved_under_each_name(path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    save(Checkpoint({"a": base, "b": base, "c": base[:, 1]}, plain()), path)
    weights = load_file(path)
    assert torch.equal(weights["a"], weights["b"])
    assert torch.equal(weights["c"], torch.tensor([1.0, 5.0, 9.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(path: Path, value: float, dtype: torch.dtype) -> None:
    save(Checkpoint({"a": torch.ones(3)}, plain()), path)
    before = path.read_bytes()
    bad = torch.ones(500, dtype=dtype)
    bad[321] = value
    with pytest.raises(DamagedError, match=r"x\.safetensors.*'layer\.weight'.* 1 value"):
        save(Checkpoint({"a": torch.ones(3), "layer.weight": bad}, plain()), path)
    assert path.read_bytes() == before


def test_large_finite_weights_and_infinite_buffers_are_accepted(path: Path) -> None:
    sidecar = plain()
    sidecar.cost.buffers = ["mask"]
    weights = {"w": torch.full((1000,), 3e38), "half": torch.full((1000,), 6e4).half()}
    weights["mask"] = torch.full((3, 3), float("-inf")).triu(1)
    save(Checkpoint(weights, sidecar), path)
    assert torch.equal(load(path).weights["mask"], weights["mask"])


@pytest.mark.parametrize("tensor", [torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse(), "text"])
def test_what_is_no_plain_tensor_is_refused(path: Path, tensor: Any) -> None:
    with pytest.raises(PruneError, match="'odd'"):
        save(Checkpoint({"odd": tensor}, plain()), path)
    assert list(path.parent.iterdir()) == []


def test_sidecars_that_could_not_be_read_back_are_refused(path: Path) -> None:
    sidecar = plain()
    sidecar.cost.other_macs = -1
    with pytest.raises(PruneError, match=r"x\.safetensors.*other_macs"):
        save(Checkpoint({"a": torch.ones(3)}, sidecar), path)
    assert list(path.parent.iterdir()) == []


@given(shape=st.lists(st.integers(0, 5), max_size=4), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_masks_survive_packing(shape: list[int], seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    packed = pack_mask(mask)
    assert packed.kept == int(mask.sum())
    assert torch.equal(unpack_mask(packed), mask)


def test_mask_bits_are_least_significant_first_in_c_order() -> None:
    mask = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 1, 1]], dtype=torch.bool)
    assert pack_mask(mask).bits == bytes([0b00001001, 0b00000011])
    assert pack_mask(mask.T).bits == bytes([0b11000001, 0b00000010])  # 1 0 0 0 0 0 1 1 0 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_hold_every_dtype(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[1, 0, 3], [7, 2, 1]]).to(dtype).T
    array = to_array(tensor)
    assert array.shape == [3, 2]
    assert torch.equal(to_tensor(array), tensor)
    assert to_tensor(array).dtype == dtype


def test_built_network_is_the_saved_one_without_a_copy(path: Path) -> None:
    network, checkpoint = lenet(path)
    random_state = torch.get_rng_state()
    built = build(checkpoint)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not built.training
    assert built.conv1.weight.data_ptr() == checkpoint.weights["conv1.weight"].data_ptr()
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(built(x), network(x))


@pytest.mark.parametrize("name", ["resnet20", "densenet40", "torchvision:swin_t", "torchvision:googlenet"])
def test_built_networks_run_like_the_saved_ones(path: Path, name: str) -> None:
    network = models.build(name, {"num_classes": 10}).eval()
    save(Checkpoint(dict(network.state_dict()), plain(arch=Arch(name=name, args={"num_classes": 10}))), path)
    x = torch.randn(1, *(models.input_shape(name, {}) or ()))
    built = build(load(path))
    assert_equal(dict(built.state_dict()), dict(network.state_dict()))
    with torch.no_grad():  # the mapped tensors are aligned otherwise, and some kernels then sum in another order
        torch.testing.assert_close(built(x), network(x), rtol=1e-4, atol=1e-4)


class Unusual(nn.Module):
    """Tied weights, a shared module, a buffer that is not stored and a plain tensor, all with values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.third = self.first
        self.register_buffer("scale", torch.tensor([2.0, 3.0, 4.0]), persistent=False)
        self.shift = torch.tensor([1.0, 0.0, -1.0])
        self.heads = 3
        self.window = (2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x))) * self.scale + self.shift


def unusual(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Unusual, Checkpoint]:
    monkeypatch.setattr(models, "build", lambda *_: Unusual())
    network = Unusual()
    save(Checkpoint(dict(network.state_dict()), plain()), path)
    return network, load(path)


def test_ties_and_values_outside_the_state_dict_are_restored(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, checkpoint = unusual(path, monkeypatch)
    built = build(checkpoint)
    assert isinstance(built, Unusual)
    assert built.first.weight is built.second.weight is built.third.weight
    x = torch.randn(2, 3)
    assert torch.equal(built(x), network(x))


def test_cut_buffers_that_are_not_stored_are_cut_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, checkpoint = unusual(path, monkeypatch)
    checkpoint.sidecar.surgery = Surgery(index=[IndexSet(of=3, kept=[0, 2])], axes={"scale": {"0": 0}})
    assert torch.equal(build(checkpoint).scale, torch.tensor([2.0, 4.0]))
    checkpoint.sidecar.surgery.index[0].of = 4
    with pytest.raises(DamagedError, match="scale"):
        build(checkpoint)


def test_tied_weights_that_differ_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, checkpoint = unusual(path, monkeypatch)
    checkpoint.weights["second.weight"] = torch.zeros(3, 3)
    with pytest.raises(DamagedError, match=r"second\.weight"):
        build(checkpoint)


def test_only_numbers_of_modules_can_be_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, checkpoint = unusual(path, monkeypatch)
    checkpoint.sidecar.surgery.attributes = {"": {"heads": 2, "window": [1, 3]}, "first": {"out_features": 2}}
    built = build(checkpoint)
    assert (built.heads, built.window, built.first.out_features) == (2, (1, 3), 2)
    wrong: list[tuple[str, str, int | list[int]]] = [
        ("", "forward", 1), ("", "__class__", 1), ("", "training", 0), ("", "_version", 1), ("", "nothing", 1),
        ("", "heads", 0), ("", "heads", -1), ("", "heads", 2**40), ("", "window", [1]), ("", "window", [1, 2**40]),
        ("nowhere", "heads", 1), ("", "heads", [1]), ("", "window", 2), ("first", "weight", 1), ("", "first", 1),
    ]  # fmt: skip
    for module, attribute, value in wrong:
        checkpoint.sidecar.surgery.attributes = {module: {attribute: value}}
        with pytest.raises(DamagedError, match=attribute):
            build(checkpoint)


def test_cut_network_is_built_with_its_widths(path: Path) -> None:
    dense = models.build("lenet5", {}).eval()
    kept = [0, 2, 5]
    weights = dict(dense.state_dict())
    weights |= {"conv1.weight": weights["conv1.weight"][kept], "conv1.bias": weights["conv1.bias"][kept]}
    weights["conv2.weight"] = weights["conv2.weight"][:, kept]
    surgery = Surgery(
        index=[IndexSet(of=6, kept=kept)],
        axes={"conv1.weight": {"0": 0}, "conv1.bias": {"0": 0}, "conv2.weight": {"1": 0}},
        attributes={"conv1": {"out_channels": 3}, "conv2": {"in_channels": 3}},
    )
    save(Checkpoint(weights, plain(surgery=surgery)), path)
    built = build(load(path))
    assert (built.conv1.out_channels, built.conv2.in_channels) == (3, 3)
    with torch.no_grad():
        dense.conv2.weight[:, [1, 3, 4]] = 0
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(built(x), dense(x))


def test_weights_of_another_architecture_are_refused(path: Path) -> None:
    _, checkpoint = lenet(path)
    for change, word in (
        (lambda w: w.pop("fc1.bias"), "lack fc1.bias"),
        (lambda w: w.update(extra=torch.ones(1)), "have extra"),
        (lambda w: w.update({"fc1.bias": torch.ones(83)}), "fc1.bias .*83.*84"),
        (lambda w: w.update({"fc1.bias": torch.ones(84).int()}), "fc1.bias .*int32"),
    ):
        damaged = Checkpoint(dict(checkpoint.weights), checkpoint.sidecar, path)
        change(damaged.weights)
        with pytest.raises(DamagedError, match=word):
            build(damaged)


@pytest.mark.parametrize(
    "arch",
    [Arch(name="lenet7"), Arch(name="lenet5", args={"width": 3}), Arch(name="torchvision:nothing"),
     Arch(name="lenet5", args={"num_classes": "ten"})],
)  # fmt: skip
def test_unknown_architectures_are_refused(path: Path, arch: Arch) -> None:
    _, checkpoint = lenet(path)
    checkpoint.sidecar.arch = arch
    with pytest.raises(DamagedError, match=r"x\.safetensors"):
        build(checkpoint)


def test_code_is_not_imported_unless_trusted(path: Path) -> None:
    _, checkpoint = lenet(path)
    checkpoint.sidecar.arch = Arch(name="this_is_not.there:network")
    with pytest.raises(UsageError) as caught:
        build(checkpoint)
    assert "--trust this_is_not.there" in caught.value.hint


def test_weights_are_read_from_foreign_files(tmp_path: Path) -> None:
    weights = {"a": torch.randn(2, 3), "b": torch.tensor(4)}
    wrapped = {"module." + name: tensor for name, tensor in weights.items()}
    for number, content in enumerate((weights, {"state_dict": wrapped, "epoch": 3}, {"model": weights}, wrapped)):
        torch.save(content, tmp_path / f"{number}.pt")
        assert_equal(read_weights(tmp_path / f"{number}.pt"), weights)
    (tmp_path / "bare.safetensors").write_bytes(safetensors_bytes(weights))
    assert_equal(read_weights(tmp_path / "bare.safetensors"), weights)
    save(Checkpoint(weights, plain()), tmp_path / "own.safetensors")
    assert_equal(read_weights(str(tmp_path / "own.safetensors")), weights)


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_pickles_are_never_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "text.pth").write_text("not a pickle")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    torch.save({"a": 1}, tmp_path / "number.pt")
    torch.save({"a": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.pt")
    for name in ("evil.pt", "text.pth", "list.pt", "number.pt", "nan.pt", "missing.pt", "missing.safetensors"):
        with pytest.raises(DamagedError, match=name) as caught:
            read_weights(tmp_path / name)
        assert caught.value.hint
        assert "torch.load" not in caught.value.message
    assert not (tmp_path / "pwned").exists()


def test_checkpoints_exist_until_they_are_removed(path: Path) -> None:
    files.remove(path)
    assert not files.exists(path)
    weights = {"a": torch.ones(3)}
    save(Checkpoint(weights, with_momentum(weights)), path, inline_limit=0)
    assert files.exists(path)
    files.remove(path)
    assert not files.exists(path)
    assert list(path.parent.iterdir()) == []
