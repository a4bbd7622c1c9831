"""The words of segments: those of a text, and when each was said."""

from collections.abc import Sequence
from typing import Any

from .alignment import align_words, split_words
from .chunks import AudioChunk
from .ctc import CTCVocabulary
from .transcript import Segment, Word


def words_of(segment: Segment, probabilities: Sequence[float]) -> list[Word]:
    """The words of a segment's text, until they are placed each as long as the segment.

    Args:
        probabilities: of each word.
    """
    text = segment.text
    return [
        Word(text[first:last], segment.start, segment.end, probability)
        for (first, last), probability in zip(split_words(text), probabilities, strict=True)
    ]


def place_words(decoded: Sequence[tuple[AudioChunk, Segment]], vocabulary: CTCVocabulary) -> None:
    """Give the words of all segments their times at once.

    Args:
        decoded: chunks that have what words are placed by, and the text of each.
        vocabulary: of their CTC logits.
    """
    texts = [segment.text for _, segment in decoded]
    logits: list[Any] = [chunk.ctc_logits for chunk, _ in decoded]
    levels: list[Any] = [chunk.levels_db for chunk, _ in decoded]
    starts = [chunk.start for chunk, _ in decoded]
    placed = align_words(texts, logits, levels, vocabulary, starts)
    for (_, segment), times in zip(decoded, placed, strict=True):
        for word, time in zip(segment.words, times, strict=True):
            word.start, word.end = time.start, time.end
