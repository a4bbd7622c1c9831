"""Recordings whose speakers are told apart, from end to end, with answers that a test chooses."""

from __future__ import annotations

from itertools import cycle, islice

import mlx.core as mx
import pytest
from conftest import DATA
from scripted import Script
from small_plus import make_plus

from mlx_speech import (
    InputError,
    UnsupportedOptionError,
    load,
    load_audio,
    stream_transcribe,
    transcribe,
)
from mlx_speech.transcription.chunks import ChunkOptions
from mlx_speech.transcription.pipeline import prepare

LONG, GATE = DATA / "audio" / "long.flac", DATA / "audio" / "flite_08.flac"
CUTS = {"chunk_duration": 9, "min_silence": 0.4}
#: two take turns; the second time each goes on with what the other's turn was cut off by
ANSWERS = ("[Speaker 1]: one two three [Speaker 2]: four five", "six seven [Speaker 1]: eight")
TURNS = [(1, "one two three"), (2, "four five"), (2, "six seven"), (1, "eight")]


@pytest.fixture(scope="module")
def plus(tmp_path_factory):
    return load(make_plus(tmp_path_factory.mktemp("plus") / "plus"), dtype=mx.float32)


@pytest.fixture(scope="module")
def audio():
    return load_audio(LONG)[: 40 * 16000]


def script(plus, answers=ANSWERS) -> Script:
    return Script(plus[1].tokenizer, cycle(answers))


@pytest.fixture(scope="module")
def told(plus, audio):
    """The transcript of a recording in several windows, and its prompts."""
    answers = script(plus)
    how = {"sampling_rate": 16000, "speakers": True, "word_timestamps": True, **CUTS}
    # windows of 1024 positions, most of which answers may need
    return transcribe(audio, plus, **how, logits_processor=answers, max_new_tokens=800), answers


def test_turns_in_order(told):
    transcript, answers = told
    segments = transcript.segments
    assert len(answers.prompts) == len(segments) / 2 > 6
    assert [(s.speaker, s.text) for s in segments] == list(islice(cycle(TURNS), len(segments)))
    edges = [edge for s in segments for edge in (s.start, s.end)]
    assert edges == sorted(edges)
    assert edges[-1] <= transcript.duration
    assert all((s.words[0].start, s.words[-1].end) == (s.start, s.end) for s in segments)
    assert transcript.text == " ".join(s.text for s in segments)
    assert not any(s.remarks or s.truncated for s in segments)


def test_windows_keep_speakers(told):
    """Where the context is full, prompts begin anew, with what both have said."""
    _, answers = told
    begun = [p.split("assistant<|end_of_role|>")[1] for p in answers.prompts]
    sizes = [prompt.count("<|audio|>") for prompt in answers.prompts]
    anew = [index for index in range(1, len(sizes)) if sizes[index] < sizes[index - 1]]
    assert len(anew) >= 2
    assert begun[0] == ""
    for index, text in enumerate(begun[1:], 1):
        if index in anew:
            assert text.startswith("[Speaker 1]: ")
            assert " [Speaker 2]: " in text
            assert len(text) < 70
        else:
            assert text.startswith(begun[index - 1])


def test_streamed_all_the_same(plus, audio, told):
    whole, _ = told
    how = {"sampling_rate": 16000, "speakers": True, "word_timestamps": True, **CUTS}
    options = {"logits_processor": script(plus), "max_new_tokens": 800}
    deltas = list(stream_transcribe(audio, plus, **how, **options))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [delta.segment for delta in deltas if delta.segment] == whole.segments


def test_words_by_tags(plus):
    answers = script(plus, ["one [T:30] two [T:60]"])
    transcript = transcribe(GATE, plus, word_timestamps="tags", logits_processor=answers)
    (segment,) = transcript.segments
    assert transcript.text == "one two"
    assert [(w.text, w.end) for w in segment.words] == [("one", 0.3), ("two", 0.6)]


