"""`python -m mlx_speech.finetune` as a user runs it; what is learned is in tests/training."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import Caller, Terminal, files, one_line
from conftest import DATA, DECODERS, TINY, TINY_S2T

from mlx_speech import load, transcribe
from mlx_speech.cli.finetune import main
from mlx_speech.cli.finetune_options import build_parser, parse_size, read_settings
from mlx_speech.training.options import FineTuneOptions

AUDIO = DATA / "audio"
RESULT = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
STATE = "training_state.safetensors"


@pytest.fixture
def cli(monkeypatch, capsys) -> Caller:
    return Caller(main, monkeypatch, capsys)


def write_rows(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder of rows: three to train on, one to validate with."""
    texts = {
        "flite_08": "unlock the front gate",
        "espeak_00": "eight three seven seven",
        "espeak_06": "turn on the office heater",
    }
    rows = [{"audio": str(AUDIO / f"{name}.flac"), "text": text} for name, text in texts.items()]
    write_rows(tmp_path / "recordings" / "train.jsonl", *rows)
    write_rows(tmp_path / "recordings" / "valid.jsonl", rows[0])
    return tmp_path / "recordings"


def settings(*args):
    """What a command line says."""
    return read_settings(build_parser().parse_args([*args, "--data", "recordings"]))


class TestOptions:
    def test_each_of_the_librarys_has_one_or_is_for_the_file(self):
        args = vars(build_parser().parse_args([]))
        for_the_file = {"lr_schedule", "optimizer_config"}
        assert FineTuneOptions.__dataclass_fields__.keys() - args.keys() == for_the_file
        assert {args[name] for name in FineTuneOptions.__dataclass_fields__ if name in args} == {
            None
        }

    def test_defaults_are_the_librarys(self, monkeypatch):
        monkeypatch.delenv("MLX_SPEECH_MODEL", raising=False)
        assert settings().options == FineTuneOptions()
        assert settings().model == "ibm-granite/granite-speech-4.1-2b"
        monkeypatch.setenv("MLX_SPEECH_MODEL", "mine")
        assert settings().model == "mine"

    def test_help_tells_them(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        text = " ".join(build_parser().format_help().split())
        for told in ("learning-rate X size of a step; a schedule is for the YAML file", "20GB"):
            assert told in text
        assert f"steps, each with one batch (default: {FineTuneOptions.iters})" in text

    @pytest.mark.parametrize(
        ("given", "nbytes"),
        [("1000", 1000), ("5GB", 5 * 10**9), ("2.5 mb", 2500000), ("0", 0), ("7B", 7)],
    )
    def test_sizes(self, given, nbytes):
        assert parse_size(given) == nbytes
        assert settings("--cache-limit", given).options.cache_limit == nbytes

    @pytest.mark.parametrize(
        ("args", "told"),
        [
            (["--cache-limit", "much"], "'much' is not a size such as 5GB or 500MB"),
            (["--iters", "0"], "--iters is 0, but must be an integer, at least 1"),
            (["--learning-rate", "0"], "--learning-rate is 0.0, but must be"),
            (["--resume", "--overwrite"], "choose one"),
            (["--fine-tune-type", "dora"], "invalid choice: 'dora'"),
            ([], "--data names the recordings to train on; give it"),
        ],
    )
    def test_wrong_usage(self, cli, args, told):
        status, out, err = cli(*args, *(["--data", "recordings"] if args else []))
        assert (status, out) == (2, "")
        assert told in err


class TestFile:
    def write(self, tmp_path, text) -> Path:
        (tmp_path / "lora.yaml").write_text(text)
        return tmp_path / "lora.yaml"

    def test_options_as_mlx_lm_has_them(self, tmp_path):
        """What `mlx_lm.lora` asks for itself, and an example of its."""
        from mlx_lm.lora import CONFIG_DEFAULTS

        shown = {**CONFIG_DEFAULTS, "train": True, "mask_prompt": True, "model": "mine"}
        shown = {k: v for k, v in shown.items() if k not in ("config", "data")}
        text = json.dumps(shown).replace("1e-05", "1e-5")
        file = self.write(tmp_path, f"{text[:-1]}, learning_rate: 2e-6}}")
        found = settings("-c", str(file))
        assert found.model == "mine"
        expected = FineTuneOptions(num_layers=16, learning_rate=2e-6, clear_cache_threshold=0)
        assert found.options == expected

    def test_the_command_line_counts_more(self, tmp_path):
        file = self.write(
            tmp_path,
            "data: elsewhere\niters: 5\nlearning_rate: 3e-5\nseed: 4\noptimizer: adamw\n"
            "cache_limit: 3GB\ndtype: bfloat16\nskip_bad: true\n"
            "lora_parameters: {rank: 4, scale: 2, keys: [self_attn.o_proj]}\n"
            "optimizer_config: {adamw: {weight_decay: 0.1}, adam: {bias_correction: true}}\n"
            "lr_schedule: {name: cosine_decay, warmup: 3, arguments: [1e-5, 10]}\n",
        )
        found = settings("-c", str(file), "--iters", "7", "--lora-scale", "3")
        assert (found.data, found.dtype) == ("recordings", "bfloat16")
        assert found.options == FineTuneOptions(
            iters=7,
            learning_rate=3e-5,
            seed=4,
            optimizer="adamw",
            optimizer_config={"weight_decay": 0.1},
            cache_limit=3 * 10**9,
            skip_bad=True,
            lora_rank=4,
            lora_scale=3.0,
            lora_keys=["self_attn.o_proj"],
            lr_schedule={"name": "cosine_decay", "warmup": 3, "arguments": [1e-5, 10]},
        )

    def test_an_empty_one_asks_for_nothing(self, tmp_path):
        assert settings("-c", str(self.write(tmp_path, "# nothing\n"))).options == FineTuneOptions()

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("iters: 5\nseed: [", ", line 2: not YAML: "),
            ("\0", "not YAML"),
            ("- iters", "must hold options and their values"),
            ("iters: many", "iters is 'many', but must be an integer, at least 1"),
            ("seed: 1.5", "seed is 1.5"),
            ("skip_bad: 1", "skip_bad is 1, but must be true or false"),
            ("model: 3", "model is 3, but must be text"),
            ("dtype: int8", "dtype is 'int8', but must be one of float32"),
            ("cache_limit: much", "'much' is not a size"),
            ("lora_parameters: 3", "lora_parameters is 3, but must be an object"),
            ("lora_parameters: {alpha: 3}", "unknown: lora_parameters.alpha; --help lists"),
            ("iter: 5\nrank: 3\n1: 2\na: b", "unknown: iter, rank, 1 and 1 more; --help lists"),
            ("test: true", "test is True, which there is not here; leave it out"),
            ("optimizer: sgdd", "optimizer is 'sgdd', but must be one of adam"),
            ("lr_schedule: 3", "lr_schedule is 3, but must be an object"),
        ],
    )
    def test_what_is_wrong_is_one_line(self, cli, tmp_path, text, told):
        file = self.write(tmp_path, text)
        one_line(cli("--data", tmp_path, "-c", file), f"{file}", told)

    def test_no_file(self, cli, tmp_path):
        one_line(cli("--data", tmp_path, "-c", tmp_path / "none.yaml"), "none.yaml: No such file")

    def test_without_data(self, cli, tmp_path):
        one_line(cli("-c", self.write(tmp_path, "iters: 3")), "--data names the recordings")


