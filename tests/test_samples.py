"""The sample checkpoints stay readable, small, and as good as they say."""

from __future__ import annotations

from pathlib import Path

import pytest

import prunecli
from prunecli import training
from prunecli.checkpoint import unpack_mask
from prunecli.options import Recipe

FOLDER = Path(__file__).parent.parent / "sample_checkpoints"
NAMES = ("dense", "dense.epoch10", "cut", "masked")


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_runs_and_scores_what_it_records(name: str) -> None:
    network, checkpoint = prunecli.load(FOLDER / f"{name}.safetensors")
    sidecar = checkpoint.sidecar
    channels, height, width = sidecar.cost.input
    data = training.open_data(sidecar.data, Recipe(), (channels, height, width))
    assert sidecar.metrics.last is not None
    scores = training.evaluate(network, data.test)
    # one of the 360 images may tip on a processor with other kernels
    assert scores["top1"] == pytest.approx(sidecar.metrics.last.values["top1"], abs=1.01 / 360)


def test_the_samples_are_of_the_four_kinds() -> None:
    dense, midway, cut, masked = (prunecli.load(FOLDER / f"{name}.safetensors")[1] for name in NAMES)
    assert cut.weights["conv2.weight"].shape == (8, 3, 5, 5)
    assert dense.weights["conv2.weight"].shape == (16, 6, 5, 5)
    assert midway.sidecar.training is not None
    assert (midway.sidecar.training.epoch, midway.sidecar.training.epochs) == (10, 30)
    assert midway.sidecar.optimizer is not None
    assert "momentum_buffer" in midway.sidecar.optimizer.state["conv1.weight"]
    for name, mask in masked.sidecar.masks.items():
        assert not masked.weights[name][~unpack_mask(mask)].any()


def test_the_samples_are_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 2_000_000
