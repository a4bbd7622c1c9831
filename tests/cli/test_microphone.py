"""What comes from a microphone where the model does not keep up, and where there is none."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mlx_speech import AudioError, InputError, MlxSpeechError
from mlx_speech.cli.microphone import LATE_SECONDS, LONGEST_WAIT_SECONDS, Microphone

RATE = 8000
BLOCK = 800  # samples, 0.1 s


class PortAudioError(Exception):
    pass


@pytest.fixture
def library(monkeypatch) -> SimpleNamespace:
    """Instead of sounddevice: a microphone that brings `count` blocks at once, numbered, before
    anybody asks for the first, and `overflows` of which came too late for PortAudio."""

    class InputStream:
        def __init__(self, samplerate, blocksize, device, channels, dtype, callback):
            assert (samplerate, blocksize, channels, dtype) == (RATE, BLOCK, 1, "float32")
            self.callback, self.active = callback, False

        def __enter__(self):
            if fake.broken:
                raise PortAudioError("Device unavailable")
            for number in range(fake.count):
                block = np.full((BLOCK, 1), number, np.float32)
                status = SimpleNamespace(input_overflow=number < fake.overflows)
                self.callback(block, BLOCK, None, status)
                block[:] = -1  # PortAudio uses it again
            return self

        def __exit__(self, *error):
            pass

    def query_devices(device, kind):
        if fake.missing:
            raise PortAudioError("Error querying device -1")
        if device not in (None, 3, "built-in"):
            raise ValueError(f"No input device matching {device!r}")
        return {"default_samplerate": float(RATE)}

    fake = SimpleNamespace(count=0, overflows=0, broken=False, missing=False)
    fake.InputStream, fake.query_devices = InputStream, query_devices
    fake.PortAudioError = PortAudioError
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


def taken(count: int) -> tuple[list[float], list[str]]:
    """The numbers of all blocks, after so many of which the microphone is closed; the warnings."""
    warnings, numbers = [], []
    for block in Microphone("3").blocks(lambda: len(numbers) >= count, warnings.append):
        assert block.shape == (BLOCK,)
        assert len(set(block)) == 1
        numbers.append(float(block[0]))
    return numbers, warnings


def test_all_of_it_comes_in_order(library):
    library.count = 20
    assert taken(20) == ([float(number) for number in range(20)], [])


def test_what_waits_when_it_ends_is_not_lost(library):
    library.count = 20
    assert taken(5) == ([float(number) for number in range(20)], [])


def test_what_was_lost_is_told_in_the_end(library):
    library.count = 700
    assert taken(0)[1][0].startswith("10.0 s of sound were lost")


def test_late(library):
    library.count = round(10 * LATE_SECONDS) + 10
    numbers, warnings = taken(library.count)
    assert len(numbers) == library.count
    assert warnings == ["the text is 4 s late: the model does not keep up"]


def test_too_late(library):
    """What waits is bounded, and what is lost is told."""
    library.count, most = 700, round(10 * LONGEST_WAIT_SECONDS)
    numbers, (lost, late) = taken(600)
    assert numbers == [float(number) for number in range(most)]
    assert lost == "10.0 s of sound were lost, as the model does not keep up"
    assert late.startswith("the text is 60 s late")


def test_lost_by_port_audio(library):
    library.count, library.overflows = 3, 2
    assert taken(3)[1] == ["0.2 s of sound were lost, as the model does not keep up"]


@pytest.mark.parametrize(("device", "works"), [(None, True), ("built-in", True), ("other", False)])
def test_devices(library, device, works):
    if works:
        assert Microphone(device).sampling_rate == RATE
        return
    with pytest.raises(InputError, match=r"no microphone 'other': No input .*--list-devices"):
        Microphone(device)


def test_failures(library):
    library.count = 3
    with pytest.raises(AudioError, match="the microphone has stopped"):
        taken(4)
    library.broken = True
    with pytest.raises(AudioError, match="does not work: Device unavailable"):
        taken(1)
    library.missing = True
    with pytest.raises(MlxSpeechError, match="there is no microphone: Error querying"):
        Microphone(None)
