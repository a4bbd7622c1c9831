"""An adapter over a model -> adapter_config.json and adapter_model.safetensors, for peft."""

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from ..errors import InputError
from ..layers.lora import LoRALinear, SavedModule, adapted_modules
from ..layers.lora_config import LoraConfig
from .adapters import AdaptableModel, is_within, linear_layer, plain_copy
from .folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, write_json
from .shards import save_tensors

#: how peft begins the names of tensors; transformers leaves it out
_PREFIX = "base_model.model."
#: what peft takes for `target_modules` where there are whole modules only
_NO_TARGETS = "dummy-target-modules"


class LowRankTerm(NamedTuple):
    """Of a layer: `scale * x A^T B^T`, with A (rank, in) and B (out, rank)."""

    a: mx.array
    b: mx.array
    scale: float


def write_adapter_of(model: Any, folder: Path) -> bool:
    """Write what is over a model, all of it as one adapter; says whether there is anything.

    An adapter of low-rank terms that was read is written under the names that it was read by, which
    its configuration is about.
    """
    modules = {name: module for name, _, module in adapted_modules(model)}
    saved = [name for name, module in modules.items() if isinstance(module, SavedModule)]
    layers = {
        name: module
        for name, module in modules.items()
        if isinstance(module, LoRALinear) and not is_within(name, saved)
    }
    if not layers and not saved:
        return False
    terms = {n: LowRankTerm(m.lora_a, m.lora_b, m.scale) for n, m in layers.items()}
    if saved or model.adapter_config is None:
        write_adapter_files(model, folder, terms, saved)
        return True
    tensors: dict[str, mx.array] = {}
    for layer in layers.values():
        start = f"{_PREFIX}{layer.name}.lora"
        tensors |= {f"{start}_A.weight": layer.lora_a, f"{start}_B.weight": layer.lora_b}
    save_tensors(folder / ADAPTER_WEIGHTS, tensors, "pt")
    write_json(folder / ADAPTER_CONFIG, model.adapter_config.stored)
    return True


def write_adapter_files(
    model: Any,
    folder: Path,
    terms: dict[str, LowRankTerm],
    saved: Collection[str],
    **settings: Any,
) -> None:
    """Write an adapter as peft reads it over transformers' model: under the names that modules have
    there in memory.

    Args:
        model: what it is over.
        folder: where to write its two files.
        terms: by our names of the layers.
        saved: our names of the modules that are written whole, with what is over layers in them in
            their weights.
        settings: further fields of adapter_config.json.

    Raises:
        InputError: there is nothing to write, or it does not fit the model.
    """
    if not terms and not saved:
        raise InputError("an adapter needs low-rank terms or whole modules; there are none")
    modules = {name: module for name, _, module in adapted_modules(model)}
    layers = [
        name
        for name, module in modules.items()
        if linear_layer(module) is not None and not is_within(name, saved)
    ]
    tensors: dict[str, mx.array] = {}
    dtype = model.dtype  # which is looked for in all of it
    for name, term in terms.items():
        if name not in layers:
            raise InputError(f"{name} is no linear layer outside of what is saved whole")
        start = f"{_PREFIX}{in_transformers(model, name)}.lora"
        tensors |= {f"{start}_A.weight": term.a, f"{start}_B.weight": term.b}
    for name in saved:
        if name not in modules:
            raise InputError(f"{name} is no module of the model")
        plain = tree_flatten(plain_copy(modules[name], dtype).parameters())
        own = {f"{name}.{key}": value.astype(dtype) for key, value in plain}
        stored = model.to_checkpoint(own, model.config)
        tensors |= {f"{_PREFIX}{in_transformers(model, k)}": v for k, v in stored.items()}
    config = _config(model, terms, layers)
    config["modules_to_save"] = [in_transformers(model, name) for name in saved] or None
    save_tensors(folder / ADAPTER_WEIGHTS, tensors, "pt")
    write_json(folder / ADAPTER_CONFIG, config | settings)


def _config(
    model: AdaptableModel, terms: dict[str, LowRankTerm], layers: Iterable[str]
) -> dict[str, Any]:
    """What adapter_config.json says of low-rank terms.

    Args:
        layers: our names of those that could have one.
    """
    ranks = {name: term.a.shape[0] for name, term in terms.items()}
    alphas = {name: term.scale * ranks[name] for name, term in terms.items()}
    usual = LoraConfig()
    rank, alpha = (_most_common(v, d) for v, d in ((ranks, usual.r), (alphas, usual.lora_alpha)))
    names = {name: in_transformers(model, name) for name in terms}
    ends = sorted({name.rpartition(".")[2] for name in terms})
    meant = {name for name in layers if name.rpartition(".")[2] in ends}
    # the ends of names are the same in each layout of them
    targets = ends if meant == terms.keys() else sorted(names.values())
    return {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "rank_pattern": {names[name]: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {names[name]: value for name, value in alphas.items() if value != alpha},
        "target_modules": targets or _NO_TARGETS,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "use_rslora": False,
    }


def _most_common(values: dict[str, Any], default: Any) -> Any:
    return Counter(values.values()).most_common(1)[0][0] if values else default


def in_transformers(model: AdaptableModel, name: str) -> str:
    """What transformers calls one of our modules or tensors in memory."""
    return model.checkpoint_names(name)[-1]
