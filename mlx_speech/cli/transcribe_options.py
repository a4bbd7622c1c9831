"""The options of `mlx_speech.transcribe`, and what is wrong with them whatever the model."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..distributed.launched import rank_of_launch
from ..output.subtitles import SubtitleOptions
from ..output.writers import FORMATS, NAME_FIELDS, output_name
from . import common
from .console import as_option
from .inputs import Found, find_inputs
from .live_options import (
    WHOLE,
    add_live_options,
    check_live_options,
    find_live,
    refuse_live_options,
)
from .outputs import Job, plan
from .streams import need_standard_output

#: options by the library's names for them: of recordings, of the request, of long ones, of
#: subtitles
READING = ("audio_track", "channel")
REQUEST = ("language", "task", "target_language", "punctuate", "keywords", "prompt")
CHUNKING = ("chunk_duration", "min_silence", "vad", "vad_threshold")
DECODING = ("speakers", "word_timestamps", "ctc_only", "skip_editor")
SEGMENTS = (*DECODING, *CHUNKING, "batch_size", "draft")
SUBTITLES = ("max_line_width", "max_line_count", "max_words_per_line", "highlight_words")

WORD_TIMES = ("ctc", "tags")  #: who can tell the times of words


class _Parser(common.Parser):
    """One that takes a recording behind `--word-timestamps` for no value of it."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        given = list(sys.argv[1:] if args is None else args)
        for index, (arg, following) in enumerate(zip_longest(given, given[1:], fillvalue="")):
            if arg == "--":
                break
            short = len(arg) > len("--") and "--word-timestamps".startswith(arg)
            if short and following not in WORD_TIMES:
                given[index] = "--word-timestamps=ctc"
        return super().parse_known_args(given, namespace)


