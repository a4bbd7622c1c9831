"""The options of `--live`, and those that go without it."""

import argparse
import sys

from . import common
from .console import as_option
from .inputs import Found, Input
from .streams import need_standard_output

#: options of `--live` alone, and those that only whole recordings have
_LIVE = ("device", "rate", "json_events")
WHOLE = (
    "recursive",
    "audio_track",
    "channel",
    "speakers",
    "batch_size",
    "resume",
    "stream",
    "plot",
)


class _ListDevices(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        from .microphone import list_devices

        need_standard_output()
        sys.stdout.write(list_devices())
        parser.exit()


def add_live_options(group: argparse._ActionsContainer) -> None:
    """Add them to a group."""
    options = {
        "--live": "text at once of the microphone, or of samples on -",
        "--device NAME": "part of the name of a microphone, or its number",
    }
    common.add_table(group, options)
    listed = "list microphones, and stop"
    common.add_table(group, {"--list-devices": listed}, action=_ListDevices, nargs=0)
    further = {
        "--rate N": "of 16-bit samples on -, in Hz (default: 16000)",
        "--json-events": "print what becomes known, a line of JSON each",
    }
    common.add_table(group, further)


def refuse_live_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Of a command line without `--live`."""
    if given := _given(args, _LIVE):
        parser.error(f"{given} is for --live")


def find_live(args: argparse.Namespace) -> Found:
    """What `--live` transcribes, as recordings are found."""
    return Found([Input("-" if args.audio else "microphone")])


def check_live_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Of a command line with `--live`."""
    from ..audio.recording import checked_rate
    from ..errors import AudioError

    if given := _given(args, WHOLE):
        parser.error(f"--live: {given} is for recordings that are whole; leave it out")
    if args.vad is False:
        parser.error("--live: --no-vad is for recordings that are whole; leave it out")
    if args.audio not in ([], ["-"]):
        parser.error("--live takes the microphone, or raw samples on standard input (-)")
    if args.audio and args.device is not None:
        parser.error("--device is a microphone, and - is standard input; leave one out")
    if not args.audio and args.rate is not None:
        parser.error("--rate is for samples on standard input; add -")
    try:
        args.rate = checked_rate(16000 if args.rate is None else args.rate, "--rate")
    except AudioError as error:
        parser.error(str(error))


def _given(args: argparse.Namespace, names: tuple[str, ...]) -> str | None:
    """The first of some options that is given, as it is spelled."""
    given = (name for name in names if getattr(args, name) not in (None, False))
    name = next(given, None)
    return name and as_option(name)
