"""The networks: sizes of the papers, behaviour that surgery and checkpoints rely on, names and arguments that fail."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunecli import models
from prunecli.errors import PruneError, UsageError
from prunecli.models.resnet import option_a
from prunecli.vision import torchvision


def on_meta(name: str, args: dict[str, Any] | None = None, trust: tuple[str, ...] = ()) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, args or {}, trust)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def macs(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of convolutions and matrix products for one input, counted by torch on the meta device."""
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops() // 2


SWD = {"shortcut": "projection", "post_add_bn": True}
SIZES = [
    ("lenet5", {}, 61_706, 416_520),
    ("lenet5-branches", {}, 64_122, 656_520),
    ("vgg16", {}, 14_987_722, 313_463_808),
    ("vgg19", {}, 20_035_018, 398_136_320),
    ("vgg19", {"bias": True}, 20_040_522, 398_136_320),
    ("vgg19", {"num_classes": 100}, 20_081_188, 398_182_400),
    ("resnet20", {"shortcut": "projection"}, 272_474, 40_813_184),
    ("resnet20", SWD, 273_146, 40_813_184),
    ("resnet20", {**SWD, "width": 64}, 4_330_442, 647_694_848),
    ("resnet56", {"shortcut": "projection"}, 855_770, 125_747_840),
    ("resnet56", {}, 853_018, 125_485_696),
    ("resnet110", {}, 1_727_962, 252_887_680),
    ("resnet18", {"post_add_bn": True}, 11_177_802, 555_422_720),
    ("resnet34", {"post_add_bn": True, "num_classes": 100}, 21_335_844, 1_159_448_576),
    ("resnet50", {"post_add_bn": True, "num_classes": 1000}, 25_587_240, 4_089_184_256),
    ("preresnet110", {}, 1_146_842, 167_430_656),
    ("preresnet164", {}, 1_703_258, 247_646_720),
    ("densenet40", {}, 1_059_298, 282_917_328),
    ("densenet-bc-100", {}, 769_162, 287_929_692),
    ("preresnet164", {"selection": True}, 1_703_258, 247_646_720),
    ("densenet40", {"selection": True}, 1_059_298, 282_917_328),
    ("wrn-16-8", {"num_classes": 100}, 11_012_036, 2_001_176_576),
    ("wrn-16-3", {"num_classes": 100}, 1_568_596, 286_722_816),
]


@pytest.mark.parametrize("name, args, expected_parameters, expected_macs", SIZES)
def test_sizes_are_those_of_the_papers(
    name: str, args: dict[str, Any], expected_parameters: int, expected_macs: int
) -> None:
    network = on_meta(name, args)
    assert parameters(network) == expected_parameters
    assert macs(network, models.input_shape(name, args)) == expected_macs


@pytest.mark.parametrize("name", models.names())
def test_every_network_maps_images_to_logits_and_its_gradient_reaches_every_weight(name: str) -> None:
    torch.manual_seed(0)
    args = {"num_classes": 7, "in_channels": 2}
    shape = models.input_shape(name, args)
    assert shape[0] == 2
    network = models.build(name, args)
    assert network.training
    small = shape[1:] if name.startswith("lenet") else (32, 32)
    x = torch.randn(2, 2, *small)
    logits = network(x)
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    after = network.eval()(x)
    assert after.shape == (2, 7)
    assert after.isfinite().all()


@pytest.mark.parametrize("name", ["lenet5-branches", "vgg11", "resnet20", "preresnet56", "densenet40", "wrn-10-1"])
def test_weights_depend_on_the_seed_alone(name: str) -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return models.build(name, {}).state_dict()

    one, same, other = state(3), state(3), state(4)
    assert all(torch.equal(one[key], same[key]) for key in one)
    weights = [key for key in one if one[key].dim() > 1]
    assert not any(torch.equal(one[key], other[key]) for key in weights)


@pytest.mark.parametrize("name", models.names())
def test_a_network_built_on_meta_works_once_its_tensors_are_replaced(name: str) -> None:
    network = on_meta(name)
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    state = {key: torch.zeros(tensor.shape, dtype=tensor.dtype) for key, tensor in network.state_dict().items()}
    network.load_state_dict(state, assign=True)
    tensors = [*network.parameters(), *network.buffers()]
    tensors += [value for module in network.modules() for value in vars(module).values() if torch.is_tensor(value)]
    assert not any(tensor.is_meta for tensor in tensors)


