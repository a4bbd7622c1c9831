"""Audio and video of any container, by PyAV, whose wheels bring FFmpeg's libraries along."""

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import AudioError
from .headers import damaged
from .recording import BLOCK_FRAMES, Recording, checked_rate, record

_FETCH_SECONDS = 60  #: how long an address may say nothing
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
Messages = list[tuple[int, str, str]]  #: what FFmpeg's libraries log: (level, who, message) each
#: what they tell of data that is missing, and only log
_DATA_LOST = re.compile("partial file|end(ed|s) prematurely|exceeds containing|CRC mismatch")
_TRANSFER_LOST = re.compile("ends prematurely|Input/output error|timed out")


def read_media(source: io.FileIO | str, name: str, target: float, *, joined: bool) -> Recording:
    """The first audio track of a file, or of what is at an http(s) address.

    Args:
        joined: junk between its frames is no damage, as in joined MP3 files: players skip it.

    Raises:
        AudioError: it has none, is in no format that FFmpeg reads, damaged, or cut short.
    """
    import av

    fetched = isinstance(source, str)
    how: dict[str, Any] = {"options": _FILE, "metadata_errors": "replace"}
    if fetched:
        how |= {"options": _ADDRESS, "timeout": _FETCH_SECONDS}
    with _log() as messages:
        try:
            with av.open(source, **how) as container:
                tracks = container.streams.audio
                if not tracks:
                    raise AudioError(
                        f"{name} is not audio, or a video without sound: it has no audio track"
                    )
                if tracks[0].codec_context is None:
                    raise ValueError("there is no decoder for its audio")
                rate = checked_rate(tracks[0].rate, f"the sampling rate of {name}")
                blocks = _checked(_blocks(container, tracks[0], joined), messages, joined, name)
                return record(blocks, rate, target, name)
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = _reason(error, messages)
            if fetched and not isinstance(error, av.InvalidDataError):
                message = f"{name} cannot be fetched ({reason}): check the address"
                raise AudioError(message) from None
            raise AudioError(
                f"{name} is not audio, or in a format that neither soundfile nor FFmpeg reads, or "
                f"damaged ({reason}): check that it plays"
            ) from None


def _checked(
    blocks: Iterator[np.ndarray], messages: Messages, joined: bool, name: str
) -> Iterator[np.ndarray]:
    """The blocks; raises where data is missing."""
    import av

    try:
        yield from blocks
    except (av.FFmpegError, OSError) as error:
        raise damaged(name, _reason(error, messages)) from None
    lost = _TRANSFER_LOST if joined else _DATA_LOST
    for _, _, message in messages:
        if lost.search(message):
            raise damaged(name, _one_line(message))


def _blocks(container: Any, track: Any, joined: bool) -> Iterator[np.ndarray]:
    """Blocks (frames, channels) in float32 at the rate that the track begins with."""
    import av

    rate, setup = track.rate, None
    resampler: Any = None
    waiting: list[np.ndarray] = []  # a decoder's own blocks are a few hundred frames
    frames = 0
    for packet in container.demux(track):
        try:
            decoded = packet.decode()
        except av.InvalidDataError:
            if not joined:
                raise
            continue
        for frame in decoded:
            found = (frame.format.name, frame.layout.name, frame.sample_rate)
            # where the setup changes, the number of channels may be another from here on
            if waiting and (found != setup or frames >= BLOCK_FRAMES):
                yield np.concatenate(waiting, axis=1).T
                waiting, frames = [], 0
            if found != setup:
                setup, resampler = found, av.AudioResampler("fltp", frame.layout, rate)
            frame.pts = None  # gaps are not filled
            parts = [frame] if found[::2] == ("fltp", rate) else resampler.resample(frame)
            waiting += [part.to_ndarray() for part in parts]
            frames += frame.samples
    if waiting:
        yield np.concatenate(waiting, axis=1).T


_log_lock = threading.Lock()


@contextmanager
def _log() -> Iterator[Messages]:
    """Within it, what FFmpeg's libraries log in this thread.

    They are silent by default; their level is one for the process.
    """
    from av import logging

    with _log_lock:
        if logging.get_level() is None:
            logging.set_level(logging.ERROR)
            logging.set_skip_repeated(False)  # it would also skip what the last file had said
    with logging.Capture(local=True) as messages:
        yield messages


def _reason(error: Exception, messages: Messages) -> str:
    """Why reading failed, in FFmpeg's words."""
    said = messages[-1][2] if messages else getattr(error, "strerror", None) or str(error)
    return _one_line(said)


def _one_line(text: str) -> str:
    """The first line of a message."""
    lines = text.strip().splitlines() or ["no reason given"]
    return lines[0].strip().rstrip(".")
