"""What the headers of sound files promise, against what is there."""

import io
import os
import re
import struct

from ..errors import AudioError

#: what to do with a damaged recording, for messages
_SALVAGE = "get a whole copy, or have an audio editor save what is readable of it"
# Writers count headers and padding in, or out; what lacks less than this is whole.
_SLACK_BYTES = 256
# From here on, the size in a WAV or AIFF header is what a program writes that cannot know it: sox,
# arecord and ffmpeg, when they write to a pipe.
_UNKNOWN_SIZE = 0x7F000000
_UNKNOWN_SIZES = {1_000_000_000, 1_500_000_000, 2_000_000_000}  # likewise, of other programs
_BEYOND_ALL_FILES = 1 << 62  #: what sizes of 64 bits are then, -1 for example
_MOST_CHUNKS = 10_000  #: that are looked at for the one with the samples
_PADDING_BLOCK = 1 << 20
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_LONGEST_OGG_PAGE = 65307
_LONGEST_MP3_FRAME = 1441
_W64_RIFF, _W64_DATA = (
    tag + bytes.fromhex(rest)
    for tag, rest in ((b"riff", "2e91cf11a5d628db04c10000"), (b"data", "f3acd3118cd100c04f8edb8a"))
)


def damaged(name: str, reason: str = "") -> AudioError:
    """The error for a file that is not whole."""
    detail = f" ({reason})" if reason else ""
    return AudioError(f"{name} is damaged or cut short{detail}: {_SALVAGE}")


def check_length(file: io.FileIO, name: str) -> bool:
    """Whether libsndfile would read all of a file.

    It shortens a recording silently to what is there, believes a length of 0, guesses the length of
    an MP3 file, and stops after the first of joined MP3 or Ogg streams, and where one is damaged.

    Raises:
        AudioError: the header promises more than there is.
    """
    size = file.seek(0, os.SEEK_END)
    head = _read_at(file, 0, 40)
    if head[:4] == b"RIFF" and size > 1 << 32:
        raise AudioError(f"{name} is a WAV file over 4 GiB, which hides its length: make it FLAC")
    trusted, end = True, 0
    if head[8:12] in (b"WAVE", b"AIFF", b"AIFC"):
        start, end = _chunk_end(file, head)
        # a size of 0 is meant where nothing follows it, or another chunk
        unknown = end == start < size and not _begins_chunk(_read_at(file, start, 4))
        trusted = not ((unknown and head[8:12] == b"WAVE") or sizes_to_mend(file))
    elif head[8:12] == b"AVI ":
        length = int.from_bytes(head[4:8], "little")
        end = 8 + length if length < _UNKNOWN_SIZE else 0
    elif head[:4] == b"caff":
        end = _caf_end(file)
    elif head[:16] == _W64_RIFF:
        end = _w64_end(file)
    elif head[:4] in (b".snd", b"dns."):
        end, trusted = _au_end(head), not sizes_to_mend(file)
    elif head[:7] == b"NIST_1A":
        end = _sphere_end(file)
    elif head[:19] == b"Creative Voice File":
        end, blocks = _voc_end(file)
        trusted = blocks == 1  # libsndfile would read the heads of others as samples
    elif head[:4] == b"OggS":
        trusted, end = False, _ogg_end(file, size)
    elif head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        trusted, end = False, _mp3_end(file, head)
    if end > size + _SLACK_BYTES:
        raise AudioError(f"{name} is cut short, its header promises more: {_SALVAGE}")
    file.seek(0)
    return trusted


def _chunk_end(file: io.FileIO, head: bytes) -> tuple[int, int]:
    """Where the samples of WAV or AIFF begin, and where they end by the header; 0: unknown."""
    order = ">" if head[:4] in (b"RIFX", b"FORM") else "<"
    at, long_length = 12, 0
    for _ in range(_MOST_CHUNKS):
        if len(chunk := _read_at(file, at, 8)) < 8:
            break
        tag, length = struct.unpack(f"{order}4sI", chunk)
        at += 8
        if tag in (b"data", b"SSND"):
            if length >= _UNKNOWN_SIZE or length in _UNKNOWN_SIZES:
                return at, at + long_length if 0 < long_length < _BEYOND_ALL_FILES else 0
            return at, at + length
        if tag == b"ds64":  # RF64: the sizes that take more than 32 bits
            long_length = int.from_bytes(_read_at(file, at + 8, 8), "little")
        at += length + length % 2
    return at, 0


