"""From a path or repository id to a model: config -> classes -> weights -> adapter."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from .errors import CheckpointError
from .hub import NO_WEIGHTS, resolve_checkpoint, weight_files
from .layers.lora import LoraConfig, apply_adapter
from .models import architecture
from .models.base import PretrainedModel
from .models.config import read_json
from .pytorch_bin import read_pytorch_bin
from .quantization import quantize_as_stored, refuse_foreign

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load(
    path_or_repo: str | os.PathLike,
    *,
    revision: str | None = None,
    dtype: mx.Dtype | None = None,
    progress: bool = True,
):
    """Load a model and what turns text and audio into its inputs.

    Args:
        path_or_repo: a folder in the Hugging Face layout, or a repository id `owner/name`.
        revision: branch, tag or commit of the repository.
        dtype: floating type to compute in. By default that of the checkpoint; on a CPU float32,
            which is where half precision saves no time.
        progress: show a progress bar while downloading, on standard error.

    Returns:
        `(model, processor)`; for a text-only model the processor is its tokenizer.

    Raises:
        HubError: the repository cannot be had.
        CheckpointError: the folder is incomplete, malformed, or of an unsupported kind.
    """
    folder = resolve_checkpoint(path_or_repo, revision=revision, progress=progress)
    model = load_model(folder, dtype=dtype)
    processor_class = architecture(model.config.model_type).processor_class
    return model, processor_class.from_pretrained(folder, name=str(path_or_repo))


def load_model(
    path_or_repo: str | os.PathLike,
    *,
    revision: str | None = None,
    dtype: mx.Dtype | None = None,
    model_class: type[PretrainedModel] | None = None,
) -> PretrainedModel:
    """Load a model alone; arguments and errors as in `load`.

    Args:
        model_class: the class that is expected, if it is one of those for the checkpoint's
            model_type; by default what its config.json names.
    """
    folder = resolve_checkpoint(path_or_repo, revision=revision)
    data = read_json(folder)
    model = lazy_model(folder, data, model_class)
    if dtype is None and mx.default_device().type == mx.DeviceType.cpu:
        dtype = mx.float32
    dtype = dtype or checkpoint_dtype(data, dict(tree_flatten(model.parameters())))
    cast(model, dtype)
    attach_adapter(model, folder, dtype)
    model.eval()
    # reads the files, one tensor after the other: what is not needed in its stored type any more
    # is freed before the next one is read
    mx.eval(model.parameters())
    return model


def lazy_model(
    folder: Path, data: dict, model_class: type[PretrainedModel] | None = None
) -> PretrainedModel:
    """A folder's model without its adapter, in the types and with the bits in which it is stored.

    Tensors of safetensors are read when they are first used.

    Args:
        data: the folder's config.json.
        model_class: as in `load_model`, which also has the errors.
    """
    from .generation import GenerationConfig

    classes = architecture(data.get("model_type"))
    refuse_foreign(data)
    stated = data.get("architectures")
    name = stated[0] if isinstance(stated, list) and stated else None
    found = classes.model_class(model_class.__name__ if model_class else name)
    if model_class is not None and not issubclass(found, model_class):
        raise CheckpointError(f"{folder}: holds a {found.__name__}, not a {model_class.__name__}")
    config = found.config_class.from_dict(data)
    weights = read_weights(folder)
    try:
        weights = found.sanitize(weights, config)
    except KeyError as error:
        raise CheckpointError(f"{folder}: tensor {error} is missing") from error
    except ValueError as error:
        raise CheckpointError(f"{folder}: misshapen tensor {error}") from error
    found.infer_config_from_weights(config, weights)
    model = found(config)
    quantize_as_stored(model, weights)
    assign_weights(model, weights, folder)
    model.folder = folder
    model.generation_config = GenerationConfig.from_pretrained(folder, data)
    return model


def checkpoint_dtype(config: dict, weights: dict[str, mx.array]) -> mx.Dtype:
    """The type that a checkpoint says it is in, or else that most of its tensors have.

    A `text_config` may say something else and is not asked: released ones are stale.
    """
    stated = config.get("dtype") or config.get("torch_dtype")
    if stated in ("bfloat16", "float16", "float32"):
        return getattr(mx, stated)
    sizes: dict[mx.Dtype, int] = {}
    for value in weights.values():
        if mx.issubdtype(value.dtype, mx.floating):
            sizes[value.dtype] = sizes.get(value.dtype, 0) + value.size
    return max(sizes, key=sizes.get, default=mx.float32)


def read_weights(folder: Path) -> dict[str, mx.array]:
    """The tensors of a folder: of its safetensors, or where there are none of its PyTorch files.

    Only files that the index names, or else the model's own by their name; other safetensors
    beside them (adapters, `out_llm.safetensors`) belong to something else. Safetensors are
    memory-mapped: nothing is read before it is evaluated.

    Raises:
        CheckpointError: there are no weights, or a file of them is missing, damaged or unsafe.
    """
    files = weight_files(str(folder), folder, {file.name for file in folder.iterdir()})
    if not files:
        raise CheckpointError(f"{folder}: {NO_WEIGHTS} here")
    weights: dict[str, mx.array] = {}
    for name in files:
        read = read_pytorch_bin if name.endswith(".bin") else read_safetensors
        weights.update(read(folder / name))
    return weights


def read_safetensors(file: Path) -> dict[str, mx.array]:
    """One safetensors file, memory-mapped.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if not file.is_file():
        raise CheckpointError(f"{file.parent}: {file.name} is missing; download it again")
    try:
        return mx.load(str(file))
    except RuntimeError as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file; download it again ({error})"
        ) from error


