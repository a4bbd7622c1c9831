"""Recordings that are transcribed at the same time: their chunks are decoded together.

Of each recording one chunk is taken in turn, so that a short one is done soon, whatever else is
going on.
"""

from abc import ABC, abstractmethod
from collections import deque
from typing import NamedTuple

from ..transcription.chunks import AudioChunk
from ..transcription.drafted_batch import DraftedBatch, DraftedRow
from ..transcription.family import Decoding
from .recording_task import RecordingTask


class _Taken(NamedTuple):
    """A chunk, and which of a recording's it is."""

    task: RecordingTask
    number: int
    chunk: AudioChunk


class SharedBatch(ABC):
    """Recordings of one model that are decoded alike.

    Args:
        size: chunks that are decoded together.
    """

    def __init__(self, size: int):
        self._size = size
        self._tasks: list[RecordingTask] = []  # that whose turn it is first
        self._fresh: list[_Taken] = []  # chunks that are to begin

    def add(self, task: RecordingTask) -> None:
        """Take in a recording."""
        self._tasks.append(task)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self._tasks

    def turn(self) -> None:
        """One step: of a recording that may have more chunks, or of what is being decoded; where
        text streams, of both."""
        for task in self._tasks:
            if task.outlet.closed and not task.ended:
                task.close()
        self._fresh = [taken for taken in self._fresh if not taken.task.ended]
        found = self._gathers and self._take()
        if self._fresh and not found:
            self._begin(self._fresh)
            self._fresh = []
        if not found or any(task.streaming for task in self._tasks):
            self._advance()
        self._tasks = [task for task in self._tasks if not task.ended]

    def fail(self, error: Exception) -> None:
        """End all of them, and tell why."""
        for task in self._tasks:
            task.fail(error)

    @property
    @abstractmethod
    def _room(self) -> int:
        """How many chunks may begin now."""

    @abstractmethod
    def _begin(self, fresh: list[_Taken]) -> None:
        """Feed some chunks."""

    @abstractmethod
    def _advance(self) -> None:
        """Go on with what is being decoded."""

    @property
    def _open(self) -> list[RecordingTask]:
        """Recordings that may have more chunks; one without a text may again, of another track."""
        return [task for task in self._tasks if not (task.ended or task.exhausted)]

    @property
    def _gathers(self) -> bool:
        """Whether more chunks are to begin together with those that wait for it, which is faster;
        where text streams, it does not wait."""
        streams = any(taken.task.streaming for taken in self._fresh)
        return bool(self._open) and len(self._fresh) < self._room and not streams

    def _take(self) -> bool:
        """Go through the next part of a recording, after which others have their turn; whether
        there was a chunk. Chunks do not wait for recordings of silence."""
        task = self._open[0]
        self._tasks.remove(task)
        self._tasks.append(task)
        found = None
        with task.guard():
            if found := task.take():
                self._fresh.append(_Taken(task, *found))
        return found is not None


class DraftedTogether(SharedBatch):
    """Recordings whose chunks bring drafts. What they ask may differ, but not how it is decoded."""

    def __init__(self, size: int):
        super().__init__(size)
        self._batch = DraftedBatch(size)
        self._rows: dict[DraftedRow, _Taken] = {}

    @property
    def _room(self) -> int:
        return self._batch.room

    def _begin(self, fresh: list[_Taken]) -> None:
        asked: list[Decoding] = []
        for taken in fresh:
            if taken.task.drafting.how not in asked:
                asked.append(taken.task.drafting.how)
        for how in asked:
            self._feed([taken for taken in fresh if taken.task.drafting.how == how])

    def _feed(self, alike: list[_Taken]) -> None:
        """Feed the prompts of chunks that are asked the same."""
        try:
            rows = self._batch.begin(alike[0].task.drafting, [taken.chunk for taken in alike])
            self._rows |= zip(rows, alike, strict=True)
        except Exception as error:
            if len(alike) == 1:
                alike[0].task.fail(error)
                return
            for taken in alike:  # one of them fails, the others do not
                self._feed([taken])

    def _advance(self) -> None:
        try:
            self._batch.drop([row for row, taken in self._rows.items() if taken.task.ended])
            self._batch.take_ended()
            if not self._batch.is_empty:
                self._batch.advance()
            self._give_out()
            self._batch.take_ended()
        except Exception as error:  # nobody knows whose fault it is
            for taken in self._rows.values():
                taken.task.fail(error)
            self._batch = DraftedBatch(self._size)
            self._rows.clear()

    def _give_out(self) -> None:
        """What the rows have come to."""
        ended: dict[RecordingTask, list[tuple[DraftedRow, int]]] = {}
        for row, (task, number, _) in list(self._rows.items()):
            if task.streaming and not task.ended:
                with task.guard():
                    task.add(number, row.text())
            if row.ended:
                del self._rows[row]
                if not task.ended:
                    ended.setdefault(task, []).append((row, number))
        for task, rows in ended.items():
            with task.guard():
                pairs = [(row.chunk, row.segment()) for row, _ in rows]
                decoded = task.drafting.finished(pairs, retry=not task.streaming)
                for (_, number), (chunk, segments) in zip(rows, decoded, strict=True):
                    task.finish(number, chunk, segments)


class DecodedTogether(SharedBatch):
    """Recordings that any decoder decodes, for all of which one serves: they ask the same. A batch
    is whole before the next begins."""

    @property
    def _room(self) -> int:
        return self._size

    def _begin(self, fresh: list[_Taken]) -> None:
        decoder, waiting = fresh[0].task.decoder, deque(fresh)
        try:
            for decoded in decoder.decode((taken.chunk for taken in fresh), self._size):
                for chunk, segments in decoded:
                    task, number, _ = waiting.popleft()
                    with task.guard():
                        task.finish(number, chunk, segments)
        except Exception as error:
            if len(fresh) == 1:
                fresh[0].task.fail(error)
                return
            for taken in waiting:  # one of them fails, the others do not
                self._begin([taken])

    def _advance(self) -> None:
        pass  # nothing is, between two batches
