"""A number -> a folder in which one file is not as it was, and what comes of using it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from mlx_speech.convert import convert

from mlx_speech import ChatSession, MlxSpeechError, load, load_audio, transcribe

from .mutations import mutate
from .sources import MESSAGE, SAMPLING_RATE, SOURCES, TINY, Source, speech
from .workers import FAILED, FINE, REFUSED

LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Case:
    """One input.

    Numbers count through all sources, first as they are, and then mutated, in round after round.
    """

    number: int
    seed: int = 0

    @property
    def source(self) -> Source:
        return SOURCES[self.number % len(SOURCES)]

    @property
    def is_whole(self) -> bool:
        """Whether the file is as it was."""
        return self.number < len(SOURCES)

    def write(self, sources: Path, folder: Path) -> str:
        """Fill a folder; returns what was done to the file.

        sources: where `make_sources` wrote them.
        """
        whole = sources / self.source.folder
        file = self.source.file
        # of weights of megabytes there is one copy
        shutil.copytree(whole, folder, copy_function=os.symlink)
        if self.is_whole:
            return "as it is"
        data, what = mutate(whole / file, (whole / file).read_bytes(), self._random())
        (folder / file).unlink()
        (folder / file).write_bytes(data)
        return what

    def use(self, folder: Path) -> None:
        """Do with the folder's files what a user would."""
        USES[self.source.use](folder, folder / self.source.file, self._random("use"))

    def _random(self, purpose: str = "") -> Random:
        return Random(f"{self.seed} {self.number} {purpose}")


def try_case(number: int, sources: Path, seed: int = 0) -> tuple[str, str]:
    """Whether using a case went well, was refused as it should be, or failed; and the message."""
    case = Case(number, seed)
    with tempfile.TemporaryDirectory(dir=sources.parent) as place:
        case.write(sources, Path(place) / "case")
        with contextlib.chdir(place):  # so that messages have short paths in them
            return outcome_of(lambda: case.use(Path("case")), case)


def outcome_of(use: Callable[[], None], case: Case) -> tuple[str, str]:
    """As `try_case`."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        outcome, message = _outcome_of(use, case)
    # those of NumPy and of Python are nothing for a user; ours are sentences as those of errors
    for warning in warned:
        wrong = _wrong_with(str(warning.message))
        if not issubclass(warning.category, UserWarning) or wrong:
            return FAILED, f"{warning.category.__name__}: {str(warning.message)[:200]!r} {wrong}"
    return outcome, message


def _outcome_of(use: Callable[[], None], case: Case) -> tuple[str, str]:
    refusable = case.source.refused or not case.is_whole
    try:
        use()
    except MlxSpeechError as error:
        wrong = _wrong_with(str(error)) if refusable else "a whole file is refused"
        return (FAILED, f"{wrong}: {str(error)[:200]!r}") if wrong else (REFUSED, str(error))
    except BaseException as error:  # neither a panic nor SystemExit should come of it
        frames = reversed(traceback.extract_tb(error.__traceback__)[-3:])
        place = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
        return FAILED, f"{type(error).__name__} at {place}: {str(error)[:200]!r}"
    if case.source.refused:
        return FAILED, "something was read that leads to other files"
    return FINE, ""


def _wrong_with(message: str) -> str:
    """What makes a message none of one short line, if something does."""
    if not message.isprintable():
        return "a message with control characters"
    return "" if len(message) <= LONGEST_MESSAGE else f"a message of {len(message)} characters"


# Uses


@cache
def _tiny() -> tuple[Any, Any]:
    return load(TINY)


@cache
def _speech() -> np.ndarray:
    return speech()


def _read(folder: Path, file: Path, rng: Random) -> None:
    samples = np.array(load_audio(file))
    assert samples.size
    assert np.isfinite(samples).all()


def _transcribe(folder: Path, file: Path, rng: Random) -> None:
    transcribe(file, _tiny(), word_timestamps=True, max_new_tokens=20)


def _load(folder: Path, file: Path, rng: Random) -> None:
    model, processor = load(folder)
    if hasattr(processor, "sampling_rate"):
        options = {"sampling_rate": SAMPLING_RATE, "max_new_tokens": 4}
        transcribe(_speech(), (model, processor), **options)
    if not getattr(model.config, "is_encoder_decoder", False):
        ChatSession(model, processor).send(MESSAGE, max_new_tokens=4)


def _convert(folder: Path, file: Path, rng: Random) -> None:
    how: dict[str, Any] = rng.choice(({}, {"quantize": True}, {"dtype": "float16"}))
    convert(folder, folder / "plan", dry_run=True, **how)
    convert(folder, folder / "converted", **how)
    load(folder / "converted")


def _dequantize(folder: Path, file: Path, rng: Random) -> None:
    convert(folder, folder / "converted", dequantize=True)
    load(folder / "converted")


def _chat(folder: Path, file: Path, rng: Random) -> None:
    session = ChatSession(*_tiny())
    session.load(file)
    session.send(MESSAGE, max_new_tokens=4)


USES: dict[str, Callable[[Path, Path, Random], None]] = {
    "read": _read,
    "transcribe": _transcribe,
    "load": _load,
    "convert": _convert,
    "dequantize": _dequantize,
    "chat": _chat,
}
