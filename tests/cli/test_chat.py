"""`python -m mlx_speech.chat` as a user runs it: lines from a file or a pipe, and typed ones."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys

import pytest
from commands import Caller, environment, run, saved_messages, shell
from conftest import DATA, TINY

import mlx_speech
from mlx_speech.chat_session import REPLY_TOKENS
from mlx_speech.cli.chat import COMMANDS, HELP, build_parser, main

GATE = DATA / "audio" / "flite_08.flac"
LIGHT = "turn on the kitchen light"
REPLY = "the kitchen light is on.\n"


@pytest.fixture
def cli(monkeypatch, capsys) -> Caller:
    return Caller(main, monkeypatch, capsys)


def lines(*texts: object) -> str:
    return "".join(f"{text}\n" for text in texts)


def prompt_tokens(err: str) -> list[int]:
    """How many tokens each reply's prompt had, as --verbose tells."""
    return [int(n) for n in re.findall(r"^prompt: (\d+) tokens", err, re.MULTILINE)]


class TestReplies:
    def test_the_references(self, cli, reference):
        """Each in a conversation of its own."""
        entries = reference["text_only"]
        told = "".join(lines(e["prompt"], "/reset") for e in entries)
        assert cli("--quiet", stdin=told) == (0, lines(*(e["reply"] for e in entries)), "")

    def test_a_pipe(self, cli):
        """Replies on standard output, and nothing else anywhere: no prompt, no greeting."""
        assert run("chat", stdin=b"good night\n") == (0, "sleep well.\n", "")
        assert cli(stdin="\n  \r\ngood night") == (0, "sleep well.\n", "")
        assert cli() == (0, "", "")

    def test_turns_are_one_conversation(self, cli, tiny):
        session = mlx_speech.ChatSession(*tiny)
        expected = [session.send(text) for text in ("good night", LIGHT, "seven")]
        assert expected[1] + "\n" != REPLY
        status, out, _ = cli(stdin=lines("good night", LIGHT, "seven"))
        assert (status, out) == (0, lines(*expected))

    def test_each_turn_feeds_only_what_is_new(self, cli):
        _, _, err = cli("--verbose", stdin=lines("good night", LIGHT, LIGHT, "/reset", LIGHT))
        first, second, third, alone = prompt_tokens(err)
        assert first == 21
        assert alone == 26
        # and the white space that the template puts behind the last reply
        assert alone <= second <= alone + 1
        assert third == second
        assert err.count("tokens per second\npeak memory: ") == 4

    def test_system_prompt(self, cli, tmp_path):
        told = lines("good night", f"/save {tmp_path / 'chat'}", "/reset", "good night")
        status, out, _ = cli("--system-prompt", "unlock the back gate", stdin=told)
        assert status == 0
        first, second = out.splitlines()
        assert first == second != "sleep well."
        system, *_ = saved_messages(tmp_path / "chat")
        assert system == {"role": "system", "content": "unlock the back gate"}

    def test_options_arrive(self, cli, tiny):
        options = {"temperature": 30.0, "seed": 7, "top_k": 90, "top_p": 0.99, "min_p": 0.001}
        options |= {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 30}
        session = mlx_speech.ChatSession(*tiny, max_new_tokens=12, **options)
        expected = lines(session.send("good night"), session.send(LIGHT))
        words = [w for n, v in options.items() for w in (f"--{n.replace('_', '-')}", v)]
        status, out, err = cli(*words, "-m", 12, stdin=lines("good night", LIGHT))
        assert (status, out) == (0, expected)
        assert err.count("warning: the reply was cut off after 12 tokens; raise --max-tokens") == 2
        assert cli(*words, "-m", 12, "--quiet", stdin="good night\n")[2] == ""

    def test_a_conversation_without_end(self, cli):
        """Beyond the context there is one line about it, or a cache that forgets."""
        told = lines(*[LIGHT + " and the hall light" * 6] * 14)
        status, out, err = cli("-m", 10, "--quiet", stdin=told)
        assert status == 1
        assert 0 < len(out.splitlines()) < 14
        errors = err.splitlines()
        assert len(errors) + len(out.splitlines()) == 14
        for line in errors:
            assert re.match(r"error: a prompt of \d+ tokens and 10 new ones exceed .* 1024;", line)
            assert "--max-kv-size keeps" in line
            assert line.endswith("; /reset forgets the conversation")
        status, out, err = cli("-m", 10, "--quiet", "--max-kv-size", 128, stdin=told)
        assert (status, err, len(out.splitlines())) == (0, "", 14)

    def test_text_models(self, cli, tiny_text):
        assert cli("--model", tiny_text, stdin=lines(LIGHT)) == (0, REPLY, "")


