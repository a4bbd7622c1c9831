"""What a command line names -> recordings: files, folders, patterns, standard input, addresses."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from ..errors import InputError
from .console import display_name

_AUDIO = (
    "aac ac3 aif aifc aiff amr ape au caf dts eac3 flac m4a m4b mka mp1 mp2 mp3 oga ogg opus ra "
    "rf64 snd spx tta w64 wav wma wv"
)
_VIDEO = "3g2 3gp asf avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv rm vob webm wmv"
#: endings of the files in a folder that are recordings; files that are named may have any
EXTENSIONS = frozenset(f"{_AUDIO} {_VIDEO}".split())

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Input:
    """One recording.

    source: what the library opens: a path, `-` or an address.
    folder: where it lies below the folder that was named; `.` where it was named itself.
    """

    source: str
    folder: Path = Path()


@dataclass
class Found:
    """The recordings, each once, in the order of their names; what is none, and why."""

    inputs: list[Input] = field(default_factory=list)
    failures: list[tuple[str, Exception]] = field(default_factory=list)


def find_inputs(names: Sequence[str], recursive: bool = False) -> Found:
    """The recordings that `names` stand for.

    A file stands for itself, a folder for the files in it that are recordings by their ending and
    not hidden, with `recursive` also for those in its folders, and a pattern (`*`, `?`, `[...]`,
    `**`) that is no file for whatever it matches, as in a shell.
    """
    found, seen = Found(), set()
    for name in chain.from_iterable(_expand(each, found) for each in names):
        for recording in _recordings(name, recursive, found):
            try:
                identity = _identity(recording.source)
            except InputError as error:
                found.failures.append((recording.source, error))
                continue
            if identity not in seen:
                seen.add(identity)
                found.inputs.append(recording)
    return found


def _expand(name: str, found: Found) -> list[str]:
    """A pattern's matches, or the name itself; a pattern without any goes to `found`."""
    if not re.search(r"[*?[]", name) or ADDRESS.match(name) or os.path.lexists(name):
        return [name]
    matches = sorted(glob.glob(name, recursive=True))
    if not matches:
        error = InputError(f"{display_name(name)} matches no file: check the pattern")
        found.failures.append((name, error))
    return matches


def _recordings(name: str, recursive: bool, found: Found) -> Iterator[Input]:
    """The name itself, or the recordings in that folder; folders that fail go to `found`."""
    if name == "-" or ADDRESS.match(name) or not os.path.isdir(name):
        yield Input(name)
        return
    empty, failures = True, len(found.failures)

    def failed(error: OSError) -> None:
        found.failures.append((error.filename, error))

    for folder, folders, files in os.walk(name, onerror=failed):
        folders[:] = sorted(f for f in folders if recursive and not f.startswith("."))
        for file in sorted(files):
            ending = os.path.splitext(file)[1][1:].lower()
            if ending in EXTENSIONS and not file.startswith("."):
                empty = False
                yield Input(os.path.join(folder, file), Path(os.path.relpath(folder, name)))
    if empty and failures == len(found.failures):
        hint = "" if recursive else "; --recursive looks in its folders, too"
        found.failures.append((name, InputError(f"{display_name(name)} holds no recordings{hint}")))


def _identity(source: str) -> object:
    """The same for two names of one file.

    Raises:
        InputError: there is no such file.
    """
    if source == "-" or ADDRESS.match(source):
        return source
    try:
        status = os.stat(source)
    except FileNotFoundError as error:
        raise InputError(f"{display_name(source)} does not exist: check the path") from error
    except (OSError, ValueError):  # opening it will say what is wrong
        return source
    return status.st_dev, status.st_ino
