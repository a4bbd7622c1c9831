"""The words of segments: those of a text, and when each was said."""

from collections.abc import Sequence
from typing import Any

from .alignment import WordTime, align_words, split_words, written_words
from .chunks import AudioChunk
from .ctc import CTCVocabulary, Vocabulary
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


def place_words(decoded: Sequence[tuple[AudioChunk, Segment]], vocabulary: Vocabulary) -> None:
    """Give the words of all segments their times at once.

    Args:
        decoded: chunks that have what words are placed by, and the text of each.
        vocabulary: of their CTC logits, or of the labels of their drafts, where these are tokens.
    """
    if isinstance(vocabulary, CTCVocabulary):
        placed = _aligned(decoded, vocabulary)
    else:
        placed = [_written(chunk) for chunk, _ in decoded]
    for (chunk, segment), times in zip(decoded, placed, strict=True):
        for word, time in zip(segment.words, times, strict=True):
            # the last frame may be more than is left of the recording
            word.start, word.end = min(time.start, chunk.end), min(time.end, chunk.end)


def _aligned(
    decoded: Sequence[tuple[AudioChunk, Segment]], vocabulary: CTCVocabulary
) -> list[list[WordTime]]:
    texts = [segment.text for _, segment in decoded]
    logits: list[Any] = [chunk.ctc_logits for chunk, _ in decoded]
    levels: list[Any] = [chunk.levels_db for chunk, _ in decoded]
    starts = [chunk.start for chunk, _ in decoded]
    return align_words(texts, logits, levels, vocabulary, starts)


def _written(chunk: AudioChunk) -> list[WordTime]:
    wrote: Any = chunk.draft
    levels: Any = chunk.levels_db
    labels = wrote.labels, wrote.label_frames
    return written_words(*labels, levels, wrote.vocabulary, chunk.start)
