"""The recordings of one command line, spread over several ranks: what rank 0 does.

It finds what is to be done as one process does, has all ranks check that they work with the same
and load the model, hands the recordings out, the longest first and long ones in parts, and writes
and tells what comes back: files at once, all that is said in the order in which one process would.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..audio.duration import likely_duration
from ..distributed.bus import Message
from ..distributed.group import check_same
from ..distributed.schedule import longest_first, numbers_of_parts
from ..errors import DistributedError, InputError, MlxSpeechError, UnsupportedOptionError
from ..transcription.part_results import PartResult, join
from ..transcription.parts import split
from ..transcription.pipeline import least_part
from ..transcription.transcript import Transcript
from .console import Console, display_name
from .outputs import Job
from .progress import Progress
from .rank_work import RankWork, Task
from .ranks import start_group
from .transcribe_options import Usage
from .transcribe_run import Effort, Run


def run_parallel(args: argparse.Namespace, console: Console, usage: Usage) -> int:
    """Transcribe, with all ranks; the exit status of this one."""
    group = start_group(console)
    if group is None:
        return Run(args, console, usage).all()
    if group.rank:
        # rank 0 knows what is to be done then
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with RankWork(group, args, console, usage) as work:
        if group.rank == 0:
            return ParallelRun(args, console, usage, work=work).all()
        work.follow()
        return 0


@dataclass
class _Recording:
    """What has become of one so far.

    seconds: its length, as far as that is known.
    numbers: of its tasks.
    results: of those of its parts that are done, by where they begin.
    at: task -> seconds of it that are done.
    transcript, error: what came of it; both, where only its plot failed.
    settled: whether nothing more is to come.
    """

    job: Job
    seconds: float
    numbers: list[int] = field(default_factory=list)
    results: dict[int, PartResult] = field(default_factory=dict)
    at: dict[int, float] = field(default_factory=dict)
    memory: int = 0
    started: float | None = None
    took: float = 0.0
    transcript: Transcript | None = None
    error: Exception | None = None
    settled: bool = False

    @property
    def done(self) -> float:
        """How many seconds of it are."""
        return sum(self.at.values())


@dataclass
class ParallelRun(Run):
    """One call of the command on several ranks.

    work: what rank 0 does as one of them.
    """

    work: RankWork = field(kw_only=True)
    _recordings: list[_Recording] = field(default_factory=list)
    _told: int = 0  # of them
    _tasks: int = 0  # so many there are
    _at: float = 0.0  # seconds that are done, of all
    _duration: float = 0.0
    _progress: Progress | None = None
    _writing: Any = field(default_factory=threading.RLock)

    def transcribe_all(self, jobs: list[Job]) -> bool:
        """Have all recordings transcribed; false if Ctrl-C ended it."""
        work = self.work
        self._recordings = self._prepared(jobs)
        self._duration = sum(recording.seconds for recording in self._recordings)
        if self.args.word_timestamps:
            self.check_words(*work.loaded)
        tasks = self._planned()
        work.on_start = self._started
        work.group.on_silence = partial(self._ended, work.group.on_silence)
        start = time.monotonic()
        self._progress = Progress(len(jobs), silent=self.console.quiet, bar=sys.stderr.isatty())
        work.bus.post(["tasks", *(task.to_dict() for task in tasks)])
        try:
            with self._progress.everything(display_name(jobs[0].input.source)) as update:
                try:
                    while self._told < len(jobs):
                        self._take(work.receive(), update)
                finally:
                    self._tell_rest()
                    self.seconds = time.monotonic() - start
        except KeyboardInterrupt:
            self.interrupted(jobs, self._progress)
            return False
        return True

    def _prepared(self, jobs: list[Job]) -> list[_Recording]:
        """Check that all ranks have the same, and load the model on all of them.

        Raises:
            MlxSpeechError: they do not, or one cannot.
        """
        work = self.work
        work.bus.post(["recordings", [job.input.source for job in jobs]])
        check_same(self._answers("facts"))
        work.bus.post(["load"])
        recordings = [_Recording(job, likely_duration(job.input.source)) for job in jobs]
        self._answers("loaded")
        return recordings

    def _answers(self, kind: str) -> list[Any]:
        """What all ranks say, by rank.

        Raises:
            MlxSpeechError: this rank is unable, or else another one is.
        """
        answers: dict[int, Any] = {}
        unable: dict[int, str] = {}
        while len(answers) + len(unable) < self.work.group.size and not (0 in answers and unable):
            message = self.work.receive()
            told, *rest = message.content
            if told == kind:
                answers[message.rank] = rest[0] if rest else None
            elif told == "unable":
                unable[message.rank] = rest[0]
            if self.work.unable is not None:
                raise self.work.unable
        for rank, reason in unable.items():
            raise DistributedError(f"rank {rank}: {reason}")
        return [answers[rank] for rank in sorted(answers)]

    def _planned(self) -> list[Task]:
        """All tasks, the longest first."""
        try:
            least = least_part(self.work.loaded, **self._options("batch_size"))
        except MlxSpeechError:
            least = None  # the first recording will fail for that
        seconds = [recording.seconds for recording in self._recordings]
        numbers = numbers_of_parts(seconds, self.work.group.size)
        tasks = []
        for index, (recording, number) in enumerate(zip(self._recordings, numbers, strict=True)):
            parts = split(recording.seconds, number, least)
            if len(parts) == 1:
                tasks.append(Task(0, index, recording.seconds))
            for part in parts if len(parts) > 1 else ():
                begin, end = part.seconds(recording.seconds)
                tasks.append(Task(0, index, end - begin, part))
        order = longest_first([task.seconds for task in tasks])
        return [self._numbered(tasks[index]) for index in order]

    def _options(self, *without: str) -> dict[str, Any]:
        return {name: value for name, value in self.usage.options.items() if name not in without}

    def _numbered(self, task: Task) -> Task:
        """The same with the next number, which its recording gets to know."""
        numbered = Task(self._tasks, task.recording, task.seconds, task.part)
        self._tasks += 1
        self._recordings[task.recording].numbers.append(numbered.number)
        return numbered

    def _started(self, task: Task) -> None:
        recording = self._recordings[task.recording]
        if recording.started is None:
            recording.started = time.monotonic()

    def _take(self, message: Message, update: Callable[[float, float], None]) -> None:
        """What a rank tells of a task."""
        kind, *rest = message.content
        if kind in ("at", "done", "failed"):
            task = Task.from_dict(rest[0])
            recording = self._recordings[task.recording]
            done, seconds = recording.done, recording.seconds
            with self._writing:
                if recording.settled:
                    pass  # of a recording one part of which has failed
                elif kind == "at":
                    recording.at[task.number] = rest[1]
                elif kind == "failed":
                    fatal, reason = rest[1:]
                    if fatal:
                        raise UnsupportedOptionError(reason)
                    self._settle(recording, error=InputError(reason))
                else:
                    recording.memory = max(recording.memory, rest[2])
                    self._add(recording, task, json.loads(message.data))
                self._tell()
            self._at += recording.done - done
            self._duration += recording.seconds - seconds
            update(self._at, max(self._at, self._duration))

    def _add(self, recording: _Recording, task: Task, result: dict[str, Any]) -> None:
        """What came of a task, with which all may be there."""
        if task.part is None:
            self._settle(recording, Transcript.from_dict(result))
            return
        recording.results[task.part.begin] = PartResult.from_dict(result)
        recording.at[task.number] = task.seconds
        if len(recording.results) < len(recording.numbers):
            return
        results = [recording.results[begin] for begin in sorted(recording.results)]
        recording.results = {}
        transcript = join(results)
        if transcript.text or not results[0].other_tracks:
            self._settle(recording, transcript)
            return
        recording.numbers, recording.at = [], {}
        whole = self._numbered(Task(0, task.recording, recording.seconds))
        self.work.bus.post(["tasks", whole.to_dict()])

    def _settle(
        self,
        recording: _Recording,
        transcript: Transcript | None = None,
        error: Exception | None = None,
    ) -> None:
        """All of a recording is there: write it."""
        recording.took = time.monotonic() - (recording.started or time.monotonic())
        done = recording.done if transcript is None else transcript.duration
        recording.at, recording.seconds = {0: done}, done
        if transcript is not None:
            try:
                self.write(recording.job, transcript)
                recording.transcript = transcript
                self.draw(recording.job, transcript)
            except (MlxSpeechError, OSError) as failure:
                error = failure
        recording.error, recording.settled = error, True

    def _tell(self) -> None:
        """Say what has become of those recordings before which none is open."""
        while self._told < len(self._recordings) and self._recordings[self._told].settled:
            self._told += 1
            self._tell_one(self._recordings[self._told - 1])

    def _tell_rest(self) -> None:
        """The same of all that are done, as no others will be."""
        with self._writing:
            rest, self._told = self._recordings[self._told :], len(self._recordings)
            for recording in rest:
                if recording.settled:
                    self._tell_one(recording)

    def _tell_one(self, recording: _Recording) -> None:
        assert self._progress is not None
        with self._progress.hidden():
            job, transcript = recording.job, recording.transcript
            if transcript is not None:
                self.show(job, transcript)
            if recording.error is not None:
                self.fail(job.input.source, recording.error)
            elif transcript is not None:
                self.report(job, transcript, Effort(recording.took, recording.memory))
        recording.transcript = None  # of thousands, none is kept in memory

    def _ended(self, end: Callable[[str], object], message: str) -> None:
        """A rank is silent: tell what is done, and end. A file that is being written will be."""
        with self._writing:
            self._tell_rest()
            end(message)
