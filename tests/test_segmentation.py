"""Cutting long recordings where they are quiet."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech import InputError
from mlx_speech.activity import Activity
from mlx_speech.segmentation import ONSET, RELEASE, SHORT, WIDENED, Segmenter, Span


def activity_of(*runs: int) -> Activity:
    """Frames of silence, speech, silence, ... in turn."""
    speech = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return Activity(speech, speech.astype(np.float32))


def segment(activity: Activity, divisions=(), audible=None, **options) -> list[Span]:
    """The spans of an activity that is pushed in parts that end at `divisions`; none needs frames
    that it was said before that none would."""
    segmenter = Segmenter(**options)
    size = activity.speech.size
    edges = [0, *sorted(d for d in divisions if d < size), size]
    spans = []
    for a, b in itertools.pairwise(edges):
        needed = segmenter.start
        found = segmenter.push(activity[a:b], None if audible is None else audible[a:b])
        assert all(span.start >= needed for span in found)
        spans += found
    needed = segmenter.start
    found = segmenter.finish()
    assert all(span.start >= needed for span in found)
    return spans + found


def widened_runs(speech: np.ndarray) -> list[tuple[int, int]]:
    """Runs of speech, each from `ONSET` earlier to `RELEASE` later, joined where they touch."""
    wide = np.zeros(speech.size + ONSET + RELEASE, bool)
    for shift in range(-ONSET, RELEASE + 1):
        wide[ONSET + shift : ONSET + shift + speech.size] |= speech
    wide = wide[ONSET : ONSET + speech.size]
    edges = np.flatnonzero(np.diff(wide.astype(np.int8), prepend=0, append=0))
    return [tuple(run) for run in edges.reshape(-1, 2).tolist()]


@st.composite
def cases(draw):
    """Any pattern of speech and silence, with any options."""
    runs = draw(st.lists(st.integers(0, 30) | st.integers(20, 300), max_size=24))
    activity = activity_of(*runs)
    noise = np.random.default_rng(draw(st.integers(0, 9))).random(activity.speech.size)
    window = draw(st.sampled_from([1, 2, 15]))
    options = {
        "window": window,
        "max_frames": draw(st.integers(window, 400)),
        "min_silence": draw(st.integers(1, 80)),
    }
    divisions = draw(st.lists(st.integers(0, activity.speech.size), max_size=12))
    return Activity(activity.speech, noise.astype(np.float32)), divisions, options


class TestSegmenter:
    @settings(max_examples=300, deadline=None)
    @given(cases())
    def test_any_pattern(self, case):
        """In order, on the grid, not too long, all speech once, no silence of its own, cuts in
        pauses wherever there are any, and the same however it is pushed."""
        activity, divisions, options = case
        window, wide = options["window"], ONSET + RELEASE
        min_silence = max(options["min_silence"] - wide, window)
        longest = options["max_frames"] // window * window
        spans, size = segment(activity, **options), activity.speech.size
        assert segment(activity, divisions, **options) == spans
        assert segment(activity, range(size), **options) == spans
        for span in spans:
            assert 0 <= span.start <= span.first < span.last <= span.end <= size
            assert span.end - span.start <= longest
            assert span.start % window == 0
            assert span.end % window == 0 or span.end == size
        for a, b in itertools.pairwise(spans):
            assert a.end <= b.start
        runs = widened_runs(activity.speech)
        said = np.zeros(size, int)
        for span in spans:
            said[span.first : span.last] += 1
            assert any(a < span.last and span.first < b for a, b in runs)
        for a, b in runs:
            assert (said[a:b] == 1).all()
        pauses = [(a[1], b[0]) for a, b in itertools.pairwise(runs)]
        for a, b in pauses:
            inside = [s for s in spans if s.first < a and b < s.last]
            if b - a >= min_silence and inside:
                assert b - a < 2 * min_silence + wide
                before = max((q for p, q in pauses if q <= a and q - p >= min_silence), default=0)
                after = min((p for p, q in pauses if p >= b and q - p >= min_silence), default=size)
                first = next(p for p, q in runs if p >= before)
                last = max(q for p, q in runs if q <= after)
                # the stretch on one of the sides, at least, was short or joined before
                assert a - first < SHORT or last - b < SHORT or inside[0].first < first
        for span in spans:
            cut = span.last
            if any(a < cut < b for a, b in runs):
                reach = span.start + longest
                grid = [a for a, b in pauses if span.first < a and -(-a // window) * window <= b]
                assert not [a for a in grid if -(-a // window) * window <= reach and a < cut]

    @settings(max_examples=100, deadline=None)
    @given(cases(), st.integers(0, 5))
    def test_energy_drops_spans_and_narrows_their_speech_and_no_more(self, case, seed):
        activity, divisions, options = case
        size = activity.speech.size
        audible = np.repeat(np.random.default_rng(seed).random(size // 50 + 1) < 0.3, 50)[:size]
        plain = segment(activity, **options)
        gated = segment(activity, audible=audible, **options)
        assert segment(activity, divisions, audible, **options) == gated
        kept = [s for s in plain if audible[s.first : s.last].any()]
        assert [(s.start, s.end) for s in gated] == [(s.start, s.end) for s in kept]
        for span, before in zip(gated, kept, strict=True):
            assert before.first <= span.first < span.last <= before.last
            heard = before.first + np.flatnonzero(audible[before.first : before.last])
            assert span.first <= heard[0]
            assert heard[-1] < span.last

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(1, 49), min_size=2, max_size=9))
    def test_a_short_recording_is_one_span_of_it_all(self, runs):
        activity = activity_of(*runs)
        size = activity.speech.size
        spans = segment(activity, window=15, max_frames=max(15, size + 15), min_silence=50)
        assert [(s.start, s.end) for s in spans] == [(0, size)]

    def test_no_speech_no_span(self):
        assert segment(activity_of(1000), window=15, max_frames=450) == []
        assert segment(activity_of(), window=15, max_frames=450) == []

    def test_long_pauses_are_heard_only_at_their_ends(self):
        spans = segment(activity_of(300, 100, 400, 100, 300), window=15, max_frames=450)
        first, last = 300 - ONSET, 400 + RELEASE
        assert spans[0] == Span((first - 15) // 15 * 15, -(-(last + 15) // 15) * 15, first, last)
        assert [(s.first, s.last) for s in spans[1:]] == [(800 - ONSET, 900 + RELEASE)]

    def test_a_pause_of_min_silence_ends_a_span_and_a_shorter_one_does_not(self):
        for pause, count in ((49, 1), (50, 2)):
            frames = activity_of(0, 100, pause, 100)
            assert len(segment(frames, window=15, max_frames=1500, min_silence=50)) == count

    def test_cut_in_the_longest_pause_that_leaves_fair_lengths(self):
        wide = ONSET + RELEASE
        # pauses at 60 of 40 frames, unfairly early; at 260 of 20; at 360 of 30
        runs = (0, 60, 40 + wide, 160 - wide, 20 + wide, 80 - wide, 30 + wide, 200)
        spans = segment(activity_of(*runs), window=5, max_frames=500, min_silence=50 + wide)
        assert len(spans) == 2
        assert spans[0].last == 360 + RELEASE
        assert spans[1].first == 360 + 30 + RELEASE

    @pytest.mark.parametrize("size", range(1, 60))
    def test_the_end_counts_only_when_it_is_known(self, size):
        """Speech up to the end fits or not by its real length, not by one with `RELEASE`."""
        options = {"window": 1, "max_frames": 17, "min_silence": 1}
        activity = activity_of(26, size)
        assert segment(activity, range(26 + size), **options) == segment(activity, **options)

    def test_speech_without_pause_is_cut_at_its_lowest_level(self):
        activity = activity_of(0, 600)
        activity.level[298:302] = 0.5
        activity.level[20:40] = 0
        spans = segment(activity, window=15, max_frames=450)
        assert [(s.start, s.end, s.first, s.last) for s in spans] == [
            (0, 300, 0, 300),
            (300, 600, 300, 600),
        ]

    def test_short_speech_goes_to_the_nearer_neighbour(self):
        wide = ONSET + RELEASE
        left, right = 40 + wide, 45 + wide
        runs = [0, 200, left, 5, right, 200]
        (first, last) = segment(activity_of(*runs), window=15, max_frames=1500)
        assert first.last == 200 + left + 5 + RELEASE
        runs[2], runs[4] = right, left
        (first, last) = segment(activity_of(*runs), window=15, max_frames=1500)
        assert last.first == 200 + right - ONSET

    def test_short_speech_far_from_all_is_widened(self):
        (span,) = segment(activity_of(300, 1, 300), window=15, max_frames=1500)
        assert span.last - span.first == 1 + ONSET + RELEASE
        assert WIDENED <= span.end - span.start < WIDENED + 30

    @pytest.mark.parametrize(
        "options", [{"window": 0}, {"min_silence": 0}, {"max_frames": 14}, {"max_frames": -1}]
    )
    def test_impossible_numbers(self, options):
        with pytest.raises(InputError, match=r"must be at least 1|less than the window"):
            Segmenter(**({"window": 15, "max_frames": 450, "min_silence": 20} | options))

    def test_state_stays_small(self):
        """Ten hours of sentences and pauses, and ten hours of silence."""
        for part in (activity_of(30, 100, 60, 40), activity_of(1000)):
            segmenter = Segmenter(window=15, max_frames=1500)
            for _ in range(36000 * 50 // 1000):
                for _ in range(1000 // part.speech.size):
                    segmenter.push(part)
                assert len(segmenter._stretches) < 10
                assert segmenter._level.size + segmenter._audible.size < 6000
