"""Cutting long recordings where they are quiet."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech import InputError
from mlx_speech.transcription.segmenter import (
    MARGIN_FRAMES,
    MIN_SILENCE_FRAMES,
    PAUSE_FRAMES,
    SHORT_FRAMES,
    WIDENED_FRAMES,
    Segmenter,
    Span,
)
from mlx_speech.transcription.vad import SpeechActivity


def activity_of(*runs: int) -> SpeechActivity:
    """Frames of silence, speech, silence, ... in turn."""
    speech = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return SpeechActivity(speech, speech.astype(np.float32))


def segment(activity: SpeechActivity, divisions=(), **options) -> list[Span]:
    """The spans of an activity that is pushed in parts that end at `divisions`; none needs frames
    that it was said before that none would."""
    segmenter = Segmenter(**options)
    size = len(activity)
    edges = [0, *sorted(d for d in divisions if d < size), size]
    spans = []
    for a, b in itertools.pairwise(edges):
        needed = segmenter.start
        found = segmenter.push(activity[a:b])
        assert all(span.start >= needed for span in found)
        assert segmenter.start >= needed
        spans += found
    needed = segmenter.start
    found = segmenter.finish()
    assert all(span.start >= needed for span in found)
    return spans + found


def runs_of(speech: np.ndarray) -> list[tuple[int, int]]:
    """Runs of speech, [first, last)."""
    edges = np.flatnonzero(np.diff(speech.astype(np.int8), prepend=0, append=0))
    return [tuple(run) for run in edges.reshape(-1, 2).tolist()]


@st.composite
def cases(draw):
    """Any pattern of speech and silence, with any options."""
    runs = draw(st.lists(st.integers(0, 30) | st.integers(20, 300), max_size=24))
    activity = activity_of(*runs)
    noise = np.random.default_rng(draw(st.integers(0, 9))).random(len(activity))
    window = draw(st.sampled_from([1, 2, 15]))
    options = {
        "window": window,
        "max_frames": draw(st.integers(window, 400)),
        "min_silence": draw(st.integers(1, 80)),
    }
    divisions = draw(st.lists(st.integers(0, len(activity)), max_size=12))
    return SpeechActivity(activity.speech, noise.astype(np.float32)), divisions, options


class TestSegmenter:
    @settings(max_examples=300, deadline=None)
    @given(cases())
    def test_any_pattern(self, case):
        """In order, on the grid, not too long, all speech once, no silence of its own, cuts in
        pauses wherever there are any, and the same however it is pushed."""
        activity, divisions, options = case
        window, min_silence = options["window"], max(options["min_silence"], options["window"])
        longest = options["max_frames"] // window * window
        spans, size = segment(activity, **options), len(activity)
        assert segment(activity, divisions, **options) == spans
        assert segment(activity, range(size), **options) == spans
        for span in spans:
            assert 0 <= span.start <= span.first < span.last <= span.end <= size
            assert span.end - span.start <= longest
            assert span.start % window == 0
            assert span.end % window == 0 or span.end == size
            assert activity.speech[span.first]
            assert activity.speech[span.last - 1]
        for a, b in itertools.pairwise(spans):
            assert a.end <= b.start
        said = np.zeros(size, int)
        for span in spans:
            said[span.first : span.last] += 1
        assert (said[activity.speech] == 1).all()
        runs = runs_of(activity.speech)
        pauses = [(a[1], b[0]) for a, b in itertools.pairwise(runs)]
        for a, b in pauses:
            inside = [s for s in spans if s.first < a and b < s.last]
            if b - a >= min_silence and inside:
                assert b - a < 2 * min_silence
                before = max((q for p, q in pauses if q <= a and q - p >= min_silence), default=0)
                after = min((p for p, q in pauses if p >= b and q - p >= min_silence), default=size)
                first = next(p for p, q in runs if p >= before)
                last = max(q for p, q in runs if q <= after)
                # the stretch on one of the sides, or what a cut left of it, was short or joined
                left = max(first, inside[0].first)
                assert a - left < SHORT_FRAMES or last - b < SHORT_FRAMES or inside[0].first < first
        for span in spans:
            cut = span.last
            if any(a < cut < b for a, b in runs):
                reach = span.start + longest
                wide = [(a, b) for a, b in pauses if span.first < a < cut and b - a >= PAUSE_FRAMES]
                assert not [a for a, b in wide if -(-a // window) * window <= min(b, reach)]

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.tuples(st.integers(1, 99), st.integers(SHORT_FRAMES, 200)), min_size=1, max_size=9
        ),
        st.sampled_from([1, 15]),
        st.integers(1, 99),
    )
    def test_min_silence_ends_what_is_not_short_and_nothing_else_does(self, runs, window, least):
        activity = activity_of(*itertools.chain(*runs))
        spans = segment(activity, window=window, max_frames=3000, min_silence=least)
        assert len(spans) == 1 + sum(pause >= max(least, window) for pause, _ in runs[1:])

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(1, 49), min_size=2, max_size=9))
    def test_a_short_recording_is_one_span_of_it_all(self, runs):
        activity = activity_of(*runs)
        size = len(activity)
        spans = segment(activity, window=15, max_frames=max(15, size + 15), min_silence=50)
        assert [(s.start, s.end) for s in spans] == [(0, size)]

    def test_no_speech_no_span(self):
        assert segment(activity_of(1000), window=15, max_frames=450) == []
        assert segment(activity_of(), window=15, max_frames=450) == []

    def test_of_long_pauses_only_the_ends_are_decoded(self):
        spans = segment(activity_of(300, 100, 400, 100, 300), window=15, max_frames=450)
        assert 0 < MARGIN_FRAMES <= 15
        assert spans == [Span(285, 420, 300, 400), Span(780, 915, 800, 900)]

    @pytest.mark.parametrize(("min_silence", "shortest"), [(50, 50), (15, 15), (1, 15)])
    def test_a_pause_of_min_silence_ends_a_span_and_a_shorter_one_does_not(
        self, min_silence, shortest
    ):
        """One of a window at least: there is a place to cut in it."""
        for before in range(100, 115):
            for pause, count in ((shortest - 1, 1), (shortest, 2)):
                frames = activity_of(0, before, pause, 100)
                spans = segment(frames, window=15, max_frames=1500, min_silence=min_silence)
                assert len(spans) == count

    def test_cut_in_the_longest_pause_that_leaves_fair_lengths(self):
        # pauses at 60 of 40 frames, unfairly early; at 260 of 20; at 360 of 30
        runs = (0, 60, 40, 160, 20, 80, 30, 200)
        first, second = segment(activity_of(*runs), window=5, max_frames=500, min_silence=50)
        assert (first.last, second.first) == (360, 390)

    def test_silence_in_words_is_no_pause(self):
        """A span is not cut in it, but where the level is lowest."""
        for silence, cut in ((PAUSE_FRAMES, 200), (PAUSE_FRAMES - 1, 300)):
            activity = activity_of(0, 200, silence, 400)
            activity.level[298:302] = -1
            first, _ = segment(activity, window=1, max_frames=450)
            assert first.last == cut
        activity.level[205:209] = -2  # unless it is there
        first, second = segment(activity, window=1, max_frames=450)
        assert (first.last, second.first) == (200, 200 + silence)

    def test_speech_without_pause_is_cut_at_its_lowest_level(self):
        activity = activity_of(0, 600)
        activity.level[298:302] = 0.5
        activity.level[20:40] = 0
        spans = segment(activity, window=15, max_frames=450)
        assert spans == [Span(0, 300, 0, 300), Span(300, 600, 300, 600)]

    def test_short_speech_goes_to_the_nearer_neighbour(self):
        near, far = MIN_SILENCE_FRAMES + 14, MIN_SILENCE_FRAMES + 19
        first, last = segment(activity_of(0, 200, near, 5, far, 200), window=15, max_frames=1500)
        assert first.last == 200 + near + 5
        first, last = segment(activity_of(0, 200, far, 5, near, 200), window=15, max_frames=1500)
        assert last.first == 200 + far

    def test_speech_that_is_not_short_goes_to_none(self):
        pause = MIN_SILENCE_FRAMES
        for size, count in ((SHORT_FRAMES - 1, 2), (SHORT_FRAMES, 3)):
            frames = activity_of(0, 200, pause, size, pause, 200)
            assert len(segment(frames, window=15, max_frames=1500)) == count

    def test_short_speech_far_from_all_is_widened(self):
        (span,) = segment(activity_of(300, 1, 300), window=15, max_frames=1500)
        assert (span.first, span.last) == (300, 301)
        assert WIDENED_FRAMES <= span.end - span.start < WIDENED_FRAMES + 30

    @pytest.mark.parametrize(
        "options", [{"window": 0}, {"min_silence": 0}, {"max_frames": 14}, {"max_frames": -1}]
    )
    def test_impossible_numbers(self, options):
        with pytest.raises(InputError, match=r"must be at least 1|less than the window"):
            Segmenter(**({"window": 15, "max_frames": 450, "min_silence": 20} | options))

    @pytest.mark.parametrize("runs", [(30, 100, 60, 40), (1000,)], ids=["sentences", "silence"])
    def test_state_stays_small(self, runs):
        """Ten hours of sentences and pauses, or of silence; and so does what is held for it."""
        part, frames, segmenter = activity_of(*runs), 0, Segmenter(window=15, max_frames=1500)
        for _ in range(36000 * 50 // len(part)):
            segmenter.push(part)
            frames += len(part)
            assert len(segmenter._stretches) < 10
            assert segmenter._level.size < 4000
            assert frames - segmenter.start < 4000
