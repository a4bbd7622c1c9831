"""The chat in a terminal: keys, history, Ctrl-C and Ctrl-D."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from commands import Terminal, run, saved_messages
from conftest import DATA

#: replies of many tokens, drawn at random: time enough to stop them
LONG = ("--temperature", 40, "--seed", 1, "--max-tokens", 600)

#: seconds until Python waits for a key again; a Ctrl-C before that shows only at the next key
READLINE_WAITS = 0.5


class TestTerminal:
    @pytest.fixture(autouse=True)
    def state(self, tmp_path, monkeypatch):
        """A home for the history of lines."""
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        return tmp_path / "state"

    @staticmethod
    def started(*args, **env) -> Terminal:
        terminal = Terminal("chat", *args, **env)
        terminal.expect("is ready; /help lists what else there is", "> ")
        return terminal

    def test_conversation(self):
        with self.started() as terminal:
            terminal.type("good night\r")
            terminal.expect("sleep well.", "> ")
            terminal.type("/nonsense\r")
            terminal.expect("error: /nonsense is not a command; /help lists those", "> ")
            terminal.type("/help\r")
            terminal.expect("Ctrl-D leaves.", "> ")
            terminal.type("\x04")
            assert terminal.wait() == 0
            assert "Traceback" not in terminal.shown

    def test_quit(self):
        with self.started() as terminal:
            terminal.type("/nonsense\r/quit\r")
            assert terminal.wait() == 0

    def test_ctrl_c_clears_the_line(self):
        """However often; the chat goes on."""
        with self.started() as terminal:
            for _ in range(3):
                terminal.type("seven two")
                terminal.expect("seven two")
                time.sleep(READLINE_WAITS)
                terminal.type("\x03")
                terminal.expect("(Ctrl-D leaves)", "> ")
            terminal.type("good night\r")
            terminal.expect("sleep well.", "> ")
            terminal.type("\x04")
            assert terminal.wait() == 0

    def test_ctrl_c_stops_the_reply(self, tmp_path):
        """And what came of it belongs to the conversation."""
        with self.started(*LONG) as terminal:
            terminal.type("seven\r")
            terminal.expect("seven\r\n")
            terminal.expect("t")
            terminal.type("\x03")
            terminal.expect("(stopped)", "> ")
            terminal.type(f"/save {tmp_path / 'stopped'}\r")
            terminal.expect(f"saved to {tmp_path / 'stopped'}", "> ")
            terminal.type("good night\r")
            terminal.expect("night\r\n")
            terminal.expect("t")
            terminal.type("\x03")
            terminal.expect("(stopped)", "> ")
            terminal.type("/quit\r")
            assert terminal.wait() == 0
        question, answer = saved_messages(tmp_path / "stopped")
        assert question == {"role": "user", "content": "seven"}
        whole = run("chat", *LONG, stdin=b"seven\n")[1].strip()
        assert 0 < len(answer["content"]) < len(whole)
        assert whole.startswith(answer["content"])

    def test_ctrl_c_stops_transcription(self):
        """In one that would take long: nothing is sent."""
        with self.started() as terminal:
            terminal.type(f"/audio {DATA / 'audio' / 'espeak_04.flac'}\r")
            terminal.expect("flac\r\n")
            terminal.type("\x03")
            shown = terminal.expect("> ")
            terminal.type("\x04")
            assert terminal.wait() == 0
            assert "(stopped)" in shown or "(Ctrl-D leaves)" in terminal.shown

    def test_ctrl_c_while_source_text_runs(self, tmp_path):
        """As it does when a module with dataclasses is imported: leaving is no interruption."""
        (tmp_path / "sitecustomize.py").write_text(
            "import builtins\n"
            "read = builtins.input\n"
            "def interrupted(prompt):\n"
            "    builtins.input = read\n"
            "    exec('raise KeyboardInterrupt')\n"
            "builtins.input = interrupted\n"
        )
        with Terminal("chat", PYTHONPATH=str(tmp_path)) as terminal:
            terminal.expect("is ready; /help lists what else there is", "(Ctrl-D leaves)", "> ")
            terminal.type("\x04")
            assert terminal.wait() == 0

    def test_lines_are_kept(self, state):
        with self.started() as terminal:
            terminal.type("good night\r")
            terminal.expect("sleep well.", "> ")
            terminal.type("\x04")
            assert terminal.wait() == 0
        (file,) = state.rglob("*history")
        assert file.parent.stat().st_mode & 0o077 == 0
        with self.started() as terminal:
            terminal.type("\x1b[A\r")  # arrow up
            terminal.expect("sleep well.", "> ")
            terminal.type("\x04")
            assert terminal.wait() == 0

    @pytest.mark.parametrize("home", ["/dev/null", "/nowhere/at/all"])
    def test_lines_that_cannot_be_kept(self, home):
        with self.started(XDG_STATE_HOME=home) as terminal:
            terminal.type("good night\r")
            terminal.expect("sleep well.", "> ")
            terminal.type("\x04")
            assert terminal.wait() == 0
            assert "rror" not in terminal.shown

    def test_without_readline(self, tmp_path):
        (tmp_path / "readline.py").write_text("raise ImportError('there is none')")
        path = f"{tmp_path}:{':'.join(sys.path)}"
        with self.started(PYTHONPATH=path, PYTHONIOENCODING="utf-8:strict") as terminal:
            terminal.send(b"caf\xe9\r")
            terminal.expect("error: this line is not text: unexpected end of data", "> ")
            terminal.type("good night\r")
            terminal.expect("sleep well.", "> ")
            time.sleep(READLINE_WAITS)
            terminal.type("\x03")
            terminal.expect("(Ctrl-D leaves)", "> ")
            terminal.type("\x04")
            assert terminal.wait() == 0

    def test_replies_that_go_elsewhere(self):
        """The prompt stays in the terminal."""
        with Terminal("chat", stdout=subprocess.PIPE) as terminal:
            terminal.expect("> ")
            terminal.type("good night\r")
            terminal.expect("> ")
            terminal.type("\x04")
            assert terminal.wait() == 0
            assert terminal.process.stdout.read() == b"sleep well.\n"
