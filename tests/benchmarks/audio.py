"""Seconds to read an hour of a video's sound, beside the ffmpeg program where there is one.

    python tests/benchmarks/audio.py

The video has AAC in stereo at 48 kHz. `open_recording` checks and keeps its samples, at 16 kHz in
one channel; the program is asked for the same and its output is thrown away. They take turns. The
file is made in another process, so that the memory told is that of reading.
"""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from media import make

from mlx_speech.audio import open_recording

MINUTES = 60
RATE = 48000


def make_video(path: Path) -> None:
    """A minute of noise and pictures, as often as there are minutes."""
    noise = np.random.default_rng(0).standard_normal((60 * RATE, 2), np.float32)
    minute = make(path.with_name("minute.mp4"), 0.1 * noise, rate=RATE, layout="stereo", video=60.0)
    with av.open(path, "w") as out:
        copies, ends = [], [0, 0]
        for _ in range(MINUTES):
            with av.open(minute) as source:
                copies = copies or [out.add_stream_from_template(s) for s in source.streams]
                for packet in source.demux():
                    if packet.dts is not None:
                        index = packet.stream.index
                        packet.dts = packet.pts = ends[index]
                        ends[index] += packet.duration
                        packet.stream = copies[index]
                        out.mux(packet)


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read(path: Path) -> None:
    with open_recording(path) as recording:
        # a minute of AAC is a whole number of its frames, and one more
        assert 0 <= recording.duration / 60 - MINUTES < 0.05


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "hour.mp4")
        maker = multiprocessing.get_context("spawn").Process(target=make_video, args=(path,))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit("the video could not be made")
        program = shutil.which("ffmpeg")
        command = [program, "-nostdin", "-v", "error", "-i", str(path), "-map", "0:a:0"]
        command += ["-f", "f32le", "-ac", "1", "-ar", "16000", "-"]
        ours, theirs = [], []
        for _ in range(3):
            ours.append(timed(lambda: read(path)))
            if program:
                theirs.append(
                    timed(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))
                )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        megabytes = peak / (1e6 if sys.platform == "darwin" else 1e3)  # bytes there, kB elsewhere
        print(
            f"open_recording: {median(ours):.1f} s ({60 * MINUTES / median(ours):.0f} x real time)"
        )
        print(f"peak memory of the process: {megabytes:.0f} MB")
        if program:
            print(f"ffmpeg: {median(theirs):.1f} s; ratio {median(theirs) / median(ours):.2f}")
        else:
            print("ffmpeg is not on this machine: nothing to compare with")


if __name__ == "__main__":
    main()
