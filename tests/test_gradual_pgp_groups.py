"""Progressive gradient pruning of grouped convolutions: what a unit is when the run begins, it is to the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from gradual import check_resumed, train

FEW_GROUPS = """
from torch import nn

class Network(nn.Sequential):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 32, 3)
        self.b = nn.Conv2d(32, 32, 3, groups=4)
        self.c = nn.Conv2d(32, 10, 1)
        self.head = nn.Conv2d(10, 10, 1)

    def forward(self, x):
        return self.head(self.c(self.b(self.a(x).relu()).relu()).relu()).mean((2, 3))
"""
OWN: dict[str, Any] = {"arch": "few_groups:Network", "trust": ("few_groups",), "image_size": 8, "batch_size": 700}
OWN |= {"method": "rpgp", "method_arg": ("criterion=l1", "r=1"), "lr": 0.01}
UNITS = {"a": 8, "b": 8, "c": 10}  # the same channel of all four groups, twice, and single ones


@pytest.fixture(autouse=True)
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "few_groups.py").write_text(FEW_GROUPS)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("target", "shares"),
    [
        ({"ratios": "a=0.8,b=0.4,c=0.5"}, {"a": 0.8, "b": 0.4, "c": 0.5}),
        ({"sparsity": 0.8}, {"a": 0.8, "b": 0.8, "c": 0.8}),
    ],
)
def test_a_narrowed_network_loses_the_share_that_was_asked_for(
    tmp_path: Path, target: dict[str, Any], shares: dict[str, float]
) -> None:
    made = train(tmp_path, epochs=6, **OWN, **target)
    for t, entry in enumerate(made.sidecar.metrics.curve, start=1):
        left = {key: math.ceil(n * (1 - shares[key]) ** (t / 6) - 1e-9) for key, n in UNITS.items()}
        assert {key: entry.method[f"filters/{key}"] for key in UNITS} == left
    shapes = {name: made.weights[f"{name}.weight"].shape[:2] for name in ("a", "b", "c", "head")}
    a, b, c = left.values()
    assert shapes == {"a": (4 * a, 1), "b": (4 * b, a), "c": (c, 4 * b), "head": (10, c)}


def test_a_killed_run_goes_on_with_the_units_that_it_began_with(tmp_path: Path) -> None:
    check_resumed(tmp_path, 14, epochs=6, ratios="a=0.8,b=0.4,c=0.5", **OWN)
