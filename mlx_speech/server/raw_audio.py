"""Raw audio as clients send it: bytes -> samples."""

import io
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

import numpy as np

from ..audio.load import as_floats
from ..errors import InputError
from ..fields import Range, fit_fields

Encoding = Literal["u8", "s16", "s24", "s32", "mulaw", "alaw"]
SamplingRate = Annotated[int, Range(8000, 48000)]
_BYTES = {"u8": 1, "s16": 2, "s24": 3, "s32": 4, "mulaw": 1, "alaw": 1}


@dataclass(frozen=True)
class RawFormat:
    """What bytes mean: little-endian samples, those of all channels in turn.

    encoding: integers by their bits, unsigned (u) or signed (s), or G.711's logarithmic codes.
    sampling_rate: in Hz.

    Raises:
        InputError: there is no such format here.
    """

    encoding: Encoding
    sampling_rate: SamplingRate
    channels: Annotated[int, Range(1, 8)] = 1

    def __post_init__(self):
        fit_fields(self)

    def decode(self, data: bytes) -> np.ndarray:
        """Samples, (n,) float32, of all channels mixed.

        Raises:
            InputError: the last one is not whole.
        """
        frame_bytes = _BYTES[self.encoding] * self.channels
        if len(data) % frame_bytes:
            raise InputError(
                f"the audio is of {len(data)} bytes, which are no whole samples of {frame_bytes}"
            )
        return as_floats(self._samples(data)).reshape(-1, self.channels).mean(axis=1)

    def _samples(self, data: bytes) -> np.ndarray:
        match self.encoding:
            case "u8":
                return np.frombuffer(data, np.uint8)
            case "s16":
                return np.frombuffer(data, "<i2")
            case "s24":
                wide = np.zeros((len(data) // 3, 4), np.uint8)
                wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
                return wide.view("<i4")[:, 0]
            case "s32":
                return np.frombuffer(data, "<i4")
            case _:
                return _decoded_codes(self.encoding)[np.frombuffer(data, np.uint8)]


@cache
def _decoded_codes(encoding: Encoding) -> np.ndarray:
    """The 16-bit samples, (256,), of all codes of G.711."""
    import av

    with av.open(io.BytesIO(bytes(range(256))), mode="r", format=encoding) as codes:
        (frame,) = codes.decode(audio=0)
    return frame.to_ndarray()[0]
