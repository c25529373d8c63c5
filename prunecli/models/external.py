"""Networks from outside: torchvision's by name, and a user's function when its module is trusted."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prunecli.errors import UsageError, nearest
from prunecli.models.arguments import Classes, convert
from prunecli.models.registry import TORCHVISION
from prunecli.trust import load_object

# Downloads are not for a constructor, and a progress bar would be theirs.
NOT_ARGUMENTS = {"self", "kwargs", "args", "weights", "weights_backbone", "progress", "quantize"}


def build(name: str, args: dict[str, Any], trust: Collection[str] = ()) -> nn.Module:
    """The network of `torchvision:NAME` or `package.module:function`, called with `args`. Raises UsageError.

    Under `torch.device("meta")`, a user's constructor that needs values of its weights raises torch's RuntimeError.
    """
    if name.startswith(TORCHVISION):
        builder = _torchvision_builder(name)
        known = options(name)
        if unknown := [key for key in args if key not in known]:
            raise UsageError(f"{name} has no argument {unknown[0]!r}", nearest(unknown[0], known))
        if "num_classes" in args:
            convert(name, "num_classes", args["num_classes"], Classes, known["num_classes"])
        return _call(name, partial(builder, **_offline(builder)), args)
    return _call(name, _user_function(name, trust), args)


def options(name: str, trust: Collection[str] = ()) -> dict[str, Any]:
    """The arguments of the network and their defaults, None where they have none. Raises UsageError."""
    if name.startswith(TORCHVISION):
        builder = _torchvision_builder(name)
        network_class = inspect.signature(builder, eval_str=True).return_annotation
        functions = [builder, *(c.__init__ for c in network_class.__mro__ if c not in nn.Module.__mro__)]
    else:
        functions = [_user_function(name, trust)]
    found: dict[str, Any] = {}
    for function in functions:
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name not in NOT_ARGUMENTS:
                default = None if parameter.default is parameter.empty else parameter.default
                found.setdefault(parameter.name, default)
    return found


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
        if meta and isinstance(error, RuntimeError) and not name.startswith(TORCHVISION):
            raise  # a user's constructor may compute with values, which meta tensors have not: build it on a device
        given = ", ".join(f"{key}={value!r}" for key, value in args.items())
        raise UsageError(f"{name} failed to build with ({given}): {_say(error)}", "check its --arch-arg") from error
    if not isinstance(network, nn.Module):
        message = f"{name} returned an object of class {type(network).__name__}"
        raise UsageError(message, "the function must return a torch.nn.Module")
    return network.to("meta") if meta else network


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
    return torchvision.models.get_model_builder(short)  # type: ignore[no-any-return]


def _offline(builder: Callable[..., Any]) -> dict[str, Any]:
    """Arguments that keep a torchvision builder from downloading weights and from warning about their absence."""
    parameters = inspect.signature(builder).parameters
    offline: dict[str, Any] = {"weights": None}
    if "weights_backbone" in parameters:
        offline["weights_backbone"] = None
    if builder.__name__ in ("googlenet", "inception_v3"):
        offline["init_weights"] = True  # its own default, which it warns about when it is not named
    return offline
