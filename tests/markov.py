"""A model small enough to search by hand."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_speech import GenerationConfig
from mlx_speech.generation.processors import logits_processors
from mlx_speech.generation.search import DecodingInputs, search
from mlx_speech.generation.stopping import StoppingCriteria
from mlx_speech.layers.cache import KVCache

EOS = 0


class MarkovModel:
    """Each token's successors have fixed logits; the cache holds the tokens that were fed."""

    def __init__(self, vocab_size: int, seed: int):
        rng = np.random.default_rng(seed)
        self.table = mx.array(rng.normal(size=(vocab_size, vocab_size)).astype(np.float32) * 2)
        self.cache = [KVCache()]
        self.steps = 0

    def feed(self, tokens: mx.array) -> mx.array:
        self.steps += 1
        keys = tokens.astype(mx.float32).reshape(len(tokens), 1, 1, 1)
        self.cache[0].update_and_fetch(keys, keys)
        return self.table[tokens]

    def start(self, prompt: mx.array) -> mx.array:
        return self.feed(prompt)[:, -1]

    def prefill(self, prompt: mx.array, config: GenerationConfig, step=None) -> DecodingInputs:
        length = prompt.shape[1]
        config = GenerationConfig().overridden(config).limited(length)
        logits, stopping = self.start(prompt), StoppingCriteria(config)
        processors = logits_processors(config, length, logits.shape[-1])
        fed = logits, step or self.feed, self.cache
        return DecodingInputs(config, prompt, *fed, stopping, processors)

    def history(self) -> list[list[int]]:
        cache = self.cache[0]
        return cache.state[0][:, 0, : cache.length, 0].astype(mx.int32).tolist()


def run_search(model: MarkovModel, prompt: list[int], config: GenerationConfig):
    prompt = mx.array(prompt)[:, None]
    return list(search(model.prefill(prompt, config)))
