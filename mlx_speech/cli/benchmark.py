"""Command line: `python -m mlx_speech.benchmark [options] [AUDIO...]`."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from . import common
from .benchmark_report import Report
from .console import Console
from .inputs import ADDRESS, find_inputs
from .streams import need_standard_output

if TYPE_CHECKING:
    from ..profiling.profile import ModelProfile

BITS = (16, 8, 4)


def _bits(given: str) -> list[int]:
    known = {str(bits): bits for bits in BITS}
    chosen = [bits.strip() for bits in given.split(",")]
    for bits in chosen:
        if bits not in known:
            message = f"invalid choice: {bits!r} (choose from {', '.join(known)})"
            raise argparse.ArgumentTypeError(message)
    return [known[bits] for bits in dict.fromkeys(chosen)]


def build_parser() -> argparse.ArgumentParser:
    """The options; nothing heavy is imported for them, so that --help answers at once."""
    parser = common.Parser(
        prog="python -m mlx_speech.benchmark",
        usage="%(prog)s [options] [AUDIO...]",
        description="Measure how fast a speech model encodes, decodes and transcribes on this "
        "machine, and how much of what the machine can do that is.",
        epilog="The table goes to standard output; everything else goes to standard error. Exit "
        "status: 0 if all is measured, 1 if it failed, 2 for wrong usage, 130 after Ctrl-C.",
    )
    audio = {
        "help": "audio or video file, folder of such, or pattern in quotes (default: four short "
        "recordings that come with the package)",
        "dest": "audio",
        "nargs": "*",
    }
    common.add_table(parser, {"AUDIO": audio})
    common.add_model_options(parser, common.SPEECH_MODEL)
    bits = {
        "help": "16, 8, 4, or several with commas: measure the model with so many bits, quantized "
        "in memory (default: as it is)",
        "type": _bits,
    }
    common.add_table(
        parser,
        {
            "--bits BITS": bits,
            "--runs N": "how often to measure, for the median (default: 3)",
            "--json": "print one JSON object instead of a table",
        },
    )
    common.add_options(parser, "--dtype")
    common.add_console_options(parser)
    common.add_about_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return common.run_command(build_parser(), check_usage, run, argv)


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[str]:
    """Refuse what no model could do, before one is loaded for it; the names of the recordings."""
    if any(name == "-" or ADDRESS.match(name) for name in args.audio):
        parser.error("recordings are read several times: give files, not - and no addresses")

    from ..fields import fitted
    from ..generation.config import Count

    fitted("runs", args.runs, Count | None)
    return args.audio


def run(args: argparse.Namespace, console: Console, names: list[str]) -> int:
    """Measure, and print what was found."""
    need_standard_output()
    from ..profiling.limits import copy_bandwidth
    from ..profiling.machine import Machine
    from ..profiling.profile import RUNS
    from ..profiling.sample import bundled_recordings

    found = find_inputs(names)
    for source, error in found.failures:
        return console.error(error, source)
    recordings = [each.source for each in found.inputs] or bundled_recordings()
    runs = args.runs or RUNS
    progress = _Progress(console)
    try:
        progress("copying memory")
        bandwidth = copy_bandwidth(runs)
        profiles = [
            _profile(args, console, bits, recordings, bandwidth, runs, progress)
            for bits in args.bits or [None]
        ]
    finally:
        progress.clear()
    named = args.model, args.adapter
    report = Report(Machine.this(), *named, recordings, runs, bandwidth, profiles)
    print(json.dumps(report.as_dict(), indent=2) if args.json else report.table(), flush=True)
    return 0


def _profile(
    args: argparse.Namespace, console: Console, bits: int | None, *measured: Any
) -> ModelProfile:
    """What is measured of the model with so many bits; with None as it is."""
    from ..checkpoint.quantization import quantize_as_requested
    from ..profiling.counts import decoder_bits
    from ..profiling.profile import profile_model

    # the one before goes only when it is looked for, its modules refer to each other
    gc.collect()
    loaded = common.load_named(args, console)
    if bits is not None:
        model, _ = loaded
        if decoder_bits(model) < 16:
            message = "{bits} quantizes in memory, but {model} is quantized already; leave it out"
            raise InputError.about(message, model=args.model)
        if bits < 16:
            quantize_as_requested(model, {"bits": bits})
    return profile_model(loaded, *measured)


class _Progress:
    """What is being measured: on a terminal a line that is replaced, else with --verbose."""

    def __init__(self, console: Console):
        self._console = console
        self._replaced = sys.stderr.isatty() and not (console.quiet or console.verbose)

    def __call__(self, doing: str) -> None:
        if self._replaced:
            self._console.status(doing)
        else:
            self._console.detail(doing)

    def clear(self) -> None:
        if self._replaced:
            self._console.status("")
