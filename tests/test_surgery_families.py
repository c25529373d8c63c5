"""Families of timm: both properties of a small member of each. `benchmarks/families.py` has larger ones, and more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo

from prunecli import models

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
SMALL: dict[str, tuple[int, dict[str, Any]]] = {  # side of the images, arguments
    "resnet10t": (32, {}),
    "resnetv2_50d_gn": (32, {"layers": (1, 1), "channels": (128, 128), "stem_chs": 64}),
    "regnetx_002": (64, {}),
    "res2net50_14w_8s": (32, {"layers": (1, 1, 1, 1)}),
    "dla46x_c": (32, {}),
    "ese_vovnet19b_slim_dw": (32, {}),
    "ghostnet_050": (32, {}),
    "lcnet_035": (32, {}),
    "mobilenetv4_conv_small_035": (32, {}),
    "efficientnet_lite0": (64, {}),
    "convnextv2_atto": (32, {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 16)}),
    "xception41p": (32, {}),
    "densenetblur121d": (32, {"growth_rate": 4, "block_config": (2, 2)}),
    "skresnet18": (32, {"layers": (1, 1, 1, 1)}),
    "ecaresnet26t": (32, {"layers": (1, 1, 1, 1)}),
    "repvgg_a0": (32, {}),
    "gmixer_12_224": (32, {"img_size": 32}),
    "resmlp_12_224": (32, {"img_size": 32}),
    "vit_tiny_patch16_224": (32, VIT),
    "vit_relpos_small_patch16_224": (32, VIT),
    "deit3_small_patch16_224": (32, VIT),
    "deit_tiny_distilled_patch16_224": (32, VIT),
    "beit_base_patch16_224": (32, VIT),
    "cait_xxs24_224": (32, VIT),
    "swin_tiny_patch4_window7_224": (
        32, {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)},
    ),
    "levit_128s": (64, {"img_size": 64, "embed_dim": (32, 32, 32), "num_heads": (2, 2, 2), "key_dim": 8}),
    "poolformerv2_s12": (32, {}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "coat_lite_tiny": (32, {"img_size": 32}),
    "edgenext_xx_small": (64, {"depths": (1, 1, 2, 1), "dims": (8, 16, 16, 16)}),
}  # fmt: skip


DEPTHWISE = {
    "regnetx_002", "dla46x_c", "ese_vovnet19b_slim_dw", "ghostnet_050", "lcnet_035", "mobilenetv4_conv_small_035",
    "efficientnet_lite0", "xception41p", "mobilevit_xxs", "mobilevitv2_050",
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_both_properties(name: str) -> None:
    side, args = SMALL[name]
    network = models.build(f"timm:{name}", {"num_classes": 5} | args)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    dtype = torch.float32 if name in DEPTHWISE else torch.float64  # in which depthwise convolutions take seconds
    structure = zoo.check(network, (images,), dtype)
    assert any(group.prunable for group in structure.groups)
