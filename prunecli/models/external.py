"""Networks from outside: torchvision's and timm's by name, and a user's function when its module is trusted."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from prunecli.errors import PruneError, UsageError, nearest
from prunecli.models.arguments import Classes, convert
from prunecli.models.registry import TIMM, TORCHVISION
from prunecli.trust import load_object

# Downloads are not for a constructor, and a progress bar would be theirs; devices are chosen by --device.
NOT_ARGUMENTS = {"self", "kwargs", "args", "weights", "weights_backbone", "progress", "quantize", "pretrained"}
NOT_ARGUMENTS |= {"device", "dtype"}
# What timm's builders take beyond the parameters of the class that they return, which not all of them name.
TIMM_ARGUMENTS = ("num_classes", "in_chans", "img_size", "global_pool", "drop_rate", "drop_path_rate")
TIMM_INPUT = (3, 224, 224)  # of the few networks that timm has no configuration for


def build(name: str, args: dict[str, Any], trust: Collection[str] = ()) -> nn.Module:
    """The network of `torchvision:NAME`, `timm:NAME` or `package.module:function`, called with `args`.

    Raises UsageError, and PruneError where timm is not installed. Under `torch.device("meta")`, a user's constructor
    that needs values of its weights raises torch's RuntimeError.
    """
    if name.startswith((TORCHVISION, TIMM)):
        known = options(name)
        if unknown := [key for key in args if key not in known]:
            raise UsageError(f"{name} has no argument {unknown[0]!r}", nearest(unknown[0], known))
        if "num_classes" in args:
            convert(name, "num_classes", args["num_classes"], Classes, known["num_classes"])
    return _call(name, _builder(name, trust), args)


def options(name: str, trust: Collection[str] = ()) -> dict[str, Any]:
    """The arguments of the network and their defaults, None where they have none. Raises as `build` does."""
    builder = _builder(name, trust)
    functions: list[Callable[..., Any]] = [builder]
    if name.startswith((TORCHVISION, TIMM)):
        network_class = inspect.signature(builder, eval_str=True).return_annotation
        functions += [c.__init__ for c in network_class.__mro__ if c not in nn.Module.__mro__]
    found: dict[str, Any] = {}
    for function in functions:
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name not in NOT_ARGUMENTS:
                default = None if parameter.default is parameter.empty else parameter.default
                found.setdefault(parameter.name, default)
    return found | {key: found.get(key) for key in TIMM_ARGUMENTS if name.startswith(TIMM)}


def timm_input(name: str) -> tuple[int, int, int]:
    """The input (C, H, W) that timm's configuration of `timm:NAME` or `timm:NAME.TAG` has. Raises as `build`."""
    timm, short = _timm(name)
    config = timm.get_pretrained_cfg(short)
    return tuple(config.input_size) if config else TIMM_INPUT


class _SizesOnHost(TorchFunctionMode):
    """Under `torch.device("meta")`, keeps the small tensors that constructors compute sizes and rates with readable.

    RegNet derives its widths with `torch.arange`; many vision transformers their drop rates with `torch.linspace`.
    """

    FACTORIES = (torch.arange, torch.linspace, torch.tensor, torch.as_tensor)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        defaults = {"device": "cpu"} if func in self.FACTORIES else {}
        return func(*args, **defaults | (kwargs or {}))


def _call(name: str, function: Callable[..., Any], args: dict[str, Any]) -> nn.Module:
    meta = torch.get_default_device().type == "meta"
    try:
        with _SizesOnHost() if meta else contextlib.nullcontext():
            network = function(**args)
    except Exception as error:  # constructors raise anything
        if meta and isinstance(error, RuntimeError) and not name.startswith((TORCHVISION, TIMM)):
            raise  # a user's constructor may compute with values, which meta tensors have not: build it on a device
        given = ", ".join(f"{key}={value!r}" for key, value in args.items())
        raise UsageError(f"{name} failed to build with ({given}): {_say(error)}", "check its --arch-arg") from error
    if not isinstance(network, nn.Module):
        message = f"{name} returned an object of class {type(network).__name__}"
        raise UsageError(message, "the function must return a torch.nn.Module")
    lazy = [key for key, tensor in (*network.named_parameters(), *network.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise UsageError(f"{name} returned a network whose {lazy[0]} has no shape yet", "run it on a batch before")
    if meta and not all(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        network.to("meta")
    return network


def _builder(name: str, trust: Collection[str]) -> Callable[..., Any]:
    if name.startswith(TORCHVISION):
        return _torchvision_builder(name)
    if name.startswith(TIMM):
        timm, short = _timm(name)
        network, _, tag = short.partition(".")
        return partial(timm.model_entrypoint(network), pretrained_cfg=tag or None)
    return _user_function(name, trust)


def _user_function(name: str, trust: Collection[str]) -> Callable[..., Any]:
    function = load_object(name, trust)
    if not callable(function):
        raise UsageError(f"{name} is no function but a {type(function).__name__}", "name a function of that module")
    return function  # type: ignore[no-any-return]


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _torchvision_builder(name: str) -> Callable[..., Any]:
    from prunecli.vision import torchvision

    short = name.removeprefix(TORCHVISION)
    known = torchvision.models.list_models()
    if short not in known:
        raise UsageError(f"torchvision has no network {short!r}", nearest(short, known))
    builder = torchvision.models.get_model_builder(short)
    return partial(builder, **_offline(builder))


def _timm(name: str) -> tuple[ModuleType, str]:
    """The package, and the name in it."""
    import prunecli.vision  # noqa: F401  # timm imports torchvision

    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise PruneError(f"{name}: timm is not installed", "install it with: pip install 'prunecli[timm]'") from None
    short = name.removeprefix(TIMM)
    known = {*timm.list_models(), *timm.list_models(pretrained=True)}  # the latter with tags, as NAME.TAG
    if short not in known:
        raise UsageError(f"timm has no network {short!r}", nearest(short, known))
    return timm, short


def _offline(builder: Callable[..., Any]) -> dict[str, Any]:
    """Arguments that keep a torchvision builder from downloading weights and from warning about their absence."""
    parameters = inspect.signature(builder).parameters
    offline: dict[str, Any] = {"weights": None}
    if "weights_backbone" in parameters:
        offline["weights_backbone"] = None
    if builder.__name__ in ("googlenet", "inception_v3"):
        offline["init_weights"] = True  # its own default, which it warns about when it is not named
    return offline
