"""`python -m mlx_speech.transcribe --live`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from commands import Caller, Terminal, environment, one_line, run, shell
from conftest import DATA, ROOT

from mlx_speech import load_audio
from mlx_speech.cli.live import Interrupt
from mlx_speech.cli.live_view import cut_to
from mlx_speech.cli.transcribe import main

DIGITS = "two zero five zero two nine one and set a timer for eleven seconds\n"

#: instead of the real one: a microphone that a file of 16-bit samples at 48 kHz comes from, and
#: then silence
SOUNDDEVICE = """
import os, threading, time
import numpy as np

class PortAudioError(Exception):
    pass

DEVICES = [
    {"name": "loudspeaker", "max_input_channels": 0, "default_samplerate": 44100.0},
    {"name": "a microphone", "max_input_channels": 1, "default_samplerate": 48000.0},
]

def query_devices(device=None, kind=None):
    if kind is None:
        return DEVICES
    if device not in (None, 1) and str(device) not in "a microphone":
        raise ValueError(f"No input device matching {device!r}")
    return DEVICES[1]

class Status:
    input_overflow = False

class InputStream:
    def __init__(self, samplerate, blocksize, device, channels, dtype, callback):
        self.size, self.callback, self.open = blocksize, callback, True
        self.samples = np.fromfile(os.environ["SPOKEN"], "<i2").astype(np.float32) / 32768
        self.thread = threading.Thread(target=self.play)

    def __enter__(self):
        self.thread.start()
        return self

    @property
    def active(self):
        return self.open

    def __exit__(self, *error):
        self.open = False
        self.thread.join()

    def play(self):
        start = 0
        while self.open:
            block = self.samples[start : start + self.size]
            block = np.pad(block, (0, self.size - len(block)))
            self.callback(block[:, None], self.size, None, Status)
            start += self.size
            time.sleep(0.02)
