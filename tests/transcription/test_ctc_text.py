"""What the CTC heads write by themselves: the reference's text, and a few words beside it."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from conftest import DATA, chunks_of, find_recording

from mlx_speech import load_audio
from mlx_speech.audio import open_recording
from mlx_speech.models.granite_speech import pooling
from mlx_speech.processing.request import TranscriptionRequest
from mlx_speech.transcription.alignment import split_words
from mlx_speech.transcription.chunks import ChunkOptions
from mlx_speech.transcription.ctc import CTCVocabulary
from mlx_speech.transcription.ctc_text import CTCText, bpe_text, character_text
from mlx_speech.transcription.granite_speech import GraniteSpeechTranscription
from mlx_speech.transcription.word_errors import word_errors

REFERENCE = json.loads((DATA / "reference" / "tiny_granite_reference.json").read_text())["files"]
RECORDINGS = sorted(REFERENCE)
#: with more than a word in them
SENTENCES = [n for n in RECORDINGS if n.startswith("synthetic/") and "_" in n and "_44k" not in n]


def encoded(tiny, name: str):
    model, processor = tiny
    features = processor.audio_processor.log_mel(load_audio(find_recording(name)))
    return model.encoder(features[None])


def family_drafts(loaded, name: str, **options) -> list[str | None]:
    """Of the chunks of a recording."""
    with open_recording(find_recording(name)) as recording:
        family = GraniteSpeechTranscription(*loaded)
        chunks = chunks_of(family, recording, ChunkOptions(), **options)
        return [chunk.draft and chunk.draft.text for chunk in chunks]


def written(text: str, tokenizer) -> CTCText:
    """By a character head that is sure."""
    vocabulary = CTCVocabulary.of_head(348)
    labels = [vocabulary.label(character) for character in text]
    logits = 100 * mx.eye(348)[mx.array([label for each in labels for label in (each, 0)] or [0])]
    return character_text(logits, vocabulary, tokenizer)


class TestCharacterHead:
    @pytest.mark.parametrize("name", RECORDINGS)
    def test_golden(self, tiny, name):
        vocabulary = CTCVocabulary.of_head(tiny[0].config.encoder_config.output_dim)
        logits = encoded(tiny, name).ctc_logits[0]
        assert character_text(logits, vocabulary, tiny[1].tokenizer).text == REFERENCE[name]["ctc"]

    @pytest.mark.parametrize("said", ["  a  b ", "a\u00ad\x1fb", "ünd アヴ"])
    def test_white_space_and_other_scripts(self, tiny, said):
        """Code points below 256 are labels of their own, also those that are nothing to write."""
        vocabulary = CTCVocabulary.of_head(348)
        labels = [ord(c) if ord(c) < 256 else vocabulary.label(c) for c in said]
        logits = mx.eye(348)[mx.array([label for each in labels for label in (each, each, 0)])]
        kept = "".join(c for c in said if c.isprintable())
        text = character_text(logits, vocabulary, tiny[1].tokenizer)
        assert text.text == " ".join(kept.split())
        assert len(text.word_probabilities()) == len(split_words(text.text))


class TestBPEHead:
    def test_most_sentences_are_right(self, tiny):
        texts = []
        for name in SENTENCES:
            output = encoded(tiny, name)
            frames = output.last_hidden_state[0], output.non_blank[0]
            texts.append(bpe_text(tiny[0], tiny[1].tokenizer, *frames).text)
        said = [REFERENCE[name]["greedy"] for name in SENTENCES]
        assert sum(map(str.__eq__, said, texts)) >= 9
        assert sum(map(word_errors, said, texts)) <= 0.12 * len(" ".join(said).split())

    def test_in_parts_of_bounded_size(self, tiny, monkeypatch):
        model, processor = tiny
        output = encoded(tiny, "synthetic/espeak_04.flac")
        frames = output.last_hidden_state[0], output.non_blank[0]
        whole = bpe_text(model, processor.tokenizer, *frames)
        sizes, logits = [], type(model).bpe_logits

        def record(model, hidden_states, non_blank):
            sizes.append(hidden_states.shape[1])
            return logits(model, hidden_states, non_blank)

        monkeypatch.setattr(type(model), "bpe_logits", record)
        monkeypatch.setattr(pooling, "_GROUPS", 6)
        assert bpe_text(model, processor.tokenizer, *frames).labels == whole.labels
        assert max(sizes) == 24
        assert sum(sizes) == len(frames[0])

    def test_special_tokens_are_not_written(self, tiny):
        """Label i is token i - 1."""
        model, processor = tiny
        tokenizer = processor.tokenizer
        ids = [*tokenizer.encode("lock the"), model.config.audio_token_index]
        ids += [tokenizer.eos_token_id, *tokenizer.encode(" gate")]

        class Model:
            bpe_frames, bpe_blank, bpe_shift = 4, 0, 1

            def bpe_logits(self, hidden_states, non_blank):
                return mx.eye(512)[mx.array([ids]) + 1]

        frames = mx.zeros((4 * len(ids), 1)), mx.zeros(4 * len(ids))
        text = bpe_text(Model(), tokenizer, *frames)
        assert text.text == "lock the gate"
        assert text.labels == ids
        assert len(text.word_probabilities()) == 3


class TestTokens:
    @pytest.mark.parametrize("name", SENTENCES)
    def test_as_the_decoder_writes(self, tiny, name):
        tokenizer, known = tiny[1].tokenizer, REFERENCE[name]
        assert written(known["greedy"], tokenizer).tokens == known["greedy_ids"][:-1]

    def test_what_looks_like_a_special_token(self, tiny):
        model, processor = tiny
        tokenizer = processor.tokenizer
        text = f"lock <|audio|> the{tokenizer.eos_token} gate"
        ids = written(text, tokenizer).tokens
        assert not set(ids) & {model.config.audio_token_index, *tokenizer.all_special_ids}
        assert tokenizer.decode(ids) == text

    def test_nothing(self, tiny):
        assert written("", tiny[1].tokenizer).tokens == []


class TestChunks:
    @pytest.mark.parametrize("name", SENTENCES)
    def test_the_character_heads(self, tiny_without_bpe, name):
        """A recording is encoded as a whole, and so is the reference."""
        found = family_drafts(tiny_without_bpe, name, drafts=True)
        assert " ".join(found) == REFERENCE[name]["ctc"]

    def test_the_bpe_head_comes_first(self, tiny, tiny_without_bpe):
        """Of each chunk's own frames."""
        found = family_drafts(tiny, "synthetic/long.flac", drafts=True, for_alignment=True)
        manifest = map(json.loads, (DATA / "audio" / "manifest.jsonl").read_text().splitlines())
        (joined,) = (row for row in manifest if row["file"] == "long.flac")
        assert len(found) > 20
        assert found != family_drafts(tiny_without_bpe, "synthetic/long.flac", drafts=True)
        assert word_errors(joined["text"], " ".join(found)) < 0.2 * len(joined["text"].split())

    def test_only_where_wanted(self, tiny):
        assert family_drafts(tiny, "synthetic/flite_08.flac") == [None]

    def test_labels_that_nobody_knows(self, tiny_without_bpe, monkeypatch):
        monkeypatch.setattr(CTCVocabulary, "of_head", lambda size: None)
        assert family_drafts(tiny_without_bpe, "synthetic/flite_08.flac", drafts=True) == [None]
        family = GraniteSpeechTranscription(*tiny_without_bpe)
        assert not family.can_draft(TranscriptionRequest())

    @pytest.mark.parametrize(
        ("request_", "of_characters", "of_tokens"),
        [
            (TranscriptionRequest(), True, True),
            (TranscriptionRequest(keywords=["gate"]), True, True),
            (TranscriptionRequest(punctuate=True), False, True),
            (TranscriptionRequest("translate", target_language="fr"), False, False),
        ],
        ids=["plain", "keywords", "punctuated", "translation"],
    )
    def test_what_may_be_drafted(self, tiny, tiny_without_bpe, request_, of_characters, of_tokens):
        assert GraniteSpeechTranscription(*tiny_without_bpe).can_draft(request_) == of_characters
        assert GraniteSpeechTranscription(*tiny).can_draft(request_) == of_tokens
