"""Training of the bundled model on four of the bundled recordings, which say something new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from conftest import DATA, TINY

from mlx_speech import load
from mlx_speech.training.data import TrainingData, load_data
from mlx_speech.training.finetune import finetune
from mlx_speech.training.options import FineTuneOptions
from mlx_speech.training.reports import FineTuneCallback, FineTuneResult

#: what is said in them is not what is written, so that there is something to learn
TEXTS = {
    "espeak_05.flac": "turn on the garden fan",
    "flite_08.flac": "one six four",
    "espeak_06.flac": "set a timer for three hours",
    "espeak_00.flac": "what is the weather in rome",
}


def write_data(folder: Path) -> Path:
    rows = [{"audio": str(DATA / "audio" / name), "text": text} for name, text in TEXTS.items()]
    for split, chosen in (("train", rows), ("valid", rows[1:3])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return folder


def read_data(folder: Path, model: Any, processor: Any, **options: Any) -> TrainingData:
    chosen = FineTuneOptions(adapter_path=str(folder / "cached"), **options)
    return load_data(write_data(folder), model, processor, chosen)


def fresh() -> tuple[Any, Any]:
    """The bundled model and its processor, to be trained."""
    return load(TINY, dtype=mx.float32)


class Told(FineTuneCallback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.losses, self.validations, self.saved, self.progress = [], [], [], []

    def on_train_loss_report(self, report):
        self.losses.append(report)

    def on_val_progress(self, done, total):
        self.progress.append((done, total))

    def on_val_loss_report(self, report):
        self.validations.append(report)

    def on_save(self, step, folder):
        self.saved.append(step)


def run(data: TrainingData, folder: Path, stop=None, **options: Any):
    """Train a fresh model; returns it, what the callback was told, and the result."""
    model, processor = fresh()
    options = {"learning_rate": 1e-4, "batch_size": 2, "steps_per_report": 1, **options}
    chosen = FineTuneOptions(adapter_path=str(folder), **options)
    told = Told()
    sets = data.train, data.valid
    result: FineTuneResult = finetune(model, processor, *sets, chosen, callback=told, stop=stop)
    return model, told, result


def arrays(tree: dict[str, mx.array]) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree.items()}
