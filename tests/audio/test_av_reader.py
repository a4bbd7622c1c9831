"""What PyAV reads: video, MP3, addresses; and what it must not open, start or write."""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from media import encoded, is_sine, load, make, refused, sine, write

from mlx_speech.audio import SAMPLING_RATE


def test_pyav_does_not_weigh_channels_its_own_way(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, (10_000, 6)).astype(np.float32)
    soundfile.write(tmp_path / "six.wav", samples, 22050, subtype="FLOAT")
    make(tmp_path / "six.mka", samples, rate=22050, codec="pcm_f32le", layout="5.1")
    np.testing.assert_allclose(load(tmp_path / "six.mka"), load(tmp_path / "six.wav"), atol=1e-6)


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


def test_wav_of_an_unknown_encoding(tmp_path):
    data = bytearray(encoded(sine(), format="WAV"))
    data[20:22] = b"\x34\x12"  # the format tag: no decoder has it
    path = write(tmp_path / "tag.wav", data)
    assert re.search(r"tag\.wav is not audio, or .*no decoder for its audio", refused(path))


@pytest.mark.parametrize("kind", ["m4a", "webm", "mka", "aac"])
def test_files_of_pyav_cut_in_the_middle(tmp_path, kind):
    fast = {"movflags": "+faststart"} if kind == "m4a" else {}
    whole = make(tmp_path / f"whole.{kind}", sine(48000, seconds=9), rate=48000, **fast)
    part = write(tmp_path / f"part.{kind}", whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    message = refused(part)
    assert re.search(rf"part\.{kind} is damaged or cut short \(.*\): get a whole copy", message)
    assert "@ 0x" not in message


def test_a_picture_and_a_silent_video(tmp_path):
    video = make(tmp_path / "video.mp4", video=1.0)
    assert re.search(r"video\.mp4 is not audio, or .* no audio track", refused(video))
    picture = write(tmp_path / "picture.png", b"\x89PNG\r\n\x1a\n" + bytes(99))
    assert re.search(r"picture\.png is not audio, but a picture", refused(picture))


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
