"""The recordings that feature extractors and processors are given, as mono float32 samples."""

import os
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import mlx.core as mx
import numpy as np

from ..audio import load_audio
from ..audio.recording import not_finite, refuse_integers
from ..errors import AudioError, InputError
from ..fields import fitted
from ..layers.token_ids import as_mlx


def mono_recordings(
    audio: Any, sampling_rate: int | None, target: int, *, resample: bool
) -> list[mx.array]:
    """Recordings one by one, as float32 (samples,) at one rate.

    Args:
        audio: samples, float and of full scale 1, in any kind of array or as a list: (samples,) or
            (recordings, samples). Or what `load_audio` reads, a path or an address; or samples with
            their own rate, `{"array": ..., "sampling_rate": ...}`, as `datasets` has them. Or a
            list of such recordings, or of such lists.
        sampling_rate: of samples that come without one, in hertz; by default it is the target.
        target: the rate that is needed.
        resample: whether samples of other rates are resampled, and not refused.

    Raises:
        AudioError: a recording cannot be read, or is not floating point and mono.
        InputError: it is none of these, or has another rate.
    """
    sampling_rate = fitted("sampling_rate", sampling_rate, int | None)

    def at_target(recording: Any) -> mx.array:
        if isinstance(recording, str | os.PathLike):
            return load_audio(recording, target_sampling_rate=target)
        recording, rate = _with_rate(recording, sampling_rate)
        samples = _checked(recording)
        if rate in (None, target):
            return samples
        if not resample:
            rates = f"{rate} Hz, this checkpoint needs {target} Hz"
            message = f"the audio has a rate of {rates}: resample it with mlx_speech.load_audio"
            raise InputError(message)
        return load_audio(samples, rate, target)

    found = [at_target(recording) for recording in _each(audio)]
    if not found:
        raise InputError("no audio given")
    return found


def too_short(num_samples: int, least: int, least_ms: float) -> AudioError:
    """The error for a recording of fewer samples than features can be computed from."""
    needed = f"at least {least} samples ({least_ms:.0f} ms) are needed"
    return AudioError(f"a recording of {num_samples} samples is too short: {needed}")


def as_array(values: Any) -> mx.array:
    """Numbers in any kind of array, layout and byte order.

    Raises:
        InputError: they are none.
    """
    try:
        array = as_mlx(values)
        return array if isinstance(array, mx.array) else as_mlx(np.asarray(array))
    except (InputError, TypeError, ValueError, RuntimeError) as error:
        raise _no_samples(values) from error


def _each(audio: Any) -> Iterator[Any]:
    """Recordings out of a batch, or out of lists of any depth."""
    if _is_list(audio):
        for part in audio:
            yield from _each(part) if _is_list(part) else [part]
    elif isinstance(audio, str | os.PathLike) or _has_rate(audio):
        yield audio
    else:
        array = as_array(audio)
        if not array.ndim:
            raise _no_samples(audio)
        yield from array if array.ndim == 2 else [array]


def _is_list(audio: Any) -> bool:
    is_list = isinstance(audio, Sequence) and not isinstance(audio, str)
    return is_list and not (len(audio) and isinstance(audio[0], Real))


def _has_rate(audio: Any) -> bool:
    # the latter is the decoder that newer versions of `datasets` give
    return isinstance(audio, Mapping) or hasattr(audio, "get_all_samples")


def _with_rate(recording: Any, rate: int | None) -> tuple[Any, int | None]:
    if not _has_rate(recording):
        return recording, rate
    try:
        return recording["array"], fitted("sampling_rate", recording["sampling_rate"], int)
    except KeyError as error:
        raise _no_samples(recording) from error


def _no_samples(audio: Any) -> InputError:
    expected = "one or more float arrays, or paths, which mlx_speech.load_audio reads"
    return InputError(f"audio is no samples, but of type {type(audio).__name__}: give {expected}")


def _checked(recording: Any) -> mx.array:
    array = as_array(recording)
    if not mx.issubdtype(array.dtype, mx.floating):
        expected = "floats between -1 and 1 (mlx_speech.load_audio scales integers)"
        raise AudioError(f"audio samples are {array.dtype}; expected {expected}")
    if array.ndim == 2 and len(array) == 1:  # one channel, as from torchaudio
        array = array[0]
    if array.ndim != 1:
        raise AudioError(f"an audio array of shape {array.shape} is not mono: expected (samples,)")
    array = mx.contiguous(array.astype(mx.float32))
    if array.size:
        if not mx.isfinite(array).all():
            raise not_finite("the array")
        whole_numbers = bool((array == mx.round(array)).all())
        refuse_integers(mx.abs(array).max().item(), whole_numbers, "the array")
    return array
