"""Every way in gives the same samples, and what is no recording gives an error that says so."""

import http.server
import io
import os
import re
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile
import soxr
from conftest import DATA
from media import Pipe, encoded, give_stdin, make, refused, sine

from mlx_speech.audio import SAMPLING_RATE, load_audio

RECORDINGS = DATA / "audio"


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


def test_pyav_does_not_weigh_channels_its_own_way(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, (10_000, 6)).astype(np.float32)
    soundfile.write(tmp_path / "six.wav", samples, 22050, subtype="FLOAT")
    make(tmp_path / "six.mka", samples, rate=22050, codec="pcm_f32le", layout="5.1")
    np.testing.assert_allclose(load(tmp_path / "six.mka"), load(tmp_path / "six.wav"), atol=1e-6)


def test_the_same_speech_in_stereo_at_44100():
    mono = load(RECORDINGS / "flite_08.flac")
    stereo = load(RECORDINGS / "stereo_44k.wav")
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


@pytest.mark.parametrize("kind", ["m4a", "mov", "webm", "mka", "aac", "opus", "oga", "wma"])
def test_formats_of_pyav(tmp_path, kind):
    rate = 48000 if kind in ("webm", "opus") else 44100
    samples = load(make(tmp_path / f"sine.{kind}", sine(rate, seconds=3), rate=rate))
    if kind in ("aac", "wma"):  # their padding at the start is not stated: the phase is lost
        assert len(samples) == pytest.approx(3 * SAMPLING_RATE, rel=0.05)
        spectrum = np.abs(np.fft.rfft(samples[8000:24000] * np.hanning(16000))) / 4000
        assert spectrum.argmax() == 440
        assert spectrum.max() == pytest.approx(0.5, rel=0.05)
    else:
        is_sine(samples, seconds=3, tolerance=0.05, slack=0.05)


def test_the_first_audio_track_of_a_video(tmp_path):
    both = (sine(48000, 2, hertz) for hertz in (440, 1000))
    make(tmp_path / "video.mp4", *both, rate=48000, video=2.0)
    is_sine(load(tmp_path / "video.mp4"), seconds=2, tolerance=0.1, slack=0.05)


@pytest.mark.parametrize("name", ["talk 10:30.m4a", "-i.m4a", "http:x.m4a", "été 50%d.m4a"])
def test_names_that_ffmpeg_would_misread(tmp_path, monkeypatch, name):
    make(tmp_path / "plain.m4a", sine()).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    is_sine(load(name), tolerance=0.05, slack=0.1)


def test_mp3_that_does_not_state_its_length_is_read_to_its_end(tmp_path):
    # A variable bit rate that starts high: soundfile stops at a fraction of it.
    samples = sine(16000, 20) * np.concatenate([np.ones(16000), np.zeros(304000)])
    samples[-32000:] = sine(16000, 20)[-32000:]
    variable = {"flags": "+qscale", "global_quality": str(4 * 118)}
    path = make(tmp_path / "out.mp3", samples, encoder=variable, write_xing="0")
    assert soundfile.info(path).duration < 19 or soundfile.info(path).duration > 21
    result = load(path)
    assert len(result) == pytest.approx(320_000, abs=3000)
    assert np.sqrt(np.mean(result[-24000:-8000] ** 2)) == pytest.approx(0.5 / 2**0.5, rel=0.02)


def test_joined_mp3_files_are_read_to_the_end_of_the_last(tmp_path):
    data = encoded(sine(seconds=3), format="MP3")
    assert len(load(write(tmp_path / "two.mp3", data + data))) == pytest.approx(96000, abs=4000)
    junk = b"ID3\3\0\0\0\0\0\0" + b"TAG" + bytes(125)
    for between in (data[:-50], data + junk, data[:-50] + junk):
        path = write(tmp_path / "joined.mp3", between + data)
        assert len(load(path)) == pytest.approx(96000, abs=4000)


def test_mp3_with_tags(tmp_path):
    data = encoded(sine(seconds=3), format="MP3")
    tagged = b"ID3\3\0\0\0\0\x4e\x10" + bytes(10000) + data + b"TAG" + bytes(125)
    is_sine(load(write(tmp_path / "tagged.mp3", tagged)), seconds=3, tolerance=0.02)


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


