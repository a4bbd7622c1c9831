"""What fine-tuning does for recordings that the bundled model gets wrong, and to those that it got
right: python tests/benchmarks/new_recordings.py [steps]

Trained are 36 spliced commands over the hum of a microphone, and the 24 sentences of the bundled
long recording as they are; with the options of the command that are the default.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import mlx.core as mx

sys.path.insert(0, str(Path(__file__).parent.parent))
from spliced_speech import AUDIO, MANIFEST, VOICES, Voice, clean_sentences, sentences, write_rows

from mlx_speech import load, transcribe
from mlx_speech.cli.finetune import main as finetune
from mlx_speech.transcription.word_errors import word_error_rate, word_errors

MODEL = AUDIO.parent.parent.parent / "examples" / "tiny-granite-speech"
TRAINED, HELD_OUT = 36, 40


def error_rate(model, rows: list[tuple[Path, str]]) -> float:
    """Word errors in per cent, over rows of a recording and its text."""
    errors = sum(word_errors(right, transcribe(audio, model).text) for audio, right in rows)
    return word_error_rate(errors, sum(len(right.split()) for _, right in rows))


def main(folder: Path, steps: str) -> None:
    model = load(MODEL, dtype=mx.float32)
    voice, data = Voice(model, seed=1), folder / "recordings"
    spoken = [(voice.say(text), text) for text in sentences(TRAINED + HELD_OUT, seed=1)]
    write_rows(data / "train.jsonl", [*spoken[:TRAINED], *clean_sentences()])
    write_rows(data / "held_out.jsonl", spoken[TRAINED:])
    rows = map(json.loads, (data / "held_out.jsonl").read_text().splitlines())
    sets = {
        "held out": [(data / row["audio"], row["text"]) for row in rows],
        "bundled": [
            (AUDIO / r["file"], r["text"]) for r in MANIFEST if r["file"].startswith(VOICES)
        ],
    }
    before = {name: error_rate(model, rows) for name, rows in sets.items()}
    adapter = folder / "adapter"
    args = ["--model", MODEL, "--data", data, "--adapter-path", adapter, "--iters", steps]
    if finetune([*map(str, args), "--steps-per-report", "50"]):
        sys.exit(1)
    adapted = load(MODEL, adapter=adapter, dtype=mx.float32)
    for name, rows in sets.items():
        print(f"{name}: {before[name]:.1f} % -> {error_rate(adapted, rows):.1f} %")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place), sys.argv[1] if len(sys.argv) > 1 else "250")
