"""From a recording to chunks by an encoder with a CTC head, in one pass, as a stream."""

from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import numpy as np

from ..audio import Recording
from ..distributed.memory import clear_cache
from ..models.conformer_stream import Frames, evaluate
from ..processing.log_mel import PART_FRAMES, LogMelFeatureExtractor
from .chunks import AudioChunk, SpanFinder, with_samples
from .segmenter import Span
from .vad import SpeechActivity

#: features, (frames, width), and whether they are the last -> what is kept of each frame that the
#: encoder now gives, (1, frames, …) each, and what the CTC head detects, 50 frames a second
Encode = Callable[[mx.array, bool], tuple[Sequence[mx.array], SpeechActivity]]
#: a span, and what is kept of the encoder's frames from its beginning on, also beyond it,
#: (frames, …) each -> its chunk
MakeChunk = Callable[[Span, list[mx.array]], AudioChunk]


def encoded_chunks(
    recording: Recording,
    extractor: LogMelFeatureExtractor,
    finder: SpanFinder,
    encode: Encode,
    make_chunk: MakeChunk,
    *,
    first: int = 0,
    push_frames: int = PART_FRAMES,
    stride: int = 1,
) -> Iterator[AudioChunk | None]:
    """Chunks of a recording that is encoded once, whatever its cuts; see also
    `SpeechFamily.chunks`.

    Args:
        extractor: computes the features.
        finder: where to cut.
        first: the frame of 20 ms that both begin with, see `Halo.start`.
        push_frames: of features, encoded together.
        stride: frames of 20 ms that are one of the encoder's.
    """
    kept: list[Frames] = []
    held, pushed, told = first // stride, 0, 0  # the first frame of what is kept
    highest = yield from extractor.scan(recording, push_frames)
    pushes = extractor.stream(recording, push_frames, first=first, highest=highest)
    for features, samples, last in with_samples(pushes, recording, first):
        encoded, activity = encode(features, last)
        kept = kept or [Frames() for _ in encoded]
        for frames, new in zip(kept, encoded, strict=True):
            frames.append(new)
        evaluate(*kept)
        pushed += len(features)
        told += len(activity)
        if last:  # the head has nothing for what does not fill a frame of its own
            rest = pushed - told
            activity += SpeechActivity(np.zeros(rest, bool), np.zeros(rest, np.float32))
        for span in finder.push(samples, activity, last=last):
            begin = span.start // stride - held
            if begin < len(kept[0]):  # else nothing was encoded: it fills no frame of the encoder
                yield make_chunk(span, [frames[begin:] for frames in kept])
        needed = finder.start // stride - held
        for frames in kept:
            frames.drop(needed)
        evaluate(*kept)
        held += needed
        clear_cache()
        yield None
        if finder.ended:
            return
