"""A recording read part by part: the samples of `load_audio`, in memory that stays flat."""

import errno
import gc
import os
import resource
import sys
import tracemalloc
import types
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from conftest import DATA
from media import encoded, give_stdin, make, refused, sine

from mlx_speech.audio import SAMPLING_RATE, load_audio, open_recording
from mlx_speech.audio import recording as recording_module
from mlx_speech.errors import AudioError

RECORDINGS = DATA / "audio"


@pytest.fixture
def on_disk(monkeypatch):
    """Nothing but the shortest recording is kept in memory."""
    monkeypatch.setattr(recording_module, "_MEMORY_SAMPLES", 1000)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/dev/fd"))


def long_file(path: Path, minutes: int, rate: int = SAMPLING_RATE) -> Path:
    """Noise, a byte a sample."""
    block = np.random.default_rng(0).uniform(-0.5, 0.5, rate * 60)
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_U8") as file:
        for _ in range(minutes):
            file.write(block)
    return path


class TestSamples:
    @pytest.mark.parametrize("name", ["flite_08.flac", "stereo_44k.flac", "short.wav"])
    def test_from_disk_as_from_memory(self, monkeypatch, name):
        expected = load_audio(RECORDINGS / name)
        monkeypatch.setattr(recording_module, "_MEMORY_SAMPLES", 1000)
        with open_recording(RECORDINGS / name) as recording:
            assert mx.array_equal(recording.read(), expected)
        assert mx.array_equal(load_audio(RECORDINGS / name), expected)

    @pytest.mark.parametrize("kind", [np.array, mx.array])
    @pytest.mark.parametrize("dtype", [np.int16, np.float32])
    def test_arrays(self, on_disk, kind, dtype):
        samples = (sine(seconds=9)[None] * [[1.0], [0.5]] * 32767).astype(np.int16)
        expected = samples.mean(axis=0) / 32768
        if dtype == np.float32:
            samples = samples.astype(np.float32) / 32768
        with open_recording(kind(samples), SAMPLING_RATE) as recording:
            np.testing.assert_allclose(np.array(recording.read()), expected, atol=1e-7)

    def test_standard_input(self, on_disk, temporary, monkeypatch):
        give_stdin(monkeypatch, encoded(sine(44100, 3), 44100, format="FLAC"))
        with open_recording("-") as recording:
            assert list(temporary.iterdir()) == []  # neither a copy of the input nor a name
            assert recording.size == 3 * SAMPLING_RATE
            found = np.array(recording.read(8000, 40000))
        np.testing.assert_allclose(found, sine(seconds=3)[8000:40000], atol=1e-4)

    def test_pyav(self, on_disk, tmp_path):
        soundfile.write(tmp_path / "sine.wav", sine(44100, 3), 44100)
        make(tmp_path / "sine.mka", sine(44100, 3), rate=44100)
        with open_recording(tmp_path / "sine.mka") as recording:
            expected = load_audio(tmp_path / "sine.wav")
            assert mx.abs(recording.read() - expected).max().item() < 1e-4

    @pytest.mark.parametrize("limit", [1000, 10**9], ids=["disk", "memory"])
    def test_any_part_in_any_order(self, monkeypatch, limit):
        monkeypatch.setattr(recording_module, "_MEMORY_SAMPLES", limit)
        samples = np.random.default_rng(0).uniform(-1, 1, 150_000).astype(np.float32)
        with open_recording(samples, SAMPLING_RATE) as recording:
            for start, end in [
                *((140_000, 150_000), (0, 1), (65_530, 65_540), (0, 150_000), (149_999, 150_000)),
                *((149_000, 160_000), (150_000, 150_010), (7, 7), (9, 3), (-5, None), (0, None)),
            ]:
                part = recording.read(start, end)
                assert part.dtype == mx.float32
                np.testing.assert_array_equal(np.array(part), samples[start:end])

    def test_what_it_says_of_itself(self):
        with open_recording(sine(8000, 3), 8000, target_sampling_rate=24000) as recording:
            assert recording.sampling_rate == 24000
            assert isinstance(recording.sampling_rate, int)
            assert recording.size == 72000
            assert recording.duration == 3.0


