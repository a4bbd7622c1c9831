"""A model in both packages that generates, and what their scores are compared by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from transformers import (
    GraniteForCausalLM,
    Jais2ForCausalLM,
    LlamaForCausalLM,
)

from .random_models import (
    PAD,
    Pair,
    tensor,
)

TOLERANCE = 1e-4
NEW = 16
#: end tokens, so many that some are met
ENDS = [0, *range(48, 54)]
DECODERS = {"llama": LlamaForCausalLM, "granite": GraniteForCausalLM, "jais2": Jais2ForCausalLM}
FAMILIES = [*DECODERS, "granite-speech", "speech-to-text"]


@dataclass
class Generator:
    """The same model twice, and inputs whose answers vary."""

    pair: Pair
    inputs: dict[str, np.ndarray]

    def theirs(self, **options: Any):
        given = {k: tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        inputs = {name: tensor(value) for name, value in self.inputs.items()}
        settled = {"do_sample": False, "pad_token_id": PAD, "max_new_tokens": NEW}
        with torch.no_grad():
            return self.pair.reference.generate(**inputs, **settled | given)

    def ours(self, **options: Any):
        given = {k: mx.array(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        inputs = {name: mx.array(value) for name, value in self.inputs.items()}
        settled = {"pad_token_id": PAD, "max_new_tokens": NEW}
        return self.pair.ours.generate(**inputs, **settled | given)


def compare_scores(ours, theirs, lengths, rows_each: int = 1) -> None:
    """Of each step, as long as a row's answer goes on."""
    assert len(ours) == len(theirs)
    for number, (found, expected) in enumerate(zip(ours, theirs, strict=True)):
        assert found.shape == tuple(expected.shape)
        assert found.dtype == mx.float32
        going = np.repeat(np.array(lengths) > number, rows_each)
        np.testing.assert_allclose(
            np.array(found)[going], expected.numpy()[going], atol=TOLERANCE, rtol=0
        )


def answer_lengths(sequences: np.ndarray, prompt: int, ends) -> list[int]:
    """How many tokens each answer has, its end included."""
    rows = [row[prompt:].tolist() for row in sequences]
    return [next((n for n, i in enumerate(row, 1) if i in ends), len(row)) for row in rows]
