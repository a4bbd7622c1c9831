"""Transcription without a decoder: cut, written and placed by the labels of TurboCTC's head."""

from __future__ import annotations

import json
from itertools import groupby, pairwise

import mlx.core as mx
import numpy as np
import pytest
import turboctc
from conftest import DATA, chunks_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech import (
    InputError,
    MlxSpeechError,
    UnsupportedOptionError,
    load,
    stream_transcribe,
    transcribe,
)
from mlx_speech.audio import open_recording
from mlx_speech.processing.auto_tokenizer import AutoTokenizer
from mlx_speech.transcription.alignment import split_words, written_words
from mlx_speech.transcription.chunks import ChunkOptions
from mlx_speech.transcription.ctc import SubwordVocabulary
from mlx_speech.transcription.ctc_text import subword_text
from mlx_speech.transcription.preparation import speech_family

LONG = DATA / "audio" / "long.flac"
CUTS = {"chunk_duration": 9, "min_silence": 0.4}
FRAME_S, LABEL_S = 0.02, 0.08


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A model with random weights, which writes nonsense wherever there is sound."""
    return load(turboctc.write(tmp_path_factory.mktemp("turboctc")))


def bytes_alone(vocabulary) -> list[int]:
    """Labels of bytes that are parts of characters."""
    labels = range(len(vocabulary.tokenizer))
    return [i for i in labels if vocabulary.decode([i], skip_special_tokens=True) == "\ufffd"]


@pytest.fixture(scope="module", params=turboctc.TOKENIZERS)
def vocabulary(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    turboctc.write_tokenizer(folder, request.param)
    return SubwordVocabulary(AutoTokenizer.from_pretrained(folder))


def word_end(labels: list[int], cut: int, vocabulary: SubwordVocabulary) -> int:
    """Frame by frame: where the word ends that goes on across a cut, up to a second."""
    last = max((i for i in range(cut) if labels[i]), default=-9)
    limit = cut + 12
    for i in range(cut, len(labels)):
        if labels[i]:
            again = last == i - 1 and labels[i] == labels[last]
            near = i - last <= 3 and i < limit
            if not again and not (near and vocabulary.joined(labels[last], labels[i])):
                break
            last, cut = i, i + 1
    return cut


class TestChunks:
    @pytest.mark.parametrize("deep", [False, True])
    def test_texts_are_what_one_call_says_between_the_cuts(self, pair, tmp_path, deep):
        """Encoded as a stream, whatever the cuts, which lie between the head's frames. As deep as
        the released ones, with blocks as long, there is nothing to cut for two minutes."""
        if deep:
            blocks = {"context_size": 128, "max_position_embeddings": 128}
            pair = load(turboctc.write(tmp_path, num_hidden_layers=16, **blocks))
        model, processor = pair
        with open_recording(LONG) as recording:
            features = processor.feature_extractor.log_mel(recording.read())
            labels = model.generate(features[None])[0].tolist()
            chunks = list(chunks_of(speech_family(*pair), recording, ChunkOptions(**CUTS)))
        assert len(chunks) > 12
        written = 0
        for chunk in chunks:
            begin, end = (edge / LABEL_S for edge in (chunk.begin, chunk.begin + chunk.duration))
            if chunk is not chunks[-1]:
                assert end == pytest.approx(round(end))
            end = word_end(labels, int(end + 1e-6), SubwordVocabulary(processor.tokenizer))
            own = labels[max(round(begin), written) : end]
            written = end
            assert begin == pytest.approx(round(begin))
            assert chunk.draft.labels == [label for label, _ in groupby(own) if label]
            assert chunk.draft.tokens == chunk.draft.labels
            assert chunk.audio is chunk.ctc_logits is None

    def test_frames_of_labels_and_levels_are_the_same(self, pair):
        """Counted from where the speech begins, 20 ms each, the fourth of a label included."""
        model, processor = pair
        with open_recording(LONG) as recording:
            features = processor.feature_extractor.log_mel(recording.read())
            labels = model.generate(features[None])[0].tolist()
            family = speech_family(*pair)
            chunks = list(chunks_of(family, recording, ChunkOptions(**CUTS), for_alignment=True))
        placed = 0
        for chunk in chunks:
            start, number = round(chunk.start / FRAME_S), len(chunk.levels_db)
            assert number == round(chunk.end / FRAME_S) - start
            first, last = chunk.draft.label_frames
            assert len(first) == len(last) == len(chunk.draft.labels)
            for label, a, b in zip(chunk.draft.labels, first.tolist(), last.tolist(), strict=True):
                assert 0 <= a <= b < number
                if a > 0 and b < number - 1:  # others may be those of labels beyond the speech
                    placed += 1
                    assert (start + a) % 4 == (start + b + 1) % 4 == 0
                    around = labels[(start + a) // 4 - 1 : (start + b + 1) // 4 + 1]
                    assert {*around[1:-1]} == {label}
                    assert label not in (around[0], around[-1])
        assert placed > 50

    @pytest.mark.parametrize("samples", [400, 700, 1279, 1280, 5000])
    @pytest.mark.parametrize("vad", [True, False])
    def test_hardly_a_recording(self, pair, samples, vad):
        """Fewer than four frames give no label, also where all of it is taken for speech."""
        transcript = transcribe(turboctc.waveform(samples), pair, sampling_rate=16000, vad=vad)
        assert transcript.duration == samples / 16000
        assert len(transcript.segments) == (not vad and samples >= 1279)


class Scripted:
    """A stream and a head that say given labels, one for each 80 ms."""

    def __init__(self, labels: list[int], size: int):
        self.labels, self.size, self.given, self.taken = mx.array(labels), size, 0, 0

    def push(self, features, last=False):
        self.given += len(features)
        start, self.taken = self.taken, self.given // 4
        return self.labels[None, start : self.taken, None]

    def logits(self, hidden):
        return 20.0 * (hidden == mx.arange(self.size))


#: seconds at which a word sounds
SPOKEN = {"the": (0.5, 0.74), "light": (0.78, 1.3), "kitchen": (1.9, 2.6), "noon": (2.62, 3.1)}


@pytest.fixture
def scripted(pair, monkeypatch):
    """Bursts of noise, and a head that says the words a little late, as real ones do."""
    model, processor = pair
    random, tokenizer = np.random.default_rng(0), processor.tokenizer
    samples = 1e-4 * random.normal(size=round(3.7 * 16000)).astype(np.float32)
    labels = [0] * round(3.7 / LABEL_S)
    for number, (word, (start, end)) in enumerate(SPOKEN.items()):
        samples[round(start * 16000) : round(end * 16000)] *= 2000
        tokens = tokenizer.encode(f" {word}" if number else word)
        first = int(start / LABEL_S) + 1
        last = max(first + len(tokens), int(end / LABEL_S))
        for place, token in zip(
            np.linspace(first, last, len(tokens)).round(), tokens, strict=False
        ):
            labels[int(place)] = token
    stream = Scripted(labels, model.config.vocab_size)
    monkeypatch.setattr(model, "encode_stream", lambda: stream)
    monkeypatch.setattr(model, "logits", stream.logits)
    return samples


class TestWords:
    def test_they_are_where_they_sound(self, pair, scripted):
        """Labels stand for 80 ms; where it is quiet is told by the sound, to 20 ms."""
        transcript = transcribe(
            scripted, pair, sampling_rate=16000, vad=False, word_timestamps=True
        )
        assert transcript.text == " ".join(SPOKEN)
        words = [word for segment in transcript.segments for word in segment.words]
        assert [word.text for word in words] == list(SPOKEN)
        assert all(word.probability > 0.9 for word in words)
        found = np.array([(word.start, word.end) for word in words])
        spoken = np.array([*SPOKEN.values()])
        assert np.abs(found - spoken).max() < 0.1
        # beside a pause
        assert np.abs(found[[0, 2], 0] - spoken[[0, 2], 0]).max() <= FRAME_S + 1e-6
        assert np.abs(found[[1, 3], 1] - spoken[[1, 3], 1]).max() <= FRAME_S + 1e-6

    def test_of_a_model_that_hears(self):
        """Labels are 80 ms long here, and most are whole words, whose ends are far from them."""
        lines = map(json.loads, (DATA / "audio" / "manifest.jsonl").read_text().splitlines())
        known = {line["file"]: line for line in lines if line["words"]}
        model, errors = load(DATA / "tiny-turboctc"), []
        for number in (12, 14, 15):
            line = known[f"festival_{number}.flac"]
            (segment,) = transcribe(
                DATA / "audio" / line["file"], model, word_timestamps=True
            ).segments
            assert segment.text == line["text"]
            for word, (text, start, end) in zip(segment.words, line["words"], strict=True):
                assert word.text == text
                errors.append((abs(word.start - start), abs(word.end - end)))
        assert len(errors) == 20
        assert (np.median(errors, axis=0) <= 0.05).all()
        assert (np.quantile(errors, 0.8, axis=0) <= 0.1).all()

    def test_without_being_asked_for_there_are_none(self, pair, scripted):
        transcript = transcribe(scripted, pair, sampling_rate=16000, vad=False)
        assert not any(segment.words for segment in transcript.segments)

    def test_streaming_gives_the_same(self, pair, scripted):
        deltas = stream_transcribe(scripted, pair, sampling_rate=16000, vad=False)
        assert "".join(delta.text for delta in deltas) == " ".join(SPOKEN)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_none_is_lost_and_times_go_forward(self, vocabulary, data):
        """Whatever the labels, parts of characters and special tokens among them."""
        size = len(vocabulary.tokenizer)
        label = st.integers(0, size - 1) | st.sampled_from([0, *bytes_alone(vocabulary)])
        labels = np.array(data.draw(st.lists(label, min_size=1, max_size=40)))
        self.check(labels, vocabulary)

    @pytest.mark.parametrize(
        "said", [b"\xff\xc3\xa9", b"\xc3\xa9\xff", b"\xc3\xa9A\xc3\xa9 \xe2\x82", "\ufffd".encode()]
    )
    def test_bytes_that_are_no_text(self, tmp_path, said):
        """One that is none makes all of its run so many replacement characters."""
        turboctc.write_tokenizer(tmp_path, "byte fallback")
        vocabulary = SubwordVocabulary(AutoTokenizer.from_pretrained(tmp_path))
        tokens = vocabulary.tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in said])
        words = vocabulary.tokenizer.encode("lamp lamp")
        self.check(np.array([*tokens, *words, 0, *tokens, *words]), vocabulary)

    def check(self, labels, vocabulary):
        wrote = subword_text(labels, np.zeros(len(labels)), vocabulary)
        levels = np.random.default_rng(len(labels)).uniform(-90, -20, 4 * len(labels))
        first, last = wrote.label_frames
        frames = 4 * first, 4 * last + 3
        times = written_words(wrote.labels, frames, levels, vocabulary, 2.0)
        said = vocabulary.tokenizer.decode(labels, skip_special_tokens=True)
        assert wrote.text == " ".join(said.split())
        words = [wrote.text[begin:end] for begin, end in split_words(wrote.text)]
        assert [time.text for time in times] == words
        edges = [2.0, *(edge for time in times for edge in time[1:]), 2.0 + len(labels) * LABEL_S]
        assert all(a <= b + 1e-9 for a, b in pairwise(edges))

    @pytest.mark.parametrize("first", [True, False], ids=["first", "another"])
    def test_no_cut_divides_one(self, pair, monkeypatch, first):
        """Speech without a pause is cut where it has to be; whatever is said there, its word is
        whole, and a label that lasts is said once; the blank is the first label or another."""
        model, processor = pair
        tokenizer, random = processor.tokenizer, np.random.default_rng(0)
        text = " ".join(turboctc.SENTENCES[:-1])
        used, tokens = {*tokenizer.encode(text)}, [*range(len(tokenizer))]
        starts = [i for i in tokens if tokenizer.convert_ids_to_tokens(i)[0] in "Ġ▁"]
        blank = 0 if first else min({*starts} - used)
        monkeypatch.setattr(SubwordVocabulary, "blank", blank)
        labels: list[int] = []
        for number, label in enumerate(tokenizer.encode(text)):
            # some last, some have a blank before them, as each must that is said again
            before = [blank] if number % 4 == 1 or labels[-1:] == [label] else []
            labels += [*before, label, *([label] if number % 3 == 0 else [])]
        samples = random.normal(size=round(len(labels) * LABEL_S * 16000)).astype(np.float32)
        samples *= np.repeat(random.uniform(0.01, 0.5, len(labels)), 1280).astype(np.float32)
        counts = set()
        for duration in (2, 3, 5):
            stream = Scripted(labels, model.config.vocab_size)
            monkeypatch.setattr(model, "encode_stream", lambda stream=stream: stream)
            monkeypatch.setattr(model, "logits", stream.logits)
            options = {"chunk_duration": duration, "vad": False, "word_timestamps": True}
            transcript = transcribe(samples, pair, sampling_rate=16000, **options)
            assert transcript.text == text
            counts.add(len(transcript.segments))
        assert min(counts) > 5
        assert len(counts) == 3

    def test_labels_of_one_word(self, vocabulary):
        """A label without the space that words begin with goes on with one, save after a space."""
        tokenizer, seen = vocabulary.tokenizer, set()
        for text in turboctc.SENTENCES:
            labels = tokenizer.encode(text)
            tokens = tokenizer.convert_ids_to_tokens(labels)
            for pair, (token, following) in zip(pairwise(labels), pairwise(tokens), strict=True):
                of_one = following[0] not in "Ġ▁" and token not in ("Ġ", "▁")
                assert vocabulary.joined(*pair) == of_one
                seen.add(of_one)
        assert seen == {True, False}

    def test_the_same_label_twice(self, vocabulary):
        """With a blank between it is said twice, as in a number."""
        (label,) = vocabulary.tokenizer.encode("l")[-1:]
        labels = np.array([label, label, 0, label])
        wrote = subword_text(labels, np.zeros(4), vocabulary)
        assert wrote.labels == [label, label]
        assert [frames.tolist() for frames in wrote.label_frames] == [[0, 3], [1, 3]]
        assert wrote.text == vocabulary.tokenizer.decode(labels).strip()
        assert wrote.text == 2 * vocabulary.tokenizer.decode([label]).strip()

    def test_two_words_of_one_label_share_its_time(self):
        """A tokenizer may have learned a phrase."""

        class Phrases:
            def decode(self, ids, *, skip_special_tokens):
                return "".join({1: "good ", 2: "ni", 3: "ght to", 4: "day"}[i] for i in ids)

        frames = np.array([5, 25, 35, 60]), np.array([9, 29, 44, 64])
        levels = np.where((np.arange(80) % 70) < 5, -90.0, -20.0)
        good, night, today = written_words([1, 2, 3, 4], frames, levels, Phrases(), 0.0)
        assert (good.text, night.text, today.text) == ("good", "night", "today")
        assert good.end <= night.start
        assert night.end == today.start
        assert night.end - night.start == pytest.approx(today.end - today.start)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (
                {"num_beams": 4},
                "num_beams is for models that write token by token, as Granite Speech",
            ),
            ({"temperature": 0.5}, "temperature is for models that write token by token"),
            ({"max_new_tokens": 5}, "max_new_tokens is for models that write token by token"),
            ({"draft_acceptance": 0.1}, "draft_acceptance is for models that write token by token"),
            ({"draft": False}, "draft is for models that write token by token"),
            ({"punctuate": True}, "punctuate: .* these were"),
            ({"keywords": ["Noor"]}, "keywords: .* these were"),
            ({"task": "translate", "target_language": "de"}, "task: .* these were"),
            ({"prompt": "what?"}, "prompt: .* these do: Granite Speech 3.x, "),
            ({"language": "de"}, "language: .* not trained for German; these were: .* 4.1 Plus"),
            ({"language": "it"}, "language: .* not trained for Italian; these were: none"),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("ctc_only", [True, False])
    def test_what_it_cannot_do(self, pair, options, told, ctc_only):
        with pytest.raises(MlxSpeechError) as caught:
            transcribe(LONG, pair, ctc_only=ctc_only, **options)
        assert "\n" not in str(caught.value)
        if not ctc_only:  # there, some contradict each other whatever the model
            assert isinstance(caught.value, UnsupportedOptionError)
            assert caught.match(told)

    def test_what_there_is_not(self, pair):
        with pytest.raises(InputError, match="generate has no argument nonsense"):
            transcribe(LONG, pair, nonsense=1)
        with pytest.raises(InputError, match="generate has no argument nonsense"):
            pair[0].generate(mx.zeros((1, 40, 320)), nonsense=1)

    def test_what_changes_nothing(self, pair):
        file = DATA / "audio" / "flite_08.flac"
        plain = transcribe(file, pair)
        assert plain.text
        for options in ({"ctc_only": True}, {"batch_size": 1}):
            assert transcribe(file, pair, **options) == plain
        assert transcribe(file, pair, language="english").language == "en"
