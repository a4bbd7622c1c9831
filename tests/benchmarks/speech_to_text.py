"""Real-time factor of Speech2Text, beside transformers (torch) on the same machine.

    python tests/benchmarks/speech_to_text.py
    python tests/benchmarks/speech_to_text.py --sizes small --runs 1 --tokens 10

Models of the shapes of s2t-small and s2t-large, float32, with random weights that transformers
writes and ours loads, hear 30 s and answer by beam search; no token ends an answer. Each package
has a process of its own, and only one computes at any time: they take turns, run by run. Both must
find the same answer. The comparison is reported for what it is: torch's CPU kernels are better
than MLX's.

A second table is ours alone: what five beams cost a decoding step. Weights are read once for all
of them, so it has to be less than 1.5 times what one costs.

On Linux our process preloads OpenBLAS if it is installed; torch has its own BLAS.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from workers import Remote, openblas_environment, serve, take_turns

from mlx_speech.profiling.machine import blas_name, device_name, machine_name

OURS, THEIRS = "mlx-speech", "transformers"
SECONDS, FRAMES, BEAMS = 30, 3000, 5
#: largest difference of encodings, and of the log-probabilities of two answers, by rounding
TOLERANCE = 1e-3
#: how much longer a step may take with five beams than with one
BEAM_LIMIT = 1.5
# an end token is left out so that every answer has full length
COMMON = {
    "vocab_size": 10000,
    "encoder_layers": 12,
    "decoder_layers": 6,
    "conv_channels": 1024,
    "conv_kernel_sizes": [5, 5],
    "input_feat_per_channel": 80,
    "eos_token_id": None,
}
SIZES = {
    name: COMMON
    | {"d_model": width, "encoder_ffn_dim": inner, "decoder_ffn_dim": inner}
    | {"encoder_attention_heads": heads, "decoder_attention_heads": heads}
    for name, width, heads, inner in (("small", 256, 4, 2048), ("large", 1024, 16, 4096))
}


# --- workers: one package's model each ---


def features() -> np.ndarray:
    """(1, frames, 80), normalised as the front end's."""
    return np.random.default_rng(0).normal(size=(1, FRAMES, 80)).astype(np.float32)


class Worker:
    """What both sides have in common: they `encode`, and then `answer`."""

    def run(self, tokens: int, beams: int) -> dict:
        """What hearing and answering took, in seconds."""
        start = time.perf_counter()
        self.encode()
        encoder = time.perf_counter() - start
        taken = self.steps(tokens, beams)
        return {"encoder": encoder, "total": encoder + taken["answer"], "step": taken["step"]}

    def steps(self, tokens: int, beams: int) -> dict:
        """What answering took, and each step after the first, which prepares cross-attention."""
        times = []
        for count in (1, tokens):
            start = time.perf_counter()
            self.answer(count, beams)
            times.append(time.perf_counter() - start)
        return {"answer": times[1], "step": (times[1] - times[0]) / (tokens - 1)}


class Theirs(Worker):
    """Makes the checkpoint, too."""

    def __init__(self, size: str, folder: Path):
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.manual_seed(0)
        torch.set_grad_enabled(False)
        config = transformers.Speech2TextConfig(**SIZES[size])
        self.folder = folder
        self.model = transformers.Speech2TextForConditionalGeneration(config).eval()
        for name, value in self.model.named_parameters():
            # activations near 1; answers vary: norms of both signs keep a token from predicting
            # itself, and centred weights keep what follows a ReLU from being the same for all
            if value.ndim > 1:
                value.normal_(std=value[0].numel() ** -0.5)
            else:
                value.normal_(std=1.0 if "norm.weight" in name else 0.1)
            if name.endswith("fc2.weight"):
                value.sub_(value.mean(1, keepdim=True))
        self.model.save_pretrained(folder)
        self.input = {
            "input_features": torch.from_numpy(features()),
            "attention_mask": torch.ones(1, FRAMES, dtype=torch.int64),
        }
        self.hello = {
            "weights": sum(value.numel() for value in self.model.parameters()),
            "what": f"torch {torch.__version__} on CPU, {torch.get_num_threads()} threads",
        }

    def encode(self) -> None:
        self.encoded = self.model.model.encoder(**self.input)

    def generate(self, tokens: int, beams: int, **options):
        return self.model.generate(
            encoder_outputs=self.encoded,
            attention_mask=self.input["attention_mask"],
            max_new_tokens=tokens,
            num_beams=beams,
            do_sample=False,
            return_dict_in_generate=True,
            **options,
        )

    def answer(self, tokens: int, beams: int) -> None:
        self.generate(tokens, beams)

    def check(self, tokens: int) -> dict:
        """The answer, its score and the encoding, to be compared; serves as a warm-up, too."""
        self.encode()
        output = self.generate(tokens, BEAMS, output_scores=True)
        np.save(self.folder / f"{THEIRS}.npy", self.encoded.last_hidden_state.numpy())
        return {
            "tokens": output.sequences[0, 1:].tolist(),
            "score": output.sequences_scores.item(),
        }