@pytest.mark.parametrize(
    "rate", [0, -16000, 16, float("nan"), float("inf"), "16000", True, 1e12, 10**400]
)
def test_rates_that_are_none(rate):
    assert re.search("^sampling_rate must be a number of hertz", refused(sine(), rate))
    message = refused(sine(), 16000, target_sampling_rate=rate)
    assert re.search("^target_sampling_rate must be", message)
    assert message.endswith(f"but is {rate!r}")


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
    is_sine(load(write(tmp_path / "tagged.ogg", data + bytes(70_000))), tolerance=0.02)


def test_wav_over_4_gib(tmp_path):
    path = write(tmp_path / "huge.wav", encoded(sine(), format="WAV"))
    os.truncate(path, (1 << 32) + 100)  # sparse: it takes no room
    assert re.search(r"huge\.wav is a WAV file over 4 GiB", refused(path))


@pytest.mark.parametrize("lost", [1, 1000])
def test_wav_that_lacks_its_last_bytes(tmp_path, lost):
    path = write(tmp_path / "part.wav", encoded(sine(), format="WAV")[:-lost])
    assert re.search("is cut short, its header promises more", refused(path))


def test_wav_without_a_data_chunk(tmp_path):
    path = write(tmp_path / "part.wav", encoded(sine(), format="WAV")[:40])
    assert re.search(r"part\.wav is not audio, or .*damaged", refused(path))


def test_wav_of_an_unknown_encoding(tmp_path):
    data = bytearray(encoded(sine(), format="WAV"))
    data[20:22] = b"\x34\x12"  # the format tag: no decoder has it
    path = write(tmp_path / "tag.wav", data)
    assert re.search(r"tag\.wav is not audio, or .*no decoder for its audio", refused(path))


