"""`python -m mlx_speech.transcribe --live`: the microphone, or raw samples on standard input."""

import argparse
import io
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import cast

import numpy as np

from ..errors import AudioError, MlxSpeechError
from ..output.writers import FORMATS
from ..signals import handled
from ..transcription.chunks import why_empty
from ..transcription.live import LiveEvent, LiveTranscriber
from ..transcription.transcript import Segment, Transcript
from .common import load_named
from .console import Console, display_name
from .live_view import LiveLine, print_event, print_segment
from .microphone import Microphone
from .outputs import make_folders, write_files
from .streams import StandardOutputError, need_standard_output
from .transcribe_options import Usage

_READ_BYTES = 1 << 16
#: what files begin with, at which byte, that are no raw samples
_FILES = {
    (0, b"RIFF"): "a WAV file",
    (0, b"fLaC"): "a FLAC file",
    (0, b"OggS"): "an Ogg file",
    (0, b"ID3"): "an MP3 file",
    (4, b"ftyp"): "an MP4 file",
}


def run_live(args: argparse.Namespace, console: Console, usage: Usage) -> int:
    """Transcribe what comes until it ends, or Ctrl-C ends it; the exit status."""
    (job,) = usage.jobs
    need_standard_output()
    job.check_targets([])
    if not args.overwrite:
        job.check_new()
    make_folders([job])
    view = LiveLine() if sys.stdout.isatty() and not args.json_events else None

    def warn(message: str) -> None:
        if view is not None:
            view.clear()
        console.warn(message)

    # before the model, which takes longer: is there one?
    microphone = None if job.input.source == "-" else Microphone(args.device)
    loaded = load_named(args, console)
    rate = args.rate if microphone is None else microphone.sampling_rate
    live = LiveTranscriber(loaded, sampling_rate=rate, **usage.options)
    segments: list[Segment] = []
    decoded, text_found = 0, False
    remarks: list[str] = []
    show = view or (print_event if args.json_events else print_segment)
    failure: Exception | None = None
    try:
        with Interrupt.handled() as interrupt:
            if microphone is None:
                blocks = Measured(read_samples(interrupt, warn))
            else:
                console.note("speak; Ctrl-C ends it")
                blocks = Measured(microphone.blocks(lambda: interrupt.asked, warn))
            for event in events(live, blocks):
                if event.segment is not None:
                    decoded += 1
                    text_found |= bool(event.segment.text)
                    if job.files:
                        segments.append(event.segment)
                show(event)
            if not text_found:
                remarks.append(f"no text: {why_empty(live.duration, blocks.peak, decoded)}")
                warn(remarks[-1])
    except (MlxSpeechError, StandardOutputError) as error:
        failure = error
    if failure is None or segments:
        text = " ".join(segment.text for segment in segments if segment.text)
        transcript = Transcript(text, live.language, live.duration, segments, remarks=remarks)
        formats = {path: FORMATS[ending] for ending, path in job.files.items()}
        texts = {path: to(transcript, args.model, usage.subtitles) for path, to in formats.items()}
        write_files(texts, args.overwrite)
        for path in texts:
            console.detail(f"written to {display_name(path)}")
    if failure is not None:
        raise failure
    return 0


class Measured:
    """Blocks of samples, (n,) int16 or float32, on their way to whoever takes them.

    Attributes:
        peak: the greatest magnitude so far, of at most 1.
    """

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._blocks, self.peak = blocks, 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        for samples in self._blocks:
            most = max(float(samples.max(initial=0)), -float(samples.min(initial=0)))
            self.peak = max(self.peak, most / (1 << 15) if samples.dtype == np.int16 else most)
            yield samples


def events(live: LiveTranscriber, blocks: Iterable[np.ndarray]) -> Iterator[LiveEvent]:
    """The events of all blocks, up to the end of the last sentence, also where they fail."""
    try:
        for samples in blocks:
            yield from live.push(samples)
    except AudioError:
        yield from live.finish()
        raise
    yield from live.finish()


class Interrupt:
    """Ctrl-C as a question to end what comes; the second one ends the program.

    Attributes:
        asked: whether there was one.
    """

    def __init__(self):
        self.asked = self._waits = False

    @classmethod
    @contextmanager
    def handled(cls) -> Iterator["Interrupt"]:
        """Within it, Ctrl-C is one."""
        interrupt = cls()
        with handled({signal.SIGINT: interrupt._ask}):
            yield interrupt

    @contextmanager
    def ends_waiting(self) -> Iterator[None]:
        """Around a call that waits: it is left there."""
        with suppress(KeyboardInterrupt):
            self._waits = True
            try:
                yield
            finally:
                self._waits = False

    def _ask(self, number: int, frame: object) -> None:
        again, self.asked = self.asked, True
        if again or self._waits:
            raise KeyboardInterrupt


def read_samples(interrupt: Interrupt, warn: Callable[[str], None]) -> Iterator[np.ndarray]:
    """Raw samples of 16 bits, little-endian, one channel, on standard input, as they come: (n,).

    Raises:
        AudioError: there are none, or a file is there instead.
    """
    stdin = cast(io.BufferedReader, sys.stdin.buffer)
    rest, size = b"", 0
    while not interrupt.asked:
        data = b""
        with interrupt.ends_waiting():
            data = stdin.read1(_READ_BYTES)
        if not data:
            break
        if not size:
            _refuse_file(data)
        data = rest + data
        size += len(data)
        whole = len(data) - len(data) % 2
        rest = data[whole:]
        yield np.frombuffer(data[:whole], "<i2").astype(np.int16, copy=False)
    if rest:
        warn("standard input ends within a sample, the byte of which was left out")
    if not size and not interrupt.asked:
        raise AudioError("standard input is empty (0 bytes): nothing was recorded")


def _refuse_file(data: bytes) -> None:
    for (start, magic), file in _FILES.items():
        if data[start:].startswith(magic):
            raise AudioError(
                f"standard input is {file}, and no raw samples: leave --live out, "
                "or have FFmpeg decode it (-f s16le -ac 1 -ar 16000)"
            )
