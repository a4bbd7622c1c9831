"""What ends a command line on several ranks, or a recording of it: told in one line, and kept."""

from __future__ import annotations

import os
import shutil
import signal
import time

import pytest
from commands import Caller
from conftest import TINY, edit_json
from parallel import AUDIO, contents, on_call, started, transcribed
from ranks import SECONDS, be_impatient, check_loss, finished

from mlx_speech.cli.transcribe import main

NAMES = ("espeak_00", "espeak_06", "festival_12", "flite_08")
RECORDINGS = [AUDIO / f"{name}.flac" for name in NAMES]
#: functions that a rank is in at the start, while it encodes, and while it decodes
MOMENTS = {
    "start": "mlx_speech.loading:load",
    "encoding": "mlx_speech.models.conformer_stream:BlockStream.push",
    "decoding": "mlx_speech.transcription.drafted_batch:DraftedBatch.begin",
}


@pytest.fixture
def cli(monkeypatch, capsys) -> Caller:
    return Caller(main, monkeypatch, capsys)


def check_others(processes, killed: int) -> None:
    """All but one have ended with one line."""
    for rank, process in processes.items():
        if rank != killed:
            check_loss(finished(process), rank)


def check_resumed(folder, cli) -> None:
    """With --resume what is missing comes, and what was there stays."""
    for path in folder.glob(".*"):  # what rank 0 was writing when it was killed
        path.unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert all(path.suffix == ".txt" for path in before)  # nothing half written
    first = cli(*RECORDINGS, "-o", folder, "--resume")
    assert first[:2] == (0, "")
    skipped = f", {len(before)} skipped\n" if before else "\n"
    assert first[2].startswith(f"{4 - len(before)} of 4 done")
    assert first[2].endswith(skipped)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(folder) == {
        "espeak_00.txt": b"eight three seven seven\n",
        "espeak_06.txt": contents(folder)["espeak_06.txt"],
        "festival_12.txt": contents(folder)["festival_12.txt"],
        "flite_08.txt": b"unlock the back gate\n",
    }


@pytest.mark.parametrize(("moment", "rank"), [("start", 2), ("encoding", 0), ("decoding", 1)])
def test_one_of_three_is_killed(tmp_path, cli, moment, rank):
    """At a moment at which, but for the start, others have done something."""
    folder = tmp_path / "out"
    folder.mkdir()
    done = f"any(name[0] != '.' for name in os.listdir('{folder}'))"
    wait = "" if moment == "start" else f"while not {done}: time.sleep(0.01)"
    die = f"""
import time
def die():
    {wait}
    os.kill(os.getpid(), signal.SIGKILL)
"""
    code = "import impatient" + die + on_call(rank, MOMENTS[moment], "die()")
    with started([*RECORDINGS, "-o", folder, "--quiet"], 3, tmp_path, code) as processes:
        assert processes[rank].wait(SECONDS) == -signal.SIGKILL
        be_impatient(tmp_path)
        check_others(processes, rank)
    assert bool(os.listdir(folder)) == bool(wait)
    check_resumed(folder, cli)


