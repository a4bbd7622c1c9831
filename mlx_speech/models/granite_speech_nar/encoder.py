"""The encoder of Granite Speech NAR: Granite Speech's with a CTC head of the editor's tokens."""

from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ...errors import InputError
from ...fields import TokenId
from ..config import DERIVED, Frames, LayerCount, VocabSize
from ..granite_speech.encoder import GraniteSpeechCTCEncoder, GraniteSpeechEncoderConfig
from ..granite_speech.pooling import POOLED_FRAMES, pool_frames

_LEAST_TOTAL = 1e-6  # of the weights of pooled frames, as the head was trained


@dataclass(kw_only=True)
class GraniteSpeechNarEncoderConfig(GraniteSpeechEncoderConfig):
    """Configuration of the encoder.

    self_conditioning_layer: the block, 1 the first, whose result is conditioned; by default the
        one in the middle.
    bpe_output_dim: labels of the head of the editor's tokens; by default as many as these are.
    bpe_pooling_window: frames that it takes together.
    blank_token_id: kept, and changes nothing: the number of labels tells which one is the blank.
    """

    model_type: ClassVar[str] = "granite_speech_nar_encoder"
    other_types: ClassVar[tuple[str, ...]] = ("granite_speech_encoder",)
    aliases: ClassVar[dict[str, str]] = {
        **GraniteSpeechEncoderConfig.aliases,
        "vocabulary_size": "bpe_output_dim",
        "pooling_window": "bpe_pooling_window",
    }

    num_layers: LayerCount = 16
    output_dim: VocabSize = 348
    self_conditioning_layer: LayerCount = DERIVED
    bpe_output_dim: VocabSize = DERIVED
    bpe_pooling_window: Frames = POOLED_FRAMES
    blank_token_id: TokenId | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.self_conditioning_layer is None:
            self.self_conditioning_layer = max(1, self.num_layers // 2)
        if self.self_conditioning_layer > self.num_layers:
            rule = f"one of the {self.num_layers} layers"
            raise InputError.must_be("self_conditioning_layer", self.self_conditioning_layer, rule)


class GraniteSpeechNarCTCEncoder(GraniteSpeechCTCEncoder):
    """As the encoder that it is made from, with `cat_hidden_layers` in its output."""

    def __init__(self, config: GraniteSpeechNarEncoderConfig):
        super().__init__(config)
        self.out_bpe = nn.Linear(config.hidden_dim, config.bpe_output_dim)

    @property
    def middle(self) -> int:
        """See there."""
        return self.config.self_conditioning_layer

    def bpe_logits(self, hidden_states: mx.array, non_blank: mx.array) -> mx.array:
        """What the head of tokens says to frames that it pools.

        Args:
            hidden_states: (batch, frames, output size).
            non_blank: (batch, frames).

        Returns:
            (batch, frames / bpe_pooling_window, bpe_output_dim), a last group of fewer frames
            included.
        """
        config: Any = self.config
        frames = hidden_states[..., -config.hidden_dim :]
        return self.out_bpe(pool_frames(frames, non_blank, config.bpe_pooling_window, _LEAST_TOTAL))
