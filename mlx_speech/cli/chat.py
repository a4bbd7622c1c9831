"""Command line: `python -m mlx_speech.chat [options]`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import (
    AudioError,
    ContextLengthError,
    DistributedError,
    InputError,
    MlxSpeechError,
)
from . import common
from .console import Console, display_name
from .streams import StandardOutputError, decode_utf8, need_standard_output, read_lines
from .terminal import forget_interrupt, line_history, read_line

if TYPE_CHECKING:
    from ..chat_session import ChatSession
    from ..chat_session.chat_model import ChatModel

#: what each takes, and what it does; a method of `Chat` has its name
COMMANDS = {
    "/audio": ("FILE", "have a recording transcribed, and what was said answered"),
    "/save": ("FILE", "write the conversation to a file"),
    "/load": ("FILE", "go on with the conversation of a file"),
    "/reset": ("", "forget the conversation"),
    "/help": ("", "list the commands"),
    "/quit": ("", "leave"),
}
HELP = (
    "".join(f"{f'{name} {takes}':<14}{does}\n" for name, (takes, does) in COMMANDS.items())
    + "Anything else is said to the model; so is a line that begins with a space.\n"
    "Ctrl-C stops a reply, or clears the line that is being written. Ctrl-D leaves."
)


def build_parser() -> argparse.ArgumentParser:
    """The options; nothing heavy is imported for them, so that --help answers at once."""
    parser = common.Parser(
        prog="python -m mlx_speech.chat",
        usage="%(prog)s [options]",
        description="Chat with a language model in the terminal; speech models take recordings, "
        "too.",
        epilog="Each line of standard input is a message, or a command; /help lists these. Replies "
        "go to standard output, everything else to standard error. Exit status: 0, or 1 if there "
        "is no model or, where the messages do not come from a terminal, if one of them failed; 2 "
        "for wrong usage.",
    )
    add, group = common.add_options, parser.add_argument_group
    common.add_model_options(parser, common.CHAT_MODEL)
    text = "folder or repository of a text model that replies in its place: any that mlx-lm runs"
    common.add_table(parser, {"--chat-model MODEL": text})
    reply = group("replies")
    add(reply, "--system-prompt")
    add(reply, "--max-tokens", help="limit of each (default: 512)")
    add(reply, "--temperature", "--top-p", "--top-k", "--min-p", "--seed")
    memory = group("memory")
    add(memory, "--max-kv-size", "--kv-bits", "--kv-group-size", "--quantized-kv-start")
    add(memory, "--dtype", "--tensor-parallel")
    common.add_console_options(parser)
    common.add_about_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return common.run_command(build_parser(), check_usage, run, argv, distributed=True)


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what no model could do, before one is loaded for it."""
    common.need_tensor_parallel(parser, args)
    if args.tensor_parallel and args.chat_model is not None:
        parser.error("--chat-model is run by mlx-lm in one process: leave out --tensor-parallel")
    common.check_generation(args)


def run(args: argparse.Namespace, console: Console, usage: None) -> int:
    """Load the model, then take one line after the other."""
    need_standard_output()
    from ..chat_session import ChatSession

    model, processor = common.load_named(args, console)
    options = common.explicit_options(args, common.GENERATION + common.CACHE)
    options |= console.prompt_progress()
    chat_model = None if args.chat_model is None else load_chat_model(args, console)
    options |= {"chat_model": chat_model, "system": args.system_prompt}
    chat = Chat(ChatSession(model, processor, **options), console)
    if sys.stdin.isatty():
        return chat_in_terminal(chat, args.chat_model or args.model)
    failed = False
    for line in read_lines():
        failed |= not chat.take(line)
        if chat.over:
            break
    return 1 if failed else 0


def load_chat_model(args: argparse.Namespace, console: Console) -> ChatModel:
    """What --chat-model and --dtype name."""
    from ..chat_session.chat_model import load_chat_model

    start = time.perf_counter()
    loaded = load_chat_model(args.chat_model, dtype=args.dtype, progress=not console.quiet)
    console.detail(f"{args.chat_model}: loaded in {time.perf_counter() - start:.1f} s")
    return loaded


