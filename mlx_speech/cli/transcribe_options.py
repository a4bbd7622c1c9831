"""The options of `mlx_speech.transcribe`, and what is wrong with them whatever the model."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..output.subtitles import SubtitleOptions
from ..output.writers import FORMATS, NAME_FIELDS, output_name
from .common import (
    GENERATION,
    add_about_options,
    add_console_options,
    add_model_options,
    add_options,
    check_generation,
    explicit_options,
    wrong_usage,
)
from .console import as_option
from .inputs import Found, find_inputs
from .outputs import Job, plan

#: options by the library's names for them: of the request, of long recordings, of subtitles
REQUEST = ("language", "task", "target_language", "punctuate", "keywords", "prompt")
CHUNKING = ("chunk_duration", "min_silence")
SEGMENTS = ("word_timestamps", *CHUNKING, "batch_size")
SUBTITLES = ("max_line_width", "max_line_count", "max_words_per_line", "highlight_words")


def build_parser() -> argparse.ArgumentParser:
    """The options; nothing heavy is imported for them, so that --help answers at once."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_speech.transcribe",
        usage="%(prog)s [options] AUDIO...",
        description="Transcribe or translate recordings with Granite Speech or Speech2Text.",
        epilog="Text goes to standard output unless -f, -o or --output-name is given; everything "
        "else goes to standard error. Exit status: 0 if all is done, 1 if a recording failed, 2 "
        "for wrong usage, 130 after Ctrl-C.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
        add_help=False,
    )
    _add_recordings(parser.add_argument_group("recordings"))
    _add_model(parser.add_argument_group("model"))
    _add_instructions(parser.add_argument_group("what to do"))
    _add_segments(parser.add_argument_group("long recordings"))
    _add_output(parser.add_argument_group("output"))
    _add_subtitles(parser.add_argument_group("subtitles (srt and vtt)"))
    generation = parser.add_argument_group("generation")
    add_options(generation, "--max-tokens", help="limit for a segment (default: by its length)")
    add_options(generation, "--temperature", "--top-p", "--num-beams", "--seed")
    other = parser.add_argument_group("other")
    other.add_argument("-h", "--help", action="help", help="show this")
    add_console_options(other)
    add_about_options(other)
    return parser


def _add_recordings(group) -> None:
    add = group.add_argument
    add(
        "audio",
        nargs="+",
        metavar="AUDIO",
        help="audio or video file, folder of such, pattern in quotes, http(s) address that ffmpeg "
        "can read, or - for standard input",
    )
    add("-r", "--recursive", action="store_true", help="search folders within folders, too")


def _add_model(group) -> None:
    add_model_options(group, "ibm-granite/granite-speech-4.1-2b")
    add_options(group, "--dtype")
    group.add_argument(
        "--list-models", action=_ListModels, nargs=0, help="list released models, and stop"
    )


def _add_instructions(group) -> None:
    add = group.add_argument
    add(
        "--language",
        metavar="LANG",
        help="language spoken, e.g. en (default: the model detects it)",
    )
    add(
        "--task",
        choices=("transcribe", "translate"),
        default="transcribe",
        metavar="TASK",
        help="transcribe or translate (default: transcribe)",
    )
    add("--target-language", metavar="LANG", help="language to translate to, e.g. fr")
    add("--punctuate", action="store_true", help="with punctuation and capitals")
    add("--keywords", metavar="WORDS", help="words to expect: a,b,c or @FILE with one a line")
    add("--prompt", metavar="TEXT", help="an instruction of your own, instead of all these")


def _add_segments(group) -> None:
    add = group.add_argument
    add("--word-timestamps", action="store_true", help="find the time of each word")
    add(
        "--chunk-duration",
        type=float,
        metavar="S",
        help="longest segment, in seconds (default: 30)",
    )
    add(
        "--min-silence",
        type=float,
        metavar="S",
        help="pause that ends a segment, in seconds (default: 1)",
    )
    add("--batch-size", type=int, metavar="N", help="segments decoded at a time (default: 8)")


def _add_output(group) -> None:
    add = group.add_argument
    add(
        "-f",
        "--output-format",
        action="extend",
        type=_formats,
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)} or all; several with commas (default: txt)",
    )
    add("-o", "--output-dir", type=Path, metavar="DIR", help="write files there (default: here)")
    fields = ", ".join(f"{{{name}}}" for name in NAME_FIELDS)
    add("--output-name", metavar="NAME", help=f"name of the files, with {fields} in it")
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace existing files")
    existing.add_argument(
        "--resume", action="store_true", help="skip recordings whose files are there"
    )
    add("--stream", action="store_true", help="print the text as it is decoded")
    add("--plot", metavar="FILE", help="draw sound, pauses, segments and words to a .png")


def _add_subtitles(group) -> None:
    add = group.add_argument
    add("--max-line-width", type=int, metavar="N", help="columns in a line")
    add("--max-line-count", type=int, metavar="N", help="lines at a time, with --max-line-width")
    add("--max-words-per-line", type=int, metavar="N", help="words at a time")
    add("--highlight-words", action="store_true", help="underline each word as it is said")


