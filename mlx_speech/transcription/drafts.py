"""What the encoder's CTC heads write by themselves, greedily: drafts that the decoder may check."""

from collections.abc import Iterable
from itertools import groupby

import mlx.core as mx

from ..models.granite_speech.encoder import BLANK
from ..models.granite_speech.model import GraniteSpeechForConditionalGeneration
from ..models.granite_speech.pooling import POOLED_FRAMES
from ..processing.tokenizer import Tokenizer
from .ctc import CTCVocabulary

_PART_FRAMES = 64 * POOLED_FRAMES  #: frames whose logits over all tokens are in memory at once


def character_text(ctc_logits: mx.array, vocabulary: CTCVocabulary) -> str:
    """What the character head writes; runs of white space are one space.

    Args:
        ctc_logits: (frames, labels).
        vocabulary: what the labels mean.
    """
    labels = collapsed(mx.argmax(ctc_logits, axis=-1).tolist())
    return _normalized("".join(map(vocabulary.character, labels)))


def bpe_text(
    model: GraniteSpeechForConditionalGeneration,
    tokenizer: Tokenizer,
    hidden_states: mx.array,
    non_blank: mx.array,
) -> str:
    """What the BPE head writes; runs of white space are one space.

    Args:
        model: one that has such a head.
        tokenizer: of the model's decoder.
        hidden_states: (frames, output size) of the encoder.
        non_blank: (frames,), likewise.
    """
    best: list[int] = []
    for start in range(0, len(hidden_states), _PART_FRAMES):
        part = slice(start, start + _PART_FRAMES)
        logits = model.bpe_logits(hidden_states[None, part], non_blank[None, part])
        best += mx.argmax(logits[0], axis=-1).tolist()
    tokens = [label - 1 for label in collapsed(best)]
    return _normalized(tokenizer.decode(tokens, skip_special_tokens=True))


def draft_tokens(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a draft as the decoder would write it; what looks like a special token is none."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def collapsed(labels: Iterable[int]) -> list[int]:
    """What a CTC head says with a label for each frame: one of several frames in a row counts once,
    blanks do not."""
    return [label for label, _ in groupby(labels) if label != BLANK]


def _normalized(text: str) -> str:
    return " ".join(text.split())
