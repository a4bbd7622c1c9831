"""How many sounds that are no speech get a text, how many words of speech are lost, and what
asking Silero VAD about each chunk costs: with it, and as it would be without.

    python tests/benchmarks/invented_text.py [--sounds 100] [--seed 0] [--speech FOLDER]

The sounds are those of `tests/sounds.py`, 0.02 to 60 s, -60 to 0 dBFS. The speech is that of a
folder's recordings, clean and 10 dB over noise; a word is lost where a text would have had it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import mlx.core as mx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from sounds import LIVELY, RATE, STEADY, over, sounds

from mlx_speech import load, load_audio, transcribe
from mlx_speech.transcription import pipeline
from mlx_speech.transcription.vad import has_speech

ROOT = Path(__file__).parents[2]
MODELS = {"Granite Speech": "tiny-granite-speech", "Speech2Text": "tiny-s2t"}


class Recorder:
    """Stands in for `has_speech`: lets all pass, and keeps what it says and how long it took."""

    def __init__(self):
        self.answers: list[bool] = []
        self.seconds = 0.0  # of the CPU

    def __call__(self, samples, silero) -> bool:
        start = time.process_time()
        self.answers.append(has_speech(samples, silero))
        self.seconds += time.process_time() - start
        return True

    def words(self, samples: np.ndarray, model) -> tuple[int, int]:
        """Words that the model writes, all and those in chunks with speech."""
        self.answers.clear()
        with mock.patch.object(pipeline, "has_speech", self):
            transcript = transcribe(samples, model, sampling_rate=RATE, num_beams=1)
        counts = [len(segment.text.split()) for segment in transcript.segments]
        return sum(counts), sum(np.array(counts, int)[self.answers])


def speech(folder: Path, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Recordings, each clean and over noise; babble is of all of them."""
    files = [path for path in sorted(folder.rglob("*.*")) if path.suffix in (".flac", ".wav")]
    clean = [np.array(load_audio(path)) for path in files]
    everybody = np.concatenate(clean)
    for index, samples in enumerate(clean):
        yield "clean", samples
        random = np.random.default_rng([seed, index])
        for name, slope in (("white", 0.0), ("pink", 1.0), ("babble", everybody)):
            if samples.any():
                yield name, over(samples, slope, 10, random)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sounds", type=int, default=100, help="of each kind (default 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speech", type=Path, default=ROOT / "tests" / "data" / "audio")
    args = parser.parse_args()
    for family, folder in MODELS.items():
        model = load(ROOT / "examples" / folder, dtype=mx.float32)
        for name, makers in (("steady", STEADY), ("lively", LIVELY)):
            found = [
                Recorder().words(sound.samples, model)
                for sound in sounds(makers, args.sounds, args.seed)
            ]
            without, kept = (np.count_nonzero(counts) for counts in zip(*found, strict=True))
            print(f"{family}: {kept} of {args.sounds} {name} sounds get a text, {without} without")
        recorder, written, audio = Recorder(), {}, 0.0
        for kind, samples in speech(args.speech, args.seed):
            audio += samples.size / RATE
            written.setdefault(kind, []).append(recorder.words(samples, model))
        for kind, counts in written.items():
            words, kept = np.sum(counts, axis=0)
            print(f"{family}: {words - kept} of {words} words are lost of {kind} speech")
        print(f"{family}: {recorder.seconds / audio * 3600:.1f} CPU seconds for an hour of speech")


if __name__ == "__main__":
    main()
