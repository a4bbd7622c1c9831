"""Recordings as samples: a file, standard input or an array as mono float32 at the model's rate.

soundfile decodes what libsndfile knows; ffmpeg (or macOS's afconvert) decodes the rest. Every
route ends in `_to_mono`, so that all of them mix channels, resample and reject bad samples alike,
a block at a time: a recording of hours is never held at its own rate and channel count.
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
from collections.abc import Iterable, Iterator

import mlx.core as mx
import numpy as np

from .containers import SALVAGE, checked_size, states_length
from .errors import AudioError

SAMPLING_RATE = 16000
"""Samples a second that the speech models hear."""

_BLOCK_FRAMES = 1 << 16
_MAX_CHANNELS = 64
# No recording is 40 dB over full scale; integers in a float array are, when not nearly silent.
_MAX_PEAK = 100.0
_SF_ERR_MALFORMED_FILE = 3
_MP3_FRAME = 1152
_DATA_LOST = re.compile("partial file|ended prematurely|exceeds containing|CRC mismatch")
_INSTALL = "install ffmpeg (macOS: brew install ffmpeg; Debian or Ubuntu: apt install ffmpeg)"


def load_audio(
    source: str | os.PathLike | np.ndarray | mx.array,
    sampling_rate: int | None = None,
    target_sampling_rate: int = SAMPLING_RATE,
) -> mx.array:
    """Read a recording as mono float32 samples, shape (samples,), at `target_sampling_rate` hertz.

    Channels are averaged, and other rates resampled. Full scale is -1 to 1.

    Args:
        source: path of an audio or video file (its first audio track is read), or "-" for the bytes
            of one on standard input, or samples: a NumPy or MLX array of shape (samples,) or
            (channels, samples), with at most 64 channels and fewer channels than samples.
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
    target = _checked_rate(target_sampling_rate, "target_sampling_rate")
    if isinstance(source, (np.ndarray, mx.array)):
        if sampling_rate is None:
            raise AudioError(
                "an array does not tell its sampling rate: pass sampling_rate, in hertz"
            )
        rate = _checked_rate(sampling_rate, "sampling_rate")
        return _to_mono([_frames_of(source)], rate, target, "the array")
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
    with _opened(path, name, from_stdin) as file:
        return _decode(file, path, name, target)


def _checked_rate(rate, what: str) -> float:
    # Below 1000, somebody meant kilohertz, and the result would be a thousand times too long.
    if isinstance(rate, numbers.Real) and 1000 <= rate <= 10_000_000:
        return float(rate)
    raise AudioError(f"{what} must be a number of hertz, 1000 to 10000000, but is {rate!r}")


def _frames_of(array: np.ndarray | mx.array) -> np.ndarray:
    """An array (samples,) or (channels, samples), checked, as float (samples, channels)."""
    if array.ndim not in (1, 2):
        raise AudioError(
            f"the array has shape {tuple(array.shape)}, but audio is (samples,) or"
            " (channels, samples): pass one recording at a time"
        )
    if isinstance(array, mx.array):
        # NumPy has no bfloat16.
        floating = mx.issubdtype(array.dtype, mx.floating)
        array = np.array(array.astype(mx.float32) if floating else array)
    if array.ndim == 2:
        channels, samples = array.shape
        if not 1 <= channels <= _MAX_CHANNELS or (channels > 1 and samples <= channels):
            raise AudioError(
                f"the array has shape {array.shape}, which is not (channels, samples) with 1 to"
                f" {_MAX_CHANNELS} channels and more samples than channels: transpose it?"
            )
    kind = array.dtype.name
    if kind in ("int8", "int16", "int32"):
        array = array.astype(np.float32) / 2.0 ** (8 * array.dtype.itemsize - 1)
    elif kind == "uint8":
        array = (array.astype(np.float32) - 128) / 128
    elif array.dtype.kind != "f":
        raise AudioError(
            f"the array is of type {kind}, but samples are floats within -1 and 1, int8, int16,"
            " int32 or uint8: convert it to one of them"
        )
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is reported as that
        array = array.astype(np.float32, copy=False)
    return array.reshape(-1, 1) if array.ndim == 1 else array.T


def not_finite(name: str) -> AudioError:
    """The error for a recording with NaN or infinite samples."""
    return AudioError(f"{name} has NaN or infinite samples: repair or export it again")


def refuse_integers(peak: float, whole_numbers: bool, name: str) -> None:
    """Tell integers among float samples by the greatest magnitude, and by having no fractions.

    Raises:
        AudioError: they are integers.
    """
    # A hot mix exceeds 1 a little, but not in whole numbers alone: that is how quiet integers show.
    if peak > _MAX_PEAK or (peak > 1 and whole_numbers):
        raise AudioError(
            f"{name} has float samples up to {peak:g}, but full scale is 1: these look like"
            " integers; divide 16-bit ones by 32768, or pass them as int16"
        )


def _to_mono(blocks: Iterable[np.ndarray], rate: float, target: float, name: str) -> mx.array:
    """float32 blocks (frames, channels) at `rate` -> mean of the channels (n,) at `target`."""
    resampler = None
    if rate != target:
        import soxr

        resampler = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
    parts, frames, peak, whole_numbers = [], 0, 0.0, True
    for block in blocks:
        if not len(block):
            continue
        if not np.isfinite(block).all():
            raise not_finite(name)
        frames += len(block)
        peak = max(peak, float(np.abs(block).max()))
        whole_numbers = whole_numbers and bool((block == np.rint(block)).all())
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
        parts.append(resampler.resample_chunk(mono) if resampler else mono)
    refuse_integers(peak, whole_numbers, name)
    if resampler:
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not len(samples):
        what = "no samples" if not frames else f"only {frames} samples, too few to resample"
        raise AudioError(f"{name} holds {what}: nothing was recorded")
    return mx.array(samples)


