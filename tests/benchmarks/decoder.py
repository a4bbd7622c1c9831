"""Speed of the text decoders, beside mlx-lm's `llama` and `granite` with the same weights.

    python tests/benchmarks/decoder.py
    python tests/benchmarks/decoder.py --family granite --dtype bfloat16 --layers 16

Both packages' models hold the same random arrays, in one process, and take turns, run by run. What
they decode must agree. A second table shows what a longer context costs a token, and how much of
that is attention over the longer cache.

On Linux it preloads OpenBLAS if it is installed. MLX multiplies quantized matrices so slowly on a
CPU that the prompt has 16 tokens there at most, and 8 are decoded. mlx-lm computes the last layer
for the prompt's last token alone, which tells where there are few layers.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from workers import preload_openblas

from mlx_speech.generation import GenerationConfig, prefill
from mlx_speech.layers.attention import scaled_dot_product_attention
from mlx_speech.loading import architecture
from mlx_speech.profiling.machine import blas_name, device_name, machine_name

OURS, THEIRS = "mlx-speech", "mlx-lm"
#: most tokens of the prompt, and new ones, where quantized weights are multiplied on a CPU
CPU_PROMPT, CPU_TOKENS = 16, 8
#: a 1b-like shape
SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.015625,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}


def make_models(
    family: str, layers: int, dtype: mx.Dtype, bits: int | None
) -> dict[str, nn.Module]:
    """Ours and mlx-lm's, with the same weights."""
    from importlib import import_module

    config = {**SHAPE, "model_type": family, "num_hidden_layers": layers}
    config |= MULTIPLIERS if family == "granite" else {}
    model_class = architecture(family).model_class()
    ours = model_class(model_class.config_class.from_dict(config))
    module = import_module(f"mlx_lm.models.{family}")
    old_names = {"rope_theta": 10000.0, "attention_bias": False, "mlp_bias": False}
    theirs = module.Model(module.ModelArgs.from_dict(config | old_names))
    shapes = {name: value.shape for name, value in tree_flatten(ours.parameters())}
    assert shapes == {name: value.shape for name, value in tree_flatten(theirs.parameters())}
    mx.random.seed(0)
    weights = []
    for name, shape in shapes.items():
        deviation = 0.02 if len(shape) == 1 else shape[-1] ** -0.5
        drawn = mx.random.normal(shape) * deviation + (1.0 if len(shape) == 1 else 0.0)
        weights.append((name, drawn.astype(dtype)))
        mx.eval(weights[-1][1])
    models = {OURS: ours, THEIRS: theirs}
    for model in models.values():
        model.load_weights(weights)
        model.eval()
        if bits is not None:
            nn.quantize(model, group_size=64, bits=bits)
            mx.eval(model.parameters())
    return models


def decode_ours(model, prompt: mx.array, count: int) -> Iterator[int]:
    config = GenerationConfig(max_new_tokens=count, eos_token_id=[])
    for step in prefill(model, prompt[None], generation_config=config, streaming=True).steps():
        yield step.tokens[0]


def decode_theirs(model, prompt: mx.array, count: int) -> Iterator[int]:
    from mlx_lm.generate import generate_step

    for token, _ in generate_step(prompt, model, max_tokens=count):
        yield int(token)


DECODERS: dict[str, Callable] = {OURS: decode_ours, THEIRS: decode_theirs}


def run(side: str, model, prompt: mx.array, count: int) -> tuple[float, float, list[int]]:
    """Seconds to the first token, seconds for each further one, and the tokens."""
    gc.collect()
    mx.clear_cache()
    times, tokens = [time.perf_counter()], []
    for token in DECODERS[side](model, prompt, count):
        tokens.append(token)
        times.append(time.perf_counter())
    return times[1] - times[0], (times[-1] - times[1]) / (count - 1), tokens


