"""Command line: `python -m mlx_speech.transcribe [options] AUDIO...`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from .command_line import (
    GENERATION,
    add_model_options,
    add_options,
    add_talk_options,
    check_generation,
    given,
    in_options,
    load_named,
    need_standard_output,
    report,
    run_command,
    say,
    shown,
    warn,
)
from .errors import InputError, MlxSpeechError, UnsupportedOptionError

if TYPE_CHECKING:
    from .transcription import Transcript

FORMAT_NAMES = ("txt", "json")

#: options of the instruction, by the library's names for them
INSTRUCTIONS = ("language", "task", "target_language", "punctuate", "prompt")


def build_parser() -> argparse.ArgumentParser:
    """The options; nothing heavy is imported for them, so that --help answers at once."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_speech.transcribe",
        usage="%(prog)s [options] AUDIO...",
        description="Transcribe or translate recordings with Granite Speech or Speech2Text.",
        epilog="The transcript goes to standard output unless -f or -o is given; everything else "
        "goes to standard error. Exit status: 0 if all is done, 1 if a recording failed, 2 for "
        "wrong usage.",
    )
    add = parser.add_argument
    add("audio", nargs="+", metavar="AUDIO", help="audio or video file; - reads standard input")
    add_model_options(parser, "ibm-granite/granite-speech-4.1-2b")
    speech = parser.add_argument_group("what to do")
    add = speech.add_argument
    add("--language", metavar="LANG", help="language spoken, e.g. en (default: the model hears it)")
    add(
        "--task",
        choices=("transcribe", "translate"),
        default="transcribe",
        help="what to make of the speech (default: transcribe)",
    )
    add("--target-language", metavar="LANG", help="language to translate to, e.g. fr")
    add("--punctuate", action="store_true", help="with punctuation and capitals")
    add("--prompt", metavar="TEXT", help="an instruction of your own, instead of all these")
    output = parser.add_argument_group("output")
    add = output.add_argument
    add("-f", "--output-format", choices=FORMAT_NAMES, help="write files of this format")
    add("-o", "--output-dir", type=Path, metavar="DIR", help="write files there (default: here)")
    add("--overwrite", action="store_true", help="replace existing files")
    add("--stream", action="store_true", help="print the text as it is heard")
    generation = parser.add_argument_group("generation")
    add_options(generation, "--max-tokens", help="limit (default: from the audio's length)")
    add_options(generation, "--temperature", "--top-p", "--num-beams", "--seed", "--dtype")
    add_talk_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(build_parser(), check_usage, run, argv)


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what no model could do, before one is loaded for it.

    What the library has rules for is checked by those, and told in terms of the options.
    """
    if args.stream and args.num_beams is not None and args.num_beams > 1:
        parser.error("--stream: beam search knows its text only at the end; leave out --num-beams")
    if args.stream and (args.output_format or args.output_dir):
        parser.error("--stream prints to standard output; leave out -f and -o")
    if args.audio.count("-") > 1:
        parser.error("standard input (-) can be read only once")
    # as macOS has it, where names that differ in case alone are one
    names = Counter(str(path).casefold() for path in output_paths(args) or ())
    shared = [name for name, count in names.items() if count > 1]
    if shared:
        parser.error(f"{shown(shared[0])} would be written by more than one input")
    check_generation(parser, args)

    from .processing.prompts import check_request

    try:
        check_request(**given(args, INSTRUCTIONS))
    except InputError as error:
        parser.error(in_options(str(error), INSTRUCTIONS))


def output_paths(args: argparse.Namespace) -> list[Path] | None:
    """Where each input's transcript goes, if not to standard output: its name with another ending,
    or with a further one where two inputs differ in nothing but their ending."""
    if not (args.output_format or args.output_dir):
        return None
    folder, extension = args.output_dir or Path(), args.output_format or FORMAT_NAMES[0]
    names = ["stdin" if i == "-" else Path(i).name for i in args.audio]
    stems = [Path(name).stem for name in names]
    same = Counter(stem.casefold() for stem in stems)
    return [
        folder / f"{name if same[stem.casefold()] > 1 else stem}.{extension}"
        for name, stem in zip(names, stems, strict=True)
    ]


def run(args: argparse.Namespace) -> int:
    """Load the model, then do one input after the other."""
    outputs = output_paths(args)
    if outputs is None:
        need_standard_output("open it, or give -o DIR")
    else:
        prepare_folder(outputs[0].parent)
    loaded = load_named(args)
    failures = 0
    for index, source in enumerate(args.audio):
        try:
            transcribe_one(args, source, loaded, outputs and outputs[index])
        except UnsupportedOptionError:
            raise  # holds for every input
        except (MlxSpeechError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            failures += 1
            report(error, args.debug, source)
    return 1 if failures else 0


def prepare_folder(folder: Path) -> None:
    """Make the output folder, before any work is done for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error


def transcribe_one(args, source: str, loaded: tuple, output: Path | None) -> None:
    """Transcribe one input to a file or to standard output."""
    import mlx.core as mx

    from .transcription import stream_transcribe, transcribe
    from .writers import FORMATS, write_file

    if output is not None and output.exists() and not args.overwrite:
        raise InputError(f"{shown(str(output))} exists already; --overwrite replaces it")
    options = given(args, INSTRUCTIONS + GENERATION)
    start = time.perf_counter()
    mx.reset_peak_memory()
    if args.stream:
        transcript = print_pieces(stream_transcribe(source, loaded, **options))
    else:
        transcript = transcribe(source, loaded, **options)
    seconds = time.perf_counter() - start
    if output is not None:
        write_file(output, FORMATS[output.suffix[1:]](transcript, args.model))
        say(args, f"{shown(source)}: written to {shown(str(output))}")
    elif not args.stream:
        print(FORMATS[FORMAT_NAMES[0]](transcript, args.model), end="", flush=True)
    if any(s.truncated for s in transcript.segments):
        warn(args, f"{shown(source)}: the text was cut off; raise --max-tokens")
    say(
        args,
        f"{shown(source)}: {transcript.duration:.1f} s of audio in {seconds:.1f} s "
        f"({transcript.duration / seconds:.1f} x real time), "
        f"peak memory {mx.get_peak_memory() / 1e9:.2f} GB",
    )


def print_pieces(pieces: Generator[str, None, Transcript]) -> Transcript:
    """Print a line piece by piece; what the generator returns."""
    while True:
        try:
            print(next(pieces), end="", flush=True)
        except StopIteration as end:
            print(flush=True)
            return end.value


if __name__ == "__main__":
    sys.exit(main())
