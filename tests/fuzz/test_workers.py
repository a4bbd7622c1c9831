"""What goes wrong in a process is told, and the others go on."""

from __future__ import annotations

import os
import signal
import sys
import time

from .workers import FAILED, FINE, Limits, run

BAD = ("crash", "exit", "hang", "eat")


def job(number: int) -> tuple[str, str]:
    bad = dict(enumerate(BAD, 1)).get(number)
    if bad == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif bad == "exit":
        print("this is why", file=sys.stderr, flush=True)
        os._exit(3)
    elif bad == "hang":
        time.sleep(60)
    elif bad == "eat":
        bytearray(b"x" * (200 << 20))
    return FINE, str(number)


def test_what_goes_wrong_is_told():
    results = list(run(job, range(8), limits=Limits(seconds=3, mebibytes=100)))
    assert [result.number for result in results] == list(range(8))
    for number in (0, 5, 6, 7):
        assert (results[number].outcome, results[number].message) == (FINE, str(number))
    crash, exited, hang, eat = results[1:5]
    assert {result.outcome for result in results[1:5]} == {FAILED}
    assert crash.message.startswith("crash, SIGSEGV at test_workers.py:")
    assert exited.message == r"crash, exit status 3: 'this is why\n'"
    assert hang.message == "no end after 3 s"
    assert eat.message.endswith("MiB of memory, then fine 4")
    assert 190 < eat.mebibytes < 1000


def test_several_processes_share_the_numbers():
    results = list(run(job, range(10, 40), processes=3))
    assert sorted(result.number for result in results) == list(range(10, 40))
    assert {result.outcome for result in results} == {FINE}
