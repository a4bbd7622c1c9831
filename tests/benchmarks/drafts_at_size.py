"""Drafted decoding at the released models' widths, beside decoding without, and beside mlx-audio.

    python tests/benchmarks/drafts_at_size.py
    python tests/benchmarks/drafts_at_size.py --layers 2 --runs 1

The decoder is as wide as that of granite-4.0-1b-speech and granite-speech-4.1-2b, with fewer
layers. Its weights are random, but for the head: that is the table of embeddings, moved by one row,
so that the answer to a prompt counts upwards and does not run into a loop. Drafts are the greedy
answers, in which 15 % of the tokens, at random places, are others.

Prompts have the projected audio of 15 s, random numbers. mlx-audio's `granite_speech` holds the
same arrays and decodes them one after the other: each run takes two of the eight, the next ones,
and counts four times. All sides take turns, run by run, and what they decode must agree.

Decoding is what comes after the prompts' pass; the first tokens that this pass has checked already
are its own. It checks what is demanded, and the exit status tells. Where that is not met, the bare
matrix products of a pass say what the machine has for it.

On Linux it preloads OpenBLAS if it is installed.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
from checkpoint import checkpoint_config
from mlx.utils import tree_flatten
from passes import print_passes
from workers import Demands, preload_openblas

from mlx_speech.generation import GenerationConfig, prefill
from mlx_speech.models.granite_speech import (
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
)
from mlx_speech.profiling.machine import blas_name, device_name, machine_name

OURS, THEIRS = "mlx-speech", "mlx-audio"
ONE, ONE_DRAFTED = "1 row", "1 row, drafts"
MANY, MANY_DRAFTED = "8 rows", "8 rows, drafts"
MANY_ALIKE, MANY_UNLIKE = "8 rows, accepting the same", "8 rows, accepting different"
THEIRS_DRAFTED = "mlx-audio, drafts"
ROWS = 8
AUDIO_TOKENS, AUDIO_FRAMES = 150, 750  #: 15 s
AUDIO_ID = 7
TEXT = range(100, 115)  #: ids of the rest of a prompt
NEW_TOKENS = 80
RIGHT = 0.85  #: share of the drafted tokens
#: tokens that a pass gives a row, the correction included: as many in all
ALIKE, UNLIKE = (5,) * 8, (2, 8, 3, 7, 4, 6, 5, 5)
THEIR_ROWS = 2  #: that they decode in a run
#: the encoder runs for its memory alone, of which more layers take no more
ENCODER_LAYERS = 2
PART_FRAMES = 1500  #: that the encoder gets at once


@dataclass
class Run:
    """What one side did.

    prompts_s, steps_s: seconds of the prompts' pass, and of all after it.
    passes: of the model after that of the prompts; one over many rows counts once.
    given: tokens that the prompts' pass gave, of all rows.
    tokens: the answers.
    """

    prompts_s: float
    steps_s: float
    passes: int
    given: int
    tokens: list[list[int]]

    @property
    def seconds(self) -> float:
        return self.prompts_s + self.steps_s

    @property
    def per_token(self) -> float:
        """Seconds for each token after the prompts' pass."""
        return self.steps_s / (sum(map(len, self.tokens)) - self.given)


def make_models(layers: int) -> tuple:
    """Ours and theirs, whose decoders hold the same arrays."""
    from mlx_audio.stt.models.granite_speech import Model, ModelConfig

    values = checkpoint_config(ENCODER_LAYERS, layers, "float32")
    values["text_config"]["tie_word_embeddings"] = values["tie_word_embeddings"] = False
    ours = GraniteSpeechForConditionalGeneration(GraniteSpeechConfig.from_dict(values))
    theirs = Model(ModelConfig.from_dict(values))
    theirs._tokenizer = SimpleNamespace(eos_token_id=-1)
    mx.random.seed(0)
    weights = {}
    for name, value in tree_flatten(ours.language_model.parameters()):
        drawn = mx.random.uniform(-1, 1, value.shape)
        matrix = value.ndim == 2
        weights[name] = drawn * math.sqrt(3 / value.shape[1]) if matrix else 1 + 0.1 * drawn
        mx.eval(weights[name])
    weights["lm_head.weight"] = mx.roll(weights["model.embed_tokens.weight"], 1, axis=0)
    for model in (ours, theirs):
        model.language_model.load_weights(list(weights.items()))
        model.eval()
        mx.eval(model.parameters())
    return ours, theirs