class _ListModels(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        from .released import list_models

        sys.stdout.write(list_models())
        parser.exit()


def _formats(names: str) -> list[str]:
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in (*FORMATS, "all"):
            raise argparse.ArgumentTypeError(
                f"invalid choice: {name!r} (choose from {', '.join(FORMATS)}, all)"
            )
    return list(FORMATS) if "all" in chosen else chosen


@dataclass(frozen=True)
class Usage:
    """What a command line asks for, as far as that can be told without a model.

    found: the recordings.
    jobs: what to write for each.
    options: of the library's `transcribe`.
    subtitles: what subtitles obey.
    """

    found: Found
    jobs: list[Job]
    options: dict[str, Any]
    subtitles: SubtitleOptions


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Usage:
    """Refuse what no model could do, before one is loaded for it; look for the recordings.

    What the library has rules for is checked by those, and told in terms of the options.
    """
    if args.stream and args.num_beams is not None and args.num_beams > 1:
        parser.error("--stream: beam search knows its text only at the end; leave out --num-beams")
    if args.stream and args.batch_size is not None:
        parser.error("--stream decodes one segment after the other; leave out --batch-size")
    if args.word_timestamps and args.task == "translate":
        parser.error("--word-timestamps are of what was said, which a translation is not")
    if args.batch_size is not None and args.batch_size < 1:
        parser.error(f"--batch-size is {args.batch_size}, but must be at least 1")
    if args.audio.count("-") > 1:
        parser.error("standard input (-) can be read only once")
    if args.plot is not None:
        _check_plot(parser, args)
    check_generation(parser, args)
    request = explicit_options(args, REQUEST)
    if args.keywords:
        request["keywords"] = _keywords(parser, args.keywords)

    from ..processing.request import TranscriptionRequest
    from ..transcription.chunks import ChunkOptions

    with wrong_usage(parser):
        ChunkOptions(**explicit_options(args, CHUNKING))
        TranscriptionRequest(**request)
        subtitles = SubtitleOptions(**explicit_options(args, SUBTITLES))
    _check_subtitles(parser, args, subtitles)
    found = find_inputs(args.audio, args.recursive)
    with wrong_usage(parser):
        jobs = plan(
            found.inputs,
            output_formats(args),
            args.output_dir or Path(),
            None
            if args.output_name is None
            else (lambda source: _name(args, args.output_name, source)),
            args.plot and (lambda source: _plot_path(args, source)),
        )
    if args.resume and not (output_formats(args) or args.plot):
        parser.error("--resume is for files; it needs -f, -o, --output-name or --plot")
    options = request | explicit_options(args, SEGMENTS + GENERATION)
    return Usage(found, jobs, options, subtitles)


def output_formats(args: argparse.Namespace) -> list[str]:
    """The formats of the files to write; none where the text goes to standard output."""
    to_files = args.output_dir is not None or args.output_name is not None
    return list(dict.fromkeys(args.output_format or ([next(iter(FORMATS))] if to_files else [])))


def _keywords(parser: argparse.ArgumentParser, given: str) -> list[str]:
    """The words of a list with commas, or of a file of one or more a line."""
    if given.startswith("@"):
        try:
            given = Path(given[1:]).read_text(encoding="utf-8-sig")
        except OSError as error:
            parser.error(f"--keywords: cannot read {given[1:]}: {error.strerror}")
        except UnicodeDecodeError:
            parser.error(f"--keywords: {given[1:]} is not UTF-8 text")
    if words := [word for part in re.split(r"[,\n]", given) if (word := part.strip())]:
        return words
    parser.error("--keywords has no words in it")


def _check_subtitles(
    parser: argparse.ArgumentParser, args: argparse.Namespace, subtitles: SubtitleOptions
) -> None:
    chosen = [name for name in SUBTITLES if getattr(args, name)]
    if chosen and not {"srt", "vtt"} & set(output_formats(args)):
        parser.error(f"{as_option(chosen[0])} is for subtitles; it needs -f srt or -f vtt")
    needing = subtitles.needs_words
    if needing and not args.word_timestamps:
        parser.error(f"{as_option(needing)} needs the times of words; add --word-timestamps")


def _check_plot(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    from ..output.plotting import check_plot

    with wrong_usage(parser):
        check_plot(Path(args.plot))
    if "-" in args.audio:
        parser.error("--plot reads the recording again, which standard input (-) cannot be")


def _name(args: argparse.Namespace, template: str, source: str) -> str:
    """A name by a template (see `output_name`)."""
    from ..processing.prompts import LANGUAGES

    language = args.target_language or args.language
    codes = {name.lower(): code for code, name in LANGUAGES.items()}
    language = language and codes.get(language.lower(), language.lower())
    return output_name(template, source, model=args.model, task=args.task, language=language)


def _plot_path(args: argparse.Namespace, source: str) -> Path:
    path = Path(args.plot)
    return path.with_name(_name(args, path.name, source))
