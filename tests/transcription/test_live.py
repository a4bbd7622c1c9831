"""Text of audio that is still coming in."""

from __future__ import annotations

import json
import tracemalloc
from itertools import groupby
from threading import Thread

import mlx.core as mx
import numpy as np
import pytest
import tiny_nar
from conftest import DATA, TRANSCRIBE
from live_audio import CUTS, RATE, pushed, recording, silence, texts
from small_plus import make_plus
from sounds import LIVELY, STEADY, colored_noise, sounds

from mlx_speech import (
    AudioError,
    InputError,
    LiveEvent,
    LiveTranscriber,
    UnsupportedOptionError,
    load,
    transcribe,
)
from mlx_speech.transcription.live_turn import LiveTurn
from mlx_speech.transcription.segmenter import Span
from mlx_speech.transcription.word_errors import word_errors


@pytest.fixture(scope="module")
def sentence(tiny) -> list[LiveEvent]:
    """The events of a sentence, once for all that look at it."""
    return pushed(LiveTranscriber(tiny), recording())


@pytest.fixture(scope="module")
def long_one(tiny) -> tuple[list[LiveEvent], list[Span]]:
    """Those of the long recording, and the spans of its segments."""
    live = LiveTranscriber(tiny, **CUTS)
    spans, made = [], live._encoder.chunk

    def spy(span, *args, **kwargs):
        spans.append(span)
        return made(span, *args, **kwargs)

    live._encoder.chunk = spy
    return pushed(live, recording("long.flac"), None), spans


class TestEvents:
    def test_a_sentence(self, sentence):
        events = sentence
        started, *middle, stopped, corrected = events
        assert (started.kind, stopped.kind, corrected.kind) == ("started", "stopped", "corrected")
        assert {event.kind for event in middle} == {"partial", "committed"}
        assert {event.segment_id for event in events} == {0}
        assert started.time == pytest.approx(0.4, abs=0.1)
        assert stopped.time == pytest.approx(4.5, abs=0.1)
        assert "".join(texts(middle, "committed")).endswith("set a timer for eleven hours")
        assert corrected.text == corrected.segment.text
        assert corrected.segment.start <= started.time
        assert corrected.segment.end >= stopped.time

    def test_words_are_shown_before_they_are_certain(self, sentence):
        shown = certain = ""
        first_shown, first_certain = {}, {}
        for event in sentence:
            if event.kind == "committed":
                certain += event.text
            shown = certain + (event.text if event.kind == "partial" else "")
            for text, when in ((shown, first_shown), (certain, first_certain)):
                for word in ("timer", "eleven"):
                    if f" {word}" in text:
                        when.setdefault(word, event.time)
        # the words end at 3.5 and 4.1 s
        assert first_shown["timer"] < 3.9
        assert first_shown["timer"] < first_certain["timer"] < 4.3
        assert first_shown["eleven"] < 4.5

    @pytest.mark.parametrize("size", [320, 1600, None, 10 * RATE])
    def test_pieces_do_not_matter(self, tiny, sentence, size):
        assert pushed(LiveTranscriber(tiny), recording(), size) == sentence

    def test_segments_follow_each_other(self, long_one):
        events, _ = long_one
        for number, (key, group) in enumerate(groupby(events, lambda event: event.segment_id)):
            kinds = [event.kind for event in group]
            assert key == number
            assert (kinds[0], *kinds[-2:]) == ("started", "stopped", "corrected")
            assert set(kinds[1:-2]) <= {"partial", "committed"}
        assert number > 5
        ends = [(e.segment.start, e.segment.end) for e in events if e.segment]
        assert [edge for pair in ends for edge in pair] == sorted(e for pair in ends for e in pair)

    def test_nothing_comes_after_the_end(self, tiny):
        live = LiveTranscriber(tiny)
        assert live.finish() == live.finish() == []
        with pytest.raises(InputError, match="the audio has ended"):
            live.push(silence(0.1))

    def test_nor_is_it_looked_at_again(self, tiny):
        live = LiveTranscriber(tiny)
        assert pushed(live, silence(0.1)) == live.commit() == []
        assert live.duration == 0.1

    def test_another_thread(self, tiny, sentence):
        """As a server's, which makes it in one."""
        live, found = LiveTranscriber(tiny), []
        thread = Thread(target=lambda: found.extend(pushed(live, recording())))
        thread.start()
        thread.join()
        assert found == sentence


