"""What a CTC head's labels stand for, and where the labels of a known text lie in time."""

import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from ..models.conformer import BLANK
from ..processing.parakeet_tokenizer import ParakeetTokenizer

SPACE = ord(" ")  #: label of what is between words, where the vocabulary is known
ANY = -1  #: stands in a sequence of labels for sound that no label can be named for
LabelFrames = tuple[np.ndarray, np.ndarray]  #: first and last frame of each of n labels, (n,) each

_KATAKANA = 0x30A1
#: the lowest score that a frame has for a label, relative to its best one: as good as never, and a
#: whole recording of it is still a float32 of fair precision
_NEVER = -1000.0
_BATCH_BYTES = 64 * 2**20  #: bytes that a batch of `best_paths` may take, if it is not one segment


@dataclass(frozen=True)
class CTCVocabulary:
    """Characters of a Granite Speech CTC head.

    Labels 1 to 255 are the characters with that code point (Latin-1), those from 256 on katakana
    from U+30A1 on. What the heads write is lower case without punctuation.

    Args:
        size: number of labels, the blank included.
    """

    size: int

    @classmethod
    def of_head(cls, output_dim: int) -> Self | None:
        """The vocabulary of a head of that many labels; None where it is not known: so with the 42
        of Granite Speech 3.2, whose order nobody has published."""
        return cls(output_dim) if output_dim in (256, 348) else None

    @property
    def space(self) -> int:
        """Label between words."""
        return ord(" ")

    def label(self, character: str) -> int | None:
        """Label of a character as it is, None if there is none."""
        code = ord(character)
        if code < 256:
            return code if character.isprintable() else None
        label = 256 + code - _KATAKANA
        return label if 256 <= label < self.size else None

    def character(self, label: int) -> str:
        """What a label stands for, the inverse of `label`; nothing where that is no character, as
        of the blank."""
        character = chr(label if label < 256 else _KATAKANA + label - 256)
        return character if character.isprintable() else ""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """What labels in a row stand for, as a tokenizer's method of that name: blanks are nothing
        in any case."""
        return "".join(map(self.character, ids))

    def labels(self, word: str) -> list[int]:
        """Labels of the letters of a word that sound.

        Letters count in lower case, hiragana as katakana, letters with an accent that the head does
        not know as those without it. Punctuation does not sound. Runs of what does but may sound
        like anything (digits, symbols, letters of other scripts) become one `ANY`; so does a word
        that would have no label at all.
        """
        labels: list[int] = []
        for character in unicodedata.normalize("NFKC", word).lower():
            label = self._sound(character)
            if label is not None and (label != ANY or labels[-1:] != [ANY]):
                labels.append(label)
        return labels or [ANY]

    def _sound(self, character: str) -> int | None:
        kind = unicodedata.category(character)[0]
        if kind in "NS":
            return ANY
        if kind != "L":
            return None
        if "\u3041" <= character <= "\u3096":
            character = chr(ord(character) + 0x60)
        labels = map(self.label, (character, unicodedata.normalize("NFD", character)[0]))
        return next((label for label in labels if label is not None), ANY)


@dataclass(frozen=True)
class SubwordVocabulary:
    """Labels of a CTC head that are the tokens of a tokenizer, the blank among them.

    Args:
        tokenizer: what decodes them.
    """

    tokenizer: ParakeetTokenizer

    @property
    def blank(self) -> int:
        """The label that stands for nothing."""
        return self.tokenizer.pad_token_id

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """What labels in a row stand for, none of them twice for the same sound."""
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, group_tokens=False
        )

    def joined(self, label: int, following: int) -> bool:
        """Whether two labels, one after the other, are parts of one word."""
        # twice, as the space that a label begins with shows where something is before it
        text, further = (
            self.decode([each, each], skip_special_tokens=True) for each in (label, following)
        )
        return bool(text.strip()) and len(further.split()) == 1


Vocabulary = CTCVocabulary | SubwordVocabulary  #: of a CTC head


def frames_needed(labels: Sequence[int]) -> int:
    """The fewest frames that a sequence of labels fits: equal neighbours need a blank between."""
    return len(labels) + sum(a == b != ANY for a, b in itertools.pairwise(labels))


