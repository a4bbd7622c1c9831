"""Forced alignment: when each word of a text was said, and how sure the decoder was of it.

The letters' places come from the CTC head (`ctc.best_paths`), the words' edges from there and from
the loudness of the recording. CTC labels are short peaks, a little later than the sound, far from
the end of a drawn-out one, and now and then in the silence before the first; a pause is where it is
quiet, and two words without a pause meet where the head has the space between them.
"""

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..generation.protocols import Detokenizes
from .ctc import ANY, BLANK, SPACE, CTCVocabulary, LabelFrames, best_paths
from .frames import FRAME_SAMPLES, FRAMES_PER_SECOND, runs

QUIET_DB = 30.0  #: quiet is what is so far below the loud parts of the letters, in dB,
QUIET_PART = 0.25  #: or, in noise, above the quietest parts by less than this part of the range
#: frames of quiet between two words that are a pause; the closures of p, t and k are shorter
PAUSE_FRAMES = 6
#: frames that a word can reach beyond its first and last letter; holds where noise hides the pauses
REACH_FRAMES = 20

_OPENING = re.escape("([{（［｛「『〈《【〔〖〘〚“‘«‹¿¡")
_NO_SPACES = (
    "[\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303c\u3041-\u3096\u309d-\u309f\u30a1-\u30fa"
    "\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d"
    "\U00020000-\U0003ffff]"
)
_WORD = re.compile(
    # a character of Chinese or Japanese with its brackets, marks and punctuation
    rf"[{_OPENING}]*{_NO_SPACES}(?:[^\w\s{_OPENING}]|[\uff9e\uff9f])*"
    rf"|(?:(?![{_OPENING}]*{_NO_SPACES})\S)+"
)


class WordTime(NamedTuple):
    """A word with the punctuation that touches it, and when it was said, in seconds."""

    text: str
    start: float
    end: float


class _Unit(NamedTuple):
    """Words that are placed as one: `words` of a segment have its labels from `first` to `last`."""

    words: list[str]
    first: int
    last: int


