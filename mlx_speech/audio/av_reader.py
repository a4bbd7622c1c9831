"""Audio and video of any container, by PyAV, whose wheels bring FFmpeg's libraries along."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import AudioError
from .headers import SALVAGE
from .recording import Recording, checked_rate, record

#: frames of a block; a decoder's own are a few hundred
_BLOCK_FRAMES = 1 << 16
#: how long an address may say nothing
_FETCH_SECONDS = 60
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
#: what FFmpeg's libraries tell of data that is missing, and only log
_DATA_LOST = re.compile("partial file|end(ed|s) prematurely|exceeds containing|CRC mismatch")
_TRANSFER_LOST = re.compile("ends prematurely|Input/output error|timed out")


def read_file(file: io.FileIO, name: str, target: float, *, joined: bool) -> Recording:
    """The first audio track of a file.

    Args:
        joined: junk between its frames is no damage, as in joined MP3 files: players skip it.

    Raises:
        AudioError: it has none, is in no format that FFmpeg reads, damaged, or cut short.
    """
    file.seek(0)
    return _read(file, name, target, _FILE, joined)


def read_address(address: str, name: str, target: float) -> Recording:
    """The first audio track of what is at an http(s) address; errors as above."""
    joined = re.search(r"\.mp3($|[?#])", address, re.IGNORECASE) is not None
    return _read(address, name, target, _ADDRESS, joined)


def _read(source, name: str, target: float, options: dict[str, str], joined: bool) -> Recording:
    import av

    with _log() as messages:
        try:
            with av.open(
                source,
                options=options,
                metadata_errors="replace",
                timeout=_FETCH_SECONDS if isinstance(source, str) else None,
            ) as container:
                tracks = container.streams.audio
                if not tracks:
                    raise AudioError(
                        f"{name} is not audio, or a video without sound: it has no audio track"
                    )
                if tracks[0].codec_context is None:
                    raise ValueError("there is no decoder for its audio")
                rate = checked_rate(tracks[0].rate, f"the sampling rate of {name}")
                blocks = _blocks(container, tracks[0], joined)
                lost = _TRANSFER_LOST if joined else _DATA_LOST
                return record(_checked(blocks, messages, lost, name), rate, target, name)
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = _reason(error, messages)
            if isinstance(source, str) and not isinstance(error, av.InvalidDataError):
                raise AudioError(
                    f"{name} cannot be fetched ({reason}): check the address"
                ) from None
            raise AudioError(
                f"{name} is not audio, or in a format that neither soundfile nor FFmpeg reads, or "
                f"damaged ({reason}): check that it plays"
            ) from None


def _checked(
    blocks: Iterator[np.ndarray], messages: list[tuple[int, str, str]], lost: re.Pattern, name: str
) -> Iterator[np.ndarray]:
    """The blocks; raises where data is missing."""
    import av

    def damaged(reason: str) -> AudioError:
        return AudioError(f"{name} is damaged or cut short ({reason}): {SALVAGE}")

    try:
        yield from blocks
    except (av.FFmpegError, OSError) as error:
        raise damaged(_reason(error, messages)) from None
    for _, _, message in messages:
        if lost.search(message):
            raise damaged(_one_line(message))


def _blocks(container: Any, track: Any, joined: bool) -> Iterator[np.ndarray]:
    """Blocks (frames, channels) in float32 at the rate that the track begins with."""
    import av

    rate, setup = track.rate, None
    resampler: Any = None
    waiting: list[np.ndarray] = []
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
            if found != setup:
                if waiting:  # the number of channels may be another from here on
                    yield np.concatenate(waiting, axis=1).T
                waiting, frames, setup = [], 0, found
                resampler = av.AudioResampler("fltp", frame.layout, rate)
            frame.pts = None  # gaps are not filled
            parts = [frame] if found[::2] == ("fltp", rate) else resampler.resample(frame)
            waiting += [part.to_ndarray() for part in parts]
            frames += frame.samples
            if frames >= _BLOCK_FRAMES:
                yield np.concatenate(waiting, axis=1).T
                waiting, frames = [], 0
    if waiting:
        yield np.concatenate(waiting, axis=1).T


_log_lock = threading.Lock()


@contextmanager
def _log() -> Iterator[list[tuple[int, str, str]]]:
    """Within it, what FFmpeg's libraries log in this thread: (level, who, message) each.

    They are silent by default; their level is one for the process.
    """
    from av import logging

    with _log_lock:
        if logging.get_level() is None:
            logging.set_level(logging.ERROR)
            logging.set_skip_repeated(False)  # it would also skip what the last file had said
    with logging.Capture(local=True) as messages:
        yield messages


def _reason(error: Exception, messages: list[tuple[int, str, str]]) -> str:
    """Why reading failed, in FFmpeg's words."""
    if messages:
        return _one_line(messages[-1][2])
    return _one_line(getattr(error, "strerror", None) or str(error))


def _one_line(text: str) -> str:
    """The first line of a message."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line.rstrip(".") for line in lines if line), "no reason given")