def test_flac_with_a_damaged_frame(tmp_path):
    data = bytearray(encoded(sine(seconds=8), format="FLAC"))
    data[len(data) // 2] ^= 0xFF
    assert re.search("damaged or cut short", refused(write(tmp_path / "bad.flac", data)))


@pytest.mark.parametrize("kind", ["m4a", "webm", "mka", "aac"])
def test_files_of_pyav_cut_in_the_middle(tmp_path, kind):
    fast = {"movflags": "+faststart"} if kind == "m4a" else {}
    whole = make(tmp_path / f"whole.{kind}", sine(48000, seconds=9), rate=48000, **fast)
    part = write(tmp_path / f"part.{kind}", whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    message = refused(part)
    assert re.search(rf"part\.{kind} is damaged or cut short \(.*\): get a whole copy", message)
    assert "@ 0x" not in message


@pytest.mark.parametrize("name", ["notes.txt", "notes.m4a", "notes"])
def test_text_is_not_audio(tmp_path, name):
    message = refused(write(tmp_path / name, b"Dear Sir or Madam,\n" * 20))
    expected = f"{name} is not audio, or in a format that neither soundfile nor FFmpeg reads"
    assert expected in message
    assert re.search(r"\((Invalid data|moov atom not found)", message)


def test_a_picture_and_a_silent_video(tmp_path):
    video = make(tmp_path / "video.mp4", video=1.0)
    assert re.search(r"video\.mp4 is not audio, or .* no audio track", refused(video))
    picture = write(tmp_path / "picture.png", b"\x89PNG\r\n\x1a\n" + bytes(99))
    assert re.search(r"picture\.png is not audio, or in a format", refused(picture))


def test_a_playlist_does_not_reach_the_network(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        text = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{address}\n#EXT-X-ENDLIST\n"
        path = write(tmp_path / "list.m3u8", text.encode())
        assert re.search(r"list\.m3u8 is not audio", refused(path))
        with pytest.raises(BlockingIOError):
            server.accept()


# Addresses


@pytest.fixture
def server(tmp_path):
    """The address of `tmp_path`; /cut/X gives half of X, /slow/X nothing for a while."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path)

        def do_GET(self):
            kind, _, name = self.path[1:].partition("/")
            if kind == "slow":
                time.sleep(5)
                return None
            if kind != "cut":
                return super().do_GET()
            data = Path(self.translate_path(name)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "m4a"])
def test_addresses(tmp_path, server, kind):
    make(tmp_path / f"talk 1.{kind}", sine(seconds=8))
    samples = load(f"{server}/talk%201.{kind}?key=1")
    assert abs(samples.size / SAMPLING_RATE - 8) < 0.1
    assert 0.3 < np.sqrt((samples**2).mean()) < 0.4
    assert "damaged" in refused(f"{server}/cut/talk%201.{kind}")


def test_addresses_where_nothing_is(tmp_path, server, monkeypatch):
    write(tmp_path / "notes.wav", b"no audio" * 99)
    assert "notes.wav is not audio" in refused(f"{server}/notes.wav")
    assert "none.wav cannot be fetched (Server returned 404" in refused(f"{server}/none.wav")
    assert "cannot be fetched (Connection to" in refused("http://127.0.0.1:1/a.wav")
    monkeypatch.setattr("mlx_speech.audio.av_reader._FETCH_SECONDS", 1)
    assert "cannot be fetched" in refused(f"{server}/slow/notes.wav")


def test_a_playlist_from_afar_does_not_reach_files(tmp_path, server):
    make(tmp_path / "a.ts", sine())
    head, tail = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n", "\n#EXT-X-ENDLIST\n"
    write(tmp_path / "far.m3u8", f"{head}{server}/a.ts{tail}".encode())
    assert load(f"{server}/far.m3u8").size == pytest.approx(SAMPLING_RATE, rel=0.1)
    write(tmp_path / "near.m3u8", f"{head}file://{tmp_path}/a.ts{tail}".encode())
    assert "near.m3u8 is not audio" in refused(f"{server}/near.m3u8")


def test_other_addresses():
    message = refused("s3://a/b.flac")
    assert message == "s3://a/b.flac is an address, not a file: download it first"


# Nothing else is started, opened or written


def test_no_other_program_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    is_sine(load(make(tmp_path / "talk.m4a", sine())), tolerance=0.05, slack=0.1)
    refused(write(tmp_path / "talk.webm", b"\x1aE\xdf\xa3" + bytes(100)))


@pytest.mark.parametrize("name", ["talk.wav", "talk.m4a", "talk.m3u8", "talk.ffconcat", "talk.txt"])
def test_a_file_opens_no_other(tmp_path, name):
    """Playlists by whatever name, with names of whatever kind."""
    make(tmp_path / "secret.ts", sine())
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n"
    for secret in ("secret.ts", f"{tmp_path}/secret.ts", f"file://{tmp_path}/secret.ts"):
        playlist = f"{head}{secret}\n#EXT-X-ENDLIST\n"
        concat = f"ffconcat version 1.0\nfile {secret}\n"
        for text in (playlist, concat):
            assert f"{name} is not audio" in refused(write(tmp_path / name, text.encode()))


def test_nothing_is_written_to_standard_error(tmp_path):
    data = encoded(sine(seconds=3), format="MP3")
    write(tmp_path / "joined.mp3", data + data)
    write(tmp_path / "bad.aac", make(tmp_path / "a.aac", sine()).read_bytes()[:-50])
    write(tmp_path / "bad.mkv", make(tmp_path / "a.mkv", sine()).read_bytes()[:-50])
    code = (
        "import sys\n"
        "from mlx_speech import AudioError, load_audio\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(load_audio(name).size > 0)\n"
        "    except AudioError: print('refused')"
    )
    names = [tmp_path / name for name in ("joined.mp3", "bad.aac", "bad.mkv")]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\nrefused\nrefused\n", "")


def test_another_thread(tmp_path):
    path, found = make(tmp_path / "talk.m4a", sine()), []
    thread = threading.Thread(target=lambda: found.append(load(path)))
    thread.start()
    thread.join()
    is_sine(found[0], tolerance=0.05, slack=0.1)


def test_the_rate_may_change_on_the_way(tmp_path):
    """As in a broadcast; PyAV's stream states the first one."""
    parts = [make(tmp_path / f"{rate}.ts", sine(rate, 3), rate=rate) for rate in (48000, 32000)]
    path = write(tmp_path / "both.ts", b"".join(part.read_bytes() for part in parts))
    samples = load(path)
    assert len(samples) == pytest.approx(6 * SAMPLING_RATE, rel=0.02)
    for start in (8000, 64000):
        spectrum = np.abs(np.fft.rfft(samples[start : start + 16000] * np.hanning(16000)))
        assert spectrum.argmax() == 440


def test_the_decoders_load_when_they_are_used():
    code = "import sys, mlx_speech.audio; print({'av', 'soundfile', 'soxr'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