def test_words_by_tags_of_a_batch(plus, audio):
    """What a model that knows no tags writes of several chunks at once, and of each alone."""
    how = {"sampling_rate": 16000, "word_timestamps": "tags", "max_new_tokens": 12, **CUTS}
    alone, together = (transcribe(audio[:320000], plus, batch_size=n, **how) for n in (1, 4))
    assert [s.tokens for s in together.segments] == [s.tokens for s in alone.segments]
    for one, other in zip(together.segments, alone.segments, strict=True):
        assert [(w.text, w.start, w.end) for w in one.words] == [
            (w.text, w.start, w.end) for w in other.words
        ]
    assert sum(len(segment.words) for segment in together.segments) > 5


def test_both_in_two_passes(plus):
    answers = script(plus, [ANSWERS[0], "one [T:20] two [T:40] five [T:150]"])
    how = {"speakers": True, "word_timestamps": "tags"}
    transcript = transcribe(GATE, plus, **how, logits_processor=answers)
    assert [(s.speaker, s.text) for s in transcript.segments] == TURNS[:2]
    words = [[w.text for w in s.words] for s in transcript.segments]
    assert words == [["one", "two"], ["five"]]


def test_a_known_beginning(plus):
    """The transcript goes on behind it; that of a model without tags is not scripted."""
    transcript = transcribe(GATE, plus, prefix_text="unlock the", word_timestamps=True)
    (segment,) = transcript.segments
    assert segment.text == "back gate"
    assert [word.text for word in segment.words] == ["back", "gate"]
    before = transcribe(GATE, plus, word_timestamps=True).segments[0].words[2:]
    for word, known in zip(segment.words, before, strict=True):
        assert (word.start, word.end) == pytest.approx((known.start, known.end), abs=0.1)


def test_chunks_are_no_longer_than_the_model_was_made_for(plus):
    """Its context of 1024 positions, less a prompt, holds so many seconds."""
    for options, rates in (
        ({}, 10 + 12),
        ({"speakers": True}, 10 + 12),
        ({"word_timestamps": "tags"}, 10 + 16),
        ({"speakers": True, "word_timestamps": "tags"}, 10 + 16),
    ):
        job = prepare(LONG, plus, **options)
        assert job.decoder.longest_chunk == pytest.approx(874 / rates)
        assert job.find_chunks.keywords["options"].chunk_duration == 30
    job = prepare(LONG, plus, chunking=ChunkOptions(500), word_timestamps="tags")
    assert job.find_chunks.keywords["options"].chunk_duration == pytest.approx(874 / 26)


@pytest.mark.parametrize(
    "options", [{"speakers": True}, {"word_timestamps": "tags"}, {"prefix_text": "well"}]
)
def test_only_plus_can(tiny, tiny_s2t, options):
    for model in (tiny, tiny_s2t):
        with pytest.raises(UnsupportedOptionError, match=r"these were: Granite Speech 4\.1 Plus$"):
            transcribe(GATE, model, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speakers": True, "ctc_only": True}, "speakers: the encoder knows no tags"),
        ({"word_timestamps": "tags", "ctc_only": True}, "word_timestamps: the encoder knows no"),
        ({"prefix_text": "a", "ctc_only": True}, "prefix_text is for the decoder"),
        ({"speakers": True, "prompt": "do it"}, "which speakers needs; choose one"),
        ({"speakers": True, "task": "translate", "target_language": "fr"}, "a translation is not"),
        ({"word_timestamps": "tags", "prefix_text": "a"}, "are counted from the beginning"),
        ({"speakers": 1}, "speakers is 1"),
        ({"word_timestamps": "letters"}, "word_timestamps is 'letters'"),
        ({"speakers": True, "max_kv_size": 99}, "max_kv_size would forget"),
    ],
)
def test_contradictions(plus, options, message):
    with pytest.raises(InputError, match=message):
        transcribe(GATE, plus, **options)
