"""Every way in gives the same samples, and what is no recording gives an error that says so."""

import io
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile
import soxr
from conftest import DATA
from media import Pipe, encoded, give_stdin, is_sine, load, make, refused, sine, write

from mlx_speech.audio import SAMPLING_RATE

RECORDINGS = DATA / "audio"


# Rates and channels


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_a_sine_survives_resampling(tmp_path, rate):
    path = tmp_path / "sine.wav"
    soundfile.write(path, sine(rate, seconds=5), rate, subtype="FLOAT")  # several blocks
    is_sine(load(path), seconds=5, tolerance=2e-5)
    is_sine(load(sine(rate), sampling_rate=rate), tolerance=2e-5)


def test_resampling_in_blocks_is_resampling_at_once(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 200_000).astype(np.float32)
    soundfile.write(tmp_path / "noise.wav", noise, 44100, subtype="FLOAT")
    expected = soxr.resample(noise, 44100, SAMPLING_RATE, quality="HQ")
    np.testing.assert_allclose(load(tmp_path / "noise.wav"), expected, atol=1e-6)


def test_what_is_above_half_the_rate_is_removed():
    assert np.abs(load(sine(48000, hertz=12000), 48000)[1600:-1600]).max() < 1e-4


def test_at_the_rate_of_the_model_samples_are_unchanged(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, 150_000).astype(np.float32)
    soundfile.write(tmp_path / "noise.wav", samples, SAMPLING_RATE, subtype="FLOAT")
    np.testing.assert_array_equal(load(tmp_path / "noise.wav"), samples)
    np.testing.assert_array_equal(load(samples, SAMPLING_RATE), samples)


def test_another_target_rate(tmp_path):
    soundfile.write(tmp_path / "sine.wav", sine(16000), 16000, subtype="FLOAT")
    samples = load(tmp_path / "sine.wav", target_sampling_rate=8000)
    assert len(samples) == 8000
    np.testing.assert_allclose(samples[800:-800], sine(8000)[800:-800], atol=2e-5)


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_channels_are_averaged(tmp_path, channels):
    samples = np.random.default_rng(0).uniform(-1, 1, (70_000, channels)).astype(np.float32)
    path = tmp_path / "many.wav"
    soundfile.write(path, samples, SAMPLING_RATE, subtype="FLOAT")
    expected = samples.mean(axis=1)
    np.testing.assert_allclose(load(path), expected, atol=1e-6)
    np.testing.assert_allclose(load(samples.T, SAMPLING_RATE), expected, atol=1e-6)
    np.testing.assert_allclose(load(mx.array(samples.T), SAMPLING_RATE), expected, atol=1e-6)


def test_the_same_speech_in_stereo_at_44100():
    mono = load(RECORDINGS / "flite_08.flac")
    stereo = load(RECORDINGS / "stereo_44k.flac")
    assert abs(len(mono) - len(stereo)) <= 2
    n = min(len(mono), len(stereo))
    assert np.corrcoef(mono[:n], stereo[:n])[0, 1] > 0.99


# Formats


@pytest.mark.parametrize(
    ("subtype", "tolerance"),
    [
        ("PCM_U8", 1 / 128),
        ("PCM_16", 1 / 32768),
        ("PCM_24", 1 / 2**22),
        ("PCM_32", 1e-7),
        ("FLOAT", 1e-7),
        ("DOUBLE", 1e-7),
    ],
)
def test_every_sample_type_of_wav(tmp_path, subtype, tolerance):
    soundfile.write(tmp_path / "sine.wav", sine(), SAMPLING_RATE, subtype=subtype)
    np.testing.assert_allclose(load(tmp_path / "sine.wav"), sine(), atol=tolerance)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_flac_equals_wav(tmp_path, subtype):
    for kind in ("flac", "wav"):
        samples = np.rint(sine(44100, 4) * 2**31).astype(np.int32)
        soundfile.write(tmp_path / f"sine.{kind}", samples, 44100, subtype=subtype)
    np.testing.assert_array_equal(load(tmp_path / "sine.flac"), load(tmp_path / "sine.wav"))
    is_sine(load(tmp_path / "sine.flac"), seconds=4)


