"""The encoder's own text, without the decoder."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, chunks_of, find_recording

from mlx_speech import (
    InputError,
    UnsupportedOptionError,
    load_audio,
    stream_transcribe,
    transcribe,
)
from mlx_speech.audio import open_recording
from mlx_speech.models.conformer import BLANK
from mlx_speech.models.granite_speech import model as granite_speech
from mlx_speech.transcription.alignment import align_words, split_words
from mlx_speech.transcription.chunks import ChunkOptions
from mlx_speech.transcription.ctc import CTCVocabulary
from mlx_speech.transcription.ctc_text import CTCText
from mlx_speech.transcription.preparation import speech_family
from mlx_speech.transcription.word_errors import word_errors

AUDIO = DATA / "audio"
LONG, GATE = AUDIO / "long.flac", AUDIO / "flite_08.flac"
CUTS = {"chunk_duration": 9, "min_silence": 0.4}
REFERENCE = json.loads((DATA / "reference" / "tiny_granite_reference.json").read_text())["files"]
RECORDINGS = sorted(REFERENCE)


@pytest.fixture(scope="module", params=["of tokens", "of characters"])
def head(request, tiny, tiny_without_bpe):
    """The bundled checkpoint, which writes by its BPE head, or if it has none by the other one."""
    return tiny if request.param == "of tokens" else tiny_without_bpe


@pytest.fixture(scope="module")
def long_text(head):
    """What it writes of a long recording, and the progress that was told."""
    done = []
    options = {"ctc_only": True, "word_timestamps": True, **CUTS}
    return transcribe(LONG, head, progress=lambda *at: done.append(at), **options), done


def joined(*names: str) -> mx.array:
    pause = mx.zeros(24000)
    return mx.concatenate([part for n in names for part in (load_audio(AUDIO / n), pause)])


def only_segment(path, head):
    (segment,) = transcribe(path, head, ctc_only=True, word_timestamps=True).segments
    return segment


def labels_by_hand(logits: mx.array) -> list[tuple[int, float]]:
    """What (frames, labels) say, each label as likely as in its best frame."""
    logits = np.array(logits, np.float64)
    probabilities = np.exp(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    best = probabilities.argmax(axis=1)
    changes = [0, *(np.flatnonzero(np.diff(best)) + 1), len(best)]
    runs = [slice(*edges) for edges in itertools.pairwise(changes)]
    said = [(int(best[run.start]), probabilities[run, best[run.start]].max()) for run in runs]
    return [(label, probability) for label, probability in said if label != BLANK]


class TestText:
    @pytest.mark.parametrize("name", RECORDINGS)
    def test_the_references(self, tiny_without_bpe, name):
        transcript = transcribe(find_recording(name), tiny_without_bpe, ctc_only=True)
        assert transcript.text == REFERENCE[name]["ctc"]
        for segment in transcript.segments:
            assert tiny_without_bpe[1].tokenizer.decode(segment.tokens) == segment.text

    @pytest.mark.parametrize("name", RECORDINGS)
    def test_the_bpe_heads(self, tiny, name):
        """Few words are others; a tenth of a second of speech has too few frames for its tokens."""
        transcript = transcribe(find_recording(name), tiny, ctc_only=True)
        own = REFERENCE[name]["ctc"]
        assert word_errors(own, transcript.text) <= (1 if len(own) < 3 else 0.3 * len(own.split()))

    def test_sentences_of_a_long_recording(self, long_text):
        lines = map(json.loads, (AUDIO / "manifest.jsonl").read_text().splitlines())
        (known,) = (line["segments"] for line in lines if line["file"] == LONG.name)
        transcript, _ = long_text
        assert transcript.text == " ".join(segment.text for segment in transcript.segments)
        assert len(transcript.segments) == len(known)
        errors = 0
        for segment, (start, end, text) in zip(transcript.segments, known, strict=True):
            assert abs(segment.start - start) <= 0.3
            assert abs(segment.end - end) <= 0.3
            errors += word_errors(text, segment.text)
        assert errors / sum(len(text.split()) for *_, text in known) < 0.15

    @pytest.mark.parametrize("batch_size", [1, 3, 100])
    def test_batches_change_nothing(self, head, batch_size):
        audio = load_audio(LONG)[: 30 * 16000]
        options = {"sampling_rate": 16000, "ctc_only": True, "word_timestamps": True, **CUTS}
        found = transcribe(audio, head, batch_size=batch_size, **options)
        assert len(found.segments) > 5
        assert found == transcribe(audio, head, **options)

    def test_stream(self, head):
        """A segment at a time; the pieces are the text."""
        audio = load_audio(LONG)[: 30 * 16000]
        options = {"sampling_rate": 16000, "ctc_only": True, "word_timestamps": True, **CUTS}

        def streaming():
            transcript = yield from stream_transcribe(audio, head, **options)
            yield transcript

        *deltas, transcript = streaming()
        assert transcript == transcribe(audio, head, **options)
        assert "".join(delta.text for delta in deltas) == transcript.text
        assert [delta.segment for delta in deltas] == transcript.segments

    def test_progress(self, long_text):
        _, done = long_text
        assert len(done) > 3
        assert done == sorted(done)
        assert done[-1][0] == done[-1][1]


def test_neither_decoder_nor_projector(head, monkeypatch):
    """Nor a prompt, in whole transcripts and in pieces."""
    options = {"ctc_only": True, "word_timestamps": True}
    expected = transcribe(GATE, head, **options)

    def refuse(*arguments, **options):
        raise AssertionError("called")

    monkeypatch.setattr(granite_speech.GraniteForCausalLM, "__call__", refuse)
    monkeypatch.setattr(granite_speech.WindowedProjector, "__call__", refuse)
    for name in ("prefill", "step", "prepare_prompt", "make_cache", "project", "embed_text"):
        monkeypatch.setattr(granite_speech.GraniteSpeechForConditionalGeneration, name, refuse)
    monkeypatch.setattr(type(head[1]), "audio_inputs", refuse)
    assert transcribe(GATE, head, **options) == expected
    (delta,) = stream_transcribe(GATE, head, **options)
    assert delta.segment == expected.segments[0]
    assert expected.drafts is None
    with pytest.raises(AssertionError, match="called"):
        transcribe(GATE, head)


class TestWords:
    def test_lie_in_their_segments(self, long_text):
        transcript, _ = long_text
        for segment in transcript.segments:
            assert " ".join(word.text for word in segment.words) == segment.text
            times = [time for word in segment.words for time in (word.start, word.end)]
            assert times == sorted(times)
            assert segment.start <= times[0]
            assert times[-1] <= segment.end
            assert all(0 < word.probability <= 1 for word in segment.words)
            assert segment.avg_logprob <= 0

    def test_as_the_decoder_has_them_for_the_same_text(self, head):
        """And other probabilities, since others are asked."""
        same = 0
        for path in sorted(AUDIO.glob("*_*.flac")):
            whole, own = (
                transcribe(path, head, ctc_only=only, word_timestamps=True).segments
                for only in (False, True)
            )
            if [s.text for s in whole] != [s.text for s in own]:
                continue
            for segment, other in zip(whole, own, strict=True):
                assert [(w.text, w.start, w.end) for w in segment.words] == [
                    (w.text, w.start, w.end) for w in other.words
                ]
                assert segment.tokens == other.tokens
                assert segment.avg_logprob != other.avg_logprob
                same += len(segment.words)
        assert same > 40

    def test_are_where_the_labels_are(self, tiny_without_bpe):
        """The best path of what was written greedily is the greedy one."""
        model, processor = tiny_without_bpe
        family = speech_family(model, processor)
        with open_recording(AUDIO / "festival_15.flac") as recording:
            options = {"for_alignment": True, "drafts": True, "for_decoder": False}
            (chunk,) = chunks_of(family, recording, ChunkOptions(), **options)
        text = chunk.draft.text
        assert text == "set a timer for three hours"
        own = mx.eye(348)[mx.argmax(chunk.ctc_logits, axis=-1)] * 100
        rest = [chunk.levels_db], family.ctc_vocabulary, [chunk.start]
        assert align_words([text], [own], *rest) == align_words([text], [chunk.ctc_logits], *rest)

    def test_probabilities_of_characters_by_hand(self, tiny_without_bpe):
        """The product over those of a word."""
        model, processor = tiny_without_bpe
        path = AUDIO / "espeak_03.flac"
        features = processor.audio_processor.log_mel(load_audio(path))
        said = labels_by_hand(model.encoder(features[None]).ctc_logits[0])
        segment = only_segment(path, tiny_without_bpe)
        assert segment.text == "".join(chr(label) for label, _ in said)
        assert segment.avg_logprob == pytest.approx(np.mean([np.log(p) for _, p in said]), abs=1e-5)
        for word, (first, last) in zip(segment.words, split_words(segment.text), strict=True):
            by_hand = np.prod([p for _, p in said[first:last]])
            assert word.probability == pytest.approx(by_hand, rel=1e-4)

    def test_probabilities_of_tokens_by_hand(self, tiny):
        model, processor = tiny
        features = processor.audio_processor.log_mel(load_audio(GATE))
        output = model.encoder(features[None])
        said = labels_by_hand(model.bpe_logits(output.last_hidden_state, output.non_blank)[0])
        words: list[list[float]] = []
        for label, probability in said:
            if not words or processor.tokenizer.decode([label - 1]).startswith(" "):
                words.append([])
            words[-1].append(probability)
        segment = only_segment(GATE, tiny)
        assert len(words) == 4 < len(said)
        by_hand = [*map(np.prod, words)]
        assert [w.probability for w in segment.words] == pytest.approx(by_hand, rel=1e-4)
        assert segment.avg_logprob == pytest.approx(np.mean([np.log(p) for _, p in said]), abs=1e-5)


class TestNothingSaid:
    @pytest.mark.parametrize("level", [None, -60, -30, -10])
    def test_silence_and_noise(self, head, level):
        noise = np.zeros(16000 * 4, np.float32)
        if level is not None:
            noise = np.random.default_rng(1).standard_normal(noise.size).astype(np.float32)
            noise = np.clip(noise * 10 ** (level / 20), -1, 1)
        transcript = transcribe(noise, head, sampling_rate=16000, ctc_only=True)
        assert (transcript.text, transcript.segments) == ("", [])
        assert transcript.remarks[-1].startswith("no text: ")

    def test_a_head_that_writes_nothing(self, head, monkeypatch):
        """Somebody speaks, and no label is likelier than the blank: a segment without text."""
        audio = joined(GATE.name, "espeak_05.flac")
        kept = speech_family(*head).chunks

        def chunks(family, recording, options, **wanted):
            for chunk in filter(None, kept(recording, options, **wanted)):
                empty = CTCText("", [], [], [], chunk.draft.vocabulary)
                yield replace(chunk, draft=empty)

        monkeypatch.setattr(type(speech_family(*head)), "chunks", chunks)
        options = {"sampling_rate": 16000, "ctc_only": True, "word_timestamps": True}
        transcript = transcribe(audio, head, **options)
        assert [(s.text, s.tokens, s.words, s.avg_logprob) for s in transcript.segments] == [
            ("", [], [], 0)
        ] * 2
        assert "found no words" in transcript.remarks[-1]
        deltas = list(stream_transcribe(audio, head, **options))
        assert [delta.text for delta in deltas] == ["", ""]


class TestLanguage:
    """It is not told to the decoder, so that any model may be given it."""

    def test_names_the_texts(self, tiny):
        with pytest.raises(UnsupportedOptionError, match="not trained for being told the language"):
            transcribe(GATE, tiny, language="English")
        assert transcribe(GATE, tiny, language="English", ctc_only=True).language == "en"

    def test_unknown(self, tiny):
        with pytest.raises(UnsupportedOptionError, match="language 'elvish' is not known"):
            transcribe(GATE, tiny, language="elvish", ctc_only=True)


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"task": "translate", "target_language": "fr"}, "a translation is not"),
            ({"prompt": "what is said?"}, "^prompt is for the decoder, which ctc_only goes"),
            ({"keywords": ["gate"]}, "^keywords is for the decoder"),
            ({"max_new_tokens": 9}, "^max_new_tokens is for the decoder"),
            ({"num_beams": 2}, "^num_beams is for the decoder"),
            ({"temperature": 0.5}, "^temperature is for the decoder"),
            ({"stop_strings": ["x"]}, "^stop_strings is for the decoder"),
            ({"draft": False}, "^draft is for the decoder"),
            ({"draft_acceptance": 0.5}, "^draft_acceptance is for the decoder"),
            ({"logits_processor": lambda tokens, scores: scores}, "^logits_processor is for"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_what_only_a_decoder_can_do(self, options, message):
        """Before a model is loaded."""
        for function in (transcribe, lambda *a, **o: list(stream_transcribe(*a, **o))):
            with pytest.raises(InputError, match=message):
                function(GATE, "./nowhere", ctc_only=True, **options)

    def test_options_that_are_not_set(self, tiny):
        options = {"max_new_tokens": None, "num_beams": None, "draft": True}
        assert transcribe(GATE, tiny, ctc_only=True, **options).text == "unlock the back gate"

    @pytest.mark.parametrize("value", [None, 1, "yes"])
    def test_no_boolean(self, value):
        with pytest.raises(InputError, match=r"ctc_only is .*, but must be true or false"):
            transcribe(GATE, "./nowhere", ctc_only=value)

    def test_punctuation_is_not_the_character_heads(self, tiny, tiny_without_bpe):
        with pytest.raises(UnsupportedOptionError, match="ctc_only with punctuate needs a check"):
            transcribe(GATE, tiny_without_bpe, ctc_only=True, punctuate=True)
        assert transcribe(GATE, tiny, ctc_only=True, punctuate=True).text == "unlock the back gate"

    def test_no_head(self, tiny_s2t):
        with pytest.raises(UnsupportedOptionError, match="ctc_only needs an encoder with a CTC"):
            transcribe(GATE, tiny_s2t, ctc_only=True, language="en")

    def test_labels_that_nobody_knows(self, tiny_without_bpe, monkeypatch):
        """As those of Granite Speech 3.2."""
        monkeypatch.setattr(CTCVocabulary, "of_head", lambda output_dim: None)
        with pytest.raises(UnsupportedOptionError, match=r"whose labels are known.* save for 3\.2"):
            transcribe(GATE, tiny_without_bpe, ctc_only=True, punctuate=True)