def _au_end(head: bytes) -> int:
    order = "<" if head[:1] == b"d" else ">"
    start, length = struct.unpack(f"{order}II", head[4:12].ljust(8, b"\0"))
    return start + length if 0 < length < _UNKNOWN_SIZE else 0


def _caf_end(file: io.FileIO) -> int:
    at = 8
    for _ in range(_MOST_CHUNKS):
        if len(chunk := _read_at(file, at, 12)) < 12:
            break
        tag, length = struct.unpack(">4sq", chunk)
        at += 12
        if tag == b"data" or length < 0:
            return at + length if length > 0 else 0  # -1: unknown
        at += length
    return 0


def _w64_end(file: io.FileIO) -> int:
    at = 40
    for _ in range(_MOST_CHUNKS):
        if len(chunk := _read_at(file, at, 24)) < 24:
            break
        length = int.from_bytes(chunk[16:], "little")
        if chunk[:16] == _W64_DATA:
            return at + length if length < _BEYOND_ALL_FILES else 0
        at += max(24, length + -length % 8)
    return 0


def _sphere_end(file: io.FileIO) -> int:
    header = _read_at(file, 0, 1024).decode("latin-1")
    if "pcm" not in (re.findall(r"sample_coding -s\d+ (\S+)", header) or ["pcm"]):
        return 0  # compressed
    numbers = dict(re.findall(r"(\w+) -i (\d+)", header))
    counts = [int(numbers.get(n, 0)) for n in ("sample_count", "sample_n_bytes", "channel_count")]
    start = re.match(r"NIST_1A\s+(\d{1,7})\s", header)
    return int(start[1]) + counts[0] * counts[1] * counts[2] if start else 0


def _voc_end(file: io.FileIO) -> tuple[int, int]:
    """Where its blocks end, and how many there are."""
    at = int.from_bytes(_read_at(file, 20, 2), "little")
    for blocks in range(_MOST_CHUNKS):
        if (block := _read_at(file, at, 4))[:1] in (b"", b"\0"):
            return at, blocks
        at += 4 + int.from_bytes(block[1:], "little")
    return 0, _MOST_CHUNKS


def sizes_to_mend(file: io.FileIO) -> dict[int, bytes]:
    """By position, what to read in place of sizes that are not known and that readers believe."""
    head, size = _read_at(file, 0, 24), file.seek(0, os.SEEK_END)
    if head[:4] in (b"RF64", b"BW64") and head[12:16] == b"ds64":
        start, end = _chunk_end(file, head)
        if not end and start < size:
            return {20: struct.pack("<QQQ", size - 8, size - start, 0)}
    elif head[:4] == b".snd" and head[8:12] == bytes(4):
        return {8: b"\xff" * 4}
    return {}


def joined_at(file: io.FileIO) -> int:
    """Where another file begins, which was joined behind one of a format that has an end; or 0.

    Neither libsndfile nor FFmpeg looks there.
    """
    head = _read_at(file, 0, 24)
    at, magic = 0, slice(0, 4)
    if head[:4] in (b"RIFF", b"RIFX", b"FORM") and head[8:12] != b"AVI ":
        length = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
        at = 8 + length + length % 2
    elif head[:4] == b"caff":
        at = _caf_end(file)
    elif head[:4] in (b".snd", b"dns."):
        at = _au_end(head)
    elif head[4:8] == b"ftyp":
        magic = slice(4, 8)
        for _ in range(_MOST_CHUNKS):
            box = _read_at(file, at, 16)
            length = int.from_bytes(box[8:16] if box[:4] == b"\0\0\0\1" else box[:4], "big")
            at += length
            if length < 8 or _read_at(file, at, 8)[magic] == head[magic]:
                break
    elif head[:16] == _ASF_HEADER:
        magic = slice(0, 16)
        for _ in range(_MOST_CHUNKS):
            length = int.from_bytes(_read_at(file, at + 16, 8), "little")
            at += length
            if length < 24 or _read_at(file, at, 16) == _ASF_HEADER:
                break
    return at if at and _read_at(file, at, 24)[magic] == head[magic] else 0


