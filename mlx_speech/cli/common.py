"""What the command lines share: options, checks, standard streams, exit statuses.

Nothing heavy is imported here, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from .. import __version__
from ..errors import InputError, MlxSpeechError
from .console import Console, as_option

T = TypeVar("T")

#: the model for text and chat where none is named: a speech model as well
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

#: options of more than one command line; some have a letter, as in mlx-lm
_LETTERS = {"--max-tokens": "-m"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "--revision": {"help": "branch, tag or commit of the repository"},
    "--system-prompt": {"metavar": "TEXT", "help": "what the model is told before all else"},
    "--max-tokens": {"dest": "max_new_tokens", "type": int, "metavar": "N"},
    "--temperature": {
        "type": float,
        "metavar": "T",
        "help": "sample tokens at random (default: 0, off)",
    },
    "--top-p": {"type": float, "metavar": "P", "help": "sample from the likeliest tokens only"},
    "--top-k": {"type": int, "metavar": "K", "help": "sample from the K likeliest tokens only"},
    "--min-p": {
        "type": float,
        "metavar": "P",
        "help": "sample from those at least P times as likely as the likeliest",
    },
    "--num-beams": {"type": int, "metavar": "N", "help": "beam search with N hypotheses"},
    "--seed": {"type": int, "metavar": "N", "help": "make sampling repeatable"},
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


def add_console_options(parser: argparse._ActionsContainer) -> None:
    """How much is said on standard error."""
    talk = parser.add_mutually_exclusive_group()
    talk.add_argument("--verbose", action="store_true", help="say what is done and how fast")
    talk.add_argument("--quiet", action="store_true", help="say nothing but errors")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")


def explicit_options(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the options that this command line has and that were given, or are never unset."""
    options = vars(args)
    return {name: options[name] for name in names if options.get(name) is not None}


@contextmanager
def wrong_usage(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Within it, what the library finds wrong with options is wrong usage."""
    try:
        yield
    except InputError as error:
        parser.error(error.spelled(as_option))


def check_generation(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options of generation that no model could honour, before one is loaded for them.

    What the library has rules for is checked by those.
    """
    options = explicit_options(args, GENERATION)
    sampling = bool(options.get("temperature"))
    if sampling and options.get("num_beams", 1) > 1:
        parser.error("--temperature samples tokens, --num-beams searches for the best; choose one")
    for name in ("top_p", "top_k", "min_p", "seed"):
        if name in options and not sampling:
            parser.error(
                f"{as_option(name)} is for sampling tokens; it needs --temperature above 0"
            )

    from ..generation import GenerationConfig

    with wrong_usage(parser):
        GenerationConfig(**options)


def check_cache(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """The same for the options of the cache."""
    options = explicit_options(args, CACHE)
    for name in ("kv_group_size", "quantized_kv_start"):
        if name in options and "kv_bits" not in options:
            parser.error(f"{as_option(name)} is for a quantized cache; it needs --kv-bits")

    from ..layers.cache import make_cache

    with wrong_usage(parser):
        make_cache(1, **options)


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
    check_usage: Callable[[argparse.ArgumentParser, argparse.Namespace], T],
    work: Callable[[argparse.Namespace, Console, T], int],
    argv: list[str] | None,
) -> int:
    """Parse, check and do what a command line asks for; returns the exit status, however it ends.

    Args:
        check_usage: refuses what contradicts itself; what it returns is handed to `work`.

    Raises:
        SystemExit: wrong usage, or --help.
    """
    open_standard_streams()
    args = parser.parse_args(argv)
    console = Console(args)
    try:
        return work(args, console, check_usage(parser, args))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # whoever read standard output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MlxSpeechError, OSError) as error:
        return console.error(error)


def need_standard_output(remedy: str = "open it") -> None:
    """Raises `InputError` where results would be lost."""
    if sys.stdout is None:
        raise InputError(f"standard output is closed; {remedy}")


def decode_utf8(data: bytes) -> str:
    """What came on standard input, as text.

    Raises:
        InputError: it is none.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text: {error.reason}") from error


def load_named(args: argparse.Namespace, console: Console) -> tuple[Any, Any]:
    """The model and processor that --model, --revision and --dtype name."""
    import mlx.core as mx

    from ..loading import load

    start = time.perf_counter()
    dtype = args.dtype and getattr(mx, args.dtype)
    loaded = load(args.model, revision=args.revision, dtype=dtype, progress=not console.quiet)
    seconds = time.perf_counter() - start
    console.detail(f"{args.model}: loaded in {seconds:.1f} s from {loaded[0].folder}")
    return loaded


#: metavar of an argument -> what a shell completes it with
_COMPLETED = {"AUDIO": "FILE", "FILE": "FILE", "DIR": "DIRECTORY", "MODEL": "DIRECTORY"}


def add_about_options(parser: argparse._ActionsContainer) -> None:
    """`--version` and `--print-completion`."""
    parser.add_argument("--version", action="version", version=f"mlx_speech {__version__}")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "fish"),
        metavar="SHELL",
        help="print what makes bash, zsh or fish complete this command",
    )


class _PrintCompletion(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        import shtab

        for action in parser._actions:
            if action.metavar in _COMPLETED:
                action.complete = getattr(shtab, _COMPLETED[action.metavar])
        # of the installed command, which is what is typed
        parser.prog = parser.prog.replace("python -m mlx_speech.", "mlx-speech-")
        sys.stdout.write(shtab.complete(parser, values))
        parser.exit()
