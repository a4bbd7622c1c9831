"""From a recording to its transcript: long ones, words, silence, progress, streaming, errors."""

from __future__ import annotations

import json
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, chunks_of

import mlx_speech
from mlx_speech import ContextLengthError, InputError, load_audio, stream_transcribe, transcribe
from mlx_speech.audio import open_recording
from mlx_speech.transcription.chunks import ChunkOptions
from mlx_speech.transcription.ctc import CTCVocabulary
from mlx_speech.transcription.frames import FRAME_SAMPLES
from mlx_speech.transcription.preparation import speech_family
from mlx_speech.transcription.word_errors import word_errors

LONG = DATA / "audio" / "long.flac"
GATE = DATA / "audio" / "flite_08.flac"
#: single sentences, which is what the tiny models were trained on
CUTS = {"chunk_duration": 9, "min_silence": 0.4}


@pytest.fixture(scope="module")
def manifest() -> dict[str, dict]:
    lines = (DATA / "audio" / "manifest.jsonl").read_text().splitlines()
    return {entry["file"]: entry for entry in map(json.loads, lines)}


@pytest.fixture(scope="module")
def transcript(tiny):
    return transcribe(LONG, tiny, word_timestamps=True, **CUTS)


def check_sentences(transcript, manifest) -> None:
    """Each once and in its place; the reference implementation makes 3.6 % errors on such cuts."""
    segments = manifest[LONG.name]["segments"]
    assert len(transcript.segments) == len(segments)
    errors = words = 0
    for segment, (start, end, text) in zip(transcript.segments, segments, strict=True):
        assert abs(segment.start - start) <= 0.3
        assert abs(segment.end - end) <= 0.3
        errors += word_errors(text, segment.text)
        words += len(text.split())
    assert errors / words <= 0.06


class TestLong:
    def test_every_sentence_once(self, transcript, manifest):
        check_sentences(transcript, manifest)

    def test_words_lie_in_their_segments(self, transcript):
        for segment in transcript.segments:
            assert " ".join(word.text for word in segment.words) == segment.text
            times = [time for word in segment.words for time in (word.start, word.end)]
            assert times == sorted(times)
            assert segment.start <= times[0] + 0.35
            assert times[-1] <= segment.end + 0.35
            assert all(0 < word.probability <= 1 for word in segment.words)

    def test_each_token_has_its_probability(self, transcript):
        for segment in transcript.segments:
            assert len(segment.logprobs) == len(segment.tokens) > 0
            # the mean is that of the token, too, that ended the text
            end = segment.avg_logprob * (len(segment.tokens) + 1) - sum(segment.logprobs)
            assert max(*segment.logprobs, end) <= 1e-4
            assert end > -3

    def test_text_is_that_of_the_segments(self, transcript):
        assert transcript.text == " ".join(segment.text for segment in transcript.segments)
        assert transcript.duration == pytest.approx(101.402, abs=0.001)

    def test_batches_change_nothing(self, tiny):
        """A part of it, to be quick."""
        audio = load_audio(LONG)[: 30 * 16000]
        one, five = (
            transcribe(audio, tiny, sampling_rate=16000, batch_size=size, **CUTS) for size in (1, 5)
        )
        assert len(one.segments) > 5
        for a, b in zip(one.segments, five.segments, strict=True):
            assert (a.start, a.end, a.tokens) == (b.start, b.end, b.tokens)
            assert a.avg_logprob == pytest.approx(b.avg_logprob, abs=1e-4)

    def test_stream(self, tiny):
        """Segment by segment, the same text."""
        audio = load_audio(LONG)[: 18 * 16000]
        deltas = list(stream_transcribe(audio, tiny, sampling_rate=16000, **CUTS))
        whole = transcribe(audio, tiny, sampling_rate=16000, **CUTS)
        assert "".join(delta.text for delta in deltas) == whole.text
        segments = [delta.segment for delta in deltas if delta.segment]
        assert [s.tokens for s in segments] == [s.tokens for s in whole.segments]
        ends = [i for i, delta in enumerate(deltas) if delta.segment]
        assert ends[0] > 1
        assert ends[-1] == len(deltas) - 1


