"""What Speech2Text is made of: its configuration, positions, attention and what its layers share.

Module names are those of the checkpoints.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...errors import InputError
from ...fields import TokenId
from ...layers.activations import ACTIVATIONS
from ...layers.attention import merge_heads, scaled_dot_product_attention, split_heads
from ...layers.token_ids import check_array
from ..config import (
    Deviation,
    Factor,
    Frames,
    LayerCount,
    Positions,
    PretrainedConfig,
    Probability,
    VocabIndex,
    VocabSize,
    Width,
)
from .outputs import Layers


@dataclass(kw_only=True)
class Speech2TextConfig(PretrainedConfig):
    """Configuration of a Speech2Text model; fields and defaults are those of transformers."""

    model_type: ClassVar[str] = "speech_to_text"
    aliases: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
    }

    vocab_size: VocabSize = 10000
    encoder_layers: LayerCount = 12
    encoder_ffn_dim: Width = 2048
    encoder_attention_heads: Factor = 4
    decoder_layers: LayerCount = 6
    decoder_ffn_dim: Width = 2048
    decoder_attention_heads: Factor = 4
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    use_cache: bool = True
    is_encoder_decoder: bool = True
    activation_function: str = "relu"
    d_model: Width = 256
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.0
    activation_dropout: Probability = 0.0
    init_std: Deviation = 0.02
    decoder_start_token_id: VocabIndex = 2
    scale_embedding: bool = True
    pad_token_id: VocabIndex = 1
    bos_token_id: TokenId | None = 0
    eos_token_id: TokenId | list[TokenId] | None = 2
    max_source_positions: Positions = 6000
    max_target_positions: Positions = 1024
    num_conv_layers: LayerCount = 2
    conv_kernel_sizes: Sequence[Frames] = (5, 5)
    conv_channels: Width = 1024
    input_feat_per_channel: Width = 80
    input_channels: Factor = 1
    tie_word_embeddings: bool = True

    def __post_init__(self):
        super().__post_init__()
        sizes, num = self.conv_kernel_sizes, self.num_conv_layers
        if len(sizes) != num:
            rule = f"as many as num_conv_layers, {num}"
            raise InputError.must_be("conv_kernel_sizes", sizes, rule)
        # with an even one, transformers' convolution and its mask disagree about the length
        if not all(size % 2 for size in sizes):
            raise InputError.must_be("conv_kernel_sizes", sizes, "odd")
        self.conv_kernel_sizes = tuple(sizes)  # of a file it is a list
        self._check_multiple("d_model", "encoder_attention_heads")
        self._check_multiple("d_model", "decoder_attention_heads")
        if self.conv_channels % 2:
            raise InputError.must_be("conv_channels", self.conv_channels, "even")
        if self.d_model % 2 or self.d_model < 4:
            raise InputError.must_be("d_model", self.d_model, "even and at least 4")
        self._check_choice("activation_function", ACTIVATIONS)
        for name in ("decoder_start_token_id", "pad_token_id"):
            if getattr(self, name) >= self.vocab_size:
                rule = f"below vocab_size, {self.vocab_size}"
                raise InputError.must_be(name, getattr(self, name), rule)

    @property
    def embedding_scale(self) -> float:
        """What embeddings, of frames and of tokens, are multiplied by."""
        return math.sqrt(self.d_model) if self.scale_embedding else 1.0

    @property
    def num_features(self) -> int:
        """Values of one input frame."""
        return self.input_feat_per_channel * self.input_channels


class SinusoidalPositions:
    """Sines, then cosines of positions that are counted as in fairseq: the first token is at
    `padding_idx + 1`, and padding, at `padding_idx`, has zeros."""

    def __init__(self, dim: int, padding_idx: int):
        half = dim // 2
        exponents = np.arange(half) * -(math.log(10000.0) / (half - 1))
        self.frequencies = mx.array(np.exp(exponents).astype(np.float32))
        self.padding_idx = padding_idx

    def __call__(self, real: mx.array, offset: int = 0) -> mx.array:
        """Embeddings, (rows, length, dim) in float32, of any length.

        Args:
            real: (rows, length), zero at padding.
            offset: how many positions, of either kind, came before.
        """
        real = real.astype(mx.int32)
        positions = ((mx.cumsum(real, axis=1) + offset) * real + self.padding_idx)[..., None]
        angles = positions.astype(mx.float32) * self.frequencies
        table = mx.concatenate([mx.sin(angles), mx.cos(angles)], axis=-1)
        return mx.where(positions == self.padding_idx, 0.0, table)


class Attention(nn.Module):
    """Attention to the own sequence or to another one."""

    def __init__(self, config: Speech2TextConfig, num_heads: int):
        super().__init__()
        dim = config.d_model
        self.num_heads, self.dropout = num_heads, config.attention_dropout
        self.scale = (dim // num_heads) ** -0.5
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def keys_values(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """What is attended to: (batch, S, dim) -> two of (batch, heads, S, head_dim)."""
        keys, values = self.k_proj(x), self.v_proj(x)
        return split_heads(keys, self.num_heads), split_heads(values, self.num_heads)

    def __call__(
        self,
        x: mx.array,
        keys: mx.array,
        values: mx.array,
        mask: mx.array | str | None = None,
        weights: list[mx.array] | None = None,
        head_mask: mx.array | None = None,
    ) -> mx.array:
        """(rows, L, dim) -> (rows, L, dim).

        Args:
            keys, values: (batch, heads, S, head_dim). Where there are several times more rows than
                that, as many after one another attend to the same keys, like further queries.
            mask: see `scaled_dot_product_attention`.
            weights: if given, the attention weights (rows, heads, L, S) are appended to it.
            head_mask: (heads, 1, 1), what each head's weights are multiplied by.
        """
        batch, _, num_keys, _ = keys.shape
        queries = split_heads(self.q_proj(x).reshape(batch, -1, x.shape[-1]), self.num_heads)
        shares: list[mx.array] | None = None if weights is None else []
        dropout = self.dropout if self.training else 0.0
        options = {"scale": self.scale, "mask": mask, "dropout": dropout, "weights": shares}
        out = scaled_dot_product_attention(queries, keys, values, **options)
        if head_mask is not None:
            out = out * head_mask.astype(out.dtype)
        if weights is not None and shares is not None:
            shown = shares[0] if head_mask is None else shares[0] * head_mask
            by_row = shown.reshape(batch, self.num_heads, -1, x.shape[1], num_keys)
            weights.append(by_row.swapaxes(1, 2).flatten(0, 1))
        return self.out_proj(merge_heads(out).reshape(x.shape))


def head_masks(given: Any, name: str, num_layers: int, num_heads: int) -> Sequence[mx.array | None]:
    """A caller's mask of heads, (layers, heads), zero for those that are to be left out: for each
    layer (heads, 1, 1), or None.

    Raises:
        InputError: it has another shape.
    """
    if given is None:
        return [None] * num_layers
    mask = check_array(given, name, mx.generic, (num_layers, num_heads))
    return list(mask.astype(mx.float32)[..., None, None])


class Layer(nn.Module):
    """What the two kinds of layer share; every sublayer has its norm before it."""

    def __init__(self, config: Speech2TextConfig, num_heads: int, ffn_dim: int):
        super().__init__()
        dim = config.d_model
        # by its name: a compiled function cannot be copied
        self.activation_function = config.activation_function
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)
        self.self_attn = Attention(config, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def feed_forward(self, x: mx.array) -> mx.array:
        activate = ACTIVATIONS[self.activation_function]
        inner = self.activation_dropout(activate(self.fc1(self.final_layer_norm(x))))
        return x + self.dropout(self.fc2(inner))


class LayerStack(nn.Module):
    """What encoder and decoder share: layers, some of which training skips at random
    (https://arxiv.org/abs/1909.11556), and the norm behind them."""

    def __init__(self, config: Speech2TextConfig, layers: list[Any], layerdrop: float):
        super().__init__()
        self.config, self.layerdrop = config, layerdrop
        self.dropout = nn.Dropout(config.dropout)
        self.positions = SinusoidalPositions(config.d_model, config.pad_token_id)
        self.layers = layers
        self.layer_norm = nn.LayerNorm(config.d_model)

    def run(self, x: mx.array, layers: Iterable[Callable[[mx.array], mx.array]]) -> Layers:
        """The first layer's input, each layer's output, and the final norm's in place of the last
        layer's.

        Args:
            x: (rows, length, d_model), with positions.
            layers: each of them with all that it takes beside this.
        """
        states = [self.dropout(x)]
        for layer in layers:
            before, after = states[-1], layer(states[-1])
            if self.training and self.layerdrop:
                after = mx.where(mx.random.uniform() < self.layerdrop, before, after)
            states.append(after)
        states[-1] = self.layer_norm(states[-1])
        return tuple(states)