class TestNoSpeech:
    def test_silence(self, tiny):
        noise = 1e-5 * np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
        assert pushed(LiveTranscriber(tiny), np.concatenate([silence(3), noise])) == []

    @pytest.mark.parametrize("makers", [STEADY, LIVELY], ids=["steady", "lively"])
    def test_sounds(self, tiny, makers):
        for sound in sounds(makers, 2 * len(makers), longest=8):
            assert pushed(LiveTranscriber(tiny), sound.samples) == [], sound.kind

    def test_after_speech(self, tiny):
        noise = colored_noise(5 * RATE, 1, np.random.default_rng(0)).astype(np.float32)
        noise *= 0.02 / noise.std()
        events = pushed(LiveTranscriber(tiny), np.concatenate([recording(), noise]))
        assert len(texts(events)) == 1
        assert events[-1].time < 5

    @pytest.mark.parametrize("size", [0, 1, 300, 5000])
    def test_hardly_any_audio(self, tiny, size):
        assert pushed(LiveTranscriber(tiny), recording()[:size]) == []


class TestAsOffline:
    def test_on_the_same_cuts(self, tiny, long_one):
        """The states that a live segment is decoded from are as good as those of the whole."""
        samples, (events, spans) = recording("long.flac"), long_one
        model, processor = tiny
        features = processor.audio_processor.log_mel(mx.array(samples))
        output = model.encode_stream().push(features, last=True)
        prompt, said = processor.speech_prompt(TRANSCRIBE), []
        for start in range(0, len(spans), 8):
            some = spans[start : start + 8]
            audio = [model.project(output.last_hidden_state[:, s.start : s.end])[0] for s in some]
            inputs = processor.audio_inputs(audio, prompt)
            rows = model.generate(**inputs, max_new_tokens=60)[:, inputs["input_ids"].shape[1] :]
            said += [processor.decode(row, skip_special_tokens=True) for row in rows.tolist()]
        assert said == texts(events)

    def test_word_errors(self, tiny, long_one):
        samples = recording("long.flac")
        manifest = (DATA / "audio" / "manifest.jsonl").read_text().splitlines()
        said = {entry["file"]: entry["text"] for entry in map(json.loads, manifest)}["long.flac"]
        offline = transcribe(samples, tiny, sampling_rate=RATE, **CUTS).text
        live = " ".join(texts(long_one[0]))
        more = word_errors(said, live) - word_errors(said, offline)
        assert more <= 0.005 * len(said.split())

    def test_pieces_of_a_long_recording(self, tiny, long_one):
        """Neither do they matter there, nor does what comes later."""
        samples = recording("long.flac")[: 26 * RATE]
        live = LiveTranscriber(tiny, **CUTS)
        whole = live.push(samples)
        live = LiveTranscriber(tiny, **CUTS)
        small = [e for at in range(0, samples.size, 320) for e in live.push(samples[at : at + 320])]
        assert len(texts(whole)) > 5
        assert whole == small == long_one[0][: len(whole)]


