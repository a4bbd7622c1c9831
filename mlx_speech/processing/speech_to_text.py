"""Speech2Text's processor: recordings and texts -> inputs of the model."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn, Self

import mlx.core as mx

from ..checkpoint.folder import read_json
from ..checkpoint.hub import resolve_checkpoint, take_hub_options
from ..errors import InputError, UnsupportedOptionError
from ..models.speech_to_text.layers import Speech2TextConfig
from .batch import BatchEncoding
from .kaldi_fbank import SHIFT_MS, Speech2TextFeatureExtractor
from .processor import Processor, refuse_text_options
from .prompts import LANGUAGES, check_no_tags, find_language
from .request import TranscriptionRequest
from .speech_to_text_tokenizer import Speech2TextTokenizer

_NAMES = {**LANGUAGES, "nl": "Dutch", "ro": "Romanian", "ru": "Russian"}


class Speech2TextProcessor(Processor):
    """Puts a feature extractor and a tokenizer together.

    Args:
        feature_extractor: computes features.
        tokenizer: encodes and decodes texts.
        max_seconds: longest recording that the model takes at once, if that is bounded.
    """

    extractor_class, tokenizer_class = Speech2TextFeatureExtractor, Speech2TextTokenizer
    languages: ClassVar[tuple[str, ...]] = ()  #: checkpoints do not say which were spoken

    def __init__(
        self,
        feature_extractor: Speech2TextFeatureExtractor,
        tokenizer: Speech2TextTokenizer,
        *,
        max_seconds: float | None = None,
    ):
        super().__init__(feature_extractor, tokenizer)
        self.max_seconds = max_seconds
        self._encodes_targets = False

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
            options: of `from_pretrained` of the feature extractor and the tokenizer, such as
                `tgt_lang`; or of `resolve_checkpoint`, such as `revision`.
        """
        folder = resolve_checkpoint(
            pretrained_model_name_or_path, weights=False, **take_hub_options(options)
        )
        extractor, tokenizer = cls._read_parts(folder, options)
        data = read_json(folder, required=False)
        frames = Speech2TextConfig.from_dict(data).max_source_positions if data else None
        return cls(extractor, tokenizer, max_seconds=frames and frames * SHIFT_MS / 1000)

    @property
    def target_languages(self) -> list[str]:
        """See `SpeechProcessor`."""
        return self.tokenizer.langs

    def text_language(self, request: TranscriptionRequest) -> str | None:
        """Code of the language that the text will be in, if a request asks for one.

        Models for several target languages follow the token of the language that the answer is
        made to begin with; they take no other instruction.

        Raises:
            UnsupportedOptionError: the model was not trained for what is asked.
        """
        check_no_tags("Speech2Text", request)
        for name in ("language", "prompt", "punctuate", "keywords"):
            if getattr(request, name):
                able = "take no instruction but a target language; Granite Speech models do"
                message = "{option}: Speech2Text models " + able
                raise UnsupportedOptionError.about(message, option=name)
        if request.target_language is None:
            return None
        code = find_language(request.target_language, _NAMES)
        if code not in self.tokenizer.langs:
            able = ", ".join(self.tokenizer.langs) or "one language, without being told"
            message = "{target_language}: this model does not translate to {asked!r}, but to {able}"
            asked = request.target_language
            raise UnsupportedOptionError.about(message, asked=asked, able=able)
        return code

    def speech_inputs(
        self,
        samples: mx.array | Sequence[mx.array],
        request: TranscriptionRequest = TranscriptionRequest(),
    ) -> dict[str, Any]:
        """What `model.generate` needs to transcribe or translate recordings as a whole.

        Args:
            samples: (n,), or several such.
        """
        inputs = self(samples)
        if (code := self.text_language(request)) is not None:
            inputs["forced_bos_token_id"] = self.tokenizer.language_id(code)
        return inputs

    def __call__(
        self,
        audio: Any = None,
        *arguments: Any,
        text: str | Sequence[str] | None = None,
        raw_speech: Any = None,
        **options: Any,
    ) -> BatchEncoding:
        """Inputs for the model: `model.generate(**processor(audio))`.

        Args:
            audio: one or more recordings, as `Speech2TextFeatureExtractor` takes them.
            arguments: of its call, after the recordings: `padding` and so on.
            text: what is said in each, to compute a loss; alone, text to encode.
            raw_speech: an old name of `audio`.
            options: of a call of the feature extractor, such as `sampling_rate`, and of the
                tokenizer; both get those that both have, such as `padding`. Also `text_kwargs`,
                `audio_kwargs` and `common_kwargs`, dictionaries of such.

        Returns:
            With audio `input_features` and `attention_mask`, and with text too `labels`, (batch,
            length), padded on the right; of text alone `input_ids` and `attention_mask`.

        Raises:
            InputError: neither is given, the sampling rate is not the checkpoint's, a text is
                none or not valid Unicode, or a row is shorter though it may not be.
            AudioError: a recording is too short, or not floating point.
        """
        for_text, for_audio = self._split(options)
        if self._encodes_targets:
            return self.tokenizer(audio if text is None else text, *arguments, **for_text)
        audio = raw_speech if audio is None else audio
        if audio is None:
            if text is None:
                raise InputError("nothing to process: give audio, text or both")
            return self.tokenizer(text, **for_text)
        inputs = self.feature_extractor(audio, *arguments, **for_audio)
        if text is None:
            refuse_text_options(for_text)
        else:
            inputs["labels"] = self.tokenizer(text, **for_text)["input_ids"]
        return inputs

    @contextmanager
    def as_target_processor(self) -> Iterator[None]:
        """Within it, a call encodes texts, for labels. An old way: give them as `text`."""
        self._encodes_targets = True
        try:
            yield
        finally:
            self._encodes_targets = False

    def apply_chat_template(self, *_: Any, **__: Any) -> NoReturn:
        """There is none: raises `UnsupportedOptionError`."""
        raise UnsupportedOptionError(
            "Speech2Text models have no chat template, and follow no instructions: call the "
            "processor with a recording"
        )
