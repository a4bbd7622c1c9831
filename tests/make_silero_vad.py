"""Writes what the package silero-vad says to bundled recordings into data/reference.

Needs torch, which `make parity` installs, and the package's own files:
`.venv/bin/pip install --no-deps silero-vad==6.2.3 && .venv/bin/python tests/make_silero_vad.py`.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import soundfile
import torch

DATA = Path(__file__).parent / "data"
NAMES = ("espeak_06.flac", "festival_12.flac", "silence.flac")
WINDOW = 512


def main() -> None:
    # importing the package imports torchaudio, which has no build for this torch
    package = Path(importlib.util.find_spec("silero_vad").origin).parent
    model = torch.jit.load(package / "data" / "silero_vad.jit").eval()
    said = {}
    for name in NAMES:
        samples, rate = soundfile.read(DATA / "audio" / name, dtype="float32")
        model.reset_states()
        windows = np.pad(samples, (0, -len(samples) % WINDOW)).reshape(-1, WINDOW)
        with torch.no_grad():
            said[name] = [round(model(torch.tensor(w)[None], rate).item(), 7) for w in windows]
    path = DATA / "reference" / "silero_vad.json"
    path.write_text(json.dumps(said, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