def test_option_a_takes_every_second_pixel_and_appends_zero_channels() -> None:
    x = torch.arange(2 * 5 * 4, dtype=torch.float32).reshape(1, 2, 5, 4).requires_grad_()
    y = option_a(x, 2, 5)
    assert y.shape == (1, 5, 3, 2)
    assert y[0, 1].tolist() == [[20, 22], [28, 30], [36, 38]]
    assert y[0, 2:].count_nonzero() == 0
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.sum() == 2 * 6  # the gradient crosses the shortcut
    assert option_a(x, 1, 2) is x


def test_resnet_with_option_a_runs_after_its_shared_channels_were_cut() -> None:
    network = models.build("resnet20", {"width": 4})
    kept = torch.arange(15)  # the last of the 16 channels of the third stage, a zero channel of its shortcut, goes

    def cut(name: str, axis: int) -> None:
        module, _, tensor = name.rpartition(".")
        owner = network.get_submodule(module)
        old = getattr(owner, tensor)
        new = old.detach().index_select(axis, kept)
        setattr(owner, tensor, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)

    for block in ("layer3.0", "layer3.1", "layer3.2"):
        cut(f"{block}.conv2.weight", 0)
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            cut(f"{block}.bn2.{tensor}", 0)
    for name in ("layer3.1.conv1.weight", "layer3.2.conv1.weight", "fc.weight"):
        cut(name, 1)
    assert network.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_weights_fit_the_imagenet_stem(depth: int) -> None:
    ours = models.build(f"resnet{depth}", {"stem": "imagenet", "num_classes": 12}).eval()
    theirs = models.build(f"torchvision:resnet{depth}", {"num_classes": 12}).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("name, gamma", [("vgg13", 0.5), ("resnet20", 1.0), ("preresnet56", 1.0), ("densenet40", 1.0)])
def test_initialisation_is_that_of_the_source(name: str, gamma: float) -> None:
    torch.manual_seed(0)
    network = models.build(name, {})
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            outputs, _, height, width = module.weight.shape
            expected = math.sqrt(2 / (height * width * outputs))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == gamma).all()
            assert (module.bias == 0).all()
    slimming = models.build(name, {"gamma": 0.25})
    assert {m.weight.unique().item() for m in slimming.modules() if isinstance(m, nn.BatchNorm2d)} == {0.25}


def test_vgg_linear_layers_start_at_one_hundredth() -> None:
    torch.manual_seed(0)
    first, _, _, last = models.build("vgg16", {"bias": True}).classifier
    assert first.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not last.bias.any()


def test_wide_resnet_has_biases_and_its_stride_on_the_second_convolution() -> None:
    network = on_meta("wrn-22-2")
    assert len(network.layer2) == 3
    block = network.layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.downsample[0].stride) == ((1, 1), (2, 2), (2, 2))
    assert all(module.bias is not None for module in network.modules() if isinstance(module, nn.Conv2d))


def test_post_add_norm_acts_on_the_sum() -> None:
    network = models.build("resnet20", SWD)
    assert sum(name.endswith("bn_add.weight") for name in network.state_dict()) == 9
    nn.init.zeros_(network.layer3[2].bn_add.weight)  # with a zero shift too, nothing passes the last block
    assert torch.equal(network(torch.randn(2, 3, 32, 32)), network.fc.bias.expand(2, -1))


def test_names_descriptions_and_options_agree() -> None:
    assert set(models.names()) < set(models.describe())
    for name in models.names():
        defaults = models.options(name)
        assert {"num_classes", "in_channels"} <= set(defaults)
        on_meta(name, defaults)
        assert models.input_shape(name, {})[0] == defaults["in_channels"]
    assert models.options("vgg16")["hidden"] == 512
    assert models.options("resnet50")["stem"] == "imagenet"


def test_input_shapes() -> None:
    assert models.input_shape("lenet5", {}) == (1, 32, 32)
    assert models.input_shape("wrn-28-10", {"in_channels": 1}) == (1, 32, 32)
    assert models.input_shape("resnet50", {}) == (3, 224, 224)
    assert models.input_shape("resnet50", {"stem": "cifar"}) == (3, 32, 32)
    assert models.input_shape("torchvision:vit_b_16", {"image_size": 64}) == (3, 64, 64)
    assert models.input_shape("torchvision:inception_v3", {}) == (3, 299, 299)
    assert models.input_shape("timm:resnet10t", {}) == (3, 176, 176)
    assert models.input_shape("timm:vit_tiny_patch16_224", {"img_size": 32, "in_chans": 1}) == (1, 32, 32)
    assert models.input_shape("timm:vit_tiny_patch16_224", {"img_size": [32, 64]}) == (3, 32, 64)
    assert models.input_shape("mine:network", {}) is None
    for name, args in (("resnet20", {"in_channels": "3"}), ("torchvision:vit_b_16", {"image_size": 0}), ("resnet", {})):
        with pytest.raises(UsageError):
            models.input_shape(name, args)