class TestWords:
    def test_times(self, tiny, manifest):
        names = [f"festival_{number}.flac" for number in (12, 13, 14, 15)]
        errors = []
        for name in names:
            transcript = transcribe(DATA / "audio" / name, tiny, word_timestamps=True)
            words = [word for segment in transcript.segments for word in segment.words]
            # one of them is another word in the same place
            for word, (_, start, end) in zip(words, manifest[name]["words"], strict=True):
                errors.append((abs(word.start - start), abs(word.end - end)))
        assert len(errors) == 31
        for which in zip(*errors, strict=True):
            assert np.median(which) <= 0.06
            assert np.quantile(which, 0.95) <= 0.15

    def test_speech_up_to_the_end(self, tiny):
        """Of which the last frame lacks a part."""
        samples = load_audio(DATA / "audio" / "espeak_05.flac")[: 60 * FRAME_SAMPLES + 170]
        transcript = transcribe(samples, tiny, sampling_rate=16000, word_timestamps=True)
        (segment,) = transcript.segments
        assert transcript.regions[-1][1] == segment.end == transcript.duration
        assert segment.words[-1].end == segment.end

    def test_labels_that_nobody_knows(self, tiny, monkeypatch):
        """As those of Granite Speech 3.2: the segments have times, their words none."""
        path = DATA / "audio" / "espeak_05.flac"
        known = transcribe(path, tiny)
        monkeypatch.setattr(CTCVocabulary, "of_head", lambda output_dim: None)
        assert transcribe(path, tiny, word_timestamps=True) == known


class TestResources:
    def test_another_thread(self, tiny):
        """Streams of MLX belong to threads."""
        path = DATA / "audio" / "espeak_05.flac"
        with ThreadPoolExecutor(1) as pool:
            heard = pool.submit(transcribe, path, tiny, word_timestamps=True).result()
            deltas = pool.submit(lambda: list(stream_transcribe(path, tiny))).result()
        assert heard.text == "".join(delta.text for delta in deltas) == "four six seven eight"
        assert len(heard.segments[0].words) == 4

    def test_a_thread_for_each_piece(self, tiny):
        """As web servers have it that read a generator in a pool."""
        path = DATA / "audio" / "espeak_05.flac"
        stream = stream_transcribe(path, tiny, word_timestamps=True)
        with ThreadPoolExecutor(1) as pool:
            deltas = [next(stream)]
            while delta := pool.submit(next, stream, None).result():
                deltas.append(delta)
                if delta := next(stream, None):
                    deltas.append(delta)
        (expected,) = transcribe(path, tiny, word_timestamps=True).segments
        assert "".join(delta.text for delta in deltas) == expected.text
        assert deltas[-1].segment.words == expected.words

    def test_stream_that_is_closed_early(self, tiny, monkeypatch):
        """What is on disk for it goes."""
        files, new = [], tempfile.SpooledTemporaryFile

        def opened(**options):
            files.append(new(**options))
            return files[-1]

        monkeypatch.setattr(tempfile, "SpooledTemporaryFile", opened)
        deltas = stream_transcribe(LONG, tiny, **CUTS)
        assert next(deltas).text
        assert [file.closed for file in files] == [False]
        deltas.close()
        assert [file.closed for file in files] == [True]

    def test_memory_does_not_grow(self, tiny):
        """What is kept of the recording while its segments are heard."""
        model, processor = tiny
        with open_recording(LONG, None, 16000) as recording:
            family, options = speech_family(model, processor), ChunkOptions(**CUTS)
            chunks = chunks_of(family, recording, options, for_alignment=True)
            kept = [mx.get_active_memory() for _ in chunks]
        assert len(kept) == 24
        assert kept[-1] <= kept[0]


