"""Tensors of a checkpoint folder -> a model: read, renamed, assigned, cast, with the adapter."""

import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from ..errors import CheckpointError, UnsupportedOptionError
from ..generation.config import GenerationConfig
from ..layers.lora import SavedModule
from ..layers.lora_config import LoraConfig
from ..layers.sharding import ShardingGroup
from .adapters import AdaptableModel, apply_adapter, has_adapter
from .elements import type_name
from .float8 import apply_scales
from .folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, NO_WEIGHTS, printable, read_json, weight_files
from .options import LoadingOptions
from .pytorch import read_pytorch_bin
from .quantization import check_quant_method, quantize_as_requested, quantize_as_stored
from .safetensors import read_safetensors


class CheckpointModel(AdaptableModel, Protocol):
    """What tensors are put into: a model class that knows its names and layouts."""

    config: Any
    config_class: ClassVar[Any]
    computed_tensors: ClassVar[tuple[str, ...]]
    separate_files: ClassVar[dict[str, str]]
    folder: Path | None
    generation_config: Any
    sharding_group: Any

    def __init__(self, config: Any): ...

    @staticmethod
    def sanitize(weights: dict[str, mx.array], config: Any) -> dict[str, mx.array]: ...

    @classmethod
    def infer_config_from_weights(cls, config: Any, weights: dict[str, mx.array]) -> None: ...

    def add_stored_layers(self, weights: dict[str, mx.array]) -> None: ...

    def get_decoder(self) -> Any: ...

    def parameters(self) -> dict: ...

    def eval(self) -> Any: ...


_MLX_LM_ADAPTER = "adapters.safetensors"
#: how names of the tensors of heads begin; the rest of a model is the same with any of them
HEADS = ("lm_head.", "score.", "qa_outputs.")

T = TypeVar("T", bound=CheckpointModel)


def load_weights(
    folder: Path,
    config: dict,
    model_class: type[T],
    options: LoadingOptions = LoadingOptions(),  # noqa: B008  # it is frozen
) -> T:
    """A folder's model in evaluation mode, adapters over it, with all its tensors read.

    Args:
        config: the folder's config.json.
        model_class: what to make of it, a `PretrainedModel`.
        options: how.

    Raises:
        CheckpointError: tensors are missing, superfluous, misshapen, damaged or of the wrong type;
            the configuration is malformed; the adapter does not fit.
        InputError: MLX has no such quantization as asked for, or the checkpoint has one already.
    """
    model = _adapted_model(folder, config, model_class, options)
    _read(model, folder)
    return model


def load_layers(
    folder: Path, config: dict, model_class: type[CheckpointModel], options: LoadingOptions
) -> Any:
    """This rank's part of the layers of the decoder in a folder's model, adapters over them.

    Of safetensors nothing else is read, unless embeddings and a head that is tied to them are both
    stored, which are compared. Arguments and errors are those of `load_weights`,
    `options.tensor_group` being given.

    Returns:
        A `DecoderModel` without embeddings and final norm.
    """
    decoder = _adapted_model(folder, config, model_class, options).get_decoder()
    decoder.keep_layers()
    _read(decoder, folder)
    return decoder


def _adapted_model(folder: Path, config: dict, model_class: type[T], options: LoadingOptions) -> T:
    group = options.tensor_group
    model = lazy_model(folder, config, model_class, options.ignore_mismatched_sizes, group)
    decoder, sharding = model.get_decoder(), model.sharding_group
    stored = checkpoint_dtype(config, dict(tree_flatten(model.parameters())), sharding)
    dtype = options.chosen_dtype(stored)
    cast(model, dtype)
    if options.quantization_config is not None:
        quantize_as_requested(model, options.quantization_config)
    attach_adapter(model, folder, dtype)
    if options.adapter is not None:
        load_adapter(model, options.adapter, dtype)
    if sharding is not None:
        _check_single(decoder, model)
    return model


def _check_single(decoder: nn.Module, model: Any) -> None:
    """Raises `UnsupportedOptionError` where an adapter has the decoder as a whole, so that there
    are two of them: followers have the layers of one."""
    for module in model.modules():
        if isinstance(module, SavedModule) and any(m is decoder for m in module.modules()):
            raise UnsupportedOptionError(
                "this adapter has a whole decoder in modules_to_save, which tensor parallelism "
                "cannot share out; single layers it can"
            )


def _read(model: nn.Module, folder: Path) -> None:
    model.eval()
    # reads the files, one tensor after the other: what is not needed in its stored type any more
    # is freed before the next one is read
    mx.eval(model.parameters())
    check_finite(tree_flatten(model.parameters()), folder)


