"""What the parts of a recording give, and all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from .chunks import why_empty
from .transcript import Segment, Transcript


@dataclass
class PartResult:
    """What a process gives of a part of a recording; times in seconds of the whole.

    duration, peak, remarks, audio_track: of the whole recording.
    other_tracks: whether others of its audio tracks are to be tried, if this has no text.
    For the rest see `Transcript`.
    """

    segments: list[Segment]
    regions: list[tuple[float, float]]
    language: str | None
    duration: float
    peak: float
    remarks: list[str]
    audio_track: int
    other_tracks: bool

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        segments = [Segment.from_dict(segment) for segment in data["segments"]]
        regions = [(start, end) for start, end in data["regions"]]
        return cls(**{**data, "regions": regions, "segments": segments})


def join(results: Sequence[PartResult]) -> Transcript:
    """The transcript of a recording, given what all its parts gave, in order. Where it has no text,
    and `other_tracks`, the others may have some."""
    first = results[0]
    segments = [segment for result in results for segment in result.segments]
    text = " ".join(segment.text for segment in segments if segment.text)
    remarks = list(first.remarks)
    if not text:
        why = why_empty(first.duration, first.peak, len(segments))
        remarks.append(f"no text: {why}")
    regions = [region for result in results for region in result.regions]
    rest = first.language, first.duration, segments, regions, remarks, first.audio_track
    return Transcript(text, *rest)
