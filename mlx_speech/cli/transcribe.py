"""Command line: `python -m mlx_speech.transcribe [options] AUDIO...`."""

import argparse

from ..distributed.launched import rank_of_launch
from .common import run_command
from .console import Console
from .transcribe_options import Usage, build_parser, check_usage
from .transcribe_run import Run


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(build_parser(), check_usage, run, argv, distributed=True)


def run(args: argparse.Namespace, console: Console, usage: Usage) -> int:
    """Do what can be done for each recording, whatever becomes of the others."""
    if args.live:
        from .live import run_live

        return run_live(args, console, usage)
    if rank_of_launch() is not None and not args.tensor_parallel:
        from .parallel import run_parallel

        return run_parallel(args, console, usage)
    return Run(args, console, usage).all()
