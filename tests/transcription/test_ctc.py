"""The CTC head: what its labels mean, and where those of a known text lie."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import find_recording
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech import load_audio
from mlx_speech.transcription import ctc
from mlx_speech.transcription.ctc import ANY, BLANK, CTCVocabulary, best_paths, frames_needed

LATIN, KANA = CTCVocabulary.of_head(256), CTCVocabulary.of_head(348)


def reading(labels, path, frames: int) -> list[int]:
    """What stands in each frame of a path: a label or the blank."""
    line = [BLANK] * frames
    for label, first, last in zip(labels, *path, strict=True):
        line[first : last + 1] = [label] * (last + 1 - first)
    return line


def check_order(path, frames: int) -> None:
    first, last = path
    assert (first <= last).all()
    assert (first[1:] > last[:-1]).all()
    assert first[0] >= 0
    assert last[-1] < frames


def score(line, logits) -> float:
    """Of a reading, relative to each frame's best label; `ANY` costs nothing."""
    relative = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return sum(relative[t, label] for t, label in enumerate(line) if label != ANY)


def collapse(line) -> list[int]:
    return [label for label, _ in itertools.groupby(line) if label != BLANK]


def best_score(logits, labels) -> float:
    """Score of the best path, by the recursion as it is written in the paper, state by state."""
    relative = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    states = [BLANK]
    for label in labels:
        states += [label, BLANK]
    best = {0: 0.0, 1: 0.0}
    for t in range(len(logits)):
        following: dict[int, float] = {}
        for s, label in enumerate(states):
            ways = [s] if t == 0 else [s, s - 1]
            if t and label != BLANK and s >= 2 and (label != states[s - 2] or label == ANY):
                ways.append(s - 2)
            reached = [best[w] for w in ways if w in best]
            if reached:
                following[s] = max(reached) + (0.0 if label == ANY else relative[t, label])
        best = following
    return max(best.get(len(states) - 1, -np.inf), best.get(len(states) - 2, -np.inf))


@pytest.mark.parametrize("seed", range(40))
def test_best_of_all_paths(seed):
    """Among all ways to write labels over a few frames, the best that reads as the text."""
    rng = np.random.default_rng(seed)
    frames, size = int(rng.integers(1, 7)), int(rng.integers(2, 5))
    logits = rng.normal(0, 3, (frames, size)).astype(np.float32)
    texts = {tuple(collapse(line)) for line in itertools.product(range(size), repeat=frames)}
    best: dict[tuple, float] = dict.fromkeys(texts, -np.inf)
    for line in itertools.product(range(size), repeat=frames):
        text = tuple(collapse(line))
        best[text] = max(best[text], score(line, logits))
    texts = sorted(texts - {()})
    assert {text for text in texts if frames_needed(text) <= frames} == set(texts)
    paths = best_paths([logits] * len(texts), texts)
    for text, path in zip(texts, paths, strict=True):
        check_order(path, frames)
        line = reading(text, path, frames)
        assert tuple(collapse(line)) == text
        assert score(line, logits) == pytest.approx(best[text], abs=1e-4)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_segments_of_different_lengths(data):
    """Whatever is in a batch: each segment has the best path of the plain float64 recursion."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    texts = data.draw(
        st.lists(
            st.lists(st.sampled_from([ANY, 1, 2, 3, 4]), min_size=1, max_size=12),
            min_size=1,
            max_size=5,
        )
    )
    spare = [data.draw(st.integers(0, 30)) for _ in texts]
    spread = data.draw(st.sampled_from([0.0, 0.1, 3.0, 30.0]))
    lengths = [frames_needed(text) + more for text, more in zip(texts, spare, strict=True)]
    logits = [rng.normal(0, spread, (n, 5)).astype(np.float32) for n in lengths]
    paths = best_paths(logits, texts)
    for text, path, own in zip(texts, paths, logits, strict=True):
        check_order(path, len(own))
        line = reading(text, path, len(own))
        found = score(line, own)
        assert found == pytest.approx(best_score(own, text), rel=1e-5, abs=1e-3)
        for i in range(1, len(text)):
            if text[i] == text[i - 1] != ANY:
                assert path[0][i] > path[1][i - 1] + 1


@pytest.mark.parametrize("vocabulary", [LATIN, KANA])
def test_characters_are_the_inverse_of_labels(vocabulary):
    written = {label: vocabulary.character(label) for label in range(vocabulary.size)}
    together = vocabulary.decode(range(vocabulary.size), skip_special_tokens=True)
    assert together == "".join(written.values())
    assert [written[label] for label in (BLANK, 10, 127, 0xAD)] == [""] * 4
    kept = {label: character for label, character in written.items() if character}
    assert all(vocabulary.label(character) == label for label, character in kept.items())
    # without two blocks of control characters, delete, no-break space and soft hyphen
    assert len(kept) == vocabulary.size - 2 * 32 - 3


def test_batches_are_as_one_by_one(monkeypatch):
    """However many segments are put through at once."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 30, n).tolist() for n in (1, 40, 7, 25, 25, 3)]
    logits = [rng.normal(0, 5, (n, 30)).astype(np.float32) for n in (9, 120, 200, 77, 300, 3000)]
    together = best_paths(logits, texts)
    monkeypatch.setattr(ctc, "_BATCH_BYTES", 1)
    alone = best_paths(logits, texts)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)


