"""Audio and video of any container, by PyAV, whose wheels bring FFmpeg's libraries along."""

import io
import os
from contextlib import suppress
from typing import Any

from ..errors import AudioError
from .av_log import captured_log, failure_reason
from .av_track import TrackSamples
from .headers import padding, sizes_to_mend, tells_length
from .recording import Channel, Recording, checked_rate, chosen_track, record

#: how often FFmpeg may seek in a file: so often, and once more for so many bytes of it
_MOST_SEEKS, _SEEK_BYTES = 1_000_000, 64
_FETCH_SECONDS = 60  #: how long an address may say nothing
_SILENT_PEAK = 1e-3  #: a track that has no sample above it (-60 dB) is silent
#: containers that name no other files: no playlists, pictures or devices
_FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,dtshd,eac3,flac,flv,matroska,mov,mp3,mpc,"
    "mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,oma,rm,sox,spdif,tak,truehd,tta,voc,w64,wav,wv,xwma"
)
_FILE = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
#: from an address, playlists of addresses, but never a file
_ADDRESS = {
    "format_whitelist": f"{_FORMATS},hls",
    "protocol_whitelist": "http,https,tcp,tls,crypto,httpproxy",
    "rw_timeout": str(_FETCH_SECONDS * 1_000_000),
}


def read_media(
    source: io.FileIO | str,
    name: str,
    target: float,
    track: int | None = None,
    channel: Channel = None,
) -> Recording:
    """An audio track of a file, or of what is at an http(s) address.

    Args:
        track: its number among the audio tracks, from 1; None: the first that is not silent, or
            the first where all are.
        channel: see `record`.

    Raises:
        AudioError: there is none, or none of this number; or it is in no format that FFmpeg reads,
            damaged, or cut short.
    """
    first = chosen = _read_track(source, name, target, track or 1, channel)
    if track is None:
        while chosen.peak < _SILENT_PEAK and chosen.track < chosen.tracks:
            chosen = _read_track(source, name, target, chosen.track + 1, channel)
        if chosen.peak < _SILENT_PEAK:
            chosen = first
        if chosen.tracks > 1:
            chosen.remarks.append(chosen_track(chosen, "not silent"))
    return chosen


def _read_track(
    source: io.FileIO | str, name: str, target: float, number: int, channel: Channel
) -> Recording:
    """The audio track of this number; errors as in `read_media`."""
    import av

    fetched = isinstance(source, str)
    measured = True
    how: dict[str, Any] = {"options": _FILE, "metadata_errors": "replace"}
    media: str | _BoundedFile
    if isinstance(source, str):
        media = source
        how |= {"options": _ADDRESS, "timeout": _FETCH_SECONDS}
    else:
        measured = tells_length(source)
        media = _BoundedFile(source)
    with captured_log() as messages:
        try:
            with av.open(media, **how) as container:
                tracks = container.streams.audio
                if not tracks:
                    raise AudioError(
                        f"{name} is not audio, or a video without sound: it has no audio track"
                    )
                if number > len(tracks):
                    has = "1 audio track" if len(tracks) == 1 else f"{len(tracks)} audio tracks"
                    raise AudioError(f"{name} has {has}, and none with number {number}")
                track = tracks[number - 1]
                if track.codec_context is None:
                    raise ValueError("there is no decoder for its audio")
                if not track.rate:
                    raise ValueError("there is no frame of audio in it")
                rate = checked_rate(track.rate, f"the sampling rate of {name}")
                samples = TrackSamples(container, track, name, messages, measured)
                size = container.size if container.size > 0 else None
                recording = record(samples.blocks(), rate, target, name, channel, size)
                recording.remarks += samples.remarks()
                recording.track, recording.tracks = number, len(tracks)
                return recording
        except (av.FFmpegError, OSError, ValueError) as error:
            if any("whitelist" in what for *_, what in messages):
                raise AudioError(
                    f"{name} is not audio, but a picture, a list of other files or the like: name "
                    "the recordings themselves"
                ) from None
            reason = failure_reason(error, messages)
            if fetched and not isinstance(error, av.InvalidDataError):
                message = f"{name} cannot be fetched ({reason}): check the address"
                raise AudioError(message) from None
            raise AudioError(
                f"{name} is not audio, or in a format that neither soundfile nor FFmpeg reads, or "
                f"damaged ({reason}): check that it plays"
            ) from None


def promised_duration(file: io.FileIO) -> float | None:
    """The seconds that the header of a file promises; None where it does not tell."""
    import av

    how: dict[str, Any] = {"options": _FILE, "metadata_errors": "replace"}
    with (
        captured_log(),
        suppress(av.FFmpegError, OSError, ValueError),
        av.open(_BoundedFile(file), **how) as container,
    ):
        return container.duration / 1_000_000 if container.duration else None
    return None


class _BoundedFile:
    """A file without the zeros behind its frames, with sizes that are known, from its beginning.

    It is not searched for ever, as it would be in millions of empty chunks.
    """

    def __init__(self, file: io.FileIO):
        self._file = file
        self._size = file.seek(0, os.SEEK_END) - padding(file)
        self._seeks = _MOST_SEEKS + self._size // _SEEK_BYTES
        self._mended = sizes_to_mend(file)
        file.seek(0)

    def read(self, size: int) -> bytes:
        at = self._file.tell()
        size = min(size, self._size - at)
        data = self._file.read(size) if size > 0 and self._seeks >= 0 else b""
        for position, mended in self._mended.items():
            if at <= position and position + len(mended) <= at + len(data):
                start = position - at
                data = data[:start] + mended + data[start + len(mended) :]
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._seeks -= 1
        if whence == os.SEEK_END:
            offset, whence = self._size + offset, os.SEEK_SET
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
