"""Speed and memory of the speech encoder, beside mlx-audio's `granite_speech`.

    python tests/benchmarks/encoder.py
    python tests/benchmarks/encoder.py --layers 4 --seconds 60 --dtype bfloat16 --decoder

Both packages load the same random weights, at the released models' size, from one checkpoint folder
in Hugging Face's names, each through its own loading code. Each has a process of its own, and only
one of them computes at any time: they take turns, run by run. Their results must agree.

Memory is MLX's peak during a run, with what was there before the run (the weights) taken off, and
the most that the process ever held resident, which includes Python and loading.

On Linux both processes preload OpenBLAS if it is installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from checkpoint import checkpoint_config, write_checkpoint
from workers import Remote, openblas_environment, serve, take_turns

from mlx_speech.profiling.machine import blas_name, device_name, machine_name

# MLX is imported by the workers only: a process inherits its parent's largest resident size

OURS, THEIRS = "mlx-speech", "mlx-audio"
ENCODER, AUDIO, DECODER = "encoder", "encoder + projector", "decoder"
FRAMES_PER_SECOND = 50
PROMPT_TOKENS, NEW_TOKENS = 300, 100
#: largest difference between the results that float32 rounding may explain
TOLERANCE = 1e-3


# --- a worker: one package's model, which does what its standard input asks ---


def load_ours(folder: Path):
    import mlx.core as mx

    from mlx_speech.loading import load_model

    dtype = json.loads((folder / "config.json").read_text())["dtype"]
    return load_model(folder, dtype=getattr(mx, dtype))


def load_theirs(folder: Path):
    """As `mlx_audio.stt.load` does, which would want a tokenizer as well."""
    import mlx.core as mx
    from mlx_audio.stt.models.granite_speech import Model, ModelConfig

    model = Model(ModelConfig.from_dict(json.loads((folder / "config.json").read_text())))
    weights = model.sanitize(mx.load(str(folder / "model.safetensors")))
    model.load_weights(list(weights.items()), strict=True)
    mx.eval(model.parameters())
    model.eval()
    return model


def encode_ours(model, features):
    return model.encoder(features).last_hidden_state


def encode_theirs(model, features):
    return model.encoder(features)


def decode_ours(model, prompt: list[int]):
    """New token ids, greedily, as they come."""
    import mlx.core as mx

    from mlx_speech.generation import GenerationConfig, prefill

    config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
    for step in prefill(
        model, mx.array([prompt]), generation_config=config, streaming=True
    ).steps():
        yield step.tokens[0]


def decode_theirs(model, prompt: list[int]):
    """As its `generate` does: from embeddings, which in real use hold the audio."""
    import mlx.core as mx
    from mlx_audio.lm.generate import generate_step

    ids = mx.array(prompt)
    embeddings = model.language_model.model.embed_tokens(ids)
    for token, _ in generate_step(
        prompt=ids, input_embeddings=embeddings, model=model, max_tokens=NEW_TOKENS
    ):
        yield token


SIDES = {
    OURS: (load_ours, encode_ours, decode_ours),
    THEIRS: (load_theirs, encode_theirs, decode_theirs),
}


class Worker:
    """One package's model and how to run its parts."""

    def __init__(self, side: str, folder: Path):
        import mlx.core as mx
        from mlx.utils import tree_flatten

        load, self._encode, self._decode = SIDES[side]
        self.side, self.folder = side, folder
        self.model = load(folder)
        weights = sum(value.nbytes for _, value in tree_flatten(self.model.parameters()))
        self.hello = {
            "weights": weights,
            "resident": max_resident(),
            "mlx": mx.__version__,
            "device": device_name(),
            "blas": blas_name(),
        }

    def run(self, frames: int) -> dict:
        """Encode and project once; what each part took, the second including the first."""
        import mlx.core as mx

        features = self._features(frames)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        start = time.perf_counter()

        def taken() -> dict:
            return {
                "seconds": time.perf_counter() - start,
                "peak": mx.get_peak_memory() - before,
            }

        hidden = self._encode(self.model, features)
        mx.eval(hidden)
        encoder = taken()
        mx.eval(self.model.projector(hidden))
        return {ENCODER: encoder, AUDIO: taken()}

    def decode(self) -> dict:
        """Decode greedily once; what it took and what came out."""
        import mlx.core as mx

        prompt = [index * 7919 % 100000 + 8 for index in range(PROMPT_TOKENS)]
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        tokens, times = [], [time.perf_counter()]
        for token in self._decode(self.model, prompt):
            tokens.append(token)
            times.append(time.perf_counter())
        peak = mx.get_peak_memory() - before
        return {
            "prefill": times[1] - times[0],
            "seconds": (times[-1] - times[1]) / (len(tokens) - 1),
            "peak": peak,
            "tokens": tokens,
        }

    def save(self, frames: int) -> dict:
        """Write both results to files, to be compared; serves as a warm-up, too."""
        import mlx.core as mx

        hidden = self._encode(self.model, self._features(frames))
        paths = {}
        for part, result in {ENCODER: hidden, AUDIO: self.model.projector(hidden)}.items():
            paths[part] = str(self.folder / f"{self.side} {part} {frames}.npy")
            mx.save(paths[part], result.astype(mx.float32))
        return paths

    def resident(self) -> dict:
        """The most that this process held so far."""
        return {"resident": max_resident()}

    def _features(self, frames: int):
        """The same random float32 features in every process, as both front ends hand them on."""
        import mlx.core as mx

        features = mx.random.normal((1, frames, 160), key=mx.random.key(frames))
        mx.eval(features)
        return features


