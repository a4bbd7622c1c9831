"""Chunks decoded as the continuation of what was before: what a prompt has, and who speaks."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import takewhile

import mlx.core as mx
import pytest
from conftest import DATA, chunks_of, find_recording
from scripted import Script
from small_plus import make_plus

from mlx_speech import ContextLengthError, InputError, UnsupportedOptionError, load
from mlx_speech.audio import open_recording
from mlx_speech.generation.api import prefill
from mlx_speech.processing.request import TranscriptionRequest
from mlx_speech.transcription import windows
from mlx_speech.transcription.chunks import ChunkOptions
from mlx_speech.transcription.family import Decoding
from mlx_speech.transcription.granite_speech import GraniteSpeechTranscription
from mlx_speech.transcription.speakers import SpeakerDecoder
from mlx_speech.transcription.tag_decoder import TimeTagDecoder
from mlx_speech.transcription.windows import WindowDecoder

LONG = DATA / "audio" / "long.flac"
TURNS = ("one two three four", "what is it")


@pytest.fixture(scope="module")
def plus(tmp_path_factory):
    """(model, processor) of the small Plus."""
    return load(make_plus(tmp_path_factory.mktemp("plus") / "plus"), dtype=mx.float32)


@pytest.fixture(scope="module")
def family(plus):
    return GraniteSpeechTranscription(*plus)


@pytest.fixture(scope="module")
def chunks(family):
    """The first ones of a recording, of 1.8 to 3.6 s each."""
    options = ChunkOptions(9, 0.4)
    found = chunks_of(family, open_recording(LONG), options, for_alignment=True)
    return [chunk for chunk, _ in zip(found, range(12), strict=False)]


@pytest.fixture
def decoder(plus, family):
    """What makes one of a kind, with answers or with the model's own."""

    def make(kind, answers=None, request=TranscriptionRequest(), **changes):
        options = changes.pop("options", {})
        if answers is not None:
            options = {"logits_processor": Script(plus[1].tokenizer, answers), **options}
        made = kind(*plus, family, Decoding(request, options, **changes))
        return made, options.get("logits_processor")

    return make


def decoded(decoder, chunks, batch_size=8):
    return [segments for part in decoder.decode(iter(chunks), batch_size) for _, segments in part]


def audio_tokens(prompt: str) -> int:
    return prompt.count("<|audio|>")


def answers_from(prompt: str) -> str:
    """How the answer to a prompt begins."""
    return prompt.split("assistant<|end_of_role|>")[1]


