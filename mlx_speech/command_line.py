"""What the command lines share: options, checks, standard streams, messages, exit statuses.

Nothing heavy is imported here, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .errors import ContextLengthError, InputError, MlxSpeechError

if TYPE_CHECKING:
    from .generation.text import GenerationResponse

#: the model for text and chat where none is named: it hears as well
CHAT_MODEL = "ibm-granite/granite-speech-3.3-2b"

#: options by the library's names for them: of `GenerationConfig`, of the cache
GENERATION = (
    "max_new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "num_beams",
    "repetition_penalty",
    "stop_strings",
    "num_draft_tokens",
)
CACHE = ("max_kv_size", "kv_bits", "kv_group_size", "quantized_kv_start")

#: what they are called on the command line, where that differs in more than dashes
_SPELLED = {"max_new_tokens": "--max-tokens", "stop_strings": "--stop"}

#: options of more than one command line; some have a letter, as in mlx-lm
_LETTERS = {"--max-tokens": "-m"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "--revision": {"help": "branch, tag or commit of the repository"},
    "--system-prompt": {"metavar": "TEXT", "help": "what the model is told before all else"},
    "--max-tokens": {"dest": "max_new_tokens", "type": int, "metavar": "N"},
    "--temperature": {
        "type": float,
        "metavar": "T",
        "help": "draw tokens at random (default: 0, off)",
    },
    "--top-p": {"type": float, "metavar": "P", "help": "draw from the likeliest tokens only"},
    "--top-k": {"type": int, "metavar": "K", "help": "draw from the K likeliest tokens only"},
    "--min-p": {
        "type": float,
        "metavar": "P",
        "help": "draw from those at least P times as likely as the likeliest",
    },
    "--num-beams": {"type": int, "metavar": "N", "help": "beam search with so many hypotheses"},
    "--seed": {"type": int, "metavar": "N", "help": "make drawing repeatable"},
    "--max-kv-size": {
        "type": int,
        "metavar": "N",
        "help": "keep only the first few and the latest tokens in view, N in all",
    },
    "--kv-bits": {"type": int, "choices": (4, 8), "help": "keep the cache in 4 or 8 bits"},
    "--kv-group-size": {
        "type": int,
        "choices": (32, 64, 128),
        "help": "numbers that share a scale there (default: 64)",
    },
    "--quantized-kv-start": {
        "type": int,
        "metavar": "N",
        "help": "keep the cache as it is up to N tokens (default: 0)",
    },
    "--dtype": {"choices": ("float32", "float16", "bfloat16"), "help": "compute in this type"},
}


def add_options(group, *names: str, **changes: Any) -> None:
    """Add options that several command lines have, with `changes` where they differ."""
    for name in names:
        letter = [_LETTERS[name]] if name in _LETTERS else []
        group.add_argument(*letter, name, **{**_OPTIONS[name], **changes})


def add_model_options(parser: argparse.ArgumentParser, default: str) -> None:
    """`--model` and `--revision`."""
    parser.add_argument(
        "--model",
        default=os.environ.get("MLX_SPEECH_MODEL") or default,
        metavar="MODEL",
        help=f"folder or Hugging Face repository (default: $MLX_SPEECH_MODEL, else {default})",
    )
    add_options(parser, "--revision")


def add_talk_options(parser: argparse.ArgumentParser) -> None:
    """How much is said on standard error."""
    talk = parser.add_mutually_exclusive_group()
    talk.add_argument("--verbose", action="store_true", help="say what is done and how fast")
    talk.add_argument("--quiet", action="store_true", help="say nothing but errors")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")


def given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the options that this command line has and that were given, or are never unset."""
    options = vars(args)
    return {name: options[name] for name in names if options.get(name) is not None}


def as_option(name: str) -> str:
    """A name of the library's as it is spelled on the command line."""
    return _SPELLED.get(name, f"--{name.replace('_', '-')}")


def in_options(message: str, names: tuple[str, ...] = GENERATION + CACHE) -> str:
    """A message of the library's in terms of the options."""
    return re.sub(rf"\b({'|'.join(names)})\b", lambda match: as_option(match[0]), message)