def lazy_model(
    folder: Path,
    config: dict,
    model_class: type[T],
    ignore_mismatched_sizes: bool = False,
    tensor_group: mx.distributed.Group | None = None,
) -> T:
    """A folder's model without its adapter, in the types and with the bits in which it is stored.

    Tensors of safetensors are read when they are first used, but those of layers that are shared
    out at once, this rank's part of them. Arguments and errors as above.
    """
    check_quant_method(config)
    settings = model_class.config_class.from_dict(config)
    sharding = None if tensor_group is None else settings.sharding(tensor_group)
    weights = read_weights(folder, model_class.separate_files, sharding)
    weights = apply_scales(weights, config, sharding)
    settings.check_layers(len(weights))
    check_types(weights, folder, model_class.computed_tensors)
    try:
        weights = model_class.sanitize(weights, settings)
    except KeyError as error:
        raise CheckpointError(f"{folder}: tensor {error} is missing") from error
    except ValueError as error:
        raise CheckpointError(f"{folder}: misshapen tensor {error}") from error
    model_class.infer_config_from_weights(settings, weights)
    model = model_class(settings)
    if sharding is not None:
        model.get_decoder().share_layers(sharding)
    model.add_stored_layers(weights)
    quantize_as_stored(model, weights)
    stated = config.get("architectures")
    other_kind = isinstance(stated, list) and stated != [model_class.__name__]
    if other_kind or ignore_mismatched_sizes:
        weights = with_new_tensors(model, weights, folder, other_kind, ignore_mismatched_sizes)
    assign_weights(model, weights, folder)
    model.folder = folder
    stored = read_json(folder, "generation_config.json", required=False)
    model.generation_config = GenerationConfig.from_checkpoint(stored, config)
    return model


def checkpoint_dtype(
    config: dict, weights: dict[str, mx.array], sharding: ShardingGroup | None = None
) -> mx.Dtype:
    """The type that a checkpoint says it is in, or else that most of its tensors have.

    A `text_config` may say something else and is not asked: released ones are stale. The type is
    the same on all ranks, and in one process.
    """
    stated = config.get("dtype") or config.get("torch_dtype")
    if stated in ("bfloat16", "float16", "float32"):
        return getattr(mx, stated)
    sizes: dict[mx.Dtype, int] = {}
    for name, value in weights.items():
        if mx.issubdtype(value.dtype, mx.floating):
            shape = value.shape if sharding is None else sharding.whole_shape(name, value.shape)
            sizes[value.dtype] = sizes.get(value.dtype, 0) + math.prod(shape)
    return max(sizes, key=lambda dtype: sizes[dtype], default=mx.float32)


def read_weights(
    folder: Path, separate: dict[str, str], sharding: ShardingGroup | None = None
) -> dict[str, mx.array]:
    """The tensors of a folder: of its safetensors, or where there are none of its PyTorch files.

    Only files that the index names, or else the model's own by their name, and those of `separate`
    that are there; other safetensors beside them belong to something else. Safetensors are
    memory-mapped: nothing is read before it is evaluated.

    Args:
        separate: see `PretrainedModel.separate_files`.
        sharding: if given, this rank's part of layers that are shared out is read; PyTorch's files
            are read as a whole, and what is not its part is freed again.

    Raises:
        CheckpointError: there are no weights, a file of them is missing, damaged or unsafe, or two
            hold the same tensor.
        UnsupportedOptionError: a tensor cannot be shared out.
    """
    files = weight_files(folder)
    if not files:
        raise CheckpointError(f"{folder}: {NO_WEIGHTS} here")
    starts = dict.fromkeys(files, "")
    starts |= {name: start for name, start in separate.items() if (folder / name).exists()}
    weights: dict[str, mx.array] = {}
    for name, start in starts.items():
        if name.endswith(".bin"):
            read = read_pytorch_bin(folder / name)
            if sharding is not None:
                read = {tensor: sharding.part(tensor, value) for tensor, value in read.items()}
                mx.eval(read)
        else:
            read = read_safetensors(folder / name, sharding)
        for stored, value in read.items():
            tensor = start + stored
            if tensor in weights:
                message = f"tensor {printable(tensor)} stands in {name} and in another file"
                raise CheckpointError(f"{folder}: {message}; remove what is no part of the model")
            weights[tensor] = value
    return weights


def check_types(weights: dict[str, mx.array], folder: Path, computed: tuple[str, ...] = ()) -> None:
    """Refuse integers, except those of MLX's own quantization, and counters.

    Args:
        computed: how names of tensors end that the model computes itself.

    Raises:
        CheckpointError: weights are stored as integers.
    """
    for name, value in weights.items():
        module, _, part = name.rpartition(".")
        packed = part in ("weight", "scales") and f"{module}.scales" in weights
        packed = packed and value.dtype == (mx.uint32 if part == "weight" else mx.uint8)
        if not (_is_floating(value) or packed or name.endswith(computed)):
            stored = f"tensor {printable(name)} is stored as {type_name(value.dtype)}"
            raise CheckpointError(
                f"{folder}: {stored}, but weights are floating-point numbers; take the checkpoint "
                "that it was made from"
            )


def check_finite(arrays: Iterable[tuple[str, mx.array]], folder: Path) -> None:
    """Refuse weights that are no numbers, or infinite.

    Raises:
        CheckpointError: there are some.
    """
    floating = [(name, array) for name, array in arrays if _is_floating(array)]
    # far cheaper than to look at each value: one that is not finite makes their sum so
    sums = [array.sum() for _, array in floating]
    mx.eval(sums)
    for (name, array), total in zip(floating, sums, strict=True):
        # numbers may also be too large for their sum
        if not math.isfinite(total.item()) and not mx.isfinite(array).all().item():
            kind = str(array.dtype).rpartition(".")[2]
            message = f"tensor {printable(name)} has values that are NaN or infinite in {kind}"
            raise CheckpointError(f"{folder}: {message}; take another copy of the checkpoint")


