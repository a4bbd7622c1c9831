"""How long a recording may be, without decoding it: for plans, which no result depends on."""

import os
import stat

from .av_reader import promised_duration

_BYTES_PER_SECOND = 16_000  # of compressed sound, where its header tells nothing
_UNKNOWN_SECONDS = 600.0  # where not even the size is known: of addresses and pipes
_LONGEST_SECONDS = 1e6  # headers may promise anything


def likely_duration(source: str) -> float:
    """Seconds by the header of a file, or by its size; of what is no file, a guess."""
    try:
        if not stat.S_ISREG(os.stat(source).st_mode):
            return _UNKNOWN_SECONDS
        with open(source, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            promised = _by_soundfile(file.fileno()) or promised_duration(file)
    except (OSError, ValueError):  # ValueError: a NUL character in the path
        return _UNKNOWN_SECONDS
    return min(promised or size / _BYTES_PER_SECOND, _LONGEST_SECONDS)


def _by_soundfile(descriptor: int) -> float | None:
    import soundfile

    try:
        with soundfile.SoundFile(descriptor, closefd=False) as sound:
            known = 0 < sound.frames < 1 << 62  # FLAC from a pipe: 2 ** 63 - 1
            return sound.frames / sound.samplerate if known else None
    except (soundfile.LibsndfileError, ZeroDivisionError):
        return None