def max_resident() -> int:
    """The most bytes that this process held in memory."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# --- the parent: starts the workers, lets them take turns, and prints ---


def largest_differences(remotes: dict[str, Remote], frames: int) -> dict[str, float]:
    """Of each part's results, between the two sides."""
    import numpy as np

    paths = {side: remote.ask("save", frames) for side, remote in remotes.items()}
    ours, theirs = ({p: np.load(f) for p, f in paths[side].items()} for side in SIDES)
    return {part: float(np.abs(ours[part] - theirs[part]).max()) for part in ours}


def print_row(label: str, ours: float, theirs: float, digits: int, ratio: float | None) -> None:
    shown = "" if ratio is None else f"{ratio:9.2f}x"
    print(f"  {label:<34}{ours:13.{digits}f}{theirs:13.{digits}f}{shown}")


def print_part(part: str, results: dict[str, list], weights: dict[str, int]) -> None:
    """Rows of one part; ratios above 1 are in our favour."""
    mib = 2**20
    seconds = {s: [r["seconds"] for r in runs] for s, runs in results.items()}
    peaks = {s: max(r["peak"] for r in runs) / mib for s, runs in results.items()}
    best = [min(seconds[s]) for s in SIDES]
    median = [statistics.median(seconds[s]) for s in SIDES]
    total = [peaks[s] + weights[s] / mib for s in SIDES]
    above = [peaks[s] for s in SIDES]
    print(part)
    if part == DECODER:
        prefill = [min(r["prefill"] for r in results[s]) for s in SIDES]
        print_row(
            f"seconds to token 1 of {PROMPT_TOKENS}, best", *prefill, 3, prefill[1] / prefill[0]
        )
        print_row("tokens a second, best", 1 / best[0], 1 / best[1], 2, best[1] / best[0])
        print_row("tokens a second, median", 1 / median[0], 1 / median[1], 2, median[1] / median[0])
    else:
        print_row("seconds, best", *best, 3, best[1] / best[0])
        print_row("seconds, median", *median, 3, median[1] / median[0])
    print_row("peak memory above weights, MiB", *above, 0, above[1] / above[0])
    print_row("peak memory with weights, MiB", *total, 0, total[1] / total[0])


def benchmark(options: argparse.Namespace, folder: Path) -> bool:
    """Measure and print; whether the two packages' results agree."""
    decoder_layers = options.decoder_layers if options.decoder else 0
    load = os.getloadavg()[0]
    config = checkpoint_config(options.layers, decoder_layers, options.dtype)
    (folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, __file__, "--write", str(folder)]
    subprocess.run(command, check=True, env=openblas_environment())
    remotes = {side: Remote(side, folder, env=openblas_environment()) for side in SIDES}
    hello = {side: remote.hello for side, remote in remotes.items()}
    weights = {side: hello[side]["weights"] for side in SIDES}
    frames = round(options.seconds * FRAMES_PER_SECOND)

    print(machine_name())
    print(f"MLX {hello[OURS]['mlx']} on {hello[OURS]['device']}{hello[OURS]['blas']}")
    print(f"{THEIRS} {importlib.metadata.version('mlx-audio')}")
    print(
        f"{options.layers} encoder layers, {options.seconds:g} s of audio, {options.dtype}, "
        f"{options.runs} runs each, in turn; load {load:.1f} before"
    )
    # the first run of each shape is a warm-up: that one is for the comparison
    whole = -(-frames // 200) * 200
    gaps = {n: largest_differences(remotes, n) for n in sorted({frames, whole - 100, whole})}
    agree = options.dtype != "float32" or all(
        gap < TOLERANCE for parts in gaps.values() for gap in parts.values()
    )

    print(f"\n  {'':<34}{OURS:>13}{THEIRS:>13}{'ratio':>10}")
    results = take_turns(remotes, options.runs, "run", frames)
    for part in (ENCODER, AUDIO):
        print_part(part, {s: [r[part] for r in runs] for s, runs in results.items()}, weights)
    if options.decoder:
        take_turns(remotes, 1, "decode")
        results = take_turns(remotes, options.runs, "decode")
        print_part(DECODER, results, weights)
        same_tokens = results[OURS][0]["tokens"] == results[THEIRS][0]["tokens"]
        agree &= options.dtype != "float32" or same_tokens
    mib = 2**20
    print("process")
    print_row("weights, MiB", *(weights[s] / mib for s in SIDES), 0, None)
    loaded = [hello[s]["resident"] / mib for s in SIDES]
    print_row("most resident, loading, MiB", *loaded, 0, loaded[1] / loaded[0])
    most = [remotes[s].ask("resident")["resident"] / mib for s in SIDES]
    print_row("most resident, ever, MiB", *most, 0, most[1] / most[0])

    print("\nlargest difference between the results, same weights")
    for length, parts in gaps.items():
        told = ", ".join(f"{part} {gap:.1e}" for part, gap in parts.items())
        print(f"  {length} frames: {told}")
    if options.decoder:
        print(f"  {NEW_TOKENS} decoded tokens: {'the same' if same_tokens else 'not the same'}")
    for remote in remotes.values():
        remote.close()
    return agree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16, help="encoder layers (16)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the audio (30)")
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each side (3)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--decoder", action="store_true", help="measure the text decoder as well")
    parser.add_argument("--decoder-layers", type=int, default=4, help="its layers (4; really 40)")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        side, path = options.worker
        serve(lambda: Worker(side, Path(path)))
        return 0
    if options.write:
        write_checkpoint(options.write)
        return 0
    if importlib.util.find_spec("mlx_audio") is None:
        print("mlx-audio is not installed; `make bench` installs it and runs this", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="mlx-speech-benchmark-") as folder:
        agree = benchmark(options, Path(folder))
    if not agree:
        print("the two packages' results differ: nothing above may be compared", file=sys.stderr)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
