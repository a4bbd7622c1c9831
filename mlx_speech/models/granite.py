"""Granite: a Llama-like decoder with four scalars (embeddings, scores, residuals, logits)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .causal_lm import CausalLM
from .decoder import DecoderConfig, DecoderModel


@dataclass(kw_only=True)
class GraniteConfig(DecoderConfig):
    """Configuration of a Granite text decoder."""

    model_type: ClassVar[str] = "granite"

    rms_norm_eps: float = 1e-6
    embedding_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0

    @property
    def norm_eps(self) -> float:
        return self.rms_norm_eps

    @property
    def embedding_scale(self) -> float:
        return self.embedding_multiplier

    @property
    def attention_scale(self) -> float:
        return self.attention_multiplier

    @property
    def residual_scale(self) -> float:
        return self.residual_multiplier

    @property
    def logits_divisor(self) -> float:
        return self.logits_scaling


class GraniteModel(DecoderModel):
    config_class = GraniteConfig


class GraniteForCausalLM(CausalLM):
    config_class = GraniteConfig
    model_class = GraniteModel
