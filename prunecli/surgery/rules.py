"""The table of operations: a rule for each ATen operation that may meet labels, by its name without `aten::`.

An operation that is not here is element-wise if PyTorch tags it so; else it is taken apart into the operations that
it is composed of; else it fixes whatever reaches it. Names of in-place variants lose their last underscore.
"""

from __future__ import annotations

from collections.abc import Callable

from prunecli.surgery import compute, lookup, movement, products, recurrent, statistics
from prunecli.surgery.call import Call
from prunecli.surgery.layers import Layers

Rule = Callable[[Call], Layers | list[Layers]]

_MOVING: dict[Rule, str] = {
    movement.same: "clone contiguous detach alias lift_fresh _to_copy to type_as",
    movement.permute: "permute movedim transpose swapaxes swapdims t numpy_T mT",
    movement.view: "view _unsafe_view reshape flatten unflatten squeeze unsqueeze view_as _reshape_alias",
    movement.expand: "expand",
    movement.repeat: "repeat tile",
    movement.flip: "flip",
    movement.pick: "slice select unbind narrow roll",
    movement.split: "split split_with_sizes chunk unsafe_split unsafe_split_with_sizes unsafe_chunk tensor_split",
    movement.cat: "cat concat concatenate",
    movement.stack: "stack",
    movement.pad: "constant_pad_nd",
    movement.pixel_shuffle: "pixel_shuffle",
    movement.pixel_unshuffle: "pixel_unshuffle",
    movement.triangle: "tril triu",
    movement.as_complex: "view_as_complex",
    movement.as_real: "view_as_real",
    movement.channel_shuffle: "channel_shuffle native_channel_shuffle",
    movement.rot90: "rot90",
    movement.windows: "unfold",
    movement.unfold: "im2col",
    movement.fold: "col2im",
    lookup.index: "index",
    lookup.index_select: "index_select",
    lookup.index_put: "index_put _unsafe_index_put",
    lookup.gather: "gather take_along_dim",
    lookup.scatter: "scatter scatter_add scatter_reduce index_add index_copy index_fill index_reduce",
    lookup.embedding: "embedding",
    lookup.embedding_bag: "embedding_bag _embedding_bag",
}

_COMPUTING: dict[Rule, str] = {
    compute.elementwise: """dropout feature_dropout alpha_dropout native_dropout copy hardswish gelu _prelu_kernel
        log_sigmoid log_sigmoid_forward mish complex polar empty_like zeros_like ones_like full_like rand_like
        randn_like fill zero bernoulli uniform normal exponential rsub rrelu rrelu_with_noise where masked_fill""",
    compute.gated: "glu",
    compute.fresh: "new_empty new_zeros new_ones new_full new_empty_strided",
    compute.convolution: "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d",
    products.linear: "linear",
    products.matmul_2d: "mm addmm",
    products.matmul_batched: "bmm baddbmm",
    products.vector: "mv addmv dot vdot",
    products.bilinear: "bilinear",
    products.attention: "scaled_dot_product_attention",
    recurrent.recurrent: """lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell""",
    statistics.batch_norm: "batch_norm native_batch_norm instance_norm",
    statistics.group_norm: "group_norm native_group_norm",
    statistics.layer_norm: "layer_norm native_layer_norm rms_norm",
    statistics.weight_norm: "_weight_norm_interface",
    statistics.reduction: """mean sum nansum amax amin aminmax argmax argmin var std var_mean std_mean
        linalg_vector_norm norm logsumexp prod any all count_nonzero median nanmedian mode kthvalue""",
    statistics.extremum: "max min",
    statistics.along_axis: """softmax _softmax _safe_softmax log_softmax _log_softmax cumsum cumprod cummax cummin
        logcumsumexp sort argsort topk _fft_r2c _fft_c2r _fft_c2c""",
    compute.pad_around: "_pad_circular",
    compute.unpool: "max_unpool2d max_unpool3d",
    compute.sample: "grid_sampler grid_sampler_2d grid_sampler_3d",
    compute.pool_1d: """max_pool1d max_pool1d_with_indices avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d
        reflection_pad1d replication_pad1d upsample_nearest1d _upsample_nearest_exact1d upsample_linear1d""",
    compute.pool_2d: """max_pool2d max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d
        adaptive_max_pool2d reflection_pad2d replication_pad2d upsample_nearest2d _upsample_nearest_exact2d
        upsample_bilinear2d _upsample_bilinear2d_aa upsample_bicubic2d _upsample_bicubic2d_aa""",
    compute.pool_3d: """max_pool3d max_pool3d_with_indices avg_pool3d adaptive_avg_pool3d _adaptive_avg_pool3d
        adaptive_max_pool3d reflection_pad3d replication_pad3d upsample_nearest3d _upsample_nearest_exact3d
        upsample_trilinear3d""",
}

RULES: dict[str, Rule] = {op: rule for rule, ops in (_MOVING | _COMPUTING).items() for op in ops.split()}
