"""Transcriptions and translations by OpenAI's own client, whose types check the answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import mlx.core as mx
import numpy as np
import openai
import pytest
import soundfile
from conftest import DATA
from openai.types.audio import (
    Transcription,
    TranscriptionDiarized,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionTextSegmentEvent,
    TranscriptionVerbose,
    Translation,
    TranslationVerbose,
)
from scripted import Script
from serving import client_of, serving
from small_plus import make_plus

import mlx_speech
from mlx_speech.output.subtitles import SubtitleOptions
from mlx_speech.output.writers import FORMATS
from mlx_speech.server import engine

SHORT = DATA / "audio" / "flite_11.flac"
EVENTS = {
    "transcript.text.delta": TranscriptionTextDeltaEvent,
    "transcript.text.segment": TranscriptionTextSegmentEvent,
    "transcript.text.done": TranscriptionTextDoneEvent,
}


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """Six sentences."""
    samples, rate = soundfile.read(DATA / "audio" / "long.flac", dtype="int16")
    path = tmp_path_factory.mktemp("audio") / "talk.flac"
    soundfile.write(path, samples[: 21 * rate], rate)
    return path


@pytest.fixture(scope="module")
def long(tiny, talk):
    return mlx_speech.transcribe(talk, tiny)


@pytest.fixture(scope="module")
def short(tiny):
    return mlx_speech.transcribe(SHORT, tiny, word_timestamps=True)


def create(client, path=SHORT, **asked):
    return client.audio.transcriptions.create(file=path, model="tiny", **asked)


def translate(client, **asked):
    with pytest.warns(DeprecationWarning, match="deprecated"):  # of OpenAI's own models
        return client.audio.translations.create(file=SHORT, model="tiny", **asked)


def checked(kind, answer):
    """An answer, which is of the type that the client has for it."""
    kind.model_validate(answer.model_dump(exclude_unset=True), strict=True)
    return answer


def near(seconds):
    return pytest.approx(seconds, abs=6e-4)


def check_segments(segments, expected):
    for number, (segment, own) in enumerate(zip(segments, expected, strict=True)):
        assert (segment.id, segment.text, segment.tokens) == (number, own.text, own.tokens)
        assert (segment.start, segment.end) == (near(own.start), near(own.end))
        assert segment.avg_logprob == pytest.approx(own.avg_logprob, abs=1e-4)
        assert (segment.seek, segment.temperature) == (round(100 * own.start), 0)
        assert segment.no_speech_prob == 0
        assert 0.3 < segment.compression_ratio < 2.4


class TestFormats:
    @pytest.mark.parametrize("asked", [{}, {"response_format": "json"}])
    def test_json(self, client, short, asked):
        answer = checked(Transcription, create(client, **asked))
        assert (answer.text, answer.logprobs) == (short.text, None)
        assert (answer.usage.type, answer.usage.seconds) == ("duration", near(short.duration))

    @pytest.mark.parametrize(("name", "ending"), [("text", "txt"), ("srt", "srt"), ("vtt", "vtt")])
    def test_text(self, client, talk, long, name, ending):
        expected = FORMATS[ending](long, "tiny", SubtitleOptions())
        assert create(client, talk, response_format=name) == expected

    def test_verbose_json(self, client, talk, long):
        answer = create(client, talk, response_format="verbose_json")
        checked(TranscriptionVerbose, answer)
        assert (answer.text, answer.language, answer.task) == (long.text, "", "transcribe")
        assert answer.duration == answer.usage.seconds == near(long.duration)
        assert answer.words is None
        check_segments(answer.segments, long.segments)

    @pytest.mark.parametrize("granularities", [["word"], ["segment"], ["word", "segment"]])
    def test_granularities(self, client, short, granularities):
        how = {"response_format": "verbose_json", "timestamp_granularities": granularities}
        answer = checked(TranscriptionVerbose, create(client, **how))
        if "segment" in granularities:
            check_segments(answer.segments, short.segments)
        else:
            assert answer.segments is None
        if "word" in granularities:
            expected = [(w.text, near(w.start), near(w.end)) for w in short.segments[0].words]
            assert [(w.word, w.start, w.end) for w in answer.words] == expected
        else:
            assert answer.words is None

    def test_logprobs(self, client, short):
        answer = checked(Transcription, create(client, include=["logprobs"]))
        (segment,) = short.segments
        assert [p.logprob for p in answer.logprobs] == pytest.approx(segment.logprobs, abs=1e-4)
        assert len(answer.logprobs) == len(segment.tokens)
        assert b"".join(bytes(map(int, p.bytes)) for p in answer.logprobs).decode() == short.text
        assert "".join(p.token for p in answer.logprobs) == short.text

    def test_silence(self, client, tmp_path):
        soundfile.write(path := tmp_path / "silence.wav", np.zeros(32000), 16000)
        answer = checked(TranscriptionVerbose, create(client, path, response_format="verbose_json"))
        assert (answer.text, answer.segments, answer.duration) == ("", [], 2.0)
        assert create(client, path, response_format="vtt") == "WEBVTT\n"
        (done,) = create(client, path, stream=True)
        assert done.text == ""


def test_many_at_once(client, tiny):
    """Each gets what it gets alone, however it is asked for."""
    names = ("flite_11", "festival_14", "espeak_01", "flite_07", "espeak_03", "festival_12")
    paths = [DATA / "audio" / f"{name}.flac" for name in names]

    def text(number):
        path, stream = paths[number % len(paths)], number % 2 == 0
        answer = create(client, path, stream=stream)
        return list(answer)[-1].text if stream else answer.text

    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(text, range(24)))
    alone = [mlx_speech.transcribe(path, tiny).text for path in paths]
    assert texts == [alone[number % len(paths)] for number in range(24)]


class TestStream:
    def test_events(self, client, talk, long):
        *events, done = create(client, talk, stream=True)
        for event in [*events, done]:
            checked(EVENTS[event.type], event)
        deltas = [event for event in events if event.type == "transcript.text.delta"]
        segments = [event for event in events if event.type == "transcript.text.segment"]
        assert len(deltas) + len(segments) == len(events)
        assert len(deltas) > len(segments)
        assert "".join(delta.delta for delta in deltas) == long.text
        for number, (segment, own) in enumerate(zip(segments, long.segments, strict=True)):
            assert (segment.id, segment.speaker) == (f"seg_{number}", "")
            assert (segment.start, segment.end) == (near(own.start), near(own.end))
            assert segment.text == own.text
        assert (done.type, done.text) == ("transcript.text.done", long.text)

    def test_each_segment_follows_its_text(self, client, talk):
        said = ""
        for event in create(client, talk, stream=True):
            if event.type == "transcript.text.segment":
                assert said.strip() == event.text
            said = said + event.delta if event.type == "transcript.text.delta" else ""

    def test_verbose_json(self, client, short):
        how = {"response_format": "verbose_json", "timestamp_granularities": ["word", "segment"]}
        *_, segment, done = create(client, stream=True, **how)
        words = [(w.text, near(w.start), near(w.end)) for w in short.segments[0].words]
        assert [(w["word"], w["start"], w["end"]) for w in segment.words] == words
        whole = create(client, **how).model_dump(exclude_unset=True)
        for logprobs in (whole["segments"][0], done.segments[0]):  # as others share the batch
            logprobs["avg_logprob"] = pytest.approx(short.segments[0].avg_logprob, abs=1e-4)
        assert whole == {**done.model_dump(exclude_unset=True, exclude={"type"})}

    def test_logprobs_come_last(self, client, short):
        *_, done = create(client, stream=True, include=["logprobs"])
        checked(TranscriptionTextDoneEvent, done)
        assert "".join(p.token for p in done.logprobs) == short.text

    def test_errors_come_before(self, client):
        with pytest.raises(openai.BadRequestError):
            create(client, stream=True, language="xx")


class TestTranslation:
    def test_json(self, client, tiny):
        expected = mlx_speech.transcribe(SHORT, tiny, task="translate", target_language="en")
        answer = checked(Translation, translate(client))
        assert answer.text == expected.text

    def test_verbose_json(self, client):
        answer = checked(TranslationVerbose, translate(client, response_format="verbose_json"))
        assert (answer.language, answer.task) == ("english", "translate")
        assert len(answer.segments) == 1

    def test_another_target(self, client, tiny):
        expected = mlx_speech.transcribe(SHORT, tiny, task="translate", target_language="fr")
        assert translate(client, extra_body={"target_language": "fr"}).text == expected.text

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"target_language": "xx"}, "target_language"),
            ({"target_language": "German, please"}, "target_language"),
            (
                {"response_format": "verbose_json", "timestamp_granularities[]": "word"},
                "timestamp_granularities[]",
            ),
            ({"response_format": "diarized_json"}, "response_format"),
        ],
    )
    def test_refused(self, client, body, param):
        with pytest.raises(openai.BadRequestError) as error:
            translate(client, extra_body=body)
        assert error.value.param == param


@pytest.fixture(scope="module")
def plus(tmp_path_factory):
    return mlx_speech.load(make_plus(tmp_path_factory.mktemp("plus") / "plus"), dtype=mx.float32)


class TestAsked:
    """What a form asks for is what the pipeline is asked."""

    def test_pauses(self, client, talk, tiny, long):
        expected = mlx_speech.transcribe(talk, tiny, min_silence=3)
        assert len(expected.segments) < len(long.segments)
        chunking = {"type": "server_vad", "silence_duration_ms": 3000}
        how = {"response_format": "verbose_json", "chunking_strategy": chunking}
        check_segments(create(client, talk, **how).segments, expected.segments)

    @pytest.mark.parametrize("temperature", [0, 0.5])
    def test_temperature(self, client, monkeypatch, temperature):
        prepare, asked = engine.prepare, []

        def noted(*arguments, options, **others):
            asked.append(options)
            return prepare(*arguments, options=options, **others)

        monkeypatch.setattr(engine, "prepare", noted)
        answer = create(client, temperature=temperature, response_format="verbose_json")
        assert answer.segments[0].temperature == temperature
        assert asked == [{"temperature": temperature} if temperature else {}]


@pytest.mark.parametrize("asked", [{"prompt": "Granite"}, {"keywords": ["Granite"]}])
def test_models_without_keywords(client, asked):
    (field,) = asked
    with pytest.raises(openai.BadRequestError, match=f"{field}: .* not trained") as error:
        create(client, **asked)
    assert error.value.param == field


class TestSpeakers:
    ANSWERS = ("[Speaker 1]: one two three [Speaker 2]: four five", "six seven [Speaker 1]: eight")
    TURNS = (("A", "one two three"), ("B", "four five"), ("B", "six seven"), ("A", "eight"))

    @pytest.fixture
    def client(self, plus, monkeypatch):
        """Of a server whose model says this."""
        prepare = engine.prepare

        def scripted(*arguments, options, **others):
            script = Script(plus[1].tokenizer, cycle(self.ANSWERS))
            options = {**options, "logits_processor": script, "max_new_tokens": 100}
            return prepare(*arguments, options=options, **others)

        monkeypatch.setattr(engine, "prepare", scripted)
        with serving(lambda name: plus) as url, client_of(url) as client:
            yield client

    def test_diarized_json(self, client, talk):
        answer = create(client, talk, response_format="diarized_json")
        checked(TranscriptionDiarized, answer)
        told = [(segment.speaker, segment.text) for segment in answer.segments]
        assert told == [turn for turn, _ in zip(cycle(self.TURNS), told, strict=False)]
        assert len(told) > 3
        assert [s.id for s in answer.segments] == [f"seg_{n}" for n in range(len(told))]
        edges = [edge for s in answer.segments for edge in (s.start, s.end)]
        assert edges == sorted(edges)
        assert answer.text == " ".join(text for _, text in told)

    def test_stream(self, client, talk):
        *events, done = create(client, talk, response_format="diarized_json", stream=True)
        for event in events:
            checked(EVENTS[event.type], event)
        texts: dict[str, str] = {}
        for event in events:
            if event.type == "transcript.text.delta":
                texts[event.segment_id] = texts.get(event.segment_id, "") + event.delta
        segments = [event for event in events if event.type == "transcript.text.segment"]
        said = {key: text.strip() for key, text in texts.items()}
        assert said == {segment.id: segment.text for segment in segments}
        assert [s.speaker for s in segments[:4]] == ["A", "B", "B", "A"]
        assert [s["speaker"] for s in done.segments] == [s.speaker for s in segments]

    def test_models_that_cannot(self, server):
        with client_of(server) as client, pytest.raises(openai.BadRequestError) as error:
            create(client, response_format="diarized_json")
        assert error.value.param == "response_format"
        assert "Granite Speech 4.1 Plus" in error.value.message