def test_a_rank_that_hangs_as_a_whole(tmp_path):
    """As one whose machine sleeps: it ends for the others, and by itself when it wakes."""
    stop = "import impatient" + on_call(
        1, MOMENTS["decoding"], "os.kill(os.getpid(), signal.SIGSTOP)"
    )
    # to a folder: what the other has done by then would be printed
    args = [*RECORDINGS, "-o", tmp_path / "out", "--quiet"]
    with started(args, 2, tmp_path, stop) as processes:
        how = os.waitid(os.P_PID, processes[1].pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert how.si_status == signal.SIGSTOP
        be_impatient(tmp_path)
        check_loss(finished(processes[0]), 0)
        processes[1].send_signal(signal.SIGCONT)
        check_loss(finished(processes[1]), 1)


def test_a_worker_that_hangs(tmp_path):
    """Its rank can still say so."""
    code = """
from mlx_speech.cli import rank_work
rank_work.HUNG_SECONDS, rank_work.HUNG_SHARE = 1.0, 0.0
import time
if rank == 1:
    from mlx_speech.transcription import pipeline
    pipeline.transcribe = lambda *args, **options: time.sleep(1000)
"""
    first, other = transcribed([*RECORDINGS, "-o", tmp_path / "out"], 2, tmp_path, code)
    hangs = "nothing was done for 0 minutes: it hangs\n"
    assert other == (1, "", f"error: rank 1: {hangs}")
    assert first == (1, "", f"error: rank 1 has failed: {hangs}")
    assert all(path.suffix == ".txt" for path in (tmp_path / "out").iterdir())


def test_a_rank_with_a_fault(tmp_path):
    """It shows where, and the others that there was one."""
    code = on_call(1, "mlx_speech.transcription.pipeline:transcribe", "raise KeyError('secret')")
    first, other = transcribed(RECORDINGS, 2, tmp_path, code)
    assert (first[0], first[2]) == (1, "error: rank 1 has failed: 'secret'\n")
    assert other[0] == 1
    assert "Traceback" in other[2]
    assert other[2].endswith("KeyError: 'secret'\n")


def test_a_full_disk_on_one_rank(tmp_path, cli):
    """Its recordings fail, which do not fit in memory; others are done."""
    code = """
import resource
from mlx_speech.audio import recording
if rank == 1:
    recording._MEMORY_SAMPLES = 1000
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
"""
    args = [*RECORDINGS, "-o", tmp_path / "out"]
    (status, _, said), other = transcribed(args, 2, tmp_path, code)
    assert (status, other) == (1, (0, "", ""))
    *errors, count, failed = said.splitlines()
    assert 1 <= len(errors) <= 3
    assert all(e.startswith("error: ") and "File too large" in e for e in errors), errors
    assert count.endswith(f", {len(errors)} failed")
    assert failed.count(".flac") == len(errors)
    assert len(contents(tmp_path / "out")) == 4 - len(errors)
    check_resumed(tmp_path / "out", cli)


@pytest.mark.parametrize("rank", range(2))
def test_interrupted(tmp_path, cli, rank):
    """Ctrl-C goes to all ranks; what was done is kept."""
    # rank 1 stays in its first recording, and rank 0 comes to its last
    code = on_call(1, "mlx_speech.transcription.pipeline:transcribe", "import time; time.sleep(50)")
    args = [*RECORDINGS, "-o", tmp_path / "out", "--verbose"]
    with started(args, 2, tmp_path, code) as processes:
        while not contents(tmp_path / "out"):
            time.sleep(0.05)
            assert processes[0].poll() is None
        # whichever gets it first
        for each in (rank, 1 - rank):
            processes[each].send_signal(signal.SIGINT)
        status, printed, said = finished(processes[0])
        assert (status, printed) == (130, "")
        assert "interrupted at 0:00:0" in said
        assert said.endswith("; --resume goes on from there\n")
        assert finished(processes[1]) == (0, "", "")
    check_resumed(tmp_path / "out", cli)


class TestDifferences:
    """Ranks that do not have the same are told apart before anything is done."""

    @pytest.fixture
    def homes(self, tmp_path):
        """A folder for each rank, which its command runs in, with a recording and a model."""
        for rank in range(2):
            (tmp_path / f"{rank}").mkdir()
            shutil.copy(RECORDINGS[0], tmp_path / f"{rank}" / "talk.flac")
            (tmp_path / f"{rank}" / "model").mkdir()
            for file in TINY.iterdir():
                (tmp_path / f"{rank}" / "model" / file.name).symlink_to(file)
        return tmp_path

    def said(self, homes, args, code: str = "") -> str:
        """What rank 0 says of what is wrong; nothing was done."""
        here = f"os.chdir('{homes}/' + str(rank))\n{code}"
        command = [*args, "--model", "model", "-o", homes / "out"]
        first, other = transcribed(command, 2, homes, here)
        assert (first[:2], other) == ((1, ""), (0, "", ""))
        assert not (homes / "out").exists() or not os.listdir(homes / "out")
        assert first[2].count("\n") == 1
        return first[2]

    def test_no_difference(self, homes):
        here = f"os.chdir('{homes}/' + str(rank))"
        results = transcribed(["talk.flac", "--model", "model"], 2, homes, here)
        assert results == [(0, "eight three seven seven\n", ""), (0, "", "")]

    def test_a_recording_that_is_not_there(self, homes):
        (homes / "1" / "talk.flac").unlink()
        absent = "rank 1 does not have talk.flac, which rank 0 has; all ranks need the same\n"
        # it is told of that, as it does not know what is missed
        assert self.said(homes, ["talk.flac"]) == f"error: {absent}"

    def test_another_recording(self, homes):
        shutil.copy(RECORDINGS[1], homes / "1" / "talk.flac")
        assert "error: talk.flac is another on rank 1 (" in self.said(homes, ["talk.flac"])

    def test_another_model(self, homes):
        config = homes / "1" / "model" / "config.json"
        text = config.read_text()
        config.unlink()
        config.write_text(text)
        edit_json(config, made_up=1)
        said = self.said(homes, ["talk.flac"])
        assert said.startswith("error: config.json of model is another on rank 1 (")

    def test_no_model(self, homes):
        shutil.rmtree(homes / "1" / "model")
        said = self.said(homes, ["talk.flac"])
        assert said.startswith("error: rank 1: there is no folder 'model' here")

    def test_a_model_that_cannot_be_loaded(self, homes):
        code = """
if rank == 1:
    from mlx_speech import CheckpointError, loading
    def load(*args, **options):
        raise CheckpointError("it does not fit")
    loading.load = load
"""
        assert self.said(homes, ["talk.flac"], code) == "error: rank 1: it does not fit\n"

    def test_another_version(self, homes):
        code = "import mlx_speech; mlx_speech.__version__ += '.post' * rank"
        said = self.said(homes, ["talk.flac"], code)
        assert said.startswith("error: mlx_speech is another on rank 1 (")
