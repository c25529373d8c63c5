"""Multiply-adds, parameters, sparsity, bytes and latency against closed forms."""

from __future__ import annotations

import os
import zlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunecli import models
from prunecli.errors import PruneError
from prunecli.measure import cost, disk_sizes, latency, totals
from prunecli.sidecar import Cost, IndexSet, Mask, Surgery


def sums(network, *inputs):
    measured = cost(network, *inputs)
    return totals(measured, {name: tuple(t.shape) for name, t in network.state_dict().items()}, {})


# parameters, and MACs to the published digits, of networks in their default configuration
@pytest.mark.parametrize(
    "name, params, macs, digits",
    [
        ("lenet5", 61_706, 416_520, 0),
        ("resnet56", 853_018, 125.5e6, -5),
        ("vgg19", 20_035_018, 398.1e6, -5),
        ("preresnet164", 1_703_258, 247.6e6, -5),
        ("densenet40", 1_059_298, 282.9e6, -5),
    ],
)
def test_published_networks(name, params, macs, digits):
    with torch.device("meta"):
        network = models.build(name, {})
    found = sums(network, torch.zeros(1, *models.input_shape(name, {})))
    assert found.params == params
    assert round(found.macs, digits) == macs
    assert found.macs == found.effective_macs == found.original_macs


