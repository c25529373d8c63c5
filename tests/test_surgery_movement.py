"""Labels follow the data: an operation that moves elements moves their labels to the same places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunecli.surgery.call import Labels, labels_of, set_labels
from prunecli.surgery.layers import along
from prunecli.surgery.ledger import Ledger
from prunecli.surgery.mode import LabelMode

SHAPE = (2, 12, 4, 6)


def _put(x: Tensor, places: Any, values: Tensor) -> Tensor:
    x = x.clone()
    x[places] = values
    return x


# name -> operation on a tensor of SHAPE; further tensors are made by the operation itself
MOVES: dict[str, Callable[[Tensor], Any]] = {
    "permute": lambda x: x.permute(2, 0, -1, 1),
    "movedim": lambda x: x.movedim(1, -1),
    "movedim of two": lambda x: x.movedim((1, 2), (3, 0)),
    "transpose": lambda x: x.transpose(1, -2),
    "swapaxes": lambda x: x.swapaxes(-3, 0),
    "swapdims": lambda x: x.swapdims(1, 3),
    "mT": lambda x: x.mT,
    "mT of rows": lambda x: x.flatten(2).mT,
    "t": lambda x: x[0, :, 0].t(),
    "flatten": lambda x: x.flatten(1),
    "flatten in front": lambda x: x.flatten(0, 1),
    "unflatten": lambda x: x.unflatten(1, (3, 4)),
    "unflatten others": lambda x: x.unflatten(3, (2, -1)),
    "view": lambda x: x.view(2, 12, 24),
    "reshape": lambda x: x.reshape(2, 3, 4, 4, 6).transpose(1, 2).reshape(SHAPE),
    "reshape of a copy": lambda x: x.transpose(1, 3).reshape(2, 24, 12),
    "squeeze": lambda x: x[:1].squeeze(0),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "squeeze in place": lambda x: x[:1].clone().squeeze_(0),
    "unsqueeze in place": lambda x: x.clone().unsqueeze_(1),
    "transpose in place": lambda x: x.clone().transpose_(1, 2),
    "expand": lambda x: x[:1].expand(5, -1, -1, -1),
    "expand in front": lambda x: x.expand(3, *SHAPE),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "repeat in front": lambda x: x.repeat(2, 1, 3, 1, 1),
    "tile": lambda x: x.tile(2, 1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(3, 1),
    "flip": lambda x: x.flip(1, -1),
    "fliplr": lambda x: x.fliplr(),
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "roll": lambda x: x.roll((1, -2), (2, 3)),
    "slice of others": lambda x: x[:, :, 1:3, ::2],
    "select of others": lambda x: x[:, :, 1],
    "unbind of others": lambda x: x.unbind(2),
    "narrow of others": lambda x: x.narrow(3, 1, 2),
    "index_select of others": lambda x: x.index_select(3, torch.tensor([1, 1, 4], device=x.device)),
    "index": lambda x: x[:, :, [3, 0, 0]],
    "index of two": lambda x: x[:, :, [3, 0], [1, 2]],
    "index of two apart": lambda x: x[[1, 0], :, :, [1, 2]],
    "index of a table": lambda x: x[:, :, torch.tensor([[3, 0, 1], [1, 2, 2]], device=x.device)],
    "index behind a new axis": lambda x: x[:, None, :, [1]],
    "gather of others": lambda x: x.gather(3, torch.tensor([0, 2, 1], device=x.device).expand(2, 12, 4, 3)),
    "scatter of others": lambda x: x.scatter(3, torch.tensor([0, 2, 1], device=x.device).expand(2, 12, 4, 3), x),
    "index_put of others": lambda x: _put(x, (slice(None), slice(None), [1, 1]), x[:, :, :2]),
    "index_put": lambda x: _put(x, (slice(None), [4, 1]), x[:, :2]),
    "index_copy of others": lambda x: x.index_copy(2, torch.tensor([3, 0], device=x.device), x[:, :, 1:3]),
    "windows": lambda x: x.unfold(2, 3, 1),
    "unfold": lambda x: F.unfold(x, (2, 3)),
    "slice": lambda x: x[:, 3:7],
    "index along": lambda x: x[:, torch.tensor([3, 0], device=x.device)],
    "gather along": lambda x: x.gather(1, torch.tensor([0, 2, 1], device=x.device)[:, None, None].expand(2, 3, 4, 6)),
    "tensor_split apart": lambda x: x.tensor_split((5,), 1),
    "tensor_split in unequal parts": lambda x: x.tensor_split(5, 1),
    "select": lambda x: x.select(1, 3),
    "roll along": lambda x: x.roll(5, 1),
    "split": lambda x: x.split(6, 1),
    "split of others": lambda x: x.split([1, 3], 2),
    "unequal split": lambda x: x.split([5, 7], 1),
    "chunk": lambda x: x.chunk(3, 1),
    "tensor_split": lambda x: x.tensor_split(2, 1),
    "cat": lambda x: torch.cat([x, x.flip(1)], 1),
    "cat of others": lambda x: torch.cat([x, x], -1),
    "stack": lambda x: torch.stack([x, x], 2),
    "stack behind": lambda x: torch.stack([x, x], -1),
    "hstack": lambda x: torch.hstack([x, x]),
    "pad of others": lambda x: F.pad(x, (1, 2, 0, 1)),
    "pad": lambda x: F.pad(x, (0, 0, 0, 0, 2, 3)),
    "crop": lambda x: F.pad(x, (0, 0, 0, 0, -2, 0)),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 3),
    "contiguous": lambda x: x.transpose(1, 2).contiguous(),
    "to": lambda x: x.to(torch.float16),
}


def _outputs(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@pytest.mark.parametrize("axis", [1, 3])
@pytest.mark.parametrize("name", MOVES)
def test_labels_move_as_elements_do(name: str, axis: int) -> None:
    ledger = Ledger()
    nodes = ledger.axis("x", 0, SHAPE[axis])
    x = torch.empty(SHAPE, device="meta")
    set_labels(x, Labels(along(nodes, axis, len(SHAPE))))
    with torch.inference_mode(), LabelMode(ledger):
        found = _outputs(MOVES[name](x))
    labels = nodes.view([-1 if d == axis else 1 for d in range(len(SHAPE))]).expand(SHAPE).float()
    unit = ledger.components().unit
    for tensor, moved in zip(found, _outputs(MOVES[name](labels)), strict=True):
        expected = unit[moved.long()]
        layers = labels_of(tensor).layers
        if not layers:
            assert not expected.any(), "labels that are lost must be fixed"
        filled = moved == 0  # by a pad along other axes, which a cut shortens like the rest
        for layer in layers:
            got = unit[layer].expand(tensor.shape)
            assert torch.equal(got if (name, axis) == ("pad", 1) else got.masked_fill(filled, 0), expected)


PLACES = {  # names of operations that name places along the axis
    "slice", "select", "roll along", "crop", "unequal split", "index along", "index_put", "gather along",
    "tensor_split apart", "tensor_split in unequal parts",
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_channels_may_go_unless_the_code_names_their_places(name: str) -> None:
    ledger = Ledger()
    nodes = ledger.axis("x", 0, SHAPE[1])
    x = torch.empty(SHAPE, device="meta")
    set_labels(x, Labels(along(nodes, 1, len(SHAPE))))
    with torch.inference_mode(), LabelMode(ledger):
        MOVES[name](x)
    assert bool(ledger.components().unit[nodes].any()) == (name not in PLACES)
