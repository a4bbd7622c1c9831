"""The recordings that rows of data name: files, or what a data set has stored of them."""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..audio import Recording, open_recording
from ..audio.load import spool_to_disk
from ..errors import AudioError


class Source(ABC):
    """Where a recording is read from, whenever it is needed."""

    @abstractmethod
    def digest(self) -> str:
        """A hash of the file's bytes.

        Raises:
            AudioError: it cannot be read.
        """

    @abstractmethod
    def open(self, sampling_rate: int) -> Recording:
        """The samples, at that rate in Hz.

        Raises:
            AudioError: see `open_recording`.
        """


@dataclass(frozen=True)
class AudioFile(Source):
    """A file on this machine."""

    path: Path

    def digest(self) -> str:
        try:
            with open(self.path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError):  # ValueError: a NUL character in the path
            self.open(1000).close()  # which says what is wrong
            raise

    def open(self, sampling_rate: int) -> Recording:
        return open_recording(self.path, target_sampling_rate=sampling_rate)


@dataclass(frozen=True)
class StoredAudio(Source):
    """A file in a column of a data set, as its bytes or its path.

    rows: of the data set, by number; loaded when they are asked for.
    folder: what a relative path is relative to.
    """

    rows: Any = field(repr=False)
    number: int
    column: str
    folder: Path

    def digest(self) -> str:
        content = self._content()
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest()
        return content.digest()

    def open(self, sampling_rate: int) -> Recording:
        content = self._content()
        if isinstance(content, AudioFile):
            return content.open(sampling_rate)
        with ExitStack() as stack:
            file = spool_to_disk(io.BytesIO(content), "its audio", stack)
            return open_recording(file, target_sampling_rate=sampling_rate, name="its audio")

    def _content(self) -> bytes | AudioFile:
        value = self.rows[self.number][self.column]
        if isinstance(value, Mapping):
            if isinstance(value.get("bytes"), bytes):
                return value["bytes"]
            value = value.get("path")
        return source_of(value, self.folder)


def source_of(value: Any, folder: Path) -> AudioFile:
    """The recording that a row names by its path.

    Args:
        folder: what a relative path is relative to.

    Raises:
        AudioError: it is no path.
    """
    if not isinstance(value, str):
        raise AudioError(f"audio is of type {type(value).__name__}, but must be a path")
    if not value:
        raise AudioError("audio is empty, but must be a path")
    if "://" in value:
        raise AudioError(f"audio is the address {value}: download it first")
    return AudioFile(folder / value)
