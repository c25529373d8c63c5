"""Networks from outside: torchvision's by name, and a user's function when its module is trusted."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prunecli.errors import UsageError, nearest
from prunecli.models.arguments import Classes, convert
from prunecli.models.registry import TORCHVISION

FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
# Downloads are not for a constructor, and a progress bar would be theirs.
NOT_ARGUMENTS = {"self", "kwargs", "args", "weights", "weights_backbone", "progress", "quantize"}


def build(name: str, args: dict[str, Any], trust: Collection[str] = ()) -> nn.Module:
    """The network of `torchvision:NAME` or `package.module:function`, called with `args`. Raises UsageError."""
    if name.startswith(TORCHVISION):
        builder = _torchvision_builder(name)
        known = options(name)
        if unknown := [key for key in args if key not in known]:
            raise UsageError(f"{name} has no argument {unknown[0]!r}", nearest(unknown[0], known))
        if "num_classes" in args:
            convert(name, "num_classes", args["num_classes"], Classes, known["num_classes"])
        return _call(name, builder, _offline(builder) | args)
    with working_directory_importable():
        return _call(name, user_function(name, trust), args)


def options(name: str, trust: Collection[str] = ()) -> dict[str, Any]:
    """The arguments of the network and their defaults, None where they have none. Raises UsageError."""
    if name.startswith(TORCHVISION):
        builder = _torchvision_builder(name)
        network_class = inspect.signature(builder, eval_str=True).return_annotation
        functions = [builder, *(c.__init__ for c in network_class.__mro__ if c not in nn.Module.__mro__)]
        found = {"num_classes": 1000}
    else:
        functions = [user_function(name, trust)]
        found = {}
    for function in functions:
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name not in NOT_ARGUMENTS:
                default = None if parameter.default is parameter.empty else parameter.default
                found.setdefault(parameter.name, default)
    return found


def user_function(name: str, trust: Collection[str]) -> Callable[..., Any]:
    """The function `package.module:function`, imported with the working directory on the path.

    Raises UsageError when the name has another form, when neither the module nor a package around it is in `trust`
    (nothing is imported then), and when there is no such module or function or its import fails.
    """
    if not FUNCTION.fullmatch(name):
        raise UsageError(f"{name!r} is not a function's name", "write it as package.module:function")
    module_name, function_name = name.split(":")
    if not any(module_name == trusted or module_name.startswith(f"{trusted}.") for trusted in trust):
        hint = f"if you trust that code, add: --trust {module_name}"
        raise UsageError(f"{name} would import the module {module_name}, which is not trusted", hint)
    with working_directory_importable():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            hint = f"run prunecli in the folder that holds {module_name.split('.')[0]}, or install it"
            raise UsageError(f"importing {module_name} failed: {_say(error)}", hint) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        choices = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"the module {module_name} has no function {function_name!r}", nearest(function_name, choices))
    return function  # type: ignore[no-any-return]


@contextlib.contextmanager
def working_directory_importable() -> Iterator[None]:
    """The working directory in front of the import path, as with `python -m`."""
    here = os.getcwd()  # noqa: PTH109  # the path's entries are strings
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


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
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in args.items())
        raise UsageError(f"{name} failed to build with ({given}): {_say(error)}", "check its --arch-arg") from error
    if not isinstance(network, nn.Module):
        message = f"{name} returned an object of class {type(network).__name__}"
        raise UsageError(message, "the function must return a torch.nn.Module")
    return network.to("meta") if meta else network


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