class TestTraining:
    def test_all_of_it(self, cli, data, tmp_path):
        """Trained, shown, described, loaded; not replaced, gone on with, replaced."""
        folder = tmp_path / "mine"
        args = ["--data", data, "--adapter-path", folder, "--batch-size", 3, "--seed", 1]
        short = ["--steps-per-report", 1, "--steps-per-eval", 1, "--learning-rate", "1e-3"]
        status, out, err = cli(*args, *short, "--iters", 2)
        assert (status, out) == (0, f"{folder}\n"), err
        loss, rate = r"validation loss \d+\.\d{4}", r"word error rate 25\.0 % of 4 words"
        speed = r"loss \d+\.\d{4}, [\d,]+ tokens/s, 0:00:\d\d left, peak memory \d\.\d\d GB"
        shown = [
            rf"step 0: {loss}, {rate}",
            rf"step 1/2: {speed}",
            rf"step 1: {loss}, word error rate [\d.]+ % of 4 words",
            rf"step 2/2: {speed}",
            rf"step 2: {loss}, word error rate [\d.]+ % of 4 words",
        ]
        lines = [line for line in err.splitlines() if "recordings:" not in line]
        assert len(lines) == len(shown)
        for line, pattern in zip(lines, shown, strict=True):
            assert re.fullmatch(pattern, line), line
        assert [f for f in files(folder) if not f.startswith("cache")] == [*RESULT, STATE]
        card = (folder / "README.md").read_text()
        for told in (
            "library_name: peft\n",
            "pipeline_tag: automatic-speech-recognition\n",
            "- lora\n",
            "# mine\n",
            "`recordings`: 3 recordings, 0.1 minutes; 1 recordings, 0.0 minutes to validate with",
            "2 steps of 3 recordings, adam at learning rate 0.001, seed 1.",
            "| 0 | ",
            " | 25.0 % |\n",
            "`tiny-granite-speech` names no licence",
        ):
            assert told in card
        assert str(tmp_path) not in card
        model = load(TINY, adapter=folder)
        assert transcribe(AUDIO / "flite_08.flac", model).text

        written = (folder / RESULT[2]).read_bytes()
        told = f"{folder} exists already; --overwrite replaces it; --resume goes on with the"
        one_line(cli(*args), told)
        assert (folder / RESULT[2]).read_bytes() == written
        status, out, err = cli(*args, *short, "--iters", 3, "--resume", "--quiet")
        assert (status, out, err) == (0, f"{folder}\n", "")
        assert (folder / "README.md").read_text().count(" % |\n") == 4
        status, out, err = cli(*args, "--iters", 1, "--overwrite", "--steps-per-report", 1)
        assert (status, out) == (0, f"{folder}\n"), err
        assert "step 1/1: " in err

    def test_ctrl_c_saves(self, data, tmp_path):
        folder = tmp_path / "mine"
        args = ["--data", data, "--adapter-path", folder, "--batch-size", 3]
        short = ["--steps-per-report", 1, "--iters", 10000]
        with Terminal("finetune", *args, *short) as terminal:
            terminal.expect(
                "encoding recordings: 1 of 3", "step 0: validation loss", "step 2/10000"
            )
            terminal.send(b"\x03")
            terminal.expect(f"is saved in {folder}; --resume goes on from there", f"{folder}")
            assert terminal.wait() == 130
        step = int(re.search(r"interrupted: step (\d+) of 10000", terminal.shown)[1])
        assert step >= 2
        assert "stopped before its end" in (folder / "README.md").read_text()