@given(
    groups=st.sampled_from([1, 2, 3, 6]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    size=st.integers(7, 12),
    batch=st.integers(1, 3),
)
@settings(max_examples=25, deadline=None)
def test_convolution(groups, stride, padding, dilation, size, batch):
    layer = nn.Conv2d(6, 12, 3, stride, padding, dilation, groups)
    out = layer(torch.zeros(1, 6, size, size)).shape
    found = sums(layer, torch.zeros(batch, 6, size, size))
    assert found.macs == 12 * (6 // groups) * 9 * out[2] * out[3]


def test_transposed_convolution_acts_once_at_each_input_place():
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
    assert sums(layer, torch.zeros(5, 4, 7, 8)).macs == 4 * 3 * 9 * 7 * 8


def test_linear_on_sequences_and_vectors():
    assert sums(nn.Linear(4, 5), torch.zeros(3, 4)).macs == 20
    assert sums(nn.Linear(4, 5, bias=False), torch.zeros(3, 7, 4)).macs == 7 * 20


def test_bilinear_and_one_dimensional_convolution():
    assert sums(nn.Bilinear(4, 5, 3), torch.zeros(2, 4), torch.zeros(2, 5)).macs == 60
    assert sums(nn.Conv1d(2, 3, 5, padding=2), torch.zeros(2, 2, 11)).macs == 2 * 3 * 5 * 11


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attend(x, x, x, need_weights=False)[0]


def test_attention_products_are_apart():
    measured = cost(Attention(), torch.zeros(4, 5, 8))
    assert measured.positions == {"attend.in_proj_weight": 5, "attend.out_proj.weight": 5}
    assert measured.other_macs == 2 * 2 * 5 * 5 * 4  # scores and values, 2 heads of width 4


class Twice(nn.Module):
    """One layer called twice, after another, its weight masked and cast on the way."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 2, bias=False)
        self.shared = nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("mask", torch.ones(3, 3, 3, 3))
        self.plain = torch.ones(1, 3, 1, 1)  # a tensor that is neither parameter nor buffer

    def forward(self, x):
        weight = (self.shared.weight * self.mask).double().float()
        x = F.conv2d(self.shared(x) * self.plain, weight, padding=1)
        return self.last(x.mean((2, 3)))


def test_calls_are_summed_in_order_of_first_use():
    network = Twice()
    network.shared.train()
    network.last.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    measured = cost(network, torch.zeros(2, 3, 6, 6))
    assert list(measured.positions.items()) == [("shared.weight", 2 * 36), ("last.weight", 1)]
    assert measured.buffers == ["mask"]
    assert measured.input == [3, 6, 6]
    assert network.training
    assert network.shared.training
    assert not network.last.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(tensor.is_meta for tensor in network.state_dict().values())


def test_tied_parameters_count_once():
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    network[1].weight = network[0].weight
    found = sums(network, torch.zeros(1, 4))
    assert (found.params, found.macs) == (16, 32)


class Asks(nn.Module):
    """Takes the path through `second` where a value of the input says so; makes a constant without naming a device."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 6)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        x = self.attention(x, x, x)[0] + torch.ones(4)
        return self.second(x) if torch.unique(x).numel() > 0 else self.first(x)


@pytest.mark.parametrize("train", [False, True])
def test_a_path_that_depends_on_values_is_measured_with_values(train):
    network = Asks().train(train)
    measured = cost(network, torch.zeros(1, 5, 4))
    assert measured.positions == {"attention.in_proj_weight": 5, "attention.out_proj.weight": 5, "second.weight": 5}
    assert measured.other_macs == 2 * 5 * 5 * 4
    assert network.calls == 0
    assert network.training == train


def test_a_network_that_does_not_run_is_refused():
    with pytest.raises(PruneError, match="Linear cannot be measured: RuntimeError: mat1 and mat2"):
        cost(nn.Linear(4, 4), torch.zeros(1, 3))


SHAPES = {
    "conv.weight": (3, 2, 3, 3), "bn.weight": (3,), "bn.bias": (3,), "bn.running_mean": (3,),
    "fc.weight": (4, 3), "fc.bias": (4,),
}  # fmt: skip
COST = Cost(input=[2, 5, 5], positions={"conv.weight": 25, "fc.weight": 1}, buffers=["bn.running_mean"])


def mask(shape, kept):
    size = int(torch.tensor(shape).prod())
    return Mask(shape=list(shape), bits=((1 << kept) - 1).to_bytes((size + 7) // 8, "little"))


def test_totals_with_masks_by_hand():
    found = totals(COST, SHAPES, {"conv.weight": mask((3, 2, 3, 3), 10)})
    assert found.params == 54 + 6 + 12 + 4
    assert found.nonzero_params == found.params - 44
    assert found.macs == 54 * 25 + 12
    assert found.effective_macs == 10 * 25 + 12
    assert found.sparsity == 44 / 54
    assert found.sparsity_all == 44 / 76
    assert [(layer.name, layer.kind) for layer in found.layers] == [
        ("conv", "conv 3x3"), ("fc", "linear"), ("bn", "other"),
    ]  # fmt: skip
    assert found.layers[0].sparsity == 44 / 54
    assert found.layers[1].masked == 0


def test_totals_of_a_cut_network_know_the_original():
    surgery = Surgery(
        index=[IndexSet(of=6, kept=[0, 2, 5])],
        axes={"conv.weight": {"0": 0}, "bn.weight": {"0": 0}, "bn.bias": {"0": 0}, "fc.weight": {"1": 0}},
    )
    found = totals(COST, SHAPES, {}, surgery)
    assert found.layers[0].original_shape == (6, 2, 3, 3)
    assert found.layers[1].original_shape == (4, 6)
    assert found.original_params == 108 + 12 + 24 + 4
    assert found.original_macs == 108 * 25 + 24
    assert found.sparsity == 0


def test_the_original_macs_of_cut_attention_are_not_known():
    surgery = Surgery(index=[IndexSet(of=6, kept=[0, 2, 5])], axes={"conv.weight": {"0": 0}})
    with_products = Cost(input=[2, 5, 5], positions={"conv.weight": 25}, other_macs=7)
    assert totals(with_products, SHAPES, {}, surgery).original_macs is None
    assert totals(with_products, SHAPES, {}).original_macs == 54 * 25 + 7


def test_disk_sizes(tmp_path):
    content = os.urandom(10**5) + bytes(3 * 10**6)
    (tmp_path / "file").write_bytes(content)
    assert disk_sizes(tmp_path / "file") == (len(content), len(zlib.compress(content, 6)))
    assert disk_sizes(tmp_path / "file", compressed=False) == (len(content), None)


def test_latency_side_by_side_leaves_everything_as_it_was():
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, width), nn.Dropout()) for width in (8, 512)]
    networks[0].train()
    threads = torch.get_num_threads()
    example = torch.zeros(1, 1, 16, 16)
    found = latency([(network, example) for network in networks], (1, 256), threads=1, repeats=20)
    assert [[(t.backend, t.batch) for t in timings] for timings in found] == 2 * [
        [("pytorch", 1), ("onnxruntime", 1), ("pytorch", 256), ("onnxruntime", 256)]
    ]
    assert all(0 < t.q1_ms <= t.median_ms <= t.q3_ms for timings in found for t in timings)
    assert all((t.threads, t.repeats, t.device) == (1, 20, "cpu") for timings in found for t in timings)
    assert found[1][2].median_ms > found[0][2].median_ms  # 64 times the work
    assert networks[0].training
    assert torch.get_num_threads() == threads


def test_latency_without_onnxruntime_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PruneError, match="onnxruntime") as error:
        latency([(nn.Flatten(), torch.zeros(1, 2, 2))], repeats=2)
    assert "pip install" in error.value.hint


def test_a_module_of_two_names_keeps_its_values() -> None:
    shared = nn.Linear(3, 3)
    network = nn.Sequential(shared, nn.Sequential(shared))
    positions = cost(network, torch.zeros(1, 3)).positions
    assert not shared.weight.is_meta
    assert positions["0.weight"] == 2