def test_looking_names_up_needs_no_torch() -> None:
    code = (
        "import sys; from prunecli import models; models.describe(); models.input_shape('resnet20', {});"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


WRONG = [
    ("resnet21", {}, "resnet21", "resnet2"),
    ("Resnet20", {}, "Resnet20", "resnet20"),
    ("", {}, "''", "lenet5"),
    ("wrn-21-8", {}, "wrn-21-8", "wrn-22-8"),
    ("wrn-4-8", {}, "wrn-4-8", "wrn-10-8"),
    ("wrn-9994-1", {}, "wrn-9994-1", "wrn-250-1"),
    ("wrn-16-0", {}, "wrn-16-0", "wrn-16-8"),
    ("wrn-16-9999", {}, "width factor", "1 to 20"),
    ("resnet20", {"classes": 10}, "'classes'", "it takes num_classes, in_channels, width"),
    ("resnet20", {"depth": 26}, "'depth'", "num_classes"),
    ("resnet20", {"num_classes": 0}, "'num_classes' of resnet20 is 0", "default, 10"),
    ("resnet20", {"num_classes": "10"}, "Expected `int`, got `str`", "default, 10"),
    ("resnet20", {"num_classes": True}, "Expected `int`, got `bool`", "default, 10"),
    ("resnet20", {"num_classes": 2.5}, "Expected `int`", "default, 10"),
    ("resnet20", {"in_channels": -1}, "'in_channels'", "default, 3"),
    ("resnet20", {"width": 10**12}, "<= 1024", "default, 16"),
    ("resnet20", {"shortcut": "B"}, "'B'", "default, 'A'"),
    ("resnet20", {"post_add_bn": 1}, "Expected `bool`", "default, False"),
    ("densenet40", {"growth": None}, "got `null`", "default, 12"),
    ("vgg16", {"gamma": float("nan")}, "'gamma'", "default, 0.5"),
    ("vgg16", {"hidden": [512]}, "got `array`", "default, 0"),
    ("torchvision:resnet17", {}, "'resnet17'", "'resnet18'"),
    ("torchvision:", {}, "''", "resnet18"),
    ("torchvision:resnet18", {"num_class": 3}, "'num_class'", "'num_classes'"),
    ("torchvision:resnet18", {"num_classes": 0}, "'num_classes'", "default, 1000"),
    ("torchvision:resnet18", {"weights": "DEFAULT"}, "'weights'", "num_classes"),
    ("torchvision:resnet18", {"norm_layer": "os.system"}, "not callable", "--arch-arg"),
    ("torchvision:densenet121", {"bn_size": 10**14}, "bn_size=100000000000000", "--arch-arg"),
    ("torchvision:vit_b_16", {"image_size": 225}, "image_size=225", "--arch-arg"),
    ("timm:resnet10", {}, "'resnet10'", "'resnet10t'"),
    ("timm:", {}, "''", "did you mean"),
    ("timm:resnet10t.no_such_tag", {}, "'resnet10t.no_such_tag'", "'resnet10t'"),
    ("timm:hf-hub:timm/resnet10t", {}, "'hf-hub:timm/resnet10t'", "did you mean"),
    ("timm:resnet10t", {"pretrained": True}, "'pretrained'", "num_classes"),
    ("timm:resnet10t", {"checkpoint_path": "x"}, "'checkpoint_path'", "did you mean"),
    ("timm:resnet10t", {"num_classes": 0}, "'num_classes'", "default, 1000"),
    ("timm:resnet10t", {"img_size": 32}, "img_size=32", "--arch-arg"),
    ("no such:thing", {}, "no such:thing", "package.module:function"),
    ("os:system", {"command": "true"}, "os:system", "--trust os"),
]


@pytest.mark.parametrize("name, args, message, hint", WRONG)
def test_a_wrong_name_or_argument_is_a_usage_error(name: str, args: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        on_meta(name, args)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_every_torchvision_classifier_is_known_by_name() -> None:
    names = torchvision.models.list_models(torchvision.models)
    assert len(names) >= 80
    for name in names:
        assert "num_classes" in models.options(f"torchvision:{name}")
        assert "weights" not in models.options(f"torchvision:{name}")


@pytest.mark.parametrize(
    "name", ["squeezenet1_1", "mobilenet_v3_small", "regnet_x_400mf", "googlenet", "swin_v2_t", "shufflenet_v2_x0_5"]
)
def test_torchvision_networks_are_built_on_meta(name: str) -> None:
    network = on_meta(f"torchvision:{name}", {"num_classes": 5})
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    shape = models.input_shape(f"torchvision:{name}", {})
    assert network.eval()(torch.empty(2, *shape, device="meta")).shape == (2, 5)


@pytest.mark.parametrize(
    "name", ["resnet10t", "resnet10t.c3_in1k", "inception_v4", "levit_128s", "swin_tiny_patch4_window7_224"]
)
def test_timm_networks_are_built_on_meta(name: str) -> None:
    network = on_meta(f"timm:{name}", {"num_classes": 5})
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    shape = models.input_shape(f"timm:{name}", {})
    assert network.eval()(torch.empty(2, *shape, device="meta")).shape == (2, 5)


def test_without_timm_its_networks_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PruneError) as caught:
        models.build("timm:resnet10t", {})
    assert "timm is not installed" in caught.value.message
    assert "pip install 'prunecli[timm]'" in caught.value.hint


def test_segmentation_networks_do_not_download_their_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
    network = on_meta("torchvision:lraspp_mobilenet_v3_large", {"num_classes": 4})
    assert network.eval()(torch.empty(1, 3, 64, 64, device="meta"))["out"].shape == (1, 4, 64, 64)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A user's module in the working directory, which leaves a trace when it is imported."""
    (tmp_path / "usernets.py").write_text(
        """
from pathlib import Path
import torch
from torch import nn
Path("imported").touch()
size = 3
def small(width=4, num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(8, width), nn.Linear(width, num_classes))
def rates():
    return nn.Sequential(*(nn.Dropout(rate.item()) for rate in torch.linspace(0, 0.5, 3)))
def values():
    network = nn.Linear(4, 4)
    network.scale = network.weight.abs().max().item()
    return network
def nothing():
    pass
def broken():
    raise KeyError("width")
def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
"""
    )
    (tmp_path / "userbroken.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.chdir(tmp_path)
    yield "usernets"
    sys.modules.pop("usernets", None)


def test_a_users_function_builds_the_network(module: str) -> None:
    path = list(sys.path)
    network = models.build("usernets:small", {"width": 6}, (module,))
    assert network(torch.zeros(1, 8)).shape == (1, 10)
    assert network[1].out_features == 6
    assert models.options("usernets:small", (module,)) == {"width": 4, "num_classes": 10}
    assert sys.path == path
    assert on_meta("usernets:small", trust=(module,))[1].weight.is_meta


@pytest.mark.parametrize("trust", [(), ("user",), ("usernets_",), ("usernet",), ("",)])
def test_code_that_is_not_trusted_is_not_imported(module: str, trust: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        models.build("usernets:small", {}, trust)
    assert "--trust usernets" in caught.value.hint
    assert not Path("imported").exists()
    assert module not in sys.modules


@pytest.mark.parametrize(
    "name, args, message",
    [
        ("usernets:smal", {}, "'smal'"),
        ("usernets:size", {}, "usernets:size"),
        ("usernets:nothing", {}, "NoneType"),
        ("usernets:broken", {}, "KeyError"),
        ("usernets:small", {"wide": 3}, "wide"),
        ("usernets:lazy", {}, "1.weight has no shape"),
        ("userbroken:network", {}, "no_such_module_anywhere"),
        ("usermissing:network", {}, "usermissing"),
    ],
)
def test_a_users_function_that_does_not_work_is_a_usage_error(
    module: str, name: str, args: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        models.build(name, args, (module, "userbroken", "usermissing"))
    assert message in caught.value.message
    assert caught.value.hint


def test_constructors_may_compute_rates_with_tensors_on_meta(module: str) -> None:
    network = on_meta("usernets:rates", trust=(module,))
    assert [layer.p for layer in network] == [0.0, 0.25, 0.5]


def test_constructors_that_need_weights_are_left_to_be_built_on_a_device(module: str) -> None:
    with pytest.raises(RuntimeError, match="meta"):
        on_meta("usernets:values", trust=(module,))
    assert models.build("usernets:values", {}, (module,)).scale > 0
