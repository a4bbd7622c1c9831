"""What the encoder's CTC heads write by themselves, greedily: drafts that the decoder may check, or
texts that need no decoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import mlx.core as mx
import numpy as np

from ..generation.protocols import Detokenizes
from ..layers.ctc import best_labels, collapsed
from ..models.conformer import BLANK
from ..models.granite_speech.pooling import HasBPEHead, bpe_labels
from ..processing.tokenizer import Tokenizer
from .alignment import word_probabilities
from .ctc import CTCVocabulary, LabelFrames, SubwordVocabulary


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

    @classmethod
    def of_tokens(cls, tokens: list[int], logprobs: list[float], tokenizer: Detokenizes) -> Self:
        """What is written with the tokens of a model themselves."""
        return cls(written(tokens, tokenizer), tokens, tokens, logprobs, tokenizer)

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
    best = bpe_labels(model, hidden_states, non_blank)
    labels, logprobs = collapsed(*best, model.bpe_blank)
    return _text([label - model.bpe_shift for label in labels], logprobs, tokenizer, tokenizer)


def written(labels: Sequence[int], vocabulary: Detokenizes) -> str:
    """What labels say, one after the other, without blanks; runs of white space are one space."""
    return " ".join(vocabulary.decode(labels, skip_special_tokens=True).split())


def subword_text(
    labels: np.ndarray, logprobs: np.ndarray, vocabulary: SubwordVocabulary
) -> CTCText:
    """What a head writes whose labels are the tokens of its text.

    Args:
        labels: (frames,) the likeliest one of each frame.
        logprobs: (frames,) their log-probabilities.
    """
    said, said_logprobs = collapsed(labels.tolist(), logprobs.tolist(), vocabulary.blank)
    text = written(said, vocabulary)
    # The likeliest label of each frame is the likeliest path of all, and so the one that forced
    # alignment of the same labels would find
    first = np.flatnonzero(np.diff(labels, prepend=-1))
    last = np.append(first[1:], len(labels)) - 1
    spoken = labels[first] != vocabulary.blank
    return CTCText(text, said, said, said_logprobs, vocabulary, (first[spoken], last[spoken]))


def _text(
    labels: list[int], logprobs: list[float], vocabulary: Detokenizes, tokenizer: Tokenizer
) -> CTCText:
    text = written(labels, vocabulary)
    tokens = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return CTCText(text, tokens, labels, logprobs, vocabulary)
