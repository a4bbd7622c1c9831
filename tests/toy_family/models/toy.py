from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from mlx_speech.layers.cache import KVCache
from mlx_speech.models.base import PretrainedModel
from mlx_speech.models.config import PretrainedConfig

from .processing import EOS, VOCABULARY, encode


@dataclass(kw_only=True)
class ToyConfig(PretrainedConfig):
    model_type: ClassVar[str] = "toy"


class ToyModel(PretrainedModel):
    """Writes "long" for what lasts longer than `boundary` seconds, else "short"."""

    config_class = ToyConfig
    generation_inputs = ("seconds",)
    vocab_size = len(VOCABULARY)
    context_length = 100

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.boundary = mx.zeros((1,))

    def prepare_prompt(self, inputs, config):
        return mx.full((len(inputs["seconds"]), 1), EOS), None

    def make_cache(self, left_padding=None):
        return [KVCache()]

    def prefill(self, prompt, cache, *, seconds):
        is_long = seconds[:, None] > self.boundary
        cache[0].words = mx.where(is_long, encode("long "), encode("short"))
        return self.step(prompt, cache)[:, -1:]

    def step(self, tokens, cache):
        start = cache[0].length
        cache[0].length += tokens.shape[1]
        ids = cache[0].words[:, start : cache[0].length]
        ids = ids if ids.size else mx.full(tokens.shape, EOS)
        return 50.0 * (mx.arange(self.vocab_size) == ids[..., None])