def compare(models, prompt: mx.array, count: int, runs: int) -> bool:
    """Print both sides' speeds; whether they decode the same."""
    results = {side: [] for side in models}
    same = True
    for number in range(runs + 1):
        turns = {}
        for side in list(models)[:: -1 if number % 2 else 1]:
            turns[side] = run(side, models[side], prompt, count)
            if number:  # the first is a warm-up
                results[side].append(turns[side])
        same &= turns[OURS][2] == turns[THEIRS][2]
    for label, part, tokens in (("prefill", 0, prompt.size), ("decode", 1, 1)):
        speeds = {s: [tokens / r[part] for r in rows] for s, rows in results.items()}
        median = {s: statistics.median(v) for s, v in speeds.items()}
        ranges = "   ".join(f"{min(v):.1f} to {max(v):.1f}" for v in speeds.values())
        print(
            f"    {label:<10}{median[OURS]:10.1f}{median[THEIRS]:10.1f}"
            f"{median[OURS] / median[THEIRS]:9.2f}x   ({ranges})"
        )
    if not same:
        print("    their tokens differ")
    return same


def attention_seconds(config, length: int, dtype: mx.Dtype, repeats: int = 20) -> float:
    """What one token's attention costs over a cache of that length, all layers."""
    queries = mx.random.normal((1, config.num_attention_heads, 1, config.head_dim)).astype(dtype)
    shape = (1, config.num_key_value_heads, -(-length // 256) * 256, config.head_dim)
    caches = [
        [mx.random.normal(shape).astype(dtype) for _ in range(2)]
        for _ in range(config.num_hidden_layers)
    ]
    mx.eval(queries, caches)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        outputs = [
            scaled_dot_product_attention(
                queries, keys[:, :, :length], values[:, :, :length], scale=0.1
            )
            for keys, values in caches
        ]
        mx.eval(outputs)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def context_growth(model, dtype: mx.Dtype, lengths: tuple[int, int], runs: int) -> None:
    """Print what a token costs after a short and after a long prompt."""
    config = model.config
    seconds = {}
    for length in lengths:
        prompt = mx.arange(length) * 7919 % 40000 + 8
        rows = [run(OURS, model, prompt, 12)[1] for _ in range(runs)]
        seconds[length] = statistics.median(rows), attention_seconds(config, length, dtype)
        whole, attention = seconds[length]
        print(
            f"    {length:>5} tokens of context: {1000 * whole:8.1f} ms a token, "
            f"attention alone {1000 * attention:.1f} ms"
        )
    grown = [seconds[lengths[1]][i] - seconds[lengths[0]][i] for i in range(2)]
    print(f"    growth: {1000 * grown[0]:.1f} ms, of which attention {1000 * grown[1]:.1f} ms")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=("llama", "granite"), action="append")
    parser.add_argument("--layers", type=int, default=4, help="layers (4; really 16 to 40)")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt (256)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens that are decoded (48)")
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each side (5)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    options = parser.parse_args()
    preload_openblas()
    dtype = getattr(mx, options.dtype)
    print(machine_name())
    print(f"MLX {mx.__version__} on {device_name()}{blas_name()}")
    print(f"{options.layers} layers, {options.runs} runs each, in turn; tokens a second, medians")
    same = True
    for family in options.family or ("llama", "granite"):
        for bits in (None, 4):
            models = make_models(family, options.layers, dtype, bits)
            length, count = options.prompt, options.tokens
            if bits is not None and mx.default_device() == mx.cpu:
                length, count = min(length, CPU_PROMPT), min(count, CPU_TOKENS)
            prompt = mx.arange(length) * 7919 % 40000 + 8
            weights = options.dtype if bits is None else f"{bits} bits"
            print(f"\n{family}, {weights}{'':<10}{OURS:>10}{THEIRS:>10}{'ratio':>10}")
            print(f"    prompt {length}, {count} new tokens")
            same &= compare(models, prompt, count, options.runs)
            if bits is None:
                context_growth(models[OURS], dtype, (100, 4000), min(options.runs, 3))
            del models
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
