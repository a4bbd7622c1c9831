"""Parts of a recording, each found alone: together they are the whole, to the last bit."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
import tiny_nar
from conftest import DATA, chunks_of
from hypothesis import given, settings
from hypothesis import strategies as st
from media import make
from small_plus import make_plus

from mlx_speech import InputError, load, load_audio, transcribe
from mlx_speech.audio import open_recording
from mlx_speech.models.conformer_stream import reach_frames
from mlx_speech.transcription import parts
from mlx_speech.transcription.chunks import ChunkOptions
from mlx_speech.transcription.part_results import PartResult, join
from mlx_speech.transcription.parts import Halo, OwnSpeech, Part, split
from mlx_speech.transcription.pipeline import least_part, transcribe_part
from mlx_speech.transcription.preparation import speech_family
from mlx_speech.transcription.segmenter import Segmenter, Span
from mlx_speech.transcription.transcript import Transcript
from mlx_speech.transcription.vad import (
    BLOCK_FRAMES,
    REACH_FRAMES,
    WARM_UP_FRAMES,
    SpeechActivity,
)

RATE, FRAME = 16000, 320
SECTION = 700  # frames, 14 s
CUTS = {"chunk_duration": 9, "min_silence": 0.4}


@pytest.fixture(autouse=True)
def short_sections(monkeypatch):
    monkeypatch.setattr(parts, "SECTION_FRAMES", SECTION)


@pytest.fixture(scope="module")
def models(tiny, tiny_s2t, tmp_path_factory):
    """(model, processor) by the name of a family, loaded when it is asked for."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "nar").mkdir()
    makers = {
        "granite": lambda: tiny,
        "plus": lambda: load(make_plus(folder / "plus"), dtype=mx.float32),
        "nar": lambda: load(tiny_nar.checkpoint(folder / "nar"), dtype=mx.float32),
        "turbo": lambda: load(DATA / "tiny-turboctc", dtype=mx.float32),
        "s2t": lambda: tiny_s2t,
    }
    return cache(lambda name: makers[name]())


@pytest.fixture(scope="module")
def sentences() -> list[np.ndarray]:
    files = sorted((DATA / "audio").glob("*.flac"))
    spoken = [f for f in files if f.name.startswith(("espeak", "flite", "festival"))]
    return [np.array(load_audio(file)) for file in spoken]


def spoken(sentences, seconds: float, pauses: tuple[float, float], seed: int = 0) -> np.ndarray:
    """Sentences with pauses of some length between them."""
    random, sounds = np.random.default_rng(seed), []
    while sum(sound.size for sound in sounds) < seconds * RATE:
        pause = np.zeros(round(random.uniform(*pauses) * RATE), np.float32)
        sounds += [sentences[random.integers(len(sentences))], pause]
    return np.concatenate(sounds)[: round(seconds * RATE)]


@pytest.fixture(scope="module")
def mixed(sentences) -> np.ndarray:
    """Two minutes and a bit: speech with pauses, without a long one, over noise, and silence."""
    noise = np.random.default_rng(1).normal(scale=0.001, size=25 * RATE).astype(np.float32)
    sounds = [
        spoken(sentences, 40, (0.3, 4), 1),
        spoken(sentences, 25, (0.1, 0.5), 2),
        np.zeros(20 * RATE, np.float32),
        spoken(sentences, 25, (0.5, 3.5), 3) + noise,
        noise[: 9 * RATE],
        spoken(sentences, 12.0123, (0.3, 4), 4),
    ]
    return np.concatenate(sounds)


def cut_at(*edges: int) -> list[Part]:
    return [Part(*pair) for pair in zip([0, *edges], [*edges, None], strict=True)]


def content(chunk) -> dict:
    """All that a chunk has, to the last bit."""

    def bits(value):
        if isinstance(value, mx.array):
            value = value.astype(mx.float32)
        if isinstance(value, mx.array | np.ndarray):
            return np.array(value).shape, np.array(value).tobytes()
        if isinstance(value, tuple | list):
            return [bits(item) for item in value]
        return value

    draft = vars(chunk.draft) if chunk.draft else {}
    fields = {**vars(chunk), "draft": [*draft.values()]}
    return {name: bits(value) for name, value in fields.items()}


def chunks(model, samples, part=parts.WHOLE, **wanted) -> list[dict]:
    family = speech_family(*model)
    wanted = {"for_alignment": True, "drafts": True, "for_decoder": True} | wanted
    with open_recording(mx.array(samples), RATE) as recording:
        found = chunks_of(family, recording, ChunkOptions(**CUTS), part=part, **wanted)
        return [content(chunk) for chunk in found]


#: what `check` has found, by the model and the samples
WHOLE: dict[tuple[int, bytes], list[dict]] = {}


