"""Recordings as samples: a file, standard input or an array as mono float32 at the model's rate.

soundfile decodes what libsndfile knows; ffmpeg (or macOS's afconvert) decodes the rest. Every
route ends in `record`, so that all of them mix channels, resample and reject bad samples alike, a
block at a time: no recording of hours is ever held whole.
"""

import contextlib
import io
import numbers
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

import mlx.core as mx
import numpy as np

from ..errors import AudioError
from .headers import SALVAGE, checked_size, states_length
from .recording import Recording, disk_errors, record

SAMPLING_RATE = 16000
"""Samples a second that the speech models hear."""

_BLOCK_FRAMES = 1 << 16
_COPY_BYTES = 1 << 20
_MAX_CHANNELS = 64
_SF_ERR_MALFORMED_FILE = 3
_MP3_FRAME = 1152
_DATA_LOST = re.compile("partial file|end(ed|s) prematurely|exceeds containing|CRC mismatch")
_TRANSFER_LOST = re.compile("Stream ends prematurely|Input/output error|timed out")
_NOT_FETCHED = re.compile(
    "Server returned|Connection to|resolve hostname|timed out|HTTP error|rotocol not found"
)
_FETCH_SECONDS = 60
_INSTALL = "install ffmpeg (macOS: brew install ffmpeg; Debian or Ubuntu: apt install ffmpeg)"


def load_audio(
    source: str | os.PathLike | np.ndarray | mx.array,
    sampling_rate: int | None = None,
    target_sampling_rate: int = SAMPLING_RATE,
) -> mx.array:
    """Read a recording as mono float32 samples, shape (samples,), at `target_sampling_rate` hertz.

    Channels are averaged, and other rates resampled. Full scale is -1 to 1.

    Args:
        source: path of an audio or video file (its first audio track is read), or http(s) address
            of one, which ffmpeg fetches, or "-" for the bytes of one on standard input, or
            samples: a NumPy or MLX array of shape (samples,) or (channels, samples), with at most
            64 channels and fewer channels than samples.
            float arrays have full scale 1, int8, int16 and int32 arrays that of their type, and
            uint8 arrays are silent at 128.
        sampling_rate: rate of an array in hertz; required with one, and an error with a file, which
            states its own.
        target_sampling_rate: rate of the result in hertz.

    Raises:
        AudioError: the source is missing, unreadable, not audio, damaged, cut short or empty; its
            samples are not finite, or are integers passed as floats; it is an array of the wrong
            rank or type; or a rate is missing or impossible.
    """
    with open_recording(source, sampling_rate, target_sampling_rate) as recording:
        return recording.read()


def open_recording(
    source: str | os.PathLike | np.ndarray | mx.array,
    sampling_rate: int | None = None,
    target_sampling_rate: int = SAMPLING_RATE,
) -> Recording:
    """Decode a recording of any length, to be read part by part; memory holds a part of it only.

    Arguments are those of `load_audio`, and so are the errors. `Recording` says where it is kept.
    """
    target = _checked_rate(target_sampling_rate, "target_sampling_rate")
    if isinstance(source, (np.ndarray, mx.array)):
        if sampling_rate is None:
            raise AudioError(
                "an array does not tell its sampling rate: pass sampling_rate, in hertz"
            )
        rate = _checked_rate(sampling_rate, "sampling_rate")
        return record(_array_blocks(source), rate, target, "the array")
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
    if sampling_rate is not None:
        raise AudioError(
            f"sampling_rate is for arrays, and {name} states its own: leave sampling_rate out"
        )
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        return _fetched(path, name, target)
    with contextlib.ExitStack() as stack:
        source = sys.stdin.buffer if from_stdin else stack.enter_context(_opened(path, name))
        if from_stdin or not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
            path = _copied(source, name, stack)  # a pipe cannot seek
            source = stack.enter_context(_opened(path, name))
        if not os.fstat(source.fileno()).st_size:
            raise AudioError(f"{name} is empty (0 bytes): record or copy it again")
        return _decode(source, path, name, target)