class TestCommands:
    def test_audio(self, cli, tiny, tmp_path):
        """Heard with the adapter on, answered with the adapter off, in one conversation."""
        session = mlx_speech.ChatSession(*tiny)
        expected = lines(session.send("good night"), session.send("unlock the back gate"))
        told = lines("good night", f"/audio {GATE}", f"/save {tmp_path / 'chat'}")
        status, out, err = cli(stdin=told)
        assert (status, out) == (0, expected)
        assert err == f"transcribed: unlock the back gate\nsaved to {tmp_path / 'chat'}\n"
        assert saved_messages(tmp_path / "chat") == session.messages

    def test_audio_feeds_the_text_alone(self, cli):
        told = lines("good night", f"/audio {GATE}", "/reset", "unlock the back gate")
        _, _, err = cli("--verbose", stdin=told)
        _, fed, written = prompt_tokens(err)
        assert fed - written in (0, 1)

    @pytest.mark.parametrize(
        "name", ["my talk.flac", "it's.flac", "'my talk.flac'", r"my\ talk.flac", "~/my talk.flac"]
    )
    def test_names_of_files(self, cli, tmp_path, monkeypatch, name):
        """As they are, or as a terminal writes the name of a file that is dragged into it."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        for copy in ("my talk.flac", "it's.flac"):
            shutil.copy(GATE, tmp_path / copy)
        assert cli(stdin=lines(f"/audio  {name} "))[2] == "transcribed: unlock the back gate\n"

    def test_silence_is_not_sent(self, cli, monkeypatch):
        nothing = mlx_speech.Segment(0.0, 1.0, "", [], 0.0)
        monkeypatch.setattr(
            mlx_speech.ChatSession,
            "transcribe",
            lambda self, path: mlx_speech.Transcript("", None, 1.0, [nothing]),
        )
        result = cli(stdin=lines("/audio silence.flac"))
        assert result == (1, "", "error: silence.flac: no speech was found\n")

    def test_text_models_take_no_recordings(self, cli, tiny_text):
        """And go on chatting."""
        status, out, err = cli("--model", tiny_text, stdin=lines(f"/audio {GATE}", LIGHT))
        assert (status, out) == (1, REPLY)
        assert err.startswith("error: a granite model is not a speech model")
        assert err.count("\n") == 1

    def test_save_and_load(self, cli, tmp_path):
        """In another process the conversation goes on as if it had not been interrupted."""
        file = tmp_path / "evening.chat"
        told = lines("good night", f"/save {file}", LIGHT)
        status, out, err = cli("--verbose", stdin=told)
        assert status == 0
        assert f"saved to {file}\n" in err
        said, expected = out.splitlines()
        assert said == "sleep well."
        fed = prompt_tokens(err)[-1]
        told = lines(f"/load {file}", LIGHT)
        status, out, err = run("chat", "--verbose", stdin=told.encode())
        assert (status, out) == (0, expected + "\n")
        assert f"2 messages loaded from {file}\n" in err
        assert prompt_tokens(err) == [fed]

    def test_an_empty_conversation_is_saved_too(self, cli, tmp_path):
        told = lines(f"/save {tmp_path / 'a'}", f"/load {tmp_path / 'a'}", LIGHT)
        assert cli("--quiet", stdin=told) == (0, REPLY, "")

    def test_nothing_else_is_overwritten(self, cli, tmp_path):
        """Only what this conversation was saved to, or loaded from."""
        mine, other = tmp_path / "mine", tmp_path / "other"
        other.write_text("precious")
        told = lines("good night", f"/save {mine}", f"/save {other}", "seven", f"/save {mine}")
        status, _, err = cli(stdin=told)
        assert status == 1
        assert f"error: {other} exists already; choose another name\n" in err
        assert other.read_text() == "precious"
        assert len(saved_messages(mine)) == 4
        assert cli(stdin=lines(f"/load {mine}", "seven", f"/save {mine}"))[0] == 0
        assert len(saved_messages(mine)) == 6
        assert cli(stdin=lines(f"/save {mine}"))[0] == 1
        assert cli(stdin=lines(f"/load {mine}", "/reset", f"/save {mine}"))[0] == 1

    def test_reset(self, cli):
        status, out, err = cli(stdin=lines("good night", "/reset", LIGHT))
        assert (status, out) == (0, "sleep well.\n" + REPLY)
        assert err == "the conversation is forgotten\n"

    def test_help(self, cli):
        assert cli(stdin="/help\n") == (0, "", HELP + "\n")
        assert all(name in HELP for name in COMMANDS)
        assert max(map(len, HELP.splitlines())) <= 80

    def test_quit(self, cli):
        assert cli(stdin=lines("/quit", LIGHT)) == (0, "", "")

    def test_a_space_makes_it_a_message(self, cli, tiny):
        expected = mlx_speech.ChatSession(*tiny).send("/reset")
        assert cli(stdin=" /reset\n") == (0, expected + "\n", "")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("/frobnicate", "/frobnicate is not a command; /help lists those"),
            ("/Reset", "/Reset is not a command"),
            ("/", "/ is not a command"),
            ("/run", "/run is not a command"),
            ("/take x", "/take is not a command"),
            ("/reset now", "/reset takes nothing after it"),
            ("/save", "/save needs the name of a file"),
            ("/audio  ", "/audio needs the name of a file"),
            ("/audio nowhere.wav", "nowhere.wav does not exist"),
            ("/audio -", "- does not exist"),
            ("/audio a\0b", "no file is called 'a\\x00b'"),
            (f"/audio {TINY / 'config.json'}", "config.json"),
            ("/load nowhere", "nowhere: no such file"),
            (f"/load {TINY / 'config.json'}", "not a prompt cache"),
            (f"/load {TINY / 'model.safetensors'}", "not a prompt cache"),
            ("/save nowhere/chat", "nowhere/chat: cannot be written: No such file or directory"),
        ],
    )
    def test_errors_are_one_line_and_the_chat_goes_on(self, cli, line, message):
        status, out, err = cli(stdin=lines(line, LIGHT))
        assert (status, out) == (1, REPLY)
        assert err.startswith("error: ")
        assert message in err
        assert err.count("\n") == 1
        assert "; /reset" not in err

    def test_recordings_that_are_too_long(self, cli, tiny_with_60_tokens):
        """Forgetting the conversation would not help."""
        told = lines(f"/audio {DATA / 'audio' / 'espeak_03.flac'}", LIGHT)
        status, out, err = cli("--model", tiny_with_60_tokens, stdin=told)
        assert (status, out) == (1, REPLY)
        assert err.startswith("error: a segment of 4.1 s and a text of ")
        assert err.count("\n") == 1
        assert "; /reset" not in err

    def test_a_line_that_is_not_text(self):
        status, out, err = run("chat", stdin=b"caf\xe9\n" + lines(LIGHT).encode())
        assert (status, out) == (1, REPLY)
        assert err == "error: standard input is not UTF-8 text: invalid continuation byte\n"

    def test_conversation_of_another_model(self, cli, tiny_text, tmp_path):
        cli(stdin=lines(f"/save {tmp_path / 'chat'}"))
        status, _, err = cli("--model", tiny_text, stdin=lines(f"/load {tmp_path / 'chat'}"))
        assert (status, err.count("\n")) == (1, 1)
        assert "belongs to another model" in err

    def test_damaged_conversation(self, cli, tmp_path):
        file = tmp_path / "chat"
        cli(stdin=lines(LIGHT, f"/save {file}"))
        file.write_bytes(file.read_bytes()[:-100])
        status, out, err = cli(stdin=lines(f"/load {file}", LIGHT))
        assert (status, out, err.count("\n")) == (1, REPLY, 1)
        assert str(file) in err

    def test_debug_shows_the_traceback(self, cli):
        status, _, err = cli("--debug", stdin="/load nowhere\n")
        assert status == 1
        assert "Traceback" in err


class TestUsage:
    def test_interrupted_pipe(self):
        command = [sys.executable, "-m", "mlx_speech.chat"]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment()
        ) as p:
            p.stdin.write(b"good night\n")
            p.stdin.flush()
            assert p.stdout.readline() == b"sleep well.\n"
            p.send_signal(signal.SIGINT)
            assert p.stderr.read() == b"interrupted\n"
            assert p.wait() == 130

    def test_reader_that_goes_away(self):
        told = r"printf 'good night\nseven\ngood night\n' | CLI | head -c 1"
        assert shell(told, "chat") == (0, "s", "")

    def test_closed_output_is_a_failure(self):
        result = shell("echo hello | CLI >&-", "chat")
        assert result == (1, "", "error: standard output is closed; open it\n")

    def test_closed_input(self):
        assert shell("CLI <&-", "chat") == (0, "", "")

    def test_models_that_cannot_chat(self, cli, tiny_text, tmp_path):
        folder = shutil.copytree(tiny_text, tmp_path / "plain")
        (folder / "chat_template.jinja").unlink()
        result = cli("--model", folder, stdin=lines(LIGHT))
        assert result == (1, "", "error: this checkpoint has no chat template, so it cannot chat\n")
        status, out, err = cli("--model", "./nowhere", stdin=lines(LIGHT))
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "./nowhere" in err

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("hello",), "unrecognized arguments: hello"),
            (("--quiet", "--verbose"), "not allowed with"),
            (("--max-tokens", 0), "--max-tokens is 0"),
            (("--seed", 3), "--seed is for sampling tokens"),
            (("--temperature", "nan"), "--temperature is nan"),
            (("--kv-group-size", 64), "it needs --kv-bits"),
            (("--kv-bits", 4, "--max-kv-size", 64), "do not go together"),
        ],
    )
    def test_usage_errors(self, cli, args, message):
        status, out, err = cli("--model", "./nowhere", *args, stdin=lines(LIGHT))
        assert (status, out) == (2, "")
        assert message in err

    def test_defaults_are_the_librarys(self):
        assert f"limit of each (default: {REPLY_TOKENS})" in build_parser().format_help()