class TestMemory:
    @pytest.mark.parametrize("by", ["file", "standard input", "header without length"])
    def test_flat_however_long(self, tmp_path, monkeypatch, by):
        """NumPy's and Python's own memory while a file is read, against a fourth of it."""
        monkeypatch.setattr(recording_module, "_MEMORY_SAMPLES", 120 * SAMPLING_RATE)
        peaks = []
        for minutes in (3, 12):
            path = long_file(tmp_path / f"{minutes}.wav", minutes)
            source = path
            if by == "standard input":
                pipe = path.open("rb")
                monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=pipe))
                source = "-"
            elif by == "header without length":
                with open(path, "r+b") as file:
                    file.seek(40)
                    file.write(bytes(4))
                    file.seek(4)
                    file.write(bytes(4))
            tracemalloc.start()
            with open_recording(source) as recording:
                assert recording.size == minutes * 60 * SAMPLING_RATE
                for start in range(0, recording.size, 30 * SAMPLING_RATE):
                    recording.read(start, start + 30 * SAMPLING_RATE)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            if source == "-":
                pipe.close()
        assert peaks[1] < peaks[0] * 1.02
        assert peaks[1] < 12e6

    def test_an_array_is_converted_in_blocks(self, on_disk):
        samples = np.zeros((2, 20_000_000), np.int8)
        tracemalloc.start()
        with open_recording(samples, SAMPLING_RATE) as recording:
            assert recording.size == 20_000_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5e6

    def test_ten_minutes_need_no_disk(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
        load_audio(long_file(tmp_path / "short.wav", 10))
        message = refused(long_file(tmp_path / "long.wav", 11))
        assert "long.wav cannot be kept in a temporary file (" in message


class TestTemporaryFile:
    def test_gone_in_the_end(self, on_disk, temporary):
        before = open_files()
        recording = open_recording(RECORDINGS / "flite_08.flac")
        assert open_files() == before + 1
        assert list(temporary.iterdir()) == []
        recording.close()
        recording.close()
        assert open_files() == before
        with pytest.raises(ValueError, match="closed"):
            recording.read(0, 10)

    def test_gone_with_the_object(self, on_disk):
        before = open_files()
        recording = open_recording(RECORDINGS / "flite_08.flac")
        assert recording.size
        del recording
        assert open_files() == before

    def test_gone_after_an_error(self, on_disk, tmp_path):
        before = open_files()
        samples = sine(seconds=9).astype(np.float32)
        samples[-1] = np.nan
        soundfile.write(tmp_path / "bad.wav", samples, SAMPLING_RATE, subtype="FLOAT")
        with pytest.raises(AudioError, match="NaN") as caught:
            open_recording(tmp_path / "bad.wav")
        assert caught.value.__traceback__  # whoever keeps the error keeps no file
        assert open_files() == before

    @pytest.mark.parametrize("room", [0, 100_000, 4 * 9 * SAMPLING_RATE - 100])
    def test_disk_full(self, on_disk, temporary, tmp_path, room):
        """A limit on the size of files stands for the disk's; the last one hits the last flush."""
        soundfile.write(tmp_path / "sine.wav", sine(seconds=9), SAMPLING_RATE)
        before = open_files()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            message = refused(tmp_path / "sine.wav")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "sine.wav cannot be kept in a temporary file (File too large): free" in message
        assert open_files() == before

    def test_disk_full_of_standard_input(self, temporary, monkeypatch):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        for data in (encoded(sine(seconds=9), format="WAV"), b"RIFF"):
            give_stdin(monkeypatch, data)
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(data) - 1, limits[1]))
            try:
                message = refused("-")
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert message.startswith("standard input cannot be kept in a temporary file (File")
            assert list(temporary.iterdir()) == []

    def test_standard_input_that_fails(self, monkeypatch):
        def read(size):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(
            sys, "stdin", types.SimpleNamespace(buffer=types.SimpleNamespace(read=read))
        )
        assert refused("-") == "standard input cannot be read: Input/output error"


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("missing.wav", {}),
        ("http://example.org/a.wav", {}),
        (RECORDINGS, {}),
        (RECORDINGS / "flite_08.flac", {"sampling_rate": 16000}),
        (RECORDINGS / "manifest.jsonl", {}),
        (np.zeros(0, np.float32), {"sampling_rate": 16000}),
        (np.zeros((100, 2)), {"sampling_rate": 16000}),
        (np.zeros(100, np.complex64), {"sampling_rate": 16000}),
        ([0.0, 0.1], {"sampling_rate": 16000}),
    ],
)
def test_errors_are_those_of_load_audio(source, arguments):
    messages = []
    for read in (load_audio, open_recording):
        with pytest.raises(AudioError) as caught:
            read(source, **arguments)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert len(messages[0].splitlines()) == 1
