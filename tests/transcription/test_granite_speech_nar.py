"""Granite Speech NAR from a recording to its transcript: an editor that replaces one word, over the
bundled encoder's drafts."""

from __future__ import annotations

import json
import math
from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from conftest import TINY, edit_json, find_recording
from nar_models import on_bundled_encoder

from mlx_speech import (
    ContextLengthError,
    InputError,
    UnsupportedOptionError,
    load,
    load_audio,
    stream_transcribe,
    transcribe,
)
from mlx_speech.cli.transcribe import main
from mlx_speech.processing.tokenizer import Tokenizer
from mlx_speech.transcription.granite_speech_nar import is_certain

#: with "the" in what is said
NAMES = ["synthetic/espeak_03.flac", "synthetic/flite_08.flac", "synthetic/festival_13.flac"]
LONG = "synthetic/long.flac"


@cache
def token(text: str) -> int:
    (found,) = Tokenizer.from_pretrained(TINY).encode(text, add_special_tokens=False)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Its editor says " a" where the draft has " the"."""
    replaced = {token(" the"): token(" a")}
    return on_bundled_encoder(tmp_path_factory.mktemp("nar") / "nar", replaced)


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder, dtype=mx.float32)


@pytest.fixture(scope="module")
def long_drafts(loaded):
    """As segments, those of the long recording."""
    return transcribe(find_recording(LONG), loaded, ctc_only=True).segments


def draft_of(loaded, name: str):
    """As a segment."""
    (segment,) = transcribe(find_recording(name), loaded, ctc_only=True).segments
    return segment


def edited(segment, loaded) -> str:
    """What the editor makes of a draft, given as a segment."""
    tokens = [token(" a") if each == token(" the") else each for each in segment.tokens]
    return " ".join(loaded[1].tokenizer.decode(tokens).split())


def editor_runs(loaded, monkeypatch) -> list[int]:
    """Appended to with the number of drafts, each time that some are edited."""
    model, runs = loaded[0], []
    edit = type(model).edit
    monkeypatch.setattr(
        type(model),
        "edit",
        lambda self, audio, texts: runs.append(len(texts)) or edit(self, audio, texts),
    )
    return runs


@pytest.mark.parametrize("name", NAMES)
def test_drafts_are_edited(loaded, name):
    draft = draft_of(loaded, name)
    assert "the" in draft.text.split()
    transcript = transcribe(find_recording(name), loaded)
    assert transcript.text == edited(draft, loaded) != draft.text
    (segment,) = transcript.segments
    assert loaded[1].tokenizer.decode(segment.tokens).strip() == transcript.text


def test_probabilities_are_the_editors(loaded, folder, tmp_path):
    """Of the slots: logits of half the size are less sure, whatever the encoder was."""
    found = []
    for scale in (1.0, 3.0):
        loaded[0].language_model.logits_divisor = scale
        (segment,) = transcribe(find_recording(NAMES[0]), loaded, word_timestamps=True).segments
        found.append(segment)
    loaded[0].language_model.logits_divisor = 1.0
    assert found[0].text == found[1].text
    assert 0 > found[0].avg_logprob > found[1].avg_logprob
    for a, b in zip(found[0].words, found[1].words, strict=True):
        assert 1 > a.probability > b.probability > 0
        assert (a.start, a.end) == (b.start, b.end)
    model, processor = loaded
    features = processor(load_audio(find_recording(NAMES[0])))
    output = model(**features)
    draft = model.draft(
        output.encoder_output.last_hidden_state[0], output.encoder_output.non_blank[0]
    )
    (states,) = model.edit([output.audio_hidden_states[0]], [draft])
    ids, logprobs = model.said(states)
    assert ids == found[0].tokens
    assert found[0].avg_logprob == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_words_have_times(loaded, name):
    transcript = transcribe(find_recording(name), loaded, word_timestamps=True)
    (segment,) = transcript.segments
    assert [word.text for word in segment.words] == segment.text.split()
    times = [time for word in segment.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert segment.start <= times[0] < times[-1] <= segment.end
    assert times[-1] - times[0] > 0.5
    # the head of letters places words, also where the editor wrote another
    plain = transcribe(find_recording(name), loaded, word_timestamps=True, ctc_only=True)
    starts = [[word.start for word in t.segments[0].words] for t in (transcript, plain)]
    assert np.abs(np.subtract(*starts)).max() < 0.2


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_long_recording_in_batches(loaded, long_drafts, batch_size, monkeypatch):
    """Segments do not depend on what they are edited with; one pass for each batch."""
    runs = editor_runs(loaded, monkeypatch)
    transcript = transcribe(find_recording(LONG), loaded, batch_size=batch_size)
    assert [s.text for s in transcript.segments] == [edited(s, loaded) for s in long_drafts]
    number = len(transcript.segments)
    assert number > 3
    assert sum(runs) == number
    assert len(runs) == math.ceil(number / batch_size)


def test_it_streams(loaded, forty_seconds):
    whole = transcribe(forty_seconds, loaded, word_timestamps=True)
    assert len(whole.segments) == 10
    stream = stream_transcribe(forty_seconds, loaded, word_timestamps=True)
    pieces, segments = [], []
    for delta in stream:
        pieces.append(delta.text)
        segments += [delta.segment] if delta.segment else []
    assert "".join(pieces) == whole.text
    assert [s.text for s in segments] == [s.text for s in whole.segments]
    for found, expected in zip(segments, whole.segments, strict=True):
        assert found.avg_logprob == pytest.approx(expected.avg_logprob, abs=1e-4)
        assert [w.start for w in found.words] == [w.start for w in expected.words]


def test_silence_gives_no_text(loaded):
    transcript = transcribe(find_recording("synthetic/silence.flac"), loaded)
    assert (transcript.text, transcript.segments) == ("", [])
    assert transcript.remarks


def test_an_empty_draft_is_not_edited(loaded, monkeypatch):
    """Neither in transcription nor by `generate`: only rows with a draft go to the editor."""
    model, processor = loaded
    runs = editor_runs(loaded, monkeypatch)
    bias = model.encoder.out_bpe.bias
    monkeypatch.setitem(model.encoder.out_bpe, "bias", bias + 1e4 * (mx.arange(bias.size) == 0))
    transcript = transcribe(find_recording(NAMES[0]), loaded)
    assert transcript.text == ""
    assert [segment.text for segment in transcript.segments] == [""]
    inputs = processor([load_audio(find_recording(name)) for name in NAMES])
    assert model.generate(**inputs).shape == (len(NAMES), 0)
    assert runs == []


class TestSkipping:
    def test_certain_drafts_are_taken(self, loaded, monkeypatch):
        runs = editor_runs(loaded, monkeypatch)
        monkeypatch.setattr(
            "mlx_speech.transcription.granite_speech_nar.is_certain", lambda *a: True
        )
        assert transcribe(find_recording(NAMES[0]), loaded).text == edited(
            draft_of(loaded, NAMES[0]), loaded
        )
        assert runs == [1]
        skipped = transcribe(find_recording(NAMES[0]), loaded, skip_editor=True)
        assert skipped.text == draft_of(loaded, NAMES[0]).text
        assert runs == [1]

    def test_others_are_edited(self, loaded, long_drafts, monkeypatch):
        """Some of this long recording's are certain."""
        runs = editor_runs(loaded, monkeypatch)
        skipped = transcribe(find_recording(LONG), loaded, skip_editor=True, batch_size=1)
        pairs = list(zip(skipped.segments, long_drafts, strict=True))
        assert all(s.text in (p.text, edited(p, loaded)) for s, p in pairs)
        taken = [s for s, p in pairs if s.text == p.text and s.avg_logprob == p.avg_logprob]
        assert len(taken) == len(pairs) - len(runs)
        assert 0 < len(runs) < len(pairs)

    def test_the_command_line(self, folder, loaded, forty_seconds, capsys):
        """Where some drafts are certain, the texts are neither all edited nor all drafts."""
        args = [str(forty_seconds), "--model", str(folder), "--dtype", "float32"]
        skipping = "--skip-editor"
        said = {}
        for flags in ((), (skipping,), ("--ctc-only",), (skipping, "--stream")):
            assert main([*args, *flags]) == 0
            said[flags] = capsys.readouterr().out
        streamed = said.pop((skipping, "--stream"))
        assert len(set(said.values())) == 3
        expected = transcribe(forty_seconds, loaded, skip_editor=True)
        lines = [s.text for s in expected.segments if s.text]
        assert said[skipping,].splitlines() == streamed.splitlines() == lines

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({}, True),
            ({"tokens": [], "logprobs": []}, False),
            ({"logprobs": [math.log(0.92)] * 4}, True),
            ({"logprobs": [math.log(0.91)] * 4}, False),
            ({"logprobs": [0, 0, 0, math.log(0.76)]}, True),
            ({"logprobs": [0, 0, 0, math.log(0.74)]}, False),
            ({"entropies": [0.9, 0] * 5}, True),
            ({"entropies": [0.92, 0] * 5}, False),
            ({"blanks": 9}, True),
            ({"blanks": 10}, False),
            ({"tokens": [1, 1, 2, 1]}, False),
            ({"tokens": [1, 2, 1, 2]}, True),
            ({"tokens": [1], "logprobs": [0]}, True),
        ],
    )
    def test_when_a_draft_is_certain(self, changes, expected):
        given = {"blanks": 5, "entropies": [0.1] * 10, "tokens": [1, 2, 3, 4]}
        given |= {"logprobs": [-0.01] * 4, **changes}
        # exactly at a threshold rounding decides
        given["logprobs"] = [logprob + 1e-9 for logprob in given["logprobs"]]
        assert is_certain(**given) is expected

    def test_it_is_a_switch(self, loaded):
        with pytest.raises(InputError, match="skip_editor is 'often', but must be true or false"):
            transcribe(find_recording(NAMES[0]), loaded, skip_editor="often")
        with pytest.raises(InputError, match="skip_editor: ctc_only has no editor at all"):
            transcribe(find_recording(NAMES[0]), loaded, skip_editor=True, ctc_only=True)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_beams", 4),
        ("temperature", 0.5),
        ("max_new_tokens", 10),
        ("stop_strings", "the"),
        ("draft_acceptance", 0.3),
        ("draft", False),
        ("repetition_penalty", 1.2),
    ],
)
def test_options_of_other_models(loaded, option, value):
    with pytest.raises(UnsupportedOptionError, match=f"^{option} is for models that write token"):
        transcribe(find_recording(NAMES[0]), loaded, **{option: value})
    with pytest.raises(UnsupportedOptionError, match=f"^{option} is for models that write token"):
        loaded[0].generate(mx.zeros((1, 20, 160)), **{option: value})


