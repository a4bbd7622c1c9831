"""The projector of Granite Speech NAR: several layers of the encoder, in windows of frames, become
rows of the editor's input.

Queries look at the frames of their window, and not at each other. Module names are those of the
released checkpoints.
"""

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from ...errors import InputError
from ...layers.activations import silu
from ...layers.attention import merge_heads, scaled_dot_product_attention, split_heads
from ...layers.token_ids import check_array
from ..config import (
    DERIVED,
    Deviation,
    Epsilon,
    Factor,
    Frames,
    LayerCount,
    PretrainedConfig,
    Probability,
    Width,
)


@dataclass(kw_only=True)
class GraniteSpeechNarProjectorConfig(PretrainedConfig):
    """Configuration of the projector.

    num_encoder_layers, encoder_dim, llm_dim: layers of the encoder that it takes, their width, and
        the editor's; by default what those are.
    block_size: frames of a window.
    downsample_rate: frames that become one row.
    intermediate_size: by default `mlp_ratio` times `hidden_size`.
    """

    model_type: ClassVar[str] = "granite_speech_nar_projector"
    part_of_config: ClassVar[str | None] = "projector_config"
    aliases: ClassVar[dict[str, str]] = {
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "window_size": "block_size",
        "layer_norm_eps": "layernorm_eps",
        "attention_bias": "attn_bias",
    }

    num_encoder_layers: Factor = DERIVED
    encoder_dim: Width = DERIVED
    llm_dim: Width = DERIVED
    hidden_size: Width = 2048
    num_layers: LayerCount = 2
    num_heads: Factor = 32
    block_size: Frames = 15
    downsample_rate: Frames = 5
    mlp_ratio: Factor = 2
    intermediate_size: Width = DERIVED
    hidden_act: str = "silu"
    attn_bias: bool = True
    mlp_bias: bool = True
    dropout_prob: Probability = 0.1
    layernorm_eps: Epsilon = 1e-6
    initializer_range: Deviation = 0.02

    def __post_init__(self):
        super().__post_init__()
        self._check_multiple("hidden_size", "num_heads")
        self._check_multiple("block_size", "downsample_rate")
        self._check_choice("hidden_act", ("silu",))
        if self.intermediate_size is None:
            self.intermediate_size = self.hidden_size * self.mlp_ratio

    @property
    def input_size(self) -> int:
        """Width of what it takes, all layers side by side."""
        return self.num_encoder_layers * self.encoder_dim


class CrossAttention(nn.Module):
    def __init__(self, config: GraniteSpeechNarProjectorConfig):
        super().__init__()
        self.num_heads, dim = config.num_heads, config.hidden_size
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            self[name] = nn.Linear(dim, dim, bias=config.attn_bias)

    def __call__(self, x, frames):
        projected = self.q_proj(x), self.k_proj(frames), self.v_proj(frames)
        queries, keys, values = (split_heads(t, self.num_heads) for t in projected)
        scale = queries.shape[-1] ** -0.5
        return self.o_proj(
            merge_heads(scaled_dot_product_attention(queries, keys, values, scale=scale))
        )


class MLP(nn.Module):
    def __init__(self, config: GraniteSpeechNarProjectorConfig):
        super().__init__()
        sizes = config.hidden_size, config.intermediate_size
        self.fc1 = nn.Linear(*sizes, bias=config.mlp_bias)
        self.fc2 = nn.Linear(*reversed(sizes), bias=config.mlp_bias)

    def __call__(self, x):
        return self.fc2(silu(self.fc1(x)))


class QFormerLayer(nn.Module):
    def __init__(self, config: GraniteSpeechNarProjectorConfig):
        super().__init__()
        self.attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_eps)
        self.cross_attention = CrossAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_eps)
        self.mlp = MLP(config)

    def __call__(self, x, frames):
        x = x + self.cross_attention(self.attn_norm(x), frames)
        return x + self.mlp(self.mlp_norm(x))


class GraniteSpeechNarProjector(nn.Module):
    """Turns every `downsample_rate` encoder frames into one row.

    Args:
        config: of which nothing is left to derive.
    """

    def __init__(self, config: GraniteSpeechNarProjectorConfig):
        super().__init__()
        self.config = config
        dim, eps, window = config.hidden_size, config.layernorm_eps, config.block_size
        layers = range(config.num_encoder_layers)
        self.layer_norms = [nn.LayerNorm(config.encoder_dim, eps=eps) for _ in layers]
        self.layer_projector = nn.Linear(config.input_size, dim)
        self.query = mx.zeros((1, window // config.downsample_rate, dim))
        self.window_positions = mx.zeros((1, window, dim))
        self.qformer = nn.Module()  # it is only there for the names
        self.qformer.layers = [QFormerLayer(config) for _ in range(config.num_layers)]
        self.out_norm = nn.LayerNorm(dim, eps=eps)
        self.out_linear = nn.Linear(dim, config.llm_dim)
        self.dropout = nn.Dropout(config.dropout_prob)

    def init_own_weights(self, std: float) -> None:
        """See `init_weights`; these are drawn with a deviation of their own."""
        std = self.config.hidden_size**-0.5
        self.query = mx.random.normal(self.query.shape, scale=std)
        self.window_positions = mx.random.normal(self.window_positions.shape, scale=std)

    def __call__(self, hidden_states: mx.array) -> mx.array:
        """(batch, frames, encoder output size) -> (batch, rows, llm_dim): those of whole windows,
        to which zeros fill up the last.

        Raises:
            InputError: the encoder has another size, or these are no such states.
        """
        config = self.config
        shape = "recordings", "frames", "encoder_dim"
        states = check_array(hidden_states, "hidden_states", mx.floating, shape)
        batch, num_frames, width = states.shape
        if width != config.input_size:
            rule = f"as wide as what the encoder gives, {width}"
            raise InputError.must_be("encoder_dim * num_encoder_layers", config.input_size, rule)
        layers = states.split(config.num_encoder_layers, axis=-1)
        normed = [norm(layer) for norm, layer in zip(self.layer_norms, layers, strict=True)]
        fused = nn.gelu(self.layer_projector(mx.concatenate(normed, axis=-1)))
        padding = -num_frames % config.block_size
        fused = mx.pad(fused, [(0, 0), (0, padding), (0, 0)])
        windows = fused.reshape(-1, config.block_size, config.hidden_size)
        groups = windows.reshape(len(windows), -1, config.downsample_rate, config.hidden_size)
        x = self.dropout(self.query + groups.mean(axis=2))
        frames = self.dropout(windows + self.window_positions)
        for layer in self.qformer.layers:
            x = layer(x, frames)
        rows = self.out_linear(self.dropout(self.out_norm(x)))
        return rows.reshape(batch, -1, config.llm_dim)
