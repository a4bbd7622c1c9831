"""The trip of a recording: speech regions -> chunks -> texts -> words -> transcript.

`transcribe` and `stream_transcribe` share all of it but how texts come out. A family
(`family.SpeechFamily`) finds the chunks, and has what makes segments of them (`ChunkDecoder`).
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, groupby
from typing import Any, Self, TypeVar

from ..audio import Recording, open_recording
from ..audio.load import AudioSource
from ..audio.recording import Channel, chosen_track
from ..distributed.memory import clear_cache
from ..errors import InputError
from ..fields import fitted
from ..processing.request import TranscriptionRequest
from .chunks import SHORTEST_SAMPLES, AudioChunk, BatchSize, ChunkOptions
from .family import ChunkDecoder, WordTimes
from .frames import FRAME_SAMPLES
from .part_results import PartResult, join
from .parts import WHOLE, Part
from .preparation import Model, prepare_decoding
from .transcript import Segment, Transcript, TranscriptionDelta

DEFAULT_MODEL = "ibm-granite/granite-speech-4.1-2b"

BATCH_SIZE = 8  #: segments that are decoded together

_Result = TypeVar("_Result")
Progress = Callable[[float, float], None]  #: called with (seconds that are done, all seconds)


def transcribe(
    audio: AudioSource,
    model: Model = DEFAULT_MODEL,
    *,
    sampling_rate: int | None = None,
    audio_track: int | None = None,
    channel: Channel = None,
    language: str | None = None,
    task: str = "transcribe",
    target_language: str | None = None,
    punctuate: bool = False,
    prompt: str | None = None,
    keywords: Sequence[str] | None = None,
    prefix_text: str | None = None,
    speakers: bool = False,
    word_timestamps: bool | WordTimes = False,
    chunk_duration: float = ChunkOptions.chunk_duration,
    min_silence: float = ChunkOptions.min_silence,
    vad: bool = True,
    vad_threshold: float = ChunkOptions.vad_threshold,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    max_new_tokens: int | None = None,
    draft: bool = True,
    ctc_only: bool = False,
    skip_editor: bool = False,
    **options: Any,
) -> Transcript:
    """Transcribe or translate one recording of any length.

    It is cut into segments where nobody speaks; what has no speech in it gives no text, and a
    remark that says so.

    Args:
        audio: path of a file, `"-"` for standard input, or samples (see `load_audio`).
        model: a folder or repository id, or what `load` returned, to load it only once.
        sampling_rate: of the samples, in Hz, where `audio` is an array.
        audio_track: number of the audio track of a file, from 1; unset, the first with speech.
        channel: number of the channel to read, from 1, or `"mix"`, the mean of all; unset, the
            mean, but one channel where they cancel each other out.
        language: the language spoken, code or English name; unset, the model detects it.
        task: `"transcribe"` or `"translate"`.
        target_language: what to translate to, code or English name.
        punctuate: ask for punctuation and capitals.
        prompt: an instruction of your own instead of those that the options above choose.
        keywords: names and terms to be expected.
        prefix_text: what was said at the beginning of the recording, as it is known already: the
            transcript goes on with it. Granite Speech Plus only.
        speakers: tell who says what: segments are turns of speakers, or parts of these. Granite
            Speech Plus only. Each segment is decoded together with what was said before, one after
            the other, whatever `batch_size` is; that takes more time.
        word_timestamps: tell when each word was said, by `"ctc"`, or True, alignment with the
            encoder's CTC head; models without one whose labels are known cannot, and give the
            segments' times alone. Granite Speech Plus can also tell it itself, by `"tags"`: with
            `speakers` in a second pass.
        chunk_duration: the longest segment, in seconds; no more than the model takes.
        min_silence: shortest pause that ends a segment, in seconds; speech under 0.5 s goes with a
            neighbour across up to twice that.
        vad: leave out what is no speech, as Silero VAD has it; else all is decoded, and models have
            words for any sound.
        vad_threshold: the probability of speech at which it begins.
        batch_size: segments that are decoded together; more take more memory, and less time. The
            texts do not depend on it, unless tokens are sampled.
        progress: called with (seconds that are done, those of the recording) before the first
            batch and after each.
        max_new_tokens: limit on each segment's text; by default one that speech does not reach.
        draft: where the encoder has a CTC head, have the decoder check its text, many tokens at
            once, instead of writing token by token. The texts are the same; a `logits_processor`
            of your own has to depend on its arguments alone. `draft_acceptance`, a probability,
            makes the check more lenient and so faster: texts are then others here and there.
        ctc_only: give the text of the encoder's CTC head as it is, without the decoder: much faster
            and less exact. What only a decoder can do is refused with it.
        skip_editor: where the encoder is sure of its text, take it as it is, without the editor.
            Granite Speech NAR only.
        options: further ones of `GenerationConfig`, e.g. `num_beams`, `temperature` or
            `stop_strings`, before which the text of a segment ends; none where a model does not
            write token by token.

    Raises:
        AudioError: the recording cannot be read.
        CheckpointError: the model cannot be loaded.
        ContextLengthError: a segment, or what is asked, is too long for the model.
        InputError: the arguments contradict each other.
        UnsupportedOptionError: the model was not trained for what is asked.
    """
    batch_size = fitted("batch_size", batch_size, BatchSize | None) or BATCH_SIZE
    asked = task, language, target_language, punctuate, prompt, keywords, prefix_text
    request = TranscriptionRequest(*asked)
    chunking = ChunkOptions(chunk_duration, min_silence, vad, vad_threshold)
    options["max_new_tokens"] = max_new_tokens
    reading = {"sampling_rate": sampling_rate, "audio_track": audio_track, "channel": channel}
    words: dict[str, Any] = {"speakers": speakers, "word_timestamps": word_timestamps}
    passes = {"draft": draft, "ctc_only": ctc_only, "skip_editor": skip_editor}
    how = words | passes
    job = prepare(audio, model, reading, request, chunking, options, **how)
    return _returned(run(job, partial(Job.batches, batch_size=batch_size, progress=progress)))


def stream_transcribe(
    audio: AudioSource,
    model: Model = DEFAULT_MODEL,
    *,
    sampling_rate: int | None = None,
    audio_track: int | None = None,
    channel: Channel = None,
    language: str | None = None,
    task: str = "transcribe",
    target_language: str | None = None,
    punctuate: bool = False,
    prompt: str | None = None,
    keywords: Sequence[str] | None = None,
    prefix_text: str | None = None,
    speakers: bool = False,
    word_timestamps: bool | WordTimes = False,
    chunk_duration: float = ChunkOptions.chunk_duration,
    min_silence: float = ChunkOptions.min_silence,
    vad: bool = True,
    vad_threshold: float = ChunkOptions.vad_threshold,
    progress: Progress | None = None,
    max_new_tokens: int | None = None,
    draft: bool = True,
    ctc_only: bool = False,
    skip_editor: bool = False,
    **options: Any,
) -> Generator[TranscriptionDelta, None, Transcript]:
    """As `transcribe`, but yields the text piece by piece, as soon as each is certain.

    The texts of the pieces together are exactly the transcript's, and the last piece of a segment
    brings the whole of it. Segments are decoded one at a time, and beam search cannot stream. The
    transcript is what the generator returns: `transcript = yield from stream_transcribe(...)` in a
    generator of your own, or the `value` of the `StopIteration` that ends it.
    """
    asked = task, language, target_language, punctuate, prompt, keywords, prefix_text
    request = TranscriptionRequest(*asked)
    chunking = ChunkOptions(chunk_duration, min_silence, vad, vad_threshold)
    options["max_new_tokens"] = max_new_tokens
    reading = {"sampling_rate": sampling_rate, "audio_track": audio_track, "channel": channel}
    words: dict[str, Any] = {"speakers": speakers, "word_timestamps": word_timestamps}
    passes = {"draft": draft, "ctc_only": ctc_only, "skip_editor": skip_editor}
    how = words | passes
    job = prepare(audio, model, reading, request, chunking, options, streaming=True, **how)
    return run(job, partial(Job.stream, progress=progress))


def transcribe_part(
    audio: AudioSource,
    model: Model,
    part: Part,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    **options: Any,
) -> PartResult:
    """What `transcribe` does, of a part of the recording alone, and of no other audio track. `join`
    makes a transcript of all parts of `split`, exactly the one of the whole.

    Args:
        progress: called with seconds of the part.
        options: further arguments of `transcribe`.

    Raises:
        InputError: they make what is said of a chunk depend on those before it.
    """
    batch_size = fitted("batch_size", batch_size, BatchSize | None) or BATCH_SIZE
    job = prepare(audio, model, part=part, **_arguments(options))
    with job.recording:
        return job.result(_returned(job.batches(batch_size, progress)))


def least_part(model: Model, **options: Any) -> float | None:
    """The least sensible length of a part of a recording that is divided, in seconds; None: it
    cannot be, for what is said of its chunks depends on those before, or on chance.

    Args:
        options: arguments of `transcribe`.
    """
    arguments = _arguments(options)
    del arguments["reading"], arguments["chunking"]
    return prepare_decoding(model, **arguments).least_part


def _arguments(asked: dict[str, Any]) -> dict[str, Any]:
    """Those of `prepare` for some of `transcribe`."""
    rest = dict(asked)

    def taken(*names: str) -> dict[str, Any]:
        return {name: rest.pop(name) for name in names if name in rest}

    said = "task", "language", "target_language", "punctuate", "prompt", "keywords", "prefix_text"
    how = taken("speakers", "word_timestamps", "draft", "ctc_only", "skip_editor")
    return {
        "reading": taken("sampling_rate", "audio_track", "channel"),
        "request": TranscriptionRequest(**taken(*said)),
        "chunking": ChunkOptions(**taken("chunk_duration", "min_silence", "vad", "vad_threshold")),
        **how,
        "options": rest,
    }


def _returned(generator: Generator[Any, None, _Result]) -> _Result:
    """What a generator returns."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


