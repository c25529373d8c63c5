"""The networks by name: one table of the built-in ones, and those of other packages and of the user beside it.

Importing this loads no torch; building a network does.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prunecli.errors import UsageError, nearest
from prunecli.models import arguments

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Row:
    """A built-in network: `function` of `prunecli.models.<module>`, called with `sizes` and keyword arguments.

    `defaults` replace the function's own. `image` is the default input, (channels, side).
    """

    module: str
    function: str
    about: str
    sizes: tuple[int, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    image: tuple[int, int] = (3, 32)


NETWORKS = {
    "lenet5": Row("lenet", "lenet5", "LeNet-5 for 32 x 32 digits (PGP)", image=(1, 32)),
    "lenet5-branches": Row("lenet", "branches", "LeNet-5 with two parallel second stages (SWD)", image=(1, 32)),
    "vgg11": Row("vgg", "vgg", "VGG-11 with batch norm for CIFAR", (11,)),
    "vgg13": Row("vgg", "vgg", "VGG-13 with batch norm for CIFAR", (13,)),
    "vgg16": Row("vgg", "vgg", "VGG-16 with batch norm and a hidden layer, as in Li et al.", (16,), {"hidden": 512}),
    "vgg19": Row("vgg", "vgg", "VGG-19 with batch norm for CIFAR (RVNP, GReg; PGP with bias=true)", (19,)),
    "resnet20": Row("resnet", "three_stages", "ResNet-20 for CIFAR", (20,)),
    "resnet32": Row("resnet", "three_stages", "ResNet-32 for CIFAR", (32,)),
    "resnet44": Row("resnet", "three_stages", "ResNet-44 for CIFAR", (44,)),
    "resnet56": Row("resnet", "three_stages", "ResNet-56 for CIFAR", (56,)),
    "resnet110": Row("resnet", "three_stages", "ResNet-110 for CIFAR", (110,)),
    "resnet18": Row("resnet", "four_stages", "ResNet-18 with the stem for small images, unlike torchvision's", (18,)),
    "resnet34": Row("resnet", "four_stages", "ResNet-34 with the stem for small images, unlike torchvision's", (34,)),
    "resnet50": Row("resnet", "four_stages", "ResNet-50 for ImageNet", (50,), {"stem": "imagenet"}),
    "preresnet56": Row("preresnet", "preresnet", "pre-activation ResNet-56 with bottlenecks for CIFAR", (56,)),
    "preresnet110": Row("preresnet", "preresnet", "pre-activation ResNet-110 with bottlenecks for CIFAR", (110,)),
    "preresnet164": Row("preresnet", "preresnet", "pre-activation ResNet-164 with bottlenecks for CIFAR", (164,)),
    "densenet40": Row("densenet", "densenet", "DenseNet-40 without bottlenecks for CIFAR", (40,)),
    "densenet-bc-100": Row("densenet", "densenet_bc", "DenseNet-BC-100 for CIFAR", (100,)),
    "wrn-16-8": Row("wrn", "wrn", "wide ResNet-16-8 for CIFAR (ASL); any wrn-D-K with D = 6n + 4", (16, 8)),
}
WIDE = re.compile(r"wrn-([1-9][0-9]{0,3})-([1-9][0-9]{0,3})")
TORCHVISION = "torchvision:"
TIMM = "timm:"


def names() -> list[str]:
    """The built-in networks, in the table's order."""
    return list(NETWORKS)


def describe() -> dict[str, str]:
    """One line for each thing that `--arch` takes."""
    outside = {
        "torchvision:NAME": "any network of torchvision, such as torchvision:mobilenet_v2",
        "timm:NAME": "any network of timm, such as timm:resnet10t",
        "package.module:function": "your own function that returns a torch.nn.Module",
    }
    return {name: row.about for name, row in NETWORKS.items()} | outside


def build(name: str, args: dict[str, Any], trust: Collection[str] = ()) -> nn.Module:
    """The dense network `name` with new weights from torch's generator, in training mode, on torch's default device.

    `trust` lists the modules whose code a name `package.module:function` may import. Raises UsageError for an unknown
    name, an argument that the network does not take, and a function that is not trusted or does not work.
    """
    if ":" in name:
        from prunecli.models import external

        return external.build(name, args, trust)
    row, function = _constructor(name)
    checked = arguments.check(name, function, args)
    network: nn.Module = function(*row.sizes, **(row.defaults | checked))
    return network


def options(name: str, trust: Collection[str] = ()) -> dict[str, Any]:
    """The arguments that `build` takes for `name` and their defaults (None where unknown). Raises as `build` does."""
    if ":" in name:
        from prunecli.models import external

        return external.options(name, trust)
    row, function = _constructor(name)
    return arguments.options(function) | row.defaults


def input_shape(name: str, args: dict[str, Any]) -> tuple[int, int, int] | None:
    """The input (C, H, W) that the network was made for; None for a user's function, which takes what its data has.

    Raises UsageError for an unknown built-in or timm name and for sizes in `args` that are none, PruneError where a
    name needs timm and it is not installed.
    """
    if name.startswith(TIMM):
        from prunecli.models import external

        shape = external.timm_input(name)
        sides = args.get("img_size", shape[1:])
        sides = sides if isinstance(sides, list | tuple) and len(sides) == 2 else (sides, sides)
        height, width = (arguments.convert(name, "img_size", s, arguments.ImageSide, shape[1]) for s in sides)
        channels = arguments.convert(name, "in_chans", args.get("in_chans", shape[0]), arguments.Channels, shape[0])
        return channels, height, width
    if name.startswith(TORCHVISION):
        side = 299 if "inception" in name else 224
        side = arguments.convert(name, "image_size", args.get("image_size", side), arguments.ImageSide, side)
        return 3, side, side
    if ":" in name:
        return None
    row = _row(name)
    channels, side = row.image
    if (row.defaults | args).get("stem") == "imagenet":
        side = 224
    channels = arguments.convert(name, "in_channels", args.get("in_channels", channels), arguments.Channels, channels)
    return channels, side, side


def _row(name: str) -> Row:
    if match := WIDE.fullmatch(name):
        depth, widen = match.groups()
        return Row("wrn", "wrn", f"wide ResNet-{depth}-{widen} for CIFAR", (int(depth), int(widen)))
    if name not in NETWORKS:
        message = f"there is no network {name!r}"
        outside = ("wrn-D-K", "torchvision:NAME", "timm:NAME", "package.module:function")
        raise UsageError(message, nearest(name, [*NETWORKS, *outside]))
    return NETWORKS[name]


def _constructor(name: str) -> tuple[Row, Callable[..., Any]]:
    row = _row(name)
    module = importlib.import_module(f"prunecli.models.{row.module}")
    return row, getattr(module, row.function)
