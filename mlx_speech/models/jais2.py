"""Jais 2: LayerNorm with bias, a squared ReLU without a gate, biases everywhere but in the head."""

import logging
from dataclasses import dataclass
from typing import ClassVar

import mlx.nn as nn

from .causal_lm import CausalLM
from .decoder import DecoderConfig, DecoderModel

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Jais2Config(DecoderConfig):
    """Configuration of a Jais 2 text decoder.

    The released models rotate with a base of 500000, which only their config.json says; where it
    does not, the documented default of 10000 applies, with a warning.
    """

    model_type: ClassVar[str] = "jais2"
    gated_mlp: ClassVar[bool] = False

    vocab_size: int = 150272
    hidden_size: int = 3328
    intermediate_size: int = 26624
    num_attention_heads: int = 26
    hidden_act: str = "relu2"
    max_position_embeddings: int = 8192
    layer_norm_eps: float = 1e-5
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 150024
    attention_bias: bool = True
    mlp_bias: bool = True

    def norm(self) -> nn.Module:
        """See `DecoderConfig.norm`."""
        return nn.LayerNorm(self.hidden_size, eps=self.layer_norm_eps)

    @classmethod
    def from_dict(cls, data):
        """See `PretrainedConfig.from_dict`."""
        config = super().from_dict(data)
        places = (data, data.get("rope_parameters") or {}, data.get("rope_scaling") or {})
        if not any("rope_theta" in place for place in places):
            logger.warning(
                "config.json of this Jais 2 checkpoint names no rope_theta; taking %g, where the "
                "released models have 500000",
                config.rope_parameters["rope_theta"],
            )
        return config


class Jais2Model(DecoderModel):
    config_class = Jais2Config


class Jais2ForCausalLM(CausalLM):
    config_class = Jais2Config
    model_class = Jais2Model
