"""Every error a user can cause, each with a one-line message that says what to do.

    MlxSpeechError
    ├── AudioError          a recording cannot be read, or an array is not audio
    ├── CheckpointError     a model folder is incomplete, malformed or unsupported
    │   └── HubError        a repository cannot be reached, found or opened
    ├── InputError          arguments that contradict each other
    ├── ContextLengthError  prompt and answer do not fit the model's context
    ├── UnsupportedOptionError  the chosen model cannot do what was asked
    └── DistributedError    of several processes one was lost, or is not like the others

Catch `MlxSpeechError` to catch all of them. Anything else that escapes the library is a bug.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

#: characters of a message, and of what it quotes where it would be longer
LONGEST_MESSAGE, LONGEST_QUOTE = 300, 100
# a message of our own words only, such as a list of what is wrong, may be a little longer
_TOLERATED = 400

# what terminals take for commands: colours and so on, titles and links, others
_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?")
_LINE_END = re.compile(r"\s*[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]\s*")
# in quotation marks, or without a space
_QUOTE = re.compile(rf"""(["']).{{{LONGEST_QUOTE - 1},}}?\1|\S{{{LONGEST_QUOTE + 1},}}""")


def one_line(message: str) -> str:
    """A message as one line, of about `LONGEST_MESSAGE` characters at most, whatever it quotes.

    What is too long loses its middle, first in what is quoted: how a message begins and what to do,
    at its end, stay. What is no text is escaped, or where terminals would obey it left out.
    """
    text = _LINE_END.sub(" ", _ESCAPE_SEQUENCE.sub("", message).strip("\r\n"))
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if len(text) > LONGEST_MESSAGE:
        text = _QUOTE.sub(lambda quote: shortened(quote[0], LONGEST_QUOTE), text)
    whole = len(text) <= _TOLERATED and "…" not in text
    return text if whole else shortened(text, LONGEST_MESSAGE)


def shortened(text: str, length: int) -> str:
    """A text, its middle left out if it is longer."""
    if len(text) <= length:
        return text
    return f"{text[: length // 2]}…{text[len(text) - (length - 1 - length // 2) :]}"


def first_few(names: Sequence[str], most: int = 3) -> str:
    """Names for a message, with commas between them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class MlxSpeechError(Exception):
    """Base of all errors that are meant for the user's eyes; as text, one line (see `one_line`)."""

    _about: tuple[str, dict[str, Any]] | None = None

    def __str__(self) -> str:
        return one_line(super().__str__())

    @property
    def option(self) -> str:
        """Name of the option that it is about, if it is known and one."""
        return "" if self._about is None else self._about[1]["option"]

    @classmethod
    def about(cls, template: str, *, option: str = "", **values: Any) -> Self:
        """An error about options, which a command line may call by other names.

        Args:
            template: the message, for `str.format`. Its fields are `values`, `option`, and else
                names of options: `"{option} is {value!r}; leave out {num_beams}"`.
            option: name of the option that it is about.
        """
        error = cls(_filled(template, values, option, str))
        error._about = template, {**values, "option": option}
        return error

    @classmethod
    def must_be(cls, option: str, value: Any, rule: str) -> Self:
        """An error about an option whose value breaks a rule, such as "at least 1"."""
        message = "{option} is {value!r}, but must be {rule}"
        return cls.about(message, option=option, value=value, rule=rule)

    def with_hint(self, hint: str) -> Self:
        """The same error with more to do about it."""
        if self._about is None:
            return type(self)(f"{self}; {hint}")
        template, values = self._about
        return self.about(f"{template}; {hint}", **values)

    def renamed(self, path: Path, to: Path) -> Self:
        """The same error, in which another path stands in place of one that nobody knows."""
        if self._about is None:
            return type(self)(super().__str__().replace(str(path), str(to)))
        template, values = self._about
        values = {name: to if value == path else value for name, value in values.items()}
        return self.about(template, **values)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it; `from_dict` is the inverse."""
        kinds = (kind.__name__ for kind in type(self).__mro__)
        kind = next(name for name in kinds if name in _kinds())  # the nearest that is known here
        data: dict[str, Any] = {"kind": kind, "message": super().__str__()}
        if self._about is not None:
            template, values = self._about
            data["about"] = template, {name: _as_json(value) for name, value in values.items()}
        return data

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "MlxSpeechError":
        error = _kinds()[data["kind"]](data["message"])
        if "about" in data:
            template, values = data["about"]
            error._about = template, values
        return error

    def spelled(self, spell: Callable[[str], str]) -> str:
        """The message, with each option called what `spell` makes of its name."""
        if self._about is None:
            return str(self)
        template, values = self._about
        return one_line(_filled(template, values, values["option"], spell))


def _filled(template: str, values: dict[str, Any], option: str, spell: Callable[[str], str]) -> str:
    class Fields(dict):
        def __missing__(self, name: str) -> str:
            return spell(name)

    return template.format_map(Fields(values, option=spell(option)))


def _kinds() -> dict[str, type[MlxSpeechError]]:
    """The classes of this module by name."""
    kinds = [kind for kind in globals().values() if isinstance(kind, type)]
    return {kind.__name__: kind for kind in kinds if issubclass(kind, MlxSpeechError)}


def _as_json(value: Any) -> Any:
    """The same, or what a message would say of it."""
    return value if isinstance(value, str | int | float | list | None) else str(value)


class AudioError(MlxSpeechError):
    """A recording cannot be read, or an array is not audio."""


class CheckpointError(MlxSpeechError):
    """A model folder is incomplete, malformed or of an unsupported kind."""


class HubError(CheckpointError):
    """A Hugging Face repository cannot be reached, found or opened."""


class InputError(MlxSpeechError, ValueError):
    """Arguments that contradict each other or the model."""


class ContextLengthError(MlxSpeechError):
    """The prompt and the requested answer do not fit the model's context."""


class UnsupportedOptionError(MlxSpeechError):
    """The chosen model cannot do what was asked; the message says which can."""


class DistributedError(MlxSpeechError):
    """Of the processes of a distributed run one was lost, has failed, or is not like the others."""
