"""Recordings as samples: a file, standard input or an array as mono float32 at the model's rate.

soundfile decodes what libsndfile knows, PyAV the rest. Every route ends in `record`, so that all of
them mix channels, resample and reject bad samples alike, a block at a time: no recording of hours
is ever held whole.
"""

import contextlib
import io
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import IO, Annotated, Any, BinaryIO, Literal, TypeAlias

import mlx.core as mx
import numpy as np

from ..errors import AudioError, InputError
from ..fields import Range, fitted
from .av_reader import read_media
from .headers import check_length, unread
from .recording import BLOCK_FRAMES, Channel, Recording, checked_rate, disk_errors, record
from .soundfile_reader import NotDecodedError, read_sound

SAMPLING_RATE = 16000
"""Rate of the speech models' audio, in Hz."""

#: what recordings are read from, see `load_audio`
AudioSource: TypeAlias = str | os.PathLike | io.FileIO | np.ndarray | mx.array

_Number = Annotated[int, Range(1)]

_COPY_BYTES = 1 << 20
_MAX_CHANNELS = 64
#: what can be wrong with a path; of other errors the system's own words are told
_PATH_ERRORS: dict[type[Exception], str] = {
    FileNotFoundError: "does not exist: check the path",
    IsADirectoryError: "is a folder: name the recordings in it",
    PermissionError: "may not be read: check its permissions",
}


def load_audio(
    source: AudioSource,
    sampling_rate: int | None = None,
    target_sampling_rate: int = SAMPLING_RATE,
    *,
    audio_track: int | None = None,
    channel: Channel = None,
) -> mx.array:
    """Read a recording as mono float32 samples, shape (samples,), at `target_sampling_rate` hertz.

    Other rates are resampled. Full scale is -1 to 1. A file's samples are on its timeline: silence
    stands where its timestamps leave a gap.

    Args:
        source: path of an audio or video file, or http(s) address of one, or "-" for the bytes of
            one on standard input, or a file that is open, which stays so, or samples: a NumPy or
            MLX array of shape (samples,) or (channels, samples), with at most 64 channels and fewer
            channels than samples. float arrays have full scale 1, int8, int16 and int32 arrays that
            of their type, and uint8 arrays are silent at 128.
        sampling_rate: rate of an array in hertz; required with one, and an error with a file, which
            states its own.
        target_sampling_rate: rate of the result in hertz.
        audio_track: number of the audio track of a file, from 1; None: the first that is not
            silent.
        channel: number of the channel to read, from 1; "mix": the mean of all; None: the mean, but
            one channel where they cancel each other out.

    Raises:
        InputError: `audio_track` or `channel` is none of these.
        AudioError: the source is missing, unreadable, not audio, damaged, cut short or empty; its
            samples are not finite, or are integers passed as floats; it is an array of the wrong
            rank or type; or a rate is missing or impossible.
    """
    which: dict[str, Any] = {"audio_track": audio_track, "channel": channel}
    with open_recording(source, sampling_rate, target_sampling_rate, **which) as recording:
        return recording.read()


def open_recording(
    source: AudioSource,
    sampling_rate: int | None = None,
    target_sampling_rate: int = SAMPLING_RATE,
    *,
    audio_track: int | None = None,
    channel: Channel = None,
    name: str | None = None,
) -> Recording:
    """Decode a recording of any length, to be read part by part; memory holds a part of it only.

    Arguments are those of `load_audio`, and so are the errors. `Recording` says where it is kept.

    Args:
        name: what errors call a file that is open.
    """
    target = checked_rate(target_sampling_rate, "target_sampling_rate")
    audio_track, channel = checked_selection(audio_track, channel)
    if hasattr(source, "__array__") and not isinstance(source, mx.array):
        source = np.asarray(source)  # also of other libraries
    if isinstance(source, (np.ndarray, mx.array)):
        if sampling_rate is None:
            message = "an array does not tell its sampling rate: pass sampling_rate, in hertz"
            raise AudioError(message)
        rate = checked_rate(sampling_rate, "sampling_rate")
        if audio_track is not None:
            raise InputError.about("{audio_track} is for files: an array has channels alone")
        return record(_array_blocks(source), rate, target, "the array", channel)
    if isinstance(source, io.FileIO):
        name = name or "the file"
        _refuse_rate(sampling_rate, name)
        return _whole_file(source, name, target, audio_track, channel)
    if not isinstance(source, (str, os.PathLike)):
        raise AudioError(
            f"audio is a path, '-' or an array, but a {type(source).__name__} was given"
            " (samples in a list: pass numpy.array(samples, numpy.float32))"
        )
    path = os.fsdecode(source)
    # Only the string: Path("./-") is a file of that name, and its text has lost the "./".
    from_stdin = isinstance(source, str) and source == "-"
    # Control characters in a file name must not break the message into lines.
    name = "standard input" if from_stdin else path if path and path.isprintable() else repr(path)
    _refuse_rate(sampling_rate, name)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        if not path.lower().startswith(("http://", "https://")):
            raise AudioError(f"{name} is an address, not a file: download it first")
        return read_media(path, name, target, audio_track, channel)
    with contextlib.ExitStack() as stack:
        if from_stdin:
            file = copy = spool_to_disk(sys.stdin.buffer, name, stack)
        else:
            with _reading(name):
                file = stack.enter_context(open(path, "rb", buffering=0))
            copy = None
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                file = copy = spool_to_disk(file, name, stack)  # a pipe cannot seek
        recording = _whole_file(file, name, target, audio_track, channel)
        if copy and recording.track < recording.tracks:
            again = UnnamedFile(copy), None, target_sampling_rate
            recording.reopen = partial(open_recording, *again, channel=channel, name=name)
        return recording


