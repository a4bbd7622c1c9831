"""What the processors of models share that transcribe, and take no instruction."""

import os
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import mlx.core as mx

from ..checkpoint.folder import read_json
from ..checkpoint.hub import resolve_checkpoint, take_hub_options
from ..errors import CheckpointError
from .batch import BatchEncoding
from .processor import Processor
from .prompts import check_plain, language_code
from .request import TranscriptionRequest


class PlainProcessor(Processor, ABC):
    """Base of these processors; arguments as of `Processor`.

    Attributes:
        title: of the models, for messages.
        languages: codes of those that they were trained on.
    """

    title: ClassVar[str]
    languages: ClassVar[tuple[str, ...]]
    target_languages = ()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        name: str | None = None,
        **options: Any,
    ) -> Self:
        """Read the processor of a local folder or a Hugging Face repository, which need not be
        those of a model.

        Args:
            name: not needed here; every processor takes it.
            options: of `from_pretrained` of the feature extractor and the tokenizer; or of
                `resolve_checkpoint`, such as `revision`.

        Raises:
            CheckpointError: the features, or the labels, are not those of the model.
        """
        folder = resolve_checkpoint(
            pretrained_model_name_or_path, weights=False, **take_hub_options(options)
        )
        features, tokenizer = cls._read_parts(folder, options)
        if config := read_json(folder, required=False):
            for what, expected, found in cls._compared(config, features, tokenizer):
                if found != expected:
                    both = f"{found:g} for the processor, but {expected:g} for the model"
                    raise CheckpointError(f"{folder}: {what} is {both}")
        return cls(features, tokenizer)

    @classmethod
    @abstractmethod
    def _compared(
        cls, config: dict[str, Any], features: Any, tokenizer: Any
    ) -> list[tuple[str, float, float]]:
        """What has to be the same in the model of a config.json and in the processor: what it is
        called, and what it is in each."""

    @abstractmethod
    def __call__(self, audio: Any, **options: Any) -> BatchEncoding:
        """Inputs for the model: `model.generate(**processor(audio))`."""

    def text_language(self, request: TranscriptionRequest) -> str | None:
        """Code of the language that the text will be in, if a request says it.

        Raises:
            UnsupportedOptionError: more than plain transcription is asked for, or in a language
                that the model was not trained on.
        """
        check_plain(self.title, request, self.languages)
        return request.language and language_code(request.language)

    def speech_inputs(
        self, samples: mx.array, request: TranscriptionRequest = TranscriptionRequest()
    ) -> dict[str, Any]:
        """What `model.generate` needs to transcribe one recording as a whole.

        Args:
            samples: (n,).
        """
        self.text_language(request)
        return self(samples)