class TestRefused:
    def test_bad_rows_are_listed(self, cli, tmp_path):
        gate = str(AUDIO / "flite_08.flac")
        rows = [
            {"audio": gate, "text": "unlock the back gate"},
            {"audio": gate, "text": " "},
            {"audio": "none.wav", "text": "nothing"},
        ]
        path = write_rows(tmp_path / "recordings" / "train.jsonl", *rows)
        folder = tmp_path / "mine"
        status, out, err = cli("--data", path, "--adapter-path", folder)
        assert (status, out) == (1, "")
        *bad, last = err.splitlines()
        assert [line.split(": ")[0] for line in bad] == ["train.jsonl:2", "train.jsonl:3"]
        assert "--skip-bad leaves them out" in last
        assert not (folder / RESULT[1]).exists()

    def test_texts_without_recordings(self, cli, tmp_path):
        rows = [
            {"messages": [{"role": "user", "content": "hi"}]},
            {"prompt": "a", "completion": "b"},
        ]
        path = write_rows(tmp_path / "texts" / "train.jsonl", *rows)
        told = "mlx_lm.lora --train trains text models on that"
        one_line(cli("--data", path, "--adapter-path", tmp_path / "mine"), told)

    @pytest.mark.parametrize(
        ("model", "told"),
        [
            (DECODERS / "granite", "mlx_lm.lora --train"),
            (TINY_S2T, "speech_to_text"),
        ],
    )
    def test_models_that_are_not_trained_here(self, cli, data, tmp_path, model, told):
        args = ["--data", data, "--adapter-path", tmp_path / "mine", "--model", model]
        one_line(cli(*args), told)
        assert not (tmp_path / "mine").exists()

    def test_no_data(self, cli, tmp_path):
        """Before a model is fetched for it."""
        gate = AUDIO / "flite_08.flac"
        for data, told in ((tmp_path / "x", "x does not exist"), (gate, "is not data: that is")):
            one_line(cli("--data", data, "--model", "nobody/has-this"), told)

    def test_a_model_without_a_name(self, cli, data, tmp_path):
        """Is not the default."""
        args = ["--data", data, "--adapter-path", tmp_path / "mine", "--model", ""]
        one_line(cli(*args), "'' is not the name of a Hub repository")

    def test_what_no_training_wrote_stays(self, cli, data, tiny_copy):
        before = files(tiny_copy)
        for more in ([], ["--overwrite"]):
            result = cli("--data", data, "--adapter-path", tiny_copy, *more)
            one_line(result, "holds what no training wrote: ", "give another --adapter-path")
        assert files(tiny_copy) == before

    def test_nothing_to_go_on_with(self, cli, data, tmp_path):
        result = cli("--data", data, "--adapter-path", tmp_path / "mine", "--resume")
        one_line(result, "has no training in it to go on with; leave out --resume")

    def test_a_file_in_the_place_of_the_folder(self, cli, data):
        args = ["--data", data, "--adapter-path", data / "train.jsonl"]
        one_line(cli(*args), "--adapter-path", "is a file; give another")