class Ours(Worker):
    def __init__(self, size: str, folder: Path):
        import mlx.core as mx

        from mlx_speech.loading import load_model

        self.folder = folder
        self.model = load_model(folder, dtype=mx.float32)
        self.input = {
            "input_features": mx.array(features()),
            "attention_mask": mx.ones((1, FRAMES), mx.int32),
        }
        self.hello = {"what": f"MLX {mx.__version__} on {device_name()}{blas_name()}"}

    def encode(self) -> None:
        import mlx.core as mx

        self.encoded = self.model.model.encoder(**self.input)
        mx.eval(self.encoded.last_hidden_state)

    def hypothesis(self, tokens: int, beams: int):
        from mlx_speech.generation.api import prefill

        rows = prefill(
            self.model,
            encoder_outputs=self.encoded,
            attention_mask=self.input["attention_mask"],
            max_new_tokens=tokens,
            num_beams=beams,
            eos_token_id=[],
        ).rows()
        return rows[0]

    def answer(self, tokens: int, beams: int) -> None:
        self.hypothesis(tokens, beams)

    def check(self, tokens: int) -> dict:
        """As the other side's."""
        self.encode()
        best = self.hypothesis(tokens, BEAMS)
        np.save(self.folder / f"{OURS}.npy", np.array(self.encoded.last_hidden_state))
        return {"tokens": best.tokens, "score": best.score}


WORKERS = {OURS: Ours, THEIRS: Theirs}


# --- the parent ---


def agreement(remotes: dict[str, Remote], tokens: int, folder: Path) -> bool:
    """Print how far the two sides agree, and return whether they do.

    Random weights make near ties: an answer may part from the other side's where rounding decides,
    but then its score must be as good.
    """
    ours, theirs = (remotes[side].ask("check", tokens) for side in (OURS, THEIRS))
    first, second = (np.load(folder / f"{side}.npy") for side in (OURS, THEIRS))
    encodings = float(np.abs(first - second).max())
    scores = abs(ours["score"] - theirs["score"])
    pairs = zip(ours["tokens"], theirs["tokens"], strict=True)
    parted = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    what = "the same" if parted is None else f"the same up to token {parted}, then by rounding not"
    agree = encodings < TOLERANCE and scores < TOLERANCE
    print(
        f"  {tokens} tokens, {len(set(ours['tokens']))} different ones: "
        f"{what if agree else 'NOT THE SAME'}; "
        f"largest difference of encodings {encodings:.1e}, of scores {scores:.1e}"
    )
    return agree


def print_rows(results: dict[str, list[dict]]) -> None:
    """Medians; ratios above 1 are in our favour."""
    median = {
        part: [statistics.median(r[part] for r in results[side]) for side in (OURS, THEIRS)]
        for part in ("encoder", "step", "total")
    }
    rows = {
        "encoder, seconds": median["encoder"],
        "decoding step, seconds": median["step"],
        "total, seconds": median["total"],
        "real-time factor (lower is faster)": [value / SECONDS for value in median["total"]],
    }
    for label, (ours, theirs) in rows.items():
        print(f"  {label:<36}{ours:12.4f}{theirs:14.4f}{theirs / ours:9.2f}x")


def benchmark(options: argparse.Namespace, folder: Path) -> bool:
    """Measure and print; whether the sides agree and beams cost no more than they may."""
    passed, steps = True, {}
    load = os.getloadavg()[0]
    for size in options.sizes:
        place = folder / size
        theirs = Remote(THEIRS, size, place)  # writes what ours loads
        remotes = {OURS: Remote(OURS, size, place, env=openblas_environment()), THEIRS: theirs}
        if size == options.sizes[0]:
            print(machine_name())
            print(remotes[OURS].hello["what"])
            version = importlib.metadata.version("transformers")
            print(f"transformers {version}, {theirs.hello['what']}")
            print(
                f"{SECONDS} s of audio, {options.tokens} new tokens, {BEAMS} beams, float32; "
                f"{options.runs} runs each, in turn, medians; load {load:.1f} before"
            )
        millions = theirs.hello["weights"] / 1e6
        print(f"\n{f's2t-{size}, {millions:.0f} M weights':<38}{OURS:>12}{THEIRS:>14}{'ratio':>10}")
        passed &= agreement(remotes, options.tokens, place)
        print_rows(take_turns(remotes, options.runs, "run", options.tokens, BEAMS))
        theirs.close()
        remotes[OURS].ask("steps", options.tokens, 1)  # a warm-up
        counts = (1, BEAMS)
        found = {count: [] for count in counts}
        for _ in range(options.runs):
            for count in counts:
                found[count].append(remotes[OURS].ask("steps", options.tokens, count)["step"])
        steps[size] = [statistics.median(found[count]) for count in counts]
        remotes[OURS].close()

    print(
        f"\n{f'decoding step of {OURS}, ms':<38}{'1 beam':>12}{f'{BEAMS} beams':>14}{'ratio':>10}"
    )
    for size, (one, several) in steps.items():
        cheap = several / one < BEAM_LIMIT
        passed &= cheap
        print(
            f"  {f's2t-{size}':<36}{1000 * one:12.2f}{1000 * several:14.2f}{several / one:9.2f}x"
            f"   {'below' if cheap else 'NOT BELOW'} {BEAM_LIMIT}"
        )
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each side (3)")
    parser.add_argument("--tokens", type=int, default=100, help="tokens of the answer (100)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tokens < 2:
        parser.error("--tokens must be at least 2: steps are timed after the first")
    if options.worker:
        side, size, path = options.worker
        serve(lambda: WORKERS[side](size, Path(path)))
        return 0
    if importlib.util.find_spec("transformers") is None:
        print(
            "transformers is not installed; `make bench` installs it and runs this", file=sys.stderr
        )
        return 1
    with tempfile.TemporaryDirectory(prefix="mlx-speech-benchmark-") as folder:
        passed = benchmark(options, Path(folder))
    if not passed:
        print("the answers differ, or beams cost too much: see above", file=sys.stderr)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
