"""Speed and memory of the models that write no token after the other, Granite Speech NAR and
TurboCTC, beside mlx-audio's.

    python tests/benchmarks/one_pass.py
    python tests/benchmarks/one_pass.py --model granite_speech_nar --layers 16 --seconds 24

Both packages load the same random weights, at the released models' widths, from one folder in
mlx-audio's layout. Each has a process of its own, and they take turns, run by run. Their results
must agree. Each encodes as it does when it transcribes: mlx-audio the recording as a whole, ours
part by part, in memory that does not grow with it. mlx-audio's NAR encoder looks at what fills up
its last attention block, and has rows of audio beyond the recording's end, so that the audio is
whole blocks and whole windows here, a multiple of 12 s.

On Linux both processes preload OpenBLAS if it is installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from checkpoint import checkpoint_config
from encoder import OURS, THEIRS
from workers import Demands, Remote, openblas_environment, serve, take_turns

from mlx_speech.profiling.machine import blas_name, device_name, machine_name

NAR, TURBO = "granite_speech_nar", "granite_speech5_ctc"
FRAMES_PER_SECOND = 50
#: frames of a recording that are encoded together when it is transcribed
PART_FRAMES = {NAR: 1500, TURBO: 1000}
#: largest difference between the results that float32 rounding may explain
TOLERANCE = 1e-3
LEAST_SPEEDUP, MOST_MEMORY = 3.0, 0.25  #: of the encoder, beside mlx-audio's


def nar_config(layers: int, editor_layers: int) -> dict:
    """config.json of Granite Speech NAR at the released widths, with what mlx-audio wants."""
    vocabulary, blank = 100352, 100257
    parts = checkpoint_config(layers, editor_layers, "float32")
    return {
        "model_type": NAR,
        "encoder_config": {
            **parts["encoder_config"],
            "bpe_output_dim": vocabulary,
            "bpe_pooling_window": 4,
            "self_conditioning_layer": layers // 2,
            "blank_token_id": blank,
            "dropout": 0.0,
            "pred_dropout": 0.0,
            "initializer_range": 0.02,
        },
        "projector_config": {
            "num_layers": 2,
            "num_encoder_layers": 4,
            "hidden_size": 2048,
            "num_heads": 32,
            "block_size": 15,
            "downsample_rate": 5,
            "encoder_dim": 1024,
            "llm_dim": 2048,
            "mlp_ratio": 2,
            "mlp_bias": True,
            "attn_bias": True,
            "dropout_prob": 0.0,
            "layernorm_eps": 1e-6,
        },
        "text_config": {
            **parts["text_config"],
            "vocab_size": vocabulary,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "bos_token_id": blank,
            "eos_token_id": blank,
            "pad_token_id": 100256,
        },
        "encoder_layer_indices": [layers // 4, layers // 2, 3 * layers // 4, -1],
        "blank_token_id": blank,
        "scale_projected_embeddings": True,
        "min_edit_sequence_length": 8,
        "tie_word_embeddings": True,
    }


def turbo_config(layers: int) -> dict:
    """config.json of TurboCTC at the released widths."""
    encoder = {"model_type": "granite_speech5_encoder", "num_hidden_layers": layers}
    return {
        "model_type": TURBO,
        "vocab_size": 16384,
        "pad_token_id": 0,
        "encoder_config": {**encoder, "vocab_size": 16384},
    }


def load_theirs(folder: Path | None, config: dict):
    """Their model, with the weights of a folder, or made anew."""
    import mlx.core as mx

    if config["model_type"] == NAR:
        from mlx_audio.stt.models.granite_speech_nar.config import ModelConfig
        from mlx_audio.stt.models.granite_speech_nar.granite_speech_nar import Model
    else:
        from mlx_audio.stt.models.granite_speech5_ctc.config import ModelConfig
        from mlx_audio.stt.models.granite_speech5_ctc.granite_speech5 import Model
    model = Model(ModelConfig.from_dict(config))
    if folder is not None:
        weights = model.sanitize(mx.load(str(folder / "model.safetensors")))
        model.load_weights(list(weights.items()), strict=True)
    mx.eval(model.parameters())
    model.eval()
    return model


def write_weights(folder: Path) -> None:
    """Random weights under the names that mlx-audio has for them."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    config = json.loads((folder / "config.json").read_text())
    weights = {}
    for name, value in tree_flatten(load_theirs(None, config).parameters()):
        if value.ndim > 1:
            fan_in = value.size // value.shape[0]
            value = mx.random.normal(value.shape, scale=fan_in**-0.5)
        weights[name] = value.astype(getattr(mx, config["dtype"]))
        mx.eval(weights[name])
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


