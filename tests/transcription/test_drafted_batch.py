"""Texts that the decoder checks instead of writing them: the same ones, in fewer passes."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, partial
from itertools import cycle

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, TINY, find_recording

from mlx_speech import InputError, load, load_audio, stream_transcribe, transcribe
from mlx_speech.checkpoint.quantization import quantize_as_requested
from mlx_speech.generation.speculative import Speculation
from mlx_speech.models.granite_speech.model import GraniteSpeechForConditionalGeneration
from mlx_speech.transcription.ctc_text import CTCText
from mlx_speech.transcription.granite_speech import GraniteSpeechTranscription
from mlx_speech.transcription.transcript import Transcript

LONG, GATE = DATA / "audio" / "long.flac", DATA / "audio" / "flite_08.flac"
CUTS = {"chunk_duration": 9, "min_silence": 0.4}
REFERENCE = json.loads((DATA / "reference" / "tiny_granite_reference.json").read_text())["files"]
RECORDINGS = sorted(REFERENCE)
SPOKEN = [name for name in RECORDINGS if not name.endswith(("silence.flac", "short.wav"))]


@pytest.fixture(scope="module", params=["of tokens", "of characters"])
def head(request, tiny, tiny_without_bpe):
    """The bundled checkpoint, drafted by its BPE head, or if it has none by the other one."""
    return tiny if request.param == "of tokens" else tiny_without_bpe


@pytest.fixture(scope="module")
def drafted(head):
    """What is written of a recording with drafts, once for all that look at it."""
    return cache(partial(transcribe, model=head, word_timestamps=True))


@pytest.fixture(scope="module")
def greedy(tiny):
    """What greedy search writes of a recording, whatever head there is."""
    return cache(partial(transcribe, model=tiny, word_timestamps=True, draft=False))


@pytest.fixture
def long_greedy(greedy, encoded_once):
    return greedy(LONG, **CUTS)


@pytest.fixture(scope="module")
def half(tiny_without_bpe):
    """(model, processor) in bfloat16 with and without its BPE head, and the ids that greedy search
    writes of a recording."""
    folder = tiny_without_bpe[0].folder
    models = {"tokens": load(TINY, dtype=mx.bfloat16), "char": load(folder, dtype=mx.bfloat16)}

    @cache
    def greedy_ids(path, **options):
        return ids(transcribe(path, models["tokens"], draft=False, **options))

    return models, greedy_ids


#: what models, by their ids, have found in recordings: the model, and the chunks with their drafts
FOUND: dict[tuple, tuple] = {}


@pytest.fixture
def encoded_once(monkeypatch):
    """No model encodes a recording twice, since what is tested is how its chunks are decoded."""
    find = GraniteSpeechTranscription.chunks

    def chunks(family, recording, options, *, drafts, **wanted):
        model = family._model
        samples = np.array(recording.read()).tobytes()
        key = id(model), samples, options, *sorted(wanted.items())
        if key not in FOUND:
            FOUND[key] = model, list(find(family, recording, options, drafts=True, **wanted))
        for chunk in FOUND[key][1]:
            yield chunk if drafts or chunk is None else replace(chunk, draft=None)

    monkeypatch.setattr(GraniteSpeechTranscription, "chunks", chunks)


def ids(transcript: Transcript) -> list[list[int]]:
    return [segment.tokens for segment in transcript.segments]


def check_same(drafted: Transcript, greedy: Transcript) -> None:
    assert greedy.drafts is None
    assert ids(drafted) == ids(greedy)
    for one, other in zip(drafted.segments, greedy.segments, strict=True):
        assert (one.text, one.start, one.end) == (other.text, other.start, other.end)
        assert (one.truncated, one.retried) == (other.truncated, other.retried)
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-4)
        for word, known in zip(one.words, other.words, strict=True):
            assert (word.text, word.start, word.end) == (known.text, known.start, known.end)
            assert word.probability == pytest.approx(known.probability, abs=1e-4)


class TestSame:
    @pytest.mark.parametrize("name", RECORDINGS)
    def test_recordings(self, drafted, greedy, name):
        path = find_recording(name)
        check_same(drafted(path), greedy(path))

    @pytest.mark.parametrize("batch_size", [1, 3, 8])
    def test_batches(self, drafted, long_greedy, batch_size):
        found = drafted(LONG, batch_size=batch_size, **CUTS)
        assert len(found.segments) == 24
        check_same(found, long_greedy)
        # each text has a token that ends it
        assert found.drafts.tokens == sum(len(s.tokens) + 1 for s in long_greedy.segments)
        assert found.drafts.passes <= 0.25 * found.drafts.tokens

    @pytest.mark.parametrize(
        ("head", "num_draft_tokens"),
        [
            *(("of tokens", number) for number in (1, 7, 31)),
            *(("of characters", number) for number in (3, 15)),
        ],
        indirect=["head"],
    )
    def test_blocks(self, drafted, long_greedy, num_draft_tokens):
        options = {"num_draft_tokens": num_draft_tokens, "batch_size": 3}
        check_same(drafted(LONG, **options, **CUTS), long_greedy)

    @pytest.mark.usefixtures("encoded_once")
    @pytest.mark.parametrize("bits", [4, 8])
    def test_quantized(self, bits):
        model, processor = load(TINY, dtype=mx.float32)
        quantize_as_requested(model, {"bits": bits})
        # six whole sentences: of one that is cut off, the draft is mostly wrong
        audio, options = load_audio(LONG)[: round(21.2 * 16000)], {"sampling_rate": 16000, **CUTS}
        drafted, plain = (
            transcribe(audio, (model, processor), draft=draft, **options) for draft in (True, False)
        )
        assert len(plain.segments) == 6
        check_same(drafted, plain)
        assert drafted.drafts.passes <= 0.25 * drafted.drafts.tokens

    def test_stream(self, head, long_greedy):
        def streaming():
            transcript = yield from stream_transcribe(LONG, head, word_timestamps=True, **CUTS)
            yield transcript

        *deltas, drafted = streaming()
        check_same(drafted, long_greedy)
        assert "".join(delta.text for delta in deltas) == drafted.text

    @pytest.mark.usefixtures("encoded_once")
    @pytest.mark.parametrize(("name", "kind"), [*zip(RECORDINGS, cycle(["tokens", "char"]))])
    def test_ids_in_bfloat16(self, half, name, kind):
        """With one head and the other in turn."""
        models, greedy_ids = half
        path = find_recording(name)
        drafted = transcribe(path, models[kind])
        assert ids(drafted) == greedy_ids(path)
        assert bool(drafted.drafts) == bool(drafted.segments)

    @pytest.mark.usefixtures("encoded_once")
    @pytest.mark.parametrize(("kind", "batch_size"), [("tokens", 1), ("char", 8)])
    def test_ids_of_a_long_one_in_bfloat16(self, half, forty_seconds, kind, batch_size):
        models, greedy_ids = half
        drafted = transcribe(forty_seconds, models[kind], batch_size=batch_size, **CUTS)
        assert ids(drafted) == greedy_ids(forty_seconds, **CUTS)
        assert len(drafted.segments) > 8
        assert drafted.drafts


class TestPasses:
    """A draft that is not used changes no text, so that its use is counted."""

    @pytest.mark.parametrize("name", SPOKEN)
    def test_right_ones_take_few(self, drafted, name):
        """Each of these is right for the most part."""
        drafts = drafted(find_recording(name)).drafts
        assert drafts.passes <= 0.5 * drafts.tokens
        assert drafts.accepted + drafts.passes == drafts.tokens
        assert 0 < drafts.accepted <= drafts.drafted

    def test_all_recordings(self, drafted):
        """A fifth of the passes of greedy search."""
        found = [drafted(find_recording(name)).drafts for name in SPOKEN]
        passes, tokens = (sum(getattr(d, name) for d in found) for name in ("passes", "tokens"))
        assert tokens > 200
        assert passes <= 0.2 * tokens

    def test_texts_that_end_make_room(self, head, long_greedy, monkeypatch):
        """Segments begin while others are still being decoded."""
        going_on, extend = [], Speculation.extend

        def counted(batch, other):
            going_on.append((len(batch.answers), len(other.answers)))
            return extend(batch, other)

        monkeypatch.setattr(Speculation, "extend", counted)
        drafted = transcribe(LONG, head, word_timestamps=True, batch_size=4, **CUTS)
        check_same(drafted, long_greedy)
        assert max(running for running, _ in going_on) > 0
        assert all(1 <= running + new <= 4 for running, new in going_on)

    @pytest.mark.parametrize("streaming", [False, True])
    def test_are_those_of_the_model(self, head, monkeypatch, streaming):
        """What is counted is what the decoder computes."""
        calls = []

        def count(name):
            method = getattr(GraniteSpeechForConditionalGeneration, name)

            def counted(*arguments, **options):
                calls.append(name)
                return method(*arguments, **options)

            monkeypatch.setattr(GraniteSpeechForConditionalGeneration, name, counted)

        count("prefill")
        count("step")
        path = find_recording("synthetic/espeak_04.flac")
        if streaming:
            *_, delta = stream_transcribe(path, head)
            drafts = delta.segment.drafts
        else:
            drafts = transcribe(path, head).drafts
        assert len(calls) == drafts.passes
        calls.clear()
        transcribe(path, head, draft=False)
        assert len(calls) >= drafts.tokens

    def test_wrong_ones_change_nothing_but_these(self, head, monkeypatch):
        greedy = transcribe(GATE, head, draft=False, word_timestamps=True)
        right = transcribe(GATE, head).drafts
        kind, tokenizer = GraniteSpeechTranscription, head[1].tokenizer
        tokens = tokenizer.encode(" what is the weather in rome", add_special_tokens=False)
        wrong = CTCText("", tokens, [], [], tokenizer)
        monkeypatch.setattr(kind, "_draft", lambda *frames: wrong)
        drafted = transcribe(GATE, head, word_timestamps=True)
        check_same(drafted, greedy)
        assert drafted.drafts.passes > 3 * right.passes

    @pytest.mark.parametrize(
        "options",
        [
            {"draft": False},
            {"num_beams": 2},
            {"temperature": 0.5, "seed": 1},
            {"task": "translate", "target_language": "fr"},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_none(self, tiny, options):
        assert transcribe(GATE, tiny, **options).drafts is None

    @pytest.mark.parametrize("draft", [True, False])
    def test_of_the_caller(self, tiny, draft):
        with pytest.raises(InputError, match="drafts are made here"):
            transcribe(GATE, tiny, draft=draft, drafts=[[5]])

    def test_speech_without_a_head(self, tiny_s2t):
        assert transcribe(GATE, tiny_s2t).drafts is None


class TestAcceptance:
    def test_takes_fewer_passes(self, head):
        """Also where nothing is left to propose."""
        audio = load_audio(LONG)[: 20 * 16000]
        passes = [
            transcribe(audio, head, sampling_rate=16000, **CUTS, **options).drafts.passes
            for options in ({}, {"draft_acceptance": 0.1})
        ]
        assert passes[0] > passes[1]

    def test_anything_that_the_draft_says(self, head):
        """Where any token of it will do."""
        path = find_recording("synthetic/flite_10.flac")
        own, taken = (
            transcribe(path, head, **options)
            for options in ({"ctc_only": True}, {"draft_acceptance": 1e-30})
        )
        assert taken.text.startswith(own.text)
        assert taken.text != transcribe(path, head).text


def test_acceptance_without_drafts(tiny):
    with pytest.raises(InputError, match="draft_acceptance is for drafts; leave out draft=False"):
        transcribe(GATE, tiny, draft=False, draft_acceptance=0.5)
