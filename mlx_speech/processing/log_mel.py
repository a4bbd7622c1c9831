"""Log-mel features in MLX."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self, TypedDict

import mlx.core as mx
import numpy as np

from ..audio.recording import Recording
from ..checkpoint.folder import read_json
from ..errors import InputError
from ..fields import Range, fit_items
from .batch import length_mask, stack_padded
from .feature_extractor import FeatureExtractor, SamplingRate, mono_recordings, too_short

Reader = Callable[[int, int], mx.array]
#: `melspec_kwargs` of a checkpoint that says nothing
_DEFAULTS = {"sample_rate": 16000, "n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 80}


class _MelSettings(TypedDict):
    sample_rate: SamplingRate
    n_fft: Annotated[int, Range(2, 8192)]
    win_length: Annotated[int, Range(1, 8192)]
    hop_length: Annotated[int, Range(1, 8192)]
    n_mels: Annotated[int, Range(1, 1024)]


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


@dataclass
class GraniteSpeechFeatureExtractor(FeatureExtractor):
    """Stacked log-mel frames, as the checkpoints' own feature extractor computes them.

    Args:
        sampling_rate: of the audio, in Hz.
        melspec_kwargs: `n_fft`, `win_length`, `hop_length` in samples, `n_mels`, and the same
            `sample_rate`; what is left out has the released checkpoints' values.
        projector_window_size, projector_downsample_rate: encoder frames of a projector window, and
            how many of them become one audio token.

    Raises:
        InputError: a value is impossible or asks for what is not implemented.
    """

    melspec_kwargs: dict = field(default_factory=dict)
    projector_window_size: Annotated[int, Range(1, 1024)] = 15
    projector_downsample_rate: Annotated[int, Range(1, 1024)] = 5

    _key = "audio_processor"

    def __post_init__(self):
        super().__post_init__()
        if unknown := self.melspec_kwargs.keys() - _DEFAULTS.keys():
            raise InputError(f"unsupported {', '.join(sorted(unknown))} in melspec_kwargs")
        given = {**_DEFAULTS, "sample_rate": self.sampling_rate, **self.melspec_kwargs}
        options = self.melspec_kwargs = fit_items(_MelSettings, given, "melspec_kwargs.")
        rate, n_fft = options["sample_rate"], options["n_fft"]
        for name, most, what in (
            ("win_length", n_fft, "n_fft"),
            ("projector_downsample_rate", self.projector_window_size, "projector_window_size"),
        ):
            value = options.get(name) or getattr(self, name)
            if value > most:
                raise InputError.must_be(name, value, f"at most {what}, {most}")
        if rate != self.sampling_rate:
            rates = f"sampling_rate {self.sampling_rate} contradicts the sample_rate {rate}"
            raise InputError(f"{rates} of melspec_kwargs")
        if options["hop_length"] < rate / 1000:
            raise InputError.must_be("hop_length", options["hop_length"], "at least a millisecond")

    @classmethod
    def from_dict(cls, data: dict[str, Any], place: str = "preprocessor_config.json: ") -> Self:
        """From the parsed preprocessor_config.json, which may be empty or have flat mel fields."""
        nested = data.get("melspec_kwargs")
        if nested is None or isinstance(nested, dict):
            nested = {**{k: data[k] for k in _DEFAULTS if k in data}, **(nested or {})}
        return super().from_dict({**data, "melspec_kwargs": nested}, place)

    @classmethod
    def _read(cls, folder: Path) -> tuple[dict[str, Any], str]:
        config, (data, place) = read_json(folder), super()._read(folder)
        names = [name for name in ("window_size", "downsample_rate") if name in config]
        return {f"projector_{name}": config[name] for name in names} | data, place

    def __call__(self, audios: mx.array | np.ndarray | Sequence) -> dict[str, Any]:
        """Features of one or more recordings, each computed alone.

        Args:
            audios: (samples,), (recordings, samples), or a sequence of (samples,) arrays, float.

        Returns:
            input_features: (recordings, frames, 2 * n_mels), float32, zero at padding.
            input_features_mask: (recordings, audio tokens), boolean.
            audio_embed_sizes: audio tokens of each recording.
            feature_lengths: (recordings,) frames of each; only where they differ.

        Raises:
            AudioError: a recording is shorter than half an FFT window, not floating point, or has
                samples that are not finite or are integers.
            InputError: there are no recordings, or they are no arrays.
        """
        features = [self.log_mel(audio) for audio in mono_recordings(audios)]
        lengths = [len(f) for f in features]
        sizes = [self.num_audio_tokens(length) for length in lengths]
        result: dict[str, Any] = {"input_features": stack_padded(features)[0]}
        result |= {"input_features_mask": length_mask(sizes), "audio_embed_sizes": sizes}
        if len(set(lengths)) > 1:
            result["feature_lengths"] = mx.array(lengths)
        return result

    def num_audio_tokens(self, num_frames: int) -> int:
        """Tokens that the projector makes of a number of stacked frames."""
        windows = -(-num_frames // self.projector_window_size)
        return windows * (self.projector_window_size // self.projector_downsample_rate)

    def log_mel(self, audio: mx.array) -> mx.array:
        """(samples,) -> (frames, 2 * n_mels), two neighbouring frames side by side."""
        num_frames = self._num_mel_frames(audio.size)
        log_mel = self._log_mel(lambda a, b: audio[a:b], audio.size, 0, num_frames)
        return _stacked(log_mel, log_mel.max())

    def stream(self, recording: Recording, chunk_frames: int = 1500) -> Iterator[mx.array]:
        """`log_mel` of a recording of any length, in parts of `chunk_frames` frames, 50 a second.

        Two passes over a recording longer than a part: its greatest value decides what the smallest
        may be, and is known in the end only.

        Yields:
            (frames, 2 * n_mels): at least one part, together what `log_mel` gives.

        Raises:
            AudioError: as `log_mel`, when the first part is asked for.
        """
        num_frames, step = self._num_mel_frames(recording.size), 2 * chunk_frames

        def part(start: int) -> mx.array:
            end = min(start + step, num_frames)
            return self._log_mel(recording.read, recording.size, start, end)

        first = part(0)
        highest = first.max()
        for start in range(step, num_frames, step):
            highest = mx.maximum(highest, part(start).max())
            mx.eval(highest)
        yield _stacked(first, highest)
        del first
        # a last frame alone is an odd one
        for start in range(step, num_frames - 1, step):
            yield _stacked(part(start), highest)

    def _num_mel_frames(self, num_samples: int) -> int:
        """Frames before two become one."""
        n_fft, hop = self.melspec_kwargs["n_fft"], self.melspec_kwargs["hop_length"]
        least = n_fft // 2 + 1
        if num_samples < least:
            raise too_short(num_samples, least, 1000 * least / self.sampling_rate)
        return (num_samples + n_fft // 2 * 2 - n_fft) // hop + 1

    def _log_mel(self, read: Reader, size: int, first: int, end: int) -> mx.array:
        """Decimal logarithms of the mel energies in frames [first, end): (end - first, n_mels).

        `read` gives samples [a, b) of a recording of `size` samples. What frames need beyond its
        ends is mirrored, without repeating the outermost sample itself.
        """
        options = self.melspec_kwargs
        n_fft, hop = options["n_fft"], options["hop_length"]
        start = first * hop - n_fft // 2
        stop = (end - 1) * hop - n_fft // 2 + n_fft
        before, after = max(0, -start), max(0, stop - size)
        parts = [read(max(0, start), min(stop, size))]
        if before:
            parts.insert(0, read(1, before + 1)[::-1])
        if after:
            parts.append(read(size - 1 - after, size - 1)[::-1])
        frames = mx.as_strided(mx.concatenate(parts), (end - first, n_fft), (hop, 1))
        spectrum = mx.fft.rfft(frames * hann_window(options["win_length"], n_fft))
        power = mx.square(mx.abs(spectrum))
        mel = power @ mel_filters(options["sample_rate"], n_fft, options["n_mels"])
        return mx.log10(mx.maximum(mel, 1e-10))


def _stacked(log_mel: mx.array, highest: mx.array) -> mx.array:
    """(frames, n_mels) in the models' range, neighbours side by side: (frames // 2, 2 * n_mels)."""
    log_mel = mx.maximum(log_mel, highest - 8.0) / 4.0 + 1.0
    # the odd frame goes after the maximum was taken over it too, as in the reference
    num_frames = log_mel.shape[0]
    return log_mel[: num_frames - num_frames % 2].reshape(num_frames // 2, -1)
