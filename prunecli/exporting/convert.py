"""A network as the bytes of one self-contained ONNX file.

The exporter of PyTorch traces the network in eval mode; its optimiser folds every batch normalisation that follows a
convolution or a linear layer into that layer's weights. What it writes about the source code (stack traces with
absolute paths) is removed, so that the bytes depend on network, form and metadata alone.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunecli.errors import PruneError
from prunecli.exporting.half import halve
from prunecli.exporting.needed import need
from prunecli.exporting.sparse import sparsify
from prunecli.exporting.walk import walk

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18  # what PyTorch's ONNX functions are written in: nothing is converted, and onnxruntime 1.18 and newer run it
LIMIT = 2**31 - 2**24  # bytes; protobuf ends at 2 GiB, less room for the graph itself


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the file is to be: operator set, batch size as a named dimension or fixed, arithmetic, storage of zeros."""

    opset: int = OPSET
    dynamic: bool = True
    fp16: bool = False
    sparse: bool = False


def to_onnx(network: nn.Module, example: Tensor, metadata: Mapping[str, str], form: Form | None = None) -> bytes:
    """Convert `network`, which takes `example` [N, ...] and gives a tensor or several, with `metadata` in the file.

    Inputs and outputs are float32 and named `input` and `output` (a dict's keys, or `output0`, `output1`, ..., where
    there are several); the first dimension of the input is named `batch`, or fixed at N where `form.dynamic` is false.
    The network is left as it was. Raises `PruneError` when it is too large or cannot be expressed in this form.
    """
    form = form or Form()
    size = sum(t.nbytes for t in [*network.parameters(), *network.buffers()])
    if size > LIMIT:
        raise PruneError(
            f"the network's {size / 2**30:.1f} GiB do not fit into one ONNX file, which ends at 2 GiB",
            "prune it further before exporting",
        )
    if form.dynamic and len(example) < 2:  # the tracer takes a batch of 1 for a constant
        example = torch.cat([example, example])
    with evaluating(network):
        model = _trace(network, example, form)
    _strip(model)
    if form.fp16:
        halve(model)
    if form.sparse:
        sparsify(model)
    from prunecli import __version__

    model.producer_name, model.producer_version = "prunecli", __version__
    need("onnx").helper.set_model_props(model, dict(sorted(metadata.items())))
    _check(model, form)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def named_outputs(output: object) -> dict[str, Tensor]:
    """A network's output as tensors by name: one tensor is `output`. Raises `PruneError` for anything but tensors."""
    if isinstance(output, Mapping):
        named = {str(key): value for key, value in output.items()}
    elif isinstance(output, Sequence):
        named = {f"output{i}": value for i, value in enumerate(output)}
    else:
        named = {"output": output}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise PruneError(
                f"the network's {name} is a {type(value).__name__}, which an ONNX file cannot hold",
                "export a network that gives a tensor, or a list or dict of tensors",
            )
    return named


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; afterwards every module is in the mode in which it was."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _trace(network: nn.Module, example: Tensor, form: Form) -> ModelProto:
    need("onnx")
    need("onnxscript")
    names = list(named_outputs(network(example)))
    with _quiet():
        try:
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                verbose=False,
                external_data=False,
                opset_version=form.opset,
                input_names=["input"],
                output_names=names,
                dynamic_shapes=({0: torch.export.Dim("batch")},) if form.dynamic else None,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise PruneError(
                f"the network cannot be converted to ONNX: {reason}",
                "its code must not branch on values of tensors"
                + ("; where it branches on the batch size, --batch N fixes that" if form.dynamic else ""),
            ) from error
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what the exporter says about itself: when it fails, graphs and traces; the error has the reason."""
    logged = logging.root.manager.disable
    logging.disable(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        # torch.export copies tree specifications, whose class warns about its own deprecation
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        try:
            yield
        finally:
            logging.disable(logged)


def _strip(model: ModelProto) -> None:
    """Remove what the exporter noted about its own run: stack traces, modules, rewriting rules."""
    for message in walk(model):
        for field in ("metadata_props", "doc_string"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)


def _check(model: ModelProto, form: Form) -> None:
    """Raise `PruneError` unless the model is valid, types and shapes included, and is what was asked for."""
    onnx = need("onnx")
    (opset,) = [entry.version for entry in model.opset_import if entry.domain == ""]
    if opset != form.opset:
        raise PruneError(
            f"--opset {form.opset}: the exporter wrote operator set {opset} instead", f"ask for --opset {opset}"
        )
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if form.dynamic and batch.dim_param != "batch":
        raise PruneError(
            f"the network runs with a batch of {batch.dim_value} only", f"export it with --batch {batch.dim_value}"
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise PruneError(
            f"the ONNX model is not valid: {str(error).strip().splitlines()[-1]}",
            "export without --fp16" if form.fp16 else "try another --opset",
        ) from error
