"""`GET /metrics`: what the server has done so far, as text for Prometheus."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import mlx.core as mx

from ..transcription.transcript import Transcript
from .dispatcher import Dispatcher
from .engine import Engine

MEDIA_TYPE = "text/plain; version=0.0.4"

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counts what is done; for one thread, the event loop's."""

    def __init__(self) -> None:
        self._requests: Counter[Labels] = Counter()
        self._request_seconds: defaultdict[Labels, float] = defaultdict(float)
        self._audio_seconds = 0.0
        self._drafted = self._accepted = 0

    def add_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request was answered.

        Args:
            route: its path, without what differs between requests.
        """
        labels = (("route", route), ("method", method))
        self._requests[*labels, ("status", str(status))] += 1
        self._request_seconds[labels] += seconds

    def add_transcript(self, transcript: Transcript) -> None:
        """A recording was transcribed."""
        self._audio_seconds += transcript.duration
        if transcript.drafts is not None:
            self._drafted += transcript.drafts.drafted
            self._accepted += transcript.drafts.accepted

    def text(self, engine: Engine) -> str:
        """All of them, and what the engine and MLX tell of themselves; memory is rank 0's."""
        busy, audio = engine.busy_seconds, self._audio_seconds + engine.live_seconds
        if (dispatcher := engine.dispatcher) is not None:
            busy += sum(dispatcher.busy_seconds)
        speed = audio / busy if busy else 0.0
        loaded: dict[Labels, float] = {
            (("model", name),): float(engine.models.loaded(name) is not None)
            for name in engine.models.names
        }
        lines = [
            *_metric("requests_total", "counter", "Requests answered.", self._requests),
            *_metric("request_seconds_total", "counter", "Their time.", self._request_seconds),
            *_one("requests_in_progress", "gauge", "Worked on, or waiting.", engine.requests),
            *_one("requests_limit", "gauge", "At the same time.", engine.max_requests),
            *_one("audio_seconds_total", "counter", "Transcribed.", audio),
            *_one("busy_seconds_total", "counter", "Time of the engine's thread.", busy),
            *_one("speed", "gauge", "Seconds of audio in one of the engine's.", speed),
            *([] if dispatcher is None else _of_ranks(dispatcher)),
            *_one("draft_tokens_total", "counter", "Tokens drafted.", self._drafted),
            *_one("draft_tokens_accepted_total", "counter", "Of these, kept.", self._accepted),
            *_metric("model_loaded", "gauge", "1 where it is.", loaded),
            *_one("memory_bytes", "gauge", "Of MLX's arrays.", mx.get_active_memory()),
            *_one("memory_peak_bytes", "gauge", "At most so far.", mx.get_peak_memory()),
            *_one("memory_cache_bytes", "gauge", "Kept for arrays.", mx.get_cache_memory()),
        ]
        return "".join(f"{line}\n" for line in lines)


def _of_ranks(dispatcher: Dispatcher) -> Iterable[str]:
    def by_rank(values: Sequence[float]) -> dict[Labels, float]:
        return {(("rank", str(rank)),): value for rank, value in enumerate(values)}

    recordings, seconds = by_rank(dispatcher.recordings), by_rank(dispatcher.seconds)
    yield from _metric("rank_recordings_total", "counter", "Given to each rank.", recordings)
    yield from _metric("rank_audio_seconds", "gauge", "That each has in work.", seconds)


def _one(name: str, kind: str, text: str, value: float) -> Iterable[str]:
    return _metric(name, kind, text, {(): value})


def _metric(name: str, kind: str, text: str, values: Mapping[Labels, float]) -> Iterable[str]:
    yield f"# HELP mlx_speech_{name} {text}"
    yield f"# TYPE mlx_speech_{name} {kind}"
    for labels, value in sorted(values.items()):
        told = ",".join(f'{label}="{_escaped(said)}"' for label, said in labels)
        yield f"mlx_speech_{name}{{{told}}} {value}" if told else f"mlx_speech_{name} {value}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
