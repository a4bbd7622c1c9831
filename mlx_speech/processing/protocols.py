"""What is asked of the processors of speech models, beside what their own families ask."""

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx

from ..generation.protocols import Detokenizes
from .request import TranscriptionRequest


class SpeechProcessor(Protocol):
    """What every family's processor has.

    tokenizer: decodes what the model writes.
    """

    tokenizer: Detokenizes

    @property
    def sampling_rate(self) -> int:
        """Of the recordings that it takes, in Hz."""
        ...

    @property
    def languages(self) -> Sequence[str]:
        """Codes of the languages spoken that the model was trained on; none where it does not
        say."""
        ...

    @property
    def target_languages(self) -> Sequence[str]:
        """Codes of those that it translates to."""
        ...

    def text_language(self, request: TranscriptionRequest) -> str | None:
        """Code of the language that the text will be in, if a request says it.

        Raises:
            UnsupportedOptionError: the model was not trained for what is asked.
        """
        ...

    def speech_inputs(
        self, samples: mx.array, request: TranscriptionRequest = ...
    ) -> dict[str, Any]:
        """What `model.generate` needs to transcribe one recording as a whole: its
        `input_features`, and others.

        Args:
            samples: (n,), float32, at `sampling_rate`.

        Raises:
            UnsupportedOptionError: as `text_language`.
        """
        ...