def run(
    job: "Job", decode: Callable[["Job"], Generator[TranscriptionDelta, None, list[Segment]]]
) -> Generator[TranscriptionDelta, None, Transcript]:
    """What `decode` yields of a job, or where that has no text, of its other audio tracks."""
    transcripts = []
    for track in job.tracks():
        with track.recording:
            segments = yield from decode(track)
            transcripts.append(track.transcript(segments))
        if transcripts[-1].text:
            break
    return with_text(transcripts)


def with_text(transcripts: list[Transcript]) -> Transcript:
    """That of the last audio track, or where that has no text either, of the first."""
    chosen = transcripts[-1] if transcripts[-1].text else transcripts[0]
    if len(transcripts) > 1 and not chosen.text:
        chosen.remarks.append("nor was speech found in its other audio tracks")
    return chosen


@dataclass
class Job:
    """A recording and what is to be done with it; `prepare` makes it.

    find_chunks: finds the parts of it that have speech, as they are asked for.
    decoder: makes segments of them.
    language: code of the text's, if one was asked for.
    other_track: reads another audio track, and makes a decoder for it, unless one was chosen.
    part: of the recording, that chunks are found in.
    regions: start and end, in seconds, of each stretch of speech so far.
    """

    recording: Recording
    find_chunks: Callable[[Recording], Iterable[AudioChunk | None]]
    decoder: ChunkDecoder
    language: str | None
    other_track: Callable[[int], tuple[Recording, ChunkDecoder]] | None = None
    part: Part = WHOLE
    regions: list[tuple[float, float]] = field(default_factory=list)

    @property
    def parts(self) -> Generator[AudioChunk | None, None, None]:
        """See `SpeechFamily.chunks`; found as they are asked for."""
        if self.recording.size >= max(SHORTEST_SAMPLES, self.part.begin * FRAME_SAMPLES):
            yield from self.find_chunks(self.recording)

    @property
    def chunks(self) -> Iterable[AudioChunk]:
        """The parts of the recording that have speech, likewise."""
        return (chunk for chunk in self.parts if chunk is not None)

    def tracks(self) -> Iterator[Self]:
        """This, and the same for each audio track after it, unless one was chosen."""
        yield self
        if self.other_track is None:
            return
        for number in range(self.recording.track + 1, self.recording.tracks + 1):
            recording, decoder = self.other_track(number)
            recording.remarks.append(chosen_track(recording, "with speech"))
            yield replace(self, recording=recording, decoder=decoder, regions=[])

    def batches(
        self, batch_size: int, progress: Progress | None = None
    ) -> Generator[TranscriptionDelta, None, list[Segment]]:
        """The texts of all chunks, so many of which are decoded together, if they are of one
        section; returns the segments."""
        segments: list[Segment] = []
        with self._progress(progress) as done:
            apart = self.decoder.independent
            sections = groupby(self.chunks, lambda chunk: apart and chunk.section)
            decode = partial(self.decoder.decode, batch_size=batch_size)
            for decoded in chain.from_iterable(decode(section) for _, section in sections):
                done([chunk for chunk, _ in decoded])
                for segment in (segment for _, found in decoded for segment in found):
                    gap = " " if segment.text and any(each.text for each in segments) else ""
                    segments.append(segment)
                    yield TranscriptionDelta(gap + segment.text, segment, segment.speaker)
        return segments

    @contextmanager
    def _progress(
        self, progress: Progress | None
    ) -> Iterator[Callable[[Sequence[AudioChunk]], None]]:
        """What is to be called with the chunks that are done."""
        report = progress or (lambda done, total: None)
        begin, end = self.part.seconds(self.recording.duration)

        def done(chunks: Sequence[AudioChunk]) -> None:
            self.finish(chunks)
            reached = chunks[-1].begin + chunks[-1].duration
            report(max(begin, min(reached, end)) - begin, end - begin)

        report(0.0, end - begin)
        yield done
        report(end - begin, end - begin)

    def finish(self, chunks: Sequence[AudioChunk]) -> None:
        """Some chunks have become texts."""
        self.regions += [region for chunk in chunks for region in chunk.regions]
        clear_cache()

    def stream(
        self, progress: Progress | None = None
    ) -> Generator[TranscriptionDelta, None, list[Segment]]:
        """The text piece by piece, chunk by chunk; returns the segments."""
        segments: list[Segment] = []
        with self._progress(progress) as done:
            for chunk in self.chunks:
                gap = " " if any(segment.text for segment in segments) else ""
                segments += yield from self.decoder.stream(chunk, gap)
                done([chunk])
        return segments

    def transcript(self, segments: list[Segment]) -> Transcript:
        """All segments together."""
        return join([self.result(segments)])

    def result(self, segments: list[Segment]) -> PartResult:
        """All segments together, of what may be a part of the recording."""
        recording = self.recording
        return PartResult(
            segments,
            self.regions,
            self.language,
            recording.duration,
            recording.peak,
            list(recording.remarks),
            recording.track,
            self.other_track is not None and recording.track < recording.tracks,
        )


