"""When each word was said, and how sure of it the decoder was."""

from __future__ import annotations

import itertools
import json
import math

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, TINY, find_recording
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import LLAMA_MODEL, save

from mlx_speech import InputError, LlamaTokenizer, load_audio
from mlx_speech.processing.tokenizer import Tokenizer
from mlx_speech.transcription.alignment import (
    align_words,
    frame_levels,
    split_words,
    token_spans,
    word_probabilities,
)
from mlx_speech.transcription.ctc import CTCVocabulary

LATIN, KANA = CTCVocabulary.of_head(256), CTCVocabulary.of_head(348)


def words_of(text: str) -> list[str]:
    return [text[start:end] for start, end in split_words(text)]


def peaks(line: str, size: int = 256, height: float = 12.0) -> np.ndarray:
    """Logits of a head that hears one character of `line` in each frame, `.` for nothing."""
    labels = [0 if c == "." else ord(c) for c in line]
    return height * np.eye(size, dtype=np.float32)[labels]


def loudness(line: str) -> np.ndarray:
    """`#` is loud, anything else silent."""
    return np.array([-20.0 if c == "#" else -90.0 for c in line], np.float32)


def align(text: str, heard: str, loud: str, vocabulary=LATIN, start: float = 0.0):
    """Words with their times in frames."""
    assert len(heard) == len(loud)
    logits = peaks(heard, vocabulary.size)
    (words,) = align_words([text], [logits], [loudness(loud)], vocabulary, [start])
    return [(w.text, round(w.start * 50, 3), round(w.end * 50, 3)) for w in words]


class TestSplitWords:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", []),
            (" \n", []),
            (" open the  gate.\n", ["open", "the", "gate."]),
            ("Don't — stop!", ["Don't", "—", "stop!"]),
            ("今日は、元気。", ["今", "日", "は、", "元", "気。"]),
            ("「日本」へ go(now)", ["「日", "本」", "へ", "go(now)"]),
            ("カ\u3099ー ｶﾞ", ["カ\u3099", "ー", "ｶﾞ"]),
            ("葛\U000e0100飾iPhone版", ["葛\U000e0100", "飾", "iPhone", "版"]),
            ("e\u0301te\u0301 नमस्ते", ["e\u0301te\u0301", "नमस्ते"]),
            ("السَّلامُ عليكم؟", ["السَّلامُ", "عليكم؟"]),
            ("안녕 하세요", ["안녕", "하세요"]),
        ],
    )
    def test_scripts(self, text, words):
        assert words_of(text) == words

    @given(st.text(st.characters() | st.sampled_from("「」日本カー、。a b\n\u3000"), max_size=30))
    def test_nothing_but_white_space_between(self, text):
        end, joined = 0, ""
        for first, last in split_words(text):
            assert end <= first < last
            assert not text[end:first].strip()
            assert not any(c.isspace() for c in text[first:last])
            joined += text[end:first] + text[first:last]
            end = last
        assert joined + text[end:] == text
        assert not text[end:].strip()