class TestAudio:
    def test_other_rates_and_types(self, tiny):
        samples = recording(rate=48000)
        (text,) = texts(pushed(LiveTranscriber(tiny, sampling_rate=48000), samples))
        assert text.endswith("and set a timer for eleven seconds")
        whole = (samples * 32767).astype(np.int16)
        events = [
            pushed(LiveTranscriber(tiny, sampling_rate=48000), each, size)
            for each, size in ((whole, 1000), (mx.array(whole), None), (whole / 32768, 48000))
        ]
        assert texts(events[0]) == [text]
        assert events[0] == events[1] == events[2]

    @pytest.mark.parametrize(
        ("samples", "message"),
        [
            (np.zeros((2, 100), np.float32), r"of shape \(2, 100\)"),
            ([0.0, 0.1], "but one is list"),
            (np.array([0.1, np.nan]), "NaN or infinite"),
            (np.array([0.0, 300.0, -20.0]), "look like integers"),
            (np.zeros(9, complex), "of type complex128"),
        ],
    )
    def test_what_is_no_audio(self, tiny, samples, message):
        with pytest.raises(AudioError, match=message):
            LiveTranscriber(tiny).push(samples)

    @pytest.mark.slow
    def test_memory_stays_flat(self, tiny):
        """Of Python, NumPy and MLX, after 20 s and after 100."""
        samples, live, held = recording("long.flac"), LiveTranscriber(tiny, **CUTS), []
        tracemalloc.start()
        for start in range(0, 100 * RATE, RATE):
            live.push(samples[start : start + RATE])
            if start % (20 * RATE) == 19 * RATE:
                live.clear()
                mx.clear_cache()
                held.append((tracemalloc.get_traced_memory()[0], mx.get_active_memory()))
        tracemalloc.stop()
        (python, arrays), *_, (python_later, arrays_later) = held
        assert len(held) == 5
        assert python_later < python + 100_000
        assert arrays_later < arrays + 100_000


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"vad_threshold": 2}, "vad_threshold is 2, but must be"),
            ({"prefix_padding": -1}, "prefix_padding is -1"),
            ({"turn_detection": 1}, "turn_detection is 1, but must be true or false"),
            ({"min_silence": 0}, "min_silence is 0"),
            ({"chunk_duration": "long"}, "chunk_duration is 'long'"),
            ({"task": "translate"}, "needs target_language"),
            ({"ctc_only": True, "keywords": ["x"]}, "keywords is for the decoder"),
            ({"num_beans": 5}, "num_beans"),
        ],
    )
    def test_wrong_ones(self, tiny, options, message):
        with pytest.raises(InputError, match=message):
            LiveTranscriber(tiny, **options)

    def test_wrong_rate(self, tiny):
        with pytest.raises(AudioError, match="sampling_rate must be a number of hertz"):
            LiveTranscriber(tiny, sampling_rate=16)

    def test_models_without_live_text(self, tiny_s2t):
        with pytest.raises(UnsupportedOptionError, match="live text is what"):
            LiveTranscriber(tiny_s2t)

    @pytest.mark.parametrize("seconds", [0, 1.5])
    def test_audio_before_speech_goes_with_it(self, tiny, monkeypatch, seconds):
        begun = []

        class Turn(LiveTurn):
            def __init__(self, encoder, vad, first, onset, longest):
                begun.append(onset - first)
                super().__init__(encoder, vad, first, onset, longest)

        monkeypatch.setattr("mlx_speech.transcription.live.LiveTurn", Turn)
        samples = np.concatenate([silence(3), recording("flite_08.flac")])
        events = pushed(LiveTranscriber(tiny, prefix_padding=seconds), samples)
        assert events[-1].text.endswith("the back gate")
        (frames,) = begun
        assert 50 * seconds <= frames < 50 * seconds + 15  # spans begin at multiples of 15

    def test_words(self, tiny):
        events = pushed(LiveTranscriber(tiny, word_timestamps=True), recording())
        words = events[-1].segment.words
        assert [word.text for word in words] == events[-1].text.split()
        assert words[-1].end == pytest.approx(4.5, abs=0.15)

    def test_ctc_only(self, tiny):
        events = pushed(LiveTranscriber(tiny, ctc_only=True), recording())
        assert texts(events) == ["".join(texts(events, "committed"))]

    def test_options_of_the_decoder(self, tiny):
        events = pushed(LiveTranscriber(tiny, max_new_tokens=2), recording())
        assert len(events[-1].text.split()) <= 2
        assert events[-1].segment.truncated


class TestFamilies:
    def test_nar(self, tmp_path):
        model = load(tiny_nar.checkpoint(tmp_path), dtype=mx.float32)
        expected = transcribe(recording(), model, sampling_rate=RATE).text
        assert texts(pushed(LiveTranscriber(model), recording())) == [expected]

    def test_turboctc(self):
        model = load(DATA / "tiny-turboctc", dtype=mx.float32)
        offline = transcribe(recording(), model, sampling_rate=RATE, word_timestamps=True)
        events = pushed(LiveTranscriber(model, word_timestamps=True), recording())
        assert texts(events) == [offline.text] == ["".join(texts(events, "committed"))]
        starts = [word.start for word in events[-1].segment.words]
        np.testing.assert_allclose(
            starts, [word.start for word in offline.segments[0].words], atol=0.1
        )

    def test_turboctc_cut_within_speech(self):
        """Its blocks are of 2.6 s in this one, so that many are closed; no word is lost."""
        model = load(DATA / "tiny-turboctc", dtype=mx.float32)
        names = ("espeak_04.flac", "espeak_05.flac", "espeak_00.flac", "espeak_04.flac")
        samples = np.concatenate([recording(name)[RATE // 4 : -RATE // 4] for name in names])
        whole = LiveTranscriber(model, chunk_duration=60, min_silence=5)
        (text,) = texts(pushed(whole, samples))
        parts = texts(pushed(LiveTranscriber(model, chunk_duration=5, min_silence=5), samples))
        assert len(parts) > 2
        assert word_errors(text, " ".join(parts)) <= 1

    def test_plus(self, tmp_path, sentence):
        model = load(make_plus(tmp_path / "plus"), dtype=mx.float32)
        assert texts(pushed(LiveTranscriber(model), recording())) == texts(sentence)

    def test_character_head(self, tiny_without_bpe):
        events = pushed(LiveTranscriber(tiny_without_bpe), recording())
        assert "timer for eleven" in "".join(texts(events, "committed"))
        assert texts(events)[0].endswith("set a timer for eleven seconds")