def check(model, samples, *edges: int) -> list[int]:
    """The chunks of parts with these edges are those of the whole; how many each has."""
    key = id(model), samples.tobytes()
    if key not in WHOLE:
        WHOLE[key] = chunks(model, samples)
    whole = WHOLE[key]
    found = [chunks(model, samples, part) for part in cut_at(*edges)]
    own = [chunk for part in found for chunk in part]
    if any(edge % SECTION for edge in edges):
        own, whole = ([{**c, "section": 0} for c in each] for each in (own, whole))
    assert own == whole
    return [len(part) for part in found]


@st.composite
def activities(draw):
    """Any pattern of speech and silence, with any options, and where it is divided."""
    pauses = st.integers(0, 30) | st.integers(40, 110) | st.integers(20, 250)
    sounds = st.integers(1, 24) | st.integers(1, 60)
    runs = draw(st.lists(st.tuples(pauses, sounds), min_size=1, max_size=14))
    speech = np.repeat(np.arange(2 * len(runs)) % 2 == 1, np.ravel(runs))
    random = np.random.default_rng(draw(st.integers(0, 9)))
    window = draw(st.sampled_from([1, 4, 15]))
    options = {"window": window, "max_frames": draw(st.integers(window, 400))}
    options["min_silence"] = draw(st.integers(1, 60))
    edges = sorted(draw(st.lists(st.integers(0, len(speech) + 99), min_size=1, max_size=4)))
    return SpeechActivity(speech, random.random(len(speech), np.float32)), options, edges, random


def spans_of(activity, options, part=parts.WHOLE, first=0, step=10**9) -> list[tuple[Span, ...]]:
    """The spans of a part, given its activity from the first frame on, so many frames at once."""
    segmenter = Segmenter(first=first, **options)
    own = OwnSpeech(part, first, segmenter.apart)
    spans: list[Span] = []
    for start in range(0, len(activity), step):
        needed = segmenter.start
        pushed = activity[start : start + step]
        found = segmenter.push(own.push(pushed, np.zeros(len(pushed), bool)))
        assert all(span.start >= needed for span in found)
        spans += found
        if own.ended:
            break
    else:
        spans += segmenter.finish()
    return [(span, span.pauses, own.section(span.first)) for span in spans]