def make_prompts(model) -> dict[str, mx.array]:
    """What our `generate` takes for all rows; the last id of each is one of its own."""
    text = list(TEXT)
    ids = [[*text, *[AUDIO_ID] * AUDIO_TOKENS, *text, 10000 * (row + 1)] for row in range(ROWS)]
    width = model.config.text_config.hidden_size
    shape = (ROWS, AUDIO_TOKENS, width)
    audio = mx.random.normal(shape, key=mx.random.key(1)) * width**-0.5
    return {"input_ids": mx.array(ids), "audio_features": audio}


# --- the sides ---


def decode_ours(model, prompts: dict, drafts: Sequence[list[int]] | None) -> Run:
    """All rows at once; those that end make room, as in transcription."""
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, eos_token_id=[])
    times = [time.perf_counter()]
    if drafts is None:
        rows: list[list[int]] = []
        for step in prefill(model, generation_config=config, **prompts).steps():
            rows.append(step.tokens)
            times.append(time.perf_counter())
        tokens = [list(answer) for answer in zip(*rows, strict=True)]
        return Run(times[1] - times[0], times[-1] - times[1], len(rows) - 1, len(tokens), tokens)
    speculation = prefill(model, generation_config=config, drafts=drafts, **prompts).speculation
    times.append(time.perf_counter())
    answers, passes = list(speculation.answers), 0
    given = sum(len(answer.tokens) for answer in answers)
    while speculation.answers:
        speculation.advance()
        speculation.take_ended()
        passes += 1
    seconds = times[1] - times[0], time.perf_counter() - times[1]
    return Run(*seconds, passes, given, [answer.tokens for answer in answers])


def decode_theirs(
    model, prompts: dict, rows: Sequence[int], drafts: Sequence[list[int]] | None
) -> Run:
    """One row after the other, as its `generate` does: from embeddings."""
    from mlx_audio.lm.generate import generate_step
    from mlx_audio.stt.models.granite_speech.speculative import speculative_generate_step

    total = Run(0.0, 0.0, 0, 0, [])
    for row in rows:
        ids = prompts["input_ids"][row]
        start = time.perf_counter()
        embeddings = model._build_inputs_embeds(ids, prompts["audio_features"][row : row + 1])[0]
        given = {"prompt": ids, "input_embeddings": embeddings, "max_tokens": NEW_TOKENS}
        stats: dict[str, int] = {}
        if drafts is None:
            steps = generate_step(model=model, **given)
        else:
            draft = {"draft_tokens": drafts[row], "stats": stats}
            steps = speculative_generate_step(model=model, **given, **draft)
        tokens, times = [], []
        for token, _ in steps:
            tokens.append(token)
            times.append(time.perf_counter())
        total.prompts_s += times[0] - start
        total.steps_s += times[-1] - times[0]
        counted = stats.get("verification_steps", 0) + stats.get("autoregressive_steps", 0)
        total.passes += counted if stats else len(tokens) - 1
        total.given += 1
        total.tokens.append(tokens)
    return total


# --- drafts ---


def with_errors(answer: Sequence[int], places: Sequence[int]) -> list[int]:
    """A draft that is right but at these places."""
    return [token + 1000 * (place in places) for place, token in enumerate(answer)]


def random_drafts(answers: Sequence[Sequence[int]]) -> list[list[int]]:
    rng = np.random.default_rng(0)
    errors = round(NEW_TOKENS * (1 - RIGHT))
    return [
        with_errors(answer, rng.choice(NEW_TOKENS, errors, replace=False).tolist())
        for answer in answers
    ]


