"""The encoder of Speech2Text: convolutions that quarter the frames, then Transformer layers.

In a batch every recording gives what it gives alone. (In transformers its last frames have in
them what the convolutions make of the padding.)
"""

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...errors import InputError
from ...layers.activations import glu
from ...layers.model_output import asked, can_return_tuple
from ...layers.token_ids import check_array, real_frames
from .layers import Layer, LayerStack, Speech2TextConfig, head_masks
from .outputs import BaseModelOutput


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

    def __call__(self, x, mask, weights, head_mask=None):
        normed = self.self_attn_layer_norm(x)
        keys, values = self.self_attn.keys_values(normed)
        x = x + self.dropout(self.self_attn(normed, keys, values, mask, weights, head_mask))
        x = self.feed_forward(x)
        if x.dtype == mx.float16:
            # infinity would become NaN in the next norm
            limit = mx.finfo(x.dtype).max - 1000
            x = mx.clip(x, -limit, limit)
        return x


class Speech2TextEncoder(LayerStack):
    def __init__(self, config: Speech2TextConfig):
        layers = [EncoderLayer(config) for _ in range(config.encoder_layers)]
        super().__init__(config, layers, config.encoder_layerdrop)
        self.conv = ConvSubsampler(config)

    @can_return_tuple
    def __call__(
        self,
        input_features: mx.array,
        attention_mask: mx.array | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        head_mask: mx.array | None = None,
    ) -> BaseModelOutput:
        """Run the encoder; each recording of a batch gives what it gives alone.

        Args:
            input_features: (recordings, frames, features), of any floating type.
            attention_mask: (recordings, frames), ones and then zeros at the padding.
            head_mask: (encoder_layers, encoder_attention_heads), zero for a head to leave out.

        Raises:
            InputError: the shapes are wrong, or there are no frames, or too many.
        """
        features, real = self._check(input_features, attention_mask)
        x = self.conv(features.astype(self.layer_norm.weight.dtype), real)
        x = x * self.config.embedding_scale
        # transformers counts positions on the padding mask, 0 at frames, as if on token ids: were
        # the padding's id 0, which it is in no checkpoint, all frames would be taken for padding
        if self.config.pad_token_id != 0:
            x = x + self.positions(mx.ones((1, x.shape[1]))).astype(x.dtype)
        weights: list[mx.array] | None = None
        if asked(self.config, "output_attentions", output_attentions):
            weights = []
        mask = None if real is None else self.conv.subsampled(real)[:, None, None]
        given = {"mask": mask, "weights": weights}
        size = len(self.layers), self.config.encoder_attention_heads
        each = zip(self.layers, head_masks(head_mask, "head_mask", *size), strict=True)
        states = self.run(x, (partial(layer, **given, head_mask=heads) for layer, heads in each))
        shown = asked(self.config, "output_hidden_states", output_hidden_states)
        return BaseModelOutput(
            last_hidden_state=states[-1],
            hidden_states=states if shown else None,
            attentions=None if weights is None else tuple(weights),
        )

    def _check(self, features: Any, mask: Any) -> tuple[mx.array, mx.array | None]:
        """The features, and which frames are real, see `real_frames`."""
        limit = self.config.max_source_positions
        shape = "recordings", "frames", self.config.num_features
        features = check_array(features, "input_features", mx.floating, shape)
        real = real_frames(mask)
        if mask is not None and mask.shape != features.shape[:2]:
            shapes = f"{tuple(mask.shape)}, but input_features are {features.shape}"
            raise InputError(f"attention_mask is {shapes}")
        longest = features.shape[1] if real is None else real.sum(axis=1).max().item()
        if longest > limit:
            raise InputError(
                f"a recording of {longest} frames is longer than the {limit} that the model was "
                "made for; cut it"
            )
        return features, real