@contextmanager
def told_in_options(names: tuple[str, ...] = GENERATION + CACHE) -> Iterator[None]:
    """Within it, what the library finds wrong with options is told in terms of the options."""
    try:
        yield
    except (InputError, ContextLengthError) as error:
        raise type(error)(in_options(str(error), names)) from error


def check_generation(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options of generation that no model could honour, before one is loaded for them.

    What the library has rules for is checked by those.
    """
    options = given(args, GENERATION)
    drawing = bool(options.get("temperature"))
    if drawing and options.get("num_beams", 1) > 1:
        parser.error("--temperature draws tokens, --num-beams searches for the best; choose one")
    for name in ("top_p", "top_k", "min_p", "seed"):
        if name in options and not drawing:
            parser.error(f"{as_option(name)} is for drawing tokens; it needs --temperature above 0")

    from .generation import GenerationConfig

    try:
        GenerationConfig(**options)
    except InputError as error:
        parser.error(in_options(str(error)))


def check_cache(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """The same for the options of the cache."""
    options = given(args, CACHE)
    for name in ("kv_group_size", "quantized_kv_start"):
        if name in options and "kv_bits" not in options:
            parser.error(f"{as_option(name)} is for a quantized cache; it needs --kv-bits")

    from .layers.cache import make_cache

    try:
        make_cache(1, **options)
    except InputError as error:
        parser.error(in_options(str(error)))


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


def run_command(
    parser: argparse.ArgumentParser,
    check_usage: Callable[[argparse.ArgumentParser, argparse.Namespace], None],
    work: Callable[[argparse.Namespace], int],
    argv: list[str] | None,
) -> int:
    """Parse, check and do what a command line asks for; returns the exit status, however it ends.

    Raises:
        SystemExit: wrong usage, or --help.
    """
    open_standard_streams()
    args = parser.parse_args(argv)
    try:
        check_usage(parser, args)
        return work(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # whoever read standard output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MlxSpeechError, OSError) as error:
        return report(error, args.debug)


def need_standard_output(remedy: str = "open it") -> None:
    """Raises `InputError` where results would be lost."""
    if sys.stdout is None:
        raise InputError(f"standard output is closed; {remedy}")


def decoded(data: bytes) -> str:
    """What came on standard input, as text.

    Raises:
        InputError: it is none.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text: {error.reason}") from error


def load_named(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model and processor that --model, --revision and --dtype name."""
    import mlx.core as mx

    from .loading import load

    start = time.perf_counter()
    dtype = args.dtype and getattr(mx, args.dtype)
    loaded = load(args.model, revision=args.revision, dtype=dtype, progress=not args.quiet)
    seconds = time.perf_counter() - start
    say(args, f"{args.model}: loaded in {seconds:.1f} s from {loaded[0].folder}")
    return loaded


def say(args: argparse.Namespace, message: str) -> None:
    """A remark for --verbose."""
    if args.verbose:
        print(message, file=sys.stderr)


def say_speed(args: argparse.Namespace, response: GenerationResponse) -> None:
    """For --verbose: what an answer took, told by its last response."""
    prompt, answer = response.prompt_tokens, response.generation_tokens
    say(args, f"prompt: {prompt} tokens, {response.prompt_tps:.1f} tokens per second")
    say(args, f"generation: {answer} tokens, {response.generation_tps:.1f} tokens per second")
    say(args, f"peak memory: {response.peak_memory:.2f} GB")


def prompt_progress(args: argparse.Namespace) -> dict[str, Callable[[int, int], None]]:
    """The option that makes --verbose show on a terminal how far a long prompt is."""
    if not (args.verbose and sys.stderr.isatty()):
        return {}

    def show(done: int, total: int) -> None:
        progress = f"prompt: {done} of {total} tokens" if done < total else ""
        # over what was there before
        print(f"\r\x1b[K{progress}", end="", file=sys.stderr, flush=True)

    return {"prompt_progress_callback": show}


def warn(args: argparse.Namespace, message: str) -> None:
    """A warning, unless --quiet."""
    if not args.quiet:
        print(f"warning: {message}", file=sys.stderr)


def shown(source: str) -> str:
    """A file name, or `-`, in a message; what would break the line is escaped."""
    name = "standard input" if source == "-" else source
    return name if name and name.isprintable() else repr(name)


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
