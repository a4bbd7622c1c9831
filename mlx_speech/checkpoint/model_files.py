"""A model -> the files of a checkpoint, as `from_pretrained` reads them here and in transformers.

What is not quantized is written under transformers' names and in its layouts. Only MLX reads a
quantized model, so that it is written as it is in memory.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..generation.config import GenerationConfig
from ..layers.lora import base_name
from .adapter_saving import write_adapter_of
from .folder import read_json, write_json
from .quantization import config_entries
from .shards import ShardWriter, TensorSpec

#: where MLX and mlx-lm look for how a model is quantized, and where transformers and the Hub do
QUANTIZATION = ("quantization", "quantization_config")
_GENERATION = "generation_config.json"


def write_model(model: Any, folder: Path, max_shard_size: int | str) -> None:
    """Write a model, a `PretrainedModel`, into a new folder, its adapter beside it.

    Args:
        max_shard_size: see `ShardWriter`.

    Raises:
        InputError: `max_shard_size` is no size.
        OSError: the folder cannot be written to, or the disk is full.
    """
    settings: dict[str, dict[str, Any] | None] = {
        name: {setting: getattr(module, setting) for setting in _SETTINGS}
        for path, module in model.named_modules()
        if "scales" in module and (name := base_name(path)) is not None
    }
    _write_weights(model, folder, max_shard_size, quantized=bool(settings))
    config = model.config.to_diff_dict() | {"architectures": [type(model).__name__]}
    adapted = write_adapter_of(model, folder)
    if "has_lora_adapter" in config:
        config["has_lora_adapter"] = adapted
    if model.generation_inputs:
        write_json(folder / _GENERATION, _generation_config(model, config))
    dtype = str(model.dtype).rpartition(".")[2]
    write_json(folder / "config.json", saved_config(config, dtype, settings))


_SETTINGS = ("group_size", "bits", "mode")


def saved_config(
    config: dict[str, Any],
    dtype: str,
    settings: dict[str, dict[str, Any] | None],
    default: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A config.json for what is written.

    What it may leave to transformers' defaults, or say in transformers' newer way only, is said as
    mlx-lm reads it too.

    Args:
        dtype: name of the type of what is not quantized.
        settings: `group_size`, `bits` and `mode` of each module; None where it is not quantized.
        default: what stands at the top of them; by default what most modules have.
    """
    config = {name: value for name, value in config.items() if name not in QUANTIZATION}
    for name in ("dtype", "torch_dtype"):
        if name in config or name == "dtype":
            config[name] = dtype
    rope = config.get("rope_parameters") or {}
    if rope and config.get("rope_theta") is None:
        config["rope_theta"] = rope.get("rope_theta", 10000.0)
    if rope.get("rope_type", "default") != "default" and config.get("rope_scaling") is None:
        config["rope_scaling"] = rope
    found = [chosen for chosen in settings.values() if chosen]
    if found or default:
        default = default or max(found, key=found.count)
        config |= dict.fromkeys(QUANTIZATION, config_entries(settings.items(), default))
    return config


def module_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[str]]]:
    """Modules that have tensors of their own: name, module, names of the tensors in it."""
    modules = dict(model.named_modules())
    names: dict[str, list[str]] = {}
    for full, _ in tree_flatten(model.parameters()):
        path, _, name = full.rpartition(".")
        names.setdefault(path, []).append(name)
    for path, own in names.items():
        yield path, modules[path], own


def _write_weights(model: Any, folder: Path, max_shard_size: int | str, quantized: bool) -> None:
    """Module by module: what is made in another layout is in memory only while it is written."""

    def by_module() -> Iterator[dict[str, mx.array]]:
        for path, module, names in module_tensors(model):
            tensors = {base_name(f"{path}.{name}"): module[name] for name in names}
            arrays = {name: value for name, value in tensors.items() if name is not None}
            if arrays:
                yield arrays if quantized else model.to_checkpoint(arrays, model.config)

    specs = [TensorSpec.of(*item) for arrays in by_module() for item in arrays.items()]
    layout = "mlx" if quantized else "pt"
    separate = model.separate_files
    with closing(ShardWriter(folder, specs, max_shard_size, layout, separate=separate)) as writer:
        for arrays in by_module():
            for name, array in arrays.items():
                writer.write(name, array)
        writer.finish()


def _generation_config(model: Any, config: dict[str, Any]) -> dict[str, Any]:
    """What the checkpoint had, also of options that are not for here, and what is set now."""
    held = {} if model.folder is None else read_json(model.folder, _GENERATION, required=False)
    read = GenerationConfig.from_checkpoint(held, config) if held else GenerationConfig()
    chosen = model.generation_config or GenerationConfig.from_checkpoint({}, config)
    for option in dataclasses.fields(chosen):
        value = getattr(chosen, option.name)
        if value != getattr(read, option.name):
            held[option.name] = value
    return held
