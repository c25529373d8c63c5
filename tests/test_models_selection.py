"""Channel selection in front of batch norms that head blocks: these lose channels, the maps that others read do not."""

from __future__ import annotations

from pathlib import Path

import oracle
import pytest
import torch
from torch import nn

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli.measure import cost
from prunecli.models.densenet import DenseNet
from prunecli.models.layers import ChannelSelection, initialise
from prunecli.models.preresnet import PreResNet
from prunecli.sidecar import Arch, Sidecar
from prunecli.surgery import Plan, apply, trace

IMAGES = (torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
NETWORKS = {
    "preresnet": lambda select: PreResNet(2, 4, 3, 3, select),
    "densenet": lambda select: DenseNet(10, 4, 3, 4, bc=False, select=select),
    "densenet-bc": lambda select: DenseNet(16, 4, 3, 3, bc=True, select=select),
}


def small() -> nn.Module:
    """A network as a checkpoint names it."""
    return network("preresnet")


def network(name: str, select: bool = True) -> nn.Module:
    torch.manual_seed(0)
    made = NETWORKS[name](select)
    initialise(made, 1.0)
    return made


@pytest.mark.parametrize("name", NETWORKS)
def test_what_heads_a_block_is_cut_by_itself_and_shared_maps_stay(name: str) -> None:
    made = network(name)
    structure = oracle.check_masking(made, IMAGES)
    oracle.check_dead(made, IMAGES)
    oracle.check_saved(made, IMAGES)
    selections = {n for n, module in made.named_modules() if isinstance(module, ChannelSelection)}
    prunable = {layer for group in structure.groups if group.prunable for layer in group.layers}
    assert selections <= prunable
    inside = {n for n in prunable - selections if n.endswith("conv1" if "bc" in name else ("conv1", "conv2"))}
    assert prunable == selections | inside
    assert all("looks up places" in structure.frozen[n] for n in structure.frozen if n != "fc")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_selection_of_everything_is_the_network_without(name: str) -> None:
    plain, selecting = network(name, select=False), network(name)
    for train in (True, False):
        assert torch.equal(plain.train(train)(*IMAGES), selecting.train(train)(*IMAGES))
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in selecting.named_parameters()]


def test_two_cuts_select_from_the_first_network() -> None:
    made = network("preresnet")
    key, chosen = "layer1.1.select", made.layer1[1].select
    record = apply(made, trace(made.eval(), *IMAGES), Plan({key: [1, 3, 4, 8, 11]}))
    record = apply(made, trace(made, *IMAGES), Plan({key: [0, 2, 4]}), record=record)
    assert chosen.index.tolist() == [1, 4, 11]
    assert record.index[record.axes[f"{key}.index"]["0"]].kept == [1, 4, 11]
    x = torch.arange(12.0).view(1, 12, 1, 1)
    assert chosen(x).flatten().tolist() == [1, 4, 11]
    assert made.layer1[1].bn1.num_features == made.layer1[1].conv1.in_channels == 3
    assert made.layer1[0].conv3.out_channels == 12


def test_a_cut_selection_is_exported(tmp_path: Path) -> None:
    made = small()
    structure = trace(made.eval(), *IMAGES)
    record = apply(made, structure, oracle.half(structure))
    sidecar = Sidecar(arch=Arch(name=f"{__name__}:small"), cost=cost(made, *IMAGES), surgery=record)
    path = tmp_path / "cut.safetensors"
    checkpoints.save(checkpoints.Checkpoint(made.state_dict(), sidecar), path)
    options = prunecli.ExportOptions(checkpoint=str(path), output=str(tmp_path / "cut.onnx"), trust=(__name__,))
    assert b"Gather" in prunecli.export(options).path.read_bytes()  # and it was checked against the network
