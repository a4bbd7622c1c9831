"""Jais 2: LayerNorm with bias, a squared ReLU without a gate, biases everywhere but in the head."""

import warnings
from dataclasses import dataclass
from typing import ClassVar

import mlx.nn as nn

from ..fields import TokenId
from .causal_lm import CausalLM
from .config import Epsilon, Factor, Positions, VocabSize, Width
from .decoder import DecoderModel
from .decoder_config import DecoderConfig


@dataclass(kw_only=True)
class Jais2Config(DecoderConfig):
    """Configuration of a Jais 2 text decoder.

    The released models rotate with a base of 500000, which only their config.json says; where it
    does not, the documented default of 10000 applies, with a warning.
    """

    model_type: ClassVar[str] = "jais2"
    gated_mlp: ClassVar[bool] = False

    vocab_size: VocabSize = 150272
    hidden_size: Width = 3328
    intermediate_size: Width = 26624
    num_attention_heads: Factor = 26
    hidden_act: str = "relu2"
    max_position_embeddings: Positions = 8192
    layer_norm_eps: Epsilon = 1e-5
    bos_token_id: TokenId | None = 0
    eos_token_id: TokenId | list[TokenId] | None = 150024
    attention_bias: bool = True
    mlp_bias: bool = True

    def norm(self) -> nn.Module:
        """See `DecoderConfig.norm`."""
        return nn.LayerNorm(self.hidden_size, eps=self.layer_norm_eps)

    @classmethod
    def from_dict(cls, data, place="config.json: "):
        """See `PretrainedConfig.from_dict`."""
        config = super().from_dict(data, place)
        said = (data, data.get("rope_parameters") or {}, data.get("rope_scaling") or {})
        if not any("rope_theta" in part for part in said):
            warnings.warn(
                "config.json of this Jais 2 checkpoint names no rope_theta; taking "
                f"{config.rope_parameters['rope_theta']:g}, where the released models have 500000",
                stacklevel=2,
            )
        return config


class Jais2Model(DecoderModel):
    """Jais 2 without a head."""

    config_class = Jais2Config


class Jais2ForCausalLM(CausalLM):
    """Jais 2, a causal language model."""

    config_class = Jais2Config
    model_class = Jais2Model
