"""Strategies over a decoder: greedy search, sampling and beam search, and text as it streams.

They see logits and a cache that can be advanced and reordered, and know no model.
"""

from .api import generate, prefill
from .config import GenerationConfig
from .outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateBeamEncoderDecoderOutput,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
)
from .streaming import StreamingDetokenizer

__all__ = [
    "GenerateBeamDecoderOnlyOutput",
    "GenerateBeamEncoderDecoderOutput",
    "GenerateDecoderOnlyOutput",
    "GenerateEncoderDecoderOutput",
    "GenerationConfig",
    "StreamingDetokenizer",
    "generate",
    "prefill",
]
