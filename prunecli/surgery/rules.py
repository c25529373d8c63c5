"""The table of operations: a rule for each ATen operation that may meet labels, by its name without `aten::`.

An operation that is not here is element-wise if PyTorch tags it so; else it is taken apart into the operations that it is
composed of; else it fixes whatever reaches it. Names of in-place variants lose their last underscore.
"""

from __future__ import annotations

from collections.abc import Callable

from prunecli.surgery import compute, movement
from prunecli.surgery.call import Call
from prunecli.surgery.layers import Layers

Rule = Callable[[Call], Layers | list[Layers]]

RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("clone", "contiguous", "detach", "alias", "lift_fresh", "_to_copy", "to", "type_as", "view_as_real_copy"),
        movement.same,
    ),
    **dict.fromkeys(
        ("permute", "movedim", "transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT", "adjoint"), movement.permute
    ),
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "_reshape_alias"),
        movement.view,
    ),
    **dict.fromkeys(("slice", "select", "unbind", "narrow", "index_select", "roll"), movement.pick),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), movement.split),
    **dict.fromkeys(("cat", "concat", "concatenate"), movement.cat),
    "flip": movement.flip,
    "expand": movement.expand,
    "repeat": movement.repeat,
    "tile": movement.repeat,
    "stack": movement.stack,
    "constant_pad_nd": movement.pad,
    "pixel_shuffle": movement.pixel_shuffle,
    "pixel_unshuffle": movement.pixel_unshuffle,
    **dict.fromkeys(
        (
            "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
        ),
        compute.convolution,
    ),
    "linear": compute.linear,
    "mm": compute.matmul_2d,
    "addmm": compute.matmul_2d,
    "bmm": compute.matmul_batched,
    "baddbmm": compute.matmul_batched,
    "embedding": compute.embedding,
    "batch_norm": compute.batch_norm,
    "native_batch_norm": compute.batch_norm,
    "group_norm": compute.group_norm,
    "native_group_norm": compute.group_norm,
    "layer_norm": compute.layer_norm,
    **dict.fromkeys(
        ("mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm", "logsumexp"),
        compute.reduction,
    ),
    **dict.fromkeys(
        ("softmax", "_softmax", "_safe_softmax", "log_softmax", "_log_softmax", "cumsum", "sort", "logcumsumexp"),
        compute.along_axis,
    ),
    **dict.fromkeys(
        tuple(
            f"{name}{d}d{suffix}"
            for d in (1, 2, 3)
            for name, suffix in (
                ("max_pool", ""), ("max_pool", "_with_indices"), ("avg_pool", ""), ("adaptive_avg_pool", ""),
                ("_adaptive_avg_pool", ""), ("adaptive_max_pool", ""), ("reflection_pad", ""), ("replication_pad", ""),
                ("upsample_nearest", ""), ("_upsample_nearest_exact", ""),
            )
        )
        + ("upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "upsample_trilinear3d"),
        compute.window,
    ),
    **dict.fromkeys(
        (
            "dropout", "feature_dropout", "alpha_dropout", "native_dropout", "copy", "hardswish", "prelu", "_prelu_kernel",
            "log_sigmoid", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "fill", "zero",
            "bernoulli", "rsub", "rrelu", "masked_fill", "where",
        ),
        compute.elementwise,
    ),
    **dict.fromkeys(("empty", "new_empty", "new_zeros", "new_ones", "new_full", "sym_size"), compute.nothing),
}  # fmt: skip
