"""The recordings of one command line: what becomes of each, in one process."""

import argparse
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field

from ..errors import (
    DistributedError,
    InputError,
    MlxSpeechError,
    UnsupportedOptionError,
    first_few,
)
from ..output.subtitles import speaker_label
from ..output.writers import FORMATS, to_txt
from ..transcription.transcript import Transcript, TranscriptionDelta
from .common import load_named
from .console import Console, as_option, display_name
from .outputs import Job, make_folders, write_files
from .progress import Progress, clock
from .streams import StandardOutputError, need_standard_output
from .transcribe_options import Usage


@dataclass(frozen=True)
class Effort:
    """What a recording took: seconds, and bytes of memory at most."""

    seconds: float
    memory: int


@dataclass
class Run:
    """One call of the command, and what has become of its recordings so far.

    audio, seconds: of those that are done: seconds of audio, and what they took.
    """

    args: argparse.Namespace
    console: Console
    usage: Usage
    done: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)
    audio: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        text = f"{self.done} of {self.total} done"
        if self.done:
            speed = self.audio / self.seconds if self.seconds else 0
            text += f" ({clock(self.audio)} of audio, {speed:.1f} x real time)"
        others = ((self.skipped, "skipped"), (len(self.failed), "failed"))
        return text + "".join(f", {count} {what}" for count, what in others if count)

    @property
    def total(self) -> int:
        """How many recordings were named."""
        return len(self.usage.jobs) + len(self.usage.found.failures)

    def all(self) -> int:
        """Transcribe all recordings; the exit status."""
        for source, error in self.usage.found.failures:
            self.fail(source, error)
        jobs = [job for job in self.usage.jobs if self._is_to_do(job)]
        if jobs:
            if self.args.stream or not all(job.files for job in jobs):
                need_standard_output("open it, or give -o DIR")
            make_folders(jobs)
            if not self.transcribe_all(jobs):
                return 130
        if self.total > 1 or self.skipped:
            self.console.note(str(self))
            if self.failed:
                self.console.note(f"failed: {', '.join(map(display_name, self.failed))}")
        return 1 if self.failed else 0

    def fail(self, source: str, error: Exception) -> None:
        """Say what is wrong with a recording, and count it."""
        self.console.error(error, source)
        self.failed.append(source)

    def _is_to_do(self, job: Job) -> bool:
        """Whether a recording is still to be transcribed, and may be."""
        source = job.input.source
        try:
            job.check_targets(self.usage.found.inputs)
            if self.args.resume and job.leave_out_finished():
                self.skipped += 1
                self.console.detail(f"{display_name(source)}: skipped; it is done")
                return False
            if not self.args.overwrite:
                job.check_new()
            return True
        except (InputError, OSError) as error:
            self.fail(source, error)
            return False

    def transcribe_all(self, jobs: list[Job]) -> bool:
        """Transcribe one recording after the other; false if Ctrl-C ended it."""
        loaded = load_named(self.args, self.console)
        if self.args.word_timestamps:
            self.check_words(*loaded)
        # a bar would get in between the words
        silent = self.console.quiet or (self.args.stream and sys.stdout.isatty())
        progress = Progress(len(jobs), silent=silent, bar=sys.stderr.isatty())
        try:
            for index, job in enumerate(jobs, 1):
                try:
                    self._transcribe_one(job, loaded, progress, index)
                except (UnsupportedOptionError, StandardOutputError, DistributedError):
                    raise  # the others would fail alike
                except (MlxSpeechError, OSError) as error:
                    self.fail(job.input.source, error)
        except KeyboardInterrupt:
            self.interrupted(jobs, progress)
            return False
        return True

    def interrupted(self, jobs: list[Job], progress: Progress) -> None:
        """Say that Ctrl-C ended it, and where."""
        length = progress.duration  # 0 until the recording is open
        where = f" at {clock(progress.done)} of {clock(length)}" if length else ""
        where += f" in {progress.name}" if progress.name else ""
        resume = "; --resume goes on from there" if all(job.files for job in jobs) else ""
        self.console.say(f"interrupted{where}: {self}{resume}")

    def _transcribe_one(self, job: Job, loaded: tuple, progress: Progress, index: int) -> None:
        """Transcribe one recording to files or to standard output."""
        import mlx.core as mx

        from ..transcription.pipeline import stream_transcribe, transcribe

        source = job.input.source
        start = time.perf_counter()
        mx.reset_peak_memory()
        with progress.recording(index, display_name(source)) as update:
            options = {"progress": update, **self.usage.options}
            if self.args.stream:
                transcript = print_deltas(stream_transcribe(source, loaded, **options))
            else:
                transcript = transcribe(source, loaded, **options)
        effort = Effort(time.perf_counter() - start, mx.get_peak_memory())
        self.write(job, transcript)
        self.show(job, transcript)
        self.draw(job, transcript)
        self.report(job, transcript, effort)

    def write(self, job: Job, transcript: Transcript) -> None:
        """Write the files of a transcript."""
        args, usage = self.args, self.usage
        files = {path: FORMATS[ending] for ending, path in job.files.items()}
        texts = {p: to(transcript, args.model, usage.subtitles) for p, to in files.items()}
        write_files(texts, args.overwrite)

    def show(self, job: Job, transcript: Transcript) -> None:
        """Print a transcript that no file is written of."""
        if not (job.files or self.args.stream):
            print(to_txt(transcript), end="", flush=True)

    def draw(self, job: Job, transcript: Transcript) -> None:
        """Draw its plot, if that was asked for."""
        if job.plot:
            from ..audio import open_recording
            from ..output.plotting import plot_transcript

            reading = {"audio_track": transcript.audio_track, "channel": self.args.channel}
            with open_recording(job.input.source, **reading) as recording:
                sound = recording.read, recording.sampling_rate
                plot_transcript(job.plot, *sound, transcript, overwrite=self.args.overwrite)

    def report(self, job: Job, transcript: Transcript, effort: Effort) -> None:
        """Say what is to be said of a recording that is done, and count it."""
        name = display_name(job.input.source)
        self._report_segments(name, transcript)
        for path in job.targets:
            self.console.detail(f"{name}: written to {display_name(path)}")
        audio, seconds = transcript.duration, effort.seconds
        took = f"{audio:.1f} s of audio in {seconds:.1f} s ({audio / seconds:.1f} x real time)"
        self.console.detail(f"{name}: {took}, peak memory {effort.memory / 1e9:.2f} GB")
        if (drafts := transcript.drafts) is not None:
            share = f"{drafts.passes / max(1, drafts.tokens):.2f} a token"
            passes = "1 pass" if drafts.passes == 1 else f"{drafts.passes} passes"
            self.console.detail(
                f"{name}: {drafts.tokens} tokens in {passes} of the decoder "
                f"({share}); {drafts.accepted} of {drafts.drafted} drafted tokens accepted"
            )
        self.done += 1
        self.audio += audio
        self.seconds += seconds

    def check_words(self, model, processor) -> None:
        """Say where a model does not give the times of words.

        Raises:
            UnsupportedOptionError: there is an option that cannot do without them.
        """
        from ..transcription.preparation import speech_family

        known = speech_family(model, processor).ctc_vocabulary is not None
        if known or self.args.word_timestamps == "tags":
            return
        name = self.args.model
        if option := self.usage.subtitles.needs_words:
            lack = f"which {name} does not give; Granite Speech models do"
            raise UnsupportedOptionError(f"{as_option(option)} needs the times of words, {lack}")
        self.console.warn(f"{name} gives the times of segments, but not of words")

    def _report_segments(self, name: str, transcript: Transcript) -> None:
        """Say where a text may not be what was said, or why there is none."""
        for remark in transcript.remarks:
            self.console.warn(f"{name}: {remark}")
        if cut := [clock(s.start) for s in transcript.segments if s.truncated]:
            self.console.warn(
                f"{name}: the text was cut off in the segments at {first_few(cut, 5)}: they "
                "ran into the limit, which --max-tokens raises, or repeated themselves"
            )
        for segment in transcript.segments:
            at = clock(segment.start)
            for remark in segment.remarks:
                self.console.detail(f"{name}: at {at}: {remark}")
            if segment.retried:
                self.console.detail(f"{name}: the segment at {at} repeated itself; decoded again")


def print_deltas(deltas: Generator[TranscriptionDelta, None, Transcript]) -> Transcript:
    """Print the text as it comes, a line for each segment; what the generator returns."""
    inside = False  # a line
    try:
        while True:
            try:
                delta = next(deltas)
            except StopIteration as end:
                return end.value
            text = delta.text if inside else delta.text.lstrip()
            if text and not inside:
                text = speaker_label(delta.speaker) + text
            inside = inside or bool(text)
            if inside and delta.segment is not None:
                text, inside = text + "\n", False
            print(text, end="", flush=True)
    finally:
        if inside:
            print(flush=True)
