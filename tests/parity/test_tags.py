"""Tags as they were taught, beside mlx-audio's parsers, which take nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_audio.stt.models.granite_speech.granite_speech import (
    TASK_PROMPTS,
    _parse_saa,
    _parse_timestamps,
)

from mlx_speech.processing.prompts import GRANITE_4_1_PLUS
from mlx_speech.processing.request import TranscriptionRequest
from mlx_speech.transcription.tags import parse_turns, parse_words

WORD = st.text("abcdefghij'", min_size=1, max_size=6)
#: hundredths of a second; a longer silence has more than one tag
STEP = st.integers(0, 480)


@pytest.mark.parametrize(
    ("tags", "task"), [(None, "asr"), ("speakers", "saa"), ("times", "timestamps")]
)
def test_prompts(tags, task):
    request = TranscriptionRequest(tags=tags)
    assert GRANITE_4_1_PLUS.instruction(request) == TASK_PROMPTS[task]


@given(st.lists(st.tuples(WORD | st.just("_"), STEP), min_size=1), st.booleans())
def test_times(made, modulo):
    clock, answer = 0, ""
    for word, step in made:
        clock += step
        answer += f"{word} [T:{clock % 1000 if modulo else clock}] "
    expected = [word for segment in _parse_timestamps(answer) for word in segment["words"]]
    words, remarks = parse_words(answer, clock / 100)
    assert remarks == []
    assert [word.text for word in words] == [word["word"] for word in expected]
    for word, known in zip(words, expected, strict=True):
        assert (word.start, word.end) == pytest.approx((known["start"], known["end"]))


@given(st.lists(st.tuples(st.integers(1, 4), st.lists(WORD, min_size=1)), min_size=1))
def test_turns(made):
    order = list(dict.fromkeys(speaker for speaker, _ in made))
    turns = [(order.index(speaker) + 1, " ".join(words)) for speaker, words in made]
    answer = " ".join(f"[Speaker {speaker}]: {text}" for speaker, text in turns)
    found, remarks = parse_turns(answer)
    assert remarks == []
    expected = [(turn["speaker_id"], turn["text"]) for turn in _parse_saa(answer)]
    assert [(turn.speaker, turn.text) for turn in found] == expected == turns
