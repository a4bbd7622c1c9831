"""A recording of an hour: as good as the sentences in it one by one, in memory that stays flat."""

from __future__ import annotations

import faulthandler
import json
import subprocess
import sys
from itertools import cycle, pairwise

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from conftest import DATA, TINY

from mlx_speech import load_audio, transcribe
from mlx_speech.transcription.word_errors import word_errors

AUDIO = DATA / "audio"
HOUR = 3600

#: transcribes a file; prints its segments and the most memory, MLX's and the process's, that it had
#: taken after ten minutes of it and at its end
TRANSCRIBE = """
import json, resource, sys
import mlx.core as mx
from mlx_speech import load, transcribe

peaks = []

def progress(done, duration):
    if done >= (600, duration)[min(len(peaks), 1)]:
        peaks.append([mx.get_peak_memory(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])

model = load(sys.argv[2], dtype=mx.float32)
mx.reset_peak_memory()
# the model was trained on single sentences, and hears nothing sensible in several at once
options = {"chunk_duration": 9, "min_silence": 0.4, "batch_size": 16, "word_timestamps": True}
transcript = transcribe(sys.argv[1], model, progress=progress, **options)
segments = [[s.start, s.end, s.text] for s in transcript.segments]
ends = {"peaks": [peaks[0], peaks[-1]], "duration": transcript.duration}
print(json.dumps({**ends, "segments": segments}))
"""


@pytest.fixture
def sentences() -> list[tuple[str, mx.array]]:
    """The bundled sentences and how they sound."""
    entries = map(json.loads, (AUDIO / "manifest.jsonl").read_text().splitlines())
    return [
        (entry["text"], load_audio(AUDIO / entry["file"]))
        for entry in entries
        if entry["file"].startswith(("espeak", "flite", "festival"))
    ]


def join(sentences, seconds: float, path) -> list[tuple[str, float, float]]:
    """Write sentences with pauses of 0.7 to 2 s to a file of about so many seconds; the texts, and
    when each begins and ends."""
    pauses, said, length = np.random.default_rng(0), [], 0
    with soundfile.SoundFile(path, "w", 16000, 1) as file:
        for text, samples in cycle(sentences):
            pause = np.zeros(int(pauses.uniform(0.7, 2.0) * 16000))
            file.write(np.concatenate([samples, pause]))
            said.append((text, length / 16000, (length + samples.size) / 16000))
            length += samples.size + pause.size
            if length >= seconds * 16000:
                return said


def printed(program: str, path) -> dict:
    """What a program prints, which is given a recording and the tiny model, in a process alone."""
    command = [sys.executable, "-c", program, path, TINY]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_an_hour(tiny, sentences, tmp_path):
    faulthandler.cancel_dump_traceback_later()  # without a fast BLAS it takes a quarter of one
    said = join(sentences, HOUR, tmp_path / "hour.flac")
    result = printed(TRANSCRIBE, tmp_path / "hour.flac")
    segments = result["segments"]

    # every sentence once, where it is; the files have silence of their own at both ends
    assert len(segments) == len(said) > 800
    assert all(a[1] <= b[0] for a, b in pairwise(segments))
    assert segments[-1][1] <= result["duration"]
    unheard = 0
    for (text, begin, end), (start, stop, heard) in zip(said, segments, strict=True):
        assert begin - 0.2 < start < begin + 0.5
        assert end - 0.5 < stop < end + 0.2
        unheard += word_errors(text, heard) > len(text.split()) / 2
    # the model mishears one now and then, depending on where in its blocks it lies
    assert unheard < len(said) / 100

    alone = {
        text: word_errors(text, transcribe(samples, tiny, sampling_rate=16000).text)
        for text, samples in sentences
    }
    words = sum(len(text.split()) for text, *_ in said)
    errors = sum(
        word_errors(text, heard) for (text, *_), (*_, heard) in zip(said, segments, strict=True)
    )
    assert errors / words <= sum(alone[text] for text, *_ in said) / words + 0.03

    for early, late in zip(*result["peaks"], strict=True):
        assert late <= 1.1 * early


#: pushes a file to a live transcriber; prints the texts of its segments, and the most memory that
#: it had taken after four minutes and at its end
PUSH = """
import json, resource, sys
import mlx.core as mx
import soundfile
from mlx_speech import LiveTranscriber, load

live = LiveTranscriber(load(sys.argv[2], dtype=mx.float32), chunk_duration=9, min_silence=0.4)
texts, peaks, seconds = [], [], 0
mx.reset_peak_memory()
with soundfile.SoundFile(sys.argv[1]) as file:
    while True:
        samples = file.read(1600, dtype="float32")
        events = live.push(samples) if len(samples) else live.finish()
        texts += [event.text for event in events if event.kind == "corrected"]
        seconds += 0.1
        if abs(seconds - 240) < 0.05 or not len(samples):
            peaks.append([mx.get_peak_memory(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])
        if not len(samples):
            break
print(json.dumps({"texts": texts, "peaks": peaks}))
"""


@pytest.mark.slow
def test_twelve_minutes_live(tiny, sentences, tmp_path):
    """Word errors within half a point of those of the whole file, and memory that stays flat."""
    faulthandler.cancel_dump_traceback_later()
    said = " ".join(text for text, *_ in join(sentences, HOUR / 5, tmp_path / "minutes.flac"))
    result = printed(PUSH, tmp_path / "minutes.flac")
    cuts = {"chunk_duration": 9, "min_silence": 0.4}
    offline = transcribe(tmp_path / "minutes.flac", tiny, batch_size=16, **cuts).text
    more = word_errors(said, " ".join(result["texts"])) - word_errors(said, offline)
    assert more <= 0.005 * len(said.split())
    early, late = result["peaks"]
    assert all(after <= 1.1 * before for before, after in zip(early, late, strict=True))
