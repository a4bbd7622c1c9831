"""How much faster several machines transcribe a folder than one: a simulation.

    python tests/benchmarks/distributed.py
    python tests/benchmarks/distributed.py --model ibm-granite/granite-speech-4.1-2b

What a recording takes on this machine is measured: to open it, and each second of it, of which a
part is the scan of the whole that every part of a divided recording needs. Who does what, and when
all is done, is then calculated for 1,000 recordings whose lengths are drawn, in the same way as
`mlx.launch -n N python -m mlx_speech.transcribe` hands them out.

It assumes that each machine has the files and the model and loads that once, all at the same time;
that a second of audio takes as long in a long recording as in a short one; that messages take no
time; and that parts have the halo of the released models with 16 encoder layers.

On Linux it preloads OpenBLAS if it is installed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import soundfile
from workers import Demands, preload_openblas

sys.path.insert(0, str(Path(__file__).parents[1]))
from simulated_schedule import simulate

from mlx_speech import GraniteSpeechCTCEncoder, GraniteSpeechEncoderConfig, load, transcribe
from mlx_speech.audio import load_audio, open_recording
from mlx_speech.distributed.schedule import numbers_of_parts
from mlx_speech.models.conformer_stream import reach_frames
from mlx_speech.processing.log_mel import PART_FRAMES
from mlx_speech.profiling.machine import blas_name, device_name, machine_name
from mlx_speech.transcription.frames import FRAMES_PER_SECOND
from mlx_speech.transcription.parts import Halo, split

ROOT = Path(__file__).parents[2]
LONG = ROOT / "tests" / "data" / "audio" / "long.flac"
MEASURED_SECONDS = (5, 60, 240)
MACHINES = (2, 4, 8, 16)
SHARE = 0.5  #: of what is possible that is demanded
ROUND_ROBIN, WHOLE, PARTS = "round-robin", "longest first", "longest first, in parts"


@dataclass(frozen=True)
class Costs:
    """What a machine takes, in seconds: to load the model, for each recording or part, to read and
    scan a second of audio, and for all else of it."""

    load: float
    opening: float
    scan: float
    rest: float


def best(call: Callable[[], Any], runs: int) -> float:
    """Seconds that it takes when nothing else disturbs it; on a CPU those of the processor."""
    clock = time.process_time if mx.default_device() == mx.cpu else time.perf_counter
    taken = []
    for _ in range(runs):
        start = clock()
        call()
        taken.append(clock() - start)
    return min(taken)


def measure(source: str, runs: int) -> Costs:
    """The costs on this machine."""
    start = time.perf_counter()
    loaded = load(source)
    mx.eval(loaded[0].parameters())
    loading = time.perf_counter() - start
    extractor = loaded[1].audio_processor
    rate = extractor.sampling_rate
    samples = np.array(load_audio(LONG, target_sampling_rate=rate))
    whole = []
    with tempfile.TemporaryDirectory() as folder:
        for seconds in MEASURED_SECONDS:
            file = Path(folder) / f"{seconds}.wav"
            soundfile.write(file, np.resize(samples, seconds * rate), rate)

            def scan(file: Path = file) -> None:
                with open_recording(file, target_sampling_rate=rate) as recording:
                    for _ in extractor.scan(recording, PART_FRAMES):
                        pass

            whole.append(best(lambda file=file: transcribe(file, loaded), runs))
        scanning = best(scan, runs) / seconds  # of the longest
    slope, opening = np.polyfit(MEASURED_SECONDS, whole, 1)
    return Costs(loading, max(opening, 0.0), scanning, slope - scanning)


def draw_lengths(number: int, seed: int) -> list[float]:
    """Seconds of recordings in the order of their names: one in a hundred has 1 to 10 hours, each
    factor as likely as another, the others 4 minutes as their median, log-normal with sigma 1, and
    5 s to an hour."""
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(240), 1, number), 5, 3600)
    lengths[: number // 100] = 3600 * np.exp(random.uniform(0, np.log(10), number // 100))
    return random.permutation(lengths).tolist()


def released_halo() -> Halo:
    """That of the released models of 16 layers."""
    encoder = GraniteSpeechCTCEncoder(GraniteSpeechEncoderConfig())
    size = encoder.config.context_size
    return Halo(PART_FRAMES, size, reach_frames(encoder.layers, size))


def tasks_of(lengths: Sequence[float], machines: int, costs: Costs, halo: Halo | None) -> list:
    """Seconds that each task takes; recordings are divided if there is a halo."""
    numbers = [1] * len(lengths) if halo is None else numbers_of_parts(lengths, machines)
    tasks = []
    for length, number in zip(lengths, numbers, strict=True):
        parts = [] if halo is None else split(length, number, halo.least_part)
        if len(parts) < 2:
            tasks.append(costs.opening + length * (costs.scan + costs.rest))
            continue
        after = (halo.reach_frames + halo.push_frames) / FRAMES_PER_SECOND
        for part in parts:
            _, end = part.seconds(length)
            computed = min(end + after, length) - halo.start(part) / FRAMES_PER_SECOND
            tasks.append(costs.opening + length * costs.scan + computed * costs.rest)
    return tasks


def speedup(lengths: Sequence[float], speeds: Sequence[float], costs: Costs, how: str) -> float:
    """Of machines of these speeds, beside one of speed 1."""
    alone = costs.load + sum(tasks_of(lengths, 1, costs, None))
    halo = released_halo() if how == PARTS else None
    tasks = tasks_of(lengths, len(speeds), costs, halo)
    order = "round robin" if how == ROUND_ROBIN else "longest first"
    return alone / (costs.load / min(speeds) + simulate(tasks, speeds, order))


def table(lengths: Sequence[float], costs: Costs, slowest: float) -> dict[tuple[int, str], float]:
    """Print speed-ups, where one machine has that speed and all others 1; returns them as a share
    of what is possible."""
    print(f"{'machines':>8}" + "".join(f"{how:>25}" for how in (PARTS, WHOLE, ROUND_ROBIN)))
    shares = {}
    for number in MACHINES:
        speeds = [1.0] * (number - 1) + [slowest]
        line = f"{number:>8}"
        for how in (PARTS, WHOLE, ROUND_ROBIN):
            found = speedup(lengths, speeds, costs, how)
            shares[number, how] = found / sum(speeds)
            line += f"{found:>17.2f} ({shares[number, how]:4.0%})"
        print(line)
    return shares


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tiny = str(ROOT / "examples" / "tiny-granite-speech")
    parser.add_argument("--model", default=tiny, help="folder or repository")
    parser.add_argument("--recordings", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    preload_openblas()
    print(f"{machine_name()}; MLX {mx.__version__} on {device_name()}{blas_name()}")
    costs = measure(options.model, options.runs)
    print(
        f"{Path(options.model).name}: {costs.load:.1f} s to load, {costs.opening * 1000:.0f} ms "
        f"for each recording;\nfor an hour of audio {costs.scan * 3600:.1f} s to scan it and "
        f"{costs.rest * 3600:.0f} s for all else"
    )
    lengths = draw_lengths(options.recordings, options.seed)
    print(
        f"{len(lengths)} recordings of {min(lengths):.0f} s to {max(lengths) / 3600:.1f} h, "
        f"{sum(lengths) / 3600:.0f} h in all, of which {sum(sorted(lengths)[-10:]) / 3600:.0f} h "
        "are the longest ten"
    )
    print("\nsimulated: times as fast as one machine, and the share of what is possible")
    equal = table(lengths, costs, 1.0)
    print("\nthe same where one machine is half as fast as each other")
    unequal = table(lengths, costs, 0.5)
    print("\none recording of ten hours")
    single = table([36000.0], costs, 1.0)
    print("\ndemands")
    demands = Demands()
    for what, shares in (("equal", equal), ("one slower", unequal), ("one recording", single)):
        for number in MACHINES:
            demands.check(
                f"{number} machines, {what}",
                shares[number, PARTS] >= SHARE,
                f"{shares[number, PARTS]:.0%} >= {SHARE:.0%}",
            )
    return demands.status()


if __name__ == "__main__":
    sys.exit(main())
