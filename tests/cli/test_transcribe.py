"""The command line as a user runs it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Caller, one_line, run
from conftest import DATA, ROOT, TINY, TINY_S2T

from mlx_speech import loading
from mlx_speech.cli.transcribe import build_parser, main
from mlx_speech.transcription import pipeline
from mlx_speech.transcription.pipeline import DEFAULT_MODEL
from mlx_speech.transcription.transcript import Segment, Transcript

AUDIO = DATA / "audio"
GATE = AUDIO / "flite_08.flac"
DIGITS = AUDIO / "espeak_00.flac"


@pytest.fixture
def cli(monkeypatch, capsys) -> Caller:
    return Caller(main, monkeypatch, capsys)


def test_only_the_transcript_on_standard_output(cli):
    status, out, err = run("transcribe", GATE, DIGITS)
    assert (status, out) == (0, "unlock the back gate\neight three seven seven\n")
    assert re.fullmatch(r"2 of 2 done \(0:00:0\d of audio, [\d.]+ x real time\)\n", err)
    assert cli(GATE) == (0, "unlock the back gate\n", "")
    assert cli(GATE, DIGITS, "--quiet") == (status, out, "")


def test_demo(reference):
    """What `make demo` runs, in the folder that it runs in."""
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    program, *arguments = shlex.split(recipe[1].replace("\\\n", ""))
    assert program == "@$(BIN)/python"
    done = subprocess.run([sys.executable, *arguments], capture_output=True, cwd=ROOT)
    assert done.returncode == 0
    text = reference["files"]["synthetic/flite_11.flac"]["greedy"]
    assert done.stdout.decode() == f"transcribed: {text}\nreally said: {text}\n"


def test_standard_input():
    assert run("transcribe", "-", stdin=GATE.read_bytes())[:2] == (0, "unlock the back gate\n")


def test_44_khz_stereo(cli):
    assert cli(AUDIO / "stereo_44k.flac") == (0, "unlock the back gate\n", "")


def test_the_default_model_is_the_librarys(monkeypatch):
    monkeypatch.delenv("MLX_SPEECH_MODEL", raising=False)
    assert build_parser().parse_args(["a.wav"]).model == DEFAULT_MODEL
    monkeypatch.setenv("MLX_SPEECH_MODEL", "mine")
    assert build_parser().parse_args(["a.wav"]).model == "mine"


@pytest.mark.parametrize("module", ["transcribe", "generate", "chat", "serve", "finetune"])
def test_help_fits_80_columns(module):
    status, out, _ = run(module, "--help", COLUMNS="80")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80


class TestFiles:
    def test_json_without_drafts(self, cli, tmp_path):
        assert cli(GATE, "-f", "json", "-o", tmp_path, "--no-draft")[:2] == (0, "")
        assert "drafts" not in json.loads((tmp_path / "flite_08.json").read_text())

    def test_json(self, cli, tmp_path):
        status, out, err = cli(GATE, "-f", "json", "-o", tmp_path, "--verbose")
        assert (status, out) == (0, "")
        assert "11 tokens in 1 pass of the decoder (0.09 a token); 10 of 10 drafted" in err
        document = json.loads((tmp_path / "flite_08.json").read_text())
        (segment,) = document.pop("segments")
        assert document == {
            "text": "unlock the back gate",
            "language": None,
            "duration": pytest.approx(1.51, abs=0.01),
            "model": str(TINY),
            "drafts": {"drafted": 10, "accepted": 10, "passes": 1, "tokens": 11},
        }
        assert -0.5 < segment.pop("avg_logprob") <= 0
        assert segment == {
            "start": pytest.approx(0, abs=0.1),
            "end": pytest.approx(document["duration"], abs=0.1),
            "text": "unlock the back gate",
            "words": [],
        }

    def test_json_without_the_decoder(self, cli, tmp_path):
        args = (GATE, "--ctc-only", "--word-timestamps", "--language", "en", "--verbose")
        status, out, err = cli(*args, "-f", "json", "-o", tmp_path)
        assert (status, out) == (0, "")
        assert " of the decoder" not in err
        document = json.loads((tmp_path / "flite_08.json").read_text())
        (segment,) = document.pop("segments")
        assert document == {
            "text": "unlock the back gate",
            "language": "en",
            "duration": pytest.approx(1.51, abs=0.01),
            "model": str(TINY),
        }
        assert [word["word"] for word in segment["words"]] == document["text"].split()
        assert -0.5 < segment["avg_logprob"] < 0
        assert cli(GATE, "--ctc-only", "--stream") == (0, "unlock the back gate\n", "")

    def test_a_model_without_a_known_head(self, cli):
        one_line(cli(GATE, "--ctc-only", "--model", TINY_S2T), "--ctc-only needs an encoder with")

    def test_a_model_without_an_editor(self, cli):
        turboctc = DATA / "tiny-turboctc"
        for model in (TINY, TINY_S2T, turboctc):
            message = "--skip-editor is for models that edit drafts; Granite Speech 4.1 NAR does"
            one_line(cli(GATE, "--skip-editor", "--model", model), message)

    def test_format_alone_writes_here(self, cli, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert cli(GATE, "-f", "txt") == (0, "", "")
        assert (tmp_path / "flite_08.txt").read_text() == "unlock the back gate\n"

    def test_folder_is_made_and_txt_is_the_format(self, cli, tmp_path):
        assert cli(GATE, DIGITS, "-o", tmp_path / "a" / "b", "--quiet") == (0, "", "")
        names = sorted(p.name for p in (tmp_path / "a" / "b").iterdir())
        assert names == ["espeak_00.txt", "flite_08.txt"]

    def test_nothing_is_overwritten_unless_asked(self, cli, tmp_path):
        existing = tmp_path / "flite_08.txt"
        existing.write_text("precious")
        status, _, err = cli(GATE, DIGITS, "-o", tmp_path)
        assert status == 1
        assert "flite_08.txt exists already; --overwrite replaces it" in err
        assert existing.read_text() == "precious"
        assert (tmp_path / "espeak_00.txt").exists()
        assert cli(GATE, "-o", tmp_path, "--overwrite")[0] == 0
        assert existing.read_text() == "unlock the back gate\n"

    def test_same_stem_keeps_both(self, cli, tmp_path):
        shutil.copy(GATE, tmp_path / "talk.flac")
        shutil.copy(AUDIO / "short.wav", tmp_path / "talk.wav")
        assert cli(tmp_path / "talk.flac", tmp_path / "talk.wav", "-o", tmp_path)[0] == 0
        assert (tmp_path / "talk.flac.txt").read_text() == "unlock the back gate\n"
        assert (tmp_path / "talk.wav.txt").read_text() != "unlock the back gate\n"

    def test_same_name_keeps_both(self, cli, tmp_path):
        shutil.copy(DIGITS, tmp_path / GATE.name)
        out = tmp_path / "out"
        assert cli(GATE, tmp_path / GATE.name, "-o", out)[0] == 0
        assert (out / "audio" / "flite_08.txt").read_text() == "unlock the back gate\n"
        assert (out / tmp_path.name / "flite_08.txt").read_text() == "eight three seven seven\n"

    def test_names_that_differ_in_case_are_one_on_macos(self, cli, tmp_path):
        """`a.txt` and `A.txt` are the same file on most Macs."""
        for name in ("a.flac", "A.wav"):
            shutil.copy(GATE, tmp_path / name)
        assert cli(tmp_path / "a.flac", tmp_path / "A.wav", "-o", tmp_path / "out")[0] == 0
        names = sorted(p.name for p in (tmp_path / "out").iterdir())
        assert names == ["A.wav.txt", "a.flac.txt"]
        shutil.copy(GATE, tmp_path / "A.flac")
        status, _, err = cli(tmp_path / "a.flac", tmp_path / "A.flac", "-o", tmp_path)
        if not (tmp_path / "a.FLAC").exists():  # else it is one file, done once
            assert status == 2
            assert "would be written for both" in err

    def test_a_failed_write_leaves_nothing(self, cli, tmp_path, monkeypatch):
        def full(*args, **options):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        status, _, err = cli(GATE, "-o", tmp_path)
        told = f"error: {GATE}: {tmp_path / 'flite_08.txt'}: No space left on device\n"
        assert (status, err) == (1, told)
        assert list(tmp_path.iterdir()) == []

    def test_folder_that_cannot_be_made(self, cli, tmp_path):
        (tmp_path / "file").write_text("")
        status, _, err = cli(GATE, "-o", tmp_path / "file" / "sub")
        assert (status, err.count("\n")) == (1, 1)
        assert "cannot make the folder" in err


class TestOptions:
    def test_prompt(self, cli):
        status, out, _ = cli(GATE, "--prompt", "translate the speech to french")
        assert (status, out) == (0, "déverrouille le portail arrière\n")

    def test_translate(self, cli):
        status, out, _ = cli(GATE, "--task", "translate", "--target-language", "fr")
        assert (status, out) == (0, "déverrouille le portail arrière\n")

    def test_beams_agree_with_the_reference(self, cli, reference):
        expected = reference["files"]["synthetic/espeak_04.flac"]
        assert expected["beam4"] != expected["greedy"]
        assert cli(AUDIO / "espeak_04.flac", "--num-beams", 4)[1] == expected["beam4"] + "\n"

    def test_stream_is_the_same_text(self, cli):
        for name in ("espeak_03.flac", "flite_08.flac"):
            plain = cli(AUDIO / name)
            assert plain[0] == 0
            assert cli(AUDIO / name, "--stream") == plain

    def test_seed(self, cli):
        drawn = [
            cli(AUDIO / "short.wav", "--temperature", 40, "--max-tokens", 9, "--seed", s, "--quiet")
            for s in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]

    def test_top_p(self, cli):
        """However hot, the likeliest alone is left to draw."""
        hot = (GATE, "--temperature", 40, "--seed", 1, "--max-tokens", 9, "--quiet")
        greedy = cli(GATE, "--max-tokens", 9, "--quiet")
        assert cli(*hot, "--top-p", 1e-6) == greedy != cli(*hot)

    def test_keywords(self, cli, tmp_path, monkeypatch):
        """From the command line, or from a file as editors write them."""
        (tmp_path / "words.txt").write_bytes("\ufeffMLX, Jais 2\r\n\r\n Äpfel\n".encode())
        for given in ("MLX, Jais 2 ,Äpfel", f"@{tmp_path / 'words.txt'}"):
            passed = {}

            def transcribe(source, model, *, progress, passed=passed, **options):
                passed.update(options)
                return Transcript("", None, 1.0, [])

            monkeypatch.setattr(pipeline, "transcribe", transcribe)
            assert cli(GATE, "--keywords", given)[0] == 0
            assert passed["keywords"] == ["MLX", "Jais 2", "Äpfel"]

    def test_keywords_that_the_model_does_not_take(self, cli):
        status, out, err = cli(GATE, "--keywords", "gate")
        assert (status, out) == (1, "")
        assert "was not trained for keywords; these were: Granite 4.0 Speech, " in err

    def test_options_of_segments_reach_the_library(self, cli, monkeypatch):
        passed = {}

        def transcribe(source, model, *, progress, **options):
            passed.update(options)
            return Transcript("", None, 1.0, [])

        monkeypatch.setattr(pipeline, "transcribe", transcribe)
        assert cli(GATE)[0] == 0
        flags = dict.fromkeys(("punctuate", "speakers", "ctc_only", "skip_editor"), False)
        assert passed == {"task": "transcribe", **flags}
        passed.clear()
        more = ("--word-timestamps", "--chunk-duration", 9, "--min-silence", 0.4)
        assert cli(GATE, *more, "--batch-size", 3)[0] == 0
        assert passed == {
            "task": "transcribe",
            **flags,
            "word_timestamps": "ctc",
            "chunk_duration": 9.0,
            "min_silence": 0.4,
            "batch_size": 3,
        }

    @pytest.mark.parametrize(
        ("options", "passed"),
        [
            ((), {}),
            (("--quiet",), {"progress": False}),
            (("--adapter", "owner/adapter"), {"adapter": "owner/adapter"}),
            (
                ("--revision", "v1", "--dtype", "float16"),
                {"revision": "v1", "dtype": "float16"},
            ),
        ],
    )
    def test_what_loading_is_told(self, cli, tiny, monkeypatch, options, passed):
        calls = []

        def load(name, **arguments):
            calls.append((name, arguments))
            return tiny

        monkeypatch.setattr(loading, "load", load)
        assert cli(GATE, "--model", "owner/name", *options)[0] == 0
        usual = {"revision": None, "dtype": None, "adapter": None, "progress": True}
        assert calls == [("owner/name", usual | passed)]

    def test_running_into_the_limit_is_said(self, cli):
        status, out, err = cli(GATE, "--max-tokens", 2)
        assert status == 0
        assert out.strip()
        assert "the text was cut off in the segments at 0:00:00: " in err
        assert cli(GATE, "--max-tokens", 2, "--quiet")[2] == ""

    def test_loops_are_said(self, cli, monkeypatch):
        def transcribe(source, model, *, progress, **options):
            segments = [
                Segment(60.0 * i, 60.0 * i + 9, "la", [1], -1, [], i % 2 == 0, i == 3)
                for i in range(13)
            ]
            return Transcript("la", None, 999.0, segments)

        monkeypatch.setattr(pipeline, "transcribe", transcribe)
        err = cli(GATE, "--verbose")[2]
        assert "at 0:00:00, 0:02:00, 0:04:00, 0:06:00, 0:08:00 and 2 more: they ran into" in err
        assert "the segment at 0:03:00 repeated itself; decoded again" in err
        assert "repeated itself" not in cli(GATE)[2]

    def test_stream_says_the_same_beside_the_text(self, cli):
        status, out, err = cli(GATE, "--stream", "--verbose", "--max-tokens", 2)
        assert (status, out) == (0, cli(GATE, "--max-tokens", 2)[1])
        assert "the text was cut off" in err
        assert "x real time" in err
        assert "peak memory" in err

    def test_dtype(self, cli):
        assert cli(GATE, "--dtype", "bfloat16") == (0, "unlock the back gate\n", "")

    def test_verbose(self, cli):
        status, out, err = cli(GATE, "--verbose")
        assert (status, out) == (0, "unlock the back gate\n")
        assert "x real time" in err
        assert "peak memory" in err


class TestWords:
    def test_in_json(self, cli, tmp_path):
        assert cli(GATE, "-f", "json", "-o", tmp_path, "--word-timestamps")[0] == 0
        (segment,) = json.loads((tmp_path / "flite_08.json").read_text())["segments"]
        assert [word["word"] for word in segment["words"]] == ["unlock", "the", "back", "gate"]

    def test_highlighted(self, cli, tmp_path):
        options = ("-f", "vtt", "-o", tmp_path, "--word-timestamps", "--highlight-words")
        assert cli(GATE, *options)[0] == 0
        assert "unlock the <u>back</u> gate" in (tmp_path / "flite_08.vtt").read_text()

    def test_a_model_that_cannot_tell_them(self, cli, tmp_path):
        model = ("--model", ROOT / "examples" / "tiny-s2t", "--word-timestamps")
        status, out, err = cli(GATE, *model)
        assert (status, err.count("\n")) == (0, 1)
        assert out
        assert "tiny-s2t gives the times of segments, but not of words" in err
        status, out, err = cli(GATE, *model, "-f", "srt", "-o", tmp_path, "--highlight-words")
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "--highlight-words needs the times of words, which " in err
