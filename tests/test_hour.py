"""Recordings of an hour: as good as the sentences in them one by one, in memory that stays flat.

They are joined here from the bundled ones: two minutes by default, an hour with `--minutes 60` (and
`-o faulthandler_timeout=0`, since that takes minutes).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from itertools import cycle

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from conftest import DATA, TINY

from mlx_speech import load_audio, transcribe
from mlx_speech.word_errors import word_errors

AUDIO = DATA / "audio"
#: single sentences, which is what the model was trained on
CUTS = {"chunk_duration": 9, "min_silence": 0.4}

#: transcribes a file; prints the most memory that it took on the way, MLX's and the process's
MEASURED = """
import resource, sys
import mlx.core as mx
from mlx_speech import load, transcribe
model = load(sys.argv[2], dtype=mx.float32)
mx.reset_peak_memory()
transcribe(sys.argv[1], model, chunk_duration=9, min_silence=0.4)
print(mx.get_peak_memory(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture(scope="module")
def sentences() -> list[tuple[str, mx.array]]:
    """The bundled sentences and how they sound."""
    entries = map(json.loads, (AUDIO / "manifest.jsonl").read_text().splitlines())
    return [
        (entry["text"], load_audio(AUDIO / entry["file"]))
        for entry in entries
        if entry["file"].startswith(("espeak", "flite", "festival"))
    ]


def join(sentences, seconds: float, path) -> list[str]:
    """Write sentences with pauses of 0.7 to 2 s to a file of about so many seconds; the texts."""
    pauses, texts, length = np.random.default_rng(0), [], 0
    with soundfile.SoundFile(path, "w", 16000, 1) as file:
        for text, samples in cycle(sentences):
            pause = np.zeros(int(pauses.uniform(0.7, 2.0) * 16000))
            file.write(np.concatenate([samples, pause]))
            texts.append(text)
            length += samples.size + pause.size
            if length >= seconds * 16000:
                return texts


def test_nothing_lost_and_nothing_doubled(tiny, sentences, tmp_path, minutes):
    said = join(sentences, 60 * minutes, tmp_path / "long.flac")
    transcript = transcribe(tmp_path / "long.flac", tiny, batch_size=16, **CUTS)
    assert len(transcript.segments) == len(said)
    times = [time for segment in transcript.segments for time in (segment.start, segment.end)]
    assert times == sorted(times)
    assert times[-1] <= transcript.duration
    alone = {
        text: word_errors(text, transcribe(samples, tiny, sampling_rate=16000).text)
        for text, samples in sentences
    }
    words = sum(len(text.split()) for text in said)
    errors = sum(
        word_errors(text, segment.text)
        for text, segment in zip(said, transcript.segments, strict=True)
    )
    assert errors / words <= sum(alone[text] for text in said) / words + 0.03
    # of no sentence is there nothing, or another's
    for text, segment in zip(said, transcript.segments, strict=True):
        found = Counter(text.split()) & Counter(segment.text.split())
        assert found.total() >= len(text.split()) / 2


def test_memory_stays_flat(sentences, tmp_path, minutes):
    peaks = []
    for part in (max(minutes / 6, 1), minutes):
        join(sentences, 60 * part, tmp_path / "long.flac")
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, tmp_path / "long.flac", TINY],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append([int(number) for number in done.stdout.split()])
    (mlx_short, all_short), (mlx_long, all_long) = peaks
    assert mlx_long <= 1.1 * mlx_short
    assert all_long <= 1.1 * all_short
