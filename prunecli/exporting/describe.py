"""What a person should know about an ONNX model before using it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prunecli.exporting.convert import Form
from prunecli.exporting.needed import need


def describe(model: bytes, form: Form) -> Iterator[str]:
    """Sentences about what the form brought and what it did not."""
    graph = need("onnx").load_from_string(model).graph
    operators = Counter(node.op_type for node in graph.node)
    if left := operators["BatchNormalization"]:
        yield f"{left} batch normalisations stay: no convolution or linear layer comes right before them"
    if form.fp16:
        yield "float16 is for accelerators: on a CPU onnxruntime computes it in float32, no faster than a float32 file"
        if operators["LayerNormalization"]:
            yield (
                "onnxruntime 1.31 can crash on a CPU with float16 layer normalisation: load it there with "
                "disabled_optimizers=['NchwcTransformer']"
            )
    if form.sparse:
        count = sum(attribute.name == "sparse_value" for node in graph.node for attribute in node.attribute)
        yield (
            f"{count} tensors are stored sparse: a smaller file, no speed; onnxruntime makes them dense as it loads"
            if count
            else f"no tensor has enough zeros to be stored sparse: more than {'4/5' if form.fp16 else '2/3'} are needed"
        )
