"""From a recording to a transcript."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from .audio import SAMPLING_RATE, Recording, open_recording
from .decoding import SegmentDecoder
from .errors import CheckpointError, InputError, UnsupportedOptionError
from .hearing import Cutting, Heard
from .loading import load
from .processing.prompts import check_request
from .transcript import Segment, Transcript, TranscriptionDelta, Word

__all__ = ["Segment", "Transcript", "TranscriptionDelta", "Word", "stream_transcribe", "transcribe"]

DEFAULT_MODEL = "ibm-granite/granite-speech-4.1-2b"

#: segments that are decoded together
BATCH_SIZE = 8


def transcribe(
    audio,
    model: str | os.PathLike | tuple = DEFAULT_MODEL,
    *,
    sampling_rate: int | None = None,
    language: str | None = None,
    task: str = "transcribe",
    target_language: str | None = None,
    punctuate: bool = False,
    prompt: str | None = None,
    keywords: Sequence[str] | None = None,
    word_timestamps: bool = False,
    chunk_duration: float = Cutting.chunk_duration,
    min_silence: float = Cutting.min_silence,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[float, float], None] | None = None,
    max_new_tokens: int | None = None,
    **options: Any,
) -> Transcript:
    """Transcribe or translate one recording of any length.

    It is cut into segments where nobody speaks; what has no speech in it gives no text.

    Args:
        audio: path of a file, `"-"` for standard input, or samples (see `load_audio`).
        model: a folder or repository id, or what `load` returned, to load it only once.
        sampling_rate: of the samples, in Hz, where `audio` is an array.
        language: the language spoken, code or English name; unset, the model hears it.
        task: `"transcribe"` or `"translate"`.
        target_language: what to translate to, code or English name.
        punctuate: ask for punctuation and capitals.
        prompt: an instruction of your own instead of those that the options above choose.
        keywords: names and terms to be expected.
        word_timestamps: tell when each word was said; models without a CTC head whose labels are
            known cannot, and give the segments' times alone.
        chunk_duration: the longest segment, in seconds.
        min_silence: a pause of so many seconds always ends a segment.
        batch_size: segments that are decoded together; more take more memory, and less time. The
            texts do not depend on it, unless tokens are drawn.
        progress: called with (seconds that are done, those of the recording) before the first
            batch and after each.
        max_new_tokens: limit on each segment's text; by default one that speech does not reach.
        options: further ones of `GenerationConfig`, e.g. `num_beams`, `temperature` or
            `stop_strings`, before which the text of a segment ends.

    Raises:
        AudioError: the recording cannot be read.
        CheckpointError: the model cannot be loaded.
        ContextLengthError: a segment is too long for the model.
        InputError: the arguments contradict each other.
        UnsupportedOptionError: the model was not trained for what is asked.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}, but must be at least 1")
    job = prepare(
        audio,
        model,
        sampling_rate=sampling_rate,
        language=language,
        task=task,
        target_language=target_language,
        punctuate=punctuate,
        prompt=prompt,
        keywords=keywords,
        word_timestamps=word_timestamps,
        chunk_duration=chunk_duration,
        min_silence=min_silence,
        max_new_tokens=max_new_tokens,
        **options,
    )
    segments: list[Segment] = []
    with job.recording:
        if progress is not None:
            progress(0.0, job.duration)
        for batch in _batches(job.listener, batch_size):
            segments += job.decoder.decode(batch)
            mx.clear_cache()
            if progress is not None:
                progress(min(batch[-1].begin + batch[-1].duration, job.duration), job.duration)
        if progress is not None:
            progress(job.duration, job.duration)
        return job.transcript(segments)


