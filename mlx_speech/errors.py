"""Every error a user can cause, each with a one-line message that says what to do.

    MlxSpeechError
    ├── AudioError          a recording cannot be read, or an array is not audio
    ├── CheckpointError     a model folder is incomplete, malformed or unsupported
    │   └── HubError        a repository cannot be reached, found or opened
    ├── InputError          arguments that contradict each other
    ├── ContextLengthError  prompt and answer do not fit the model's context
    └── UnsupportedOptionError  the chosen model cannot do what was asked

Catch `MlxSpeechError` to catch all of them. Anything else that escapes the library is a bug.
"""

from collections.abc import Callable
from typing import Any, Self


class MlxSpeechError(Exception):
    """Base of all errors that are meant for the user's eyes."""

    _about: tuple[str, dict[str, Any]] | None = None

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

    def spelled(self, spell: Callable[[str], str]) -> str:
        """The message, with each option called what `spell` makes of its name."""
        if self._about is None:
            return str(self)
        template, values = self._about
        return _filled(template, values, values["option"], spell)


def _filled(template: str, values: dict[str, Any], option: str, spell: Callable[[str], str]) -> str:
    class Fields(dict):
        def __missing__(self, name: str) -> str:
            return spell(name)

    return template.format_map(Fields(values, option=spell(option)))


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
