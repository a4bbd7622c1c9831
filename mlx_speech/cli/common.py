"""What the command lines share: options, checks, how they end.

Nothing heavy is imported here, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from .. import __version__
from ..distributed.launched import rank_of_launch
from ..errors import DistributedError, InputError, MlxSpeechError, one_line
from ..signals import handled
from .console import Console, as_option
from .ranks import leave
from .streams import (
    StandardOutputError,
    flushed_standard_output,
    need_standard_output,
    open_standard_streams,
)

if TYPE_CHECKING:
    from ..generation.text import GenerationResponse

T = TypeVar("T")

Options = argparse._ActionsContainer  #: a parser or a group of its options

#: the model for recordings where none is named, and that for text and chat, which knows both
SPEECH_MODEL = "ibm-granite/granite-speech-4.1-2b"
CHAT_MODEL = "ibm-granite/granite-speech-3.3-2b"

#: options by the library's names for them: of `GenerationConfig`, of the cache
GENERATION = (
    *("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "num_beams"),
    *("repetition_penalty", "stop_strings", "num_draft_tokens", "draft_acceptance"),
)
CACHE = ("max_kv_size", "kv_bits", "kv_group_size", "quantized_kv_start")


def _text(value: str) -> str:
    """What a shell puts in for `$(cat FILE)`, without a byte order mark."""
    return value.removeprefix("\ufeff")


def _path(value: str) -> Path:
    if not value:
        raise argparse.ArgumentTypeError("the name is empty")
    return Path(value)


DTYPES = ("float32", "float16", "bfloat16")  #: of `LoadingOptions`, which is not imported here

#: metavar -> type of the value, where any will do
_TYPES = {
    **dict.fromkeys("NK", int),
    **dict.fromkeys("TPXS", float),
    **dict.fromkeys(("DIR", "FILE"), _path),
    "TEXT": _text,
}

# how MLX says that its compiler for the CPU failed, which writes to the temporary folder
_COMPILER_FAILED = ("[Compile::eval_cpu]", "filesystem error: ")
_COMPILER_FOLDER = (
    "MLX could not compile for the CPU, which it does in the folder for temporary files: make room "
    "there, or set TMPDIR to a folder that can be written to"
)

#: options of the command lines for text, some of which the others have as well (see `add_table`)
_OPTIONS: dict[str, Any] = {
    "--revision": {"help": "branch, tag or commit of the repository"},
    "--adapter PATH": "LoRA adapter in peft's format",
    "-p --prompt TEXT": "what to answer; - or nothing reads it from standard input",
    "--system-prompt TEXT": "what the model is told before all else",
    "--ignore-chat-template": "continue the text itself, instead of answering it as a message",
    "-m --max-tokens N": {"dest": "max_new_tokens"},
    "--stop STRING": {
        "help": "end before this text; may be given several times",
        "dest": "stop_strings",
        "action": "append",
    },
    "--temperature T": "sample tokens at random (default: 0, off)",
    "--top-p P": "sample from the likeliest tokens only",
    "--top-k K": "sample from the K likeliest tokens only",
    "--min-p P": "sample from those at least P times as likely as the likeliest",
    "--repetition-penalty X": "above 1: make tokens that occurred less likely",
    "--num-beams N": "beam search with N hypotheses",
    "--seed N": "make sampling repeatable",
    "--draft-model MODEL": "a smaller model of the same tokenizer that proposes tokens: the same "
    "answer, faster",
    "--num-draft-tokens N": "how many it proposes at a time (default: 3)",
    "--max-kv-size N": "keep only the first few and the latest tokens in view, N in all",
    "--kv-bits": {"help": "keep the cache in 4 or 8 bits", "type": int, "choices": (4, 8)},
    "--kv-group-size": {
        "help": "numbers that share a scale there (default: 64)",
        "type": int,
        "choices": (32, 64, 128),
    },
    "--quantized-kv-start N": "keep the cache as it is up to N tokens (default: 0)",
    "--prefill-step-size N": "tokens of a prompt that are read at once (default: 2048)",
    "--tensor-parallel": "share the decoder's layers among the processes of mlx.launch",
    "--dtype": {"help": "compute in this type", "choices": DTYPES},
    "--verbose": "say what is done and how fast",
    "--quiet": "say nothing but errors",
    "--debug": "show where an error comes from",
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, whatever that quotes, and fails where nothing can be said.
    Of several ranks, the first alone tells of the usage."""

    def error(self, message: str) -> NoReturn:
        if rank_of_launch():
            Console().error(InputError(message))
            self.exit(2)
        super().error(one_line(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own lets errors of writing go by
        if not rank_of_launch():
            (file or sys.stderr).write(message)


def add_table(group: Options, table: dict[str, Any], **changes: Any) -> None:
    """Add the options of a table, with `changes` to all of them.

    table: how --help shows an option -> its text, or all that `add_argument` takes. A metavar
        tells the type of the value; with a text alone and no metavar, it is a flag.
    """
    for shown, given in table.items():
        arguments = {"help": given} if isinstance(given, str) else given
        names = shown.split()
        if not names[-1].startswith("-"):
            metavar = names.pop()
            arguments = {"metavar": metavar, "type": _TYPES.get(metavar), **arguments}
        elif isinstance(given, str):
            arguments["action"] = "store_true"
        group.add_argument(*names, **{**arguments, **changes})


def add_options(group: Options, *names: str, **changes: Any) -> None:
    """Add options that several command lines have, with `changes` where they differ."""
    for name in names:
        shown = next(shown for shown in _OPTIONS if name in shown.split())
        add_table(group, {shown: _OPTIONS[shown]}, **changes)


def add_model_options(parser: Options, default: str) -> None:
    """`--model`, `--revision` and `--adapter`."""
    text = f"folder or repository (default: $MLX_SPEECH_MODEL, else {default})"
    default = os.environ.get("MLX_SPEECH_MODEL") or default
    add_table(parser, {"--model MODEL": text}, default=default)
    add_options(parser, "--revision", "--adapter")


def add_console_options(parser: Options) -> None:
    """How much is said on standard error."""
    add_options(parser.add_mutually_exclusive_group(), "--verbose", "--quiet")
    add_options(parser, "--debug")


def explicit_options(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Those of the options that this command line has and that were given, or are never unset."""
    options = vars(args)
    return {name: options[name] for name in names if options.get(name) is not None}


def check_generation(args: argparse.Namespace) -> None:
    """Refuse options of generation and of the cache that no model could honour, before one is
    loaded for them.

    What the library has rules for is checked by those.

    Raises:
        InputError: there is one.
    """
    options, cache = explicit_options(args, GENERATION), explicit_options(args, CACHE)
    sampling = bool(options.get("temperature"))
    if sampling and options.get("num_beams", 1) > 1:
        message = "--temperature samples tokens, --num-beams searches for the best; choose one"
        raise InputError(message)
    for name in ("top_p", "top_k", "min_p", "seed"):
        if name in options and not sampling:
            wrong = as_option(name)
            raise InputError(f"{wrong} is for sampling tokens; it needs --temperature above 0")

    from ..generation import GenerationConfig
    from ..layers.cache import make_cache

    GenerationConfig(**options)
    for name in ("kv_group_size", "quantized_kv_start"):
        if name in cache and "kv_bits" not in cache:
            raise InputError(f"{as_option(name)} is for a quantized cache; it needs --kv-bits")
    make_cache(1, **cache)


def run_command(
    parser: argparse.ArgumentParser,
    check_usage: Callable[[argparse.ArgumentParser, argparse.Namespace], T],
    work: Callable[[argparse.Namespace, Console, T], int],
    argv: list[str] | None,
    *,
    distributed: bool = False,
) -> int:
    """Parse, check and do what a command line asks for; returns the exit status, however it ends.

    Args:
        check_usage: refuses what contradicts itself, as the library does with an `InputError`;
            what it returns is handed to `work`.
        distributed: whether the command is for several ranks as well.

    Raises:
        SystemExit: wrong usage, --help, or a signal that ends the program.
    """
    try:
        status = _status(parser, check_usage, work, argv, distributed)
    except SystemExit as error:
        if rank_of_launch() is None or not isinstance(error.code, int):
            raise
        status = error.code
    except Exception:
        if rank_of_launch() is None:
            raise
        traceback.print_exc()
        status = 1
    if rank_of_launch() is not None:
        leave(status)
    return status


def _status(
    parser: argparse.ArgumentParser,
    check_usage: Callable[[argparse.ArgumentParser, argparse.Namespace], T],
    work: Callable[[argparse.Namespace, Console, T], int],
    argv: list[str] | None,
    distributed: bool,
) -> int:
    open_standard_streams()
    console = Console()
    try:
        with ended_by_signals(), flushed_standard_output():
            args = parser.parse_args(argv)
            console = Console(args)
            with console.showing_warnings():
                if rank_of_launch() is not None and not distributed:
                    parser.error("this command runs in one process: start it without mlx.launch")
                shared = explicit_options(args, ["tensor_parallel"]).get("tensor_parallel", False)
                if shared and rank_of_launch() is None:
                    launch = f"mlx.launch -n 2 -- {parser.prog} --tensor-parallel"
                    parser.error(f"--tensor-parallel is for several processes: {launch} ...")
                try:
                    usage = check_usage(parser, args)
                except InputError as error:
                    parser.error(error.spelled(as_option))
                if shared:
                    from .tensor_parallel import run_shared

                    return run_shared(args, console, lambda: work(args, console, usage))
                return work(args, console, usage)
    except KeyboardInterrupt:
        console.say("interrupted")
        return 130
    except SystemExit as error:
        if error.code == 128 + signal.SIGTERM and rank_of_launch() is not None:
            ended = "SIGTERM has ended it, as mlx.launch sends where another rank has ended"
            console.error(DistributedError(ended))
        raise
    except StandardOutputError as error:
        # a reader that went away has seen enough
        return 1 if error.errno == errno.EPIPE else console.error(error)
    except (MlxSpeechError, OSError) as error:
        return console.error(error)
    except RuntimeError as error:
        if not str(error).startswith(_COMPILER_FAILED):
            raise
        return console.error(InputError(_COMPILER_FOLDER))


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it, SIGTERM and SIGHUP end the program as Ctrl-C does, with all that it cleans up."""

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    # `nohup` has one ignored
    changed = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    with handled(dict.fromkeys(changed, end)):
        yield


def print_replies(responses: Generator[GenerationResponse, None, None]) -> GenerationResponse:
    """Print a text as it comes; its last response."""
    try:
        for response in responses:
            print(response.text, end="", flush=True)
        return response
    finally:
        responses.close()
        print(flush=True)


def load_named(
    args: argparse.Namespace, console: Console, model: str | None = None
) -> tuple[Any, Any]:
    """The model and processor that --model, --revision, --adapter and --dtype name; with
    --tensor-parallel, the others load their shards of it.

    Args:
        model: another than --model names.
    """
    model = args.model if model is None else model
    options = loading_options(args, console)
    start = time.perf_counter()
    if "leader" in args:
        from .tensor_parallel import load_shared

        loaded = load_shared(args.leader, model, **options)
    else:
        from ..loading import load

        loaded = load(model, **options)
    seconds = time.perf_counter() - start
    console.detail(f"{model}: loaded in {seconds:.1f} s from {loaded[0].folder}")
    return loaded


def need_tensor_parallel(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse several processes that would all do the same."""
    if rank_of_launch() is not None and not args.tensor_parallel:
        parser.error("several processes share one model: add --tensor-parallel")


def loading_options(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """What the command line says to `load` beside the model's name."""
    named = {name: getattr(args, name) for name in ("revision", "adapter", "dtype")}
    return {**named, "progress": not (console.quiet or rank_of_launch())}


#: metavar of an argument -> what a shell completes it with
_COMPLETED = {
    **dict.fromkeys(("AUDIO", "DATA", "FILE"), "FILE"),
    **dict.fromkeys(("DIR", "FOLDER", "MODEL", "PATH"), "DIRECTORY"),
}


def add_about_options(parser: Options) -> None:
    """`--version` and `--print-completion`."""
    parser.add_argument("--version", action="version", version=f"mlx_speech {__version__}")
    text = "completion for bash, zsh or fish"
    shells = {"action": _PrintCompletion, "choices": ("bash", "zsh", "fish")}
    add_table(parser, {"--print-completion SHELL": text}, **shells)


class _PrintCompletion(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        import shtab

        need_standard_output()
        for action in parser._actions:
            if action.metavar in _COMPLETED:
                action.complete = getattr(shtab, _COMPLETED[action.metavar])
        # of the installed command, which is what is typed
        parser.prog = f"mlx-speech-{parser.prog.split()[-1].rpartition('.')[2]}"
        sys.stdout.write(shtab.complete(parser, values))
        parser.exit()
