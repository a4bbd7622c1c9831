"""How soon live text is there: recordings pushed in real time, in pieces of 20 ms.

    python tests/benchmarks/live.py
    python tests/benchmarks/live.py --model ibm-granite/granite-speech-4.1-2b talk.wav

A word is shown when it, or what the decoder puts it in place of, first stands in its segment's
text, certain or not; its end is where the CTC head's alignment has it. After that, what the same
would take with a released model on another machine is calculated from what that machine computes
and reads in a second.

On Linux it preloads OpenBLAS if it is installed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from pathlib import Path

import mlx.core as mx
import numpy as np
from workers import preload_openblas

from mlx_speech import (
    GraniteSpeechCTCEncoder,
    GraniteSpeechEncoderConfig,
    LiveEvent,
    LiveTranscriber,
    load,
    load_audio,
)
from mlx_speech.profiling.counts import encoder_flops
from mlx_speech.transcription.live import HOP_SAMPLES

ROOT = Path(__file__).parents[2]
PIECE = 320
#: what is demanded, in seconds, of words and after the end of a pause that is long enough
SHOWN_SECONDS, CORRECTED_SECONDS = 1.2, 1.0
#: of granite-speech-4.1-2b: layers of its encoder, and of its decoder the weights
LAYERS, DECODER_WEIGHTS = 16, 2.0e9
FRAMES_PER_SECOND, BLOCK, HOLD_BACK = 50, 200, 15
#: of a sentence; passes a token as drafted decoding needs them (see tests/README.md)
SENTENCE_SECONDS, TOKENS_PER_SECOND, PASSES_PER_TOKEN = 6.0, 3.5, 0.3
PROMPT_TOKENS, AUDIO_TOKENS_PER_SECOND = 40, 10


def in_real_time(live: LiveTranscriber, samples: np.ndarray) -> Iterator[tuple[float, LiveEvent]]:
    """The events, and when each is there: seconds since the recording began."""
    start = time.perf_counter()
    for end, piece in pieces(samples):
        wait = start + end - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        for event in live.push(piece) if len(piece) else live.finish():
            yield time.perf_counter() - start, event


def in_processor_time(
    live: LiveTranscriber, samples: np.ndarray
) -> Iterator[tuple[float, LiveEvent]]:
    """As `in_real_time` would be if nobody else used the machine."""
    done = 0.0
    for end, piece in pieces(samples):
        start = time.process_time()
        events = live.push(piece) if len(piece) else live.finish()
        done = max(done, end) + time.process_time() - start
        for event in events:
            yield done, event


def pieces(samples: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """Pieces of a recording, and when each is there; the last one has nothing in it."""
    for first in range(0, len(samples) + PIECE, PIECE):
        piece = samples[first : first + PIECE]
        yield (first + len(piece)) / 16000, piece


def delays(timed: Iterable[tuple[float, LiveEvent]]) -> tuple[list[float], list[float]]:
    """How long after its end each word is shown, and each segment corrected."""
    words, segments = [], []
    shown: list[tuple[float, list[str]]] = []  # the texts of the open segment
    certain = ""
    for now, event in timed:
        if event.kind == "started":
            shown, certain = [], ""
        elif event.kind == "committed":
            certain += event.text
            shown.append((now, certain.split()))
        elif event.kind == "partial":
            shown.append((now, (certain + event.text).split()))
        elif event.kind == "stopped":
            stopped = event.time
        elif event.segment is not None:
            segments.append(now - stopped)
            spoken = [word.text for word in event.segment.words]
            first = [now] * len(spoken)
            for when, text in reversed(shown):
                matcher = SequenceMatcher(None, spoken, text, False)
                for tag, a, a_end, b, b_end in matcher.get_opcodes():
                    if tag in ("equal", "replace"):
                        known = min(a_end, a + b_end - b)
                        first[a:known] = [when] * (known - a)
            ends = (word.end for word in event.segment.words)
            words += [when - end for when, end in zip(first, ends, strict=True)]
    return words, segments


def told(name: str, seconds: list[float], limit: float) -> bool:
    """Print the quantiles; whether 95 of 100 are within the limit."""
    median, most, worst = np.quantile(seconds, [0.5, 0.95, 1.0])
    print(f"{name:<34}{len(seconds):>6}{median:>9.2f}{most:>9.2f}{worst:>9.2f}{limit:>9.2f}")
    return bool(most <= limit)


class _Encoder:
    """As `encoder_flops` wants it."""

    def __init__(self, layers: int):
        self._encoder = GraniteSpeechCTCEncoder(GraniteSpeechEncoderConfig(num_layers=layers))

    def audio_stages(self, features: mx.array) -> Iterator[tuple[str, mx.array]]:
        yield "encoder", self._encoder(features).last_hidden_state


def calculate(tflops: float, bandwidth: float, bits: float, min_silence: float) -> None:
    """What a released model takes on a machine of so many operations and bytes a second."""
    hop = HOP_SAMPLES / 16000
    frame = encoder_flops(_Encoder(LAYERS), mx.zeros((1, 2 * BLOCK, 160))) / (2 * BLOCK)
    seconds = frame / tflops / 1e12
    usual, longest = (BLOCK / 2 + HOLD_BACK) * seconds, (2 * BLOCK + HOLD_BACK) * seconds
    first = 3 * BLOCK * seconds
    # per second: hops that encode the open block, and once for each block two of them
    load = usual / hop + (longest - usual) / (BLOCK / FRAMES_PER_SECOND)
    one_pass = DECODER_WEIGHTS * bits / 8 / bandwidth / 1e9
    prompt = PROMPT_TOKENS + AUDIO_TOKENS_PER_SECOND * SENTENCE_SECONDS
    prefill = 2 * DECODER_WEIGHTS * prompt / tflops / 1e12
    passes = SENTENCE_SECONDS * TOKENS_PER_SECOND * PASSES_PER_TOKEN
    correction = longest + prefill + passes * one_pass
    print(f"\ngranite-speech-4.1-2b at {tflops:g} TFLOPS, {bandwidth:g} GB/s, {bits:g} bits, in s")
    print(f"encoding at a hop of {hop:.2f} s: {usual:.3f}, {longest:.3f} once a block, {first:.3f}")
    print(f"at the beginning of speech; while somebody speaks {load:.0%} of the time")
    print(f"a word is shown after {hop + usual:.2f} and what the CTC head is late")
    print(f"a sentence of {SENTENCE_SECONDS:g} s is corrected {correction:.2f} after the pause of")
    print(f"{min_silence:g} s was long enough, and that is noticed up to {hop:.2f} later")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("audio", nargs="*", default=[ROOT / "tests/data/audio/long.flac"])
    parser.add_argument("--model", default=ROOT / "examples/tiny-granite-speech")
    busy = "others use this machine: count processor time, on one core, instead of waiting"
    parser.add_argument("--busy", action="store_true", help=busy)
    parser.add_argument("--min-silence", type=float, default=0.5)
    parser.add_argument("--tflops", type=float, default=1.8, help="of matrix products (M1)")
    parser.add_argument("--bandwidth", type=float, default=60, help="GB/s (M1)")
    parser.add_argument("--bits", type=float, default=4.5, help="of a weight of the decoder")
    args = parser.parse_args()
    preload_openblas()
    model = load(args.model, dtype=mx.float32 if sys.platform == "linux" else None)
    push = in_processor_time if args.busy else in_real_time
    words: list[float] = []
    segments: list[float] = []
    for path in args.audio:
        options = {"min_silence": args.min_silence, "word_timestamps": True}
        more = delays(push(LiveTranscriber(model, **options), np.array(load_audio(path))))
        words, segments = words + more[0], segments + more[1]
    print(f"{'seconds':<34}{'number':>6}{'median':>9}{'95 %':>9}{'most':>9}{'limit':>9}")
    good = told("a word shown after its end", words, SHOWN_SECONDS)
    limit = args.min_silence + CORRECTED_SECONDS
    good &= told("corrected after the end of speech", segments, limit)
    calculate(args.tflops, args.bandwidth, args.bits, args.min_silence)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
