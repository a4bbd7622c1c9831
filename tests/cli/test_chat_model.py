"""`python -m mlx_speech.chat --chat-model`: one model transcribes, another one replies."""

from __future__ import annotations

import json
import shutil

import mlx.core as mx
import pytest
from chat_models import GOLDEN, QWEN3
from commands import Caller, Terminal, one_line, run
from conftest import DATA, TINY_S2T, edit_json

import mlx_speech
from mlx_speech.cli.chat import main

GATE = DATA / "audio" / "flite_08.flac"
LIGHT = "turn on the kitchen light"
REPLY = GOLDEN["turns"][0]["reply"] + "\n"


@pytest.fixture
def cli(monkeypatch, capsys):
    """With the bundled Qwen3 to reply."""
    caller = Caller(main, monkeypatch, capsys)
    return lambda *args, **given: caller("--chat-model", QWEN3, *args, **given)


def lines(*texts: object) -> str:
    return "".join(f"{text}\n" for text in texts)


class TestChatModel:
    def test_in_a_process_of_its_own(self):
        """Replies on standard output, and nothing that the libraries would say."""
        told = lines(LIGHT, f"/audio {GATE}").encode()
        status, out, err = run("chat", "--chat-model", QWEN3, "-m", 24, stdin=told)
        assert status == 0
        assert out.startswith(REPLY)
        assert out.count("\n") == 2
        assert err.startswith("transcribed: unlock the back gate\n")
        assert err.count("\n") <= 2  # and maybe that it was cut off

    def test_one_conversation(self, cli, tiny, tmp_path):
        session = mlx_speech.ChatSession(*tiny, chat_model=QWEN3, system="be brief")
        expected = [
            session.send(said, max_new_tokens=9) for said in (LIGHT, "unlock the back gate")
        ]
        told = lines(LIGHT, f"/audio {GATE}", f"/save {tmp_path / 'chat'}", "good night")
        status, out, err = cli("--system-prompt", "be brief", "-m", 9, "--verbose", stdin=told)
        assert status == 0
        assert out.splitlines()[:2] == expected
        assert f"{QWEN3}: loaded in " in err
        assert err.count("tokens per second\npeak memory: ") == 3
        assert "warning: the reply was cut off after 9 tokens; raise --max-tokens" in err
        # the same, from the file
        told = lines(f"/load {tmp_path / 'chat'}", "good night")
        assert cli("-m", 9, "--quiet", stdin=told) == (0, out.splitlines()[2] + "\n", "")
        told = lines(LIGHT, "/reset", LIGHT)
        assert cli("--quiet", stdin=told) == (0, REPLY * 2, "")

    def test_options_arrive(self, cli, tiny):
        options = {"temperature": 3.0, "seed": 7, "top_k": 40, "top_p": 0.99, "min_p": 0.001}
        options |= {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 30}
        session = mlx_speech.ChatSession(*tiny, chat_model=QWEN3, max_new_tokens=12, **options)
        words = [w for n, v in options.items() for w in (f"--{n.replace('_', '-')}", v)]
        expected = lines(session.send(LIGHT), session.send("good night"))
        given = cli(*words, "-m", 12, "--quiet", stdin=lines(LIGHT, "good night"))
        assert given == (0, expected, "")

    def test_type(self, cli, tiny):
        float32 = cli("--dtype", "float32", "-m", 24, "--quiet", stdin=lines(LIGHT, "good night"))
        assert float32 == (0, lines(*(t["reply"] for t in GOLDEN["turns"][:2])), "")

    def test_a_conversation_without_end(self, cli):
        told = lines(*[LIGHT + " and the hall light" * 6] * 9)
        status, out, err = cli("-m", 10, "--quiet", stdin=told)
        assert status == 1
        assert 0 < len(out.splitlines()) < 9
        last = err.splitlines()[-1]
        assert "exceed the model's context of 512; --max-tokens bounds" in last
        assert last.endswith(
            "--max-kv-size keeps only the latest tokens in view; /reset forgets the conversation"
        )
        status, out, err = cli("-m", 10, "--quiet", "--max-kv-size", 128, stdin=told)
        assert (status, err, len(out.splitlines())) == (0, "", 9)

    def test_any_speech_model(self, cli):
        told = lines(f"/audio {GATE}")
        status, _, err = cli("--model", TINY_S2T, "-m", 30, stdin=told)
        assert status == 0
        assert err.startswith("transcribed: ")

    def test_text_models_of_ours(self, cli, tiny_text, monkeypatch, capsys):
        caller = Caller(main, monkeypatch, capsys)
        given = caller("--chat-model", tiny_text, stdin=lines(LIGHT))
        assert given == (0, "the kitchen light is on.\n", "")

    def test_interrupted_reply(self, tmp_path):
        """It stays as far as it came, and the conversation goes on."""
        folder = shutil.copytree(QWEN3, tmp_path / "endless")
        edit_json(folder / "config.json", max_position_embeddings=10**6)
        endless = ("--chat-model", folder, "-m", 10**5)
        with Terminal("chat", *endless, XDG_STATE_HOME=str(tmp_path)) as terminal:
            terminal.expect(f"{folder} is ready; /help lists what else there is", "> ")
            terminal.type("seven\r")
            terminal.expect("seven\r\n", "kitkon")
            terminal.type("\x03")
            terminal.expect("(stopped)", "> ")
            terminal.type(f"/save {tmp_path / 'chat'}\r")
            terminal.expect("saved to", "> ")
            terminal.type("/quit\r")
            assert terminal.wait() == 0
            assert "Traceback" not in terminal.shown
        _, told = mx.load(str(tmp_path / "chat"), format="safetensors", return_metadata=True)
        _, reply = json.loads(told["0.messages"])
        assert reply["content"].startswith("kitkon")


class TestErrors:
    def test_each_is_one_line(self, cli, tmp_path, monkeypatch, capsys):
        caller = Caller(main, monkeypatch, capsys)
        plain = shutil.copytree(QWEN3, tmp_path / "plain")
        (plain / "chat_template.jinja").unlink()
        for name, *words in (
            ("./nowhere", "no such folder: ./nowhere"),
            (plain, "plain: this checkpoint has no chat template, so it cannot chat"),
            (TINY_S2T, "tiny-s2t is a speech model (speech_to_text), which does not chat"),
        ):
            one_line(caller("--chat-model", name, stdin=lines(LIGHT)), *words)
        one_line(cli("--kv-bits", 4, stdin=lines(LIGHT)), "--kv-bits is not for this qwen3 model")

    def test_before_anything_is_loaded(self, cli):
        status, out, err = cli("--model", "./nowhere", "--seed", 3, stdin=lines(LIGHT))
        assert (status, out) == (2, "")
        assert "--seed is for sampling tokens" in err