class TestWordTimes:
    def errors(self, tiny, names, folder):
        """Differences from the true times of starts and of ends, in seconds."""
        model, processor = tiny
        lines = (folder / "manifest.jsonl").read_text().splitlines()
        manifest = {line["file"]: line for line in map(json.loads, lines)}
        arguments, truth = [], []
        for name in names:
            line = manifest[name.split("/")[1]]
            samples = load_audio(find_recording(name))
            features = processor.audio_processor.log_mel(samples)
            logits = model.encoder(features[None]).ctc_logits[0]
            arguments.append((line["text"], logits, frame_levels(samples, len(logits))))
            truth.append(line["words"])
        texts, logits, levels = zip(*arguments, strict=True)
        found = align_words(texts, logits, levels, LATIN, [0.0] * len(texts))
        pairs = [
            pair
            for words, known in zip(found, truth, strict=True)
            for pair in zip(words, known, strict=True)
        ]
        assert all(word.text == known[0] for word, known in pairs)
        starts = np.array([word.start - known[1] for word, known in pairs])
        ends = np.array([word.end - known[2] for word, known in pairs])
        return abs(starts), abs(ends)

    def test_synthetic_recordings(self, tiny):
        names = [f"synthetic/festival_{n}.flac" for n in (12, 13, 14, 15)]
        for errors in self.errors(tiny, names, DATA / "audio"):
            assert len(errors) == 31
            assert np.median(errors) <= 0.06
            assert np.quantile(errors, 0.95) <= 0.15

    def test_human_recordings(self, tiny):
        """The true ends are those of files that digits were cut from, and fade out."""
        names = [f"human/human_{n}.flac" for n in range(16, 22)]
        folder = find_recording(names[0]).parent
        starts, ends = self.errors(tiny, names, folder)
        assert len(starts) == 35
        assert np.median(starts) <= 0.06
        assert np.quantile(starts, 0.95) <= 0.15
        assert np.median(ends) <= 0.06
        assert np.quantile(ends, 0.9) <= 0.15

    def test_in_noise(self, tiny):
        """White noise 20 dB below the speech."""
        model, processor = tiny
        line = json.loads((DATA / "audio" / "manifest.jsonl").read_text().splitlines()[13])
        samples = load_audio(find_recording("synthetic/festival_13.flac"))
        noise = mx.random.normal(samples.shape, key=mx.random.key(0))
        samples = samples + 0.1 * mx.sqrt(mx.square(samples).mean()) * noise
        logits = model.encoder(processor.audio_processor.log_mel(samples)[None]).ctc_logits[0]
        levels = frame_levels(samples, len(logits))
        (words,) = align_words([line["text"]], [logits], [levels], LATIN, [0.0])
        errors = [abs(w.start - known[1]) for w, known in zip(words, line["words"], strict=True)]
        errors += [abs(w.end - known[2]) for w, known in zip(words, line["words"], strict=True)]
        assert max(errors) <= 0.15

    def test_words_meet_at_the_space(self):
        assert align("ab cd", "..aab. .ccd...", "##############") == [("ab", 0, 6), ("cd", 6, 14)]

    def test_a_pause_lies_between(self):
        """Its sides are the sound's, wherever the head has the letters and the space."""
        expected = [("ab", 2, 8), ("cd", 18, 23)]
        loud = "..######..........#####.."
        assert align("ab cd", "..aab.............. ccd..", loud) == expected
        assert align("ab cd", "..aab. ............ ccd..", loud) == expected
        assert align("ab cd", "..aab............ c.cd...", loud) == expected
        assert align("ab cd", "..aa......b........ccd...", loud) == expected

    def test_the_closure_of_a_consonant_is_no_pause(self):
        found = align("ab to", "..aab. ....to.....", "#######.....######")
        assert found == [("ab", 0, 6), ("to", 6, 18)]

    def test_a_letter_in_the_silence_before(self):
        found = align("ab", "a.................bb..", "...............#####..")
        assert found == [("ab", 15, 20)]

    def test_reach_without_silence(self):
        """Where no pause can be heard, a word ends some time after its last letter."""
        found = align("ab cd", 50 * "." + "ab" + 100 * "." + " cd" + 60 * ".", 215 * "#")
        assert found == [("ab", 30, 72), ("cd", 152, 175)]

    def test_steady_noise_is_quiet(self):
        level = loudness("...######..........######...")
        level[level < -80] = -34.0
        logits = peaks("...aab............. ccd.....")
        (words,) = align_words(["ab cd"], [logits], [level], LATIN, [0.0])
        assert [(w.start, w.end) for w in words] == [(0.06, 0.18), (0.38, 0.5)]

    def test_what_has_no_letter_takes_the_rest(self):
        """A number is said in more letters and words than it is written with."""
        heard = ".in..  ni.ne.teen. ni.ne.ty. .no.."
        found = align("in 1990 no", heard, len(heard) * "#")
        assert [w[0] for w in found] == ["in", "1990", "no"]
        assert found[1][1:] == (5, 28)

    def test_what_has_no_letter_begins_where_the_head_has_some(self):
        """Not where it could: the silence before belongs to nobody."""
        heard = "..aab. " + 60 * "." + "fi.ve" + 60 * "."
        found = align("ab 5", heard, len(heard) * "#")
        assert found[1] == ("5", 67 - 20, 72 + 20)

    def test_other_scripts(self):
        """Kanji side by side share what is heard between the kana, hiragana as katakana."""
        heard = "..トーキョーノ.ハナ..."
        labels = [0 if c == "." else 256 + ord(c) - 0x30A1 for c in heard]
        logits = 12 * np.eye(348, dtype=np.float32)[labels]
        level = loudness("." + 12 * "#" + "." * (len(heard) - 13))
        (words,) = align_words(["東京の花。"], [logits], [level], KANA, [0.0])
        frames = [(w.text, round(w.start * 50, 2), round(w.end * 50, 2)) for w in words]
        assert frames == [("東", 1, 4), ("京", 4, 7), ("の", 7, 8), ("花。", 8, 13)]

    def test_more_letters_than_frames(self):
        found = align("abc defgh", "..a..", "#####")
        assert found == [("abc", 0, 1.667), ("defgh", 2.222, 5)]

    def test_edges(self):
        assert align_words([], [], [], LATIN, []) == []
        assert align("", "....", "....") == []
        assert align(" \n", "....", "....") == []
        assert align("ab cd", "", "") == [("ab", 0, 0), ("cd", 0, 0)]
        assert align("a", ".", ".") == [("a", 0, 1)]
        assert align("ab", "....", "....", start=3.0)[0][1] >= 150
        assert align("—", "....", "####") == [("—", 0, 4)]

    def test_segments_begin_where_they_do(self):
        logits, level = peaks("..aab. .ccd..."), loudness(14 * "#")
        found = align_words(["ab cd"] * 2, [logits] * 2, [level] * 2, LATIN, [0.0, 100.0])
        assert [(w.start + 100, w.end + 100) for w in found[0]] == [w[1:] for w in found[1]]

    @settings(deadline=None, max_examples=150)
    @given(st.data())
    def test_any_text_any_posteriors(self, data):
        """In order, each word once, none overlapping, all within the segment."""
        characters = st.characters() | st.sampled_from("ab  \n日本カかー、1")
        texts = data.draw(st.lists(st.text(characters, max_size=25), max_size=4))
        vocabulary = data.draw(st.sampled_from([LATIN, KANA]))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        lengths = [data.draw(st.integers(0, 80)) for _ in texts]
        spread = data.draw(st.sampled_from([0.0, 1.0, 20.0]))
        steady = data.draw(st.booleans())
        logits = [rng.normal(0, spread, (n, vocabulary.size)).astype(np.float32) for n in lengths]
        levels = [
            rng.choice([-100.0, -60.0, -40.0, -20.0], n) if not steady else np.full(n, -100.0)
            for n in lengths
        ]
        starts = [data.draw(st.floats(0, 36000)) for _ in texts]
        found = align_words(texts, logits, levels, vocabulary, starts)
        for text, words, start, n in zip(texts, found, starts, lengths, strict=True):
            assert [word.text for word in words] == words_of(text)
            times = [t for word in words for t in (word.start, word.end)]
            times = [start, *times, start + n * 0.02]
            assert all(a <= b for a, b in itertools.pairwise(times))


