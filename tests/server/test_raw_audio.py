"""Bytes that are samples."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from mlx_speech import InputError
from mlx_speech.server.raw_audio import RawFormat

VALUES = np.array([0, 0.5, -0.25, 127 / 128, -1])


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("u8", bytes([128, 192, 96, 255, 0])),
        ("s16", np.array([0, 16384, -8192, 32512, -32768], "<i2").tobytes()),
        ("s24", b"".join((int(v * 2**23)).to_bytes(3, "little", signed=True) for v in VALUES)),
        ("s32", (VALUES * 2**31).astype("<i4").tobytes()),
    ],
)
def test_integers_of_any_width(encoding, data):
    decoded = RawFormat(encoding, 16000).decode(data)
    assert decoded.dtype == np.float32
    assert decoded.tolist() == VALUES.tolist()


def test_codes_of_g711():
    """Values of ITU-T G.711, of 14 and 13 bits there."""
    mulaw = RawFormat("mulaw", 8000).decode(bytes([0x00, 0x7F, 0x80, 0xFE, 0xFF])) * 4 * 8192
    assert mulaw.tolist() == [-8031 * 4, 0, 8031 * 4, 2 * 4, 0]
    alaw = RawFormat("alaw", 8000).decode(bytes([0x2A, 0xAA, 0x55, 0xD5])) * 8 * 4096
    assert alaw.tolist() == [-4032 * 8, 4032 * 8, -1 * 8, 1 * 8]


@pytest.mark.parametrize("encoding", ["mulaw", "alaw"])
def test_what_an_encoder_of_g711_makes(encoding):
    samples = (np.sin(np.arange(8000) / 7) * 20000).astype(np.int16)
    with av.open(io.BytesIO(), "w", format=encoding) as container:
        stream = container.add_stream(f"pcm_{encoding}", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], layout="mono")
        frame.sample_rate = 8000
        data = b"".join(bytes(packet) for packet in stream.encode(frame))
    decoded = RawFormat(encoding, 8000).decode(data)
    np.testing.assert_allclose(decoded, samples / 2**15, rtol=0.04, atol=0.001)


def test_channels_are_mixed():
    stereo = np.array([[8192, -8192], [16384, 0]], "<i2").tobytes()
    assert RawFormat("s16", 48000, 2).decode(stereo).tolist() == [0, 0.25]


def test_what_is_not_whole():
    with pytest.raises(InputError, match=r"7 bytes, which are no whole samples of 4"):
        RawFormat("s16", 16000, 2).decode(bytes(7))


@pytest.mark.parametrize("wrong", [("s8", 16000), ("s16", 7999), ("s16", 48001), ("s16", 8000, 0)])
def test_formats_that_there_are_not(wrong):
    with pytest.raises(InputError):
        RawFormat(*wrong)
