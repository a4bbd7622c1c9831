"""Sound in files of every kind, for the tests of reading it."""

from __future__ import annotations

import io
import sys
import types
from fractions import Fraction

import av
import mlx.core as mx
import numpy as np
import pytest
import soundfile

from mlx_speech.audio import SAMPLING_RATE, load_audio
from mlx_speech.errors import AudioError


def sine(rate=SAMPLING_RATE, seconds=1.0, hertz=440.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def refused(source, *args, **kwargs):
    """The message of the AudioError that `load_audio` raises, which must be one line."""
    with pytest.raises(AudioError) as caught:
        load_audio(source, *args, **kwargs)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) > 20
    return message


def encoded(samples, rate=SAMPLING_RATE, **how):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **how)
    return buffer.getvalue()


def give_stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))


CONTAINERS = {
    "aac": ("adts", "aac"),
    "ac3": ("ac3", "ac3"),
    "avi": ("avi", "libmp3lame"),
    "flac": ("flac", "flac"),
    "m4a": ("ipod", "aac"),
    "mka": ("matroska", "flac"),
    "mkv": ("matroska", "aac"),
    "mov": ("mov", "aac"),
    "mp3": ("mp3", "libmp3lame"),
    "mp4": ("mp4", "aac"),
    "oga": ("ogg", "flac"),
    "opus": ("ogg", "libopus"),
    "ts": ("mpegts", "aac"),
    "wav": ("wav", "pcm_s16le"),
    "webm": ("webm", "libopus"),
    "wma": ("asf", "wmav2"),
}


def make(
    path, *tracks, rate=SAMPLING_RATE, codec=None, layout=None, encoder=None, video=0.0, **options
):
    """Write tracks, (frames,) or (frames, channels), with PyAV, beside so many s of pictures.

    `path` is a file's, or a pipe: an `io.RawIOBase` whose name ends like one.
    """
    container, usual = CONTAINERS[str(getattr(path, "name", path)).rpartition(".")[2]]
    file = path if hasattr(path, "write") else str(path)
    with av.open(file, "w", format=container, options=options) as out:
        if video:
            pictures = out.add_stream("mpeg4", rate=10, width=64, height=48)
        how = {"rate": rate, "layout": layout or "mono", "options": encoder or {}}
        streams = [out.add_stream(codec or usual, bit_rate=128_000, **how) for _ in tracks]
        for number in range(round(video * 10)):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number % 256, np.uint8))
            out.mux(pictures.encode(picture))
        if video:
            out.mux(pictures.encode(None))
        for stream, samples in zip(streams, tracks, strict=True):
            for frame in frames_for(stream, np.asarray(samples, np.float32), rate):
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return path


def frames_for(stream, samples, rate):
    """Frames of the size and type that an encoder takes."""
    layout = stream.codec_context.layout
    kind = stream.codec_context.codec.audio_formats[0]
    resampler = av.AudioResampler(kind, layout, rate)
    fifo = av.AudioFifo()
    # PyAV miscounts the planes of more than seven channels
    packed = np.ascontiguousarray(samples.reshape(1, -1))
    frame = av.AudioFrame.from_ndarray(packed, "flt", layout)
    frame.sample_rate, frame.pts = rate, 0
    for part in resampler.resample(frame) + resampler.resample(None):
        fifo.write(part)
    written = 0
    while part := fifo.read(stream.codec_context.frame_size or 1024, partial=True):
        part.pts, part.time_base = written, Fraction(1, rate)
        written += part.samples
        yield part


class Pipe(io.RawIOBase):
    """What is written to it, in order: a writer cannot go back, as in a pipe."""

    def __init__(self, name):
        self.name, self.data = name, b""

    def writable(self):
        return True

    def seekable(self):
        return False

    def write(self, data):
        self.data += bytes(data)
        return len(data)


def load(source, *args, **kwargs):
    samples = load_audio(source, *args, **kwargs)
    assert isinstance(samples, mx.array)
    assert samples.dtype == mx.float32
    assert samples.ndim == 1
    return np.array(samples)


def write(path, data):
    path.write_bytes(data)
    return path


def is_sine(samples, seconds=1.0, hertz=440.0, amplitude=0.5, tolerance=2e-3, slack=0.0):
    """Length in samples, and frequency, amplitude and phase away from the ends."""
    assert len(samples) == pytest.approx(seconds * SAMPLING_RATE, abs=1 + slack * SAMPLING_RATE)
    expected = sine(SAMPLING_RATE, seconds, hertz, amplitude)
    middle = slice(int(0.2 * SAMPLING_RATE), int((seconds - 0.2) * SAMPLING_RATE))
    np.testing.assert_allclose(samples[middle], expected[middle], atol=tolerance)
