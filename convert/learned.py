"""Quantization that learns from recordings, by mlx-lm.

The decoder of a Granite Speech model is what is learned about, under audio as the encoder and the
projector give it, with the adapter on; these two are rounded to nearest, but for `dynamic`, which
chooses bits for all three. What comes of it is in the model that is then written.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_speech.checkpoint.adapters import remove_adapters
from mlx_speech.checkpoint.folder import ADAPTER_WEIGHTS
from mlx_speech.checkpoint.options import LoadingOptions
from mlx_speech.checkpoint.quantization import Quantization
from mlx_speech.checkpoint.weights import attach_adapter, cast
from mlx_speech.errors import UnsupportedOptionError
from mlx_speech.layers.lora import LoRALinear, use_adapter
from mlx_speech.loading import architecture

from . import awq, dwq, dynamic, gptq
from .blocks import Decoder, linear_settings
from .calibration import Progress, calibrate, check_calibration
from .methods import METHODS
from .plan import Learned
from .source import OpenModel

#: of these, whose decoder takes audio into its prompt
MODEL_TYPES = ("granite_speech", "granite_speech_plus")
_CHECKS: dict[str, Callable] = {
    "awq": awq.common_settings,
    "gptq": gptq.check,
    "dwq": dwq.check,
}


def check_learning(
    method: str, config: dict[str, Any], recordings: Sequence[str | os.PathLike]
) -> None:
    """Refuse a model that no method is for, and recordings that cannot be read.

    Args:
        config: its config.json.

    Raises:
        AudioError: there is no such file, or it is no recording.
        UnsupportedOptionError: the model has no such decoder.
    """
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        whose = f"{{method}} {method} is for the decoders of {' and '.join(MODEL_TYPES)} models"
        there = f"; for text there is `{METHODS[method]}`"
        there = "" if architecture(model_type).is_speech else there
        raise UnsupportedOptionError.about(f"{whose}, not for {model_type}{there}")
    check_calibration(recordings)


def learn(
    method: str,
    opened: OpenModel,
    folder: Path,
    quantization: Quantization,
    recordings: Sequence[str | os.PathLike],
    target_bpw: float | None,
    adapter: Path | None,
    progress: Progress,
) -> tuple[Quantization, Learned]:
    """Quantize the decoder of an opened model in place, or choose bits for all of it.

    Args:
        folder: what it was opened from.
        recordings: to learn from; by default the bundled ones.
        adapter: a further one, which is in the opened model's weights.
        progress: told what is done next.

    Returns:
        How to quantize what is not quantized now.

    Raises:
        AudioError: a recording cannot be read, or nobody speaks in it.
        InputError: the method cannot do what the quantization says.
    """
    start_s = time.perf_counter()
    mx.reset_peak_memory()
    model, stored = opened.model, getattr(mx, opened.dtype)
    if (check := _CHECKS.get(method)) is not None:
        check(linear_settings(model, quantization))
    dynamic_bits = method == "dynamic"
    calibration = calibrate(
        folder, recordings, adapter=adapter, features=dynamic_bits, progress=progress
    )
    mx.clear_cache()
    dtype = LoadingOptions().chosen_dtype(stored)
    # sums of squares, of which the Hessians are, are too large for float16
    dtype = mx.float32 if dtype == mx.float16 else dtype
    cast(model, dtype)
    if opened.fused_adapter is None and (folder / ADAPTER_WEIGHTS).exists():
        attach_adapter(model, folder, dtype)
    model.eval()
    with use_adapter(True):
        if method == "dwq":
            dwq.quantize(model, calibration, quantization, progress)
        elif method == "dynamic":
            quantization = dynamic.choose(
                model, calibration, quantization, target_bpw, stored, progress
            )
        else:
            decoder = Decoder(model, calibration.utterances, quantization)
            (awq if method == "awq" else gptq).quantize(decoder, progress)
            decoder.restore()
    if method == "awq" and any(isinstance(m, LoRALinear) for m in model.modules()):
        opened.changed_adapter = _changed_adapter(model, folder)
    remove_adapters(model)
    cast(model, stored)
    took = time.perf_counter() - start_s, mx.get_peak_memory()
    length = calibration.recordings, calibration.seconds
    return quantization, Learned(method, *length, *took)


def _changed_adapter(model: nn.Module, folder: Path) -> dict[str, mx.array]:
    """A folder's adapter_model.safetensors, with the inner weights that a model has now."""
    stored = mx.load(str(folder / ADAPTER_WEIGHTS))
    layers = {m.name: m.lora_a for m in model.modules() if isinstance(m, LoRALinear)}
    for name, array in stored.items():
        module, _, end = name.removeprefix("base_model.model.").rpartition(".lora_A.")
        if end and module in layers:
            stored[name] = layers[module].astype(array.dtype)
    return stored