def drafts_in_runs(answers: Sequence[Sequence[int]], runs: Sequence[int]) -> list[list[int]]:
    """Drafts of which each pass takes so many tokens, the correction included; row i begins with
    `runs[i]` and goes round."""
    drafts = []
    for row, answer in enumerate(answers):
        turned = [runs[(row + i) % len(runs)] for i in range(len(runs))]
        lengths = turned * (NEW_TOKENS // sum(runs))
        ends = np.cumsum(lengths) - 1
        # one of 8 ends because no more are checked at once
        places = [int(e) for e, n in zip(ends, lengths, strict=True) if n < 8]
        drafts.append(with_errors(answer, places))
    return drafts


# --- memory ---


def peak_of(compute: Callable[[], Any]) -> tuple[Any, int]:
    """What it gives, and the most memory that it took, in bytes above what was there before."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    return compute(), mx.get_peak_memory() - before


def encode_ours(model, features: mx.array) -> list[mx.array]:
    """The audio of all rows as transcription makes it: encoded as a stream."""
    encoder = model.encode_stream()
    parts = mx.split(features, len(features) // PART_FRAMES)
    hidden = [
        encoder.push(part, last=number + 1 == len(parts)).last_hidden_state
        for number, part in enumerate(parts)
    ]
    audio = []
    for chunk in mx.split(mx.concatenate(hidden, axis=1), ROWS, axis=1):
        audio.append(model.project(chunk))
        mx.eval(audio)
    return audio


def encode_theirs(model, features: mx.array) -> None:
    mx.eval(model.get_audio_features(features[None]))


# --- all together ---


def run_in_turn(
    sides: dict[str, Callable[[int], Run]], runs: int
) -> tuple[dict[str, list[Run]], dict[str, int]]:
    """Every side's runs, and the most memory that one of them took."""
    results: dict[str, list[Run]] = {side: [] for side in sides}
    peaks = dict.fromkeys(sides, 0)
    for number in range(runs):
        for side in list(sides)[:: -1 if number % 2 else 1]:
            run, peak = peak_of(partial(sides[side], number))
            results[side].append(run)
            peaks[side] = max(peaks[side], peak)
    return results, peaks


def print_runs(results: dict[str, list[Run]], peaks: dict[str, int]) -> None:
    columns = f"{'prompts, s':>11}{'all, s':>9}{'ms/token':>10}{'passes':>8}{'MiB':>8}"
    print(f"\n{'medians':<32}{columns}")
    for side, runs in results.items():
        prompts, whole, token = (
            statistics.median(getattr(run, name) for run in runs)
            for name in ("prompts_s", "seconds", "per_token")
        )
        memory = f"{runs[0].passes:8}{peaks[side] / 2**20:8.0f}"
        print(f"  {side:<30}{prompts:11.2f}{whole:9.2f}{1000 * token:10.1f}{memory}")


def benchmark(layers: int, runs: int, demands: Demands) -> None:
    """Measure, print and check."""
    ours, theirs = make_models(layers)
    prompts = make_prompts(ours)
    first = {name: value[:1] for name, value in prompts.items()}
    answers = decode_ours(ours, prompts, None).tokens
    drafts = random_drafts(answers)
    decode_ours(ours, prompts, drafts)  # memory that is touched first costs more
    alike, unlike = (drafts_in_runs(answers, taken) for taken in (ALIKE, UNLIKE))

    def some(number: int) -> list[int]:
        return [(number * THEIR_ROWS + i) % ROWS for i in range(THEIR_ROWS)]

    sides: dict[str, Callable[[int], Run]] = {
        ONE: lambda _: decode_ours(ours, first, None),
        ONE_DRAFTED: lambda _: decode_ours(ours, first, drafts[:1]),
        MANY: lambda _: decode_ours(ours, prompts, None),
        MANY_DRAFTED: lambda _: decode_ours(ours, prompts, drafts),
        MANY_ALIKE: lambda _: decode_ours(ours, prompts, alike),
        MANY_UNLIKE: lambda _: decode_ours(ours, prompts, unlike),
        THEIRS: lambda number: decode_theirs(theirs, prompts, some(number), None),
        THEIRS_DRAFTED: lambda number: decode_theirs(theirs, prompts, some(number), drafts),
    }
    results, peaks = run_in_turn(sides, runs)
    print_runs(results, peaks)
    features = mx.random.normal((ROWS * AUDIO_FRAMES, 160), key=mx.random.key(2))
    mx.eval(features)
    memory = {}
    for side, decoding, encode in (
        (OURS, MANY_DRAFTED, partial(encode_ours, ours)),
        (THEIRS, THEIRS, partial(encode_theirs, theirs)),
    ):
        _, peak = peak_of(partial(encode, features))
        print(f"  {side + ', encoding all audio':<30}{peak / 2**20:46.0f}")
        memory[side] = max(peak, peaks[decoding])
    products = print_passes(ours, prompts, runs)

    def ratio(slow: str, fast: str, name: str) -> float:
        """Median over the turns, in each of which both found the same machine."""
        pairs = zip(results[slow], results[fast], strict=True)
        return statistics.median(getattr(a, name) / getattr(b, name) for a, b in pairs)

    def bare(slow: str, fast: str, rows: int, fed: int) -> str:
        """What the products alone would give."""
        passes = results[slow][0].passes / results[fast][0].passes
        given = 1 - results[fast][0].given / (rows * NEW_TOKENS)
        return f"{passes * given * products[rows, 1] / products[rows, fed]:.2f}x"

    print("\ndemands")
    times = ROWS / THEIR_ROWS
    demands.at_least("decoding, 1 row", ratio(ONE, ONE_DRAFTED, "per_token"), 3)
    print(f"    the bare products alone: {bare(ONE, ONE_DRAFTED, 1, 16)}")
    demands.at_least(f"decoding, {ROWS} rows", ratio(MANY, MANY_DRAFTED, "per_token"), 2)
    print(f"    the bare products alone: {bare(MANY, MANY_DRAFTED, ROWS, 8)}")
    uneven = ratio(MANY_UNLIKE, MANY_ALIKE, "steps_s")
    demands.at_most("rows that accept different, or equal numbers", uneven, 1.15)
    equal = results[MANY_ALIKE][0].passes == results[MANY_UNLIKE][0].passes
    demands.check("... in equally many passes", equal)
    faster = times * ratio(THEIRS, MANY_DRAFTED, "seconds")
    demands.at_least(f"all {ROWS}, beside {THEIRS}", faster, 7)
    faster = times * ratio(THEIRS_DRAFTED, MANY_DRAFTED, "seconds")
    demands.at_least(f"all {ROWS}, beside {THEIRS} with these drafts", faster, 1.5)
    demands.at_most(f"peak memory, to that of {THEIRS}", memory[OURS] / memory[THEIRS], 0.25)
    decoded = [tokens for side in results.values() for run in side for tokens in run.tokens]
    demands.check("all decode the same", all(tokens in answers for tokens in decoded))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8, help="decoder layers (8; really 40)")
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each side (3)")
    options = parser.parse_args()
    if importlib.util.find_spec("mlx_audio") is None:
        print("mlx-audio is not installed; `make bench` installs it and runs this", file=sys.stderr)
        return 1
    preload_openblas()
    print(machine_name())
    print(f"MLX {mx.__version__} on {device_name()}{blas_name()}; load {os.getloadavg()[0]:.1f}")
    print(f"{THEIRS} {importlib.metadata.version('mlx-audio')}")
    print(
        f"{options.layers} decoder layers, float32, prompts of {AUDIO_TOKENS + 2 * len(TEXT) + 1}, "
        f"{NEW_TOKENS} new tokens; {options.runs} runs each, in turn"
    )
    demands = Demands()
    benchmark(options.layers, options.runs, demands)
    return demands.status()


if __name__ == "__main__":
    sys.exit(main())