class TestOwnSpeech:
    @settings(max_examples=100, deadline=None)
    @given(activities(), st.integers(1, 300))
    def test_spans_of_parts_are_those_of_the_whole(self, case, step):
        """Whatever was taken for speech before a part began, and however it is pushed."""
        activity, options, edges, random = case
        found = []
        for part in cut_at(*edges):
            first = max(0, part.begin - int(random.integers(0, 200)))
            unsure = activity.speech[first:].copy()
            before = unsure[: part.begin - first]
            before[:] = random.random(before.size) < 0.3
            own = SpeechActivity(unsure, activity.level[first:])
            found += spans_of(own, options, part, first, step)
        whole = spans_of(activity, options)
        assert [span[:2] for span in found] == [span[:2] for span in whole]

    @settings(max_examples=50, deadline=None)
    @given(activities(), st.integers(1, 300))
    def test_sections(self, case, step):
        """Those of whole sections have the same of these, which end in the first long pause."""
        activity, options, *_ = case
        spans = spans_of(activity, options, step=step)
        found = [
            span
            for part in cut_at(SECTION, 3 * SECTION)
            for span in spans_of(activity[part.begin :], options, part, part.begin)
        ]
        assert found == spans
        apart = Segmenter(**options).apart
        for (a, _, section), (b, _, following) in pairwise(spans):
            ends = [e for e in range(0, len(activity), SECTION) if e and b.first - e >= apart]
            divides = b.first - a.last >= apart and ends and b.first - max(ends) >= apart
            assert section <= following
            assert following == (max(ends) // SECTION if divides else section)

    def test_what_is_written_in_a_pause(self):
        """Is no speech, and no pause between parts either: a word may go on through it."""
        speech = np.repeat([True, False, True, False, True], [20, 60, 20, 60, 20])
        activity = SpeechActivity(speech, speech.astype(np.float32))
        written = np.zeros(180, bool)
        for frame, begins in ((None, 80), (50, 160)):
            written[:] = False
            written[frame or 0] = frame is not None
            own = OwnSpeech(Part(10), 0, 50).push(activity, written).speech
            assert np.flatnonzero(own)[0] == begins
            others = OwnSpeech(Part(0, 10), 0, 50).push(activity, written).speech
            assert (own ^ others == speech).all()


class TestSplit:
    @pytest.mark.parametrize(
        ("sections", "number", "least", "begins"),
        [
            (8.2, 4, 1, [0, 2, 4, 6]),
            (8.2, 3, 1, [0, 3, 5]),
            (3.9, 9, 1, [0, 1, 3]),
            (8.2, 4, 3 * SECTION / 50, [0, 4]),
            (1.9, 4, 1, [0]),
            (8.2, 1, 1, [0]),
            (0, 4, 1, [0]),
            (8.2, 4, None, [0]),
        ],
    )
    def test_whole_sections(self, sections, number, least, begins):
        found = split(sections * SECTION / 50, number, least)
        assert [part.begin for part in found] == [SECTION * begin for begin in begins]
        assert [part.end for part in found] == [*(part.begin for part in found[1:]), None]


class TestChunks:
    @pytest.mark.parametrize("name", [pytest.param("plus", marks=pytest.mark.slow), "turbo", "s2t"])
    def test_of_all_parts_are_those_of_the_whole(self, models, mixed, name):
        """To the last bit, wherever parts are divided: between sections, and in speech."""
        counts = check(models(name), mixed, 3 * SECTION, 6 * SECTION)
        assert min(counts) > 1
        assert min(check(models(name), mixed, 2345, 4567, 4999)[::3]) > 1

    @pytest.mark.parametrize("name", ["turbo", "s2t"])
    def test_wherever_they_are_divided(self, models, mixed, name):
        random = np.random.default_rng(3)
        check(models(name), mixed, *sorted(random.integers(0, 7000, 8).tolist()))

    @pytest.mark.parametrize("name", ["granite", "turbo", "s2t"])
    def test_without_a_long_pause_all_are_of_the_first(self, models, sentences, name):
        samples = spoken(sentences, 60, (0.1, 0.5))
        assert check(models(name), samples, 1500, 2500)[1:] == [0, 0]

    @pytest.mark.parametrize("name", ["granite", "turbo", "s2t"])
    def test_silent_parts_and_those_behind_the_end_have_none(self, models, sentences, name):
        start, end = (spoken(sentences, 12, (0.1, 0.5), seed) for seed in (1, 2))
        samples = np.concatenate([start, np.zeros(40 * RATE, np.float32), end])
        first, silent, last, behind = check(models(name), samples, 700, 2400, 3201)
        assert first > 0
        assert last > 0
        assert silent == behind == 0
        assert check(models(name), samples[: 600 * FRAME], 3000, 4000)[1:] == [0, 0]


class Shapes:
    """What the stages of a family's encoding compute at once: each stage's number, the frame of its
    input that it begins at, and how many there are; to each the frame that they end with, in frames
    of 20 ms."""

    def __init__(self, layers, first: int):
        self.seen: dict[tuple[str, int, int, int], int] = {}
        self._done: dict[tuple[str, int], int] = {}
        self._strides: dict[int, tuple[int, int]] = {}
        stride = 1
        for number, layer in enumerate(layers):
            self._strides[id(layer)] = number, stride
            stride *= layer.depthwise.stride
        self._first = first

    def add(self, layer, half: str, frames: int) -> None:
        number, stride = self._strides[id(layer)]
        start = self._done.get((half, number), self._first // stride)
        self._done[half, number] = start + frames
        self.seen[half, number, start, frames] = (start + frames) * stride


def shapes_of(model, samples, part, monkeypatch) -> Shapes:
    layers, first = model[0].encoder.layers, speech_family(*model).halo.start(part)
    shapes, kind = Shapes(layers, first), type(layers[0])
    attend, convolve = kind.attend, kind.convolve

    def spy_attend(layer, x, mask):
        shapes.add(layer, "attend", x.shape[1])
        return attend(layer, x, mask)

    def spy_convolve(layer, x, gated, halo=False):
        shapes.add(layer, "convolve", x.shape[1])
        return convolve(layer, x, gated, halo)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "attend", spy_attend)
        patched.setattr(kind, "convolve", spy_convolve)
        chunks(model, samples, part, for_decoder=False)
    return shapes


class TestHalo:
    def test_start(self):
        halo = Halo(push_frames=1500, block_frames=200, reach_frames=16 * 214)
        assert halo.start(Part(0, 9)) == halo.start(Part(3000)) == 0
        for begin in (9000, 12345):
            start = halo.start(Part(begin))
            assert start % 200 == 0
            assert 0 <= begin - start - 1500 - 2 * 200 - 16 * 214 - 50 < 200
        assert Halo(1500).start(Part(9000)) == 9000 - BLOCK_FRAMES - WARM_UP_FRAMES - 50
        assert 4 * 100 < halo.least_part < 20 * 60

    @pytest.mark.parametrize("name", ["granite", "turbo"])
    @pytest.mark.parametrize("begin", [4000, 4567])
    def test_stages_compute_what_they_do_for_the_whole(
        self, models, sentences, monkeypatch, name, begin
    ):
        """All that what matters depends on, in the same shapes: others may be rounded otherwise."""
        model, samples = models(name), spoken(sentences, 110, (0.3, 2))
        part = Part(begin)
        whole = shapes_of(model, samples, parts.WHOLE, monkeypatch).seen
        own = shapes_of(model, samples, part, monkeypatch).seen
        layers, config = model[0].encoder.layers, model[0].encoder.config
        assert speech_family(*model).halo.start(part) > 0
        strides = np.cumprod([1, *(layer.depthwise.stride for layer in layers)])
        for (half, number, start, frames), end in own.items():
            reach = strides[number] * reach_frames(layers[number:], config.context_size)
            if end > begin - REACH_FRAMES - reach:
                assert (half, number, start, frames) in whole
        assert len({number for _, number, *_ in own}) == len(layers)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("granite", {"word_timestamps": True}),
        ("granite", {"num_beams": 2, "batch_size": 3}),
        ("nar", {"word_timestamps": True}),
        ("turbo", {"word_timestamps": True}),
        ("s2t", {"batch_size": 3}),
    ],
)
def test_transcripts(models, sentences, name, options):
    """All of it is that of the whole, whatever is decoded together, after a trip as JSON."""
    model, samples = models(name), spoken(sentences, 45, (0.3, 4), 5)
    options |= {"sampling_rate": RATE, **CUTS}
    whole = transcribe(samples, model, **options)
    assert Transcript.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    results = [transcribe_part(samples, model, part, **options) for part in split(45, 3, 1)]
    assert len(results) == 3
    assert all(result.segments for result in results)
    sent = [json.dumps(result.to_dict()) for result in results]
    received = [PartResult.from_dict(json.loads(data)) for data in sent]
    assert received == results
    assert join(received).to_dict() == whole.to_dict()
    assert join(received).drafts == whole.drafts


