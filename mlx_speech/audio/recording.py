"""A recording's samples, checked, mixed and resampled block by block, and kept where they fit."""

import contextlib
import numbers
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Self, TypeAlias

import mlx.core as mx
import numpy as np

from ..errors import AudioError

BLOCK_FRAMES = 1 << 16  #: frames that are decoded together
# What memory may hold of a recording; ten minutes at the models' rate. The rest goes to disk.
_MEMORY_SAMPLES = 600 * 16000
_SAMPLE_BYTES = 4
# No recording is 40 dB over full scale; integers in a float array are, when not nearly silent.
_MAX_PEAK = 100.0
# A mean of up to 64 channels holds at least a 64th of their mean power, unless they cancel out.
_LEAST_MIXED_POWER = 0.01
# Whether they do is told a quarter of a second at a time, by what changes within a quarter of a
# millisecond: by sounds like speech, beside which hum and offsets count little.
_MIXED_SECONDS, _CHANGE_SECONDS = 0.25, 0.00025
_AS_LOUD = 0.99  # of channels as loud as each other, but for rounding, the first is read
_SILENT_POWER = 1e-8  # -80 dB: what is less is nothing that could be lost
# A longer file that has fewer bytes for a second than any codec of speech is one to exhaust memory.
_LONGEST_SECONDS, _LEAST_BYTE_RATE = 3 * 3600, 80

Channel: TypeAlias = int | Literal["mix"] | None  #: which channel to read, see `record`


class Recording:
    """Mono float32 samples at one rate, to be read part by part.

    Up to ten minutes are kept in memory, more in a temporary file without a name, of 230 MB an
    hour. It is gone when the recording is closed: by `close`, at the end of a `with` block, or with
    the object. Not for two threads at a time.

    Attributes:
        sampling_rate: in hertz.
        size: number of samples.
        peak: greatest magnitude.
        track, tracks: number of the audio track that it is, from 1, and how many the file has.
        remarks: what a user should know of how it was read, a sentence each.
        reopen: reads another track, given as `audio_track`, where there are more and what they came
            from can be read only once; else None.
    """

    def __init__(self, sampling_rate: float):
        self._file = tempfile.SpooledTemporaryFile(max_size=_MEMORY_SAMPLES * _SAMPLE_BYTES)  # noqa: SIM115
        whole = int(sampling_rate)
        self.sampling_rate = whole if whole == sampling_rate else sampling_rate
        self.size = 0
        self.peak = 0.0
        self.track = self.tracks = 1
        self.remarks: list[str] = []
        self.reopen: Callable[..., Recording] | None = None

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.size / self.sampling_rate

    def read(self, start: int = 0, end: int | None = None) -> mx.array:
        """The samples that `[start:end]` gives of an array: (n,), float32."""
        start, end, _ = slice(start, end).indices(self.size)
        samples = mx.zeros(max(0, end - start), mx.float32)
        self._file.seek(start * _SAMPLE_BYTES)
        # into the array itself, which may be of hours
        self._file.readinto(np.array(samples, copy=False).data)
        return samples

    def append(self, samples: np.ndarray) -> None:
        """Add (n,) float32 samples, before any is read."""
        self._file.write(np.ascontiguousarray(samples).data)
        self.size += len(samples)
        self.peak = max(self.peak, float(np.abs(samples).max(initial=0.0)))

    def close(self) -> None:
        # what a full disk refused is tried once more, and refused once more
        with contextlib.suppress(OSError):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __del__(self):
        self.close()


