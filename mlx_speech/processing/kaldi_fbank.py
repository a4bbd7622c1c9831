"""Kaldi filter banks in MLX, normalised over each utterance: the features of Speech2Text.

The algorithm is that of Kaldi's compute-fbank-feats (feat/feature-window.cc, feature-fbank.cc and
mel-computations.cc), with the options that fairseq's S2T models were trained with.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import mlx.core as mx
import numpy as np

from ..fields import Range, fitted
from .batch import BatchEncoding
from .feature_extractor import (
    FeatureExtractor,
    FeatureSize,
    PaddingSide,
    PaddingValue,
    SamplingRate,
    frame_limit,
)
from .recordings import too_short

FRAME_MS = 25.0
SHIFT_MS = 10.0
PREEMPHASIS = 0.97
LOW_HZ = 20.0
FLOOR = float(np.finfo(np.float32).eps)  #: least energy whose logarithm is taken
CHUNK_FRAMES = 4096  #: frames computed at a time: 13 MB of them


@lru_cache
def frame_spectrum(frame: int) -> mx.array:
    """What makes a frame's spectrum: (frame, 2 * bins) float64, real parts, then imaginary ones.

    The frame loses its mean, gets pre-emphasis and the Povey window (a symmetric Hann window to the
    power of 0.85), and is transformed at the next power of two, without the Nyquist bin. All that
    is linear, so one matrix does it.
    """
    rows = np.eye(frame) - 1 / frame
    # what precedes the first sample does not matter: the window is 0 there
    rows = rows - PREEMPHASIS * np.roll(rows, 1, axis=1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / (frame - 1))
    spectrum = np.fft.rfft(rows * hann**0.85, fft_size(frame))[:, :-1]
    return mx.array(np.concatenate([spectrum.real, spectrum.imag], axis=1), dtype=mx.float64)


def fft_size(frame: int) -> int:
    """The power of two that holds a frame."""
    return 1 << (frame - 1).bit_length()


@lru_cache
def kaldi_mel_filters(sampling_rate: float, n_fft: int, n_mels: int) -> mx.array:
    """Triangles that are straight in mel, from 20 Hz to Nyquist: (n_fft // 2, n_mels) float64.

    The scale is 1127 ln(1 + f / 700). Slopes are computed in float32, as in Kaldi: where a narrow
    filter hardly touches the one bin that it meets, the rounding is part of the model.
    """

    def mel(hertz):
        return 1127.0 * np.log(1.0 + hertz / 700.0)

    low, high = float(mel(LOW_HZ)), float(mel(sampling_rate / 2))
    step = (high - low) / (n_mels + 1)
    bins = mel(sampling_rate / n_fft * np.arange(n_fft // 2, dtype=np.float32))
    number = np.arange(n_mels, dtype=np.float32)
    left, centre, right = (low + (number + i) * step for i in range(3))
    rising = (bins[:, None] - left) / (centre - left)
    falling = (right - bins[:, None]) / (right - centre)
    return mx.array(np.maximum(0, np.minimum(rising, falling)), dtype=mx.float64)


def fbank(
    samples: mx.array,
    sampling_rate: float = 16000,
    n_mels: int = 80,
    *,
    dither: float = 0.0,
    seed: int | None = None,
) -> mx.array:
    """Log energies of Kaldi's mel filters.

    Computed in float64, and so on the CPU: beside a loud low tone, rounding in a float32 transform
    is louder than the quiet end of the spectrum, and its logarithm off by up to 1. Memory beyond
    the result does not grow with the recording.

    Args:
        samples: (samples,), full scale -1 to 1.
        sampling_rate: in hertz.
        n_mels: number of filters.
        dither: standard deviation of the noise added to each frame, where full scale is 32768.
        seed: of that noise; MLX's global generator if not given.

    Returns:
        (1 + (samples - frame) // shift, n_mels) float32; only whole frames count.

    Raises:
        AudioError: the recording is shorter than a frame.
    """
    # multiplied in this order: at some rates another one rounds to another integer
    frame, shift = int(sampling_rate * FRAME_MS * 0.001), int(sampling_rate * SHIFT_MS * 0.001)
    if samples.size < frame:
        raise too_short(samples.size, frame, FRAME_MS)
    num_frames = 1 + (samples.size - frame) // shift
    spectrum = frame_spectrum(frame)
    bins = spectrum.shape[1] // 2
    filters = kaldi_mel_filters(sampling_rate, fft_size(frame), n_mels)
    key = None if seed is None else mx.random.key(seed)
    chunks = []
    with mx.stream(mx.cpu):
        for start in range(0, num_frames, CHUNK_FRAMES):
            count = min(CHUNK_FRAMES, num_frames - start)
            chunk = samples[start * shift : (start + count - 1) * shift + frame]
            frames = mx.as_strided(chunk, (count, frame), (shift, 1)).astype(mx.float64) * 2**15
            if dither:
                key, chunk_key = (None, None) if key is None else mx.random.split(key)
                noise = mx.random.normal(frames.shape, key=chunk_key)
                frames = frames + dither * noise.astype(mx.float64)
            parts = mx.square(frames @ spectrum)
            energies = (parts[:, :bins] + parts[:, bins:]) @ filters
            chunks.append(mx.log(mx.maximum(energies, FLOOR)).astype(mx.float32))
            mx.eval(chunks[-1])
        return mx.concatenate(chunks)


@dataclass
class Speech2TextFeatureExtractor(FeatureExtractor):
    """Filter banks, each made zero in mean and one in standard deviation over its utterance.

    Args:
        feature_size: numbers in a frame, which are `num_mel_bins`; it is kept, and has no effect.
        sampling_rate: of the audio, in Hz.
        num_mel_bins: number of filters.
        padding_value: fills the shorter recordings of a batch.
        dither: as for `fbank`.
        do_ceptral_normalize: whether to normalise at all; the name is the checkpoints' own.
        normalize_means, normalize_vars: what to normalise.
        padding_side: where shorter recordings are filled up, `"left"` or `"right"`.
        return_attention_mask: whether a batch comes with its mask.
    """

    feature_size: FeatureSize = 80
    sampling_rate: SamplingRate = 16000
    num_mel_bins: FeatureSize = 80
    padding_value: PaddingValue = 0.0
    dither: Annotated[float, Range(0, 1e6)] = 0.0
    do_ceptral_normalize: bool = True
    normalize_means: bool = True
    normalize_vars: bool = True
    padding_side: PaddingSide = "right"
    return_attention_mask: bool = True

    model_input_names = ["input_features", "attention_mask"]  # noqa: RUF012
    key = "feature_extractor"

    def __call__(
        self,
        raw_speech: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = "mlx",
        sampling_rate: int | None = None,
        return_attention_mask: bool | None = None,
        *,
        padding_value: float | None = None,
        seed: int | None = None,
    ) -> BatchEncoding:
        """Features of one or more recordings, each as it would be alone.

        Args:
            raw_speech: as `mono_recordings` takes them.
            padding, max_length, truncation, pad_to_multiple_of, return_tensors: as in `pad`. What
                is cut off does not count for the normalisation.
            sampling_rate: of the recordings, in Hz, to have it checked.
            return_attention_mask, padding_value: as in `pad`.
            seed: of the dither; see `fbank`.

        Returns:
            input_features: (recordings, frames, num_mel_bins), float32.
            attention_mask: (recordings, frames), int32; 1 where a recording is, 0 at padding.

        Raises:
            AudioError: a recording is shorter than a frame, not floating point, or cannot be read.
            InputError: `sampling_rate` is not the checkpoint's, or an argument of `pad` is wrong.
        """
        seed = fitted("seed", seed, Annotated[int, Range(0, 2**64 - 1)] | None)
        limit = frame_limit(max_length, truncation, pad_to_multiple_of)
        options: Any = {"dither": self.dither, "seed": seed}
        recordings = self._recordings(raw_speech, sampling_rate)
        energies = (fbank(r, self.sampling_rate, self.num_mel_bins, **options) for r in recordings)
        features = [self.normalize(of_recording[:limit]) for of_recording in energies]
        return self.pad(
            {"input_features": features},
            padding,
            max_length,
            truncation,
            pad_to_multiple_of,
            return_attention_mask,
            return_tensors,
            padding_value=padding_value,
        )

    def normalize(self, features: mx.array) -> mx.array:
        """Cepstral mean and variance normalisation of one recording: (frames, bins), same shape.

        A bin that never changes, as in digital silence or in a single frame, has no deviation to be
        divided by. It is left as it is, and so is 0 once its mean is gone; the reference divides
        by zero there.
        """
        if not self.do_ceptral_normalize:
            return features
        mean, deviation = _statistics(features)
        if self.normalize_means:
            features = features - mean
        if self.normalize_vars:
            features = features / mx.where(deviation > 0, deviation, 1)
        return features


def _statistics(features: mx.array) -> tuple[mx.array, mx.array]:
    """Mean and population standard deviation of each bin: (frames, bins) -> 2 x (bins,) float32."""
    # about the first frame and in float64: exact where nothing changes, and for hours of audio
    origin = features[0]
    total = squares = mx.zeros_like(origin)
    with mx.stream(mx.cpu):
        for start in range(0, len(features), CHUNK_FRAMES):
            chunk = features[start : start + CHUNK_FRAMES].astype(mx.float64) - origin
            total, squares = total + chunk.sum(axis=0), squares + mx.square(chunk).sum(axis=0)
            mx.eval(total, squares)
        mean = total / len(features)
        variance = mx.maximum(squares / len(features) - mx.square(mean), 0)
        return (origin + mean).astype(mx.float32), mx.sqrt(variance).astype(mx.float32)
