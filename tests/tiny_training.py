"""What the scripts that train tiny models share: recordings mixed anew for every step from the
speech of make_tiny_speech.py, word errors on the recordings of data/audio, which are never trained
on, and a training loop.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from mlx_speech.transcription.word_errors import word_errors

SAMPLE_RATE = 16000
RECORDINGS = Path(__file__).parent / "data/audio"


@dataclass
class HeldOut:
    """A recording never trained on: samples of a file, mono, 16 kHz, and the words said in it."""

    file: str
    samples: tuple[int, int]
    voice: str
    wave: np.ndarray
    text: str


def held_out(folder: Path = RECORDINGS) -> list[HeldOut]:
    """The recordings of `folder`, and long.flac once more cut into its sentences."""
    found = []
    for line in (folder / "manifest.jsonl").read_text().splitlines():
        row = json.loads(line)
        file = row["file"]
        wave, rate = soundfile.read(folder / file, dtype="float32")
        if rate != SAMPLE_RATE:
            continue  # the same speech as another file
        found.append(HeldOut(file, (0, len(wave)), file.partition("_")[0], wave, row["text"]))
        for start, end, text in row.get("segments", []):
            cut = max(0, int((start - 0.1) * rate)), min(len(wave), int((end + 0.1) * rate))
            found.append(HeldOut(file, cut, f"sentences of {file}", wave[slice(*cut)], text))
    return found


def by_voice(recordings: list[HeldOut], texts: list[str]) -> str:
    """Word error rates, in per cent, of all that a voice says."""
    errors: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for recording, text in zip(recordings, texts, strict=True):
        errors[recording.voice] += word_errors(recording.text, text)
        words[recording.voice] += len(recording.text.split())
    return ", ".join(f"{v} {100 * errors[v] / max(1, n):.1f}" for v, n in words.items())


class Mixer:
    """Speech on `device`, of which every batch mixes other recordings: sentences with pauses
    between them, slower or faster, louder or softer, through a room and a microphone, with
    noise. A recording in thirty holds none."""

    def __init__(self, speech: Path, device: str, seed: int) -> None:
        with np.load(speech) as arrays:
            self.lengths, self.texts = arrays["lengths"], arrays["texts"].tolist()
            self.audio = torch.from_numpy(arrays["audio"]).to(device)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.device = device
        self.rng = np.random.default_rng(seed)
        self.noise = torch.Generator(device).manual_seed(seed)

    def batch(self, seconds: float, count: int) -> tuple[torch.Tensor, list[list[str]]]:
        """`count` recordings of `seconds`, [count, samples], and the sentences of each."""
        plans = [self._plan(int(seconds * SAMPLE_RATE)) for _ in range(count)]
        samples = int(seconds * SAMPLE_RATE)
        waves = torch.zeros(count, samples, device=self.device)
        clock = torch.arange(samples, device=self.device)
        for place in range(max(map(len, plans))):
            rows = [plan[place] if place < len(plan) else (0, 0, 0, 1.0, 0.0) for plan in plans]
            numbers, begins, spans, speeds, gains = zip(*rows, strict=True)
            column = lambda values: torch.tensor(values, device=self.device)[:, None]  # noqa: E731
            since = clock - column(begins)
            inside = (since >= 0) & (since < column(spans))
            position = since.clamp(0) * column(speeds).float()
            index = (position.long() + column([int(self.starts[n]) for n in numbers])) * inside
            between = position - position.floor()
            value = self.audio[index] * (1 - between) + self.audio[index + 1] * between
            waves += torch.where(inside, value / 32768 * column(gains).float(), 0)
        texts = [[self.texts[row[0]] for row in plan] for plan in plans]
        return self._through_room(waves), texts

    def _plan(self, samples: int) -> list[tuple[int, int, int, float, float]]:
        """Which sentences a recording holds: number, begin, length, speed and gain of each."""
        rng, plan, now = self.rng, [], int(self.rng.uniform(0, 0.4) * SAMPLE_RATE)
        if rng.random() < 1 / 30:
            return plan
        for _ in range(30):  # tries: a sentence that is too long for the rest is left out
            number, speed = int(rng.integers(len(self.texts))), rng.uniform(0.85, 1.2)
            span = int((self.lengths[number] - 2) / speed)
            if now + span <= samples:
                plan.append((number, now, span, speed, rng.uniform(0.3, 1.0)))
                pause = rng.uniform(0.1, 2.0) if rng.random() < 0.9 else rng.uniform(2, 6)
                now += span + int(pause * SAMPLE_RATE)
        return plan

    def _through_room(self, waves: torch.Tensor) -> torch.Tensor:
        count, samples = waves.shape
        normal = lambda *shape: torch.randn(  # noqa: E731
            *shape, generator=self.noise, device=self.device
        )
        chosen = lambda share: torch.tensor(  # noqa: E731
            self.rng.random((count, 1)) < share, device=self.device
        )
        size = 2 ** (samples + SAMPLE_RATE // 4).bit_length()
        bins = size // 2 + 1
        decay = torch.arange(SAMPLE_RATE // 4, device=self.device) / SAMPLE_RATE
        echo = normal(count, len(decay)) * torch.exp(-decay / 0.04) * 0.05
        room = 1 + torch.fft.rfft(echo * chosen(0.4), size)
        points = normal(count, 1, 12) * 0.5 * chosen(0.7)[:, None]
        tilt = torch.nn.functional.interpolate(points, bins, mode="linear", align_corners=True)
        waves = torch.fft.irfft(torch.fft.rfft(waves, size) * room * tilt[:, 0].exp(), size)
        color = torch.arange(1, bins + 1, device=self.device) ** -0.5
        noise = normal(count, size)
        pink = torch.fft.irfft(torch.fft.rfft(noise) * color, size)
        noise = torch.where(chosen(0.5), pink / pink.std(-1, keepdim=True), noise)
        level = torch.tensor(10 ** self.rng.uniform(-4, -1.7, (count, 1)), device=self.device)
        waves = waves + noise * level.float() * chosen(0.7)
        return waves[:, :samples] / waves.abs().amax(-1, keepdim=True).clamp(1)


def options(description: str | None, steps: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("speech", type=Path, help="what make_tiny_speech.py wrote")
    parser.add_argument("folder", type=Path, help="where the checkpoint is written")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch-seconds", type=float, default=480.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=17)
    return parser.parse_args()


def train(
    args: argparse.Namespace,
    speech: Mixer,
    parameters: list[torch.nn.Parameter],
    loss_of: Callable[[torch.Tensor, list[list[str]]], torch.Tensor],
    evaluate: Callable[[], str],
    peak_rate: float,
    longest: float,
) -> None:
    """Trains by AdamW on recordings of one to `longest` seconds."""
    optimizer = torch.optim.AdamW(parameters, lr=peak_rate, weight_decay=0.01, betas=(0.9, 0.98))
    for step in range(args.steps):
        done = step / args.steps
        rate = min(done / 0.05, 1) * (0.5 + 0.5 * math.cos(math.pi * done)) + 0.002
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * rate
        seconds = round(speech.rng.uniform(1.0, longest) / 0.32) * 0.32 + 0.16
        count = max(2, int(args.batch_seconds / seconds))
        loss = loss_of(*speech.batch(seconds, count))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if int(10 * (step + 1) / args.steps) > int(10 * done):
            print(f"step {step + 1} loss {loss:.3f} {evaluate()}", flush=True)
