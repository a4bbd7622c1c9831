"""The processor of Granite Speech 5.0 TurboCTC: recordings and texts -> inputs of the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import mlx.core as mx

from ..errors import InputError
from ..fields import Range, fitted
from ..models.granite_speech5 import GraniteSpeech5CTCConfig
from .batch import BatchEncoding, check_tensors, stack_padded
from .feature_extractor import FeatureSize, PaddingSide, PaddingValue, SamplingRate
from .log_mel import LogMelFeatureExtractor, Reader, floored, stacked
from .parakeet_tokenizer import ParakeetTokenizer
from .plain_processor import PlainProcessor
from .processor import refuse_text_options
from .recordings import too_short

_Samples = Annotated[int, Range(1, 8192)]


@dataclass
class GraniteSpeech5FeatureExtractor(LogMelFeatureExtractor):
    """Log-mel frames with their differences over time, two of which are stacked.

    Args:
        num_mel_bins: number of filters.
        sampling_rate: of the audio, in Hz.
        n_fft, win_length, hop_length: of the Fourier transform, its window, and from one to the
            next, in samples.
        delta_win_length: frames that a difference is taken over, an odd number.
        logmel_floor_db: what is further below the highest value of a recording counts as that much,
            in decimal logarithms of the energy.
        padding_value, padding_side, return_attention_mask: of `pad`; a call has zeros at the end.

    Raises:
        InputError: a value is impossible.
    """

    num_mel_bins: FeatureSize = 80
    sampling_rate: SamplingRate = 16000
    n_fft: Annotated[int, Range(2, 8192)] = 512
    win_length: _Samples = 400
    hop_length: _Samples = 160
    delta_win_length: Annotated[int, Range(3, 99)] = 3
    logmel_floor_db: Annotated[float, Range(0, 1000)] = 8.0
    padding_value: PaddingValue = 0.0
    padding_side: PaddingSide = "right"
    return_attention_mask: bool = True

    model_input_names = ["input_features", "attention_mask"]  # noqa: RUF012
    key = "feature_extractor"
    _resamples = True

    def __post_init__(self):
        super().__post_init__()
        if self.win_length > self.n_fft:
            raise InputError.must_be("win_length", self.win_length, f"at most n_fft, {self.n_fft}")
        if self.delta_win_length % 2 == 0:
            raise InputError.must_be("delta_win_length", self.delta_win_length, "odd")

    @property
    def n_mels(self) -> int:
        """Number of filters, by another name."""
        return self.num_mel_bins

    @property
    def feature_size(self) -> int:
        """Numbers in a frame: two frames of filters with their differences."""
        return 4 * self.num_mel_bins

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "feature_size": self.feature_size}

    def __call__(
        self,
        raw_speech: Any,
        *,
        sampling_rate: int | None = None,
        return_attention_mask: bool | None = None,
        device: Any = None,
    ) -> BatchEncoding:
        """Features of one or more recordings, each computed alone.

        Args:
            raw_speech: as `mono_recordings` takes them; other rates are resampled.
            sampling_rate: of these, in Hz, if it is not that of the features.
            return_attention_mask: by default as the setting of this name says.
            device: without effect: arrays lie in the memory that all devices share.

        Returns:
            input_features: (recordings, frames, 4 * num_mel_bins), float32, 50 frames a second,
                zero at padding.
            attention_mask: (recordings, frames), int32; 1 where a recording is, 0 at padding.

        Raises:
            AudioError: a recording is shorter than half an FFT window, not floating point, or has
                samples that are not finite or are integers; or it cannot be read.
            InputError: there are no recordings, or they are no arrays.
        """
        features = [self.log_mel(audio) for audio in self._recordings(raw_speech, sampling_rate)]
        stacked_features, mask = stack_padded(features)
        result = BatchEncoding(input_features=stacked_features)
        asked = fitted("return_attention_mask", return_attention_mask, bool | None)
        if self.return_attention_mask if asked is None else asked:
            result["attention_mask"] = mask.astype(mx.int32)
        return result

    def _num_mel_frames(self, num_samples: int) -> int:
        # half a window is mirrored at the ends, and there has to be a whole frame
        least = max(self.n_fft // 2 + 1, self.hop_length)
        if num_samples < least:
            raise too_short(num_samples, least, 1000 * least / self.sampling_rate)
        return 2 * -(-(num_samples // self.hop_length) // 2)

    @property
    def reach_samples(self) -> int:
        return super().reach_samples + self.delta_win_length // 2 * self.hop_length

    def _known_mel_frames(self, num_samples: int) -> int:
        return max(0, super()._known_mel_frames(num_samples) - self.delta_win_length // 2)

    def _log_mel(self, read, size, first, end):
        """See `LogMelFeatureExtractor._log_mel`; with the frames around these that differences are
        taken to, the outermost of a recording repeated."""
        num_frames, reach = self._num_mel_frames(size), self.delta_win_length // 2
        before, after = max(0, first - reach), min(num_frames, end + reach)
        needed = (num_frames - 1) * self.hop_length + 1
        log_mel = super()._log_mel(_longer(read, size), max(size, needed), before, after)
        missing = reach - (first - before), reach - (after - end)
        return mx.pad(log_mel, [missing, (0, 0)], mode="edge")

    def _features(self, log_mel, highest):
        log_mel, reach = floored(log_mel, highest, self.logmel_floor_db), self.delta_win_length // 2
        frames = len(log_mel) - 2 * reach
        at = {k: log_mel[reach + k : reach + k + frames] for k in range(-reach, reach + 1)}
        steps = range(1, reach + 1)
        deltas = sum(k * (at[k] - at[-k]) for k in steps) / (2 * sum(k * k for k in steps))
        return stacked(mx.concatenate([at[0], deltas], axis=1))


def _longer(read: Reader, size: int) -> Reader:
    """Reads zeros after the last of so many samples."""

    def read_on(start: int, end: int) -> mx.array:
        samples = read(start, min(end, size))
        return mx.pad(samples, (0, end - start - samples.size))

    return read_on


class GraniteSpeech5Processor(PlainProcessor):
    """Puts a feature extractor and a tokenizer together.

    Args:
        feature_extractor: computes features.
        tokenizer: decodes labels.
    """

    extractor_class, tokenizer_class = GraniteSpeech5FeatureExtractor, ParakeetTokenizer
    title, languages = "Granite Speech 5.0 TurboCTC", ("en",)

    @classmethod
    def _compared(cls, config, features, tokenizer):
        model = GraniteSpeech5CTCConfig.from_dict(config)
        return [
            ("num_mel_bins", model.encoder_config.num_mel_bins, features.num_mel_bins),
            ("pad_token_id", model.pad_token_id, tokenizer.pad_token_id),
        ]

    def __call__(
        self,
        audio: Any,
        text: str | Sequence[str] | None = None,
        **options: Any,
    ) -> BatchEncoding:
        """Inputs for the model: `model.generate(**processor(audio))`.

        Args:
            audio: one or more recordings, as the feature extractor takes them.
            text: what is said in each, to compute a loss.
            options: of a call of the feature extractor, such as `sampling_rate`, and of the
                tokenizer; and `text_kwargs`, `audio_kwargs` and `common_kwargs`, dictionaries of
                such.

        Returns:
            `input_features` and `attention_mask`, and with text `labels`, (batch, length), filled
            up with blanks.

        Raises:
            AudioError: a recording cannot be used.
            InputError: there is no such option, or a text is none.
        """
        for_text, for_audio = self._split(options)
        inputs = self.feature_extractor(audio, **for_audio)
        if text is None:
            refuse_text_options(for_text)
            check_tensors(for_text.get("return_tensors") or "mlx")
        else:
            inputs["labels"] = self.tokenizer(text, **{"padding": True, **for_text})["input_ids"]
        return inputs

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call returns."""
        return [*self.feature_extractor.model_input_names, "labels"]
