"""The microphone, through sounddevice."""

import queue
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..errors import AudioError, InputError, MlxSpeechError

LONGEST_WAIT_SECONDS = 60.0  #: what waits for the model at most
LATE_SECONDS = 3.0  #: how much that is to be told
_BLOCK_SECONDS = 0.1


def sounddevice() -> Any:
    """The package.

    Raises:
        MlxSpeechError: it is not there, or does not work.
    """
    try:
        import sounddevice
    except ImportError as error:
        message = "the microphone needs sounddevice: pip install 'mlx-speech[mic]'"
        raise MlxSpeechError(message) from error
    except OSError as error:  # there is no PortAudio
        raise MlxSpeechError(f"sounddevice does not work: {error}") from error
    return sounddevice


def list_devices() -> str:
    """The microphones, a line each: what `--device` takes, and their names."""
    lines = [
        f"{number}\t{device['name']}\n"
        for number, device in enumerate(sounddevice().query_devices())
        if device["max_input_channels"]
    ]
    return "".join(lines) or "there is no microphone\n"


class Microphone:
    """One that is yet to be opened.

    Args:
        device: number or part of the name of one; None: the one that the system prefers.

    Raises:
        InputError: there is no such device.
        MlxSpeechError: there is no microphone.
    """

    def __init__(self, device: str | None):
        self._library = sounddevice()
        self._device = int(device) if device is not None and device.isdecimal() else device
        try:
            info = self._library.query_devices(self._device, "input")
        except (ValueError, self._library.PortAudioError) as error:
            if device is None:
                raise MlxSpeechError(f"there is no microphone: {error}") from error
            message = f"there is no microphone {device!r}: {error}; --list-devices tells which are"
            raise InputError(message) from error
        self.sampling_rate = int(info["default_samplerate"])
        self._blocks: queue.Queue[np.ndarray] = queue.Queue()
        self._lost_seconds = 0.0
        self._is_late = False

    def blocks(
        self, has_ended: Callable[[], bool], warn: Callable[[str], None]
    ) -> Iterator[np.ndarray]:
        """What comes from it, (n,) float32, until it is to end; then what still waits.

        What the model is too slow for waits, up to `LONGEST_WAIT_SECONDS`. What comes then is lost.

        Args:
            warn: is told of both.

        Raises:
            AudioError: it does not work.
        """
        options = {"channels": 1, "dtype": "float32", "callback": self._keep}
        size = round(_BLOCK_SECONDS * self.sampling_rate)
        try:
            opened = self._library.InputStream(self.sampling_rate, size, self._device, **options)
            with opened as stream:
                while not has_ended():
                    try:
                        block = self._blocks.get(timeout=2 * _BLOCK_SECONDS)
                    except queue.Empty:
                        if stream.active:
                            continue
                        message = "the microphone has stopped: is it still connected?"
                        raise AudioError(message) from None
                    self._tell(warn)
                    yield block
        except self._library.PortAudioError as error:
            raise AudioError(f"the microphone does not work: {error}") from error
        while not self._blocks.empty():
            self._tell(warn)
            yield self._blocks.get()

    def _keep(self, block: np.ndarray, frames: int, time: object, status: Any) -> None:
        """Called by PortAudio, in a thread of its own."""
        if status.input_overflow:
            self._lost_seconds += _BLOCK_SECONDS
        if self._waiting_seconds < LONGEST_WAIT_SECONDS:
            self._blocks.put(block[:, 0].copy())
        else:
            self._lost_seconds += frames / self.sampling_rate

    @property
    def _waiting_seconds(self) -> float:
        return self._blocks.qsize() * _BLOCK_SECONDS

    def _tell(self, warn: Callable[[str], None]) -> None:
        """Say where the model does not keep up."""
        if self._lost_seconds:
            lost, self._lost_seconds = self._lost_seconds, 0.0
            warn(f"{lost:.1f} s of sound were lost, as the model does not keep up")
        waiting = self._waiting_seconds
        if waiting >= LATE_SECONDS and not self._is_late:
            warn(f"the text is {waiting:.0f} s late: the model does not keep up")
        self._is_late = waiting >= (_BLOCK_SECONDS if self._is_late else LATE_SECONDS)