def chat_in_terminal(chat: Chat, model: str) -> int:
    """Take lines as they are typed; nothing but leaving ends that."""
    chat.console.note(f"{model} is ready; /help lists what else there is")
    with line_history():
        while not chat.over:
            line = None
            try:  # one for both: Ctrl-C may come in between
                line = read_line()
                chat.take(line)
            except KeyboardInterrupt:
                forget_interrupt()
                if line is None:
                    chat.console.note("")  # below what is being written
                chat.console.note("(Ctrl-D leaves)" if line is None else "(stopped)")
            except EOFError:
                chat.console.note("")
                break
            except UnicodeDecodeError as error:
                chat.console.error(InputError(f"this line is not text: {error.reason}"))
    return 0


class Chat:
    """A conversation, and the commands that are about it."""

    def __init__(self, session: ChatSession, console: Console):
        self.session = session
        self.console = console
        self.over = False  #: whether the user has left
        # files that hold this conversation, and may be written again
        self._own: set[Path] = set()

    def take(self, line: bytes | str) -> bool:
        """Do what a line says; returns whether that went well."""
        try:
            text = decode_utf8(line) if isinstance(line, bytes) else line
            if text.startswith("/"):
                self._command(*text.split(maxsplit=1))
            elif text.strip():
                self._say(text.strip())
            return True
        except (StandardOutputError, DistributedError):
            raise  # the next replies would be lost alike
        except (MlxSpeechError, OSError) as error:
            self.console.error(error)
            return False

    def _command(self, name: str, rest: str = "") -> None:
        if name not in COMMANDS:
            raise InputError(f"{display_name(name)} is not a command; /help lists those")
        takes, rest = COMMANDS[name][0], rest.strip()
        if takes and not rest:
            raise InputError(f"{name} needs the name of a file")
        if rest and not takes:
            raise InputError(f"{name} takes nothing after it")
        getattr(self, name[1:])(*([named_file(rest)] if takes else []))

    def _say(self, text: str) -> None:
        """Send a message and print the reply as it comes."""
        try:
            responses = self.session.stream(text)
        except ContextLengthError as error:
            raise error.with_hint("/reset forgets the conversation") from error
        response = common.print_replies(responses)
        if response.finish_reason == "length":
            self.console.warn(
                f"the reply was cut off after {response.generation_tokens} tokens; raise "
                "--max-tokens, or /reset where the context is full"
            )
        self.console.speed(response)

    def audio(self, path: Path) -> None:
        """`/audio FILE`."""
        transcript = self.session.transcribe(path)
        if not transcript.text:
            raise AudioError(f"{display_name(path)}: no speech was found")
        if not self.console.quiet:
            print(f"transcribed: {transcript.text}", file=sys.stderr)  # all of it
        if transcript.segments[-1].truncated:
            self.console.warn("that was cut off")
        self._say(transcript.text)

    def save(self, path: Path) -> None:
        """`/save FILE`."""
        own = path.resolve() in self._own
        if path.exists() and not own:
            raise InputError(f"{display_name(path)} exists already; choose another name")
        self.session.save(path, overwrite=own)
        self._own.add(path.resolve())
        self.console.note(f"saved to {display_name(path)}")

    def load(self, path: Path) -> None:
        """`/load FILE`."""
        self.session.load(path)
        self._own = {path.resolve()}
        count = len(self.session.messages)
        self.console.note(f"{count} messages loaded from {display_name(path)}")

    def reset(self) -> None:
        """`/reset`."""
        self.session.reset()
        self._own = set()
        self.console.note("the conversation is forgotten")

    def help(self) -> None:
        """`/help`."""
        print(HELP, file=sys.stderr)

    def quit(self) -> None:
        """`/quit`."""
        self.over = True


def named_file(text: str) -> Path:
    """The file that the rest of a line names: as it stands, or as a shell reads it, since so
    terminals write the name of a file that is dragged into them.

    Raises:
        InputError: no file is called so.
    """
    if "\0" in text:
        raise InputError(f"no file is called {text!r}")
    path = Path(os.path.expanduser(text))
    if not path.exists():
        try:
            words = shlex.split(text)
        except ValueError:  # a quote that is part of the name
            return path
        if len(words) == 1:
            path = Path(os.path.expanduser(words[0]))
    return path