# Files


def _opened(path: str, name: str, from_stdin: bool) -> io.BytesIO | io.FileIO:
    """The recording as a binary file that can seek, at its beginning and not empty."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise AudioError(f"{name} is an address, not a file: download it first")
    try:
        if from_stdin:
            file = io.BytesIO(sys.stdin.buffer.read())
        else:
            file = open(path, "rb", buffering=0)  # noqa: SIM115 - the caller closes it
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a pipe cannot seek
                with file:
                    file = io.BytesIO(file.readall())
    except FileNotFoundError:
        raise AudioError(f"{name} does not exist: check the path") from None
    except IsADirectoryError:
        raise AudioError(f"{name} is a folder: name the recordings in it") from None
    except PermissionError:
        raise AudioError(f"{name} may not be read: check its permissions") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise AudioError(f"{name} cannot be read: {_one_line(str(error))}") from None
    if not file.seek(0, os.SEEK_END):
        file.close()
        raise AudioError(f"{name} is empty (0 bytes): record or copy it again")
    file.seek(0)
    return file


class _NotDecodedError(Exception):
    """soundfile cannot decode the file; `is_mp3`: it knows it as MP3 of unknown length."""

    def __init__(self, is_mp3: bool = False):
        super().__init__()
        self.is_mp3 = is_mp3


def _decode(file: io.BytesIO | io.FileIO, path: str, name: str, target: float) -> mx.array:
    try:
        return _decode_with_soundfile(file, name, target)
    except _NotDecodedError as error:
        is_mp3 = error.is_mp3
    with contextlib.ExitStack() as stack:
        if isinstance(file, io.BytesIO):  # many formats need to seek: a pipe to ffmpeg will not do
            copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="mlx-speech-"))
            copy.write(file.getbuffer())
            copy.flush()
            path = copy.name
        path = os.path.abspath(path)
        if ffmpeg := shutil.which("ffmpeg"):
            # Players skip junk between MP3 frames: joined files play. Elsewhere it is damage.
            return _decode_with_ffmpeg(ffmpeg, path, name, target, strict=not is_mp3)
        if afconvert := shutil.which("afconvert"):
            return _decode_with_afconvert(afconvert, path, name, target)
    raise AudioError(f"{name} is not in a format that soundfile reads; if it is audio, {_INSTALL}")


def _decode_with_soundfile(file: io.BytesIO | io.FileIO, name: str, target: float) -> mx.array:
    import soundfile

    file = checked_size(file, name)
    try:
        # The descriptor rather than the path: soundfile would trust an extension such as .raw.
        handle = file if isinstance(file, io.BytesIO) else file.fileno()
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
        return _to_mono(_sound_blocks(sound, name, is_mp3), rate, target, name)


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


def _decode_with_ffmpeg(ffmpeg: str, path: str, name: str, target: float, strict: bool) -> mx.array:
    # "file:" for names like "talk 10:30.m4a". From a file, ffmpeg opens no addresses.
    # AU: the simplest format that carries rate, channels and floats through a pipe, of any length.
    command = [ffmpeg, "-nostdin", "-v", "error", *(["-xerror"] if strict else [])]
    command += ["-i", f"file:{path}", "-map", "0:a:0"]
    command += ["-f", "au", "-c:a", "pcm_f32be", "-"]
    with (
        tempfile.TemporaryFile() as log,  # a pipe could fill up while the samples are read
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process,
    ):

        def errors() -> str:
            log.seek(0)
            return log.read().decode(errors="replace").replace(f"file:{path}: ", "")

        def blocks(channels: int) -> Iterator[np.ndarray]:
            frame_bytes = 4 * channels
            while data := process.stdout.read(_BLOCK_FRAMES * frame_bytes):
                data = data[: len(data) // frame_bytes * frame_bytes]
                yield np.frombuffer(data, ">f4").astype(np.float32).reshape(-1, channels)
            if process.wait() or (strict and _DATA_LOST.search(errors())):
                reason = _one_line(errors())
                raise AudioError(f"{name} is damaged or cut short ({reason}): {SALVAGE}")

        try:
            header = process.stdout.read(24)
            if len(header) == 24:
                _, offset, _, _, rate, channels = struct.unpack(">4s5I", header)
                process.stdout.read(offset - 24)
                rate = _checked_rate(rate, f"the sampling rate of {name}")
                return _to_mono(blocks(channels), rate, target, name)
            process.wait()
        finally:
            process.kill()
        reason = _one_line(errors())
    if "matches no streams" in reason:
        raise AudioError(f"{name} is not audio, or a video without sound: it has no audio track")
    raise AudioError(
        f"{name} is not audio, or in a format that neither soundfile nor ffmpeg reads, or damaged"
        f" ({reason}): check that it plays"
    )


def _decode_with_afconvert(afconvert: str, path: str, name: str, target: float) -> mx.array:
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
        with _opened(output, name, from_stdin=False) as file:
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