def record(
    blocks: Iterable[np.ndarray],
    rate: float,
    target: float,
    name: str,
    channel: Channel = None,
    size: int | None = None,
) -> Recording:
    """float32 blocks (frames, channels) at `rate` -> one channel at `target`.

    Args:
        channel: the number of the one to take, from 1; or "mix": the mean of all; or None: the
            mean, but where it loses nearly all that the channels hold, as when one is the negative
            of the other, the louder of them.

    Raises:
        AudioError: there are no samples, or they are not finite, or integers passed as floats; or
            they do not fit the disk; or there is no such channel. `name` says whose they are.
    """
    resampler = None
    if rate != target:
        import soxr

        resampler = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
    frames, peak, whole_numbers = 0, 0.0, True
    mixer = _Mixer(channel, name, rate)
    with contextlib.ExitStack() as stack:
        recording = stack.enter_context(Recording(target))
        for block in filter(len, blocks):
            if not np.isfinite(block).all():
                raise not_finite(name)
            frames += len(block)
            if size is not None and frames > rate * max(_LONGEST_SECONDS, size / _LEAST_BYTE_RATE):
                raise AudioError(
                    f"{name} has {size} bytes, and hours of silence or the like in them: cut "
                    "it, or save it in another format"
                )
            peak = max(peak, float(np.abs(block).max()))
            whole_numbers = whole_numbers and bool((block == np.rint(block)).all())
            # of what is refused below, by its peak
            with np.errstate(over="ignore", invalid="ignore"):
                mono = mixer(block)
            with disk_errors(name):
                recording.append(resampler.resample_chunk(mono) if resampler else mono)
        refuse_integers(peak, whole_numbers, name)
        with disk_errors(name):
            if resampler:
                recording.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            recording.read(0, 0)  # seeks, and so writes what is buffered
        if not recording.size:
            what = f"only {frames} samples, too few to resample" if frames else "no samples"
            raise AudioError(f"{name} holds {what}: nothing was recorded")
        recording.remarks += mixer.remarks
        stack.pop_all()  # it stays open
        return recording


def chosen_track(recording: Recording, what: str) -> str:
    """The remark on why this track of several was read: it is the first that is `what`."""
    number = recording.track
    why = "the first" if number == 1 else f"the first that is {what}, number {number},"
    return f"of its {recording.tracks} audio tracks {why} was read"


class _Mixer:
    """Blocks (frames, channels) -> (frames,); `channel` as in `record`."""

    def __init__(self, channel: Channel, name: str, rate: float):
        self._channel, self._name = channel, name
        self._part, self._lag = round(_MIXED_SECONDS * rate), max(1, round(_CHANGE_SECONDS * rate))
        self._louder: int | None = None
        self.remarks: list[str] = []

    def __call__(self, block: np.ndarray) -> np.ndarray:
        count = block.shape[1]
        if isinstance(self._channel, int):
            # silence in a gap has one channel, whatever the rest has
            if self._channel > count and block.any():
                channels = "1 channel" if count == 1 else f"{count} channels"
                raise AudioError(f"{self._name} has {channels}, and none is {self._channel}")
            return block[:, min(self._channel, count) - 1]
        if count == 1:
            return block[:, 0]
        mixed = block @ np.full(count, 1 / count, np.float32)  # far faster than the mean of rows
        if self._channel == "mix":
            return mixed
        for start in range(0, len(block), self._part):
            part = slice(start, start + self._part)
            if self._cancelled(block[part], mixed[part]):
                mixed[part] = block[part, min(self._louder or 0, count - 1)]
        return mixed

    def _cancelled(self, block: np.ndarray, mixed: np.ndarray) -> bool:
        """Whether the mean of channels loses nearly all that they hold."""
        change = block[self._lag :] - block[: -self._lag]
        power = np.einsum("ij,ij->j", change, change)
        change = mixed[self._lag :] - mixed[: -self._lag]
        if power.mean() <= _SILENT_POWER * len(change) or (
            np.dot(change, change) >= _LEAST_MIXED_POWER * power.mean()
        ):
            return False
        if self._louder is None:
            self._louder = int((power > _AS_LOUD * power.max()).argmax())
            self.remarks = [
                "its channels cancel each other out in the mean of them: channel"
                f" {self._louder + 1} alone was read there"
            ]
        return True


@contextlib.contextmanager
def disk_errors(name: str) -> Iterator[None]:
    """Around writing `name` to a temporary file: what fails becomes an AudioError."""
    try:
        yield
    except OSError as error:
        raise AudioError(
            f"{name} cannot be kept in a temporary file ({error.strerror or error}): free disk"
            " space, or set TMPDIR to a folder that has some"
        ) from None


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


def checked_rate(rate, what: str) -> float:
    """A sampling rate in Hz.

    Args:
        what: it is, for a message.

    Raises:
        AudioError: it is none.
    """
    # Below 1000, somebody meant kilohertz, and the result would be a thousand times too long.
    if isinstance(rate, numbers.Real) and 1000 <= rate <= 10_000_000:  # type: ignore[operator]
        return float(rate)
    raise AudioError(f"{what} must be a number of hertz, 1000 to 10000000, but is {rate!r}")
