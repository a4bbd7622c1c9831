"""Speech for training, without a synthesiser: words that forced alignment finds in the bundled
recordings, joined to sentences that nobody has said.

The voice changes with each word, and the sentences are of another kind than those that the bundled
model was trained on, whose decoder goes on as it is used to: it gets most of their words wrong.
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
RATE = 16000
LOUDNESS = 0.05  # root mean square of each word
SILENCE = np.zeros(RATE // 5, np.float32)
FADE = 80  # samples at both ends of a word
PACE = 0.03  # how much faster or slower one sentence may be than another

WORDS = {
    "city": "rome paris london berlin madrid tokyo boston cairo",
    "day": "monday friday sunday",
    "number": "one two three four six seven eight nine ten thirty",
    "room": "kitchen bedroom office garden garage",
    "device": "lamp fan heater",
    "barrier": "window gate",
    "food": "milk apples water",
}
SHAPES = [
    "the {room} {device} at {number} on {day}",
    "train {number} {number} to {city} at {number}",
    "my sister is in {city} on {day}",
    "water the {room} at {number}",
    "lock {barrier} {number} in the {room}",
    "send {food} and {food} to {city}",
]


def sentences(count: int, seed: int) -> list[str]:
    """`count` different ones, in turn of each shape."""
    rng = random.Random(seed)
    found: list[str] = []
    while len(found) < count:
        text = SHAPES[len(found) % len(SHAPES)]
        while "{" in text:
            name = text[text.index("{") + 1 : text.index("}")]
            text = text.replace(f"{{{name}}}", rng.choice(WORDS[name].split()), 1)
        if text not in found:
            found.append(text)
    return found


class Splicer:
    """Joins words of the bundled recordings that a model, given with its processor, gets right."""

    def __init__(self, loaded: Any, seed: int):
        self._rng = random.Random(seed)
        self._said: dict[str, list[np.ndarray]] = defaultdict(list)
        for line in (AUDIO / "manifest.jsonl").read_text().splitlines():
            row = json.loads(line)
            if not row["file"].endswith(".flac"):
                continue
            samples, _ = soundfile.read(AUDIO / row["file"], dtype="float32")
            # of the long one, sentence after sentence
            parts = row.get("segments") or [(0.0, row["seconds"], row["text"])]
            transcript = transcribe(AUDIO / row["file"], loaded, word_timestamps=True)
            words = [word for segment in transcript.segments for word in segment.words]
            for start, end, text in parts:
                within = [w for w in words if start - 0.2 < w.start and w.end < end + 0.2]
                if [word.text for word in within] == text.split():
                    for word in within:
                        cut = slice(round(word.start * RATE), round(word.end * RATE))
                        self._said[word.text].append(_faded(samples[cut]))

    def say(self, text: str) -> np.ndarray:
        """Samples at `RATE`, each word as one of the recordings has it."""
        words = [self._rng.choice(self._said[word]) for word in text.split()]
        samples = np.concatenate([SILENCE, *words, SILENCE])
        pace = 1 + self._rng.uniform(-PACE, PACE)
        return soxr.resample(samples, RATE * pace, RATE)

    def write(self, path: Path, texts: Sequence[str]) -> None:
        """Rows of data, `train.jsonl`, and the recordings in a folder beside it."""
        folder = path.with_suffix("")
        folder.mkdir(parents=True)
        rows = []
        for number, text in enumerate(texts):
            soundfile.write(folder / f"{number:02}.flac", self.say(text), RATE)
            rows.append({"audio": f"{folder.name}/{number:02}.flac", "text": text})
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _faded(samples: np.ndarray) -> np.ndarray:
    ramp = np.minimum(1, np.arange(len(samples)) / FADE)
    return samples * ramp * ramp[::-1] * (LOUDNESS / np.sqrt(np.mean(samples**2)))
