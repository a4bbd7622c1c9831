"""The server's command line: how it begins and ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import commands
import httpx
import numpy as np
import openai
import pytest
import soundfile
from adapters import LORA, adapter
from conftest import DATA, TINY
from serving import client_of

import mlx_speech
from mlx_speech.cli import serve
from mlx_speech.loading import load_model

LONG = DATA / "audio" / "long.flac"


@pytest.fixture
def cli(monkeypatch, capsys):
    return commands.Caller(serve.main, monkeypatch, capsys)


class Served:
    """A server in a process of its own, that has said where it is."""

    def __init__(self, process):
        self.process = process
        said = ""
        while not (found := re.search(rf"^serving {TINY.name} at (http://127.*:\d+)$", said, re.M)):
            line = process.stderr.readline()
            assert line, said
            said += line
        self.url = found[1]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Exit status, and what else was said."""
        said = self.process.stderr.read()
        return self.process.wait(commands.PATIENCE), said


@contextmanager
def served(*args):
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_speech.serve", "--port", "0", *args],
        stderr=subprocess.PIPE,
        text=True,
        env=commands.environment(),
    )
    try:
        yield Served(process)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


FINISHING = "finishing what is being worked on; Ctrl-C again ends at once\n"


class TestEnd:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_is_no_error(self, number):
        with served() as server:
            assert httpx.get(f"{server.url}/health").json()["status"] == "ready"
            server.signal(number)
            assert server.end() == (0, FINISHING)

    def test_what_is_worked_on_is_finished(self):
        with served() as server, client_of(server.url) as client:
            stream = client.audio.transcriptions.create(file=LONG, model=TINY.name, stream=True)
            next(iter(stream))
            server.signal(signal.SIGTERM)
            *_, done = stream
            assert done.text.endswith("open the back gate")
            assert server.end() == (0, FINISHING)

    def test_another_signal_ends_it_at_once(self, tmp_path):
        samples, rate = soundfile.read(LONG, dtype="int16")
        soundfile.write(longer := tmp_path / "longer.wav", np.tile(samples, 10), rate)
        with served() as server, client_of(server.url) as client:
            stream = client.audio.transcriptions.create(file=longer, model=TINY.name, stream=True)
            next(iter(stream))
            server.signal(signal.SIGINT)
            assert server.process.stderr.readline() == FINISHING
            server.signal(signal.SIGINT)
            assert server.end() == (130, "")
            with pytest.raises(openai.APIConnectionError):
                list(stream)


def test_home_assistant():
    """By the Wyoming protocol."""
    with served("--wyoming", "0") as server:
        said = server.process.stderr.readline()
        port = re.fullmatch(r"serving Home Assistant at tcp://127.0.0.1:(\d+)\n", said)[1]
        with socket.create_connection(("127.0.0.1", int(port))) as connection:
            connection.sendall(b'{"type": "describe"}\n')
            with connection.makefile("rb") as answer:
                header = json.loads(answer.readline())
                info = json.loads(answer.read(header["data_length"]))
        assert [model["name"] for model in info["asr"][0]["models"]] == [TINY.name]
        server.signal(signal.SIGTERM)
        assert server.end() == (0, FINISHING)


def test_an_adapter(tmp_path):
    tuned = adapter(tmp_path / "tuned", load_model(TINY), LORA, scale=50.0)
    gate = DATA / "audio" / "flite_08.flac"
    expected = mlx_speech.transcribe(gate, mlx_speech.load(TINY, adapter=tuned)).text
    assert expected != "unlock the back gate"
    with served("--adapter", str(tuned)) as server, client_of(server.url) as client:
        found = client.audio.transcriptions.create(file=gate, model=TINY.name)
        assert found.text == expected


