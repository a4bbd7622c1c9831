"""What the configurations of all text decoders say; each family's says what it has beside."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import mlx.nn as nn

from ..errors import InputError
from ..fields import TokenId
from ..layers.activations import ACTIVATIONS
from ..layers.rope import normalize_rope_parameters
from .config import (
    DERIVED,
    Deviation,
    Factor,
    LayerCount,
    Positions,
    PretrainedConfig,
    Probability,
    VocabSize,
    Width,
)


class Scales(NamedTuple):
    """What a family multiplies the scores, the embeddings and both residual branches by, and what
    it divides the logits by."""

    attention: float
    embeddings: float = 1.0
    residual: float = 1.0
    logits_divisor: float = 1.0


@dataclass(kw_only=True)
class DecoderConfig(PretrainedConfig):
    """Fields that all text decoders have; see the transformers documentation of each family.

    Attributes:
        gated_mlp: whether the feed-forward part multiplies with a gate.
    """

    gated_mlp: ClassVar[bool] = True

    vocab_size: VocabSize = 32000
    hidden_size: Width = 4096
    intermediate_size: Width = 11008
    num_hidden_layers: LayerCount = 32
    num_attention_heads: Factor = 32
    num_key_value_heads: Factor = DERIVED
    head_dim: Width = DERIVED
    hidden_act: str = "silu"
    max_position_embeddings: Positions = 2048
    initializer_range: Deviation = 0.02
    use_cache: bool = True
    pad_token_id: TokenId | None = None
    bos_token_id: TokenId | None = 1
    eos_token_id: TokenId | list[TokenId] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] = DERIVED
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: Probability | None = 0.0
    mlp_bias: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self._check_multiple("hidden_size", "num_attention_heads")
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.head_dim % 2:
            raise InputError.must_be("head_dim", self.head_dim, "even, to be rotated")
        self._check_multiple("num_attention_heads", "num_key_value_heads")
        self._check_choice("hidden_act", ACTIVATIONS)
        given = self.rope_parameters, self.rope_theta, self.rope_scaling
        self.rope_parameters = normalize_rope_parameters(*given)
        # as checkpoints had them before, for who still asks for them
        self.rope_theta = self.rope_parameters["rope_theta"]
        plain = self.rope_parameters["rope_type"] == "default"
        self.rope_scaling = None if plain else self.rope_parameters

    @property
    def scales(self) -> Scales:
        """See `Scales`."""
        return Scales(self.head_dim**-0.5)

    def shard_counts(self) -> dict[str, int]:
        """See `PretrainedConfig.shard_counts`."""
        return {
            "KV heads": self.num_key_value_heads,
            "attention heads": self.num_attention_heads,
            "units in intermediate_size": self.intermediate_size,
        }

    def norm(self) -> nn.Module:
        """A normalisation of hidden states; most families have this one, and its epsilon."""
        return nn.RMSNorm(self.hidden_size, eps=self.rms_norm_eps)