def _checked_rate(rate, what: str) -> float:
    # Below 1000, somebody meant kilohertz, and the result would be a thousand times too long.
    if isinstance(rate, numbers.Real) and 1000 <= rate <= 10_000_000:
        return float(rate)
    raise AudioError(f"{what} must be a number of hertz, 1000 to 10000000, but is {rate!r}")


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
    for start in range(0, max(samples, 1), _BLOCK_FRAMES):  # the type of none is checked, too
        yield _as_floats(array[:, start : start + _BLOCK_FRAMES]).T


def _as_floats(array: np.ndarray | mx.array) -> np.ndarray:
    """The same in float32, full scale 1."""
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


# Files


def _opened(path: str, name: str) -> io.FileIO:
    with _reading(name):
        return open(path, "rb", buffering=0)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Around opening or reading a file: what fails becomes an AudioError."""
    try:
        yield
    except FileNotFoundError:
        raise AudioError(f"{name} does not exist: check the path") from None
    except IsADirectoryError:
        raise AudioError(f"{name} is a folder: name the recordings in it") from None
    except PermissionError:
        raise AudioError(f"{name} may not be read: check its permissions") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise AudioError(f"{name} cannot be read: {_one_line(str(error))}") from None


def _copied(source: BinaryIO, name: str, stack: contextlib.ExitStack) -> str:
    """Path of a copy of all that a pipe brings, which lives as long as `stack`."""
    with disk_errors(name):
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mlx-speech-"))
        path = os.path.join(folder, "audio")
        with open(path, "wb") as copy:
            while True:
                with _reading(name):
                    data = source.read(_COPY_BYTES)
                if not data:
                    return path
                copy.write(data)


class _NotDecodedError(Exception):
    """soundfile cannot decode the file; `is_mp3`: it knows it as MP3 of unknown length."""

    def __init__(self, is_mp3: bool = False):
        super().__init__()
        self.is_mp3 = is_mp3


def _decode(file: io.FileIO, path: str, name: str, target: float) -> Recording:
    try:
        return _decode_with_soundfile(file, name, target)
    except _NotDecodedError as error:
        is_mp3 = error.is_mp3
    path = os.path.abspath(path)
    if ffmpeg := shutil.which("ffmpeg"):
        # Players skip junk between MP3 frames: joined files play. Elsewhere it is damage.
        # From a file, it opens no addresses. "file:" for names like "talk 10:30.m4a".
        return _decode_with_ffmpeg(ffmpeg, ["-i", f"file:{path}"], name, target, strict=not is_mp3)
    if afconvert := shutil.which("afconvert"):
        return _decode_with_afconvert(afconvert, path, name, target)
    raise AudioError(f"{name} is not in a format that soundfile reads; if it is audio, {_INSTALL}")


def _decode_with_soundfile(file: io.FileIO, name: str, target: float) -> Recording:
    import soundfile

    checked = checked_size(file, name)
    try:
        # The descriptor rather than the path: soundfile would trust an extension such as .raw.
        handle = file.fileno() if checked is file else checked
        sound = soundfile.SoundFile(handle, closefd=False)
    except soundfile.LibsndfileError as error:
        if error.code == _SF_ERR_MALFORMED_FILE:
            raise AudioError(f"{name} is damaged or cut short: {SALVAGE}") from None
        raise _NotDecodedError from None
    with sound:
        is_mp3 = sound.subtype.startswith("MPEG")
        if is_mp3 and not states_length(file):
            raise _NotDecodedError(is_mp3)
        # After each block soundfile seeks to where it is, which is audible in MP3, and fails at the
        # end of FLAC from a pipe.
        sound.seekable = lambda: False
        rate = _checked_rate(sound.samplerate, f"the sampling rate of {name}")
        return record(_sound_blocks(sound, name, is_mp3), rate, target, name)


def _sound_blocks(sound, name: str, is_mp3: bool) -> Iterator[np.ndarray]:
    """Blocks (frames, channels) of an open `soundfile.SoundFile`, all that its header promises."""
    import soundfile

    # FLAC from a pipe promises nothing: 2 ** 63 - 1. MP3 counts whole frames, and encoders disagree
    # on the padding to take off.
    missing = 0 if sound.frames >= 1 << 62 else sound.frames - (2 * _MP3_FRAME if is_mp3 else 0)
    while True:
        try:
            block = sound.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            reason = _one_line(error.error_string)
            raise AudioError(f"{name} is damaged or cut short ({reason}): {SALVAGE}") from None
        if not len(block):
            break
        missing -= len(block)
        yield block
    if missing > 0:
        raise AudioError(f"{name} is damaged or cut short: {SALVAGE}")


# Other programs


def _fetched(address: str, name: str, target: float) -> Recording:
    """What is at an address, http or https."""
    ffmpeg = shutil.which("ffmpeg")
    http = address.lower().startswith(("http://", "https://"))
    if not (http and ffmpeg):
        hint = f", or {_INSTALL}" if http else ""
        raise AudioError(f"{name} is an address, not a file: download it first{hint}")
    # From there, it opens no files.
    options = ["-rw_timeout", str(_FETCH_SECONDS * 1_000_000), "-i", address]
    is_mp3 = re.search(r"\.mp3($|[?#])", address, re.IGNORECASE)
    return _decode_with_ffmpeg(ffmpeg, options, name, target, strict=not is_mp3)


def _decode_with_ffmpeg(
    ffmpeg: str, source: list[str], name: str, target: float, strict: bool
) -> Recording:
    # AU: the simplest format that carries rate, channels and floats through a pipe, of any length.
    command = [ffmpeg, "-nostdin", "-v", "error", *(["-xerror"] if strict else [])]
    command += [*source, "-map", "0:a:0", "-f", "au", "-c:a", "pcm_f32be", "-"]
    with (
        tempfile.TemporaryFile() as log,  # a pipe could fill up while the samples are read
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process,
    ):

        def errors() -> str:
            log.seek(0)
            return log.read().decode(errors="replace").replace(f"{source[-1]}: ", "")

        def blocks(channels: int) -> Iterator[np.ndarray]:
            frame_bytes = 4 * channels
            while data := process.stdout.read(_BLOCK_FRAMES * frame_bytes):
                data = data[: len(data) // frame_bytes * frame_bytes]
                yield np.frombuffer(data, ">f4").astype(np.float32).reshape(-1, channels)
            lost = _DATA_LOST if strict else _TRANSFER_LOST
            if process.wait() or lost.search(errors()):
                reason = _one_line(errors())
                raise AudioError(f"{name} is damaged or cut short ({reason}): {SALVAGE}")

        try:
            header = process.stdout.read(24)
            if len(header) == 24:
                _, offset, _, _, rate, channels = struct.unpack(">4s5I", header)
                process.stdout.read(offset - 24)
                rate = _checked_rate(rate, f"the sampling rate of {name}")
                return record(blocks(channels), rate, target, name)
            process.wait()
        finally:
            process.kill()
        reason = _one_line(errors())
    if _NOT_FETCHED.search(reason):
        raise AudioError(f"{name} cannot be fetched ({reason}): check the address")
    if "matches no streams" in reason:
        raise AudioError(f"{name} is not audio, or a video without sound: it has no audio track")
    raise AudioError(
        f"{name} is not audio, or in a format that neither soundfile nor ffmpeg reads, or damaged"
        f" ({reason}): check that it plays"
    )


def _decode_with_afconvert(afconvert: str, path: str, name: str, target: float) -> Recording:
    with tempfile.TemporaryDirectory(prefix="mlx-speech-") as folder:
        output = os.path.join(folder, "audio.wav")
        command = [afconvert, "-f", "WAVE", "-d", "LEF32", path, output]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode or not os.path.exists(output):
            reason = _one_line(done.stderr.decode(errors="replace"))
            raise AudioError(
                f"{name} is not audio, or in a format that neither soundfile nor afconvert reads"
                f" ({reason}): check that it plays, and {_INSTALL}"
            )
        with _opened(output, name) as file:
            try:
                return _decode_with_soundfile(file, name, target)
            except _NotDecodedError:
                raise AudioError(
                    f"{name} is not audio that afconvert converts: {_INSTALL}"
                ) from None


def _one_line(log: str) -> str:
    """The first line of a program's errors, which names the cause, without "[decoder @ 0x55..]"."""
    lines = [re.sub(r"^(\[[^\]]*\] *)+", "", line).strip() for line in log.splitlines()]
    return next((line.rstrip(".") for line in lines if line), "no reason given")