def unread(file: io.FileIO) -> str:
    """A remark on what stands behind the end that a header tells of, if that may be sound."""
    if at := joined_at(file):
        rest = "another recording begins there, which was not read: split the file"
        return f"it ends after {at} bytes; {rest}"
    head = _read_at(file, 0, 24)
    end = 0
    if head[8:12] in (b"WAVE", b"AIFF", b"AIFC"):
        start, end = _chunk_end(file, head)
        end = 0 if end == start else end + end % 2
    elif head[:4] == b"caff":
        end = _caf_end(file)
    elif head[:4] in (b".snd", b"dns."):
        end = _au_end(head)
    more = file.seek(0, os.SEEK_END) - end
    follows = _read_at(file, end, _SLACK_BYTES)
    if not end or more <= _SLACK_BYTES or _begins_chunk(follows) or not follows.strip(b"\0"):
        return ""
    return f"by its header it ends after {end} bytes; the {more} behind them were not read"


def _begins_chunk(data: bytes) -> bool:
    """Whether it has a chunk's name, four printable characters, and not samples."""
    return len(data) >= 4 and all(32 <= byte < 127 for byte in data[:4])


def padding(file: io.FileIO) -> int:
    """How many bytes behind a stream of frames are zeros, as some that save it leave."""
    head, size = _read_at(file, 0, 4), file.seek(0, os.SEEK_END)
    if head[:3] not in (b"ID3", b"fLa") and head[:1] not in (b"\xff", b"G", b"\x0b"):
        return 0
    zeros = 0
    while zeros < size:
        block = _read_at(
            file, max(0, size - zeros - _PADDING_BLOCK), min(_PADDING_BLOCK, size - zeros)
        )
        if used := len(block.rstrip(b"\0")):
            return zeros + len(block) - used
        zeros += len(block)
    return zeros


def tells_length(file: io.FileIO) -> bool:
    """Whether FFmpeg knows the length; of Ogg with much else behind it, it guesses."""
    return _read_at(file, 0, 4) != b"OggS" or bool(_last_ogg_page(file))


def _last_ogg_page(file: io.FileIO) -> bytes:
    """From the last page on, or nothing where more follows it than any page takes."""
    tail = _read_at(file, max(0, file.seek(0, os.SEEK_END) - _LONGEST_OGG_PAGE), _LONGEST_OGG_PAGE)
    return tail[at:] if (at := tail.rfind(b"OggS")) >= 0 else b""


def _ogg_end(file: io.FileIO, size: int) -> int:
    """Where the last page ends; beyond all slack, where not even its header is whole."""
    page = _last_ogg_page(file)
    if not page:
        return 0
    if len(page) < 27 or len(page) < 27 + page[26]:
        return size + _SLACK_BYTES + 1
    missing = 27 + page[26] + sum(page[27 : 27 + page[26]]) - len(page)
    return size + (_SLACK_BYTES + 1 if missing > 0 else 0)


def _mp3_end(file: io.FileIO, head: bytes) -> int:
    """By the number of bytes in the Xing header, which is in the first frame if there is one."""
    start = 0
    if head[:3] == b"ID3":  # a tag of 7 bits a byte before the first frame
        a, b, c, d = head[6:10].ljust(4, b"\0")
        start = 10 + (a << 21 | b << 14 | c << 7 | d)
    first = _read_at(file, start, 4096)
    at = max(first.find(b"Xing"), first.find(b"Info"))
    # Behind the mark: flags (1: has a number of frames, 2: has one of bytes), frames, bytes.
    if at < 0 or len(first) < at + 16 or first[at + 7] & 3 != 3:
        return 0
    frames, length = struct.unpack(">II", first[at + 8 : at + 16])
    if length >= _UNKNOWN_SIZE:
        return 0
    # programs disagree on which of the first frames to count
    frame = min(_LONGEST_MP3_FRAME, length // max(frames, 1))
    return start + max(0, first.find(b"\xff")) + length - 2 * frame


def _read_at(file: io.FileIO, position: int, length: int) -> bytes:
    if position > os.fstat(file.fileno()).st_size:  # or farther than can be sought
        return b""
    file.seek(position)
    return file.read(length)