def assign_weights(model: PretrainedModel, weights: dict[str, mx.array], folder: Path) -> None:
    """Put tensors into a model.

    Raises:
        CheckpointError: tensors are missing, superfluous or misshapen; lists the first of them.
    """
    expected = {name: value.shape for name, value in tree_flatten(model.parameters())}
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "not part of this model": sorted(weights.keys() - expected.keys()),
        "of the wrong shape": [
            f"{name} {weights[name].shape} instead of {shape}"
            for name, shape in sorted(expected.items())
            if name in weights and weights[name].shape != shape
        ],
    }
    told = [
        f"{len(names)} tensors {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        for what, names in problems.items()
        if names
    ]
    if told:
        raise CheckpointError(f"{folder}: the weights do not fit config.json; {'; '.join(told)}")
    model.load_weights(list(weights.items()))


def cast(model: PretrainedModel, dtype: mx.Dtype) -> None:
    """Have a model's floating-point tensors in one type."""
    model.update(
        tree_map(
            lambda v: v.astype(dtype) if mx.issubdtype(v.dtype, mx.floating) else v,
            model.parameters(),
        )
    )


def attach_adapter(model: PretrainedModel, folder: Path, dtype: mx.Dtype) -> None:
    """`load_adapter`, if the folder has one.

    Raises:
        CheckpointError: it has none though it says that it needs one.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        load_adapter(model, folder, dtype)
    elif getattr(model.config, "has_lora_adapter", False):
        raise CheckpointError(
            f"{folder}: config.json says that the model needs its LoRA adapter, but there is no "
            f"{ADAPTER_CONFIG}"
        )


def load_adapter(model: PretrainedModel, folder: Path, dtype: mx.Dtype) -> None:
    """Put the LoRA adapter of a checkpoint folder over a loaded model.

    Raises:
        CheckpointError: the adapter is incomplete, of another kind, or made for another model.
    """
    config = LoraConfig.from_dict(read_json(folder, ADAPTER_CONFIG))
    # peft saves with this prefix, transformers without it
    weights = {
        name.removeprefix("base_model.model."): value
        for name, value in read_safetensors(folder / ADAPTER_WEIGHTS).items()
    }
    apply_adapter(model, config, weights, dtype)