class TestNothingSaid:
    """No text is invented where nobody speaks."""

    @pytest.fixture(params=["granite", "s2t"])
    def model(self, request, tiny):
        return tiny if request.param == "granite" else request.getfixturevalue("tiny_s2t")

    @pytest.mark.parametrize("level", [None, -60, -30, -10])
    @pytest.mark.parametrize("colour", ["white", "brown"])
    def test_noise(self, model, level, colour):
        noise = np.zeros(16000 * 4)
        if level is not None:
            noise = np.random.default_rng(1).standard_normal(noise.size)
            noise = np.cumsum(noise) if colour == "brown" else noise
            noise -= np.linspace(noise[0], noise[-1], noise.size)
            noise *= 10 ** (level / 20) / np.sqrt(np.mean(noise**2))
        transcript = transcribe(
            np.clip(noise, -1, 1).astype(np.float32), model, sampling_rate=16000
        )
        assert transcript.text == ""
        assert transcript.segments == []
        assert transcript.duration == 4

    def test_silence_between(self, model):
        """Half a minute of it; what is before and after is as without it."""
        parts = [load_audio(DATA / "audio" / f"espeak_0{i}.flac") for i in (1, 2)]
        silence = mx.zeros(16000 * 30)
        transcript = transcribe(
            mx.concatenate([parts[0], silence, parts[1]]), model, sampling_rate=16000
        )
        first, second = transcript.segments
        assert first.text == "add apples and milk to the shopping list"
        assert second.text == "set the kitchen to thirty degrees"
        assert first.end < 2.6
        assert second.start > 32


class TestProgress:
    def test_ends_with_the_recording(self, tiny):
        told = []
        audio = load_audio(LONG)[: 12 * 16000]
        transcribe(
            audio,
            tiny,
            sampling_rate=16000,
            batch_size=2,
            progress=lambda *now: told.append(now),
            **CUTS,
        )
        assert len(told) >= 3
        assert [total for _, total in told] == [12.0] * len(told)
        assert told[-1][0] == 12.0
        assert told == sorted(told)
        assert told[0][0] == 0
        assert 0 < told[1][0] < 12

    def test_begins_before_anything_is_decoded(self, tiny):
        told = []
        deltas = stream_transcribe(LONG, tiny, progress=lambda *now: told.append(now), **CUTS)
        next(deltas)
        deltas.close()
        assert told == [(0, pytest.approx(101.402, abs=0.001))]


class TestSpeech2Text:
    def test_every_sentence_once(self, tiny_s2t, manifest):
        check_sentences(transcribe(LONG, tiny_s2t, **CUTS), manifest)

    def test_no_words_without_a_ctc_head(self, tiny_s2t):
        transcript = transcribe(DATA / "audio" / "espeak_05.flac", tiny_s2t, word_timestamps=True)
        assert [segment.words for segment in transcript.segments] == [[]]


class TestWrongOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"chunk_duration": 0}, "chunk_duration is 0, but must be a finite number, at least 1"),
            (
                {"chunk_duration": "30"},
                "chunk_duration is '30', but must be a finite number, at least 1",
            ),
            (
                {"chunk_duration": float("nan")},
                "chunk_duration is nan, but must be a finite number",
            ),
            (
                {"min_silence": 0.01},
                "min_silence is 0.01, but must be a finite number, at least 0.1",
            ),
            ({"batch_size": 0}, "batch_size is 0, but must be an integer, at least 1"),
            ({"batch_size": True}, "batch_size is True"),
            ({"word_timestamps": "no"}, "word_timestamps is 'no', but must be true or false"),
            (
                {"word_timestamps": True, "task": "translate", "target_language": "fr"},
                "word_timestamps are of what was said, and a translation is not",
            ),
        ],
    )
    def test_refused(self, tiny, options, message):
        with pytest.raises(InputError, match=re.escape(message)):
            transcribe(LONG, tiny, **options)

    def test_a_pair_of_two_families(self, tiny, tiny_s2t):
        message = "granite_speech model goes with a GraniteSpeechProcessor, but a Speech2TextProc"
        with pytest.raises(InputError, match=message):
            transcribe(LONG, (tiny[0], tiny_s2t[1]))
        with pytest.raises(InputError, match="Processor, no model"):
            transcribe(LONG, tiny[::-1])

    def test_segments_that_do_not_fit(self, tiny):
        """The model's context bounds them, and the message says what to do."""
        with pytest.raises(ContextLengthError, match=r"of 2\d\.\d s and a text .* lower chunk_dur"):
            transcribe(LONG, tiny, min_silence=20, max_new_tokens=1000)


