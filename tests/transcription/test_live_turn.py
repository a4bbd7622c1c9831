"""Where segments of live audio begin and end."""

from __future__ import annotations

import numpy as np
import pytest
from live_audio import RATE, pushed, recording, silence, texts

from mlx_speech import LiveTranscriber
from mlx_speech.transcription.word_errors import word_errors


def two_sentences(pause: float) -> np.ndarray:
    first, second = recording("espeak_06.flac"), recording("espeak_05.flac")
    return np.concatenate([first, silence(pause), second, silence(1)])


class TestPauses:
    @pytest.mark.parametrize(("min_silence", "segments"), [(0.5, 2), (3, 1)])
    def test_they_end_a_segment(self, tiny, min_silence, segments):
        events = pushed(LiveTranscriber(tiny, min_silence=min_silence), two_sentences(1.2))
        assert len(texts(events)) == segments

    def test_it_is_decoded_while_more_may_come(self, tiny):
        """In the push in which the pause has become long enough."""
        live, samples = LiveTranscriber(tiny), np.concatenate([recording(), silence(1.5)])
        for start in range(0, len(samples), 1600):
            if texts(live.push(samples[start : start + 1600])):
                break
        # speech ends at 4.5 s
        assert 4.9 < start / RATE < 5.4
        assert live.finish() == []

    def test_threshold(self, tiny):
        """Nobody speaks where Silero VAD has to be surer than it ever is."""
        assert pushed(LiveTranscriber(tiny, vad_threshold=1.0), recording()) == []


class TestCommit:
    def test_it_ends_what_is_being_said(self, tiny):
        live, samples = LiveTranscriber(tiny), recording()
        events = live.push(samples[: round(2.6 * RATE)])
        assert texts(events) == []
        committed = live.commit()
        assert [event.kind for event in committed][-2:] == ["stopped", "corrected"]
        assert committed[-1].text.split()[:3] == ["two", "zero", "five"]
        rest = live.push(samples[round(2.6 * RATE) :]) + live.finish()
        assert {event.segment_id for event in rest} == {1}
        (text,) = texts(rest)
        assert "set a timer for eleven" in text
        assert live.commit() == []

    def test_nothing_was_said(self, tiny):
        live = LiveTranscriber(tiny)
        assert live.push(silence(1)) + live.commit() + live.finish() == []


class TestWithoutTurnDetection:
    def test_only_commit_ends_a_segment(self, tiny):
        live = LiveTranscriber(tiny, turn_detection=False, ctc_only=True)
        events = live.push(two_sentences(1.2))
        assert {event.segment_id for event in events} == {0}
        assert {event.kind for event in events} == {"started", "committed", "partial"}
        (text,) = texts(live.commit())
        assert text.startswith("turn on the office")
        assert text.endswith("six seven eight")
        assert live.push(two_sentences(1.2))[0].segment_id == 1

    def test_long_silence_does(self, tiny):
        """Nothing grows while somebody has forgotten it."""
        live = LiveTranscriber(tiny, turn_detection=False, chunk_duration=10)
        (text,) = texts(live.push(np.concatenate([recording(), silence(7)])))
        assert text
        assert live.push(silence(60)) == []
        assert live.commit() == []


class TestClear:
    def test_it_is_forgotten(self, tiny):
        live, samples = LiveTranscriber(tiny), recording()
        events = live.push(samples[: 2 * RATE])
        assert {event.segment_id for event in events} == {0}
        live.clear()
        assert live.commit() == []
        events = live.push(samples) + live.finish()
        assert {event.segment_id for event in events} == {1}
        (text,) = texts(events)
        assert text.count("set a timer for eleven") == 1
        # times go on
        assert events[0].time == pytest.approx(2.4, abs=0.1)


class TestLongSpeech:
    @pytest.fixture
    def said(self) -> np.ndarray:
        """Half a minute without a pause of half a second."""
        parts = []
        for number in (4, 5, 6, 4, 5, 6, 4, 5, 6):
            samples = recording(f"espeak_{number:02}.flac")
            first, *_, last = np.flatnonzero(np.abs(samples) > 0.02)
            parts += [samples[first:last], silence(0.3)]
        return np.concatenate(parts)

    def test_it_is_cut_in_pauses(self, tiny, said):
        live, ends = LiveTranscriber(tiny, chunk_duration=10), []
        for start in range(0, len(said), RATE):
            for event in live.push(said[start : start + RATE]):
                if event.kind == "corrected":
                    ends.append((event.segment.start, event.segment.end, start / RATE + 1))
        ends += [(e.segment.start, e.segment.end, 0) for e in live.finish() if e.segment]
        assert len(ends) > 2
        assert all(end - start <= 10.2 for start, end, _ in ends)
        # and not long after there were ten seconds of it
        assert all(known <= start + 12 for start, _, known in ends)
        # in silence
        for _, end, _ in ends[:-1]:
            cut = said[round((end - 0.06) * RATE) : round((end + 0.06) * RATE)]
            assert np.abs(cut).mean() < 0.05, end

    def test_no_word_is_lost(self, tiny, said):
        whole = texts(pushed(LiveTranscriber(tiny, chunk_duration=60, ctc_only=True), said))
        parts = texts(pushed(LiveTranscriber(tiny, chunk_duration=10, ctc_only=True), said))
        assert len(whole) == 1 < len(parts)
        words = len(whole[0].split())
        assert word_errors(whole[0], " ".join(parts)) <= 0.1 * words
        assert len(" ".join(parts).split()) == pytest.approx(words, abs=2)
