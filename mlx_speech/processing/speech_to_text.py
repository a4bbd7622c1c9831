"""Speech2Text's processor: recordings and texts -> inputs of the model."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ..errors import InputError
from ..fbank import Speech2TextFeatureExtractor
from .speech_to_text_tokenizer import Speech2TextTokenizer


class Speech2TextProcessor:
    """Puts a feature extractor and a tokenizer together.

    Args:
        feature_extractor: hears.
        tokenizer: reads and writes.
    """

    def __init__(
        self, feature_extractor: Speech2TextFeatureExtractor, tokenizer: Speech2TextTokenizer
    ):
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls, path_or_repo, *, revision: str | None = None, name: str | None = None
    ) -> Speech2TextProcessor:
        """Read the processor of a local folder or a Hugging Face repository."""
        return cls(
            Speech2TextFeatureExtractor.from_pretrained(path_or_repo, revision=revision),
            Speech2TextTokenizer.from_pretrained(path_or_repo, revision=revision),
        )

    def __call__(
        self,
        audio: mx.array | Sequence | None = None,
        text: str | Sequence[str] | None = None,
        *,
        sampling_rate: int | None = None,
    ) -> dict[str, mx.array]:
        """Inputs for the model: `model.generate(**processor(audio))`.

        Args:
            audio: one or more recordings, as `Speech2TextFeatureExtractor` takes them.
            text: what is said in each, to compute a loss; alone, text to encode.
            sampling_rate: of the recordings, in Hz, to have it checked.

        Returns:
            With audio `input_features` and `attention_mask`, and with text too `labels`, (batch,
            length), padded on the right; of text alone `input_ids` and `attention_mask`.

        Raises:
            InputError: neither is given, the sampling rate is not the checkpoint's, or a text is
                not valid Unicode.
            AudioError: a recording is too short, or not floating point.
        """
        if audio is None:
            if text is None:
                raise InputError("nothing to process: give audio, text or both")
            return self.tokenizer(text)
        inputs = self.feature_extractor(audio, sampling_rate)
        if text is not None:
            inputs["labels"] = self.tokenizer(text)["input_ids"]
        return inputs

    def decode(self, ids: Sequence[int] | mx.array, *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(
        self, sequences: Sequence[Sequence[int]] | mx.array, *, skip_special_tokens: bool = True
    ) -> list[str]:
        """Texts of several rows of token ids."""
        return self.tokenizer.batch_decode(sequences, skip_special_tokens=skip_special_tokens)
