"""What quantization does for decoding and loading: 16, 8 and 4 bits of the same checkpoint.

    python tests/benchmarks/quantized.py
    python tests/benchmarks/quantized.py --layers 16 --decoder-layers 40

A Granite Speech checkpoint with random weights, its layers as large as the released models', is
converted by the command line. Then the source and the conversions are loaded, each in a process of
its own, and their decoders take turns, run by run.

Bytes read are those of the weights that a decoded token needs, all of the decoder's but the rows of
the embeddings that it does not look up; where they are tied to the head, it needs the whole table.
The cache, the same for all, is not among them.

On Linux it preloads OpenBLAS if it is installed, which is of no use to bfloat16, 8 and 4 bits:
there the tokens a second are those of MLX's CPU build, whose quantized products are slow, and say
nothing about a Mac.
"""

from __future__ import annotations

import argparse
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

ROOT = Path(__file__).parent.parent.parent
SOURCE = "source"
PROMPT_TOKENS = 4


class Worker:
    """A model, loaded from a folder as `load` does it, but in the type that it is stored in."""

    def __init__(self, folder: Path):
        import mlx.core as mx
        from mlx.utils import tree_flatten

        from mlx_speech.loading import load_model

        self.folder = folder
        self.dtype = getattr(mx, json.loads((folder / "config.json").read_text())["dtype"])
        self._load = load_model
        self.model = load_model(folder, dtype=self.dtype)
        decoder = self.model.language_model
        read = sum(value.nbytes for _, value in tree_flatten(decoder.parameters()))
        if not self.model.config.text_config.tie_word_embeddings:
            table = decoder.model.embed_tokens.parameters()
            read -= sum(value.nbytes for _, value in tree_flatten(table))
        self.hello = {
            "mlx": mx.__version__,
            "device": device_name(),
            "blas": blas_name(),
            "read": read,
            "disk": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        }

    def decode(self, count: int) -> dict[str, float]:
        """Tokens a second, after the first."""
        import mlx.core as mx

        from mlx_speech.generation import GenerationConfig, prefill

        prompt = mx.arange(PROMPT_TOKENS)[None] * 7919 % 40000 + 8
        config = GenerationConfig(max_new_tokens=count, eos_token_id=[])
        times = [
            time.perf_counter()
            for _ in prefill(self.model, prompt, generation_config=config, streaming=True).steps()
        ]
        return {"tokens_per_second": (count - 1) / (times[-1] - times[0])}

    def reload(self) -> dict[str, float]:
        """Seconds to load the model anew, its files being in the system's cache."""
        import gc

        import mlx.core as mx

        self.model = None
        gc.collect()
        mx.clear_cache()
        start_s = time.perf_counter()
        self.model = self._load(self.folder, dtype=self.dtype)
        return {"seconds": time.perf_counter() - start_s}


def convert(source: Path, folder: Path, *options: str) -> None:
    """What the command line makes of a checkpoint."""
    command = [sys.executable, "-m", "convert", "--model", source, "--mlx-path", folder, "--quiet"]
    subprocess.run([*command, *options], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def benchmark(options: argparse.Namespace, folder: Path) -> None:
    """Measure and print."""
    source = folder / SOURCE
    source.mkdir()
    config = checkpoint_config(options.layers, options.decoder_layers, "bfloat16")
    (source / "config.json").write_text(json.dumps(config))
    subprocess.run([sys.executable, __file__, "--write", str(source)], check=True)
    convert(source, folder / "16")
    convert(source, folder / "q", "-q", "--q-bits", "4,8")
    folders = {
        "16 bits, source": source,
        "16 bits, converted": folder / "16",
        "8 bits": folder / "q-8bit",
        "4 bits": folder / "q-4bit",
    }
    load = os.getloadavg()[0]
    remotes = {s: Remote(path, env=openblas_environment()) for s, path in folders.items()}
    hello = next(iter(remotes.values())).hello
    print(machine_name())
    print(f"MLX {hello['mlx']} on {hello['device']}{hello['blas']}")
    print(
        f"{options.layers} encoder and {options.decoder_layers} decoder layers, bfloat16; "
        f"{options.tokens} tokens after {PROMPT_TOKENS}; {options.runs} runs each, in turn, "
        f"medians; load {load:.1f} before"
    )
    take_turns(remotes, 1, "decode", 2)
    decoded = take_turns(remotes, options.runs, "decode", options.tokens)
    loaded = take_turns(remotes, options.runs, "reload")
    print(f"\n{'':<20}{'on disk':>10}{'MB/token':>10}{'tokens/s':>10}{'load, s':>10}")
    for side, remote in remotes.items():
        speed = statistics.median(run["tokens_per_second"] for run in decoded[side])
        seconds = statistics.median(run["seconds"] for run in loaded[side])
        disk, read = (remote.hello[name] / 1e6 for name in ("disk", "read"))
        print(f"{side:<20}{disk:>7.0f} MB{read:>10.1f}{speed:>10.2f}{seconds:>10.2f}")
        remote.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=2, help="encoder layers (2; really 16)")
    parser.add_argument("--decoder-layers", type=int, default=2, help="its layers (2; really 40)")
    parser.add_argument("--tokens", type=int, default=8, help="tokens that are decoded (8)")
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each side (3)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(lambda: Worker(options.worker))
    elif options.write:
        write_checkpoint(options.write)
    else:
        with tempfile.TemporaryDirectory(prefix="mlx-speech-benchmark-") as folder:
            benchmark(options, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
