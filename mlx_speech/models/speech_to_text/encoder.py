"""The encoder of Speech2Text: convolutions that quarter the frames, then Transformer layers.

In a batch every recording gives what it gives alone. (In transformers its last frames have in
them what the convolutions make of the padding.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...errors import InputError
from ...layers.activations import glu
from .layers import Layer, SinusoidalPositions, Speech2TextConfig


def real_frames(attention_mask: mx.array | None) -> mx.array | None:
    """Which frames are real: boolean (recordings, frames), None if all are.

    Args:
        attention_mask: (recordings, frames), ones and then zeros.

    Raises:
        InputError: the zeros are not at the end, or a recording has no frame at all.
    """
    if attention_mask is None:
        return None
    mask = attention_mask.astype(mx.int32)
    if mx.any(mask[:, 1:] > mask[:, :-1]).item():
        raise InputError("attention_mask must be ones and then zeros: pad recordings at their end")
    if mx.any(mask.sum(axis=1) == 0).item():
        raise InputError("attention_mask leaves a recording without any frame")
    return None if mx.all(mask).item() else mask.astype(mx.bool_)


class ConvSubsampler(nn.Module):
    """Convolutions with stride 2, each followed by a gated linear unit
    (https://arxiv.org/abs/1911.08460)."""

    def __init__(self, config: Speech2TextConfig):
        super().__init__()
        inner = config.num_conv_layers - 1
        inputs = [config.num_features] + [config.conv_channels // 2] * inner
        outputs = [config.conv_channels] * inner + [2 * config.d_model]
        self.conv_layers = [
            nn.Conv1d(i, o, kernel_size=k, stride=2, padding=k // 2)
            for i, o, k in zip(inputs, outputs, config.conv_kernel_sizes, strict=True)
        ]

    def __call__(self, x: mx.array, real: mx.array | None) -> mx.array:
        """(recordings, frames, features) -> (recordings, subsampled frames, d_model).

        What a convolution sees behind the end of a recording is zero, as if it were alone.

        Args:
            real: see `real_frames`.
        """
        for conv in self.conv_layers:
            if real is not None:
                x = mx.where(real[..., None], x, mx.zeros((), x.dtype))
                real = real[:, ::2]
            x = glu(conv(x))
        return x

    def subsampled(self, mask: mx.array) -> mx.array:
        """(recordings, frames) -> (recordings, subsampled frames): those that are still there."""
        return mask[:, :: 2 ** len(self.conv_layers)]


class EncoderLayer(Layer):
    def __init__(self, config: Speech2TextConfig):
        super().__init__(config, config.encoder_attention_heads, config.encoder_ffn_dim)

    def __call__(self, x, mask, weights):
        normed = self.self_attn_layer_norm(x)
        x = x + self.self_attn(normed, *self.self_attn.keys_values(normed), mask, weights)
        x = self.feed_forward(x)
        if x.dtype == mx.float16:
            # infinity would become NaN in the next norm
            limit = mx.finfo(x.dtype).max - 1000
            x = mx.clip(x, -limit, limit)
        return x


@dataclass
class EncoderOutput:
    """What the encoder returns.

    last_hidden_state: (recordings, subsampled frames, d_model), meaningless at the padding of a
        batch.
    hidden_states: on request, the first layer's input, each layer's output, and the final norm's
        in place of the last layer's.
    attentions: on request, each layer's weights, (recordings, heads, frames, frames).
    """

    last_hidden_state: mx.array
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None

    @classmethod
    def of(cls, value: EncoderOutput | Sequence[Any]) -> EncoderOutput:
        """The same from a tuple of these fields, of which the first is enough."""
        return value if isinstance(value, EncoderOutput) else cls(*value)


class Speech2TextEncoder(nn.Module):
    def __init__(self, config: Speech2TextConfig):
        super().__init__()
        self.config = config
        self.conv = ConvSubsampler(config)
        self.positions = SinusoidalPositions(config.d_model, config.pad_token_id)
        self.layers = [EncoderLayer(config) for _ in range(config.encoder_layers)]
        self.layer_norm = nn.LayerNorm(config.d_model)

    def __call__(
        self,
        input_features: mx.array,
        attention_mask: mx.array | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Run the encoder; each recording of a batch gives what it gives alone.

        Args:
            input_features: (recordings, frames, features), of any floating type.
            attention_mask: (recordings, frames), ones and then zeros at the padding.

        Raises:
            InputError: the shapes are wrong, or there are no frames, or too many.
        """
        real = self._check(input_features, attention_mask)
        x = self.conv(input_features.astype(self.layer_norm.weight.dtype), real)
        x = x * self.config.embedding_scale
        # transformers counts positions on the padding mask, 0 at frames, as if on token ids: were
        # the padding's id 0, which it is in no checkpoint, all frames would be taken for padding
        if self.config.pad_token_id != 0:
            x = x + self.positions(mx.ones((1, x.shape[1]))).astype(x.dtype)
        mask = self.frame_mask(real)
        states = [x]
        weights: list[mx.array] | None = [] if output_attentions else None
        for layer in self.layers:
            states.append(layer(states[-1], mask, weights))
        states[-1] = self.layer_norm(states[-1])
        return EncoderOutput(
            last_hidden_state=states[-1],
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=None if weights is None else tuple(weights),
        )

    def _check(self, features: mx.array, mask: mx.array | None) -> mx.array | None:
        """See `real_frames`."""
        size, limit = self.config.num_features, self.config.max_source_positions
        shape = features.shape
        if features.ndim != 3 or shape[1] == 0 or shape[2] != size:
            expected = f"(recordings, frames, {size})"
            raise InputError(f"input_features are {shape}, but must be {expected}")
        if mask is not None and mask.shape != shape[:2]:
            raise InputError(f"attention_mask is {mask.shape}, but input_features are {shape}")
        real = real_frames(mask)
        longest = shape[1] if real is None else real.sum(axis=1).max().item()
        if longest > limit:
            raise InputError(
                f"a recording of {longest} frames is longer than the {limit} that the model was "
                "made for; cut it"
            )
        return real

    def frame_mask(self, real: mx.array | None) -> mx.array | None:
        """For attention to subsampled frames: boolean (recordings, 1, 1, frames), None if all are
        real; from what `real_frames` gives."""
        return None if real is None else self.conv.subsampled(real)[:, None, None]
