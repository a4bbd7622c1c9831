"""Speech2Text's processor: recordings and texts -> inputs of the model."""

from collections.abc import Sequence
from typing import Any, Self

import mlx.core as mx

from ..checkpoint.folder import read_json
from ..checkpoint.hub import resolve_checkpoint
from ..errors import InputError, UnsupportedOptionError
from ..models.speech_to_text.layers import Speech2TextConfig
from .batch import BatchEncoding, TokenRows
from .kaldi_fbank import SHIFT_MS, Speech2TextFeatureExtractor
from .prompts import LANGUAGES, find_language
from .request import TranscriptionRequest
from .speech_to_text_tokenizer import Speech2TextTokenizer

_NAMES = {**LANGUAGES, "nl": "Dutch", "ro": "Romanian", "ru": "Russian"}


class Speech2TextProcessor:
    """Puts a feature extractor and a tokenizer together.

    Args:
        feature_extractor: computes features.
        tokenizer: encodes and decodes texts.
        max_seconds: longest recording that the model takes at once, if that is bounded.
    """

    extractor_class, tokenizer_class = Speech2TextFeatureExtractor, Speech2TextTokenizer

    def __init__(
        self,
        feature_extractor: Speech2TextFeatureExtractor,
        tokenizer: Speech2TextTokenizer,
        *,
        max_seconds: float | None = None,
    ):
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer
        self.max_seconds = max_seconds

    @classmethod
    def from_pretrained(
        cls, path_or_repo, *, revision: str | None = None, name: str | None = None
    ) -> Self:
        """Read the processor of a local folder or a Hugging Face repository."""
        folder = resolve_checkpoint(path_or_repo, revision=revision, weights=False)
        frames = Speech2TextConfig.from_dict(read_json(folder)).max_source_positions
        extractor = Speech2TextFeatureExtractor.from_pretrained(folder)
        tokenizer = Speech2TextTokenizer.from_pretrained(folder)
        return cls(extractor, tokenizer, max_seconds=frames * SHIFT_MS / 1000)

    @property
    def sampling_rate(self) -> int:
        """Of the recordings, in Hz."""
        return self.feature_extractor.sampling_rate

    def text_language(self, request: TranscriptionRequest) -> str | None:
        """Code of the language that the text will be in, if a request asks for one.

        Models for several target languages follow the token of the language that the answer is
        made to begin with; they take no other instruction.

        Raises:
            UnsupportedOptionError: the model was not trained for what is asked.
        """
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
            asked = f"this model does not translate to {request.target_language!r}"
            raise UnsupportedOptionError(f"{asked}, but to {able}")
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
        audio: mx.array | Sequence | None = None,
        text: str | Sequence[str] | None = None,
        *,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        return_tensors: str = "mlx",
    ) -> BatchEncoding:
        """Inputs for the model: `model.generate(**processor(audio))`.

        Args:
            audio: one or more recordings, as `Speech2TextFeatureExtractor` takes them.
            text: what is said in each, to compute a loss; alone, text to encode.
            sampling_rate: of the recordings, in Hz, to have it checked.
            padding, return_tensors: see `check_arrays`.

        Returns:
            With audio `input_features` and `attention_mask`, and with text too `labels`, (batch,
            length), padded on the right; of text alone `input_ids` and `attention_mask`.

        Raises:
            InputError: neither is given, the sampling rate is not the checkpoint's, a text is
                none or not valid Unicode, or a row is shorter though it may not be.
            AudioError: a recording is too short, or not floating point.
        """
        arrays: dict[str, Any] = {"padding": padding, "return_tensors": return_tensors}
        if audio is None:
            if text is None:
                raise InputError("nothing to process: give audio, text or both")
            return self.tokenizer(text, **arrays)
        inputs = self.feature_extractor(audio, sampling_rate=sampling_rate, **arrays)
        if text is not None:
            inputs["labels"] = self.tokenizer(text, **arrays)["input_ids"]
        return inputs

    def decode(self, ids: Sequence[int] | mx.array, **options: Any) -> str:
        """Text of token ids; options as for the tokenizer."""
        return self.tokenizer.decode(ids, **options)

    def batch_decode(self, sequences: TokenRows, **options: Any) -> list[str]:
        """Texts of several rows of token ids."""
        return self.tokenizer.batch_decode(sequences, **options)