class TestContinuation:
    def test_all_audio_and_text_so_far(self, decoder, chunks):
        made, script = decoder(WindowDecoder, ["one", "two", "three"])
        texts = [segment.text for (segment,) in decoded(made, chunks[:3])]
        assert texts == ["one", "two", "three"]
        assert list(map(answers_from, script.prompts)) == ["", "one", "one two"]
        sizes = [len(chunk.audio) for chunk in chunks[:3]]
        assert list(map(audio_tokens, script.prompts)) == [sum(sizes[:n]) for n in (1, 2, 3)]

    def test_equal_to_whole_prompts(self, plus, decoder, chunks):
        """The cache has what a prompt without one computes anew."""
        model, processor = plus
        made, _ = decoder(WindowDecoder, options={"max_new_tokens": 12})
        found = [segment.tokens for (segment,) in decoded(made, chunks[:4])]
        text, expected = "", []
        for count in range(1, 5):
            audio = mx.concatenate([chunk.audio for chunk in chunks[:count]])
            prompt = processor.speech_prompt(
                "can you transcribe the speech into a written format?", text
            )
            inputs = processor.audio_inputs([audio], prompt)
            output = model.generate(**inputs, max_new_tokens=12)[0].tolist()
            answer = [t for t in output[inputs["input_ids"].shape[1] :] if t != 0]
            expected.append(answer)
            said = processor.decode(answer, skip_special_tokens=True).strip()
            text = f"{text} {said}".strip()
        assert found == expected
        assert any(len(tokens) > 3 for tokens in found)

    def test_only_what_is_new_is_fed(self, plus, decoder, chunks, monkeypatch):
        model, _ = plus
        fed = []
        prefill = type(model).prefill

        def spy(self, input_ids, cache, **inputs):
            fed.append((input_ids.shape[1], inputs["audio_features"].shape[1]))
            return prefill(self, input_ids, cache, **inputs)

        monkeypatch.setattr(type(model), "prefill", spy)
        made, script = decoder(WindowDecoder, ["one", "two", "three"])
        decoded(made, chunks[:3])
        assert [audio for _, audio in fed] == [len(chunk.audio) for chunk in chunks[:3]]
        behind = re.compile(r"<\|audio\|>(?!<\|audio\|>).*", re.DOTALL)
        rest = [len(made.tokenizer.encode(behind.search(p)[0])) - 1 for p in script.prompts]
        assert [ids - audio for ids, audio in fed][1:] == rest[1:]

    def test_other_strategies(self, decoder, chunks):
        """Beams have caches of their own; what they do not leave is fed again."""
        by_beams, _ = decoder(WindowDecoder, options={"num_beams": 2, "max_new_tokens": 8})
        assert len(decoded(by_beams, chunks[:3])) == 3
        assert by_beams._window.held == 0
        quantized, _ = decoder(
            WindowDecoder, ["one", "two"], options={"kv_bits": 8, "kv_group_size": 32}
        )
        assert [s.text for (s,) in decoded(quantized, chunks[:2])] == ["one", "two"]

    def test_another_attempt(self, decoder, chunks):
        loop = "one two " * 30
        made, script = decoder(WindowDecoder, ["first", loop, loop, "second", "third"])
        (first,), (second,), (third,) = decoded(made, chunks[:3])
        assert [s.text for s in (first, second, third)] == ["first", "second", "third"]
        assert [s.retried for s in (first, second, third)] == [False, True, False]
        assert list(map(answers_from, script.prompts[1:])) == [*["first"] * 3, "first second"]

    def test_a_text_to_go_on_with(self, decoder, chunks):
        """It may reach beyond the first chunk."""
        request = TranscriptionRequest(prefix_text="well then")
        made, script = decoder(WindowDecoder, ["", "so"], request)
        assert [segment.text for (segment,) in decoded(made, chunks[:2])] == ["", "so"]
        assert list(map(answers_from, script.prompts)) == ["well then", "well then"]

    def test_only_the_answer_can_repeat_itself(self, decoder, chunks):
        """A penalty of repetition is not for the words and tags before: all would be unlikely."""
        request = TranscriptionRequest(prefix_text="one two")
        made, _ = decoder(WindowDecoder, request=request, options={"repetition_penalty": 1.5})
        run = prefill(made.model, **made._arguments(chunks[:1], made.options)[0])
        said = mx.concatenate([run.prompt, mx.array([[7, 8]])], axis=1)
        scores = mx.ones((1, 1000))
        for process in run.processors:
            scores = process(said, scores)
        assert [i for i, score in enumerate(scores[0].tolist()) if score != 1] == [7, 8]

    def test_a_limit_on_the_whole_length(self, decoder, chunks):
        """It ends a window, and not the recording."""
        made, script = decoder(WindowDecoder, ["one"] * 6, options={"max_length": 200})
        assert [s.text for (s,) in decoded(made, chunks[:6])] == ["one"] * 6
        assert list(map(answers_from, script.prompts))[:4] == ["", "one", "one one", ""]

    def test_nothing_said_so_far_is_nothing_to_go_on_with(self, decoder, chunks):
        made, script = decoder(WindowDecoder, ["", "one", "", "two"])
        decoded(made, chunks[:4])
        sizes = [len(chunk.audio) for chunk in chunks[:4]]
        expected = [sizes[0], sizes[1], sum(sizes[1:3]), sum(sizes[1:4])]
        assert list(map(audio_tokens, script.prompts)) == expected

    def test_a_text_that_is_too_long(self, decoder, chunks):
        made, _ = decoder(WindowDecoder, [], TranscriptionRequest(prefix_text="one " * 2000))
        with pytest.raises(ContextLengthError, match="give a shorter prefix_text"):
            decoded(made, chunks[:1])

    def test_a_bounded_cache_is_refused(self, decoder):
        with pytest.raises(InputError, match="max_kv_size would forget"):
            decoder(WindowDecoder, options={"max_kv_size": 100})