def test_impossible_posteriors():
    """A posterior of exactly zero for every letter still gives each letter its place."""
    logits = np.full((20, 256), -np.inf, np.float32)
    logits[:, BLANK] = 0
    (path,) = best_paths([logits], [[65, 66, 66, 67]])
    check_order(path, 20)


@pytest.mark.parametrize("name", ["espeak_01", "flite_08", "festival_14", "short"])
def test_greedy_text_of_the_reference(tiny, reference, name):
    """The greedy text is that of the reference implementation."""
    model, processor = tiny
    name = f"synthetic/{name}." + ("wav" if name == "short" else "flac")
    features = processor.audio_processor.log_mel(load_audio(find_recording(name)))
    logits = model.encoder(features[None]).ctc_logits[0]
    best = [label for label, _ in itertools.groupby(logits.argmax(axis=-1).tolist())]
    assert "".join(map(chr, filter(None, best))).strip() == reference["files"][name]["ctc"]


def test_heads_without_a_vocabulary():
    assert CTCVocabulary.of_head(42) is None
    assert CTCVocabulary.of_head(100353) is None
    assert CTCVocabulary.of_head(256).size == 256
    assert CTCVocabulary.of_head(348).size == 348


@pytest.mark.parametrize(
    ("vocabulary", "word", "expected"),
    [
        (LATIN, "Hello,", [ord(c) for c in "hello"]),
        (LATIN, "ÉTÉ!", [0xE9, ord("t"), 0xE9]),
        (LATIN, "e\u0301te\u0301", [0xE9, ord("t"), 0xE9]),
        (LATIN, "ő-é", [ord("o"), 0xE9]),
        (LATIN, "ﬁn", [ord(c) for c in "fin"]),
        (LATIN, "1984", [ANY]),
        (LATIN, "1,984", [ANY]),
        (LATIN, "A320neo", [ord("a"), ANY, *map(ord, "neo")]),
        (LATIN, "5%", [ANY]),
        (LATIN, "—", [ANY]),
        (LATIN, "مرحبا", [ANY]),
        (LATIN, "İz", [ord("i"), ord("z")]),
        (LATIN, "カ", [ANY]),
        (LATIN, "\x07", [ANY]),
        (KANA, "カ", [256 + 0x30AB - 0x30A1]),
        (KANA, "か", [256 + 0x30AB - 0x30A1]),
        (KANA, "か\u3099", [256 + 0x30AC - 0x30A1]),
        (KANA, "ｶﾞ", [256 + 0x30AC - 0x30A1]),
        (KANA, "ァー", [256, 347]),
        (KANA, "・", [ANY]),
        (KANA, "日", [ANY]),
    ],
)
def test_labels(vocabulary, word, expected):
    assert vocabulary.labels(word) == expected


def test_labels_are_code_points():
    for vocabulary in (LATIN, KANA):
        characters = [*range(256), *range(0x30A1, 0x30A1 + vocabulary.size - 256)]
        known = [n for n, code in enumerate(characters) if vocabulary.label(chr(code)) == n]
        assert vocabulary.size - len(known) == 67  # the blank, control characters, two odd spaces
    assert LATIN.label("カ") is None
    assert KANA.label("\u30fd") is None


@given(st.text(max_size=20))
def test_every_word_has_labels(word):
    for vocabulary in (LATIN, KANA):
        labels = vocabulary.labels(word)
        assert labels
        assert all(0 < label < vocabulary.size or label == ANY for label in labels)
