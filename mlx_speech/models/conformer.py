"""What Conformer encoders share, whatever their tensors are called.

Conformer blocks (https://arxiv.org/abs/2005.08100) whose attention stays inside fixed blocks of
frames and carries Shaw's relative positions (https://arxiv.org/abs/1803.02155).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import UnsupportedOptionError
from ..fields import fitted
from ..layers.attention import merge_heads, scaled_dot_product_attention, split_heads

BLANK = 0  #: label of a CTC head that stands for nothing
_BATCH_NORM_EPS = 1e-5


class FrameMask:
    """Which frames of a batch are real, in the two forms the blocks need.

    Args:
        num_frames: length of the batch.
        context_size: frames of an attention block.
        lengths: (batch,) real frames of each recording; `None` when all are full length.
    """

    def __init__(self, num_frames: int, context_size: int, lengths: mx.array | None):
        self.frames: mx.array | None = None
        self.keys: mx.array | None = None
        if lengths is None and num_frames % context_size == 0:
            return
        ends = mx.array([[num_frames]]) if lengths is None else lengths[:, None]
        valid = mx.arange(num_frames + -num_frames % context_size) < ends
        self.keys = valid.reshape(len(valid), -1, 1, 1, context_size)
        if lengths is not None:
            self.frames = valid[:, :num_frames, None]

    def zero_padding(self, x: mx.array) -> mx.array:
        """(batch, frames, width) with zeros at the padding."""
        return x if self.frames is None else mx.where(self.frames, x, mx.zeros((), x.dtype))


class BlockAttention(nn.Module, ABC):
    """Attention within blocks of `context_size` frames, with Shaw's relative positions. Subclasses
    project the queries, keys and values, and what comes out.

    Args:
        max_distance: the table of distances reaches so far to either side.
    """

    def __init__(self, num_heads: int, head_dim: int, context_size: int, max_distance: int):
        super().__init__()
        self.num_heads, self.context_size = num_heads, context_size
        self.max_distance = max_distance
        self.scale = head_dim**-0.5
        self.rel_pos_emb = nn.Embedding(2 * max_distance + 1, head_dim)

    @abstractmethod
    def project(self, x: mx.array) -> Sequence[mx.array]:
        """Queries, keys and values: (…, hidden) -> (…, heads * head_dim) each."""

    def attend(self, x: mx.array, mask: FrameMask) -> mx.array:
        """(batch, frames, hidden) -> (batch, frames, heads * head_dim)."""
        batch, num_frames, _ = x.shape
        x = mx.pad(x, [(0, 0), (0, -num_frames % self.context_size), (0, 0)])
        blocks = x.reshape(-1, self.context_size, x.shape[-1])
        queries, keys, values = (split_heads(t, self.num_heads) for t in self.project(blocks))
        bias = self.relative_bias(queries)
        if mask.keys is not None:
            # finite, also with a score of float16 added: a block may have no key at all
            lowest = mx.finfo(bias.dtype).min / 2
            bias = bias.reshape(batch, -1, *bias.shape[1:])
            bias = mx.where(mask.keys, bias, mx.array(lowest, bias.dtype)).flatten(0, 1)
        out = scaled_dot_product_attention(queries, keys, values, scale=self.scale, mask=bias)
        out = merge_heads(out).reshape(batch, -1, out.shape[1] * out.shape[3])
        return out[:, :num_frames]

    def relative_bias(self, queries: mx.array) -> mx.array:
        """Scaled scores of each query with the embedding of its distance to each key.

        With the table's rows for the distances C-1 .. -(C-1), one product gives every query's score
        for every distance; key j of query i then stands in column C-1-i+j, so that the square of
        scores is a view whose rows start one column earlier each.

        Args:
            queries: (blocks, heads, C, head_dim).

        Returns:
            (blocks, heads, C, C).
        """
        size = self.context_size
        distances = mx.arange(self.max_distance + size - 1, self.max_distance - size, -1)
        table = self.rel_pos_emb(distances).astype(queries.dtype) * self.scale
        by_distance = queries @ table.T
        blocks, heads, _, columns = by_distance.shape
        strides = (heads * size * columns, size * columns, columns - 1, 1)
        return mx.as_strided(by_distance, (blocks, heads, size, size), strides, size - 1)


class DepthwiseConv(nn.Module):
    """Depthwise convolution over time; BatchNorm is folded into it.

    Args:
        stride: frames that become one; fewer at the end are dropped.
    """

    def __init__(self, channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.weight = mx.zeros((channels, kernel_size, 1))
        self.bias = mx.zeros((channels,))
        self.stride = stride

    def init_own_weights(self, std: float) -> None:
        """See `init_weights`."""
        self.weight = mx.random.normal(self.weight.shape, scale=std)

    @property
    def halo(self) -> tuple[int, int]:
        """Frames before and after its own that a frame's result depends on."""
        kernel_size = self.weight.shape[1]
        return kernel_size // 2, kernel_size - 1 - kernel_size // 2

    def __call__(self, x: mx.array, halo: bool = False) -> mx.array:
        """(batch, frames, channels) -> (batch, frames // stride, channels); with `halo`, these
        frames stand on both sides of `x` already, and are missing in the result. Otherwise zeros
        are what is beyond the ends."""
        if not halo:
            x = mx.pad(x, [(0, 0), self.halo, (0, 0)])
        around = sum(self.halo)
        x = x[:, : (x.shape[1] - around) // self.stride * self.stride + around]
        if mx.default_device().type == mx.DeviceType.cpu:
            return _sum_of_shifts(x, self.weight, self.bias, self.stride)
        return mx.conv1d(x, self.weight, stride=self.stride, groups=x.shape[-1]) + self.bias


@mx.compile
def _sum_of_shifts(x: mx.array, weight: mx.array, bias: mx.array, stride: int = 1) -> mx.array:
    """A depthwise convolution as one fused loop: MLX's own is several times slower on a CPU."""
    kernel_size = weight.shape[1]
    length = x.shape[1] - kernel_size + 1
    total = bias.astype(mx.float32)
    for shift in range(kernel_size):
        part = x[:, shift : shift + length : stride]
        total = total + part * weight[:, shift, 0].astype(mx.float32)
    return total.astype(x.dtype)


class ConformerBlock(nn.Module, ABC):
    """A block in two halves, since one looks at whole attention blocks and the other only at
    neighbouring frames: what a stream keeps between them differs."""

    def __call__(self, x: mx.array, mask: FrameMask) -> mx.array:
        x, gated = self.attend(x, mask)
        # zeros beyond a recording's end are what the convolution sees when it is alone
        return self.convolve(x, mask.zero_padding(gated))

    @property
    @abstractmethod
    def depthwise(self) -> DepthwiseConv:
        """Its convolution over time."""

    @abstractmethod
    def attend(self, x: mx.array, mask: FrameMask) -> tuple[mx.array, mx.array]:
        """The half that looks at whole attention blocks: its result, and the same gated for the
        convolution."""

    @abstractmethod
    def convolve(self, x: mx.array, gated: mx.array, halo: bool = False) -> mx.array:
        """The half that looks at neighbouring frames; `gated` has more of them with `halo`. Where
        the convolution has a stride, there are fewer frames after it."""


def refuse_attentions(output_attentions: Any) -> None:
    """Raises `UnsupportedOptionError` where attention weights are asked for, and `InputError` where
    nobody knows what is."""
    if fitted("output_attentions", output_attentions, bool | None):
        message = "{option}: the encoder attends within blocks of frames, and gives no weights"
        raise UnsupportedOptionError.about(message, option="output_attentions")


def fold_batch_norm(kernel: mx.array, weights: dict[str, mx.array], norm: str):
    """(channels, k, 1) kernel and (channels,) bias that include the BatchNorm of that name.

    In float32 whatever the checkpoint's type: rounding comes once, after folding.
    """
    parts = ("weight", "bias", "running_mean", "running_var")
    statistics = [weights[f"{norm}.{p}"].astype(mx.float32) for p in parts]
    for part, value in zip(parts, statistics, strict=True):
        if value.shape != kernel.shape[:1]:
            channels = f"{len(kernel)} channels, as the kernel before it has"
            raise ValueError(f"{norm}.{part} {value.shape} for {channels}")
    gain, shift, mean, variance = statistics
    factor = gain * mx.rsqrt(variance + _BATCH_NORM_EPS)
    folded = kernel.astype(mx.float32) * factor[:, None, None]
    return folded, shift - mean * factor


def batch_norm_of_bias(bias: mx.array, norm: str) -> dict[str, mx.array]:
    """Tensors of a BatchNorm of that name that only adds a bias, (channels,): what it did before
    is in the convolution."""
    ones = mx.ones_like(bias)
    statistics = {"running_mean": 0 * ones, "running_var": ones * (1 - _BATCH_NORM_EPS)}
    parts = {"weight": ones, "bias": bias, **statistics}
    counter = {f"{norm}.num_batches_tracked": mx.array(0, mx.int64)}
    return {f"{norm}.{part}": array for part, array in parts.items()} | counter
