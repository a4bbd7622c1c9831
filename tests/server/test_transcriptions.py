"""Transcriptions by OpenAI's own client."""

from __future__ import annotations

import pytest
from conftest import DATA
from openai.types.audio import (
    Transcription,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionTextSegmentEvent,
    TranscriptionVerbose,
)

import mlx_speech
from mlx_speech.output.subtitles import SubtitleOptions
from mlx_speech.output.writers import FORMATS

SHORT, LONG = DATA / "audio" / "flite_11.flac", DATA / "audio" / "long.flac"


@pytest.fixture(scope="module")
def short(tiny):
    return mlx_speech.transcribe(SHORT, tiny, word_timestamps=True)


@pytest.fixture(scope="module")
def long(tiny):
    return mlx_speech.transcribe(LONG, tiny)


def create(client, path=SHORT, **asked):
    return client.audio.transcriptions.create(file=path, model="tiny", **asked)


def checked(kind, answer):
    """An answer, of the type that the client has for it."""
    return kind.model_validate(answer.model_dump(exclude_unset=True), strict=True)


class TestFormats:
    @pytest.mark.parametrize("asked", [{}, {"response_format": "json"}])
    def test_json(self, client, short, asked):
        answer = checked(Transcription, create(client, **asked))
        assert answer.text == short.text
        assert (answer.usage.type, answer.usage.seconds) == ("duration", round(short.duration, 3))

    @pytest.mark.parametrize(("name", "ending"), [("text", "txt"), ("srt", "srt"), ("vtt", "vtt")])
    def test_text(self, client, long, name, ending):
        expected = FORMATS[ending](long, "tiny", SubtitleOptions())
        assert create(client, LONG, response_format=name) == expected

    def test_verbose_json(self, client, long):
        answer = checked(TranscriptionVerbose, create(client, LONG, response_format="verbose_json"))
        assert (answer.text, answer.language) == (long.text, "")
        assert answer.duration == pytest.approx(long.duration, abs=1e-3)
        assert answer.words is None
        for number, (segment, expected) in enumerate(
            zip(answer.segments, long.segments, strict=True)
        ):
            assert (segment.id, segment.text) == (number, expected.text)
            assert (segment.start, segment.end) == (
                pytest.approx(expected.start, abs=1e-3),
                pytest.approx(expected.end, abs=1e-3),
            )
            assert segment.tokens == expected.tokens
            assert segment.avg_logprob == pytest.approx(expected.avg_logprob, abs=1e-4)
            assert (segment.seek, segment.temperature) == (round(100 * expected.start), 0)
            assert segment.no_speech_prob == 0
            assert 0.3 < segment.compression_ratio < 2.4


class TestStream:
    def test_events(self, client, long):
        *events, done = create(client, LONG, stream=True)
        deltas = [e for e in events if e.type == "transcript.text.delta"]
        segments = [e for e in events if e.type == "transcript.text.segment"]
        assert len(deltas) + len(segments) == len(events)
        for delta in deltas:
            checked(TranscriptionTextDeltaEvent, delta)
        for segment, expected in zip(segments, long.segments, strict=True):
            checked(TranscriptionTextSegmentEvent, segment)
            assert (segment.text, segment.speaker) == (expected.text, "")
        assert "".join(delta.delta for delta in deltas) == long.text
        assert len(deltas) > len(segments)
        assert done.type == TranscriptionTextDoneEvent.model_fields["type"].annotation.__args__[0]
        assert done.text == long.text
