"""What drafts are good for: the trained tiny model with and without them, on recorded speech.

    python tests/benchmarks/drafts.py
    python tests/benchmarks/drafts.py --hour

Passes of the decoder for each token, with both CTC heads, one recording at a time, the prompt's
pass included; and the time that the decoder takes for a long recording, whose encoder's work is
done before. The human recordings, which are not bundled, are looked for beside the checkout: their
speakers count as unknown.

It checks what is demanded, and that the ids are those of greedy search; the exit status tells.

On Linux it preloads OpenBLAS if it is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import mlx.core as mx
import numpy as np
from workers import Demands, preload_openblas

from mlx_speech import load, load_audio, transcribe
from mlx_speech.audio.load import SAMPLING_RATE
from mlx_speech.checkpoint.folder import BPE_HEAD
from mlx_speech.generation.speculative import DraftStatistics
from mlx_speech.profiling.machine import blas_name, device_name, machine_name
from mlx_speech.transcription.chunks import AudioChunk, ChunkOptions
from mlx_speech.transcription.family import ChunkDecoder
from mlx_speech.transcription.pipeline import BATCH_SIZE, prepare

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "examples" / "tiny-granite-speech"
BUNDLED = ROOT / "tests" / "data" / "audio"
HUMAN = ROOT.parent / "shared" / "audio" / "human"
PROMPTS, GREEDY, DRAFTED = "prompts alone", "without drafts", "with drafts"
#: options of each, and whether there are drafts
SIDES: dict[str, tuple[dict, bool]] = {
    PROMPTS: ({"max_new_tokens": 1}, False),
    GREEDY: ({}, False),
    DRAFTED: ({}, True),
}

#: demanded: passes for a token at most, and how many times faster the decoder has to be
MOST_PASSES = {"known voices": 0.20, "unknown voices": 0.33}
LEAST_SPEEDUP = 2.0
#: the model was trained on single sentences, and makes nothing sensible of several at once
CUTS = ChunkOptions(chunk_duration=9, min_silence=0.4)
HOUR_SECONDS = 3600


def spoken(folder: Path) -> list[Path]:
    """The recordings of a folder in which something is said."""
    entries = map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())
    return [folder / entry["file"] for entry in entries if entry["text"]]


def load_heads() -> dict[str, tuple]:
    """The model with each of its CTC heads as what drafts come from."""
    with tempfile.TemporaryDirectory(prefix="mlx-speech-benchmark-") as folder:
        for file in TINY.iterdir():
            if file.name != BPE_HEAD:
                (Path(folder) / file.name).symlink_to(file)
        without = load(folder, dtype=mx.float32)
        return {"BPE": load(TINY, dtype=mx.float32), "characters": without}


def count_passes(loaded: tuple, files: Sequence[Path]) -> tuple[DraftStatistics, bool]:
    """What drafts are good for over all files; whether the ids are those of greedy search."""
    statistics, same = DraftStatistics(), True
    for file in files:
        drafted, greedy = (transcribe(file, loaded, draft=on, batch_size=1) for on in (True, False))
        statistics += drafted.drafts or DraftStatistics()
        pairs = [[segment.tokens for segment in each.segments] for each in (drafted, greedy)]
        same &= pairs[0] == pairs[1]
    return statistics, same


def joined(seconds: float) -> np.ndarray:
    """The bundled sentences, over and over, with pauses of 0.7 to 2 s; about so long."""
    prefixes = "espeak", "flite", "festival"
    files = [file for file in spoken(BUNDLED) if file.name.startswith(prefixes)]
    sentences = cycle([np.array(load_audio(file)) for file in files])
    pauses, parts, length = np.random.default_rng(0), [], 0
    while length < seconds * SAMPLING_RATE:
        pause = np.zeros(int(pauses.uniform(0.7, 2.0) * SAMPLING_RATE), np.float32)
        parts += [next(sentences), pause]
        length += parts[-2].size + pause.size
    return np.concatenate(parts)


def decode(
    decoder: ChunkDecoder, chunks: Sequence[AudioChunk], size: int
) -> tuple[float, list[str]]:
    """The decoder's seconds for chunks that are encoded, so many at a time, and their texts."""
    start_s = time.perf_counter()
    segments = [s for batch in decoder.decode(chunks, size) for _, said in batch for s in said]
    return time.perf_counter() - start_s, [segment.text for segment in segments]


def measure_decoding(audio: Path | np.ndarray, loaded: tuple, runs: int, demands: Demands) -> None:
    """Decode a long recording with and without drafts, in turn, one chunk at a time and many."""
    reading = {} if isinstance(audio, Path) else {"sampling_rate": SAMPLING_RATE}
    jobs = {
        side: prepare(audio, loaded, reading, chunking=CUTS, options=options, draft=draft)
        for side, (options, draft) in SIDES.items()
    }
    chunks = list(jobs[DRAFTED].chunks)
    print(f"{audio.name if isinstance(audio, Path) else 'an hour'}, {len(chunks)} chunks")
    for size in (1, BATCH_SIZE):
        seconds: dict[str, list[float]] = {side: [] for side in jobs}
        texts = {}
        for number in range(runs + 1):
            for side in list(jobs)[:: -1 if number % 2 else 1]:
                taken, texts[side] = decode(jobs[side].decoder, chunks, size)
                if number:  # the first is a warm-up
                    seconds[side].append(taken)
        median = {side: statistics.median(taken) for side, taken in seconds.items()}
        told = ", ".join(f"{side} {taken:.2f}" for side, taken in median.items())
        print(f"  batches of {size}, seconds: {told}")
        steps = {side: median[side] - median[PROMPTS] for side in (GREEDY, DRAFTED)}
        print(f"    without what the prompts take: {steps[GREEDY] / steps[DRAFTED]:.2f}x")
        faster = median[GREEDY] / median[DRAFTED]
        if size == 1:
            demands.at_least("decoding", faster, LEAST_SPEEDUP)
        else:
            # of a model this small the prompts alone take a third of the time
            print(f"    with it: {faster:.2f}x")
        demands.check("... the same text", texts[DRAFTED] == texts[GREEDY])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each side (5)")
    parser.add_argument("--hour", action="store_true", help="decode a recording of an hour as well")
    options = parser.parse_args()
    preload_openblas()
    print(machine_name())
    print(f"MLX {mx.__version__} on {device_name()}{blas_name()}; load {os.getloadavg()[0]:.1f}")
    print(f"{TINY.name}, float32; {options.runs} runs each, in turn, medians\n")
    demands = Demands()
    heads = load_heads()
    print(f"{'passes of the decoder, one recording at a time':<48}{'passes':>10}{'tokens':>10}")
    voices = {"known voices": spoken(BUNDLED)}
    if HUMAN.exists():
        voices["unknown voices"] = spoken(HUMAN)
    for head, loaded in heads.items():
        for voice, files in voices.items():
            counts, same = count_passes(loaded, files)
            what = f"{head}, {voice}"
            print(f"{what:<48}{counts.passes:>10}{counts.tokens:>10}")
            demands.at_most("passes a token", counts.passes / counts.tokens, MOST_PASSES[voice])
            demands.check("the ids of greedy search", same)
    recordings = [BUNDLED / "long.flac", *([joined(HOUR_SECONDS)] if options.hour else [])]
    for audio in recordings:
        for head, loaded in heads.items():
            print(f"\n{head}, ", end="")
            measure_decoding(audio, loaded, options.runs, demands)
    return demands.status()


if __name__ == "__main__":
    sys.exit(main())
