"""The examples: what examples/README.md shows is what they do; the microphone, without one."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from chat_models import QWEN3
from commands import PATIENCE, environment
from conftest import DATA, ROOT, TINY

from mlx_speech import ChatSession, load

README = (ROOT / "examples" / "README.md").read_text()
SHOWN = re.findall(r"```sh\n(.*?)```\n\n```\n(.*?)```", README, re.DOTALL)
AUDIO = DATA / "audio"

#: stands in for the package: a microphone before which recordings are played, one after the other
FAKE_MICROPHONE = """
import os
import soundfile

class PortAudioError(Exception):
    pass

recordings = os.environ["RECORDINGS"].split()

def query_devices(kind):
    assert kind == "input"
    if not recordings:
        raise PortAudioError("Error querying device -1")
    return {"default_samplerate": float(soundfile.info(recordings[0]).samplerate)}

class InputStream:
    def __init__(self, rate, channels, callback):
        assert channels == 1
        path = recordings.pop(0)
        if path == "none":
            raise PortAudioError("Device unavailable")
        self.samples, recorded_at = soundfile.read(path, dtype="float32", always_2d=True)
        assert rate == recorded_at
        self.callback = callback

    def __enter__(self):
        for start in range(0, len(self.samples), 1000):
            block = self.samples[start : start + 1000].copy()
            self.callback(block, len(block), None, None)
            block[:] = 0  # the buffer is the driver's

    def __exit__(self, *error):
        pass
"""


def voice_chat(*args, stdin: str = "", **env: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "voice_chat.py", *map(str, args)],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment(**env),
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("command", "output"), SHOWN, ids=[c.split()[1] for c, _ in SHOWN])
def test_readme(command, output):
    done = subprocess.run(
        ["bash", "-ec", f'python() {{ "{sys.executable}" "$@"; }}\n{command}'],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(MLX_SPEECH_MODEL="./nowhere"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == output


def test_readme_has_every_example():
    assert README.count("```sh") == len(SHOWN)
    scripts = [path.name for path in (ROOT / "examples").glob("*.py")]
    assert len(scripts) >= 3
    for name in scripts:
        assert f"## `{name}`" in README
        assert f"python examples/{name}" in README
    for folder in (path for path in (ROOT / "examples").iterdir() if path.is_dir()):
        assert f"`{folder.name}`" in README or folder.name == "__pycache__"


@pytest.mark.parametrize(
    ("name", "args", "status", "told"),
    [
        *((name, ["--nonsense"], 2, "error: ") for name in ("chat", "demo", "stream")),
        *((name, ["nowhere", "hello"], 1, "error: there is no ") for name in ("chat", "stream")),
    ],
)
def test_failures_are_one_line(name, args, status, told):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py", *args],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert (done.returncode, done.stdout) == (status, "")
    *usage, said = done.stderr.splitlines()
    assert said.removeprefix(f"{name}.py: ").startswith(told)
    assert all(line.startswith("usage: ") for line in usage)


class TestVoiceChat:
    def test_failures_are_one_line_and_the_others_are_transcribed(self):
        status, out, err = voice_chat("nowhere.wav", AUDIO / "flite_08.flac")
        assert status == 1
        assert out == "you:   unlock the back gate\nmodel: the back gate is unlocked.\n"
        assert err == "error: nowhere.wav does not exist: check the path\n"

    def test_silence_is_told_and_no_turn(self):
        status, out, err = voice_chat(AUDIO / "silence.flac", AUDIO / "flite_08.flac")
        assert (status, err) == (0, "no speech was found\n")
        assert out == "you:   unlock the back gate\nmodel: the back gate is unlocked.\n"

    def test_text_models(self, tiny_text):
        recordings = [AUDIO / "flite_08.flac"] * 2
        status, out, err = voice_chat("--model", tiny_text, *recordings)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "not a speech model" in err

    @pytest.fixture
    def microphone(self, tmp_path) -> dict[str, str]:
        """The environment of a computer that has one."""
        (tmp_path / "sounddevice.py").write_text(FAKE_MICROPHONE)
        path = os.pathsep.join([str(tmp_path), *sys.path])
        recordings = f"{AUDIO / 'stereo_44k.flac'}"
        return {"PYTHONPATH": path, "RECORDINGS": recordings}

    def test_microphone(self, microphone, tmp_path):
        """At its own rate; until Ctrl-D."""
        import numpy as np
        import soundfile

        stereo, rate = soundfile.read(AUDIO / "stereo_44k.flac", dtype="float32")
        mono, silent = tmp_path / "mono.wav", tmp_path / "silent.wav"
        soundfile.write(mono, stereo.mean(axis=1), rate)
        soundfile.write(silent, np.zeros(0, np.float32), rate)
        microphone["RECORDINGS"] = f"{mono} {silent} {mono}"
        status, out, err = voice_chat(stdin="\n" * 6, **microphone)
        assert status == 1
        assert err.count("\n") == 1
        assert "error: the array" in err
        assert out.count("you:   unlock the back gate\nmodel: ") == 2
        assert "model: the back gate is unlocked.\n" in out
        assert out.endswith("Press Enter to speak, Ctrl-D to leave. \n")

    def test_no_microphone(self, microphone):
        microphone["RECORDINGS"] = ""
        result = voice_chat(**microphone)
        assert result == (1, "", "error: no microphone: Error querying device -1\n")

    def test_microphone_that_fails(self, microphone):
        microphone["RECORDINGS"] = f"{AUDIO / 'flite_08.flac'} none"
        status, out, err = voice_chat(stdin="\n" * 4, **microphone)
        assert (status, err) == (1, "error: the microphone does not work: Device unavailable\n")
        assert "model: the back gate is unlocked.\n" in out

    @pytest.mark.parametrize(
        ("import_of_it", "message"),
        [
            ("raise ImportError", "the microphone needs sounddevice: pip install sounddevice"),
            ("raise OSError('no PortAudio')", "sounddevice does not work: no PortAudio"),
        ],
    )
    def test_without_the_package(self, microphone, tmp_path, import_of_it, message):
        (tmp_path / "sounddevice.py").write_text(import_of_it)
        result = voice_chat("--model", "./nowhere", **microphone)
        assert result == (1, "", f"error: {message}\n")

    def test_say(self, tmp_path):
        """Each reply, once it is whole, with macOS's own voice."""
        path = os.environ["PATH"]
        spoken = tmp_path / "spoken"
        say = tmp_path / "say"
        say.write_text(f"#!/bin/sh\ncat >>{spoken}\n")
        say.chmod(0o755)
        recordings = [AUDIO / "flite_08.flac"]
        assert voice_chat("--say", *recordings, PATH=f"{tmp_path}{os.pathsep}{path}")[0] == 0
        assert spoken.read_text() == "the back gate is unlocked."

    def test_another_model_replies(self):
        recording = AUDIO / "flite_08.flac"
        reply = ChatSession(*load(TINY), chat_model=QWEN3).send("unlock the back gate")
        expected = f"you:   unlock the back gate\nmodel: {reply}\n"
        assert voice_chat("--chat-model", QWEN3, recording) == (0, expected, "")
        status, out, err = voice_chat("--chat-model", "./nowhere", recording)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("error: no such folder: ./nowhere")

    def test_nothing_to_say_it_with(self, tmp_path):
        status, _, err = voice_chat("--say", "--model", TINY, PATH=str(tmp_path))
        assert status == 2
        assert "--say speaks with macOS's say, which is not here" in err


