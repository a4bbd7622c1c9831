"""Which files a command line writes for which recording; no two recordings share one."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from ..errors import InputError
from ..files import already_exists, check_name, errors_about, replacing_all
from .console import display_name
from .inputs import ADDRESS, Input


@dataclass
class Job:
    """One recording and what becomes of it.

    files: output format -> file; empty: to standard output.
    plot: where to draw it.
    """

    input: Input
    files: dict[str, Path]
    plot: Path | None = None

    @property
    def targets(self) -> list[Path]:
        """All files that are written."""
        return [*self.files.values(), *([self.plot] if self.plot else [])]

    def leave_out_finished(self) -> bool:
        """Leave out the files that are there, each of which was written whole or not at all;
        whether that is all there was to do."""
        some = bool(self.targets)
        self.files = {ending: p for ending, p in self.files.items() if not p.is_file()}
        if self.plot and self.plot.is_file():
            self.plot = None
        return some and not self.targets

    def check_targets(self, inputs: Sequence[Input]) -> None:
        """Raises:
        InputError: something can be written there in no case.
        """
        sources = [i.source for i in inputs if os.path.exists(i.source)]
        for path in self.targets:
            check_name(path)
            if os.path.isdir(path):
                name = display_name(path)
                raise InputError(f"{name} is a folder; choose another name with --output-name")
            if path.exists() and any(path.samefile(source) for source in sources):
                raise InputError(
                    f"{display_name(path)} is a recording itself, which stays as it is"
                )

    def check_new(self) -> None:
        """Raises:
        InputError: what would have to be replaced is there already.
        """
        if existing := next(filter(os.path.lexists, self.targets), None):
            raise already_exists(existing)


def plan(
    inputs: Sequence[Input],
    formats: Sequence[str],
    folder: Path,
    output_name: Callable[[str], str] | None = None,
    plot_name: Callable[[str], Path] | None = None,
) -> list[Job]:
    """What to write for each recording.

    Files are called after their recordings, and in folders that were searched keep the sub-folders
    between. Where that gives two recordings one name, as much more of their paths goes into it as
    tells them apart.

    Args:
        output_name: makes a name without ending of a recording's path, instead of these.
        plot_name: the same for a picture, with folder and ending.

    Raises:
        InputError: several recordings would share a file.
    """
    if output_name is None:
        names = default_names(inputs)
    else:
        names = [str(each.folder / output_name(_path(each))) for each in inputs]
    jobs = []
    owners: dict[str, str] = {}
    for each, name in zip(inputs, names, strict=True):
        files = {ending: folder / f"{name}.{ending}" for ending in formats}
        job = Job(each, files, plot_name and plot_name(_path(each)))
        for path in job.targets:
            other = owners.setdefault(_key(str(path)), each.source)
            if other != each.source:
                both = f"{display_name(other)} and {display_name(each.source)}"
                hint = "a name of your own may have {parent} and {stem} in it"
                raise InputError(f"{display_name(path)} would be written for both {both}; {hint}")
        jobs.append(job)
    return jobs


def default_names(inputs: Sequence[Input]) -> list[str]:
    """Names of the outputs, without their ending."""
    choices = [_choices(each) for each in inputs]
    names = [next(choice) for choice in choices]
    while True:
        counts = Counter(map(_key, names))
        clashing = {i: choices[i] for i, name in enumerate(names) if counts[_key(name)] > 1}
        longer = {i: name for i, choice in clashing.items() if (name := next(choice, None))}
        if not longer:
            return names
        names = [longer.get(i, name) for i, name in enumerate(names)]


def _choices(recording: Input) -> Iterator[str]:
    """Names for it, from the shortest to the one that no other file has."""
    *parents, name = _parts(recording.source)
    for depth in range(len(recording.folder.parts), len(parents) + 1):
        above = parents[len(parents) - depth :]
        yield "/".join([*above, Path(name).stem])
        yield "/".join([*above, name])


def _path(recording: Input) -> str:
    """A path to make a name of; an address as if it were one."""
    source = recording.source
    return "/" + "/".join(_parts(source)) if ADDRESS.match(source) else source


def _parts(source: str) -> list[str]:
    """The folders that a recording is in, and its name."""
    if source == "-":
        return ["stdin"]
    if ADDRESS.match(source):
        host, *path = re.split(r"[?#]", source.partition("://")[2])[0].split("/")
        parts = [host.rpartition("@")[2], *(unquote(part).replace("/", "_") for part in path)]
        return [p for p in parts if p.isprintable() and p.strip(".")] or ["address"]
    return list(Path(os.path.abspath(source)).parts[1:])


def _key(name: str) -> str:
    """The same for names that are one on macOS, where case and the form of accents do not count."""
    return unicodedata.normalize("NFC", name).casefold()


def make_folders(jobs: Sequence[Job]) -> None:
    """Make the folders of all files, before any work is done for them.

    Raises:
        InputError: one cannot be made or written to.
    """
    for folder in dict.fromkeys(path.parent for job in jobs for path in job.targets):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"cannot make the folder {display_name(folder)}: {error.strerror}"
            raise InputError(message) from error
        if not os.access(folder, os.W_OK):
            raise InputError(f"nothing can be written to the folder {display_name(folder)}")


def write_files(texts: dict[Path, str], overwrite: bool) -> None:
    """Write files, all of them whole or none.

    Raises:
        InputError: there is one already, which may not be replaced.
        OSError: a folder cannot be written to, or the disk is full.
    """
    with replacing_all(list(texts), overwrite=overwrite) as temporaries:
        for temporary, (path, text) in zip(temporaries, texts.items(), strict=True):
            with errors_about(path):
                temporary.write_text(text, encoding="utf-8")
