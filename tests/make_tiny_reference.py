"""Writes what the reference implementation says to the bundled recordings, with the tiny models
trained here, into data/reference.

Needs what `make parity` installs: `.venv/bin/python tests/make_tiny_reference.py`. Everything is
float32, unpadded, batch 1.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tiny_nar import ADDED, ADDED_TENSORS, BASE
from tiny_training import HeldOut, by_voice, held_out
from tokenizers import Tokenizer
from torch_nar import Nar
from transformers import GraniteSpeech5ForCTC, GraniteSpeech5Processor

DATA = Path(__file__).parent / "data"
TURBOCTC = DATA / "tiny-turboctc"
LONGEST_SECONDS = 30  # that the editor was trained on


class TurboCTC:
    """transformers' model and processor."""

    def __init__(self) -> None:
        self.model = GraniteSpeech5ForCTC.from_pretrained(TURBOCTC, dtype=torch.float32).eval()
        self.processor = GraniteSpeech5Processor.from_pretrained(TURBOCTC)

    @torch.no_grad()
    def __call__(self, wave: np.ndarray) -> dict:
        inputs = self.processor(wave, sampling_rate=16000, return_tensors="pt")
        labels = self.model.generate(**inputs)
        blank = self.processor.tokenizer.pad_token_id
        ids = [label for label, _ in groupby(labels[0].tolist()) if label != blank]
        return {"ids": ids, "text": self.processor.batch_decode(labels)[0]}


class NAR:
    """What there is instead of one by transformers."""

    def __init__(self) -> None:
        self.model = Nar().eval()
        added = load_file(ADDED / ADDED_TENSORS)
        self.model.load_state_dict({n: t.float() for n, t in added.items()}, strict=False)
        self.tokenizer = Tokenizer.from_file(str(BASE / "tokenizer.json"))

    def __call__(self, wave: np.ndarray) -> dict:
        draft, ids = self.model.transcribe(wave)
        return {"draft_ids": draft, "ids": ids, "text": self.tokenizer.decode(ids).strip()}


def save(name: str, reference: TurboCTC | NAR, recordings: list[HeldOut]) -> None:
    found = [reference(recording.wave) for recording in recordings]
    print(name, by_voice(recordings, [entry["text"] for entry in found]))
    entries = [
        {"file": r.file, "samples": r.samples, "said": r.text, **entry}
        for r, entry in zip(recordings, found, strict=True)
    ]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (DATA / "reference" / f"tiny_{name}_reference.json").write_text(f"[\n{lines}\n]\n")


def main() -> None:
    recordings = held_out()
    save("turboctc", TurboCTC(), recordings)
    short = [r for r in recordings if len(r.wave) <= LONGEST_SECONDS * 16000]
    save("nar", NAR(), short)


if __name__ == "__main__":
    main()