def best_paths(
    ctc_logits: Sequence[np.ndarray], labels: Sequence[Sequence[int]]
) -> list[LabelFrames | None]:
    """Where each of several segments most likely has each of its labels.

    The Viterbi path through the CTC trellis (Graves and others, "Connectionist Temporal
    Classification", 2006): labels in order, each for one or more frames, blanks wherever they fit,
    and one at least between equal neighbours. `ANY` takes every frame as it comes. As in
    CTC-segmentation (Kürzinger and others, https://arxiv.org/abs/2007.09127), that yields the times
    of a known text. Time and memory are frames times labels; segments are put through in batches.

    Args:
        ctc_logits: (frames, size) of each segment, float32; logits or log-probabilities.
        labels: of each segment.

    Returns:
        First and last frame of each label, (labels,) each, for each segment; None for one without
        labels, and where more are than fit (`frames_needed`).
    """
    found: dict[int, LabelFrames] = {}
    needed = [frames_needed(own) for own in labels]
    fitting = [i for i, count in enumerate(needed) if 0 < count <= len(ctc_logits[i])]
    order = sorted(fitting, key=lambda i: len(ctc_logits[i]))
    while order:
        batch = [order.pop()]
        frames, size = ctc_logits[batch[0]].shape
        width = len(labels[batch[0]])
        while order:
            wider = max(width, len(labels[order[-1]]))
            if (len(batch) + 1) * frames * (4 * size + 2 * wider) > _BATCH_BYTES:
                break
            batch.append(order.pop())
            width = wider
        paths = _viterbi([ctc_logits[i] for i in batch], [labels[i] for i in batch])
        found |= zip(batch, paths, strict=True)
    return [found.get(i) for i in range(len(labels))]


def _viterbi(ctc_logits: list[np.ndarray], labels: list[Sequence[int]]) -> list[LabelFrames]:
    """`best_paths` of one batch, the longest segment first, so that at each frame the segments
    that have one are the first so many.

    State 2 i + 1 is label i, the even ones are the blanks before, between and after.
    """
    size, frames, states = len(labels), len(ctc_logits[0]), 2 * max(map(len, labels)) + 1
    scores = np.zeros((frames, size, ctc_logits[0].shape[1] + 1), np.float32)  # the last one: ANY
    columns = np.full((size, states), BLANK)
    skip = np.full((size, states), -np.inf, np.float32)  # cost of going past the blank before
    for row, (logits, own) in enumerate(zip(ctc_logits, labels, strict=True)):
        relative = logits - logits.max(axis=1, keepdims=True)
        scores[: len(logits), row, :-1] = np.maximum(relative, _NEVER)
        columns[row, 1 : 2 * len(own) : 2] = own
        differs = [a != b or b == ANY for a, b in itertools.pairwise(own)]
        skip[row, 3 : 2 * len(own) : 2] = np.where(differs, 0, -np.inf)
    columns = np.where(columns == ANY, scores.shape[2] - 1, columns)
    columns += np.arange(size)[:, None] * scores.shape[2]

    lengths = np.array([len(logits) for logits in ctc_logits])
    active = (lengths[None] > np.arange(frames)[:, None]).sum(axis=1)
    best = np.full((size, states + 2), -np.inf, np.float32)  # two columns of nothing on the left
    best[:, 2:4] = scores[0].ravel()[columns[:, :2]]
    steps = np.zeros((frames, size, states), np.uint8)
    for t in range(1, frames):
        n = active[t]
        before = best[:n]
        stay, one, two = before[:, 2:], before[:, 1:-1], before[:, :-2] + skip[:n]
        step = steps[t, :n]
        np.greater(one, stay, out=step, casting="unsafe")
        reached = np.maximum(stay, one)
        step[two > reached] = 2
        np.maximum(reached, two, out=reached)
        best[:n, 2:] = reached + scores[t].ravel()[columns[:n]]

    rows = np.arange(size)
    last = np.array([2 * len(own) for own in labels])
    state = last - (best[rows, last + 1] > best[rows, last + 2])
    path = np.zeros((frames, size), np.int64)
    for t in reversed(range(frames)):
        path[t] = state
        state = state - steps[t, rows, state]
    found = []
    for row, own in enumerate(labels):
        wanted = 2 * np.arange(len(own)) + 1
        own_path = path[: lengths[row], row]
        first, after = (own_path.searchsorted(wanted, side) for side in ("left", "right"))
        found.append((first, after - 1))
    return found
