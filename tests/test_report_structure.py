"""`report --structure`: what is tied to what, as JSON, a table and a picture."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunecli import checkpoint as checkpoints
from prunecli import models
from prunecli.commands.report import run
from prunecli.errors import UsageError
from prunecli.measure import cost, totals
from prunecli.options.report import ReportOptions
from prunecli.reporting.html import page
from prunecli.reporting.model import Report
from prunecli.reporting.pictures.lanes import lanes
from prunecli.reporting.structure import brief
from prunecli.reporting.terminal import render
from prunecli.reporting.tracing import outline
from prunecli.sidecar import Arch, Sidecar


def save(folder: Path, arch: str, name: str = "x", **args: Any) -> str:
    torch.manual_seed(0)
    network: nn.Module = models.build(arch, args)
    described = Sidecar(arch=Arch(name=arch, args=args), cost=cost(network, torch.zeros(1, 3, 32, 32)))
    path = folder / f"{name}.safetensors"
    checkpoints.save(checkpoints.Checkpoint(dict(network.state_dict()), described), path)
    return str(path)


def report(*paths: str, **options: Any) -> Report:
    made = run(ReportOptions(checkpoints=paths, structure=True, compressed=False, **options))
    assert isinstance(made, Report)
    return made


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("residual"), "resnet20", width=4)


def test_json_has_groups_with_members_and_reasons(residual: str) -> None:
    data = json.loads(json.dumps(report(residual).data()))["checkpoints"][0]["structure"]
    stream, first, *_, last = data["groups"]
    assert (stream["key"], stream["units"], len(stream["layers"])) == ("conv1", 4, 10)
    assert stream["tied_by"][0] == {"operation": "add", "layer": "layer1.0", "joined": ["conv1", "layer1.0.conv2"]}
    assert [tie["layer"] for tie in stream["tied_by"]] == [f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1, 2)]
    assert {"tensor": "conv1.weight", "axis": 0, "role": "out", "slices": 4} in stream["members"]
    assert {"tensor": "layer2.0.conv2.weight", "axis": 0, "role": "out", "slices": 4} in stream["members"]  # of 8
    assert first["key"] == "layer1.0.conv1"
    assert (first["layers"], first["readers"], first["tied_by"]) == (["layer1.0.conv1"], ["layer1.0.conv2"], [])
    assert (last["key"], last["units"]) == ("fc", 0)
    assert last["reason"] == "its channels are outputs of the network"
    assert data["never_called"] == []
    plain = run(ReportOptions(checkpoints=(residual,), compressed=False))
    assert plain.data()["checkpoints"][0]["structure"] is None


@pytest.mark.parametrize("width", [60, 120])
def test_terminal_table(residual: str, width: int) -> None:
    text = render(report(residual), width=width, color=False)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "structure of x" in text
    assert "cannot be cut: its" in re.sub(r"\s+", " ", text)
    assert "layer{1..3}.{0..2}.conv" in text  # a narrow table may break the name behind it


def test_terminal_table_has_one_row_for_layers_that_are_cut_alone_and_alike(residual: str, tmp_path: Path) -> None:
    text = render(report(residual), width=120, color=False)
    assert re.search(r"^ layer1\.\{0\.\.2\}\.conv1, each alone +4$", text, re.MULTILINE)
    assert re.search(r"^ layer3\.\{0\.\.2\}\.conv1, each alone +16$", text, re.MULTILINE)
    transformer = save(tmp_path, "timm:vit_tiny_patch16_224", "vit", img_size=32, depth=3)
    flat = re.sub(r"\s+", " ", render(report(transformer), width=200, color=False))
    assert "blocks.{0..2}.attn.qkv, each alone 64 a cut changes the function:" in flat
    assert "scaled_dot_product_attention in blocks.{0..2}.attn divides" in flat


def drawing(text: str) -> ElementTree.Element:
    (svg,) = re.findall(r"<svg class=\"natural\".*?</svg>", text, re.DOTALL)
    return ElementTree.fromstring(svg)


def texts(svg: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in svg.iter("{http://www.w3.org/2000/svg}text")]


def test_picture_has_a_line_a_layer_and_says_why(residual: str) -> None:
    text = page(report(residual))
    assert text == page(report(residual))
    svg = drawing(text)
    said = texts(svg)
    for layer in ("conv1", "layer2.1.conv2", "fc"):
        assert layer in said
    assert any("tied by add in layer1.0" in line for line in said)
    assert any("tied by add in layer2.0 (4 of 8 channels)" in line for line in said)
    assert sum("4 units of its own" in line for line in said) == 3
    lane = svg.find("{http://www.w3.org/2000/svg}g[@class='lane']")
    assert lane is not None
    assert "".join(lane.itertext()).startswith("conv1: 4 units\nmade by conv1, layer1.0.conv2")
    assert "Of 20 layers 9 can be cut alone, 10 only together with others, in 1 group, 1 not at all." in text
    assert not re.search(r"(src|href)=\"(?!#)|url\((?!#)|<script", text)


def test_depthwise_convolutions_hand_channels_on(tmp_path: Path) -> None:
    made = report(save(tmp_path, "torchvision:mobilenet_v2", num_classes=10))
    groups = {group["key"]: group for group in made.data()["checkpoints"][0]["structure"]["groups"]}
    assert groups["features.2.conv.0.0"]["carriers"] == ["features.2.conv.1.0"]
    assert groups["features.2.conv.0.0"]["readers"] == ["features.2.conv.2"]
    said = texts(drawing(page(made)))
    assert any("hands on the units of features.2.conv.0.0" in line for line in said)


class Gated(nn.Module):
    """A gate of one channel, and a layer that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1, 1), nn.Linear(8, 5)
        self.idle = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        result: torch.Tensor = self.head((x * self.gate(x).sigmoid()).mean((2, 3)))
        return result


