"""An ONNX model against the network that it was made from: onnxruntime and PyTorch on the same inputs.

On a CPU onnxruntime computes float16 models in float32, which hides overflow and rounding between the layers. So
float16 is checked twice: onnxruntime against PyTorch, and PyTorch with every result rounded to float16 against itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunecli.errors import VerificationError
from prunecli.exporting.convert import evaluating, named_outputs
from prunecli.exporting.needed import need

# shares of the largest output of a batch; float16 has 11 bits, and its rounding adds up over the layers
TOLERANCE, TOLERANCE_FP16 = 1e-4, 3e-2
REFUSED = "nothing was written"


@dataclass(frozen=True)
class Difference:
    """The largest difference over all outputs: absolute, and as a share of the largest output of its batch."""

    absolute: float
    relative: float


def verify(model: bytes, network: nn.Module, inputs: Iterable[Tensor], *, fp16: bool = False) -> Difference:
    """Run `model` and `network` (on the inputs' device, in eval mode) on each batch of `inputs` [N, ...].

    Raises `VerificationError` where onnxruntime cannot run the model, where an output is not finite, and where outputs
    differ in shape or by more than `TOLERANCE` (`TOLERANCE_FP16`) times the largest output of the batch.
    """
    session = _session(model, fp16)
    tolerance = TOLERANCE_FP16 if fp16 else TOLERANCE
    found = [Difference(0.0, 0.0)]
    with evaluating(network):
        for batch in inputs:
            expected = named_outputs(network(batch))
            try:
                actual = session.run(list(expected), {"input": batch.cpu().numpy()})
            except Exception as error:  # onnxruntime's exceptions share no base class of their own
                raise VerificationError(
                    f"onnxruntime fails on a batch of {len(batch)}: {_first_line(error)}",
                    f"{REFUSED}; --batch N fixes the batch size",
                ) from error
            for (name, want), got in zip(expected.items(), actual, strict=True):
                found.append(_compare(f"{name} in onnxruntime", want, torch.from_numpy(got), tolerance))
            if fp16:
                with _Rounding():  # type: ignore[no-untyped-call]
                    rounded = named_outputs(network(batch))
                found += [_compare(f"{n} in float16 arithmetic", expected[n], rounded[n], tolerance) for n in expected]
    return Difference(max(d.absolute for d in found), max(d.relative for d in found))


class _Rounding(TorchDispatchMode):
    """Every float32 result is rounded to float16 and back: what float16 arithmetic with wide sums computes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        if func._schema.is_mutable:
            return result.copy_(result.half()) if isinstance(result, Tensor) else result
        if isinstance(result, tuple | list):
            return type(result)(_rounded(part) for part in result)
        return _rounded(result)


def _rounded(value: Any) -> Any:
    return value.half().float() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _compare(what: str, want: Tensor, got: Tensor, tolerance: float) -> Difference:
    want, got = want.cpu().double(), got.cpu().double()
    if want.shape != got.shape:
        raise VerificationError(
            f"{what} has shape {list(got.shape)}, in PyTorch {list(want.shape)}",
            f"{REFUSED}; --batch N fixes the batch size",
        )
    if not want.isfinite().all():
        raise VerificationError(
            "the network's output is not finite in PyTorch", f"{REFUSED}; look at the checkpoint's weights"
        )
    if not got.isfinite().all():
        raise VerificationError(f"{what} is not finite", f"{REFUSED}; export without --fp16, whose range ends at 65504")
    absolute = (got - want).abs().max().item()
    scale = want.abs().max().item()
    relative = absolute / scale if scale else float(absolute > 0)
    if relative > tolerance:
        raise VerificationError(
            f"{what} differs by {absolute:.3g}, {relative:.2g} of the largest output; allowed: {tolerance:g}",
            f"{REFUSED}; try without --fp16, or another --opset",
        )
    return Difference(absolute, relative)


def _session(model: bytes, fp16: bool) -> Any:
    runtime = need("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only, and those are raised too
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return runtime.InferenceSession(
            model,
            options,
            providers=["CPUExecutionProvider"],
            # crashes the process (seen in 1.31) on float16 layer normalisations before a transpose, as in ViT
            disabled_optimizers=["NchwcTransformer"] if fp16 else None,
        )
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise VerificationError(
            f"onnxruntime does not load the model: {_first_line(error)}", f"{REFUSED}; try a lower --opset"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
