"""An adapter of peft: its configuration and its tensors -> over a model.

An adapter has low-rank terms on layers (`LoRALinear`), and modules that were trained as a whole
(`SavedModule`, peft's `modules_to_save`). One over an adapted model adds its terms to those that
are there, and its whole modules stand in for what is there.
"""

import copy
import re
from collections.abc import Iterable
from itertools import compress
from typing import Any, ClassVar, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..errors import CheckpointError
from ..layers.lora import LoRALinear, SavedModule, adapted_modules, replace_module
from ..layers.lora_config import LoraConfig
from .folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, printable
from .quantization import dequantize


class AdaptableModel(Protocol):
    """What an adapter is put over: a model that knows its names in each layout of checkpoints."""

    config: Any
    adapter_by_default: bool
    tied_embeddings: ClassVar[str]

    def named_modules(self) -> list[tuple[str, nn.Module]]: ...

    def rename(self, name: str) -> str: ...

    def checkpoint_names(self, name: str) -> tuple[str, ...]: ...

    def sanitize(self, weights: dict[str, mx.array], config: Any) -> dict[str, mx.array]: ...

    def to_checkpoint(self, weights: dict[str, mx.array], config: Any) -> dict[str, mx.array]: ...


def apply_adapter(
    model: AdaptableModel, config: LoraConfig, weights: dict[str, mx.array], dtype: mx.Dtype
) -> None:
    """Put an adapter over a model, or over what is over it already.

    Args:
        weights: under the names of the adapter's file, which are also what the patterns in
            `config` are about: `<module>.lora_A.weight` (rank, in) and `<module>.lora_B.weight`
            (out, rank), and the tensors of whole modules as in checkpoints.
        dtype: what the model computes in.

    Raises:
        CheckpointError: tensors are missing or superfluous (lists the first ones), have another
            shape, or name no layer of the model.
    """
    if not weights:
        raise CheckpointError(f"{ADAPTER_WEIGHTS}: no tensors in it")
    modules = {name: (path, module) for name, path, module in adapted_modules(model)}
    pairs: dict[str, dict[str, mx.array]] = {}
    whole: dict[str, mx.array] = {}
    for name, value in weights.items():
        match = re.fullmatch(r"(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        if match is not None:
            pairs.setdefault(match[1], {})[match[2]] = value.astype(dtype)
        else:
            whole[name] = value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) else value
    saved = _saved_paths(model, config, modules, whole)
    tensors = _by_module(model, whole, saved)
    for name, pair in pairs.items():
        _add_term(model, config, modules, name, pair)
    if config.target_modules is not None:
        linear = [name for name, (_, m) in modules.items() if linear_layer(m) is not None]
        outside = [name for name in linear if not is_within(name, saved)]
        check_targets(model, config, outside, {model.rename(name) for name in pairs})
    for name in saved:
        path, module = modules[name]
        trained = _trained(name, module, tensors[name], dtype)
        base = _unwrapped(module, on=False)
        replace_module(model, path, SavedModule(base, trained, model.adapter_by_default))


def linear_layer(module: nn.Module) -> Any:
    """The linear layer that a module is, or that is under its term, in training also one of
    mlx-lm's; None if it is none."""
    while "lora_a" in module:
        module = module["base" if "base" in module else "linear"]
    return module if isinstance(module, nn.Linear | nn.QuantizedLinear) else None


def is_within(name: str, modules: Iterable[str]) -> bool:
    """Whether something is, or is in, one of the modules."""
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def _add_term(
    model: AdaptableModel,
    config: LoraConfig,
    modules: dict[str, tuple[str, nn.Module]],
    name: str,
    pair: dict[str, mx.array],
) -> None:
    path, module = modules.get(model.rename(name), ("", None))
    layer = None if module is None else linear_layer(module)
    if layer is None:
        what = f"{printable(name)} is no layer of this model"
        raise CheckpointError(f"{ADAPTER_WEIGHTS}: {what}")
    if pair.keys() != {"A", "B"}:
        raise CheckpointError(f"{ADAPTER_WEIGHTS}: {name} lacks lora_A or lora_B")
    a, b, rank = pair["A"], pair["B"], config.rank(name)
    outputs, inputs = layer.weight.shape
    if isinstance(layer, nn.QuantizedLinear):
        inputs = inputs * 32 // layer.bits
    if (a.shape, b.shape) != ((rank, inputs), (outputs, rank)):
        raise CheckpointError(
            f"{ADAPTER_WEIGHTS}: {name} has shapes {a.shape} and {b.shape}, expected "
            f"{(rank, inputs)} and {(outputs, rank)}"
        )
    scale = config.scale(name)
    if isinstance(module, LoRALinear):
        module.stack(a, b, scale)
    else:
        adapted = LoRALinear(layer, a, b, scale, model.adapter_by_default, name)
        replace_module(model, path, adapted)


def check_targets(
    model: AdaptableModel, config: LoraConfig, linear: list[str], found: set[str]
) -> None:
    """Check that an adapter is on all modules that its configuration names, and on no others.

    Args:
        linear: names of the modules that could be meant.
        found: of those that it is on.

    Raises:
        CheckpointError: it is not; lists the first ones.
    """
    layouts = zip(*(model.checkpoint_names(path) for path in linear), strict=True)
    # in which layout the configuration names them is not said, and its file may have another one
    candidates = [set(compress(linear, map(config.adapts, names))) for names in layouts]
    expected = max(candidates, key=lambda paths: (len(paths & found), -len(paths)), default=set())
    _refuse(
        {
            "modules of target_modules are missing": expected - found,
            "modules are not among target_modules": found - expected,
        }
    )