def prepare(
    audio: AudioSource,
    model: Model,
    reading: dict[str, Any] | None = None,
    request: TranscriptionRequest = TranscriptionRequest(),
    chunking: ChunkOptions = ChunkOptions(),
    options: dict[str, Any] | None = None,
    *,
    opened: Recording | None = None,
    part: Part = WHOLE,
    **how: Any,
) -> Job:
    """Load what is to be transcribed, and settle how; errors as in `transcribe`.

    Args:
        reading: further arguments of `open_recording`.
        options: of generation.
        opened: what `open_recording` made of `audio`, if that was called already.
        part: chunks are those of this part of the recording.
        how: further arguments of `prepare_decoding`.
    """
    prepared = prepare_decoding(model, request, options, **how)
    decoder = prepared.decoder
    if part != WHOLE and not decoder.independent:
        message = "what is said of a segment depends on those before it, so there are no parts"
        raise InputError(message)
    longest = min(chunking.chunk_duration, decoder.longest_chunk)
    read = partial(open_recording, audio, **reading or {})
    recording = opened or read()
    read_track = recording.reopen or read
    chosen = (reading or {}).get("audio_track")
    find_chunks = partial(
        prepared.family.chunks,
        options=replace(chunking, chunk_duration=longest),
        part=part,
        **prepared.chunk_parts,
    )
    return Job(
        recording,
        find_chunks,
        decoder,
        prepared.language,
        None if chosen else lambda track: (read_track(audio_track=track), prepared.new_decoder()),
        part,
    )