def _refuse_rate(sampling_rate: int | None, name: str) -> None:
    if sampling_rate is not None:
        raise AudioError(
            f"sampling_rate is for arrays, and {name} states its own: leave sampling_rate out"
        )


class UnnamedFile(io.FileIO):
    """A recording's file on disk, where it has no name. It is closed when nobody has it any more.

    Args:
        file: the same, which may be closed.
    """

    def __init__(self, file: IO[bytes] | io.FileIO):
        super().__init__(os.dup(file.fileno()))

    def __del__(self) -> None:
        self.close()


def _whole_file(
    file: io.FileIO, name: str, target: float, audio_track: int | None, channel: Channel
) -> Recording:
    if not os.fstat(file.fileno()).st_size:
        raise AudioError(f"{name} is empty (0 bytes): record or copy it again")
    file.seek(0)
    recording = _read_file(file, name, target, audio_track, channel)
    if remark := unread(file):
        recording.remarks.append(remark)
    return recording


def _read_file(
    file: io.FileIO, name: str, target: float, audio_track: int | None, channel: Channel
) -> Recording:
    if check_length(file, name) and audio_track in (None, 1):
        with contextlib.suppress(NotDecodedError):
            return read_sound(file, name, target, channel)
    return read_media(file, name, target, audio_track, channel)


def checked_selection(audio_track: int | None, channel: Channel) -> tuple[int | None, Channel]:
    """The same; raises `InputError` where they can be none of a recording's."""
    return (
        fitted("audio_track", audio_track, _Number | None),
        fitted("channel", channel, _Number | Literal["mix"] | None),
    )


def _array_blocks(array: np.ndarray | mx.array) -> Iterator[np.ndarray]:
    """An array (samples,) or (channels, samples), checked, as float blocks (frames, channels)."""
    if array.ndim not in (1, 2):
        raise AudioError(
            f"the array has shape {tuple(array.shape)}, but audio is (samples,) or"
            " (channels, samples): pass one recording at a time"
        )
    if array.ndim == 1:
        array = array[None]
    channels, samples = array.shape
    if not 1 <= channels <= _MAX_CHANNELS or (channels > 1 and samples <= channels):
        raise AudioError(
            f"the array has shape {tuple(array.shape)}, which is not (channels, samples) with 1 to"
            f" {_MAX_CHANNELS} channels and more samples than channels: transpose it?"
        )
    for start in range(0, max(samples, 1), BLOCK_FRAMES):  # the type of none is checked, too
        yield as_floats(array[:, start : start + BLOCK_FRAMES]).T


def as_floats(array: np.ndarray | mx.array) -> np.ndarray:
    """The same in float32, full scale 1.

    Raises:
        AudioError: it is of no type that samples have.
    """
    if isinstance(array, mx.array):
        # NumPy has no bfloat16.
        floating = mx.issubdtype(array.dtype, mx.floating)
        array = np.array(array.astype(mx.float32) if floating else array)
    kind = array.dtype.name
    if kind in ("int8", "int16", "int32"):
        return array.astype(np.float32) / 2.0 ** (8 * array.dtype.itemsize - 1)
    if kind == "uint8":
        return (array.astype(np.float32) - 128) / 128
    if array.dtype.kind != "f":
        raise AudioError(
            f"the array is of type {kind}, but samples are floats within -1 and 1, int8, int16,"
            " int32 or uint8: convert it to one of them"
        )
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is reported as that
        return array.astype(np.float32, copy=False)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Around opening or reading a file: what fails becomes an AudioError."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        other = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise AudioError(f"{name} {_PATH_ERRORS.get(type(error), other)}") from None


def spool_to_disk(source: BinaryIO, name: str, stack: contextlib.ExitStack) -> io.FileIO:
    """A copy of all that a pipe brings, without a name, which lives as long as `stack`."""
    with disk_errors(name):
        copy = stack.enter_context(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115
        while True:
            with _reading(name):
                data = source.read(_COPY_BYTES)
            if not data:
                return copy
            while data:
                data = data[copy.write(data) :]