class TestLibrary:
    def test_transcribe(self, tiny):
        transcript = mlx_speech.transcribe(GATE, tiny)
        assert transcript.text == "unlock the back gate"
        (segment,) = transcript.segments
        assert tiny[1].decode(segment.tokens, skip_special_tokens=True) == transcript.text
        assert not segment.truncated

    def test_arrays_need_their_rate(self, tiny):
        samples = mlx_speech.load_audio(GATE)
        transcript = mlx_speech.transcribe(samples, tiny, sampling_rate=16000)
        assert transcript.text == "unlock the back gate"
        with pytest.raises(mlx_speech.AudioError, match="sampling_rate"):
            mlx_speech.transcribe(samples, tiny)

    def test_stream(self, tiny):
        *deltas, last = mlx_speech.stream_transcribe(GATE, tiny)
        assert len(deltas) > 3
        assert "".join(delta.text for delta in deltas) + last.text == "unlock the back gate"
        assert [delta.segment for delta in deltas] == [None] * len(deltas)
        assert last.segment == mlx_speech.transcribe(GATE, tiny).segments[0]

    @pytest.mark.parametrize("limit", [{}, {"max_new_tokens": 2}])
    def test_stream_returns_the_transcript(self, tiny, limit):
        def streaming():
            transcript = yield from mlx_speech.stream_transcribe(GATE, tiny, **limit)
            yield transcript

        *_, streamed = streaming()
        whole = mlx_speech.transcribe(GATE, tiny, **limit)
        assert streamed.segments[0].truncated is bool(limit)
        assert streamed == whole

    @pytest.mark.parametrize(
        "other",
        [
            {"task": "translate", "target_language": "fr"},
            {"language": "en"},
            {"target_language": "fr"},
            {"punctuate": True},
        ],
    )
    @pytest.mark.parametrize("function", [mlx_speech.transcribe, mlx_speech.stream_transcribe])
    def test_a_prompt_stands_alone(self, tiny, function, other):
        with pytest.raises(mlx_speech.InputError, match="prompt takes the place of"):
            list(function(GATE, tiny, prompt="translate the speech to french", **other))

    @pytest.mark.parametrize("pick", [lambda t: t[0], lambda t: (*t, None), lambda t: 5])
    def test_a_model_alone_is_not_enough(self, tiny, pick):
        with pytest.raises(mlx_speech.InputError, match=r"must be .* \(model, processor\)"):
            mlx_speech.transcribe(GATE, pick(tiny))

    @pytest.mark.parametrize("language", ["fr", "French", "FRENCH"])
    def test_language_is_a_code(self, tiny, language):
        transcript = mlx_speech.transcribe(GATE, tiny, task="translate", target_language=language)
        assert transcript.language == "fr"

    def test_text_models_are_refused(self, tiny):
        model, processor = tiny
        with pytest.raises(mlx_speech.UnsupportedOptionError, match="not a speech model"):
            mlx_speech.transcribe(GATE, (model.language_model, processor.tokenizer))

    def test_other_sampling_rates_are_refused(self, tiny_s2t, monkeypatch):
        """Times are counted in frames of 16 kHz."""
        model, processor = tiny_s2t
        monkeypatch.setattr(type(processor), "sampling_rate", 8000)
        with pytest.raises(mlx_speech.CheckpointError, match="trained on audio of 8000 Hz"):
            mlx_speech.transcribe(GATE, (model, processor))