def test_options_of_none(loaded):
    with pytest.raises(InputError, match="generate has no argument nonsense"):
        transcribe(find_recording(NAMES[0]), loaded, nonsense=1)
    with pytest.raises(InputError, match="generate has no argument nonsense"):
        loaded[0].generate(mx.zeros((1, 20, 160)), nonsense=1)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            {"task": "translate", "target_language": "fr"},
            "NAR was not trained for translation; these were: Gran",
        ),
        ({"punctuate": True}, "NAR was not trained for punctuation and capitals; these were"),
        ({"keywords": ["gate"]}, "NAR was not trained for keywords"),
        ({"prompt": "write"}, "prompt: Granite Speech 4.1 NAR takes no instruction; these do: Gr"),
        ({"language": "ja"}, "NAR was not trained for Japanese; these were: Granite 4.0 Speech, "),
    ],
)
def test_what_it_was_not_trained_for(loaded, request_, message):
    with pytest.raises(UnsupportedOptionError, match=message):
        transcribe(find_recording(NAMES[0]), loaded, **request_)
    with pytest.raises((UnsupportedOptionError, InputError)):
        transcribe(find_recording(NAMES[0]), loaded, ctc_only=True, **request_)


@pytest.mark.parametrize(("language", "code"), [("en", "en"), ("Portuguese", "pt"), (None, None)])
def test_languages(loaded, language, code):
    assert transcribe(find_recording(NAMES[0]), loaded, language=language).language == code


