"""What feature extractors share: how they are read, and the recordings that they are given."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypedDict

import mlx.core as mx
import numpy as np

from ..audio.recording import not_finite, refuse_integers
from ..checkpoint.folder import read_json
from ..checkpoint.hub import resolve_checkpoint
from ..errors import AudioError, CheckpointError, InputError
from ..fields import Range, fit_fields
from .settings import read_settings

SamplingRate = Annotated[int, Range(1000, 192_000)]  #: in hertz


class _ProcessorSettings(TypedDict):
    audio_processor: dict | None
    feature_extractor: dict | None


@dataclass
class FeatureExtractor:
    """Base of the feature extractors, whose fields are a checkpoint's settings.

    Raises:
        InputError: a value is of another type, or out of its range.
    """

    sampling_rate: SamplingRate = 16000

    #: where processor_config.json has these settings
    _key: ClassVar[str]

    def __post_init__(self):
        fit_fields(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], place: str = "preprocessor_config.json: ") -> Self:
        """From the parsed preprocessor_config.json, which may be empty.

        Args:
            place: what is before the names of fields in a message.

        Raises:
            CheckpointError: a value is of another type, or out of its range.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        try:
            return cls(**{name: value for name, value in data.items() if name in names})
        except InputError as error:  # its names are the file's, not options that a user gave
            raise CheckpointError(f"{place}{error}") from None

    @classmethod
    def from_pretrained(cls, path_or_repo, *, revision: str | None = None) -> Self:
        """Read the feature extractor of a local folder or a Hugging Face repository: from
        processor_config.json, else preprocessor_config.json, else the released models' values."""
        folder = resolve_checkpoint(path_or_repo, revision=revision, weights=False)
        return cls.from_dict(*cls._read(folder))

    @classmethod
    def _read(cls, folder: Path) -> tuple[dict[str, Any], str]:
        """The settings, and where they stand."""
        file = "processor_config.json"
        if shared := read_settings(folder, file, _ProcessorSettings).get(cls._key):
            return shared, f"{folder / file}: {cls._key}: "
        file = "preprocessor_config.json"
        return read_json(folder, file, required=False), f"{folder / file}: "


def too_short(num_samples: int, least: int, least_ms: float) -> AudioError:
    """The error for a recording of fewer samples than features can be computed from."""
    needed = f"at least {least} samples ({least_ms:.0f} ms) are needed"
    return AudioError(f"a recording of {num_samples} samples is too short: {needed}")


def mono_recordings(audios) -> list[mx.array]:
    """Recordings one by one, as float32 (samples,)."""
    given = type(audios).__name__
    try:
        if not isinstance(audios, Sequence) or (len(audios) and isinstance(audios[0], Real)):
            audios = _as_array(audios)
            audios = [audios] if audios.ndim == 1 else audios
        arrays = [_as_array(audio) for audio in audios]
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: tensors with gradients
        expected = "one or more float arrays (mlx_speech.load_audio reads files)"
        message = f"audio is no samples, but of type {given}: expected {expected}"
        raise InputError(message) from error
    if not arrays:
        raise InputError("no audio given")
    return [_checked(array) for array in arrays]


def _as_array(audio) -> mx.array:
    """Samples in any kind of array, layout and byte order."""
    if isinstance(audio, mx.array):
        return audio
    array = np.asarray(audio)
    native = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    return mx.array(array.astype(native, order="C", copy=False))


def _checked(array: mx.array) -> mx.array:
    if not mx.issubdtype(array.dtype, mx.floating):
        expected = "floats between -1 and 1 (mlx_speech.load_audio scales integers)"
        raise AudioError(f"audio samples are {array.dtype}; expected {expected}")
    if array.ndim != 1:
        raise AudioError(f"an audio array of shape {array.shape} is not mono: expected (samples,)")
    array = mx.contiguous(array.astype(mx.float32))
    if array.size:
        if not mx.isfinite(array).all():
            raise not_finite("the array")
        whole_numbers = bool((array == mx.round(array)).all())
        refuse_integers(mx.abs(array).max().item(), whole_numbers, "the array")
    return array
