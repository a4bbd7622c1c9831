"""WAV, FLAC and the like, by soundfile (libsndfile)."""

import io
import os
from collections.abc import Iterator

import numpy as np

from .recording import BLOCK_FRAMES, Channel, Recording, checked_rate, record


class NotDecodedError(Exception):
    """soundfile cannot decode the file, or not all of it."""


def read_sound(file: io.FileIO, name: str, target: float, channel: Channel = None) -> Recording:
    """All of a file that is whole (`check_length`).

    Raises:
        NotDecodedError: it is in a format that libsndfile does not read, or damaged.
    """
    import soundfile

    try:
        # The descriptor rather than the path: soundfile would trust an extension such as .raw.
        sound = soundfile.SoundFile(file.fileno(), closefd=False)
    except soundfile.LibsndfileError:
        raise NotDecodedError from None
    with sound:
        # After each block soundfile seeks to where it is, which fails at the end of FLAC from a
        # pipe.
        sound.seekable = lambda: False
        rate = checked_rate(sound.samplerate, f"the sampling rate of {name}")
        size = os.fstat(file.fileno()).st_size
        return record(_sound_blocks(sound), rate, target, name, channel, size)


def _sound_blocks(sound) -> Iterator[np.ndarray]:
    """Blocks (frames, channels) of an open `soundfile.SoundFile`, all that its header promises."""
    import soundfile

    missing = sound.frames if sound.frames < 1 << 62 else 0  # FLAC from a pipe: 2 ** 63 - 1
    while True:
        try:
            block = sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:
            raise NotDecodedError from None
        if not len(block):
            break
        missing -= len(block)
        yield block
    if missing > 0:
        raise NotDecodedError
