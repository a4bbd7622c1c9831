"""Signals are handled otherwise for a while, or wait for the end of what they must not leave
halfway."""

from __future__ import annotations

import signal
import threading

import pytest

from mlx_speech.signals import handled, uninterrupted


def test_ctrl_c_waits():
    done = []

    def work() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    with pytest.raises(KeyboardInterrupt):  # as ever
        signal.raise_signal(signal.SIGINT)


def test_handlers_are_called_as_ever():
    came = []
    before = signal.signal(signal.SIGTERM, lambda *signalled: came.append(signalled[0]))
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            assert came == []
        assert came == [signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert len(came) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_have_no_signals():
    handlers = []

    def look() -> None:
        with uninterrupted():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]


def test_handled_otherwise_and_then_as_before():
    came = []
    before = signal.getsignal(signal.SIGTERM)

    def fail() -> None:
        with handled({signal.SIGTERM: lambda number, frame: came.append(number)}):
            signal.raise_signal(signal.SIGTERM)
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert came == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before