class TestSpeakers:
    def test_turns_are_segments(self, decoder, chunks):
        answer = f"[Speaker 1]: {TURNS[0]} [Speaker 2]: {TURNS[1]}"
        made, _ = decoder(SpeakerDecoder, [answer], word_timestamps=True)
        ((first, second),) = decoded(made, chunks[:1])
        assert [(s.speaker, s.text) for s in (first, second)] == [(1, TURNS[0]), (2, TURNS[1])]
        assert chunks[0].start <= first.start < first.end <= second.start < second.end
        assert [w.text for w in first.words] == TURNS[0].split()
        assert (first.start, first.end) == (first.words[0].start, first.words[-1].end)
        assert all(0 < w.probability <= 1 for w in first.words + second.words)
        tokens = first.tokens + second.tokens
        assert made.tokenizer.decode(tokens, skip_special_tokens=True).strip() == answer
        said = made.tokenizer.decode(second.tokens, skip_special_tokens=True)
        assert said.strip() == f"[Speaker 2]: {TURNS[1]}"
        assert type(first).__name__ == "Segment"

    def test_no_words_unless_asked_for(self, decoder, chunks):
        made, _ = decoder(SpeakerDecoder, [f"[Speaker 1]: {TURNS[0]}"])
        (((segment,)),) = decoded(made, chunks[:1])
        assert segment.words == []
        assert segment.end - segment.start < chunks[0].end - chunks[0].start + 1e-6

    def test_a_turn_goes_on_in_the_next_chunk(self, decoder, chunks):
        answers = ["[Speaker 1]: one [Speaker 2]: two", "three [Speaker 3]: four", "[speaker 9] x"]
        made, script = decoder(SpeakerDecoder, answers)
        found = decoded(made, chunks[:3])
        said = [[(s.speaker, s.text) for s in segments] for segments in found]
        assert said == [[(1, "one"), (2, "two")], [(2, "three"), (3, "four")], [(9, "x")]]
        remarks = [[s.remarks for s in segments] for segments in found]
        assert remarks == [[[], []], [[], []], [["speaker 9 is named after 3 speakers"]]]
        expected = "[Speaker 1]: one [Speaker 2]: two three [Speaker 3]: four"
        assert answers_from(script.prompts[2]) == expected

    def test_broken_tags_do_not_reach_the_next_prompt(self, decoder, chunks):
        made, script = decoder(SpeakerDecoder, ["[SPEAKER1] one [Spea", "two"])
        first, second = decoded(made, chunks[:2])
        assert [s.text for s in first + second] == ["one", "two"]
        assert first[0].remarks == ["the tag '[Spea' is cut off"]
        assert answers_from(script.prompts[1]) == "[Speaker 1]: one"

    def test_a_chunk_without_words(self, decoder, chunks):
        made, _ = decoder(SpeakerDecoder, ["", "[Speaker 1]:", "[Speaker 1]: one"])
        found = decoded(made, chunks[:3])
        assert [[s.text for s in segments] for segments in found] == [[""], [""], ["one"]]
        assert found[1][0].remarks == ["speaker 1 is named and says nothing"]

    def test_a_known_beginning(self, decoder, chunks):
        request = TranscriptionRequest(prefix_text="[Speaker 1]: a [Speaker 2]: b")
        made, _ = decoder(SpeakerDecoder, ["c [Speaker 3]: d"], request)
        (segments,) = decoded(made, chunks[:1])
        assert [(s.speaker, s.text, s.remarks) for s in segments] == [(2, "c", []), (3, "d", [])]

    def test_a_known_beginning_that_ends_with_a_tag(self, decoder, chunks):
        request = TranscriptionRequest(prefix_text="[Speaker 1]: a [Speaker 2]: ")
        made, script = decoder(SpeakerDecoder, ["b", "c"], request)
        said = [(s.speaker, s.text) for part in decoded(made, chunks[:2]) for s in part]
        assert said == [(2, "b"), (2, "c")]
        assert answers_from(script.prompts[1]) == "[Speaker 1]: a [Speaker 2]: b"

    def test_more_speakers_than_there_is_room_for(self, decoder, chunks, monkeypatch):
        """Those who spoke last are introduced, the others told of."""
        monkeypatch.setattr(windows, "LONGEST_SECONDS", 12.0)
        numbers = [1, 2, 3, 4, 5, 6, 1, 7, 8, 9, 10, 11]
        answers = [f"[Speaker {n}]: {TURNS[0]}" for n in numbers]
        made, script = decoder(SpeakerDecoder, answers)
        found = decoded(made, chunks)
        again = [
            (index, [int(n) for n in re.findall(r"Speaker (\d+)", answers_from(prompt))])
            for index, prompt in enumerate(script.prompts)
            if found[index][0].remarks
        ]
        assert again
        for index, introduced in again:
            latest = sorted(list(dict.fromkeys(numbers[:index][::-1]))[:4])
            assert introduced == latest
            assert "no reference of speaker" in found[index][0].remarks[0]

    def test_full_windows_begin_with_references(self, plus, decoder, chunks, monkeypatch):
        """A few seconds of each speaker, so that numbers stay."""
        monkeypatch.setattr(windows, "LONGEST_SECONDS", 12.0)
        answers = [f"[Speaker {n}]: {TURNS[0]} [Speaker {3 - n}]: {TURNS[1]}" for n in (1, 2) * 6]
        made, script = decoder(SpeakerDecoder, answers)
        found = decoded(made, chunks)
        said = [[(s.speaker, s.text) for s in segments] for segments in found]
        assert said == [[(n, TURNS[0]), (3 - n, TURNS[1])] for n in (1, 2) * 6]
        assert not any(segment.remarks for segments in found for segment in segments)
        sizes = list(map(audio_tokens, script.prompts))
        assert max(sizes) <= 120
        begun = [i for i in range(1, len(sizes)) if sizes[i] < sizes[i - 1]]
        assert len(begun) >= 2
        for index in begun:
            own = len(chunks[index].audio)
            extra = sizes[index] - own
            assert extra % 3 == 0
            assert 6 <= extra <= 60
            start = answers_from(script.prompts[index])
            assert re.fullmatch(r"\[Speaker 1\]: [a-z ]+ \[Speaker 2\]: [a-z ]+", start)

    def test_references_are_what_was_said(self, decoder, chunks):
        made, _ = decoder(SpeakerDecoder, [f"[Speaker 1]: {TURNS[0]}"], word_timestamps=True)
        ((segment,),) = decoded(made, chunks[:1])
        reference = made._references[1]
        first = next(
            i
            for i in range(0, len(chunks[0].audio), 3)
            if mx.array_equal(chunks[0].audio[i : i + len(reference.audio)], reference.audio).item()
        )
        start, end = (chunks[0].begin + n / 10 for n in (first, first + len(reference.audio)))
        assert segment.start <= start < end <= segment.end + 1e-6
        inside = [w.text for w in segment.words if start <= (w.start + w.end) / 2 < end]
        assert reference.text == " ".join(inside)

    def test_who_has_said_too_little_is_told_of(self, decoder, chunks, monkeypatch):
        monkeypatch.setattr(windows, "LONGEST_SECONDS", 4.0)
        request = TranscriptionRequest(prefix_text="[Speaker 1]: a [Speaker 2]: b")
        made, _ = decoder(SpeakerDecoder, ["[Speaker 1]: one two", "[Speaker 1]: one"], request)
        _, (segment,) = decoded(made, chunks[:2])
        assert segment.remarks == ["no reference of speaker 2, who may be numbered anew"]

    def test_streaming(self, decoder, chunks):
        answers = [
            f"[Speaker 1]: {TURNS[0]} and so on [Speaker 2]: {TURNS[1]}",
            f"three [SPEAKER 1] {TURNS[1]}",
        ]
        whole = [
            s
            for segments in decoded(decoder(SpeakerDecoder, answers)[0], chunks[:2])
            for s in segments
        ]
        made, _ = decoder(SpeakerDecoder, answers)
        deltas = [
            delta
            for chunk, gap in zip(chunks, ("", " "), strict=False)
            for delta in made.stream(chunk, gap)
        ]
        assert [delta.segment for delta in deltas if delta.segment] == whole
        text = "".join(delta.text for delta in deltas)
        assert text == " ".join(segment.text for segment in whole)
        assert "[" not in text
        before = list(takewhile(lambda delta: delta.segment is None, deltas))
        assert len(before) > 3
        assert {delta.speaker for delta in before} == {1}

    def test_it_needs_a_head_that_is_known(self, plus, family, monkeypatch):
        monkeypatch.setattr(family, "ctc_vocabulary", None)
        with pytest.raises(UnsupportedOptionError, match="speakers needs an encoder with a CTC"):
            SpeakerDecoder(*plus, family, Decoding())

    def test_drafts_have_no_tags(self, decoder):
        assert not decoder(SpeakerDecoder)[0].drafting
        with pytest.raises(UnsupportedOptionError, match="draft_acceptance is for drafts"):
            decoder(SpeakerDecoder, options={"draft_acceptance": 0.5})