@pytest.mark.parametrize("kind", ["ogg", "mp3"])
def test_lossy_formats_of_soundfile(tmp_path, kind):
    soundfile.write(tmp_path / f"sine.{kind}", sine(44100, seconds=3), 44100)
    is_sine(load(tmp_path / f"sine.{kind}"), seconds=3, tolerance=0.02)


def test_the_content_decides_not_the_extension(tmp_path):
    data = encoded(sine(), format="WAV")
    for name in ("sine.raw", "sine.mp3", "sine", "sine.txt"):
        is_sine(load(write(tmp_path / name, data)))


def test_flac_from_a_pipe(tmp_path):
    data = make(Pipe("pipe.flac"), sine(seconds=9)).data
    assert soundfile.info(io.BytesIO(data)).frames == 2**63 - 1
    is_sine(load(write(tmp_path / "sine.flac", data)), seconds=9)
    part = write(tmp_path / "part.flac", data[: len(data) // 2])
    assert re.search(r"part\.flac is damaged or cut short", refused(part))


def test_wav_from_ffmpegs_pipe(tmp_path):
    data = make(Pipe("pipe.wav"), sine()).data
    assert data[4:8] == b"\xff" * 4
    is_sine(load(write(tmp_path / "pipe.wav", data)))


@pytest.mark.parametrize(
    ("riff_bytes", "data_bytes"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x7FFFF024, 0x7FFFF000),
        (0x80000024, 0x80000000),
        (0, 0),
        (36, 0),
        (0xFFFFFFFF, 0),
    ],
)
def test_wav_headers_of_writers_that_do_not_know_the_length(tmp_path, riff_bytes, data_bytes):
    data = bytearray(encoded(sine(), format="WAV", subtype="PCM_16"))
    assert data[36:40] == b"data"
    data[4:8] = struct.pack("<I", riff_bytes)
    data[40:44] = struct.pack("<I", data_bytes)
    is_sine(load(write(tmp_path / "pipe.wav", data)))


# Standard input and pipes


def test_standard_input(monkeypatch):
    give_stdin(monkeypatch, encoded(sine(44100), 44100, format="FLAC"))
    is_sine(load("-"))


def test_standard_input_through_pyav(tmp_path, monkeypatch):
    make(tmp_path / "sine.m4a", sine())
    give_stdin(monkeypatch, (tmp_path / "sine.m4a").read_bytes())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sorted(tmp_path.iterdir())
    is_sine(load("-"), tolerance=0.05, slack=0.1)
    assert sorted(tmp_path.iterdir()) == before  # the temporary file is gone


def test_standard_input_errors(monkeypatch):
    give_stdin(monkeypatch, b"")
    assert re.search("standard input is empty", refused("-"))
    give_stdin(monkeypatch, b"hello, this is text\n" * 9)
    assert re.search("standard input is not", refused("-"))
    give_stdin(monkeypatch, encoded(sine(), format="WAV")[:9000])
    assert re.search("standard input is cut short", refused("-"))


def test_a_path_object_named_dash_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "-", encoded(sine(), format="WAV"))
    give_stdin(monkeypatch, b"")
    is_sine(load(Path("./-")))


def test_a_path_that_is_a_pipe():
    reader, writer = os.pipe()
    try:
        os.write(writer, encoded(sine(seconds=1), format="FLAC", subtype="PCM_16")[:60000])
        os.close(writer)
        is_sine(load(f"/dev/fd/{reader}"))
    finally:
        os.close(reader)