def split_words(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end, in characters.

    Words are what white space separates. Chinese and Japanese, which have none, count character by
    character. Punctuation belongs to the word it touches, so that between words there is nothing
    but white space.
    """
    return [match.span() for match in _WORD.finditer(text)]


def frame_levels(samples: mx.array, frames: int) -> np.ndarray:
    """Loudness of each encoder frame, in dB.

    That of the differences between neighbouring samples, in which consonants are about as loud as
    vowels and rumble is faint.

    Args:
        samples: (n,), 16 kHz, from where the first frame begins; what the last one lacks is silent.
        frames: how many.

    Returns:
        (frames,), float32.
    """
    samples = samples[: frames * FRAME_SAMPLES]
    x = mx.concatenate([samples[:1], samples[1:] - 0.97 * samples[:-1]])
    x = mx.pad(x, (0, frames * FRAME_SAMPLES - x.size)).reshape(frames, FRAME_SAMPLES)
    return np.array(10 * mx.log10(mx.square(x).mean(axis=1) + 1e-10))


def align_words(
    texts: Sequence[str],
    ctc_logits: Sequence[mx.array | np.ndarray],
    levels: Sequence[np.ndarray],
    vocabulary: CTCVocabulary,
    starts: Sequence[float],
) -> list[list[WordTime]]:
    """Times of all words of several segments.

    The words of a segment are in order, each once, none overlaps the next, and all lie within the
    segment. One that the head has no letter for (a number, another script) takes the place that the
    others leave it; such characters side by side share theirs. Where there are more letters than
    frames, time is divided evenly.

    Args:
        texts: what was said in each segment; not a translation.
        ctc_logits: (frames, labels) of each, logits or log-probabilities.
        levels: (frames,) of each, see `frame_levels`.
        vocabulary: what the labels mean.
        starts: when each segment begins, in seconds.
    """
    logits = [np.asarray(mx.array(x, mx.float32)) for x in ctc_logits]
    prepared = [_units(text, vocabulary) for text in texts]
    paths = best_paths(logits, [labels for labels, _ in prepared])
    results = []
    for i, ((labels, units), path) in enumerate(zip(prepared, paths, strict=True)):
        frames, count = len(logits[i]), len(labels)
        if path is None:
            edges = [(u.first * frames / count, (u.last + 1) * frames / count) for u in units]
        else:
            edges = _edges(units, _narrow(labels, path, logits[i]), levels[i])
        results.append(_times(units, edges, starts[i]))
    return results


def written_words(
    labels: Sequence[int],
    label_frames: LabelFrames,
    level: np.ndarray,
    vocabulary: Detokenizes,
    start: float,
) -> list[WordTime]:
    """Times of the words of a segment that a CTC head wrote, from where it has their labels.

    As in `align_words`, but nothing is left to be aligned. A label that holds parts of two words
    joins them: they share their time by their length.

    Args:
        labels: ids, in which the same sound is not twice.
        label_frames: first and last frame of each, (labels,) each.
        level: (frames,), see `frame_levels`.
        vocabulary: what decodes the labels.
        start: when the segment begins, in seconds.
    """
    whole = vocabulary.decode(labels, skip_special_tokens=True)
    spans = np.array(_token_spans(labels, whole, vocabulary), int).reshape(-1, 2)
    units: list[_Unit] = []
    for begin, end in split_words(whole):
        of_word = np.flatnonzero(np.maximum(spans[:, 0], begin) < np.minimum(spans[:, 1], end))
        first, last = of_word[[0, -1]].tolist()
        if units and first <= units[-1].last:
            joined = units.pop()
            units.append(_Unit([*joined.words, whole[begin:end]], joined.first, last))
        else:
            units.append(_Unit([whole[begin:end]], first, last))
    return _times(units, _edges(units, label_frames, level), start) if units else []


def _units(text: str, vocabulary: CTCVocabulary) -> tuple[list[int], list[_Unit]]:
    """Labels of a text, and its words with theirs."""
    labels: list[int] = []
    units: list[_Unit] = []
    end = None
    for first, last in split_words(text):
        word, joined, end = text[first:last], end == first, last
        own = vocabulary.labels(word)
        if joined and own == [ANY] and labels[-1] == ANY and units[-1].first == units[-1].last:
            units[-1].words.append(word)
            continue
        if units and not joined:
            labels.append(SPACE)
        units.append(_Unit([word], len(labels), len(labels) + len(own) - 1))
        labels += own
    return labels, units


def _edges(
    units: list[_Unit], label_frames: LabelFrames, level: np.ndarray
) -> list[tuple[float, float]]:
    """Start and end of each unit, in frames.

    Between two units lies the longest run of quiet that touches the gap between their letters, if
    it is a pause; else they meet at the space. Whatever is quiet there, each keeps the loudest
    frame between its first and its last letter.
    """
    frames, (first, last) = len(level), label_frames
    letters = np.concatenate([level[first], level[last]])
    loud, floor = np.quantile(letters, 0.9), np.quantile(level, 0.05)
    quiet = runs(level < max(loud - QUIET_DB, floor + QUIET_PART * (loud - floor)))
    begin = [int(first[unit.first]) for unit in units]
    after_end = [int(last[unit.last]) + 1 for unit in units]
    core = [b + int(level[b:e].argmax()) for b, e in zip(begin, after_end, strict=True)]
    # the gaps between the letters, and how far a pause may reach into the words around them
    gaps = zip([0, *after_end], [*begin, frames], strict=True)
    reach = zip([0, *(frame + 1 for frame in core)], [*core, frames], strict=True)
    starts, ends = [], []
    for i, ((low, high), within) in enumerate(zip(gaps, reach, strict=True)):
        outside = i in (0, len(units))
        near = slice(quiet[:, 1].searchsorted(low), quiet[:, 0].searchsorted(high, side="right"))
        pauses = quiet[near].clip(*within)
        size = pauses[:, 1] - pauses[:, 0]
        if size.max(initial=0) >= (1 if outside else PAUSE_FRAMES):
            before, after = pauses[size.argmax()].tolist()
        elif outside:
            before, after = frames, 0
        elif units[i].first - units[i - 1].last > 1:
            before = after = int(first[units[i].first - 1])
        else:
            before = after = (low + high) // 2
        ends.append(min(before, low + REACH_FRAMES))
        starts.append(max(after, high - REACH_FRAMES))
    return list(zip(starts[:-1], ends[1:], strict=True))


def _narrow(labels: list[int], path: LabelFrames, logits: np.ndarray) -> LabelFrames:
    """First and last frame of each label; those of `ANY`, which takes every frame that it can get,
    without those around it in which there is nothing."""
    first, last = path
    for i in np.flatnonzero(np.array(labels) == ANY):
        best = logits[first[i] : last[i] + 1].argmax(axis=1)
        labelled = np.flatnonzero((best != BLANK) & (best != SPACE))
        if labelled.size:
            first[i], last[i] = first[i] + labelled[0], first[i] + labelled[-1]
    return first, last


def _times(units: list[_Unit], edges: list[tuple[float, float]], start: float) -> list[WordTime]:
    """Words of all units, in seconds; those of one unit share its time by their length."""
    times = []
    for unit, (begin, end) in zip(units, edges, strict=True):
        sizes = list(itertools.accumulate(map(len, unit.words), initial=0))
        frames = np.interp(sizes, [0, sizes[-1]], [begin, end])
        at = [start + float(frame) / FRAMES_PER_SECOND for frame in frames]
        times += [WordTime(*w) for w in zip(unit.words, at[:-1], at[1:], strict=True)]
    return times


def word_probabilities(
    text: str, tokens: Sequence[int], logprobs: Sequence[float], tokenizer: Detokenizes
) -> list[float]:
    """How sure the decoder was of each word that `split_words` finds.

    A word's probability is the product of those of the tokens that its characters come from. A
    token that holds parts of two words counts for both, one that holds part of a character for the
    word of that character, white space and special tokens for none.

    Args:
        text: what the tokens say, or the beginning of it; white space around it may be missing.
        tokens: ids.
        logprobs: natural logarithm of each one's probability.
        tokenizer: what decodes them.

    Raises:
        InputError: the text is not what the tokens say.
    """
    places = token_spans(text, tokens, tokenizer)
    return span_probabilities(split_words(text), places, logprobs)


def token_spans(text: str, tokens: Sequence[int], tokenizer: Detokenizes) -> np.ndarray:
    """Which characters of a text come from each token, (tokens, 2) first and last, one only in part
    included; arguments and errors as in `word_probabilities`."""
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    said = whole.lstrip()
    if not said.startswith(text.strip()):
        raise InputError(f"the tokens say {whole!r}, not {text!r}")
    shift = len(whole) - len(said) - (len(text) - len(text.lstrip()))
    return np.array(_token_spans(tokens, whole, tokenizer), int).reshape(-1, 2) - shift


def span_probabilities(
    spans: Sequence[tuple[int, int]], places: np.ndarray, logprobs: Sequence[float]
) -> list[float]:
    """The product of the probabilities of the tokens that the characters of each span come from.

    Args:
        places: of the tokens in the same text, see `token_spans`.
        logprobs: natural logarithm of each one's probability.
    """
    first, last = places.T
    logs = np.array(logprobs, np.float64)
    return [
        float(np.exp(logs[np.maximum(first, begin) < np.minimum(last, end)].sum()))
        for begin, end in spans
    ]


def _token_spans(
    tokens: Sequence[int], whole: str, tokenizer: Detokenizes
) -> list[tuple[int, int]]:
    """Which characters of their text come from each token, one only in part included.

    Decoded are short windows, as in `StreamingDetokenizer`: the tokens of the last whole
    characters, as context, and the new ones.
    """
    spans: list[tuple[int, int]] = []
    done = 0
    context = new = known = 0  # the window's first token, the first new one; characters before that
    settled = 0  # characters of the text that come from the tokens before `new`
    for count in range(1, len(tokens) + 1):
        part = tokenizer.decode(tokens[context:count], skip_special_tokens=True)[known:]
        start = done
        while done - settled < len(part) and part[done - settled] == whole[done : done + 1]:
            done += 1
        # what is left over is the replacement character of one that is not complete yet
        spans.append((start, done + (len(part) > done - settled)))
        # a replacement character at the end may become another with the bytes to come
        if part.strip() and part == whole[settled:done] and part[-1] != "\ufffd":
            context, new, settled = new, count, done
            known = len(tokenizer.decode(tokens[context:new], skip_special_tokens=True))
    return spans
