"""`python -m mlx_speech.generate` as a user runs it."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import sys

import pytest
from commands import Caller, Terminal, one_line, run, shell
from conftest import TINY, edit_json

import mlx_speech
from mlx_speech.cli.generate import build_parser, main
from mlx_speech.generation import text as text_generation
from mlx_speech.generation.config import DEFAULT_NEW_TOKENS, DRAFT_MODEL_TOKENS
from mlx_speech.models.causal_lm import PREFILL_STEP_SIZE

LIGHT = "turn on the kitchen light"
REPLY = "the kitchen light is on.\n"


@pytest.fixture
def cli(monkeypatch, capsys) -> Caller:
    return Caller(main, monkeypatch, capsys)


def ask(text: str = LIGHT, system: str | None = None) -> list[dict[str, str]]:
    told = [] if system is None else [{"role": "system", "content": system}]
    return [*told, {"role": "user", "content": text}]


class TestAnswers:
    def test_the_references(self, cli, reference):
        for entry in reference["text_only"]:
            assert cli("--prompt", entry["prompt"]) == (0, entry["reply"] + "\n", "")

    def test_a_process_of_its_own(self):
        assert run("generate", "-p", LIGHT) == (0, REPLY, "")

    @pytest.mark.parametrize("args", [(), ("--prompt", "-")])
    @pytest.mark.parametrize("end", ["", "\n", "\r\n"])
    def test_standard_input(self, cli, args, end):
        status, out, err = cli(*args, "--verbose", stdin=LIGHT + end)
        assert (status, out) == (0, REPLY)
        assert "\nprompt: 26 tokens" in err  # the newline is no part of it

    def test_prompt_goes_before_standard_input(self, cli):
        assert cli("-p", LIGHT, stdin="good night") == (0, REPLY, "")

    def test_it_comes_piece_by_piece(self, monkeypatch):
        """What has been written each time that it is flushed to the reader."""

        class Reader(io.StringIO):
            def flush(self):
                seen.append(self.getvalue())

        seen: list[str] = []
        monkeypatch.setattr(sys, "stdout", Reader())
        assert main(["--model", str(TINY), "-p", LIGHT]) == 0
        assert len(set(seen)) > 4
        assert all(later.startswith(piece) for piece, later in itertools.pairwise(seen))
        assert seen[-1] == REPLY

    @pytest.mark.parametrize(
        ("args", "options"),
        [
            (("--num-beams", 3), {"num_beams": 3}),
            (("--stop", "what"), {"stop_strings": "what"}),
            (("--stop", "xyz", "--stop", "up"), {"stop_strings": ["xyz", "up"]}),
            (("--repetition-penalty", 3), {"repetition_penalty": 3.0}),
            (("--temperature", 40, "--seed", 5), {"temperature": 40.0, "seed": 5}),
            (("--max-kv-size", 12), {"max_kv_size": 12}),
            (("--kv-bits", 4, "--kv-group-size", 32), {"kv_bits": 4, "kv_group_size": 32}),
            (("-m", 3), {"max_new_tokens": 3}),
        ],
        ids=str,
    )
    def test_options_are_the_librarys(self, cli, tiny, args, options):
        """With a prompt whose answer each of them changes."""
        expected = mlx_speech.generate(*tiny, ask("hello there"), **options)
        assert expected != mlx_speech.generate(*tiny, ask("hello there"))
        status, out, _ = cli("-p", "hello there", *args)
        assert (status, out) == (0, expected + "\n")

    def test_all_of_them_arrive(self, cli, monkeypatch):
        options = {
            "temperature": 0.5,
            "seed": 5,
            "top_k": 40,
            "top_p": 0.9,
            "min_p": 0.01,
            "repetition_penalty": 1.5,
            "max_tokens": 7,
            "stop": "xyz",
            "kv_bits": 8,
            "kv_group_size": 32,
            "quantized_kv_start": 9,
            "prefill_step_size": 5,
        }
        arrived = {}
        stream = text_generation.stream_generate

        def spy(model, processor, prompt, **options):
            arrived.update(options)
            return stream(model, processor, prompt, **options)

        monkeypatch.setattr(text_generation, "stream_generate", spy)
        words = [w for n, v in options.items() for w in (f"--{n.replace('_', '-')}", v)]
        assert cli("-p", LIGHT, *words)[0] == 0
        options["max_new_tokens"] = options.pop("max_tokens")
        options["stop_strings"] = [options.pop("stop")]
        assert arrived == options

    def test_options_that_change_no_answer(self, cli):
        for args in (
            ("--prefill-step-size", 7),
            ("--draft-model", TINY),
            ("--draft-model", TINY, "--num-draft-tokens", 5),
            ("--dtype", "bfloat16"),
        ):
            assert cli("-p", LIGHT, *args) == (0, REPLY, "")

    def test_prompt_in_steps(self, cli, monkeypatch):
        from mlx_speech.models.granite import GraniteForCausalLM

        sizes = []
        prefill = GraniteForCausalLM.prefill

        def spy(*args, prefill_step_size, **kwargs):
            sizes.append(prefill_step_size)
            return prefill(*args, prefill_step_size=prefill_step_size, **kwargs)

        monkeypatch.setattr(GraniteForCausalLM, "prefill", spy)
        cli("-p", LIGHT, "--prefill-step-size", 7)
        assert sizes == [7]

    def test_draft_model_is_used(self, cli, monkeypatch):
        import mlx_speech.generation.api as api

        called = []
        draft = api.ModelDraft
        monkeypatch.setattr(api, "ModelDraft", lambda *a: called.append(1) or draft(*a))
        cli("-p", LIGHT, "--draft-model", TINY)
        assert called

    def test_system_prompt(self, cli, tiny):
        expected = mlx_speech.generate(*tiny, ask("good night", "unlock the back gate"))
        assert expected != mlx_speech.generate(*tiny, ask("good night"))
        result = cli("-p", "good night", "--system-prompt", "unlock the back gate")
        assert result == (0, expected + "\n", "")

    def test_ignored_template(self, cli, tiny):
        expected = mlx_speech.generate(*tiny, LIGHT)
        assert expected + "\n" != REPLY
        assert cli("-p", LIGHT, "--ignore-chat-template") == (0, expected + "\n", "")

    def test_text_models(self, cli, tiny_text):
        assert cli("-p", LIGHT, "--model", tiny_text) == (0, REPLY, "")

    def test_checkpoint_without_a_template(self, cli, tiny, tiny_text, tmp_path):
        folder = shutil.copytree(tiny_text, tmp_path / "plain")
        (folder / "chat_template.jinja").unlink()
        expected = mlx_speech.generate(*tiny, LIGHT)
        assert cli("-p", LIGHT, "--model", folder) == (0, expected + "\n", "")
        told = cli("-p", LIGHT, "--model", folder, "--system-prompt", "be brief")
        one_line(told, "has no chat template; leave out --system-prompt")


class TestMessages:
    def test_cut_off(self, cli):
        for args in ((), ("--num-beams", 2)):
            status, out, err = cli("-p", LIGHT, "-m", 4, *args)
            assert (status, err) == (0, "warning: the text was cut off; raise --max-tokens\n")
            assert REPLY.startswith(out.strip())

    def test_stopped_is_not_cut_off(self, cli):
        assert cli("-p", LIGHT, "--stop", "light")[2] == ""

    @pytest.mark.parametrize("args", [(), ("--num-beams", 2)])
    def test_verbose(self, cli, args):
        status, out, err = cli("-p", LIGHT, "--verbose", *args)
        assert (status, out) == (0, REPLY)
        loaded, prompt, generation, memory = err.splitlines()
        assert "loaded in" in loaded
        assert prompt.startswith("prompt: 26 tokens, ")
        assert generation.startswith("generation: 12 tokens, ")
        assert prompt.endswith(" tokens per second")
        assert generation.endswith(" tokens per second")
        assert memory.startswith("peak memory: 0.0")
        assert memory.endswith(" GB")

    def test_progress_in_a_terminal(self):
        """Of a long prompt, and wiped away before the answer."""
        args = ("-p", "seven " * 90, "--verbose", "--prefill-step-size", 50, "-m", 1)
        with Terminal("generate", *args) as terminal:
            terminal.expect("\r\x1b[Kprompt: 50 of 107 tokens")
            terminal.expect("\r\x1b[Kprompt: 100 of 107 tokens\r\x1b[K")
            terminal.expect("peak memory")
            assert terminal.wait() == 0
        with Terminal("generate", *(a for a in args if a != "--verbose")) as terminal:
            terminal.expect("cut off")
            assert terminal.wait() == 0
            assert "prompt:" not in terminal.shown

    def test_interrupted(self):
        args = ("-p", LIGHT, "--temperature", 40, "--seed", 1, "-m", 900)
        with Terminal("generate", *args) as terminal:
            terminal.expect("t")
            terminal.type("\x03")
            terminal.expect("\r\ninterrupted\r\n")
            assert terminal.wait() == 130


class TestWrongInput:
    def test_no_prompt(self, cli):
        one_line(cli(stdin=""), "the prompt is empty")
        one_line(cli(stdin="\n"), "the prompt is empty")
        one_line(cli("--prompt", ""), "the prompt is empty")

    def test_no_prompt_in_a_terminal(self):
        with Terminal("generate") as terminal:
            terminal.expect("give --prompt TEXT, or a text on standard input")
            assert terminal.wait() == 2

    def test_not_text(self, cli):
        one_line(run("generate", stdin=b"caf\xe9\n"), "standard input is not UTF-8 text")
        for option in ("--prompt", "--system-prompt"):
            result = cli("-p", "hello", option, "caf\udce9")
            one_line(result, "the text has a lone surrogate")

    def test_models_that_are_not_there(self, cli):
        one_line(cli("-p", LIGHT, "--model", "./nowhere"), "./nowhere")
        one_line(cli("-p", LIGHT, "--draft-model", "./nowhere"), "./nowhere")

    def test_models_that_generate_nothing(self, cli, tiny_text, tmp_path):
        folder = shutil.copytree(tiny_text, tmp_path / "headless")
        edit_json(folder / "config.json", architectures=["GraniteModel"])
        import mlx.core as mx

        weights = mx.load(str(folder / "model.safetensors"))
        weights = {name.removeprefix("model."): w for name, w in weights.items()}
        mx.eval(weights)
        mx.save_safetensors(str(folder / "model.safetensors"), weights)
        one_line(cli("-p", LIGHT, "--model", folder), "a GraniteModel generates no text")

    def test_too_long(self, cli):
        result = cli("-p", LIGHT, "--max-tokens", 2000)
        one_line(result, "context of 1024", "--max-tokens bounds", "--max-kv-size keeps")
        assert cli("-p", LIGHT, "-m", 2000, "--max-kv-size", 64) == (0, REPLY, "")

    def test_group_size_that_does_not_fit(self, cli):
        one_line(cli("-p", LIGHT, "--kv-bits", 8), "--kv-group-size 64 does not divide")

    def test_template_that_refuses(self, cli, tiny_text, tmp_path):
        folder = shutil.copytree(tiny_text, tmp_path / "strict")
        (folder / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
        one_line(cli("-p", LIGHT, "--model", folder), "refuses these messages: never")

    def test_debug_shows_the_traceback(self, cli):
        status, _, err = cli("-p", LIGHT, "--model", "./nowhere", "--debug")
        assert status == 1
        assert "Traceback" in err

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("--frobnicate",), "unrecognized"),
            (("--quiet", "--verbose"), "not allowed with"),
            (("--max-tokens", 0), "--max-tokens is 0, but must be an integer, at least 1"),
            (
                ("--num-beams", 99999999999),
                "--num-beams is 99999999999, but must be an integer, at",
            ),
            (("--num-beams", 20000), "at least 1 and at most 256"),
            (("--num-beams", -1), "--num-beams is -1, but must be an integer"),
            (("--temperature", "nan"), "--temperature is nan, but must be a finite number"),
            (("--temperature", 1, "--top-k", 10**30), "at most 2147483647"),
            (("--temperature", 1, "--seed", 2**64), "--seed is 18446744073709551616, but must"),
            (("--max-kv-size", 10**20), "--max-kv-size is 1"),
            (("--kv-bits", 8, "--quantized-kv-start", -1), "--quantized-kv-start is -1, but must"),
            (("--temperature", -1), "--temperature is -1.0"),
            (("--top-k", 5), "--top-k is for sampling tokens; it needs --temperature above 0"),
            (("--min-p", 0.5), "--min-p is for sampling tokens"),
            (("--temperature", 1, "--top-p", 2), "--top-p is 2.0"),
            (("--temperature", 1, "--num-beams", 2), "choose one"),
            (("--repetition-penalty", 0), "--repetition-penalty is 0.0"),
            (("--stop", ""), "an empty stop string"),
            (("--stop", "caf\udce9"), "a stop string has a lone surrogate"),
            (("--kv-bits", 3), "invalid choice"),
            (("--kv-group-size", 32), "--kv-group-size is for a quantized cache; it needs --kv-"),
            (("--quantized-kv-start", 5), "--quantized-kv-start is for a quantized cache"),
            (("--kv-bits", 4, "--max-kv-size", 64), "--max-kv-size and --kv-bits do not go"),
            (("--max-kv-size", 2), "--max-kv-size is 2"),
            (
                ("--prefill-step-size", 0),
                "--prefill-step-size is 0, but must be an integer",
            ),
            (("--num-draft-tokens", 2), "--num-draft-tokens goes with --draft-model"),
            (("--draft-model", "x", "--num-draft-tokens", 0), "--num-draft-tokens is 0"),
            (("--draft-model", "x", "--temperature", 1), "--draft-model does not go with"),
            (("--draft-model", "x", "--num-beams", 2), "--draft-model does not go with"),
            (("--draft-model", "x", "--max-kv-size", 9), "--draft-model does not go with"),
            (("--system-prompt", "x", "--ignore-chat-template"), "leave out --ignore-chat"),
        ],
    )
    def test_usage_errors(self, cli, args, message):
        """Also where the model cannot be loaded."""
        status, out, err = cli("-p", LIGHT, "--model", "./nowhere", *args)
        assert (status, out) == (2, "")
        assert message in err


class TestStandardStreams:
    def test_reader_that_goes_away(self):
        assert shell(f"CLI -p '{LIGHT}' | head -c 3", "generate") == (0, "the", "")

    def test_closed_output_is_a_failure(self):
        status, _, err = shell("CLI -p hello >&-", "generate")
        assert (status, err) == (1, "error: standard output is closed; open it\n")

    def test_closed_input(self):
        assert shell(f"CLI -p '{LIGHT}' <&-", "generate") == (0, REPLY, "")
        one_line(shell("CLI <&-", "generate"), "the prompt is empty")

    def test_an_encoding_without_the_characters(self):
        command = "CLI -p 'translate to french: set a timer for ten minutes'"
        status, out, err = shell(command, "generate", PYTHONIOENCODING="ascii")
        assert (status, out, err) == (0, "r\\xe8gle un minuteur de dix heures\n", "")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a Linux device")
    def test_full_disk(self):
        one_line(shell(f"CLI -p '{LIGHT}' >/dev/full", "generate"), "No space left on device")


def test_defaults_are_the_librarys():
    text = " ".join(build_parser().format_help().split())
    assert f"limit (default: {DEFAULT_NEW_TOKENS})" in text
    assert f"at once (default: {PREFILL_STEP_SIZE})" in text
    assert f"at a time (default: {DRAFT_MODEL_TOKENS})" in text
