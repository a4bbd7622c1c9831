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


class MlxSpeechError(Exception):
    """Base of all errors that are meant for the user's eyes."""


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
