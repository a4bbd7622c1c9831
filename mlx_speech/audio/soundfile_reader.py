"""WAV, FLAC, Ogg, MP3 and the like, by soundfile (libsndfile)."""

import io
from collections.abc import Iterator

import numpy as np

from .headers import checked_size, damaged
from .recording import BLOCK_FRAMES, Recording, checked_rate, record

_MALFORMED_FILE = 3  # libsndfile's SF_ERR_MALFORMED_FILE
_MP3_FRAME = 1152


class NotDecodedError(Exception):
    """soundfile cannot decode the file."""


def read_sound(file: io.FileIO, name: str, target: float) -> Recording:
    """All of a file.

    Raises:
        AudioError: it is damaged or cut short.
        NotDecodedError: it is in a format that libsndfile does not read.
    """
    import soundfile

    checked = checked_size(file, name)
    try:
        # The descriptor rather than the path: soundfile would trust an extension such as .raw.
        handle = file.fileno() if checked is file else checked
        sound = soundfile.SoundFile(handle, closefd=False)
    except soundfile.LibsndfileError as error:
        if error.code == _MALFORMED_FILE:
            raise damaged(name) from None
        raise NotDecodedError from None
    with sound:
        is_mp3 = sound.subtype.startswith("MPEG")
        # After each block soundfile seeks to where it is, which is audible in MP3, and fails at the
        # end of FLAC from a pipe.
        sound.seekable = lambda: False
        rate = checked_rate(sound.samplerate, f"the sampling rate of {name}")
        return record(_sound_blocks(sound, name, is_mp3), rate, target, name)


def _sound_blocks(sound, name: str, is_mp3: bool) -> Iterator[np.ndarray]:
    """Blocks (frames, channels) of an open `soundfile.SoundFile`, all that its header promises."""
    import soundfile

    # FLAC from a pipe promises nothing: 2 ** 63 - 1. MP3 counts whole frames, and encoders disagree
    # on the padding to take off.
    missing = 0 if sound.frames >= 1 << 62 else sound.frames - (2 * _MP3_FRAME if is_mp3 else 0)
    while True:
        try:
            block = sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise damaged(name, error.error_string.strip().rstrip(".")) from None
        if not len(block):
            break
        missing -= len(block)
        yield block
    if missing > 0:
        raise damaged(name)