def test_levels():
    """A sine, a steady voltage, silence, and what there is no more of."""
    rate = 16000
    sine = 0.5 * mx.sin(2 * math.pi * 4000 * mx.arange(640) / rate)
    samples = mx.concatenate([sine, mx.full((640,), 0.5), mx.zeros(320), sine[:160]])
    levels = frame_levels(samples, 7)
    assert levels.dtype == np.float32
    assert levels.shape == (7,)
    gain = abs(1 - 0.97 * np.exp(-2j * np.pi * 4000 / rate))
    loud = 20 * math.log10(0.5 / math.sqrt(2) * gain)
    np.testing.assert_allclose(levels[:2], loud, atol=0.1)
    assert levels[3] == pytest.approx(20 * math.log10(0.5 * 0.03), abs=0.01)
    np.testing.assert_allclose(levels[5], loud - 3, atol=0.2)
    assert levels[6] == pytest.approx(-100)
    assert frame_levels(samples, 2).shape == (2,)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(TINY)


class TestWordProbabilities:
    def probabilities(self, tokenizer, text: str) -> list[tuple[str, list[int]]]:
        """Which tokens' probabilities each word's is the product of, found by changing one."""
        tokens = tokenizer.encode(text, add_special_tokens=False)
        text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        found = [(word, []) for word in words_of(text)]
        for i in range(len(tokens)):
            logprobs = [math.log(0.5) if j == i else 0.0 for j in range(len(tokens))]
            values = word_probabilities(text, tokens, logprobs, tokenizer)
            for (_, own), value in zip(found, values, strict=True):
                assert value in (1.0, 0.5)
                own += [i] if value == 0.5 else []
        return found

    def test_tokens_of_each_word(self, tokenizer):
        text = "open the garage gate"
        tokens = tokenizer.encode(text)
        ends = list(
            itertools.accumulate(
                len(tokenizer.decode([token], skip_special_tokens=True)) for token in tokens
            )
        )
        assert ends[-1] == len(text)
        expected = []
        for first, last in split_words(text):
            own = [
                i
                for i, (a, b) in enumerate(itertools.pairwise([0, *ends]))
                if text[max(a, first) : min(b, last)] and a < last and b > first
            ]
            expected.append((text[first:last], own))
        assert self.probabilities(tokenizer, text) == expected

    def test_parts_of_characters(self, tokenizer):
        """Three bytes, three tokens, to each character; the space between counts for neither."""
        tokens = tokenizer.encode("你好 é")
        assert [tokenizer.decode([token], skip_special_tokens=True) for token in tokens] == 6 * [
            "\ufffd"
        ] + [" ", "é"]
        found = self.probabilities(tokenizer, "你好 é")
        assert found == [("你", [0, 1, 2]), ("好", [3, 4, 5]), ("é", [7])]

    def test_byte_tokens_of_llama(self, tmp_path):
        """Where an unfinished run of bytes makes `decode` give up the finished ones, too."""
        save(tmp_path, "llama", None, add_bos_token=False)
        assert LLAMA_MODEL.exists()
        tokenizer = LlamaTokenizer.from_pretrained(tmp_path)
        text = "the 鿋鿌 dog"
        tokens = tokenizer.encode(text)
        pieces = tokenizer.convert_ids_to_tokens(tokens)
        at = [i for i, piece in enumerate(pieces) if piece.startswith("<0x")]
        assert len(at) == 6
        found = dict(self.probabilities(tokenizer, text))
        assert found["鿋"] == at[:3]
        assert found["鿌"] == at[3:]
        assert all(not set(own) & set(at) for word, own in found.items() if word in ("the", "dog"))

    @given(data=st.data())
    def test_any_tokens(self, tokenizer, data):
        """As decoding all of them up to each tells it."""
        tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40))
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        expected, done = [], 0
        for count in range(1, len(tokens) + 1):
            so_far = tokenizer.decode(tokens[:count], skip_special_tokens=True)
            pairs = zip(so_far, text, strict=False)
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
            start, done = done, max(done, len(list(same)))
            expected.append([start, done + (len(so_far) > done)])
        shift = len(text) - len(text.lstrip())
        found = token_spans(text.lstrip(), tokens, tokenizer) + shift
        assert found.tolist() == expected

    def test_white_space_before(self, tokenizer):
        assert self.probabilities(tokenizer, "\r\r0 1")[0] == ("0", [2])

    def test_special_token_within_a_word(self, tokenizer):
        first, *rest = tokenizer.encode("gate")
        assert rest
        tokens = [first, tokenizer.eos_token_id, *rest]
        (value,) = word_probabilities("gate", tokens, [-1, -9, *[0] * len(rest)], tokenizer)
        assert value == pytest.approx(math.exp(-1))

    def test_special_tokens_and_what_comes_after(self, tokenizer):
        """The end token, and a text cut off before a stop string, though more was said."""
        tokens = tokenizer.encode(" open the gate")
        special = tokenizer.eos_token_id
        logprobs = [-0.1] * len(tokens)
        full = word_probabilities("open the gate", tokens, logprobs, tokenizer)
        ended = word_probabilities("open the gate", [*tokens, special], [*logprobs, -9], tokenizer)
        assert ended == full
        assert word_probabilities("open the", tokens, logprobs, tokenizer) == full[:2]
        assert word_probabilities(" open the ", tokens, logprobs, tokenizer) == full[:2]

    def test_product(self, tokenizer):
        tokens = tokenizer.encode("gate")
        values = word_probabilities("gate", tokens, [-0.25] * len(tokens), tokenizer)
        assert values == [pytest.approx(math.exp(-0.25 * len(tokens)))]
        assert len(tokens) > 1

    def test_nothing_said(self, tokenizer):
        assert word_probabilities("", [], [], tokenizer) == []

    def test_another_text(self, tokenizer):
        with pytest.raises(InputError, match=r"the tokens say 'open', not 'close'"):
            word_probabilities("close", tokenizer.encode("open"), [0.0] * 9, tokenizer)

    @settings(deadline=None, max_examples=60)
    @given(text=st.text(st.characters(codec="utf-8") | st.sampled_from("abc 日"), max_size=12))
    def test_any_text(self, tokenizer, text):
        """Every token that can be read alone counts for a word, those of white space apart."""
        found = self.probabilities(tokenizer, text)
        counted = [i for _, own in found for i in own]
        assert all(own for _, own in found)
        assert all(a <= b for a, b in itertools.pairwise(counted))
        for i, token in enumerate(tokenizer.encode(text)):
            alone = tokenizer.decode([token], skip_special_tokens=True).strip()
            if alone and "\ufffd" not in alone:
                assert i in counted