def _refuse(problems: dict[str, Iterable[str]]) -> None:
    """What is wrong with an adapter's tensors, if anything is: what is said -> of which."""
    for what, found in problems.items():
        if names := sorted(map(printable, found)):
            first = ", ".join(names[:2]) + (", …" if len(names) > 2 else "")
            raise CheckpointError(f"{ADAPTER_WEIGHTS}: {len(names)} {what}: {first}")


def _saved_paths(
    model: AdaptableModel,
    config: LoraConfig,
    modules: dict[str, tuple[str, nn.Module]],
    tensors: dict[str, mx.array],
) -> list[str]:
    """Names of the modules that an adapter has as a whole, by its configuration.

    As in peft, what names none is passed over.

    Raises:
        CheckpointError: one cannot be had as a whole.
    """
    if not config.modules_to_save:
        return []
    names = [name for name in modules if name]
    layouts = zip(*(model.checkpoint_names(name) for name in names), strict=True)
    candidates = [set(compress(names, map(config.saves, layout))) for layout in layouts]
    stored = {model.rename(name) for name in tensors}

    def fit(found: set[str]) -> tuple[int, int]:
        return sum(is_within(name, found) for name in stored), -len(found)

    found = max(candidates, key=fit)
    # one within another is part of it
    outer = [n for n in names if n in found and not is_within(n.rpartition(".")[0], found)]
    table = model.tied_embeddings.removesuffix(".")
    if getattr(model.config, "tie_word_embeddings", False):
        for name in outer:
            if is_within(name, [table]) or is_within(table, [name]):
                what = f"{name} has the embeddings, which are the head as well"
                raise CheckpointError(f"{ADAPTER_CONFIG}: modules_to_save: {what}: not supported")
    return outer


def _by_module(
    model: AdaptableModel, tensors: dict[str, mx.array], saved: list[str]
) -> dict[str, dict[str, mx.array]]:
    """The tensors of whole modules: of each the name in it -> the tensor.

    Raises:
        CheckpointError: one is of none of the modules.
    """
    try:
        own = model.sanitize(tensors, model.config) if tensors else {}
    except (KeyError, ValueError) as error:
        what = "missing" if isinstance(error, KeyError) else "misshapen"
        raise CheckpointError(f"{ADAPTER_WEIGHTS}: tensor {error} is {what}") from error
    found: dict[str, dict[str, mx.array]] = {name: {} for name in saved}
    unknown = set()
    for tensor, value in own.items():
        name = next((name for name in saved if is_within(tensor, [name])), None)
        if name is None:
            unknown.add(tensor)
        else:
            found[name][tensor.removeprefix(f"{name}.")] = value
    _refuse({"tensors are of no module of this model that the adapter may have": unknown})
    return found


def _trained(
    name: str, module: nn.Module, tensors: dict[str, mx.array], dtype: mx.Dtype
) -> nn.Module:
    """A module like another, with the tensors of an adapter.

    Raises:
        CheckpointError: they are not the tensors of such a module.
    """
    trained = plain_copy(module, dtype)
    expected = {key: value.shape for key, value in tree_flatten(trained.parameters())}
    _refuse(
        {
            "tensors are missing": {f"{name}.{key}" for key in expected.keys() - tensors.keys()},
            "tensors are not part of this model": {
                f"{name}.{key}" for key in tensors.keys() - expected.keys()
            },
            "tensors are of the wrong shape": {
                f"{name}.{key} {tensors[key].shape} instead of {shape}"
                for key, shape in expected.items()
                if key in tensors and tensors[key].shape != shape
            },
        }
    )
    trained.update(tree_unflatten(list(tensors.items())))
    return trained


def plain_copy(module: nn.Module, dtype: mx.Dtype) -> nn.Module:
    """A copy of a module that does what it does with its adapter on, without one and not
    quantized; nothing is computed before it is used."""
    holder = nn.Module()
    holder.module = copy.deepcopy(module)
    dequantize(holder, dtype)
    return _unwrapped(holder.module, on=True)


def fuse_adapters(model: nn.Module) -> None:
    """Have what an adapter does in the weights of layers, which are not quantized."""
    _unwrap(model, on=True)


def remove_adapters(model: nn.Module) -> None:
    """Have the base alone."""
    _unwrap(model, on=False)


def _unwrapped(module: nn.Module, on: bool) -> nn.Module:
    """A module that may be wrapped itself, without adapters."""
    holder = nn.Module()
    holder.module = module
    _unwrap(holder, on)
    return holder.module


def _unwrap(model: nn.Module, on: bool) -> None:
    # what is in a module comes before it
    for path, module in reversed(model.named_modules()):
        if isinstance(module, SavedModule):
            replace_module(model, path, module["saved" if on else "base"])
        elif isinstance(module, LoRALinear):
            if on:
                module.base.weight = module.fused_weight().astype(module.base.weight.dtype)
            replace_module(model, path, module.base)


def has_adapter(model: nn.Module) -> bool:
    """Whether an adapter is over a model."""
    return any(isinstance(module, LoRALinear | SavedModule) for module in model.modules())
