"""What is there already: left, replaced, skipped, or just written by somebody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Caller, environment, files, touch
from conftest import DATA

from mlx_speech.cli.transcribe import main
from mlx_speech.transcription import pipeline

GATE = DATA / "audio" / "flite_08.flac"


@pytest.fixture
def cli(monkeypatch, capsys) -> Caller:
    return Caller(main, monkeypatch, capsys)


class TestExisting:
    def test_refused_before_any_work(self, cli, transcribed):
        touch("a.wav", "b.wav")
        Path("a.srt").write_text("precious")
        status, _, err = cli("a.wav", "b.wav", "-f", "txt,srt")
        assert status == 1
        assert "a.srt exists already; --overwrite replaces it" in err
        assert [source for source, _ in transcribed] == ["b.wav"]
        assert files() == ["a.srt", "a.wav", "b.srt", "b.txt", "b.wav"]
        assert Path("a.srt").read_text() == "precious"

    def test_no_model_is_loaded_for_nothing(self, cli, transcribed, monkeypatch):
        monkeypatch.setattr("mlx_speech.loading.load", None)
        touch("a.wav", "a.txt")
        assert cli("a.wav", "nowhere.wav", "-f", "txt")[0] == 1

    def test_overwrite(self, cli, transcribed):
        touch("a.wav", "a.txt")
        assert cli("a.wav", "-f", "txt", "--overwrite")[0] == 0
        assert Path("a.txt").read_text().startswith("first of")

    def test_a_folder_in_the_way(self, cli, transcribed):
        touch("a.wav", "a.txt/x")
        for option in ("--overwrite", "--resume", "--quiet"):
            status, _, err = cli("a.wav", "-f", "txt", option)
            assert (status, err) == (
                1,
                "error: a.wav: a.txt is a folder; choose another name with --output-name\n",
            )

    def test_resume(self, cli, transcribed):
        touch("a.wav", "b.wav", "c.wav")
        for name in ("a.txt", "a.srt", "b.srt"):
            Path(name).write_text("from before")
        status, _, err = cli("*.wav", "-f", "txt,srt", "--resume")
        assert status == 0
        assert [source for source, _ in transcribed] == ["b.wav", "c.wav"]
        assert "2 of 3 done" in err
        assert "1 skipped" in err
        assert Path("b.txt").read_text().startswith("first of b.wav")
        assert Path("b.srt").read_text() == "from before"
        status, _, err = cli("*.wav", "-f", "txt,srt", "--resume")
        assert (status, err) == (0, "0 of 3 done, 3 skipped\n")
        assert len(transcribed) == 2

    def test_folder_that_may_not_be_written_to(self, cli, transcribed, monkeypatch):
        touch("a.wav")
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        status, _, err = cli("a.wav", "-o", "out")
        assert (status, err) == (1, "error: nothing can be written to the folder out\n")
        assert not transcribed

    @pytest.mark.parametrize("option", ["--resume", "--overwrite", "--quiet"])
    def test_a_recording_is_no_output(self, cli, transcribed, option):
        """Least of all its own, as if it were done."""
        touch("talk.json", "b.wav")
        status, _, err = cli("talk.json", "b.wav", "-f", "json", option)
        assert status == 1
        assert "error: talk.json is a recording itself, which stays as it is\n" in err
        assert Path("talk.json").read_text() == ""
        assert [source for source, _ in transcribed] == ["b.wav"]

    def test_what_a_link_leads_to_is_replaced(self, cli, transcribed):
        touch("a.wav", "disk/a.txt")
        os.symlink("disk/a.txt", "a.txt")
        assert cli("a.wav", "-f", "txt", "--overwrite")[0] == 0
        assert Path("disk/a.txt").read_text().startswith("first of")
        assert Path("a.txt").is_symlink()


class TestMeanwhile:
    @pytest.fixture
    def coming(self, transcribed, monkeypatch):
        """Files that somebody else has written when a recording is transcribed."""
        names = []
        whole = pipeline.transcribe

        def transcribe(source, model, **options):
            for name in names:
                Path(name).write_text("theirs")
            return whole(source, model, **options)

        monkeypatch.setattr(pipeline, "transcribe", transcribe)
        return names

    @pytest.mark.parametrize("options", [(), ("--resume",)])
    def test_it_stays(self, cli, coming, options):
        """And of several formats none is written."""
        touch("a.wav")
        coming.append("a.txt")
        status, _, err = cli("a.wav", "-f", "all", *options)
        assert (status, err) == (1, "error: a.wav: a.txt exists already; --overwrite replaces it\n")
        assert files() == ["a.txt", "a.wav"]
        assert Path("a.txt").read_text() == "theirs"

    def test_with_leave_it_is_replaced(self, cli, coming):
        touch("a.wav")
        coming.append("a.txt")
        assert cli("a.wav", "-f", "txt", "--overwrite")[0] == 0
        assert Path("a.txt").read_text().startswith("first of")

    def test_for_real(self, tmp_path):
        """Several at once: one writes all, the others say why they do not."""
        command = [sys.executable, "-m", "mlx_speech.transcribe", str(GATE), "-f", "txt,json,srt"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [
            subprocess.Popen(command, cwd=tmp_path, env=environment(), **pipes) for _ in range(3)
        ]
        told = [process.communicate() for process in processes]
        assert sorted(process.returncode for process in processes) == [0, 1, 1]
        assert all(out == "" for out, _ in told)
        lost = [err for _, err in told if err]
        assert len(lost) == 2
        assert all("exists already; --overwrite replaces it\n" in err for err in lost)
        assert [err.count("\n") for err in lost] == [1, 1]
        assert files(tmp_path) == ["flite_08.json", "flite_08.srt", "flite_08.txt"]
        assert (
            json.loads((tmp_path / "flite_08.json").read_text())["text"] == "unlock the back gate"
        )


class TestLongNames:
    @pytest.mark.parametrize("stem", ["x" * 250, "é" * 125])
    def test_one_that_fits_with_its_ending(self, cli, transcribed, stem):
        touch(f"{stem}.wav")
        assert cli(f"{stem}.wav", "-f", "json")[:2] == (0, "")
        assert files() == [f"{stem}.json", f"{stem}.wav"]

    def test_one_that_does_not(self, cli, transcribed, monkeypatch):
        """Told before a model is loaded for it, and the others are done."""
        touch(f"{'x' * 251}.mp3")
        options = ("-f", "txt,json")
        monkeypatch.setattr("mlx_speech.loading.load", None)
        status, out, err = cli("x*", *options)
        assert (status, out) == (1, "")
        assert err.endswith("x.json: the name is too long, 256 bytes of 255; shorten it\n")

    @pytest.mark.parametrize("option", ["--output-name", "--plot", "-o"])
    def test_one_of_ones_own(self, cli, transcribed, monkeypatch, option):
        pytest.importorskip("matplotlib")
        monkeypatch.setattr("mlx_speech.loading.load", None)
        touch("a.wav")
        status, out, err = cli("a.wav", option, "é" * 126 + ".png")
        assert (status, out) == (1 if option != "--plot" else 2, "")
        assert "the name is too long, 2" in err
        assert max(map(len, err.splitlines())) <= 320
        assert files() == ["a.wav"]
