"""What feature extractors share: how they are read, and the recordings that they are given."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import mlx.core as mx
import numpy as np

from ..audio.recording import not_finite, refuse_integers
from ..checkpoint.folder import read_json
from ..checkpoint.hub import resolve_checkpoint
from ..errors import AudioError, InputError


@dataclass
class FeatureExtractor:
    """Base of the feature extractors, whose fields are a checkpoint's settings."""

    sampling_rate: int = 16000

    #: where processor_config.json has these settings
    _key: ClassVar[str]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From the parsed preprocessor_config.json, which may be empty."""
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in names})

    @classmethod
    def from_pretrained(cls, path_or_repo, *, revision: str | None = None) -> Self:
        """Read the feature extractor of a local folder or a Hugging Face repository: from
        processor_config.json, else preprocessor_config.json, else the released models' values."""
        folder = resolve_checkpoint(path_or_repo, revision=revision, weights=False)
        return cls.from_dict(cls._read(folder))

    @classmethod
    def _read(cls, folder: Path) -> dict[str, Any]:
        shared = read_json(folder, "processor_config.json", required=False).get(cls._key)
        return shared or read_json(folder, "preprocessor_config.json", required=False)


def too_short(num_samples: int, least: int, least_ms: float) -> AudioError:
    """The error for a recording of fewer samples than features can be computed from."""
    needed = f"at least {least} samples ({least_ms:.0f} ms) are needed"
    return AudioError(f"a recording of {num_samples} samples is too short: {needed}")


def mono_recordings(audios) -> list[mx.array]:
    """Recordings one by one, as float32 (samples,)."""
    try:
        if isinstance(audios, mx.array | np.ndarray) and audios.ndim == 1:
            audios = [audios]
        arrays = [mx.array(audio) for audio in audios]
    except (TypeError, ValueError) as error:
        expected = "one or more float arrays (mlx_speech.load_audio reads files)"
        given = f"audio is no samples, but of type {type(audios).__name__}"
        raise InputError(f"{given}: expected {expected}") from error
    if not arrays:
        raise InputError("no audio given")
    return [_checked(array) for array in arrays]


def _checked(array: mx.array) -> mx.array:
    if not mx.issubdtype(array.dtype, mx.floating):
        expected = "floats between -1 and 1 (mlx_speech.load_audio scales integers)"
        raise AudioError(f"audio samples are {array.dtype}; expected {expected}")
    if array.ndim != 1:
        raise AudioError(f"an audio array of shape {array.shape} is not mono: expected (samples,)")
    array = array.astype(mx.float32)
    if array.size:
        if not mx.isfinite(array).all():
            raise not_finite("the array")
        whole_numbers = bool((array == mx.round(array)).all())
        refuse_integers(mx.abs(array).max().item(), whole_numbers, "the array")
    return array
