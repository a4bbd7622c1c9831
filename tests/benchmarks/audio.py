"""An hour of a video's sound: read as `open_recording` does, and by the ffmpeg program, if any.

Run with: python tests/benchmarks/audio.py
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from media import make

from mlx_speech.audio import open_recording

MINUTES = 60
RATE = 48000


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read(path: Path) -> None:
    with open_recording(path) as recording:
        assert abs(recording.duration - 60 * MINUTES) < 1


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "hour.mp4")
        noise = np.random.default_rng(0).normal(scale=0.1, size=60 * MINUTES * RATE)
        make(path, noise.astype(np.float32), rate=RATE, video=60.0 * MINUTES)
        program = shutil.which("ffmpeg")
        command = [program, "-nostdin", "-v", "error", "-i", str(path), "-map", "0:a:0"]
        command += ["-f", "f32le", "-ac", "1", "-ar", "16000", "-"]
        ours, theirs = [], []
        for _ in range(3):
            ours.append(timed(lambda: read(path)))
            if program:
                theirs.append(timed(lambda: subprocess.run(command, stdout=subprocess.DEVNULL)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(
            f"open_recording: {median(ours):.1f} s ({60 * MINUTES / median(ours):.0f} x real time)"
        )
        print(f"peak memory of the process, the making of the file included: {peak:.0f} MB")
        if program:
            print(f"ffmpeg: {median(theirs):.1f} s; ratio {median(theirs) / median(ours):.2f}")
        else:
            print("ffmpeg is not on this machine: nothing to compare with")


if __name__ == "__main__":
    main()
