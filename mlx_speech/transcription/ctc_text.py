"""What the encoder's CTC heads write by themselves, greedily: drafts that the decoder may check, or
texts that need no decoder."""

from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from ..generation.protocols import Detokenizes
from ..layers.ctc import best_labels, best_labels_in_parts, collapsed
from ..models.conformer import BLANK
from ..processing.tokenizer import Tokenizer
from .alignment import word_probabilities
from .ctc import CTCVocabulary, LabelFrames, SubwordVocabulary

_GROUPS = 64  #: of frames whose logits over all tokens are in memory at once


class HasBPEHead(Protocol):
    """A model whose encoder has a CTC head of tokens.

    bpe_frames: frames that the head takes together.
    bpe_blank: its label that stands for nothing.
    bpe_shift: what other labels are above the tokens that they stand for.
    """

    bpe_frames: int
    bpe_blank: int
    bpe_shift: int

    def bpe_logits(self, hidden_states: mx.array, non_blank: mx.array) -> mx.array:
        """(batch, frames, output size) and (batch, frames) of the encoder -> (batch, groups of
        frames, labels), a last group of fewer frames included."""
        ...


@dataclass(frozen=True)
class CTCText:
    """What a CTC head writes.

    text: runs of white space are one space.
    tokens: ids of the text as the decoder would write it; what looks like a special token is none.
    labels: ids that it was written with, one after the other, without blanks.
    logprobs: natural logarithm of each one's probability, in the frame that has most of it.
    vocabulary: what decodes the labels.
    label_frames: where each label is, where words are placed by them: first and last frame of it,
        (labels,) each, counted as the levels of its chunk.
    """

    text: str
    tokens: list[int]
    labels: list[int]
    logprobs: list[float]
    vocabulary: Detokenizes
    label_frames: LabelFrames | None = None

    def word_probabilities(self) -> list[float]:
        """How sure the head was of each word of the text, as `alignment.word_probabilities`."""
        # there the words of the text are, between white space of any kind
        written = self.vocabulary.decode(self.labels, skip_special_tokens=True)
        return word_probabilities(written, self.labels, self.logprobs, self.vocabulary)


def character_text(
    ctc_logits: mx.array, vocabulary: CTCVocabulary, tokenizer: Tokenizer
) -> CTCText:
    """What the character head writes.

    Args:
        ctc_logits: (frames, labels).
        vocabulary: what the labels mean.
        tokenizer: of the model's decoder.
    """
    labels, logprobs = collapsed(*best_labels(ctc_logits), BLANK)
    return _text(labels, logprobs, vocabulary, tokenizer)


def bpe_text(
    model: HasBPEHead, tokenizer: Tokenizer, hidden_states: mx.array, non_blank: mx.array
) -> CTCText:
    """What the BPE head writes.

    Args:
        tokenizer: of the model's decoder.
        hidden_states: (frames, output size) of the encoder.
        non_blank: (frames,), likewise.
    """

    def logits(part: slice) -> mx.array:
        return model.bpe_logits(hidden_states[None, part], non_blank[None, part])[0]

    best = best_labels_in_parts(logits, len(hidden_states), _GROUPS * model.bpe_frames)
    labels, logprobs = collapsed(*best, model.bpe_blank)
    return _text([label - model.bpe_shift for label in labels], logprobs, tokenizer, tokenizer)


def subword_text(
    labels: np.ndarray, logprobs: np.ndarray, vocabulary: SubwordVocabulary
) -> CTCText:
    """What a head writes whose labels are the tokens of its text.

    Args:
        labels: (frames,) the likeliest one of each frame.
        logprobs: (frames,) their log-probabilities.
    """
    said, said_logprobs = collapsed(labels.tolist(), logprobs.tolist(), BLANK)
    text = " ".join(vocabulary.decode(said, skip_special_tokens=True).split())
    # The likeliest label of each frame is the likeliest path of all, and so the one that forced
    # alignment of the same labels would find
    first = np.flatnonzero(np.diff(labels, prepend=-1))
    last = np.append(first[1:], len(labels)) - 1
    spoken = labels[first] != BLANK
    return CTCText(text, said, said, said_logprobs, vocabulary, (first[spoken], last[spoken]))


def _text(
    labels: list[int], logprobs: list[float], vocabulary: Detokenizes, tokenizer: Tokenizer
) -> CTCText:
    text = " ".join(vocabulary.decode(labels, skip_special_tokens=True).split())
    tokens = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return CTCText(text, tokens, labels, logprobs, vocabulary)
