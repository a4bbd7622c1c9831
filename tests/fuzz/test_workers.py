"""What goes wrong in a process is told, and the others go on."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time

import pytest

from .workers import FAILED, FINE, Limits, run


def job(number: int) -> tuple[str, str]:
    match number:
        case 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        case 2:
            print("this is why", file=sys.stderr, flush=True)
            os._exit(3)
        case 3:
            bytearray(b"x" * (200 << 20))
        case 4:
            time.sleep(60)
    return FINE, str(number)


def test_what_goes_wrong_is_told():
    results = list(run(job, (0, 1, 2, 3, 5), limits=Limits(mebibytes=100)))
    assert [result.number for result in results] == [0, 1, 2, 3, 5]
    first, crash, exited, eat, last = results
    assert (first.outcome, first.message) == (FINE, "0")
    assert (last.outcome, last.message) == (FINE, "5")
    assert {result.outcome for result in (crash, exited, eat)} == {FAILED}
    assert crash.message.startswith("crash, SIGSEGV at test_workers.py:")
    assert exited.message == r"crash, exit status 3: 'this is why\n'"
    assert eat.message.endswith(" MiB, then fine 3")
    assert 190 < eat.mebibytes < 1000


def test_what_hangs_is_told():
    hang, last = run(job, (4, 5), limits=Limits(seconds=2))
    assert (hang.outcome, hang.message) == (FAILED, "no end after 2 s")
    assert last.outcome == FINE


def test_several_processes_share_the_numbers():
    results = list(run(job, range(10, 40), processes=3))
    assert sorted(result.number for result in results) == list(range(10, 40))
    assert {result.outcome for result in results} == {FINE}


def test_a_process_that_cannot_start():
    with pytest.raises((AttributeError, pickle.PicklingError)):
        list(run(lambda number: (FINE, ""), range(3)))
