"""Log-mel features in MLX."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import mlx.core as mx
import numpy as np

from ..audio.recording import Recording
from ..checkpoint.folder import read_json
from ..errors import InputError
from ..fields import Range, fitted
from .batch import BatchEncoding, length_mask, stack_padded
from .feature_extractor import (
    FeatureExtractor,
    FeatureSize,
    PaddingSide,
    PaddingValue,
    SamplingRate,
)
from .recordings import too_short

Reader = Callable[[int, int], mx.array]
PART_FRAMES = 1500  #: that are computed together, half a minute
_FLOOR = 8.0  #: decimal logarithms below the highest
_OF_THE_TRANSFORM = ("n_fft", "win_length", "hop_length", "n_mels")


@lru_cache
def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> mx.array:
    """Triangular filters on the HTK mel scale, 0 Hz to Nyquist, peak 1: (n_fft // 2 + 1, n_mels).

    The scale is 2595 log10(1 + f / 700); triangles are straight in Hz.
    """
    frequencies = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)
    top = 2595.0 * math.log10(1.0 + sample_rate / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, n_mels + 2) / 2595.0) - 1.0)
    rising = (frequencies[:, None] - edges[None, :-2]) / np.diff(edges)[:-1]
    falling = (edges[None, 2:] - frequencies[:, None]) / np.diff(edges)[1:]
    return mx.array(np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32))


@lru_cache
def hann_window(win_length: int, n_fft: int) -> mx.array:
    """Periodic Hann window of `win_length`, centred among `n_fft` samples."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
    left = (n_fft - win_length) // 2
    padded = np.pad(window, (left, n_fft - win_length - left))
    return mx.array(padded.astype(np.float32))


class LogMelFeatureExtractor(FeatureExtractor, ABC):
    """Base of the extractors whose features come of a log-mel spectrogram with centred windows, two
    frames of which are one of the features.

    Args:
        n_fft, win_length, hop_length: as in `GraniteSpeechFeatureExtractor`.
    """

    n_fft: int
    win_length: int
    hop_length: int

    @property
    @abstractmethod
    def n_mels(self) -> int:
        """Number of filters."""

    @abstractmethod
    def _features(self, log_mel: mx.array, highest: mx.array) -> mx.array:
        """Features of some frames, for which `_log_mel` gave this.

        Args:
            highest: the greatest value of all frames of the recording.
        """

    def log_mel(self, audio: mx.array) -> mx.array:
        """The features of one recording: (samples,) -> (frames, width), 50 frames a second."""
        num_frames = self._num_mel_frames(audio.size)
        log_mel = self._log_mel(lambda a, b: audio[a:b], audio.size, 0, num_frames)
        return self._features(log_mel, log_mel.max())

    def stream(
        self,
        recording: Recording,
        chunk_frames: int = PART_FRAMES,
        *,
        first: int = 0,
        highest: mx.array | None = None,
    ) -> Iterator[mx.array]:
        """`log_mel` of a recording of any length, in parts of `chunk_frames` frames, 50 a second.

        Args:
            first: the frame to begin with; parts end where they do without it.
            highest: what `scan` returned for it, which is called if this is not given.

        Yields:
            (frames, width), evaluated: at least one part, together what `log_mel` gives; with
                `first` what that gives from there on, if anything.

        Raises:
            AudioError: as `log_mel`, when the first part is asked for.
        """
        ends = self._part_ends(recording, chunk_frames)
        if highest is None and len(ends) > 2:
            scan = self.scan(recording, chunk_frames)
            while highest is None:
                try:
                    next(scan)
                except StopIteration as ended:
                    highest = ended.value
        for begin, end in pairwise(ends):
            if end > 2 * first:
                part = self._log_mel(recording.read, recording.size, begin, end)
                features = self._features(part, part.max() if highest is None else highest)
                features = features[max(0, first - begin // 2) :]
                mx.eval(features)  # another thread may take it, and could not compute what is lazy
                yield features

    def scan(
        self, recording: Recording, chunk_frames: int = PART_FRAMES
    ) -> Generator[None, None, mx.array | None]:
        """The first of two passes over a recording longer than a part: the greatest value of all
        its frames decides what the smallest may be, and is known in the end only.

        Yields:
            After each part.

        Returns:
            That value; None for a recording of one part, which needs no such pass.
        """
        ends = self._part_ends(recording, chunk_frames)
        if len(ends) == 2:
            return None
        highest = mx.array(-mx.inf)
        for first, last in pairwise(ends):
            part = self._log_mel(recording.read, recording.size, first, last)
            highest = mx.maximum(highest, part.max())
            mx.eval(highest)
            yield
        return highest

    def _part_ends(self, recording: Recording, chunk_frames: int) -> list[int]:
        """Where parts begin and end, in frames before two become one."""
        number = self._num_mel_frames(recording.size)
        # an odd last frame goes with those before it
        return [*range(0, max(1, number - 1), 2 * chunk_frames), number]

    @property
    def reach_samples(self) -> int:
        """How far before its beginning the samples are that a frame of features depends on."""
        return self.n_fft // 2

    def num_frames(self, num_samples: int, *, ended: bool) -> int:
        """Frames of features, 50 a second, that audio has whose first samples are so many.

        Args:
            ended: there are no others; else only the frames count that do not depend on these.
        """
        return (self._num_mel_frames if ended else self._known_mel_frames)(num_samples) // 2

    def window(
        self, read: Reader, size: int, first: int, end: int, highest: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Frames [first, end) of the features of audio that is still coming in.

        Args:
            read: gives samples [a, b) of it.
            size: how many of them are there.
            first, end: within `num_frames` of these.
            highest: the greatest value of earlier frames, with none -inf.

        Returns:
            (end - first, width), and the greatest value of all frames up to `end`: with that they
            are made, as nobody knows yet what the greatest of all will be.
        """
        log_mel = self._log_mel(read, size, 2 * first, 2 * end)
        highest = mx.maximum(highest, log_mel.max())
        return self._features(log_mel, highest), highest

    def _known_mel_frames(self, num_samples: int) -> int:
        """Frames before two become one that do not depend on samples after so many."""
        after = self.n_fft - self.n_fft // 2  # what a frame reaches beyond its middle
        return max(0, (num_samples - after) // self.hop_length + 1)

    def _num_mel_frames(self, num_samples: int) -> int:
        """Frames before two become one."""
        n_fft, hop = self.n_fft, self.hop_length
        least = n_fft // 2 + 1
        if num_samples < least:
            raise too_short(num_samples, least, 1000 * least / self.sampling_rate)
        return (num_samples + n_fft // 2 * 2 - n_fft) // hop + 1

    def _log_mel(self, read: Reader, size: int, first: int, end: int) -> mx.array:
        """Decimal logarithms of the mel energies in frames [first, end): (end - first, n_mels).

        `read` gives samples [a, b) of a recording of `size` samples. What frames need beyond its
        ends is mirrored, without repeating the outermost sample itself.
        """
        n_fft, hop = self.n_fft, self.hop_length
        start = first * hop - n_fft // 2
        stop = (end - 1) * hop - n_fft // 2 + n_fft
        before, after = max(0, -start), max(0, stop - size)
        parts = [read(max(0, start), min(stop, size))]
        if before:
            parts.insert(0, read(1, before + 1)[::-1])
        if after:
            parts.append(read(size - 1 - after, size - 1)[::-1])
        frames = mx.as_strided(mx.concatenate(parts), (end - first, n_fft), (hop, 1))
        spectrum = mx.fft.rfft(frames * hann_window(self.win_length, n_fft))
        power = mx.square(mx.abs(spectrum))
        mel = power @ mel_filters(self.sampling_rate, n_fft, self.n_mels)
        return mx.log10(mx.maximum(mel, 1e-10))


@dataclass
class GraniteSpeechFeatureExtractor(LogMelFeatureExtractor):
    """Stacked log-mel frames, as the checkpoints' own feature extractor computes them.

    Args:
        sampling_rate: of the audio, in Hz.
        n_fft, win_length, hop_length: of the Fourier transform, its window, and from one to the
            next, in samples.
        n_mels: number of filters.
        projector_window_size, projector_downsample_rate: encoder frames of a projector window, and
            how many of them become one audio token.
        padding_value, padding_side, return_attention_mask: of `pad`; a call has zeros at the end.
        feature_size: by another name the number of filters, which it is by default.
        melspec_kwargs: those of the transform, the filters and the rate as `sample_rate` by name,
            as in some checkpoints; they count more.

    Raises:
        InputError: a value is impossible or asks for what is not implemented.
    """

    sampling_rate: SamplingRate = 16000
    n_fft: Annotated[int, Range(2, 8192)] = 512
    win_length: Annotated[int, Range(1, 8192)] = 400
    hop_length: Annotated[int, Range(1, 8192)] = 160
    n_mels: FeatureSize = 80
    projector_window_size: Annotated[int, Range(1, 1024)] = 15
    projector_downsample_rate: Annotated[int, Range(1, 1024)] = 5
    padding_value: PaddingValue = 0.0
    padding_side: PaddingSide = "right"
    return_attention_mask: bool = True
    feature_size: FeatureSize | None = None
    melspec_kwargs: dict | None = None

    model_input_names = ["input_features"]  # noqa: RUF012
    key = "audio_processor"
    _resamples = True

    def __post_init__(self):
        given = dict(fitted("melspec_kwargs", self.melspec_kwargs, dict | None) or {})
        if unknown := given.keys() - {"sample_rate", *_OF_THE_TRANSFORM}:
            raise InputError(f"unsupported {', '.join(sorted(unknown))} in melspec_kwargs")
        rate = given.pop("sample_rate", self.sampling_rate)
        for name, value in given.items():
            setattr(self, name, value)
        if self.feature_size is None:
            self.feature_size = self.n_mels
        super().__post_init__()
        if rate != self.sampling_rate:
            rates = f"sampling_rate {self.sampling_rate} contradicts the sample_rate {rate}"
            raise InputError(f"{rates} of melspec_kwargs")
        for name, limit in (
            ("win_length", "n_fft"),
            ("projector_downsample_rate", "projector_window_size"),
        ):
            value, most = getattr(self, name), getattr(self, limit)
            if value > most:
                raise InputError.must_be(name, value, f"at most {limit}, {most}")
        if self.hop_length < self.sampling_rate / 1000:
            raise InputError.must_be("hop_length", self.hop_length, "at least a millisecond")
        transform = {name: getattr(self, name) for name in _OF_THE_TRANSFORM}
        self.melspec_kwargs = {"sample_rate": self.sampling_rate, **transform}

    @classmethod
    def _flat(cls, data: dict[str, Any]) -> dict[str, Any]:
        nested = data.get("melspec_kwargs")
        if not isinstance(nested, dict):
            return data
        known = {name: nested[name] for name in _OF_THE_TRANSFORM if name in nested}
        others = {name: value for name, value in nested.items() if name not in known}
        if others.get("sample_rate") == data.get("sampling_rate", cls.sampling_rate):
            others.pop("sample_rate", None)
        return {**data, **known, "melspec_kwargs": others}

    @classmethod
    def _read(cls, folder: Path) -> tuple[dict[str, Any], str]:
        config, (data, place) = read_json(folder, required=False), super()._read(folder)
        names = [name for name in ("window_size", "downsample_rate") if name in config]
        return {f"projector_{name}": config[name] for name in names} | data, place

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
            audio_embed_sizes: audio tokens of each recording.
            input_features_mask: (recordings, audio tokens), boolean.
            feature_lengths: (recordings,) frames of each; only where they differ.

        Raises:
            AudioError: a recording is shorter than half an FFT window, not floating point, or has
                samples that are not finite or are integers; or it cannot be read.
            InputError: there are no recordings, or they are no arrays.
        """
        features = [self.log_mel(audio) for audio in self._recordings(audios, sampling_rate)]
        lengths = [len(f) for f in features]
        sizes = [self.num_audio_tokens(length) for length in lengths]
        result = BatchEncoding(input_features=stack_padded(features)[0])
        result |= {"audio_embed_sizes": sizes, "input_features_mask": length_mask(sizes)}
        if len(set(lengths)) > 1:
            result["feature_lengths"] = mx.array(lengths)
        return result

    def num_audio_tokens(self, num_frames: int) -> int:
        """Tokens that the projector makes of a number of stacked frames."""
        windows = -(-num_frames // self.projector_window_size)
        return windows * (self.projector_window_size // self.projector_downsample_rate)

    def _features(self, log_mel, highest):
        return stacked(floored(log_mel, highest, _FLOOR))


def floored(log_mel: mx.array, highest: mx.array, floor: float) -> mx.array:
    """(frames, n_mels) in the models' range: nothing is lower than so much below the highest."""
    return mx.maximum(log_mel, highest - floor) / 4.0 + 1.0


def stacked(frames: mx.array) -> mx.array:
    """Neighbours side by side, without an odd last frame: (frames // 2, 2 * width)."""
    # that one goes after the maximum was taken over it too, as in the reference
    number = len(frames) // 2
    return frames[: 2 * number].reshape(number, -1)