# Arrays


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, ">f4", mx.float16, mx.float32, mx.bfloat16]
)
def test_float_arrays(dtype):
    samples = np.linspace(-1, 1, 257)  # exact in 8 bits of mantissa
    array = (
        mx.array(samples).astype(dtype) if isinstance(dtype, mx.Dtype) else samples.astype(dtype)
    )
    np.testing.assert_array_equal(load(array, SAMPLING_RATE), samples)


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("int8", [-128, 0, 64], [-1, 0, 0.5]),
        ("uint8", [0, 128, 192], [-1, 0, 0.5]),
        ("int16", [-32768, 0, 16384], [-1, 0, 0.5]),
        ("int32", [-(2**31), 0, 2**30], [-1, 0, 0.5]),
    ],
)
def test_integer_arrays_have_the_full_scale_of_their_type(dtype, values, expected):
    np.testing.assert_array_equal(load(np.array(values, dtype), SAMPLING_RATE), expected)
    array = mx.array(values, dtype=getattr(mx, dtype))
    np.testing.assert_array_equal(load(array, SAMPLING_RATE), expected)


def test_arrays_are_left_alone_and_may_be_views():
    both = np.stack([sine(), -sine()]).astype(np.float32)
    copy = both.copy()
    np.testing.assert_array_equal(load(both[0, ::2], SAMPLING_RATE), both[0, ::2])
    np.testing.assert_array_equal(load(both[:1], np.int64(SAMPLING_RATE)), both[0])
    np.testing.assert_array_equal(both, copy)


def test_a_hot_mix_is_accepted():
    samples = sine(amplitude=1.7).astype(np.float32)
    np.testing.assert_array_equal(load(samples, SAMPLING_RATE), samples)
    square = np.sign(sine()).astype(np.float32)  # whole numbers, but none beyond full scale
    np.testing.assert_array_equal(load(square, SAMPLING_RATE), square)


def test_an_array_needs_its_rate_and_a_file_has_one():
    assert re.search("pass sampling_rate, in hertz", refused(sine()))
    path = RECORDINGS / "flite_08.flac"
    assert re.search("flite_08.flac states its own", refused(path, 16000))
    assert re.search("states its own", refused("-", 16000))
    with open(path, "rb", buffering=0) as file:
        assert re.search("the file states its own", refused(file, 16000))


@pytest.mark.parametrize(
    "rate", [0, -16000, 16, float("nan"), float("inf"), "16000", True, 1e12, 10**400]
)
def test_rates_that_are_none(rate):
    assert re.search("^sampling_rate must be a number of hertz", refused(sine(), rate))
    message = refused(sine(), 16000, target_sampling_rate=rate)
    assert re.search("^target_sampling_rate must be", message)
    assert "but is" in message
    assert message.endswith(repr(rate)[-40:])  # of a long one, the middle is left out


@pytest.mark.parametrize(
    "shape", [(), (2, 1, 100), (100, 2), (100, 100), (65, 1000), (1000, 1), (2, 2), (0, 100)]
)
def test_arrays_of_the_wrong_shape(shape):
    assert f"shape {shape}" in refused(np.zeros(shape, np.float32), 16000)
    assert f"shape {shape}" in refused(mx.zeros(shape), 16000)


@pytest.mark.parametrize("dtype", ["bool", "complex64", "int64", "uint16", "uint32", "object"])
def test_arrays_of_the_wrong_type(dtype):
    assert f"of type {dtype}" in refused(np.zeros(100, dtype), 16000)
    if dtype not in ("object",):
        name = "bool_" if dtype == "bool" else dtype
        assert f"of type {dtype}" in refused(mx.zeros(100, dtype=getattr(mx, name)), 16000)


@pytest.mark.parametrize("peak", [3, 300, 20000])
def test_integers_passed_as_floats(tmp_path, peak):
    samples = np.rint(sine(amplitude=peak)).astype(np.float32)
    for rate in (16000, 44100):
        assert re.search("look like integers; divide 16-bit ones by 32768", refused(samples, rate))
    soundfile.write(tmp_path / "ints.wav", samples, 16000, subtype="FLOAT")
    assert re.search(r"ints\.wav has float samples up to", refused(tmp_path / "ints.wav"))