def stream_transcribe(
    audio,
    model: str | os.PathLike | tuple = DEFAULT_MODEL,
    *,
    progress: Callable[[float, float], None] | None = None,
    **options: Any,
) -> Generator[TranscriptionDelta, None, Transcript]:
    """As `transcribe`, but yields the text piece by piece, as soon as each is certain.

    The texts of the pieces together are exactly the transcript's, and the last piece of a segment
    brings the whole of it. Segments are decoded one at a time, and beam search cannot stream. The
    transcript is what the generator returns: `transcript = yield from stream_transcribe(...)` in a
    generator of your own, or the `value` of the `StopIteration` that ends it.
    """
    job = prepare(audio, model, **options)
    segments: list[Segment] = []
    with job.recording:
        if progress is not None:
            progress(0.0, job.duration)
        for heard in job.listener:
            gap = " " if any(segment.text for segment in segments) else ""
            pieces = job.decoder.stream(heard)
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    segments.append(end.value)
                    break
                yield TranscriptionDelta(gap + piece)
                gap = ""
            yield TranscriptionDelta("", segments[-1])
            mx.clear_cache()
            if progress is not None:
                progress(min(heard.begin + heard.duration, job.duration), job.duration)
        if progress is not None:
            progress(job.duration, job.duration)
        return job.transcript(segments)


@dataclass
class Job:
    """A recording and what to do with it; `prepare` makes it.

    listener: finds its segments.
    decoder: makes texts of them.
    language: code of the text's, if one was asked for.
    """

    recording: Recording
    listener: Iterable[Heard]
    decoder: SegmentDecoder
    language: str | None

    @property
    def duration(self) -> float:
        return self.recording.duration

    def transcript(self, segments: list[Segment]) -> Transcript:
        """All segments together."""
        return Transcript(
            text=" ".join(segment.text for segment in segments if segment.text),
            language=self.language,
            duration=self.duration,
            segments=segments,
            speech=np.concatenate(self.listener.speech),
        )


def prepare(
    audio,
    model,
    *,
    sampling_rate: int | None = None,
    language: str | None = None,
    task: str = "transcribe",
    target_language: str | None = None,
    punctuate: bool = False,
    prompt: str | None = None,
    keywords: Sequence[str] | None = None,
    word_timestamps: bool = False,
    chunk_duration: float = Cutting.chunk_duration,
    min_silence: float = Cutting.min_silence,
    max_new_tokens: int | None = None,
    **options: Any,
) -> Job:
    """Load what is to be transcribed, and settle how; arguments and errors as in `transcribe`."""
    instruction = {
        "task": task,
        "language": language,
        "target_language": target_language,
        "punctuate": punctuate,
        "prompt": prompt,
        "keywords": keywords,
    }
    check_request(**instruction)
    cutting = Cutting(chunk_duration, min_silence)
    if word_timestamps and task == "translate":
        raise InputError("word_timestamps are of what was said, and a translation is not")
    if isinstance(model, str | os.PathLike):
        model = load(model)
    if not isinstance(model, tuple) or len(model) != 2:
        raise InputError(
            f"model is a {type(model).__name__}, but must be a folder, a repository id, or the "
            "(model, processor) that load returns"
        )
    model, processor = model
    if not hasattr(processor, "listener"):
        raise UnsupportedOptionError(
            f"a {model.config.model_type} model has no ears; transcription needs a speech model"
        )
    if processor.sampling_rate != SAMPLING_RATE:
        raise CheckpointError(
            f"the model hears {processor.sampling_rate} samples a second; only those that hear "
            f"{SAMPLING_RATE} can be used for transcription"
        )
    text_language = processor.text_language(**instruction)
    vocabulary = processor.ctc_vocabulary(model) if word_timestamps else None
    recording = open_recording(audio, sampling_rate)
    return Job(
        recording=recording,
        listener=processor.listener(
            model, recording, cutting, for_alignment=vocabulary is not None
        ),
        decoder=SegmentDecoder(model, processor, instruction, max_new_tokens, options, vocabulary),
        language=text_language,
    )


def _batches(segments: Iterator[Heard], size: int) -> Iterator[list[Heard]]:
    """Segments in groups of `size`, the last one of fewer."""
    batch: list[Heard] = []
    for segment in segments:
        batch.append(segment)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
