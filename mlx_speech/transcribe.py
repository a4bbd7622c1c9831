"""Command line: `python -m mlx_speech.transcribe [options] AUDIO...`."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, MlxSpeechError, UnsupportedOptionError

if TYPE_CHECKING:
    from .transcription import Transcript

FORMAT_NAMES = ("txt", "json")

#: options by the library's names for them
INSTRUCTIONS = ("language", "task", "target_language", "punctuate", "prompt")
GENERATION = ("max_new_tokens", "temperature", "top_p", "num_beams", "seed")


def build_parser() -> argparse.ArgumentParser:
    """The options; nothing heavy is imported for them, so that --help answers at once."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_speech.transcribe",
        usage="%(prog)s [options] AUDIO...",
        description="Transcribe or translate recordings with Granite Speech.",
        epilog="The transcript goes to standard output unless -f or -o is given; everything else "
        "goes to standard error. Exit status: 0 if all is done, 1 if a recording failed, 2 for "
        "wrong usage.",
    )
    add = parser.add_argument
    add("audio", nargs="+", metavar="AUDIO", help="audio or video file; - reads standard input")
    add(
        "--model",
        default=os.environ.get("MLX_SPEECH_MODEL"),
        help="folder or Hugging Face repository (default: $MLX_SPEECH_MODEL, else "
        "ibm-granite/granite-speech-4.1-2b)",
    )
    add("--revision", help="branch, tag or commit of the repository")
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
    add = generation.add_argument
    add(
        "--max-tokens",
        dest="max_new_tokens",
        type=int,
        metavar="N",
        help="limit (default: from the audio's length)",
    )
    add("--temperature", type=float, metavar="T", help="draw tokens at random (default: 0, off)")
    add("--top-p", type=float, metavar="P", help="draw from the likeliest tokens only")
    add("--num-beams", type=int, metavar="N", help="beam search with so many hypotheses")
    add("--seed", type=int, metavar="N", help="make drawing repeatable")
    add("--dtype", choices=("float32", "float16", "bfloat16"), help="compute in this type")
    talk = parser.add_mutually_exclusive_group()
    talk.add_argument("--verbose", action="store_true", help="say what is done and how fast")
    talk.add_argument("--quiet", action="store_true", help="say nothing but errors")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    open_standard_streams()
    parser = build_parser()
    args = parser.parse_args(argv)
    check_usage(parser, args)
    outputs = None
    if args.output_format or args.output_dir:
        outputs = output_paths(
            args.audio, args.output_dir or Path(), args.output_format or FORMAT_NAMES[0]
        )
        # as macOS has it, where names that differ in case alone are one
        shared = [
            n for n, count in Counter(str(p).casefold() for p in outputs).items() if count > 1
        ]
        if shared:
            parser.error(f"{shown(shared[0])} would be written by more than one input")
    elif sys.stdout is None:
        return report(InputError("standard output is closed; open it, or give -o DIR"), args.debug)
    try:
        return run(args, outputs)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # whoever read standard output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MlxSpeechError as error:
        return report(error, args.debug)


def open_standard_streams() -> None:
    """Make the standard streams usable, however the program was started.

    Where one is closed (`>&-`), the next file that is opened would get its number, which MLX
    refuses for 0, and messages for a missing standard error would go to standard output. And a
    standard output that cannot write é shows it escaped, as standard error does.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - open as long as the program
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what no model could do, before one is loaded for it.

    What the library has rules for is checked by those, and told in terms of the options.
    """
    beams = args.num_beams is not None and args.num_beams > 1
    if args.stream and beams:
        parser.error("--stream: beam search knows its text only at the end; leave out --num-beams")
    if args.stream and (args.output_format or args.output_dir):
        parser.error("--stream prints to standard output; leave out -f and -o")
    if args.audio.count("-") > 1:
        parser.error("standard input (-) can be read only once")
    if args.temperature and beams:
        parser.error("--temperature draws tokens, --num-beams searches for the best; choose one")
    for name in ("top_p", "seed"):
        if getattr(args, name) is not None and not args.temperature:
            parser.error(f"{as_option(name)} is for drawing tokens; it needs --temperature above 0")
    if args.seed is not None and args.seed < 0:
        parser.error(f"--seed is {args.seed}, but must be at least 0")

    from .generation import GenerationConfig
    from .processing.prompts import check_request

    try:
        check_request(**given(args, INSTRUCTIONS))
        GenerationConfig(**given(args, GENERATION))
    except InputError as error:
        names = rf"\b({'|'.join(INSTRUCTIONS + GENERATION)})\b"
        parser.error(re.sub(names, lambda match: as_option(match[0]), str(error)))


def as_option(name: str) -> str:
    """A name of the library's as it is spelled on the command line."""
    return "--max-tokens" if name == "max_new_tokens" else f"--{name.replace('_', '-')}"


def given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the options that were given, or are never unset."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def output_paths(inputs: list[str], folder: Path, extension: str) -> list[Path]:
    """Where each input's transcript goes: its name with another ending, or with a further one
    where two inputs differ in nothing but their ending."""
    names = ["stdin" if i == "-" else Path(i).name for i in inputs]
    stems = [Path(name).stem for name in names]
    same = Counter(stem.casefold() for stem in stems)
    return [
        folder / f"{name if same[stem.casefold()] > 1 else stem}.{extension}"
        for name, stem in zip(names, stems, strict=True)
    ]


def run(args: argparse.Namespace, outputs: list[Path] | None) -> int:
    """Load the model, then do one input after the other."""
    import mlx.core as mx

    from .loading import load
    from .transcription import DEFAULT_MODEL

    if outputs is not None:
        prepare_folder(outputs[0].parent)
    start = time.perf_counter()
    name = args.model or DEFAULT_MODEL
    dtype = args.dtype and getattr(mx, args.dtype)
    loaded = load(name, revision=args.revision, dtype=dtype, progress=not args.quiet)
    seconds = time.perf_counter() - start
    say(args, f"{name}: loaded in {seconds:.1f} s from {loaded[0].folder}")
    failures = 0
    for index, source in enumerate(args.audio):
        try:
            transcribe_one(args, source, loaded, name, outputs and outputs[index])
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


def transcribe_one(args, source: str, loaded: tuple, model_name: str, output: Path | None) -> None:
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
        write_file(output, FORMATS[output.suffix[1:]](transcript, model_name))
        say(args, f"{shown(source)}: written to {shown(str(output))}")
    elif not args.stream:
        print(FORMATS[FORMAT_NAMES[0]](transcript, model_name), end="", flush=True)
    if any(s.truncated for s in transcript.segments) and not args.quiet:
        warning = "warning: the text was cut off; raise --max-tokens"
        print(f"{shown(source)}: {warning}", file=sys.stderr)
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


def say(args: argparse.Namespace, message: str) -> None:
    """A remark for --verbose."""
    if args.verbose:
        print(message, file=sys.stderr)


def shown(source: str) -> str:
    """A file name, or `-`, in a message; what would break the line is escaped."""
    name = "standard input" if source == "-" else source
    return name if name.isprintable() else repr(name)


def report(error: Exception, debug: bool, source: str | None = None) -> int:
    """One line about an error; with --debug also where it came from."""
    if debug:
        traceback.print_exception(error)
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if source is not None and shown(source) not in message:
        message = f"{shown(source)}: {message}"
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
