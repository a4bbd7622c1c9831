"""Granite Speech NAR's processor: recordings -> inputs of the model, and token ids -> texts."""

from pathlib import Path
from typing import Any

from ..checkpoint.folder import read_json
from ..models.granite_speech_nar import GraniteSpeechNarConfig
from .batch import BatchEncoding, check_tensors
from .log_mel import GraniteSpeechFeatureExtractor
from .plain_processor import PlainProcessor
from .processor import refuse_text_options
from .recordings import too_short
from .tokenizer import Tokenizer


class GraniteSpeechNarFeatureExtractor(GraniteSpeechFeatureExtractor):
    """As Granite Speech's, of whole pairs of frames alone: what a last odd one would be does not
    count for the greatest value either."""

    model_input_names = ["input_features", "feature_lengths"]  # noqa: RUF012

    @classmethod
    def _flat(cls, data: dict[str, Any]) -> dict[str, Any]:
        flat = super()._flat(data)
        return {"n_mels": flat["feature_size"], **flat} if "feature_size" in flat else flat

    @classmethod
    def _read(cls, folder: Path) -> tuple[dict[str, Any], str]:
        data, place = super()._read(folder)
        stored = read_json(folder, required=False)
        if not stored:
            return data, place
        projector = GraniteSpeechNarConfig.from_dict(stored).projector_config
        window = {"projector_window_size": projector.block_size}
        return {**window, "projector_downsample_rate": projector.downsample_rate, **data}, place

    def __call__(
        self, audios: Any, device: Any = None, *, sampling_rate: int | None = None
    ) -> BatchEncoding:
        """Features of one or more recordings, each computed alone.

        Args:
            audios: as `mono_recordings` takes them; other rates are resampled.
            device: without effect: arrays lie in the memory that all devices share.
            sampling_rate: of `audios`, in Hz, if it is not that of the features.

        Returns:
            input_features: (recordings, frames, 2 * n_mels), float32, zero at padding.
            feature_lengths: (recordings,) frames of each; only where they differ.

        Raises:
            AudioError, InputError: as `GraniteSpeechFeatureExtractor`.
        """
        inputs = super().__call__(audios, device, sampling_rate=sampling_rate)
        for name in ("audio_embed_sizes", "input_features_mask"):
            del inputs[name]
        return inputs

    def num_audio_tokens(self, num_frames: int) -> int:
        """Rows of audio that the editor gets for a number of stacked frames."""
        return num_frames // self.projector_downsample_rate

    def _num_mel_frames(self, num_samples: int) -> int:
        super()._num_mel_frames(num_samples)
        pair = 2 * self.hop_length
        if num_samples < pair:
            raise too_short(num_samples, pair, 1000 * pair / self.sampling_rate)
        return num_samples // pair * 2


class GraniteSpeechNarProcessor(PlainProcessor):
    """Puts a feature extractor and a tokenizer together.

    Args:
        feature_extractor: computes features.
        tokenizer: decodes token ids.
    """

    extractor_class, tokenizer_class = GraniteSpeechNarFeatureExtractor, Tokenizer
    title, languages = "Granite Speech 4.1 NAR", ("en", "fr", "de", "es", "pt")

    @classmethod
    def _compared(cls, config, features, tokenizer):
        encoder = GraniteSpeechNarConfig.from_dict(config).encoder_config
        return [("n_mels", encoder.input_dim / 2, features.n_mels)]

    def __call__(self, audio: Any, device: Any = None, **options: Any) -> BatchEncoding:
        """Inputs for the model: `model.generate(**processor(audio))`.

        Args:
            audio: one or more recordings, as `mono_recordings` takes them: samples in any kind of
                array, paths, addresses.
            device: without effect, as for the feature extractor.
            options: of a call of the feature extractor, such as `sampling_rate`, that of `audio` in
                Hz; and `audio_kwargs` and `common_kwargs`, dictionaries of such.

        Returns:
            `input_features`, and `feature_lengths` where they differ (see
            `GraniteSpeechNarFeatureExtractor`).

        Raises:
            AudioError: a recording cannot be used.
            InputError: there is no such option.
        """
        for_text, for_audio = self._split(options)
        refuse_text_options(for_text)
        check_tensors(for_text.get("return_tensors") or "mlx")
        return self.feature_extractor(audio, **{"device": device, **for_audio})

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call returns."""
        return self.feature_extractor.model_input_names