"""


@pytest.fixture
def cli(monkeypatch, capsys) -> Caller:
    return Caller(main, monkeypatch, capsys)


@pytest.fixture(scope="module")
def spoken() -> bytes:
    """A sentence as samples of 16 bits at 16 kHz."""
    return as_pcm(16000)


def as_pcm(rate: int) -> bytes:
    samples = np.array(load_audio(DATA / "audio" / "espeak_04.flac", target_sampling_rate=rate))
    return (samples * 32767).astype("<i2").tobytes()


@pytest.fixture
def microphone(tmp_path) -> dict[str, str]:
    """The environment of a command that has one, which says the sentence."""
    (tmp_path / "sounddevice.py").write_text(SOUNDDEVICE)
    (tmp_path / "spoken.pcm").write_bytes(as_pcm(48000))
    return {"PYTHONPATH": f"{tmp_path}:{ROOT}", "SPOKEN": str(tmp_path / "spoken.pcm")}


class TestStandardInput:
    def test_a_line_for_each_segment(self, spoken):
        pause = bytes(2 * 16000)
        status, out, err = run("transcribe", "--live", "-", stdin=spoken + pause + spoken)
        assert (status, err) == (0, "")
        assert out.startswith(DIGITS)
        assert out.count("\n") == out.count("set a timer for eleven seconds\n") == 2

    def test_another_rate(self, cli):
        assert cli("--live", "--rate", 48000, "-", stdin=as_pcm(48000))[1] == DIGITS

    def test_events(self, cli, spoken):
        status, out, _ = cli("--live", "--json-events", "-", stdin=spoken)
        events = [json.loads(line) for line in out.splitlines()]
        assert status == 0
        assert (events[0]["type"], events[0]["segment"]) == ("started", 0)
        assert 0.2 < events[0]["time"] < 0.5
        committed = "".join(event["text"] for event in events if event["type"] == "committed")
        assert committed.endswith("set a timer for eleven hours")
        assert events[-1]["text"] + "\n" == DIGITS
        assert 4 < events[-1]["end"] < 5

    def test_files(self, cli, spoken, tmp_path):
        formats = "-f", "srt,json", "-o", tmp_path, "--word-timestamps"
        assert cli("--live", *formats, "-", stdin=spoken) == (0, DIGITS, "")
        assert DIGITS in (tmp_path / "stdin.srt").read_text()
        data = json.loads((tmp_path / "stdin.json").read_text())
        assert data["text"] + "\n" == DIGITS
        assert [word["word"] for word in data["segments"][0]["words"]] == DIGITS.split()
        assert data["duration"] == pytest.approx(len(spoken) / 32000, abs=1e-3)
        again = cli("--live", *formats, "-", stdin=spoken)
        one_line(again, "exists")

    def test_half_a_sample(self, cli, spoken):
        status, out, err = cli("--live", "-", stdin=spoken + b"x")
        assert (status, out) == (0, DIGITS)
        assert err.startswith("warning: standard input ends within a sample")
        assert err.count("\n") == 1

    def test_nothing(self, cli, tmp_path):
        result = cli("--live", "-", "-o", tmp_path, stdin=b"")
        one_line(result, "standard input is empty")
        assert list(tmp_path.iterdir()) == []

    def test_no_speech(self, cli, tmp_path):
        result = cli("--live", "-", "-f", "json", "-o", tmp_path, stdin=bytes(64000))
        assert result == (0, "", "warning: no text: it is silent\n")
        written = json.loads((tmp_path / "stdin.json").read_text())
        assert written["remarks"] == ["no text: it is silent"]
        loudest = np.full(32000, -(1 << 15), "<i2")
        loudest[::2] = 0
        status, out, err = cli("--live", "-", stdin=loudest.tobytes())
        reason = "no speech was detected in it (its peak is 0 dBFS)"
        assert (status, out, err) == (0, "", f"warning: no text: {reason}\n")

    @pytest.mark.parametrize("ending", ["wav", "flac", "mp4"])
    def test_a_file(self, cli, tmp_path, ending):
        if ending == "mp4":
            data = b"\0\0\0\x20ftypM4A "
        else:
            soundfile.write(tmp_path / f"a.{ending}", np.zeros(100), 16000)
            data = (tmp_path / f"a.{ending}").read_bytes()
        result = cli("--live", "-", stdin=data)
        one_line(result, "standard input is a", ending.upper(), "no raw samples: leave --live")

    def test_reader_that_goes_away(self, spoken, tmp_path):
        (tmp_path / "two.pcm").write_bytes(spoken + bytes(32000) + spoken)
        command = f"CLI --live -f txt -o {tmp_path} - <{tmp_path}/two.pcm | head -c 3"
        assert shell(command, "transcribe") == (0, "two", "")
        assert (tmp_path / "stdin.txt").read_text().startswith(DIGITS)

    def test_ctrl_c_finishes_the_sentence(self, spoken, tmp_path):
        arguments = "--live", "--json-events", "-f", "txt", "-o", str(tmp_path), "-"
        process = subprocess.Popen(
            [sys.executable, "-m", "mlx_speech.transcribe", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        with process:
            process.stdin.write(spoken)
            process.stdin.flush()
            last = b""
            while b"eleven" not in last:
                last = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
            assert process.wait() == 0
        assert json.loads(rest.splitlines()[-1])["type"] == "corrected"
        assert "set a timer for eleven" in (tmp_path / "stdin.txt").read_text()


def test_a_second_ctrl_c_ends_the_program():
    with Interrupt.handled() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with Interrupt.handled() as interrupt, interrupt.ends_waiting():
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it still waits")
    assert interrupt.asked
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class TestMicrophone:
    def test_in_a_terminal(self, microphone, tmp_path):
        arguments = "--live", "-f", "txt", "-o", tmp_path / "texts", "--device", "micro"
        with Terminal("transcribe", *arguments, **microphone) as terminal:
            terminal.expect("speak; Ctrl-C ends it", "\r\x1b[Ktwo\x1b[2m zero")
            terminal.expect("\r\x1b[K" + DIGITS.strip() + "\r\n")
            terminal.type("\x03")
            assert terminal.wait() == 0
        assert (tmp_path / "texts" / "microphone.txt").read_text() == DIGITS

    def test_in_a_pipe(self, microphone):
        with Terminal("transcribe", "--live", stdout=subprocess.PIPE, **microphone) as terminal:
            assert terminal.process.stdout.readline().decode() == DIGITS
            terminal.type("\x03")
            assert terminal.wait() == 0

    def test_devices(self, microphone):
        assert run("transcribe", "--list-devices", **microphone) == (0, "1\ta microphone\n", "")
        one_line(run("transcribe", "--live", "--device", "other", **microphone), "'other'", "list")

    def test_without_sounddevice(self, tmp_path):
        (tmp_path / "sounddevice.py").write_text("raise ImportError")
        environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
        for argument in ("--live", "--list-devices"):
            result = run("transcribe", argument, **environment)
            one_line(result, "pip install 'mlx-speech[mic]'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--live", "talk.wav"), "--live takes the microphone, or raw samples"),
        (("--live", "-", "-"), "--live takes the microphone"),
        (("--live", "-", "--device", "1"), "--device is a microphone, and - is standard input"),
        (("--live", "--rate", 16000), "--rate is for samples on standard input; add -"),
        (("--live", "-", "--rate", 5), "--rate must be a number of hertz, 1000 to 10000000"),
        (("--live", "-", "--rate", "fast"), "invalid int value: 'fast'"),
        (("--live", "-", "--speakers"), "--live: --speakers is for recordings that are whole"),
        (("--live", "-", "--stream"), "--live: --stream is for recordings that are whole"),
        (("--live", "-", "--plot", "a.png"), "--live: --plot is for"),
        (("--live", "-", "--channel", 1), "--live: --channel is for"),
        (("--live", "-", "--batch-size", 1), "--live: --batch-size is for"),
        (("--live", "-", "--min-silence", 0), "--min-silence is 0.0, but must be"),
        (("--live", "-", "--ctc-only", "--prompt", "x"), "--prompt is for the decoder"),
        (("talk.wav", "--json-events"), "--json-events is for --live"),
        (("talk.wav", "--rate", 16000), "--rate is for --live"),
        (("talk.wav", "--device", 1), "--device is for --live"),
    ],
)
def test_usage_errors(cli, arguments, message):
    status, out, err = cli(*arguments, "--model", "./nowhere")
    assert (status, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("certain", "uncertain", "width", "shown"),
    [
        ("one two", " three", 20, ("one two", " three")),
        ("one two", " three", 13, ("one two", " three")),
        ("one two", " three", 12, ("…e two", " three")),
        ("one two", " three", 5, ("…", "hree")),
        ("", "three", 5, ("", "three")),
        ("日本", "語", 6, ("日本", "語")),
        ("日本", "語", 5, ("…本", "語")),
        ("a\x1b[31mb", "", 20, ("a [31mb", "")),
    ],
)
def test_a_line_is_cut_to_the_terminal(certain, uncertain, width, shown):
    assert cut_to(certain, uncertain, width) == shown