class TestLog:
    def test_requests_are_told_if_asked_for(self):
        with served("--verbose") as server:
            httpx.get(f"{server.url}/nothing%0Ahere")
            server.signal(signal.SIGTERM)
            status, said = server.end()
        assert status == 0
        assert re.search(r"^GET '/nothing\\nhere' 404, [\d.]+ s$", said, re.MULTILINE)

    def test_garbage_is_not_worth_a_line(self):
        with served() as server:
            port = int(server.url.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
                assert connection.recv(1000).startswith(b"HTTP/1.1 400")
            form = {"Content-Type": "multipart/form-data; boundary=x"}
            url = f"{server.url}/v1/audio/transcriptions"
            assert httpx.post(url, content=b"--y\r\n\0\0", headers=form).status_code == 400
            server.signal(signal.SIGTERM)
            assert server.end() == (0, FINISHING)


class TestErrors:
    def test_a_port_in_use(self, cli):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            commands.one_line(cli("--port", port), f"'127.0.0.1', port {port}", "in use")

    @pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1", "a..b", "x" * 70])
    def test_a_host_that_is_none(self, cli, host, monkeypatch):
        def no_name(*args, **options):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        if host == "nowhere.invalid":  # no question to the network
            monkeypatch.setattr(socket, "getaddrinfo", no_name)
        commands.one_line(cli("--host", host, "--port", 0), f"cannot serve at '{host}', port 0")

    def test_the_first_model_must_load(self, cli, tmp_path):
        for model, words in ((tmp_path, str(tmp_path)), ("", "'' is not the name of a Hub repo")):
            commands.one_line(cli("--port", 0, "--model", model), words)

    def test_others_may_not_be_what_is_no_model(self, cli, tmp_path):
        """They are loaded later, but a misspelled one is told at once."""
        for model, words in ((tmp_path, "no config.json here"), ("no-such", "no folder 'no-such'")):
            commands.one_line(cli("--port", 0, "--model", TINY, "--model", model), words)

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["--port", 65536], "--port is 65536"),
            (["--port", -1], "--port is -1"),
            (["--wyoming", 65536], "--wyoming is 65536"),
            (["--max-upload", 0], "--max-upload is 0"),
            (["--max-requests", 0], "--max-requests is 0"),
            (["--batch-size", 0], "--batch-size is 0"),
            (["--keep-alive", -1], "--keep-alive is -1"),
            (["--keep-alive", "nan"], "--keep-alive is nan"),
            (["--timeout", 0], "--timeout is 0"),
            (["--api-key", "naïve"], "--api-key"),
            (["--api-key", ""], "--api-key"),
            (["--api-key", "two words"], "--api-key"),
            (["--model", TINY, "--model", "a/b", "--adapter", "c"], "--adapter is for one model"),
            (["--model", TINY, "--model", TINY], "two called 'tiny-granite-speech'"),
        ],
    )
    def test_wrong_usage(self, cli, args, words):
        status, out, err = cli(*args)
        assert (status, out) == (2, "")
        assert words in err.splitlines()[-1]

    def test_without_the_extra(self, cli, monkeypatch):
        monkeypatch.setitem(sys.modules, "starlette", None)
        for name in [n for n in sys.modules if n.startswith(("starlette.", "mlx_speech.server."))]:
            monkeypatch.delitem(sys.modules, name)
        commands.one_line(cli("--port", 0), "starlette", "pip install 'mlx-speech[server]'")


def test_models_are_called_by_the_last_part_of_their_folder():
    parser = serve.build_parser()
    args = parser.parse_args(["--model", str(TINY), "--model", "ibm-granite/other"])
    assert serve.check_usage(parser, args) == {
        TINY.name: str(TINY),
        "ibm-granite/other": "ibm-granite/other",
    }


@pytest.mark.parametrize(("value", "key"), [("secret", "secret"), ("", None)])
def test_the_key_may_come_from_the_environment(monkeypatch, value, key):
    monkeypatch.setenv("MLX_SPEECH_API_KEY", value)
    args = serve.build_parser().parse_args([])
    assert args.api_key == key
    assert "secret" not in serve.build_parser().format_help()