def test_averaged_integers_passed_as_floats():
    assert re.search("look like integers", refused(sine(amplitude=5000.5), 16000))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite(tmp_path, bad):
    samples = sine(seconds=6).astype(np.float32)
    samples[-5] = bad
    assert re.search("the array has NaN or infinite", refused(samples, 16000))
    assert re.search("the array has NaN or infinite", refused(mx.array(samples), 44100))
    soundfile.write(tmp_path / "bad.wav", samples, 16000, subtype="FLOAT")
    assert re.search(r"bad\.wav has NaN or infinite", refused(tmp_path / "bad.wav"))


def test_doubles_that_do_not_fit_a_float():
    assert re.search("NaN or infinite", refused(np.array([0.0, 1e300]), 16000))


def test_no_samples(tmp_path):
    assert re.search("the array holds no samples", refused(np.zeros(0, np.float32), 16000))
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    assert re.search(r"none\.wav holds no samples", refused(tmp_path / "none.wav"))
    assert re.search("only 1 samples, too few", refused(np.zeros(1, np.float32), 96000))


@pytest.mark.parametrize("source", [None, 5, [0.0, 0.5], b"bytes.wav"])
def test_sources_of_no_kind(source):
    assert f"a {type(source).__name__} was given" in refused(source, 16000)


# Files that are no recordings


def test_paths_that_lead_nowhere(tmp_path, monkeypatch):
    assert re.search(r"missing\.wav does not exist", refused(tmp_path / "missing.wav"))
    assert re.search("'' does not exist", refused(""))
    assert re.search("is a folder", refused(tmp_path))
    assert re.search("cannot be read: ", refused("nul\0.wav"))
    assert re.search("cannot be read: ", refused("x" * 5000))
    assert re.search(r"two\\nlines\.wav' does not exist", refused(tmp_path / "two\nlines.wav"))
    assert re.search(r"e\.wav is empty \(0 bytes\)", refused(write(tmp_path / "e.wav", b"")))

    def forbidden(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mlx_speech.audio.load.open", forbidden, raising=False)
    assert re.search(r"a\.wav may not be read", refused("a.wav"))


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF", "RF64"])
def test_files_cut_in_the_middle(tmp_path, kind):
    data = encoded(sine(seconds=8), format=kind)
    path = write(tmp_path / "whole", data)
    assert len(load(path)) == 8 * SAMPLING_RATE
    path = write(tmp_path / "part", data[: len(data) // 2])
    assert re.search(r"part is (damaged or )?cut short.*get a whole copy", refused(path))


def test_ogg_with_something_behind_it(tmp_path):
    data = encoded(sine(), format="OGG")
    is_sine(load(write(tmp_path / "tagged.ogg", data + bytes(70_000))), tolerance=0.02, slack=0.01)


def test_wav_over_4_gib(tmp_path):
    path = write(tmp_path / "huge.wav", encoded(sine(), format="WAV"))
    os.truncate(path, (1 << 32) + 100)  # sparse: it takes no room
    assert re.search(r"huge\.wav is a WAV file over 4 GiB", refused(path))


def test_wav_that_lacks_its_last_bytes(tmp_path):
    data = encoded(sine(), format="WAV")
    assert len(load(write(tmp_path / "whole.wav", data[:-2]))) == SAMPLING_RATE - 1
    path = write(tmp_path / "part.wav", data[:-1000])
    assert re.search("is cut short, its header promises more", refused(path))


def test_wav_without_a_data_chunk(tmp_path):
    path = write(tmp_path / "part.wav", encoded(sine(), format="WAV")[:40])
    assert re.search(r"part\.wav is not audio, or .*damaged", refused(path))


@pytest.mark.parametrize("name", ["notes.txt", "notes.m4a", "notes"])
def test_text_is_not_audio(tmp_path, name):
    message = refused(write(tmp_path / name, b"Dear Sir or Madam,\n" * 20))
    expected = f"{name} is not audio, or in a format that neither soundfile nor FFmpeg reads"
    assert expected in message
    assert re.search(r"\((Invalid data|moov atom not found)", message)


def test_the_decoders_load_when_they_are_used():
    code = "import sys, mlx_speech.audio; print({'av', 'soundfile', 'soxr'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
