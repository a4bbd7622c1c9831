"""Command line: `python -m mlx_speech.transcribe [options] AUDIO...`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Generator
from typing import TYPE_CHECKING

from .command_line import (
    GENERATION,
    as_option,
    given,
    load_named,
    need_standard_output,
    report,
    run_command,
    say,
    shown,
    told_in_options,
    warn,
)
from .errors import InputError, MlxSpeechError, UnsupportedOptionError
from .outputs import Job, make_folders, write_files
from .progress import Progress, clock
from .transcribe_options import INSTRUCTIONS, SEGMENTS, build_parser, check_usage
from .writers import FORMATS, to_txt

if TYPE_CHECKING:
    from .transcription.transcript import Transcript, TranscriptionDelta


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(build_parser(), check_usage, run, argv)


class Tally:
    """What has become of the recordings so far."""

    def __init__(self, total: int):
        self.total = total
        self.done = self.skipped = 0
        self.failed: list[str] = []
        #: of those that are done: seconds of audio, and what they took
        self.audio = self.seconds = 0.0

    def __str__(self) -> str:
        parts = [f"{self.done} of {self.total} done"]
        parts += [f"{self.skipped} skipped"] * bool(self.skipped)
        parts += [f"{len(self.failed)} failed"] * bool(self.failed)
        speed = self.audio / self.seconds if self.seconds else 0
        if self.done:
            parts[0] += f" ({clock(self.audio)} of audio, {speed:.1f} x real time)"
        return ", ".join(parts)


def run(args: argparse.Namespace) -> int:
    """Do what can be done for each recording, whatever becomes of the others."""
    tally = Tally(len(args.jobs) + len(args.found.failures))
    for source, error in args.found.failures:
        fail(args, tally, source, error)
    jobs = [job for job in args.jobs if is_to_do(args, tally, job)]
    if jobs:
        if args.stream or not all(job.files for job in jobs):
            need_standard_output("open it, or give -o DIR")
        make_folders(jobs)
        if not transcribe_all(args, tally, jobs):
            return 130
    if tally.total > 1 or tally.skipped:
        tell(args, str(tally))
        if tally.failed:
            tell(args, f"failed: {', '.join(map(shown, tally.failed))}")
    return 1 if tally.failed else 0


def is_to_do(args: argparse.Namespace, tally: Tally, job: Job) -> bool:
    """Whether a recording is still to be transcribed, and may be."""
    if args.resume and job.leave_out_finished():
        tally.skipped += 1
        say(args, f"{shown(job.input.source)}: skipped; it is done")
        return False
    try:
        job.check_targets(args.overwrite, args.found.inputs)
    except (InputError, OSError) as error:
        fail(args, tally, job.input.source, error)
        return False
    return True


def transcribe_all(args: argparse.Namespace, tally: Tally, jobs: list[Job]) -> bool:
    """Transcribe one recording after the other; false if Ctrl-C ended it."""
    loaded = load_named(args)
    if args.word_timestamps:
        check_words(args, *loaded)
    # a bar would get in between the words
    shows_words = args.stream and sys.stdout.isatty()
    progress = Progress(
        len(jobs),
        silent=args.quiet or shows_words,
        bar=sys.stderr is not None and sys.stderr.isatty(),
    )
    try:
        for index, job in enumerate(jobs, 1):
            source = job.input.source
            try:
                transcribe_one(args, tally, job, loaded, progress, index)
            except UnsupportedOptionError:
                raise  # holds for every input
            except (MlxSpeechError, OSError) as error:
                if isinstance(error, BrokenPipeError):
                    raise
                fail(args, tally, source, error)
    except KeyboardInterrupt:
        where = f"at {clock(progress.done)} of {clock(progress.duration)} in {progress.name}"
        resume = "; --resume goes on from there" if all(job.files for job in jobs) else ""
        print(f"interrupted {where}: {tally}{resume}", file=sys.stderr)
        return False
    return True


def transcribe_one(args, tally: Tally, job: Job, loaded: tuple, progress: Progress, index) -> None:
    """Transcribe one recording to files or to standard output."""
    import mlx.core as mx

    from .transcription.pipeline import stream_transcribe, transcribe

    source = job.input.source
    options = given(args, INSTRUCTIONS + SEGMENTS + GENERATION)
    start = time.perf_counter()
    mx.reset_peak_memory()
    told = told_in_options(SEGMENTS + GENERATION)
    with progress.recording(index, shown(source)) as update, told:
        if args.stream:
            deltas = stream_transcribe(source, loaded, progress=update, **options)
            transcript = print_as_heard(deltas)
        else:
            transcript = transcribe(source, loaded, progress=update, **options)
    seconds = time.perf_counter() - start
    write_files(
        {
            path: FORMATS[name](transcript, args.model, args.subtitles)
            for name, path in job.files.items()
        }
    )
    if not (job.files or args.stream):
        print(to_txt(transcript, args.model), end="", flush=True)
    if job.plot:
        plot(job, transcript)
    report_segments(args, shown(source), transcript)
    for path in job.targets:
        say(args, f"{shown(source)}: written to {shown(str(path))}")
    say(
        args,
        f"{shown(source)}: {transcript.duration:.1f} s of audio in {seconds:.1f} s "
        f"({transcript.duration / seconds:.1f} x real time), "
        f"peak memory {mx.get_peak_memory() / 1e9:.2f} GB",
    )
    tally.done += 1
    tally.audio += transcript.duration
    tally.seconds += seconds


def check_words(args: argparse.Namespace, model, processor) -> None:
    """Say where a model does not give the times of words.

    Raises:
        UnsupportedOptionError: there is an option that cannot do without them.
    """
    from .transcription.pipeline import speech_family

    if speech_family(model, processor).ctc_vocabulary is not None:
        return
    if option := args.subtitles.needs_words:
        raise UnsupportedOptionError(
            f"{as_option(option)} needs the times of words, which {args.model} does not give; "
            "Granite Speech models do"
        )
    warn(args, f"{args.model} gives the times of segments, but not of words")


def report_segments(args: argparse.Namespace, name: str, transcript: Transcript) -> None:
    """Say where a text may not be what was said."""
    cut = [clock(s.start) for s in transcript.segments if s.truncated]
    if cut:
        more = f" and {len(cut) - 5} more" if len(cut) > 5 else ""
        warn(
            args,
            f"{name}: the text was cut off in the segments at {', '.join(cut[:5])}{more}: they ran "
            "into the limit, which --max-tokens raises, or repeated themselves",
        )
    for segment in transcript.segments:
        if segment.retried:
            say(
                args,
                f"{name}: the segment at {clock(segment.start)} repeated itself; decoded again",
            )


def print_as_heard(deltas: Generator[TranscriptionDelta, None, Transcript]) -> Transcript:
    """Print the text as it comes, a line for each segment; what the generator returns."""
    inside = False  # a line
    try:
        while True:
            try:
                delta = next(deltas)
            except StopIteration as end:
                return end.value
            text = delta.text if inside else delta.text.lstrip()
            inside = inside or bool(text)
            if inside and delta.segment is not None:
                text, inside = text + "\n", False
            print(text, end="", flush=True)
    finally:
        if inside:
            print(flush=True)


def plot(job: Job, transcript: Transcript) -> None:
    """Draw a recording, which is read again for it, and what was heard in it."""
    from .audio import open_recording
    from .plotting import plot_transcript

    with open_recording(job.input.source) as recording:
        plot_transcript(job.plot, recording.read, recording.sampling_rate, transcript)


def fail(args: argparse.Namespace, tally: Tally, source: str, error: Exception) -> None:
    """Say what is wrong with a recording, and count it."""
    report(error, args.debug, source)
    tally.failed.append(source)


def tell(args: argparse.Namespace, message: str) -> None:
    """A remark, unless --quiet."""
    if not args.quiet:
        print(message, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
