"""What every command line tells of itself: its version, and how a shell completes it."""

from __future__ import annotations

import argparse
import sys

from . import __version__

#: metavar of an argument -> what a shell completes it with
_COMPLETED = {"AUDIO": "FILE", "FILE": "FILE", "DIR": "DIRECTORY", "MODEL": "DIRECTORY"}


def add_about_options(parser: argparse.ArgumentParser) -> None:
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