class Worker:
    """One package's model and how to run its parts."""

    def __init__(self, side: str, folder: str):
        import mlx.core as mx

        self._folder, self._is_ours = Path(folder), side == OURS
        config = json.loads((self._folder / "config.json").read_text())
        self._kind, self._dtype = config["model_type"], getattr(mx, config["dtype"])
        if self._is_ours:
            from mlx_speech.loading import load_model

            self._model = load_model(self._folder)
        else:
            self._model = load_theirs(self._folder, config)
        self.hello = {
            "mlx": mx.__version__,
            "device": device_name(),
            "blas": blas_name(),
        }

    def run(self, frames: int) -> dict:
        """Encode once, and transcribe once; what each took."""
        return {part: self._taken(part, frames)[0] for part in self.parts()}

    def save(self, frames: int) -> dict:
        """The encoder's results in a file, and the ids of the whole; serves as a warm-up, too."""
        import mlx.core as mx

        path = self._folder / f"{'ours' if self._is_ours else 'theirs'}.npy"
        mx.save(str(path), self._taken("all", frames)[1].astype(mx.float32))
        return {"path": str(path), "ids": self._taken("whole", frames)[1].tolist()}

    def parts(self) -> list[str]:
        """What is measured."""
        return ["encoder", "whole"] if self._kind == NAR else ["encoder"]

    def _taken(self, part: str, frames: int) -> tuple[dict, object]:
        import mlx.core as mx

        width = 160 if self._kind == NAR else 320
        features = mx.random.normal((1, frames, width), key=mx.random.key(frames))
        features = features.astype(self._dtype)
        mx.eval(features)
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        start = time.perf_counter()
        result = getattr(self, f"_{part}")(features)
        mx.eval(result)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "peak": mx.get_peak_memory() - before}, result

    def _encoder(self, features, keep: bool = False):
        """States of the encoder, or for TurboCTC its logits; each as its package transcribes, ours
        part by part, of which only the last is there in the end, unless all are to be kept."""
        import mlx.core as mx

        model = self._model
        if self._is_ours:
            stream, parts, size = model.encode_stream(), [], PART_FRAMES[self._kind]
            for start in range(0, features.shape[1], size):
                end = start + size
                part = stream.push(features[0, start:end], last=end >= features.shape[1])
                parts = parts if keep else []
                parts.append(model.logits(part) if self._kind == TURBO else part.last_hidden_state)
                if parts[-1].size:
                    mx.eval(parts[-1])
            return mx.concatenate([part for part in parts if part.size], axis=1)
        if self._kind == TURBO:
            return model(features)
        return mx.concatenate(model.encoder(features).hidden_states_for_projector, axis=-1)

    def _all(self, features):
        return self._encoder(features, keep=True)

    def _whole(self, features):
        """Ids of the text, features being all that is given."""
        import mlx.core as mx

        if self._kind == TURBO:
            return mx.argmax(self._all(features), axis=-1)[0]
        if self._is_ours:
            return self._model.generate(features)[0]
        # theirs casts the features to bfloat16, whatever the weights are
        with mock.patch.object(mx, "bfloat16", features.dtype):
            return self._model._transcribe_tokens(features)


# --- the parent: starts the workers, lets them take turns, and prints ---


def benchmark(config: dict, options: argparse.Namespace, folder: Path, demands: Demands) -> bool:
    """Measure one model and print; whether the two packages' results agree."""
    import numpy as np

    (folder / "config.json").write_text(json.dumps({**config, "dtype": options.dtype}))
    command = [sys.executable, __file__, "--write", str(folder)]
    subprocess.run(command, check=True, env=openblas_environment())
    remotes = {s: Remote(s, folder, env=openblas_environment()) for s in (OURS, THEIRS)}
    frames = round(options.seconds * FRAMES_PER_SECOND)
    hello = remotes[OURS].hello
    print(f"\n{config['model_type']}, {options.layers} encoder layers, ", end="")
    print(f"{options.seconds:g} s of audio, {options.dtype}, {options.runs} runs each, in turn")
    print(f"MLX {hello['mlx']} on {hello['device']}{hello['blas']}")
    saved = {side: remote.ask("save", frames) for side, remote in remotes.items()}
    ours, theirs = (np.load(saved[side]["path"]) for side in remotes)
    gap = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    same = saved[OURS]["ids"] == saved[THEIRS]["ids"]
    results = take_turns(remotes, options.runs, "run", frames)
    for part in results[OURS][0]:
        seconds = {s: statistics.median(r[part]["seconds"] for r in results[s]) for s in remotes}
        peaks = {s: max(r[part]["peak"] for r in results[s]) for s in remotes}
        for side in remotes:
            told = f"{seconds[side]:8.2f} s {peaks[side] / 2**20:8.0f} MiB above the weights"
            print(f"  {part:<10}{side:<12}{told}")
        faster, smaller = seconds[THEIRS] / seconds[OURS], peaks[OURS] / peaks[THEIRS]
        if part == "encoder":
            demands.at_least(f"{part}: speed", faster, LEAST_SPEEDUP)
            demands.at_most(f"{part}: memory", smaller, MOST_MEMORY)
        else:
            print(f"  {part}: {faster:.2f}x as fast, {smaller:.2f} of the memory")
    ids = len(saved[OURS]["ids"])
    print(f"  largest relative difference {gap:.1e}; {ids} ids {'equal' if same else 'DIFFER'}")
    for remote in remotes.values():
        remote.close()
    return options.dtype != "float32" or (gap < TOLERANCE and same)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=(NAR, TURBO), help="only this one (both)")
    parser.add_argument("--layers", type=int, default=4, help="encoder layers (4; really 16)")
    parser.add_argument("--editor-layers", type=int, default=2, help="NAR's (2; really 40)")
    parser.add_argument("--seconds", type=float, default=96.0, help="length of the audio (96)")
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each side (3)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(lambda: Worker(*options.worker))
        return 0
    if options.write:
        write_weights(options.write)
        return 0
    if importlib.util.find_spec("mlx_audio") is None:
        print("mlx-audio is not installed; `make bench` installs it and runs this", file=sys.stderr)
        return 1
    print(f"{machine_name()}, mlx-audio {importlib.metadata.version('mlx-audio')}")
    configs = {
        NAR: nar_config(options.layers, options.editor_layers),
        TURBO: turbo_config(options.layers),
    }
    demands, agree = Demands(), True
    for name, config in configs.items():
        if options.model in (None, name):
            with tempfile.TemporaryDirectory(prefix="mlx-speech-benchmark-") as folder:
                agree &= benchmark(config, options, Path(folder), demands)
    if not agree:
        print("the two packages' results differ: nothing above may be compared", file=sys.stderr)
    return demands.status() if agree else 1


if __name__ == "__main__":
    sys.exit(main())
