"""Command lines as users run them: in this process, in one of their own, in a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
from conftest import TINY

#: seconds after which what was expected will not come; loading a model takes one or two
PATIENCE = 60

#: in the child: make standard input the terminal that Ctrl-C comes from, then be the command
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def environment(**changes: str) -> dict[str, str]:
    """With the bundled model as the default, and no network."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "MLX_SPEECH_MODEL": str(TINY), **changes}


def run(module: str, *args, stdin: bytes = b"", **env: str) -> tuple[int, str, str]:
    """`python -m mlx_speech.MODULE`: exit status, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", f"mlx_speech.{module}", *map(str, args)],
        input=stdin,
        capture_output=True,
        env=environment(**env),
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def shell(command: str, module: str, **env: str) -> tuple[int, str, str]:
    """A line of the shell's, in which CLI stands for the command line."""
    command = command.replace("CLI", f"{sys.executable} -m mlx_speech.{module}")
    done = subprocess.run(["sh", "-c", command], capture_output=True, env=environment(**env))
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def saved_messages(path: str | Path) -> list[dict[str, str]]:
    """Those of a conversation that `/save` wrote."""
    _, told = mx.load(str(path), format="safetensors", return_metadata=True)
    return json.loads(json.loads(told["prompt_cache"])["metadata"]["messages"])


def one_line(result: tuple[int, str, str], *words: str) -> None:
    """Check that a command failed, and said so in one line with these words in it."""
    status, out, err = result
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err


def touch(*names: str) -> None:
    """Make empty files, with the folders that they are in."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("")


def files(folder: str | Path = ".") -> list[str]:
    """The files below a folder."""
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


class Caller:
    """Calls a command line's `main`: quicker than a process of its own."""

    def __init__(self, main, monkeypatch, capsys):
        monkeypatch.setenv("MLX_SPEECH_MODEL", str(TINY))
        self._main, self._monkeypatch, self._capsys = main, monkeypatch, capsys

    def __call__(self, *args, stdin: str | bytes = "") -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        given = stdin.encode() if isinstance(stdin, str) else stdin
        self._monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        try:
            status = self._main([str(a) for a in args])
        except SystemExit as error:
            status = error.code
        return status, *self._capsys.readouterr()


class Terminal:
    """A command line in a terminal of its own.

    Args:
        stdout: what standard output is instead of the terminal, as for `subprocess.Popen`.
    """

    def __init__(self, module: str, *args, stdout: int | None = None, **env: str):
        self._master, slave = pty.openpty()
        arguments = ["-m", f"mlx_speech.{module}", *map(str, args)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *arguments],
            stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            start_new_session=True,
            env=environment(TERM="xterm", **env),
        )
        os.close(slave)
        #: all that has been shown, as far as it was expected
        self.shown = ""
        self._rest = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        os.close(self._master)

    def type(self, text: str) -> None:
        """Press keys."""
        self.send(text.encode())

    def send(self, data: bytes) -> None:
        """Press keys of another keyboard."""
        os.write(self._master, data)

    def expect(self, *texts: str) -> str:
        """Wait until the texts are shown, one after the other; what has come since the last time,
        up to and with the last of them."""
        before, deadline = len(self.shown), time.monotonic() + PATIENCE
        position = before
        for text in texts:
            while text not in self.shown[position:]:
                assert time.monotonic() < deadline, f"no {text!r} comes after {self.shown!r}"
                self._read(text)
            position = self.shown.index(text, position) + len(text)
        # what comes after it is for the next time
        self.shown, self._rest = self.shown[:position], self.shown[position:]
        return self.shown[before:]

    def _read(self, wanted: str) -> None:
        if self._rest:
            self.shown, self._rest = self.shown + self._rest, ""
            return
        readable, _, _ = select.select([self._master], [], [], 1)
        if readable:
            data = b""
            with contextlib.suppress(OSError):  # how Linux says that nobody is there any more
                data = os.read(self._master, 4096)
            assert data, f"ended without {wanted!r}: {self.shown}"
            self.shown += data.decode(errors="replace")

    def wait(self) -> int:
        """The exit status; reads what is still shown."""
        deadline = time.monotonic() + PATIENCE
        with contextlib.suppress(OSError):  # how Linux says that nobody is there any more
            while time.monotonic() < deadline:
                if not select.select([self._master], [], [], 1)[0]:
                    continue
                data = os.read(self._master, 4096)
                if not data:
                    break
                self._rest += data.decode(errors="replace")
        self.shown, self._rest = self.shown + self._rest, ""
        assert time.monotonic() < deadline, f"it does not end after {self.shown!r}"
        return self.process.wait(PATIENCE)
