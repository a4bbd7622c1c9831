"""A model that tells long speech from short."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..layers.cache import KVCache
from .base import PretrainedModel
from .config import PretrainedConfig, VocabSize


@dataclass(kw_only=True)
class ToyConfig(PretrainedConfig):
    model_type: ClassVar[str] = "toy"

    vocab_size: VocabSize = 27
    eos_token_id: int = 0


class ToyForConditionalGeneration(PretrainedModel):
    """Writes "long" where its encoder gives more than 0 for the seconds of a recording, else
    "short"; what it embeds a letter as are the logits of that letter."""

    config_class = ToyConfig
    generation_inputs = ("input_features",)
    context_length = 100
    tied_head, tied_embeddings = None, "embed_tokens."

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.encoder = nn.Linear(1, 1)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.vocab_size)

    def audio_stages(self, input_features):
        yield "encoder", self.encoder(input_features)

    def prepare_prompt(self, inputs, config):
        return mx.full((len(inputs["input_features"]), 1), self.config.eos_token_id), None

    def make_cache(self, left_padding=None):
        return [KVCache()]

    def prefill(self, prompt, cache, *, input_features):
        long, short = (mx.array([ord(c) - 96 for c in word]) for word in ("long", "short"))
        long = mx.pad(long, (0, 1), constant_values=self.config.eos_token_id)
        ((_, states),) = self.audio_stages(input_features)
        cache[0].words = mx.where(states > 0, long, short)
        return self.step(prompt, cache)[:, -1:]

    def step(self, tokens, cache):
        start = cache[0].length
        cache[0].length += tokens.shape[1]
        ids = cache[0].words[:, start : cache[0].length]
        ids = ids if ids.size else mx.full(tokens.shape, self.config.eos_token_id)
        return self.embed_tokens(ids)