def test_without_text(tiny, sentences):
    random = np.random.default_rng(0)
    noise = random.normal(scale=0.01, size=40 * RATE).astype(np.float32)
    noise *= np.repeat(random.uniform(0.1, 1, 40), RATE).astype(np.float32)  # it stands out
    for samples in (0 * noise, noise, noise[:300]):
        whole = transcribe(samples, tiny, sampling_rate=RATE)
        results = [
            transcribe_part(samples, tiny, part, sampling_rate=RATE) for part in cut_at(700, 1400)
        ]
        assert whole.text == ""
        assert join(results).to_dict() == whole.to_dict()
        assert not results[0].other_tracks


def test_other_audio_tracks(tiny, sentences, tmp_path):
    """A part is of the first; who has no text of any has to know that there are others."""
    hiss = np.random.default_rng(0).normal(scale=0.01, size=30 * RATE).astype(np.float32)
    path = make(tmp_path / "talk.mkv", hiss, spoken(sentences, 30, (0.3, 4)))
    results = [transcribe_part(path, tiny, part) for part in cut_at(SECTION)]
    assert join(results).text == ""
    assert all(result.other_tracks for result in results)
    chosen = [transcribe_part(path, tiny, part, audio_track=2) for part in cut_at(SECTION)]
    assert join(chosen).to_dict() == transcribe(path, tiny, audio_track=2).to_dict()
    assert not any(result.other_tracks for result in chosen)


def test_progress_is_of_the_part(tiny, sentences):
    samples, told = spoken(sentences, 60, (1, 4)), []

    def progress(*seconds):
        told.append(seconds)

    transcribe_part(samples, tiny, Part(1000, 2000), sampling_rate=RATE, progress=progress)
    assert told[0] == (0, 20)
    assert told[-1] == (20, 20)
    assert told == sorted(told)
    assert len(told) > 2
    told.clear()
    transcribe_part(samples, tiny, Part(2500), sampling_rate=RATE, progress=progress)
    assert told[-1] == (10, 10)
    told.clear()
    transcribe_part(samples, tiny, Part(4000, 5000), sampling_rate=RATE, progress=progress)
    assert set(told) == {(0, 0)}


def test_what_cannot_be_divided(models, sentences):
    assert least_part(models("granite"), **CUTS, audio_track=1, draft=False) > 60
    assert least_part(models("turbo")) > 60
    assert least_part(models("s2t")) > 60
    assert least_part(models("granite"), temperature=0.5) is None
    for options in ({"prefix_text": "and so"}, {"speakers": True}):
        assert least_part(models("plus"), **options) is None
        with pytest.raises(InputError, match="there are no parts"):
            transcribe_part(sentences[0], models("plus"), Part(9), sampling_rate=RATE, **options)
    assert least_part(models("plus"), word_timestamps="tags") > 60
    with pytest.raises(InputError, match="chunk_duration"):
        least_part(models("granite"), chunk_duration=-1)
