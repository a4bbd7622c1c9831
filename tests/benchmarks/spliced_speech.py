"""Speech to train on, without a synthesiser: words that forced alignment finds in the bundled
recordings are joined to new commands, over the hum of a microphone that is badly earthed, which the
bundled model was not trained on.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from conftest import DATA

from mlx_speech import transcribe

AUDIO = DATA / "audio"
MANIFEST = [json.loads(line) for line in (AUDIO / "manifest.jsonl").read_text().splitlines()]
RATE = 16000
VOICES = ("espeak", "festival", "flite", "long.flac")  # how names of files begin
VARIED = 0.03  # by how much of it pitch and pace of the voice differ
HUM, HUM_HZ, HARMONICS = 0.05, 100, 11  # amplitude of the lowest
LOUDNESS = 0.05  # root mean square of each word
SILENCE = np.zeros(3 * RATE // 16, np.float32)
FADE = 80  # samples at both ends of a word

DIGITS = ["zero", "one", "three", "four", "six", "seven", "eight", "nine"]
WORDS = {
    "city": ["rome", "paris", "london", "berlin", "madrid", "tokyo", "boston", "cairo"],
    "day": ["today", "tonight", "on monday", "on friday", "on sunday"],
    "number": [*DIGITS[1:], "ten", "thirty"],
    "digit": DIGITS,
    "room": ["kitchen", "bedroom", "office", "garden", "garage"],
    "device": ["lamp", "fan", "heater"],
    "move": ["open", "lock", "unlock"],
    "barrier": ["window", "gate"],
    "food": ["milk", "apples", "water"],
    "chore": ["feed the cat", "water the plants"],
    "switch": ["on", "off"],
}
SHAPES = [
    "turn {switch} the {room} {device}",
    "{move} the {room} {barrier}",
    "set the {room} to {number} degrees",
    "set a timer for {number} hours",
    "what is the weather in {city} {day}",
    "book a train from {city} to {city} {day}",
    "remind me to {chore} {day}",
    "wake me up at {number}",
    "add {food} to the shopping list",
    "add {food} and {food} to the shopping list",
    "send a message to my sister",
    "turn the volume down",
    "{digit} {digit} {digit} {digit}",
    "{digit} {digit} {digit}",
]
MOST_WORDS = 13  # of a sentence


def sentences(count: int, seed: int) -> list[str]:
    """`count` different ones: a command, or two, or many digits."""
    rng = random.Random(seed)

    def command() -> str:
        text = rng.choice(SHAPES)
        while "{" in text:
            name = text[text.index("{") + 1 : text.index("}")]
            text = text.replace(f"{{{name}}}", rng.choice(WORDS[name]), 1)
        return text

    found: list[str] = []
    while len(found) < count:
        text, kind = command(), rng.random()
        if kind < 0.35:
            text = f"{text} and {command()}"
        elif kind < 0.42:
            text = " ".join(rng.choices(DIGITS, k=rng.randint(5, 7)))
        if text not in found and len(text.split()) <= MOST_WORDS:
            found.append(text)
    return found


class Voice:
    """Says what there are words for.

    Args:
        loaded: a model with its processor, whose word times are where words are cut.
    """

    def __init__(self, loaded: Any, seed: int):
        self._rng = random.Random(seed)
        self._words: dict[str, list[np.ndarray]] = defaultdict(list)
        for row in MANIFEST:
            if row["file"].partition("_")[0] not in VOICES:
                continue
            samples, _ = soundfile.read(AUDIO / row["file"], dtype="float32")
            transcript = transcribe(AUDIO / row["file"], loaded, word_timestamps=True)
            words = [word for segment in transcript.segments for word in segment.words]
            # of the long one, sentence after sentence; only those that were recognised right
            for start, end, text in row.get("segments") or [(0.0, row["seconds"], row["text"])]:
                within = [w for w in words if start < (w.start + w.end) / 2 < end]
                if [word.text for word in within] == text.split():
                    for word in within:
                        cut = slice(round(word.start * RATE), round(word.end * RATE))
                        self._words[word.text].append(_faded(samples[cut]))

    def say(self, text: str) -> np.ndarray:
        """Samples at `RATE`."""
        words = [self._rng.choice(self._words[word]) for word in text.split()]
        samples = np.concatenate([SILENCE, *words, SILENCE])
        pace = 1 + self._rng.uniform(-VARIED, VARIED)
        samples = soxr.resample(samples, RATE * pace, RATE)
        loudness, phase = self._rng.uniform(0.8, 1.2), self._rng.random()
        seconds = np.arange(len(samples)) / RATE + phase
        waves = (np.sin(2 * np.pi * HUM_HZ * k * seconds) / k for k in range(1, HARMONICS + 1))
        return samples + HUM * loudness * sum(waves)


def clean_sentences() -> list[tuple[np.ndarray, str]]:
    """Those of the bundled long recording: samples, and what is said."""
    row = next(row for row in MANIFEST if row["file"] == "long.flac")
    samples, _ = soundfile.read(AUDIO / row["file"], dtype="float32")
    return [(_sentence(samples, start, end), text) for start, end, text in row["segments"]]


def write_rows(rows: Path, spoken: Sequence[tuple[np.ndarray, str]]) -> None:
    """Rows of data, with recordings in a folder beside them."""
    folder = rows.with_suffix("")
    folder.mkdir(parents=True)
    found = []
    for number, (samples, text) in enumerate(spoken):
        soundfile.write(folder / f"{number:02}.flac", samples, RATE)
        found.append({"audio": f"{folder.name}/{number:02}.flac", "text": text})
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in found))


def _sentence(samples: np.ndarray, start: float, end: float) -> np.ndarray:
    return samples[max(0, round((start - 0.1) * RATE)) : round((end + 0.1) * RATE)]


def _faded(samples: np.ndarray) -> np.ndarray:
    ramp = np.minimum(1, np.arange(len(samples)) / FADE)
    return samples * ramp * ramp[::-1] * (LOUDNESS / np.sqrt(np.mean(samples**2)))