def with_new_tensors(
    model: nn.Module,
    weights: dict[str, mx.array],
    folder: Path,
    heads: bool = True,
    mismatched: bool = False,
) -> dict[str, mx.array]:
    """A checkpoint's tensors, and a model's own in place of some, as it was made; says which.

    Args:
        heads: a head that the checkpoint lacks is new, and one that the model lacks is left out.
        mismatched: so is every tensor that has another shape in the model.
    """
    own = dict(tree_flatten(model.parameters()))
    kept = {
        name: value
        for name, value in weights.items()
        if not (heads and name.startswith(HEADS) and name not in own)
        and not (mismatched and name in own and own[name].shape != value.shape)
    }
    dropped = weights.keys() - kept.keys()
    lacking = {n for n in own.keys() - kept.keys() if n in dropped or n.startswith(HEADS)}
    if lacking:
        warnings.warn(
            f"{folder}: new, and random, in this {type(model).__name__} are "
            f"{', '.join(sorted(lacking))}; train it before you use it",
            stacklevel=2,
        )
    return kept | {name: own[name] for name in lacking}


def assign_weights(model: nn.Module, weights: dict[str, mx.array], folder: Path) -> None:
    """Put tensors into a model.

    Raises:
        CheckpointError: tensors are missing, superfluous, misshapen or of the wrong
            type; lists the first of them.
    """
    parameters = dict(tree_flatten(model.parameters()))
    expected = {name: value.shape for name, value in parameters.items()}
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "not part of this model": sorted(map(printable, weights.keys() - expected.keys())),
        "of the wrong shape": [
            f"{name} {weights[name].shape} instead of {shape}"
            for name, shape in sorted(expected.items())
            if name in weights and weights[name].shape != shape
        ],
        "of the wrong type": [
            f"{name} {type_name(weights[name].dtype)}"
            for name, value in sorted(parameters.items())
            if name in weights and _is_floating(weights[name]) != _is_floating(value)
        ],
    }
    told = [
        f"{len(names)} tensors {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        for what, names in problems.items()
        if names
    ]
    if told:
        *others, misshapen, _ = problems.values()
        if misshapen and not any(others) and all(name.startswith(HEADS) for name in misshapen):
            told.append("ignore_mismatched_sizes=True gives a new head")
        raise CheckpointError(f"{folder}: the weights do not fit config.json; {'; '.join(told)}")
    model.load_weights(list(weights.items()))


def cast(model: nn.Module, dtype: mx.Dtype) -> None:
    """Have a model's floating-point tensors in one type."""
    model.update(tree_map(lambda v: v.astype(dtype) if _is_floating(v) else v, model.parameters()))


def _is_floating(array: mx.array) -> bool:
    return mx.issubdtype(array.dtype, mx.floating)


def attach_adapter(model: nn.Module, folder: Path, dtype: mx.Dtype) -> None:
    """`load_adapter`, if the folder has one.

    Raises:
        CheckpointError: it has none though it says that it needs one.
    """
    if (folder / ADAPTER_CONFIG).exists():
        load_adapter(model, folder, dtype)
    elif getattr(model.config, "has_lora_adapter", False):
        raise CheckpointError(
            f"{folder}: config.json says that the model needs its LoRA adapter, but there is no "
            f"{ADAPTER_CONFIG}; has_lora_adapter=False loads it without"
        )


def load_adapter(model: Any, folder: Path, dtype: mx.Dtype) -> None:
    """Put the adapter of a folder over a loaded model, or over the adapter that is over it.

    Raises:
        CheckpointError: the adapter is incomplete, of another kind, or made for another model.
    """
    if not (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(f"{folder}: no {ADAPTER_CONFIG} here, so this holds no adapter")
    if not (folder / ADAPTER_WEIGHTS).exists() and (folder / _MLX_LM_ADAPTER).exists():
        kind = f"an adapter of mlx-lm's own kind, in {_MLX_LM_ADAPTER}"
        raise CheckpointError(f"{folder}: {kind}; only those in peft's {ADAPTER_WEIGHTS} are read")
    stored = read_json(folder, ADAPTER_CONFIG)
    sharding = model.sharding_group
    # peft saves with this prefix, transformers without it
    weights = {
        name.removeprefix("base_model.model."): value
        for name, value in read_safetensors(folder / ADAPTER_WEIGHTS, sharding).items()
    }
    computed = (name for name in model.computed_tensors if "lora" not in name)
    check_types(weights, folder, tuple(computed))
    first, made = not has_adapter(model), ""
    try:
        config = LoraConfig.from_dict(stored)
        if base := stored.get("base_model_name_or_path"):
            made = f"; it was made for {base}"
        apply_adapter(model, config, weights, dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}{made}") from error
    model.adapter_config = config if first else None
