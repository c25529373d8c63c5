"""Options of `export`."""

from __future__ import annotations

from dataclasses import dataclass

from prunecli.errors import UsageError
from prunecli.options.fields import argument, check, choice, option

INPUTS = ("auto", "data", "random")
OPSETS = (18, 25)  # the exporter writes no older operator set and converts to no newer one by itself


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write one self-contained ONNX file, masks and batch normalisation folded in, and check it against PyTorch.

    The outputs of onnxruntime and of PyTorch are compared on test images; where they differ, nothing is written.
    """

    checkpoint: str = argument("Checkpoint to export.")
    output: str = option(
        "", "ONNX file to write (default: the checkpoint's name with .onnx).", flag="-o/--output", metavar="FILE"
    )
    fp16: bool = option(False, "Weights and arithmetic in float16; inputs and outputs stay float32.")
    sparse: bool = option(False, "Store weights that are mostly zeros as values and indices: a smaller file, no speed.")
    opset: int = option(18, "Operator set, 18 to 25.", metavar="N")
    batch: int | None = option(None, "Fix the batch size (default: any, a dimension named batch).", metavar="N")
    inputs: str = option(
        "auto", "Check on test images, on random numbers, or as can be (auto).", metavar="|".join(INPUTS)
    )
    data: str | None = option(
        None, "Data source of the test images (default: the one that the checkpoint records).", metavar="NAME[:DIR]"
    )
    data_arg: tuple[str, ...] = option((), "Argument of the data source. Repeatable.", metavar="KEY=VALUE")
    threads: int | None = option(None, "CPU threads (default: all cores).", metavar="N")
    trust: tuple[str, ...] = option(
        (), "Python module whose code a checkpoint may import. Repeatable.", metavar="MODULE"
    )

    def __post_init__(self) -> None:
        choice(self.inputs, "--inputs", INPUTS)
        low, high = OPSETS
        check(low <= self.opset <= high, "--opset", self.opset, f"an operator set from {low} to {high}")
        check(self.batch is None or self.batch >= 1, "--batch", self.batch, "1 or more")
        check(self.threads is None or self.threads >= 1, "--threads", self.threads, "a number of at least 1")
        if not self.target.endswith(".onnx"):
            raise UsageError(
                f"--output {self.output!r}: not the name of an ONNX file",
                "give a name that ends in .onnx: -o small.onnx",
            )
        if self.inputs == "random" and (self.data or self.data_arg):
            raise UsageError("--data means nothing with --inputs random", "drop one of them")

    @property
    def target(self) -> str:
        """The file to write, after its default."""
        return self.output or self.checkpoint.removesuffix(".safetensors") + ".onnx"