class TestTimes:
    def test_words_have_the_times_of_their_tags(self, decoder, chunks):
        made, script = decoder(TimeTagDecoder, ["hello [T:45] world [T:82] _ [T:150]"])
        chunk = replace(chunks[1], ctc_logits=None)
        ((segment,),) = decoded(made, [chunk])
        assert segment.text == "hello world"
        times = [(w.start - chunk.begin, w.end - chunk.begin) for w in segment.words]
        assert times == [pytest.approx((0, 0.45)), pytest.approx((0.45, 0.82))]
        assert all(0 < w.probability <= 1 for w in segment.words)
        assert "Timestamps: Transcribe" in script.prompts[0]
        assert made.vocabulary is None

    def test_irregular_ones_are_told(self, decoder, chunks):
        made, _ = decoder(TimeTagDecoder, ["hello [T:45] world"])
        ((segment,),) = decoded(made, chunks[:1])
        assert segment.remarks == ["the last words have no time"]

    def test_streaming(self, decoder, chunks):
        made, _ = decoder(TimeTagDecoder, ["hello [T:45] my [T:60] world [T:82] _ [T:150]"])
        deltas = list(made.stream(chunks[0], " "))
        assert "".join(delta.text for delta in deltas) == " hello my world"
        assert len([delta for delta in deltas if delta.text]) > 1
        assert [w.text for w in deltas[-1].segment.words] == ["hello", "my", "world"]

    def test_longest_chunks(self, plus, decoder, monkeypatch):
        """What the model was made for, or what its context holds."""
        assert decoder(TimeTagDecoder)[0].longest_chunk == pytest.approx(874 / 26)
        monkeypatch.setattr(type(plus[0]), "context_length", 16384)
        assert decoder(TimeTagDecoder)[0].longest_chunk == 210
        assert decoder(WindowDecoder)[0].longest_chunk == 540

    def test_of_speakers(self, plus, family, decoder, chunks):
        """In two passes: the words of the one go into the turns of the other by their times."""
        script = Script(
            plus[1].tokenizer,
            [
                f"[Speaker 1]: {TURNS[0]} [Speaker 2]: {TURNS[1]}",
                "one [T:30] too [T:60] tree [T:90] [T: _ [T:300] it [T:330]",
            ],
        )
        options = {"logits_processor": script}
        how = Decoding(options=options, word_timestamps="tags", speakers=True)
        made = family.decoder(how)
        ((first, second),) = decoded(made, chunks[:1])
        assert [w.text for w in first.words] == ["one", "too", "tree"]
        assert [w.text for w in second.words] == ["it"]
        assert first.text == TURNS[0]
        assert first.remarks == ["the tag '[T:' has no time"]
        assert made.longest_chunk == pytest.approx(874 / 26)

    def test_of_speakers_cut_off(self, plus, family, decoder, chunks):
        answers = ["[Speaker 1]: one two", " ".join(f"one [T:{30 * n}]" for n in range(1, 9))]
        script = Script(plus[1].tokenizer, answers)
        options = {"logits_processor": script, "max_new_tokens": 30}
        made = family.decoder(Decoding(options=options, word_timestamps="tags", speakers=True))
        ((segment,),) = decoded(made, chunks[:1])
        assert not segment.truncated
        assert 0 < len(segment.words) < 8
        assert segment.remarks[-1] == "the answer with the times of words is cut off"


def test_the_small_plus_hears_what_it_was_not_told(plus, family):
    """A real continuation: the words of the beginning are not said again."""
    recording = open_recording(find_recording("synthetic/flite_08.flac"))
    (chunk, *_) = chunks_of(family, recording, ChunkOptions())
    for prefix, rest in (("", "unlock the back gate"), ("unlock the", "back gate")):
        request = TranscriptionRequest(prefix_text=prefix)
        made = family.decoder(Decoding(request))
        assert [s.text for (s,) in decoded(made, [chunk])] == [rest]