def test_layers_of_one_channel_are_not_those_that_never_ran() -> None:
    network = Gated()
    counted = totals(cost(network, torch.zeros(1, 3, 8, 8)), shapes(network), {})
    made = outline(network, (3, 8, 8), counted)
    assert made.never_called == ("idle",)
    assert made.of(made.lines[1]) == "cannot be cut: its output is a single channel"
    assert made.summary == "Of 3 layers 1 can be cut alone, 2 not at all, 1 never ran on these inputs (idle)."


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_checkpoints_of_one_structure_share_a_picture(residual: str, tmp_path: Path) -> None:
    other = save(tmp_path, "resnet20", "other", width=4)
    wide = save(tmp_path, "resnet20", "wide", width=6)
    text = page(report(residual, other, wide))
    assert re.findall(r"<h2>(Structure of .*?)</h2>", text) == ["Structure of x, other", "Structure of wide"]
    ids = re.findall(r"\bid=\"([^\"]+)\"", text)
    assert len(ids) == len(set(ids))


def test_a_table_of_numbers_cannot_show_it(residual: str) -> None:
    with pytest.raises(UsageError, match="--structure"):
        report(residual, csv=True)


def expanded(text: str) -> list[str]:
    """What a shell makes of one word with braces."""
    pieces = re.split(r"\{(\d+)\.\.(\d+)\}", text)
    choices = [[p] for p in pieces[::3]]
    ranges = [[str(n) for n in range(int(a), int(b) + 1)] for a, b in zip(pieces[1::3], pieces[2::3], strict=True)]
    mixed = [choices[0], *itertools.chain(*zip(ranges, choices[1:], strict=True))]
    return ["".join(parts) for parts in itertools.product(*mixed)]


@given(
    st.lists(st.sampled_from([f"{a}{i}.{j}.c" for a in ("l", "m") for i in range(4) for j in range(3)]), unique=True)
)
def test_brief_names_are_the_names(names: list[str]) -> None:
    words = brief(names).split(", ") if names else []
    assert sorted(name for word in words for name in expanded(word)) == sorted(names)


def test_brief_names() -> None:
    assert brief(["conv1", "layer1.0.conv2", "layer1.1.conv2", "layer2.0.conv2"]) == (
        "conv1, layer1.{0..1}.conv2, layer2.0.conv2"
    )
    assert brief(["a.0.b.3", "a.1.b.3", "a.3.b.3"]) == "a.{0..1}.b.3, a.3.b.3"
    assert (
        brief([f"layer{i}.{j}.conv{k}" for i in (1, 2) for j in (0, 1) for k in (1, 2)])
        == "layer{1..2}.{0..1}.conv{1..2}"
    )
    assert brief(["s.0.a1.2", "s.0.b2.5", "s.1.b2.5"]) == "s.0.a1.2, s.{0..1}.b2.5"
    assert brief([""]) == ""


@given(st.dictionaries(st.text(min_size=1, max_size=2), st.lists(st.integers(0, 9), min_size=1), max_size=8))
def test_lanes_do_not_cross(rows: dict[str, list[int]]) -> None:
    rows = {key: sorted(numbers) for key, numbers in rows.items()}
    first = list(rows)[::2]
    lane = lanes(rows, first)
    assert lane.keys() == rows.keys()
    for one, other in itertools.combinations(rows, 2):
        if lane[one] == lane[other]:
            assert rows[one][-1] < rows[other][0] or rows[other][-1] < rows[one][0]
