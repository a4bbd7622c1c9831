"""Granite: a Llama-like decoder with four scalars (embeddings, scores, residuals, logits)."""

from dataclasses import dataclass
from typing import ClassVar

from .causal_lm import CausalLM
from .config import Epsilon, Scale
from .decoder import DecoderModel
from .decoder_config import DecoderConfig, Scales


@dataclass(kw_only=True)
class GraniteConfig(DecoderConfig):
    """Configuration of a Granite text decoder."""

    model_type: ClassVar[str] = "granite"
    part_of_config: ClassVar[str | None] = "text_config"

    rms_norm_eps: Epsilon = 1e-6
    embedding_multiplier: Scale = 1.0
    attention_multiplier: Scale = 1.0
    residual_multiplier: Scale = 1.0
    logits_scaling: Scale = 1.0

    @property
    def scales(self) -> Scales:
        """See `Scales`."""
        embeddings, residual = self.embedding_multiplier, self.residual_multiplier
        return Scales(self.attention_multiplier, embeddings, residual, self.logits_scaling)


class GraniteModel(DecoderModel):
    """Granite without a head."""

    config_class = GraniteConfig


class GraniteForCausalLM(CausalLM):
    """Granite, a causal language model."""

    config_class = GraniteConfig
    model_class = GraniteModel
