"""The samples of one audio track, by PyAV, on the timeline of its container.

Where its timestamps leave a gap, there is silence. Parts that cannot be decoded are silence, too,
and a remark names them; where they are more than a few, or the end is missing, the track is
refused, whatever its codec.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from .av_log import Messages, failure_reason, first_line
from .headers import damaged
from .recording import BLOCK_FRAMES

_LEAST_GAP_SECONDS = 0.1  #: timestamps are rounded, and clocks drift
_LONGEST_GAP_SECONDS = 6 * 3600  #: where it would be longer, a timestamp is wrong
#: more damage is an error: seconds, or the share of a track where that is more
_MOST_DAMAGE_SECONDS, _MOST_DAMAGE = 2.0, 0.05
#: formats whose packets carry times; in the others they are counted
_TIMED = {"asf", "flac", "flv", "hls", "matroska", "mov", "mpeg", "mpegts", "nut", "ogg", "rm"}
#: formats whose header tells the length
_MEASURED = {"ape", "flac", "flv", "matroska", "mov", "ogg", "tak", "tta", "wv"}
_LENGTH_SLACK_SECONDS = 0.5
_MOST_PLANES = 7
#: a timestamp so far behind is of another recording, joined to the first: clocks drift by less
_REWOUND_SECONDS = 1.0
#: formats of nothing but frames, in which what is none comes in one packet with the next frame;
#: it shows by its size, in bytes and in usual packets
_BARE, _LONGEST_FRAME_BYTES, _LONGEST_FRAME = {"aac", "ac3", "eac3", "mp3"}, 2000, 4
#: where there are more doubts about MP3 frames, a few or a share of them, its encoder makes them
_FEW_DOUBTS, _MOST_DOUBTS = 3, 0.005
#: what FFmpeg only logs of an end that is missing, and of damage to a container
_CUT_SHORT = re.compile("partial file|end(ed|s) prematurely|Input/output error|timed out")
_CONTAINER_DAMAGED = re.compile("CRC mismatch|exceeds containing")
#: what an MP3 file may have between its frames, where files were joined, and players skip
_MP3_TAGS = (b"ID3", b"TAG", b"APETAGEX")
#: and how a frame begins that tells of the others, if so; encoders write their names in any frame
_MP3_INFO, _MP3_INFO_BYTES = (b"Xing", b"Info"), 64


class TrackSamples:
    """The samples of a track, and what was wrong with it.

    The one rule for damage: what a decoder refuses, or complains of, is a remark, and silence where
    nothing came of it, up to two seconds, or a twentieth of a longer track. More of it is an error,
    and so is an end that is missing.

    Args:
        container, track: of PyAV, the latter with a decoder and a sampling rate.
        name: of the file, for messages.
        messages: what is logged while it is read, see `captured_log`.
        measured: whether the length that the header tells is to be believed.
    """

    def __init__(self, container: Any, track: Any, name: str, messages: Messages, measured: bool):
        self._container, self._track, self._name = container, track, name
        self._messages = messages
        self._rate: int = track.rate
        self._kinds = set(container.format.name.split(","))
        # with a picture, the length may be the picture's
        self._measured = measured and self._kinds & _MEASURED and len(container.streams) == 1
        self._first = (container.start_time or 0) / 1_000_000
        if self._lost_pages():
            self._first = 0.0  # it is the first page's that could be read
        self._start = self._first  # of what is being read; further recordings may be joined to it
        self._frames = 0
        self._told = len(messages)  # opening it looks at other places
        self._lost = 0.0  # seconds
        self._damage: list[float] = []  # seconds at which packets were damaged
        self._ends_whole = True
        self._packets = self._bytes = 0  # of usual size
        self._strict = _strict_decoder(track.codec_context.codec.name)
        self._checked = 0  # packets, by it
        self._doubts: list[float] = []  # seconds of those that it refuses
        # damage is told by the checksums of FLAC and AC-3, and by MP3's numbers of bits
        track.codec_context.options = {"err_detect": "crccheck+compliant"}

    def blocks(self) -> Iterator[np.ndarray]:
        """Blocks (frames, channels) in float32 at the rate that the track begins with.

        Raises:
            AudioError: too much is damaged, or the end is missing.
        """
        import av

        waiting: list[np.ndarray] = []  # a decoder's own blocks are a few hundred frames
        frames = 0
        try:
            for part in self._parts():
                # the number of channels may be another from here on
                if waiting and (len(part) != len(waiting[0]) or frames >= BLOCK_FRAMES):
                    yield np.concatenate(waiting, axis=1).T
                    waiting, frames = [], 0
                waiting.append(part)
                frames += part.shape[1]
            if waiting:
                yield np.concatenate(waiting, axis=1).T
        except (av.FFmpegError, OSError) as error:
            raise damaged(self._name, failure_reason(error, self._messages)) from None
        self._check_end()

    def remarks(self) -> list[str]:
        """What was damaged, once all is read."""
        found = self._damage
        if len(self._doubts) <= max(_FEW_DOUBTS, _MOST_DOUBTS * self._checked):
            found = sorted([*found, *self._doubts])
        if not found:
            return []
        apart = [at for at, last in zip(found, [-2.0, *found], strict=False) if at > last + 1]
        places = [f"{at:.1f}" for at in apart]
        more = f" and {len(places) - 5} places more" if len(places) > 5 else ""
        return [f"it is damaged at {', '.join(places[:5])} s{more}; the rest was read"]

    def _parts(self) -> Iterator[np.ndarray]:
        """As `blocks`, frame by frame: (channels, samples), with silence where some are missing."""
        import av

        setup: tuple | None = None
        resampler: Any = None
        for packet in self._demuxed():
            refused = False
            try:
                decoded = packet.decode()
            except av.FFmpegError:  # decoders have many; there is no reading in it that could fail
                decoded, refused = [], True
            skipped = self._skipped(packet)
            complained = self._complained(packet, refused or skipped > 0)
            if self._strict and self._is_doubtful(packet) and not complained:
                self._doubts.append(self._seconds)
            if packet.size or complained:  # the last one is empty
                self._ends_whole = not complained
            if complained:
                seconds = float((packet.duration or 0) * packet.time_base)
                self._add_damage(skipped + seconds)
                yield from self._silence(skipped if decoded else skipped + seconds)
            for frame in decoded:
                found = (frame.format.name, frame.layout.name, frame.sample_rate)
                if found != setup:
                    yield from self._resampled(resampler, None)
                    setup, resampler = found, None
                    # PyAV reads past the planes of more channels
                    planar = frame.layout.nb_channels <= _MOST_PLANES
                    kind = "fltp" if planar else "flt"
                    if found[::2] != (kind, self._rate):
                        resampler = av.AudioResampler(kind, frame.layout, self._rate)
                if self._kinds & _TIMED and frame.time is not None:
                    gap = self._gap(frame.time)
                    if gap and (complained or self._kinds & {"flac"} or self._lost_pages()):
                        self._add_damage(gap)
                    yield from self._silence(gap)
                frame.pts = None
                yield from self._resampled(resampler, frame)
        yield from self._resampled(resampler, None)

    def _demuxed(self) -> Iterator[Any]:
        """The track's packets, and an empty one at their end."""
        import av

        while True:
            try:
                yield from self._container.demux(self._track)
                return
            except av.InvalidDataError:
                # 64 kB that are no Ogg, from behind which it goes on
                if not self._kinds & {"ogg"}:
                    raise

    @property
    def _seconds(self) -> float:
        """Of what is read so far."""
        return self._frames / self._rate

    def _resampled(self, resampler: Any, frame: Any) -> Iterator[np.ndarray]:
        """A frame, or with None what the resampler still holds, at the track's rate."""
        parts = resampler.resample(frame) if resampler else [frame]
        for part in filter(None, parts):
            self._frames += part.samples
            samples = part.to_ndarray()
            packed = not part.format.is_planar
            yield samples.reshape(-1, part.layout.nb_channels).T if packed else samples

    def _gap(self, time: float) -> float:
        """Seconds that are missing before a frame with this timestamp."""
        missing = time - self._start - self._seconds
        if not -_REWOUND_SECONDS < missing <= _LONGEST_GAP_SECONDS:
            self._start += missing
            self._measured = False  # nor is the length right
            return 0.0
        return missing if missing > _LEAST_GAP_SECONDS else 0.0

    def _lost_pages(self) -> bool:
        """Whether pages of an Ogg file were damaged, as far as it was looked at."""
        told = (what for *_, what in self._messages)
        return "ogg" in self._kinds and any(map(_CONTAINER_DAMAGED.search, told))

    def _silence(self, seconds: float) -> Iterator[np.ndarray]:
        count = round(seconds * self._rate)
        self._frames += count
        for start in range(0, count, BLOCK_FRAMES):
            yield np.zeros((1, min(BLOCK_FRAMES, count - start)), np.float32)

    def _complained(self, packet: Any, refused: bool) -> bool:
        """Whether the libraries told of damage since the last packet, or `refused` this one."""
        told, self._told = self._messages[self._told :], len(self._messages)
        codec = self._track.codec_context.codec.name
        damaged = any(who == codec or _CONTAINER_DAMAGED.search(what) for _, who, what in told)
        if not (refused or damaged):
            return False
        data = bytes(packet) if self._kinds & {"mp3"} else b""
        about = any(tag in data for tag in _MP3_TAGS)
        return not (about or any(tag in data[:_MP3_INFO_BYTES] for tag in _MP3_INFO))

    def _is_doubtful(self, packet: Any) -> bool:
        """Whether the strict decoder complains of a packet."""
        import av

        with suppress(av.FFmpegError):
            self._strict.decode(packet)
        self._checked += 1
        told, self._told = self._messages[self._told :], len(self._messages)
        return any("bits_left" in what for *_, what in told)

    def _skipped(self, packet: Any) -> float:
        """About how many seconds a packet has of what is no frame."""
        if not self._kinds & _BARE or not packet.size:
            return 0.0
        usual = self._bytes / self._packets if self._packets else packet.size
        if packet.size > max(_LONGEST_FRAME_BYTES, _LONGEST_FRAME * usual):
            return (packet.size / usual - 1) * self._seconds / self._packets
        self._packets += 1
        self._bytes += packet.size
        return 0.0

    def _add_damage(self, seconds: float) -> None:
        """To what is read so far."""
        self._lost += seconds
        if not self._damage or self._seconds > self._damage[-1] + 1:
            self._damage.append(self._seconds)

    def _check_end(self) -> None:
        """Raises `AudioError` where the end is missing, or too much is damaged."""
        told = [first_line(message) for *_, message in self._messages]
        reasons = [message for message in told if _CUT_SHORT.search(message)]
        length = (self._container.duration or 0) / 1_000_000 if self._measured else 0.0
        # some count a length from the first packet, some from 0
        if self._seconds < length - max(self._first, 0.0) - _LENGTH_SLACK_SECONDS:
            reasons.append(f"{self._seconds:.1f} of {length:.1f} s are there")
        if not self._ends_whole and not length:
            reasons.append(told[-1] if told else "its end cannot be decoded")
        if self._lost > max(_MOST_DAMAGE_SECONDS, _MOST_DAMAGE * self._seconds):
            reasons.append(f"{self._lost:.1f} of {self._seconds:.1f} s cannot be decoded")
        if reasons:
            raise damaged(self._name, reasons[0])


def _strict_decoder(codec: str) -> Any:
    """One that tells where an MP3 frame has more bits than it uses, the only check that it has.

    There are encoders that fill them up so; what it decodes is muted there, and not used.
    """
    import av

    if codec not in ("mp3", "mp3float"):
        return None
    decoder = av.CodecContext.create(codec, "r")
    decoder.options = {"err_detect": "buffer"}
    return decoder
