"""What the headers of sound files promise, checked where libsndfile believes them or guesses."""

import io
import os
import struct

from ..errors import AudioError

#: what to do with a damaged recording, for messages
_SALVAGE = "get a whole copy, or have an audio editor save what is readable of it"

# From here on, the size in a WAV header is what a program writes that cannot know it: sox, arecord
# and ffmpeg, when they write to a pipe.
_UNKNOWN_WAV_BYTES = 0x7FFFF000


def damaged(name: str, reason: str = "") -> AudioError:
    """The error for a file that is not whole."""
    detail = f" ({reason})" if reason else ""
    return AudioError(f"{name} is damaged or cut short{detail}: {_SALVAGE}")


class _Patched(io.FileIO):
    """A file with 4 bytes that read as 0xFF, whatever they are."""

    def __init__(self, file: io.FileIO, position: int):
        super().__init__(file.fileno(), closefd=False)
        self._position = position

    def readinto(self, buffer) -> int:
        first = self._position - self.tell()
        length = super().readinto(buffer)
        with memoryview(buffer).cast("B") as view:
            for at in range(max(0, first), min(first + 4, length)):
                view[at] = 0xFF
        return length


def checked_size(file: io.FileIO, name: str) -> io.FileIO:
    """The file, or a view with its size set where a WAV writer left 0; raises if data is missing.

    libsndfile shortens a recording silently to what is there, and believes a length of 0.
    """
    size = file.seek(0, os.SEEK_END)
    head = _read_at(file, 0, 12)
    missing = False
    order = {b"RIFF": "<", b"RF64": "<", b"RIFX": ">", b"FORM": ">"}.get(head[:4])
    if head[:4] == b"RIFF" and size > 1 << 32:
        raise AudioError(f"{name} is a WAV file over 4 GiB, which hides its length: make it FLAC")
    if order and head[8:] in (b"WAVE", b"AIFF", b"AIFC"):
        at, long_length = 12, 0
        while len(chunk := _read_at(file, at, 8)) == 8:
            tag, length = struct.unpack(f"{order}4sI", chunk)
            if tag in (b"data", b"SSND"):
                whole_length = struct.unpack(f"{order}I", head[4:8])[0] + 8
                left = size - at - 8
                if head[8:] == b"WAVE" and not length and left and whole_length != size:
                    file = _Patched(file, at + 4)
                missing = left < (length if length < _UNKNOWN_WAV_BYTES else long_length)
                break
            if tag == b"ds64":  # RF64: the sizes that take more than 32 bits
                long_length = int.from_bytes(_read_at(file, at + 16, 8), "little")
            at += 8 + length + length % 2
    elif head[:4] == b"OggS":
        tail = _read_at(file, max(0, size - 65307), 65307)  # the longest page
        # Where something longer follows the last page, the tail is as long as any page.
        page = tail[max(0, tail.rfind(b"OggS")) :]
        missing = len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])
    if missing:
        raise AudioError(f"{name} is cut short, its header promises more: {_SALVAGE}")
    file.seek(0)
    return file


def lacks_length(file: io.FileIO) -> bool:
    """Whether it is an MP3 file that does not state its length, or not of all of it.

    libsndfile stops at a length that it guesses from the first frame where none is stated, and
    after the first of several joined files.
    """
    head = _read_at(file, 0, 10)
    start = 0
    if head[:3] == b"ID3":  # a tag of 7 bits a byte before the first frame
        a, b, c, d = head[6:]
        start = 10 + (a << 21 | b << 14 | c << 7 | d)
    first = _read_at(file, start, 4096)
    sync = len(first) - len(first.lstrip(b"\0"))
    frame = int.from_bytes(first[sync : sync + 2], "big")
    if frame & 0xFFE6 != 0xFFE2:  # an MPEG frame of layer III
        return False
    at = max(first.find(b"Xing"), first.find(b"Info"))
    # Behind the mark: flags (1: has a number of frames, 2: has one of bytes), frames, bytes.
    if at < 0 or len(first) < at + 16 or first[at + 7] & 3 != 3:
        return True
    length = int.from_bytes(first[at + 12 : at + 16], "big")
    rest = _read_at(file, start + sync + length, 129)
    return bool(rest) and not (rest[:3] == b"TAG" and len(rest) == 128)  # a tag ends many files


def _read_at(file: io.FileIO, position: int, length: int) -> bytes:
    file.seek(position)
    return file.read(length)