def test_a_segment_that_is_too_long(tmp_path):
    folder = on_bundled_encoder(tmp_path / "short", {})
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit_json(folder / "config.json", text_config={**text, "max_position_embeddings": 20})
    with pytest.raises(ContextLengthError, match="context of 20 positions holds; lower chunk_dur"):
        transcribe(find_recording(NAMES[0]), load(folder, dtype=mx.float32))


def test_drafts_of_the_first_revision_are_normalized(loaded, monkeypatch):
    """In lower case, tokenized anew: here so that two tokens are one."""
    model, processor = loaded
    given = []
    edit = type(model).edit
    monkeypatch.setattr(
        type(model),
        "edit",
        lambda self, audio, texts: given.append(texts[0]) or edit(self, audio, texts),
    )
    monkeypatch.setattr(
        type(processor.tokenizer), "decode", lambda self, ids, **options: f"The gate {len(ids)} "
    )
    for normalized in (False, True):
        monkeypatch.setitem(vars(model.config), "normalizes_drafts", normalized)
        transcribe(find_recording(NAMES[0]), loaded)
    plain, normalized = given
    expected = processor.tokenizer.encode(f"the gate {len(plain)}", add_special_tokens=False)
    assert normalized == expected != plain


def test_the_command_line(folder, capsys):
    assert main([str(find_recording(NAMES[0])), "--model", str(folder)]) == 0
    assert " a " in f" {capsys.readouterr().out.strip()} "
    assert main([str(find_recording(NAMES[0])), "--model", str(folder), "--num-beams", "3"]) == 1
    error = capsys.readouterr().err
    assert "--num-beams is for models that write token by token" in error
