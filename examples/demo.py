"""Transcribes a bundled recording with the bundled model; prints the text beside what was said.

python examples/demo.py
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import mlx_speech

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "examples" / "tiny-granite-speech"
AUDIO = ROOT / "tests" / "data" / "audio"
RECORDING = "flite_11.flac"


def main() -> int:
    argparse.ArgumentParser(description="Transcribe a bundled recording.").parse_args()
    transcript = mlx_speech.transcribe(AUDIO / RECORDING, mlx_speech.load(MODEL))
    lines = (AUDIO / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    (said,) = (row["text"] for row in map(json.loads, lines) if row["file"] == RECORDING)
    print(f"transcribed: {transcript.text}")
    print(f"really said: {said}")
    return 0 if transcript.text == said else 1


if __name__ == "__main__":
    sys.exit(main())
