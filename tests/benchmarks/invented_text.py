"""How many sounds that are no speech get a text, how many words of speech over noise are lost, and
what Silero VAD costs: with it, and with all decoded.

    python tests/benchmarks/invented_text.py [--sounds 1000] [--seed 0] [--speech FOLDER]

The sounds are those of `tests/sounds.py`, 0.02 to 60 s, -60 to 0 dBFS. The speech is that of a
folder's recordings, clean and over white noise and babble; words are lost where the text has more
errors than that of the whole recording.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from sounds import LIVELY, RATE, STEADY, over, sounds

from mlx_speech import load, load_audio, transcribe
from mlx_speech.models.silero_vad import SileroVAD
from mlx_speech.transcription.vad import RecordingVAD
from mlx_speech.transcription.word_errors import word_errors

ROOT = Path(__file__).parents[2]
MODELS = {"Granite Speech": "tiny-granite-speech", "Speech2Text": "tiny-s2t"}


def has_speech(samples: np.ndarray) -> bool:
    vad = RecordingVAD()
    return (vad.push(samples) + vad.finish()).speech.any()


def recordings(folder: Path) -> Iterator[tuple[np.ndarray, str]]:
    """Those of a folder that a model takes as a whole, and the texts that its manifests tell."""
    for manifest in sorted(folder.rglob("manifest.jsonl")):
        for entry in map(json.loads, manifest.read_text().splitlines()):
            path = manifest.parent / entry["file"]
            if entry["text"] and entry["seconds"] < 30 and path.exists():
                yield np.array(load_audio(path)), entry["text"]


def over_noises(clean: list[np.ndarray], seed: int) -> Iterator[tuple[str, list[np.ndarray]]]:
    """The recordings, clean and over noise; babble is of all of them."""
    yield "clean", clean
    for name, background in (("white noise", 0.0), ("babble", np.concatenate(clean))):
        for decibels in (15, 10, 5):
            random = np.random.default_rng([seed, decibels])
            mixed = [over(samples, background, decibels, random) for samples in clean]
            yield f"{name} at {decibels} dB", mixed


def seconds_for_an_hour() -> tuple[float, float]:
    """Of the model alone, and of all of the VAD, on noise; seconds of this machine."""
    samples = np.random.default_rng(0).normal(0, 0.1, 600 * RATE).astype(np.float32)
    silero, vad, times = SileroVAD.bundled(), RecordingVAD(), []
    for run in (lambda: mx.eval(silero(mx.array(samples))[0]), lambda: vad.push(samples)):
        start = time.perf_counter()
        run()
        times.append(6 * (time.perf_counter() - start))
    return times[0], times[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sounds", type=int, default=1000, help="of each kind (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speech", type=Path, default=ROOT / "tests" / "data" / "audio")
    args = parser.parse_args()
    alone, whole = seconds_for_an_hour()
    print(f"an hour: {alone:.1f} s for Silero VAD, {whole:.1f} s with all that goes with it")
    models = {
        name: load(ROOT / "examples" / folder, dtype=mx.float32) for name, folder in MODELS.items()
    }
    for kind, makers in (("steady", STEADY), ("lively", LIVELY)):
        found = [s for s in sounds(makers, args.sounds, args.seed) if has_speech(s.samples)]
        print(f"{len(found)} of {args.sounds} {kind} sounds are taken for speech")
        for name, model in models.items():
            texts = Counter(
                sound.kind
                for sound in found
                if transcribe(sound.samples, model, sampling_rate=RATE, num_beams=1).text
            )
            print(f"  {name}: {texts.total()} of {args.sounds} get a text {dict(texts)}")
    clean, texts = zip(*recordings(args.speech), strict=True)
    words = sum(len(text.split()) for text in texts)
    for kind, mixed in over_noises(list(clean), args.seed):
        for name, model in models.items():
            errors, empty = {}, 0
            for vad in (True, False):
                options = {"sampling_rate": RATE, "num_beams": 1, "vad": vad}
                found = [transcribe(samples, model, **options).text for samples in mixed]
                errors[vad] = sum(map(word_errors, texts, found))
                empty += vad * found.count("")
            print(
                f"{kind}, {name}: {errors[True]} errors in {words} words, "
                f"{errors[False]} without VAD; {empty} texts are empty"
            )


if __name__ == "__main__":
    main()