class Reply:
    """A session whose reply comes in pieces, or as functions between them say."""

    def __init__(self, *pieces):
        self.pieces = pieces

    def transcribe(self, audio):
        return SimpleNamespace(text="hello")

    def stream(self, text):
        for piece in self.pieces:
            yield SimpleNamespace(text=piece() or "" if callable(piece) else piece)


class TestSpeaker:
    @pytest.fixture
    def example(self):
        """The example as a module."""
        spec = importlib.util.spec_from_file_location("voice", ROOT / "examples" / "voice_chat.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    @pytest.fixture
    def spoken(self, tmp_path, monkeypatch):
        """What `say` has been given so far, a line each."""
        log, say = tmp_path / "spoken", tmp_path / "say"
        log.touch()
        say.write_text(
            f'#!/bin/sh\nread -r line\necho "$line" >>{log}\nexec sleep $SECONDS_IT_TAKES\n'
        )
        say.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setenv("SECONDS_IT_TAKES", "0")
        return lambda: log.read_text().splitlines()

    @staticmethod
    def waiting(condition):
        """A piece of a reply that comes once something is so."""

        def wait():
            end = time.monotonic() + PATIENCE
            while not condition():
                assert time.monotonic() < end
                time.sleep(0.01)

        return wait

    def test_sentences_are_spoken_while_the_next_are_written(self, example, spoken, capsys):
        """The reply does not go on before they are."""
        first = self.waiting(lambda: spoken() == ["The light is on."])
        second = self.waiting(lambda: spoken()[1:] == ['"Is it 7.30?"'])
        reply = Reply(
            "The light", " is on.", " ", first, '"Is it 7', '.30?" ', second, "no", " end"
        )
        assert example.turn(reply, "hello.wav", {}, say=True)
        assert spoken()[2:] == ["no end"]
        said = 'you:   hello\nmodel: The light is on. "Is it 7.30?" no end\n'
        assert capsys.readouterr().out == said

    @pytest.mark.parametrize(
        ("pieces", "expected"),
        [
            (["One", "… ", "two\n\nthree! ", "four"], ["One…", "two", "three!", "four"]),
            (["3.5 of 1.000. ", " ", "\n"], ["3.5 of 1.000."]),
            (["<think>Who. ", "Is it?\n", "</think>\n\nMe.", " Yes."], ["Me.", "Yes."]),
            (["Yes. ", "<think>never", " ended. "], ["Yes."]),
            ([], []),
        ],
        ids=str,
    )
    def test_sentences(self, example, spoken, pieces, expected):
        example.turn(Reply(*pieces), "hello.wav", {}, say=True)
        assert spoken() == expected

    def test_interrupted_reply_is_silent(self, example, spoken, monkeypatch):
        monkeypatch.setenv("SECONDS_IT_TAKES", str(PATIENCE))

        def interrupt():
            raise KeyboardInterrupt

        begun = self.waiting(spoken)
        started, popen = [], subprocess.Popen
        monkeypatch.setattr(
            subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
        )
        with pytest.raises(KeyboardInterrupt):
            example.turn(Reply("One. ", "Two. ", begun, interrupt), "hello.wav", {}, say=True)
        (say,) = started
        assert say.wait(PATIENCE / 2) == -signal.SIGTERM
        assert spoken() == ["One."]