class _ListModels(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        from .released import list_models

        need_standard_output()
        sys.stdout.write(list_models())
        parser.exit()


def _formats(names: str) -> list[str]:
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in (*FORMATS, "all"):
            known = ", ".join(FORMATS)
            raise argparse.ArgumentTypeError(f"invalid choice: {name!r} (choose from {known}, all)")
    return list(FORMATS) if "all" in chosen else chosen


def _channel(given: str) -> int | str:
    if given == "mix":
        return given
    try:
        return int(given)
    except ValueError:
        message = f"{given!r} is neither the number of one, from 1, nor mix"
        raise argparse.ArgumentTypeError(message) from None


def build_parser() -> argparse.ArgumentParser:
    """The options; nothing heavy is imported for them, so that --help answers at once."""
    parser = _Parser(
        prog="python -m mlx_speech.transcribe",
        usage="%(prog)s [options] AUDIO...",
        description="Transcribe or translate recordings: to standard output, unless to files.",
        epilog="Exit status: 1 if a recording failed, 2 for wrong usage, 130 after Ctrl-C.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
        add_help=False,
    )
    group, add, add_shared = parser.add_argument_group, common.add_table, common.add_options
    recordings = {
        "help": "file, folder, pattern, web address or - (stdin)",
        "dest": "audio",
        "nargs": "*",
    }
    search = "search folders within folders, too"
    channel = {"help": "the only channel to read; mix: the mean of all", "type": _channel}
    reading = {
        "-r --recursive": search,
        "--audio-track N": "audio track of a file (default: first with speech)",
        "--channel N|mix": channel,
    }
    recorded = group("recordings")
    add(recorded, {"AUDIO": recordings, **reading})
    add_live_options(recorded)

    model = group("model")
    common.add_model_options(model, common.SPEECH_MODEL)
    types = {"metavar": "TYPE", "help": "compute in float32, float16 or bfloat16"}
    add_shared(model, "--dtype", **types)
    add_shared(model, "--tensor-parallel", help="share the decoder among ranks of mlx.launch")
    add(model, {"--list-models": "list released models, and stop"}, action=_ListModels, nargs=0)

    tasks = {
        "help": "transcribe or translate (default: transcribe)",
        "choices": ("transcribe", "translate"),
        "default": "transcribe",
    }
    request = {
        "--language LANG": "language spoken, e.g. en (default: detected)",
        "--task TASK": tasks,
        "--target-language LANG": "language to translate to, e.g. fr",
        "--punctuate": "with punctuation and capitals",
        "--keywords WORDS": "words to expect: a,b,c or @FILE with one a line",
        "--prompt TEXT": "an instruction of your own, instead of all these",
        "--speakers": "tell who says what (Granite Speech Plus)",
    }
    add(group("what to do"), request)
    words = {
        "help": "find the time of each word; tags: as Plus tells it",
        "choices": WORD_TIMES,
        "nargs": "?",
        "const": "ctc",
    }
    segments = {
        "--word-timestamps BY": words,
        "--chunk-duration S": "longest segment, in s (default: 30); live: 20",
        "--min-silence S": "pause that ends one, in s (default: 1); live: 0.5",
        "--batch-size N": "segments decoded at a time (default: 8)",
    }
    long = group("long recordings")
    add(long, segments)
    without = {"help": "decode all of it, silence and noise too", "action": "store_false"}
    gate = {
        "--vad-threshold P": "how likely speech has to be (default: 0.5)",
        "--no-vad": {**without, "dest": "vad", "default": None},
    }
    add(long.add_mutually_exclusive_group(), gate)

    output = group("output")
    formats = f"{','.join(FORMATS)} or all of them (default: txt)"
    add(output, {"-f --output-format F": formats}, action="extend", type=_formats)
    fields = " ".join(f"{{{name}}}" for name in NAME_FIELDS)
    add(output, {"-o --output-dir DIR": "write files there (default: here)"})
    add(output, {"--output-name NAME": fields})
    existing = {
        "--overwrite": "replace existing files",
        "--resume": "skip recordings whose files are there",
    }
    add(output.add_mutually_exclusive_group(), existing)
    add(output, {"--stream": "print the text as it is decoded"})
    add(output, {"--plot FILE": "draw sound, pauses, segments and words to a .png"})
    subtitles = {
        "--max-line-width N": "of srt and vtt: columns in a line",
        "--max-line-count N": "lines at a time, with --max-line-width",
        "--max-words-per-line N": "words at a time",
        "--highlight-words": "underline each word as it is said",
    }
    add(output, subtitles)

    generation = group("generation")
    add_shared(generation, "--max-tokens", help="limit for a segment (default: by its length)")
    add_shared(generation, "--temperature", "--top-p", "--num-beams", "--seed")
    no_draft = {
        "help": "write token by token: the same text, slower",
        "dest": "draft",
        "action": "store_false",
        "default": None,
    }
    acceptance = "keep drafted words at least so likely: inexact"
    add(generation, {"--no-draft": no_draft, "--draft-acceptance P": acceptance})
    add(generation, {"--ctc-only": "no decoder at all: the encoder's own text"})
    add(generation, {"--skip-editor": "take sure drafts unedited (NAR)"})
    other = group("other")
    other.add_argument("-h", "--help", action="help", help="show this")
    common.add_console_options(other)
    common.add_about_options(other)
    return parser


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
    if rank_of_launch() is not None:
        alone = not args.tensor_parallel  # where rank 0 does not do all of it
        for given, name in (
            (args.live and alone, "--live"),
            (args.stream and alone, "--stream"),
            ("-" in args.audio, "-"),  # which mlx.launch never ends
        ):
            if given:
                parser.error(f"{name} is for one process: leave it out, or mlx.launch")
    if args.live:
        check_live_options(parser, args)
    elif not args.audio:
        parser.error("the following arguments are required: AUDIO")
    else:
        refuse_live_options(parser, args)
    if args.stream and (args.num_beams or 1) > 1:
        parser.error("--stream: beam search knows its text only at the end; leave out --num-beams")
    if args.stream and args.batch_size is not None:
        parser.error("--stream decodes one segment after the other; leave out --batch-size")
    if args.word_timestamps and args.task == "translate":
        parser.error("--word-timestamps are of what was said, which a translation is not")
    if args.audio.count("-") > 1:
        parser.error("standard input (-) can be read only once")
    if args.plot is not None:
        from ..output.plotting import check_plot

        check_plot(args.plot)
        if "-" in args.audio:
            parser.error("--plot reads the recording again, which standard input (-) cannot be")
    if args.speakers and args.batch_size is not None:
        parser.error("--speakers decodes one segment after the other; leave out --batch-size")
    if args.draft_acceptance is not None:
        if args.speakers or args.word_timestamps == "tags":
            parser.error("--draft-acceptance is for drafts, which have no tags")
        if args.draft is False:
            parser.error("--draft-acceptance is for drafts; leave out --no-draft")
        if args.task == "translate":
            parser.error("--draft-acceptance is for drafts, which are no translations")
    common.check_generation(args)
    request = common.explicit_options(args, REQUEST)
    if args.keywords:
        request["keywords"] = _keywords(parser, args.keywords)

    from ..audio.load import checked_selection
    from ..fields import fitted
    from ..processing.request import TranscriptionRequest
    from ..transcription.chunks import BatchSize, ChunkOptions
    from ..transcription.ctc_decoder import check_ctc_only
    from ..transcription.family import Decoding

    checked_selection(args.audio_track, args.channel)
    fitted("batch_size", args.batch_size, BatchSize | None)
    ChunkOptions(**common.explicit_options(args, CHUNKING))
    asked = TranscriptionRequest(**request)
    if args.ctc_only:
        check_ctc_only(asked, common.explicit_options(args, (*common.GENERATION, "draft")))
    Decoding(asked, **common.explicit_options(args, DECODING))
    subtitles = SubtitleOptions(**common.explicit_options(args, SUBTITLES))
    # none where the text goes to standard output
    to_files = args.output_dir is not None or args.output_name is not None
    formats = list(dict.fromkeys(args.output_format or ["txt"] * to_files))
    chosen = next((name for name in SUBTITLES if getattr(args, name)), None)
    if chosen and not {"srt", "vtt"} & set(formats):
        parser.error(f"{as_option(chosen)} is for subtitles; it needs -f srt or -f vtt")
    if (needing := subtitles.needs_words) and not args.word_timestamps:
        parser.error(f"{as_option(needing)} needs the times of words; add --word-timestamps")
    found = find_live(args) if args.live else find_inputs(args.audio, args.recursive)
    jobs = plan(
        found.inputs,
        formats,
        args.output_dir or Path(),
        None if args.output_name is None else partial(_name, args, args.output_name),
        args.plot and (lambda source: args.plot.with_name(_name(args, args.plot.name, source))),
    )
    if args.resume and not (formats or args.plot):
        parser.error("--resume is for files; it needs -f, -o, --output-name or --plot")
    names: Sequence[str] = READING + SEGMENTS + common.GENERATION
    if args.live:
        names = [name for name in names if name not in WHOLE]
    options = request | common.explicit_options(args, names)
    return Usage(found, jobs, options, subtitles)


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


def _name(args: argparse.Namespace, template: str, source: str) -> str:
    """A name by a template (see `output_name`)."""
    from ..processing.prompts import LANGUAGES

    language = args.target_language or args.language
    codes = {name.lower(): code for code, name in LANGUAGES.items()}
    language = language and codes.get(language.lower(), language.lower())
    return output_name(template, source, model=args.model, task=args.task, language=language)
