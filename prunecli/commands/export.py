"""`export`: a checkpoint as one ONNX file, checked against PyTorch before it is put in place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunecli import checkpoint as checkpoints
from prunecli import training
from prunecli.commands.gradual import leave
from prunecli.errors import PruneError
from prunecli.exporting import Difference, Form, describe, to_onnx, verify, write
from prunecli.exporting.provenance import provenance
from prunecli.options import Recipe
from prunecli.options.export import ExportOptions
from prunecli.progress import Say, silent
from prunecli.sidecar import Sidecar

EXAMPLES = 32  # on which the file is checked


@dataclass(frozen=True)
class Exported:
    """An ONNX file that was written and agrees with its checkpoint."""

    path: Path
    size: int  # bytes
    form: Form
    difference: Difference
    inputs: str  # on what it was checked
    notes: tuple[str, ...]

    def data(self) -> dict[str, Any]:
        """The result for programs; the relative difference is a share of the largest output of a batch."""
        return {
            "onnx": str(self.path),
            "size": self.size,
            "opset": self.form.opset,
            "fp16": self.form.fp16,
            "sparse": self.form.sparse,
            "dynamic_batch": self.form.dynamic,
            "inputs": self.inputs,
            "largest_difference": self.difference.absolute,
            "largest_relative_difference": self.difference.relative,
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """The result for people."""
        found = self.difference
        lines = [
            f"{self.path}: {self.size:,} bytes, operator set {self.form.opset}, "
            + f"{'float16' if self.form.fp16 else 'float32'}, batch size {'free' if self.form.dynamic else 'fixed'}",
            f"  onnxruntime against PyTorch on {self.inputs}: largest difference {found.absolute:.2e}, "
            + f"{found.relative:.1e} of the largest output",
        ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def run(options: ExportOptions, say: Say = silent) -> Exported:
    """Export `options.checkpoint` to `options.target`.

    Raises `VerificationError`, and writes nothing, when onnxruntime and PyTorch disagree on the inputs; `DamagedError`
    for a damaged checkpoint; `PruneError` when ONNX cannot express the network, or there are no test images and
    `--inputs data` wants them.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    source = checkpoints.load(options.checkpoint)
    leave(source, say)
    network = checkpoints.build(source, trust=options.trust).float()
    form = Form(opset=options.opset, dynamic=options.batch is None, fp16=options.fp16, sparse=options.sparse)
    batches, inputs = _inputs(options, source.sidecar)
    shapes = {name: tuple(tensor.shape) for name, tensor in source.weights.items()}
    say.status("exporting")
    metadata = provenance(source.sidecar, source.sha256 or "", shapes)
    model = to_onnx(network, batches[-1][: options.batch or 2], metadata, form)
    say.status("checking")
    difference = verify(model, network, batches, fp16=form.fp16)
    write(options.target, model)
    return Exported(Path(options.target), len(model), form, difference, inputs, tuple(describe(model, form)))


def _inputs(options: ExportOptions, sidecar: Sidecar) -> tuple[list[Tensor], str]:
    """Batches to check on, [N, C, H, W], and what they are: test images, or random numbers where there are none."""
    images, reason = None, ""
    if options.inputs != "random":
        try:
            images = _images(options, sidecar)
        except PruneError as error:
            if options.inputs == "data" or options.data:
                raise
            reason = f" (no test images: {error.message})"
    if images is None:
        noise = torch.Generator().manual_seed(0)
        images, kind = torch.randn(EXAMPLES, *sidecar.cost.input, generator=noise), "random inputs" + reason
    else:
        kind = f"test images of {options.data or (sidecar.data and sidecar.data.name)}"
    if options.batch is None:
        return [images[:1], images], f"{len(images)} {kind}, in batches of 1 and {len(images)}"
    copies = -(-options.batch // len(images))
    whole = len(images) * copies // options.batch  # batches
    repeated = torch.cat([images] * copies)[: whole * options.batch]
    batches = repeated.reshape(whole, options.batch, *images.shape[1:])
    return list(batches), f"{len(images)} {kind}, in batches of {options.batch}"


def _images(options: ExportOptions, sidecar: Sidecar) -> Tensor:
    recipe = Recipe(data=options.data, data_arg=options.data_arg, trust=options.trust)
    opened = training.open_data(sidecar.data, recipe, training.image_size(sidecar))
    images, _ = next(iter(opened.test.batches(EXAMPLES)))
    return images
