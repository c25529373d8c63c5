"""Networks of torchvision: all kinds are traced and cut without values, small ones of each have both properties.

`benchmarks/families.py --torchvision` goes through every one of them.
"""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunecli import models
from prunecli.models.unfilled import unfilled
from prunecli.surgery import Structure, apply, trace
from prunecli.vision import torchvision

SIDES = {"inception_v3": 299, "maxvit_t": 224, "vit_b_32": 224}
FOLLOW = [
    "alexnet", "convnext_tiny", "efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50",
    "resnext50_32x4d", "squeezenet1_0", "swin_t", "vgg11", "vgg11_bn", "vit_b_32", "deeplabv3_resnet50",
    "fcn_resnet50", "lraspp_mobilenet_v3_large",
]  # fmt: skip


def outputs(network: nn.Module, x: Tensor) -> list[torch.Size]:
    return [tensor.shape for tensor in tree_leaves(network(x))]


@pytest.mark.parametrize("name", FOLLOW)
def test_half_of_every_layer_goes_and_the_rest_runs(name: str) -> None:
    """In eval and in train mode, auxiliary heads included; nothing but the layers of the outputs is left alone."""
    side = SIDES.get(name, 64)
    with unfilled():
        network = models.build(f"torchvision:{name}", {})
    x = torch.zeros(2, 3, side, side, device="meta")
    structure = trace(network, torch.zeros(x.shape))
    assert {*structure.frozen.values()} == {"its channels are outputs of the network"}
    before = [outputs(network.train(train), x) for train in (False, True)]
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    apply(network, structure, oracle.half(structure))
    assert [outputs(network.train(train), x) for train in (False, True)] == before
    halved = [n for n in (sizes[name] / p.numel() for name, p in network.named_parameters()) if n > 1.5]
    assert len(halved) > 0.9 * len([n for n in sizes if n not in structure.frozen]) - 4


def small() -> dict[str, tuple[nn.Module, int]]:
    """Narrow or shallow networks of each family, and the side of their images."""
    tv = torchvision.models
    blocks = [tv.convnext.CNBlockConfig(8, 12, 2), tv.convnext.CNBlockConfig(12, None, 2)]
    heads = {"num_classes": 5}
    return {
        "convnext": (tv.ConvNeXt(blocks, **heads), 32),
        "densenet": (tv.DenseNet(4, (2, 3), 8, **heads), 32),
        "efficientnet": (tv.efficientnet_b0(**heads).features[:4], 32),
        "googlenet": (tv.GoogLeNet(init_weights=False, **heads), 48),
        "maxvit": (tv.MaxVit((32, 32), 8, 2, [8, 16], [1, 1], 4, 0.0, **heads), 32),
        "mnasnet": (tv.MNASNet(0.25, **heads), 32),
        "mobilenet_v2": (tv.mobilenet_v2(width_mult=0.25, **heads), 32),
        "mobilenet_v3": (tv.mobilenet_v3_small(width_mult=0.25, reduced_tail=True, **heads), 32),
        "regnet": (tv.RegNet(tv.regnet.BlockParams([1, 2], [16, 24], [8, 8], [2, 2], [1, 1], 0.25), **heads), 32),
        "resnet": (tv.resnet18(**heads), 32),
        "resnext": (tv.ResNet(tv.resnet.Bottleneck, [1, 1, 1, 1], groups=4, width_per_group=4, **heads), 32),
        "shufflenet": (tv.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 64], **heads), 32),
        "squeezenet": (tv.squeezenet1_1(**heads), 32),
        "vgg": (tv.vgg.make_layers([8, "M", 16, 16, "M", 32, "M"], batch_norm=True), 32),
        "vit": (tv.VisionTransformer(32, 8, 2, 2, 16, 24, **heads), 32),
        "lraspp": (tv.segmentation.lraspp_mobilenet_v3_large(width_mult=0.25, weights_backbone=None, **heads), 32),
    }


NETWORKS = small()


def inputs_of(*shape: int) -> tuple[Tensor]:
    return (torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0)),)


@pytest.mark.parametrize("family", NETWORKS)
def test_both_properties(family: str) -> None:
    network, side = NETWORKS[family]
    zoo.check(network, inputs_of(side, side))


@pytest.mark.parametrize("family", ["densenet", "maxvit", "resnext", "shufflenet", "vit"])
def test_a_cut_network_is_the_same_after_save_and_load(family: str) -> None:
    network, side = NETWORKS[family]
    oracle.check_saved(network, inputs_of(side, side))


def swin(version: str = "") -> nn.Module:
    parts: dict[str, Any] = {
        "block": getattr(torchvision.models.swin_transformer, f"SwinTransformerBlock{version}"),
        "downsample_layer": getattr(torchvision.models.swin_transformer, f"PatchMerging{version}"),
    }
    return torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5, **parts)


def test_swin_divides_by_the_root_of_its_channels_and_says_so() -> None:
    """Its cut network computes what the whole one does with that number of the cut one, and norms over what is left."""
    structure = zoo.check(swin(), inputs_of(32, 32), prepare=zoo.scaled_by_its_channels)
    assert len(structure.frozen) == 1


def test_segmentation_with_an_auxiliary_head() -> None:
    backbone = torchvision.models.resnet18(num_classes=5)
    layers = {f"layer{n}": name for n, name in ((3, "aux"), (4, "out"))}
    parts = torchvision.models._utils.IntermediateLayerGetter(backbone, layers)
    heads = [torchvision.models.segmentation.fcn.FCNHead(width, 5) for width in (512, 256)]
    structure = zoo.check(torchvision.models.segmentation.FCN(parts, *heads), inputs_of(32, 32))
    assert sorted(structure.frozen) == ["aux_classifier.4", "classifier.4"]


def test_video() -> None:
    video = torchvision.models.video.resnet
    network = video.VideoResNet(video.BasicBlock, [video.Conv3DSimple] * 4, [1, 1, 1, 1], video.BasicStem, 5)
    assert [*zoo.check(network, inputs_of(2, 16, 16)).frozen] == ["fc"]


def detector() -> tuple[nn.Module, Structure]:
    """An SSD of MobileNet and the structure of its backbone."""
    network = models.build("torchvision:ssdlite320_mobilenet_v3_large", {"num_classes": 3})
    return network, trace(network.backbone, torch.zeros(2, 3, 64, 64))


def test_the_backbone_inside_a_detection_network_is_cut_and_the_network_runs() -> None:
    network, structure = detector()
    assert sum(group.prunable for group in structure.groups) > 30
    assert {*structure.frozen.values()} == {"its channels are outputs of the network"}
    images = list(torch.rand(2, 3, 64, 64))
    before = network.eval()(images)
    apply(network.backbone, structure, oracle.half(structure))
    after = network(images)
    assert [{*found} for found in after] == [{*found} for found in before]
    target = {"boxes": torch.tensor([[4.0, 4.0, 30.0, 30.0]]), "labels": torch.tensor([1])}
    assert all(loss.isfinite() for loss in network.train()(images, [target] * 2).values())


def test_frozen_batch_norms_of_a_detection_backbone_are_cut_too() -> None:
    norm = torchvision.ops.FrozenBatchNorm2d
    body = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], norm_layer=norm)
    fpn = torchvision.models.detection.backbone_utils.BackboneWithFPN
    layers = {f"layer{n}": str(n) for n in (2, 3, 4)}
    structure = zoo.check(fpn(body, layers, [512, 1024, 2048], 8), inputs_of(32, 32))
    assert all(name.startswith("fpn.") for name in structure.frozen)
