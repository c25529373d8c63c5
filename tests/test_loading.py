"""`prunecli.load` and what it builds: without values that the weights replace at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunecli import models
from prunecli.models.unfilled import unfilled

SAMPLES = Path(__file__).parent.parent / "sample_checkpoints"


def test_loading_draws_no_weights_and_imports_no_compiler() -> None:
    program = (
        "import sys, torch, prunecli\n"
        "torch.manual_seed(0)\n"
        "before = torch.get_rng_state()\n"
        "network, _ = prunecli.load(sys.argv[1])\n"
        "assert torch.equal(torch.get_rng_state(), before)\n"
        "assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 10)\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(SAMPLES / "cut.safetensors")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("name", ["resnet20", "torchvision:mobilenet_v2", "torchvision:vit_b_32", "torchvision:swin_t"])
def test_an_unfilled_network_is_the_network_without_values(name: str) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with unfilled():
        hollow = models.build(name, {})
    assert torch.equal(torch.get_rng_state(), before)
    with torch.device("meta"):
        meta = models.build(name, {})
    for key, tensor in meta.state_dict().items():
        found = hollow.state_dict()[key]
        assert (found.shape, found.dtype, found.device) == (tensor.shape, tensor.dtype, tensor.device)
    assert repr(hollow) == repr(meta)


def test_tensors_with_values_are_filled_inside_as_anywhere() -> None:
    with unfilled():
        tensor = torch.zeros(3, device="cpu")
        torch.nn.init.constant_(tensor, 2.0)
        assert tensor.clamp_(max=1.5).tolist() == [1.5] * 3
