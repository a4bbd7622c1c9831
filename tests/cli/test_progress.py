"""How far it is: lines where standard error is no terminal. A bar is tested in a terminal."""

from __future__ import annotations

import time

import pytest

from mlx_speech.cli import progress
from mlx_speech.cli.progress import Progress, clock


@pytest.fixture
def wait(monkeypatch):
    """Lets time pass."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_a_line_now_and_then(wait, capsys):
    shown = Progress(3, silent=False, bar=False)
    with shown.recording(1, "a.wav") as update:
        for done in (0, 300, 600):
            update(done, 7200)
            wait(progress.SECONDS_BETWEEN_LINES - 1)
        update(900, 7200)
    wait(10)
    with shown.recording(2, "b.wav") as update:
        wait(20)
        update(50, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "[1/3] a.wav: 0:10:00 of 2:00:00, 10.3 x real time, 0:10:38 left",
        "[2/3] b.wav: 0:00:50 of 0:01:40, 2.5 x real time, 0:00:20 left",
    ]
    assert (shown.name, shown.done, shown.duration) == ("b.wav", 50, 100)


def test_one_recording_is_not_counted(wait, capsys):
    with Progress(1, silent=False, bar=False).recording(1, "a.wav") as update:
        wait(60)
        update(60, 120)
    assert capsys.readouterr().err == "a.wav: 0:01:00 of 0:02:00, 1.0 x real time, 0:01:00 left\n"


@pytest.mark.parametrize("bar", [True, False])
def test_silent(wait, capsys, bar):
    shown = Progress(1, silent=True, bar=bar)
    with shown.recording(1, "a.wav") as update:
        wait(3600)
        update(60, 120)
    assert capsys.readouterr().err == ""
    assert shown.done == 60


def test_bar(wait, capsys):
    with Progress(2, silent=False, bar=True).recording(2, "a" * 60) as update:
        update(0, 200)
        wait(10)
        time.sleep(0.2)  # tqdm draws no more often than every 0.1 s
        update(100, 200)
        last = capsys.readouterr().err.rpartition("\r")[2]
    assert "[2/2] aaaa...aaaaaaaaaaaaaaaaa:  50%|" in last
    assert "left, 10.0 x real time" in last
    assert capsys.readouterr().err.endswith("\r")  # nothing of it stays


@pytest.mark.parametrize(("total", "title"), [(3, "3 recordings"), (1, "a.wav")])
def test_everything(wait, capsys, total, title):
    shown = Progress(total, silent=False, bar=False)
    with shown.everything("a.wav") as update:
        wait(60)
        update(60, 120)
    expected = f"{title}: 0:01:00 of 0:02:00, 1.0 x real time, 0:01:00 left\n"
    assert capsys.readouterr().err == expected
    assert (shown.name, shown.done, shown.duration) == (title, 60, 120)


def test_hidden(wait, capsys):
    """What is printed meanwhile has a line of its own; then the bar is there again."""
    shown = Progress(2, silent=False, bar=True)
    with shown.hidden():  # there is none yet
        pass
    assert capsys.readouterr().err == ""
    with shown.everything("a.wav") as update:
        update(50, 200)
        assert "2 recordings: " in capsys.readouterr().err
        with shown.hidden():
            assert capsys.readouterr().err.strip() == ""
        assert "2 recordings:  25%|" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00:00"), (59.6, "0:01:00"), (3600 * 11 + 61, "11:01:01")]
)
def test_clock(seconds, shown):
    assert clock(seconds) == shown
