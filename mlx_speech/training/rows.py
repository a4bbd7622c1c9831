"""Rows of data: a recording, what is said in it, and how the model is to be asked for that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..errors import InputError, MlxSpeechError, one_line
from .recordings import Source, source_of

#: columns of a recording and of its text; the first that is there is read. The others are those of
#: audio folders of `datasets`, of NeMo's manifests, and of Common Voice.
AUDIO_COLUMNS = ("audio", "file_name", "audio_filepath")
TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence")
OPTIONAL_COLUMNS = ("prompt", "language", "punctuate")
#: what is wrong with a row that names no recording
NO_AUDIO = f"there is no {AUDIO_COLUMNS[0]}"


@dataclass(frozen=True)
class Row:
    """One recording of the data.

    place: where it stands: `train.jsonl:7`, or `train[6]` in a data set.
    audio: the recording.
    text: what the model is to write, without space around it.
    prompt: an instruction of one's own.
    language: spoken language, code or English name, where the instruction is to name it.
    punctuate: whether the instruction is to ask for punctuation and capitals.
    """

    place: str
    audio: Source
    text: str
    prompt: str | None = None
    language: str | None = None
    punctuate: bool = False


class Rows:
    """Those of a split in their order, and in place of others what is wrong with them: a line that
    begins with its place."""

    def __init__(self):
        self.entries: list[Row | str] = []

    def add(self, place: str, values: Any, folder: Path) -> None:
        """A row with these values by column, or what is wrong with it.

        Args:
            folder: what relative paths are relative to.
        """
        try:
            self.entries.append(_row(place, values, folder))
        except MlxSpeechError as error:
            self.refuse(place, error)

    def refuse(self, place: str, problem: Exception | str) -> None:
        """There is a row that cannot be used."""
        self.entries.append(described(place, problem))


def described(place: str, problem: Exception | str) -> str:
    """What is wrong with a row, as one line."""
    return one_line(f"{place}: {problem}")


class DataError(InputError):
    """Rows cannot be used.

    Attributes:
        problems: what is wrong with each, a line that begins with its file and line.
    """

    problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, problems: Sequence[str], total: int, *, skipped: bool) -> Self:
        """The error for these.

        Args:
            total: number of rows, with those that can be used.
            skipped: they were to be left out, but then there are none of a split.
        """
        message = "{bad} of {total} rows cannot be used"
        if skipped:
            message += ", and there are no others to train on, or to validate with"
        else:
            message += ": mend them, or {skip_bad} leaves them out"
        error = cls.about(message, bad=len(problems), total=total)
        error.problems = tuple(problems)
        return error


def _row(place: str, values: Any, folder: Path) -> Row:
    if not isinstance(values, Mapping):
        raise InputError(f"it is of type {type(values).__name__}, but must be an object")
    audio = _column(values, AUDIO_COLUMNS)
    source = audio if isinstance(audio, Source) else source_of(audio, folder)
    text = _text("text", _column(values, TEXT_COLUMNS)).strip()
    if not text:
        raise InputError("text is empty")
    prompt, language = (
        None if values.get(name) in (None, "") else _text(name, values[name])
        for name in ("prompt", "language")
    )
    punctuate = _flag("punctuate", values.get("punctuate"))
    if prompt is not None and (language is not None or punctuate):
        raise InputError("prompt takes the place of language and punctuate: leave them out")
    return Row(place, source, text, prompt, language, punctuate)


def _column(values: Mapping, names: tuple[str, ...]) -> Any:
    found = next((name for name in names if values.get(name) is not None), None)
    if found is None:
        raise InputError(f"there is no {names[0]}")
    return values[found]


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError.must_be(name, value, "text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} is not UTF-8") from None
    return value


def _flag(name: str, value: Any) -> bool:
    """A value of JSON, or of CSV, which has only texts."""
    if isinstance(value, str):
        value = {"": False, "true": True, "false": False}.get(value.strip().lower(), value)
    if not isinstance(value, bool | None):
        raise InputError.must_be(name, value, "true or false")
    return bool(value)
