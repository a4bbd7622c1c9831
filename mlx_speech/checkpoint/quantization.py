"""Which module gets how many bits, and what a checkpoint says about it.

A recipe is a row of `RECIPES`: bits for each part of a model. With mode and group size it makes a
`Quantization`, which says for each module what MLX's `nn.quantize` does to it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, InputError

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn


@dataclass(frozen=True)
class Recipe:
    """Bits for the parts of a model; `sensitive` for what is in `SENSITIVE` of the decoder."""

    encoder: int
    projector: int
    decoder: int
    sensitive: int


#: 4 bits in a Conformer cost more words than anywhere else, hence its 8 nearly everywhere
RECIPES = {
    #                    encoder  projector  decoder  sensitive
    "speech_4bit": Recipe(8, 8, 4, 4),
    "speech_8bit": Recipe(8, 8, 8, 8),
    "all_4bit": Recipe(4, 4, 4, 4),
    "mixed_4_8": Recipe(8, 8, 4, 8),
}

#: What 4 bits hurt most in a decoder, by the end of its name: on the bundled model, having these
#: in 6 or 8 bits halves the divergence of the next token's distribution; others do little.
SENSITIVE = r"self_attn\.[kv]_proj|\.down_proj|\.fc2"

#: the first that a module's name begins with; the decoder may be an editor, which reads both ways
PARTS = {"encoder": r"(model\.)?encoder\.|ctc_head\.", "projector": r"projector\.", "decoder": ""}

#: What keeps its type, by the end of its name. So does what MLX cannot quantize: norms,
#: convolutions that are not of width 1, the projector's queries.
KEPT = {r"\.rel_pos_emb": "table of positions", r"score": "classifier"}
#: likewise, unless it has so many weights, as the heads of tokens have
KEPT_SMALL = {r"encoder\.out(_mid)?|ctc_head": "CTC head"}
_MANY = 2**20

#: group sizes and bits of each mode, the usual ones first; see the documentation of `mx.quantize`
MODES = {
    "affine": ((64, 128, 32), (4, 2, 3, 5, 6, 8)),
    "mxfp4": ((32,), (4,)),
    "mxfp8": ((32,), (8,)),
    "nvfp4": ((16,), (4,)),
}

#: methods of `quantization_config` whose tensors say all that has to be known, see `float8`
SCALED = ("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt")

Predicate = Callable[[str, Any], "bool | dict"]


@dataclass(frozen=True)
class Quantization:
    """How a model is to be quantized.

    Calling it with a module's name and the module gives what the `class_predicate` of `nn.quantize`
    gives: False to leave it alone, or its `group_size`, `bits` and `mode`.

    Args:
        recipe: bits by part of the model.
        name: what the recipe is called.
        mode: of the modules whose number of bits it has; any others are affine.
        group_size: weights that share a scale; fewer where a layer's inputs do not divide so.
        predicate: decides in the recipe's place, with a name and a module: False, True for the
            decoder's bits, or a dict of what is to differ from those.
    """

    recipe: Recipe
    name: str
    mode: str
    group_size: int
    predicate: Predicate | None = None

    @property
    def default(self) -> dict[str, Any]:
        """What stands at the top of config.json's `quantization`."""
        return self._settings(self.recipe.decoder)

    def __call__(self, path: str, module: nn.Module) -> bool | dict[str, Any]:
        requested = self.requested(path, module)
        if not requested:
            return False
        wanted = (requested["group_size"], requested["mode"])
        group_size = fitting_group(module.weight.shape[-1], *wanted)
        return group_size is not None and {**requested, "group_size": group_size}

    def requested(self, path: str, module: nn.Module) -> dict[str, Any] | None:
        """As calling it, but whether or not the group fits; None for what keeps its type.

        Raises:
            InputError: the predicate gives what MLX cannot do.
        """
        from ..layers.lora import base_name

        if not hasattr(module, "to_quantized"):
            return None
        # in a loaded model, an adapted layer lies in its adapter, which keeps its own type
        if (name := base_name(path)) is None:
            return None
        path = name
        if self.predicate is None:
            return None if skip_reason(path, module) else self._settings(self._bits(path))
        answer = self.predicate(path, module)
        if not isinstance(answer, bool | dict):
            raise InputError(f"the predicate gives {answer!r} for {path}, not a bool or a dict")
        if answer is False:
            return None
        changes = answer if isinstance(answer, dict) else {}
        return checked({**self.default, **changes}, f"{path}: ")

    def _bits(self, path: str) -> int:
        part = part_of(path)
        if part == "decoder" and re.search(rf"({SENSITIVE})$", path):
            return self.recipe.sensitive
        return getattr(self.recipe, part)

    def _settings(self, bits: int) -> dict[str, Any]:
        mode = self.mode if bits in MODES[self.mode][1] else "affine"
        group_size = self.group_size if mode == self.mode else MODES[mode][0][0]
        return {"group_size": group_size, "bits": bits, "mode": mode}


def part_of(path: str) -> str:
    """Which part of its model a module is in, or is itself."""
    return next(part for part, start in PARTS.items() if re.match(start, f"{path}."))


def skip_reason(path: str, module: nn.Module) -> str | None:
    """Why a module keeps its type, if recipes leave it alone."""
    kept = KEPT if module.weight.size >= _MANY else KEPT | KEPT_SMALL
    return next((reason for end, reason in kept.items() if re.search(rf"({end})$", path)), None)


def fitting_group(inputs: int, group_size: int, mode: str) -> int | None:
    """The largest group size of a mode, up to the one asked for, that divides a layer's inputs."""
    sizes = (size for size in sorted(MODES[mode][0], reverse=True) if size <= group_size)
    return next((size for size in sizes if inputs % size == 0), None)


def checked(settings: dict[str, Any], whose: str = "") -> dict[str, Any]:
    """The same settings.

    Raises:
        InputError: MLX has no such quantization.
    """
    if extra := settings.keys() - {"group_size", "bits", "mode"}:
        raise InputError(f"{whose}{min(extra)} is no setting of a quantization")
    mode = settings["mode"]
    if mode not in MODES:
        text = "{whose}{q_mode} is {mode!r}, but must be one of {able}"
        raise InputError.about(text, whose=whose, mode=mode, able=", ".join(MODES))
    for name, possible in zip(("group_size", "bits"), MODES[mode], strict=True):
        if settings[name] not in possible:
            text = "{whose}{option} is {value!r}, but {mode} has {able}"
            values = {"whose": whose, "value": settings[name], "mode": mode}
            able = ", ".join(map(str, sorted(possible)))
            raise InputError.about(text, option=f"q_{name}", able=able, **values)
    return settings


def resolve_quantization(
    model: nn.Module,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    mode: str = "affine",
    recipe: str | Predicate | None = None,
) -> Quantization:
    """How to quantize a model.

    Args:
        bits: for the decoder, which is all that a text model has; by default 4 or what the mode
            has. An encoder and a projector get 8. Where there is no decoder, for all; by default 8.
        group_size: weights that share a scale; by default what is usual in the mode.
        mode: `"affine"`, `"mxfp4"`, `"mxfp8"` or `"nvfp4"`.
        recipe: a name of `RECIPES`, which says the bits itself; or a function that decides for
            each module, see `Quantization`.

    Raises:
        InputError: MLX has no such quantization, or the arguments contradict each other.
    """
    sizes, possible = MODES.get(mode, ((0,), (0,)))
    size = sizes[0] if group_size is None else group_size
    parts = {part_of(path) for path, _ in model.named_modules() if path}
    usual = 8 if "decoder" not in parts and 8 in possible else possible[0]
    width = usual if bits is None else bits
    checked({"group_size": size, "bits": width, "mode": mode})
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise InputError.must_be("quant_predicate", recipe, f"one of {', '.join(RECIPES)}")
        if bits is not None:
            text = "{quant_predicate} {recipe} says how many bits; leave out {q_bits}"
            raise InputError.about(text, recipe=recipe)
        if not set(vars(RECIPES[recipe]).values()) & set(possible):
            text = "{q_mode} {mode} has {bits} bits, which {recipe} has not"
            raise InputError.about(text, mode=mode, bits=possible[0], recipe=recipe)
        return Quantization(RECIPES[recipe], recipe, mode, size)
    both = {"encoder", "decoder"} <= parts
    name = "custom" if recipe else f"{'speech' if both else 'all'}_{width}bit"
    others = 8 if "decoder" in parts else width
    return Quantization(Recipe(others, others, width, width), name, mode, size, recipe)


#: what the configurations of transformers call the modules that they leave alone
_LEFT_ALONE = ("modules_to_not_convert", "llm_int8_skip_modules")


def requested_quantization(requested: Any) -> tuple[dict[str, Any], list[str]]:
    """What a `quantization_config` asks for, as arguments of `resolve_quantization`; and names in
    the paths of the modules that it leaves alone.

    Args:
        requested: `bits`, `group_size` and `mode`, a dict as config.json has it under
            `quantization`. Or what transformers has for other libraries, as an object or a dict of
            the same names: a `BitsAndBytesConfig` with `load_in_4bit` or `load_in_8bit`, or a
            `TorchAoConfig` of weights in 4 or 8 bits. MLX's own quantization has as many bits.

    Raises:
        InputError: it asks for nothing that MLX has.
    """
    items = requested if isinstance(requested, dict) else getattr(requested, "__dict__", {})
    named = {name.removeprefix("_"): value for name, value in items.items()}
    left_alone = [module for name in _LEFT_ALONE for module in named.get(name) or ()]
    if "bits" in named and "quant_method" not in named:
        settings = {name: named.pop(name) for name in ("bits", "group_size", "mode") & named.keys()}
        if named:
            raise InputError(f"{min(named)} is no setting of a quantization")
        return settings, []
    for bits in (4, 8):
        if named.get(f"load_in_{bits}bit"):
            return {"bits": bits}, left_alone
    # torchao has had names for its kinds, and has classes
    kind = named.get("quant_type")
    name = kind if isinstance(kind, str) else type(kind).__name__
    if match := re.fullmatch(r"int([48])_?weight_?only(config)?", name, re.IGNORECASE):
        options = named.get("quant_type_kwargs", {}) if isinstance(kind, str) else vars(kind)
        settings = {"bits": int(match[1]), "group_size": options.get("group_size")}
        return settings, left_alone
    raise InputError(
        f"quantization_config {requested!r} asks for no quantization that MLX has: give a dict "
        'such as {"bits": 4, "group_size": 64}'
    )


def quantize_as_requested(model: nn.Module, requested: Any) -> None:
    """Quantize a model's layers, of which each is computed when it is first used.

    Args:
        requested: see `requested_quantization`.

    Raises:
        InputError: it asks for nothing that MLX has, or the model is quantized already.
    """
    import mlx.nn as nn

    if any("scales" in module for module in model.modules()):
        raise InputError("quantization_config is for a checkpoint that is not quantized already")
    settings, left_alone = requested_quantization(requested)
    chosen = resolve_quantization(model, **settings)

    def as_requested(path: str, module: nn.Module) -> bool | dict[str, Any]:
        return not any(f".{name}." in f".{path}." for name in left_alone) and chosen(path, module)

    nn.quantize(model, class_predicate=as_requested)


def quantize_as_stored(model: nn.Module, weights: dict[str, mx.array]) -> None:
    """Give a model quantized layers where a checkpoint has them, so that its tensors fit.

    The tensors tell by themselves: `<module>.scales` lies beside the weights of a quantized module,
    and bits and group size are in their shapes. What config.json says about them, in the form of
    MLX, mlx-lm or mlx-audio, can only be the same.

    Raises:
        CheckpointError: tensors have shapes that no quantization gives.
    """
    import mlx.nn as nn

    def as_stored(path: str, module: nn.Module) -> bool | dict[str, Any]:
        stored = {f"{path}.weight", f"{path}.scales"} <= weights.keys()
        if not stored or not hasattr(module, "to_quantized"):
            return False
        return _stored(path, module.weight.shape[-1], weights)

    nn.quantize(model, class_predicate=as_stored)


def _stored(path: str, inputs: int, weights: dict[str, mx.array]) -> dict[str, Any]:
    import mlx.core as mx

    packed, scales = weights[f"{path}.weight"], weights[f"{path}.scales"]
    words, groups = (math.prod(array.shape[-1:]) for array in (packed, scales))
    group_size, uneven = divmod(inputs, max(groups, 1))
    bits, odd = divmod(words * 32, inputs)
    affine = scales.dtype != mx.uint8
    for mode, (group_sizes, possible) in MODES.items():
        if (mode == "affine") == affine and group_size in group_sizes and bits in possible:
            if uneven or odd or packed.dtype != mx.uint32:
                break
            return {"group_size": group_size, "bits": bits, "mode": mode}
    raise CheckpointError(
        f"{path}: weights of {packed.shape} and scales of {scales.shape} are no quantization of "
        f"{inputs} inputs that MLX has"
    )


def check_quant_method(config: dict[str, Any]) -> None:
    """Check that a checkpoint is not quantized in a way that only other programs can read.

    Raises:
        CheckpointError: it is.
    """
    stated = config.get("quantization_config")
    if "quantization" in config or not isinstance(stated, dict):
        return
    if "quant_method" in stated and stated["quant_method"] not in SCALED:
        raise CheckpointError(
            f"config.json: quantized with {stated['quant_method']!r}, which MLX cannot read; take "
            "the checkpoint that it was made from"
        )


def dequantize(model: nn.Module, dtype: mx.Dtype) -> None:
    """Put plain layers in the place of quantized ones; nothing is computed before it is used."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_map

    def plain(module: nn.Module) -> nn.Module:
        if not isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            return module
        settings = {name: getattr(module, name) for name in ("group_size", "bits", "mode")}
        parts = (module.weight, module.scales, module.get("biases"))
        weight = mx.dequantize(*parts, **settings)
        rows, inputs = weight.shape
        if isinstance(module, nn.QuantizedEmbedding):
            layer = nn.Embedding(rows, inputs)
        else:
            layer = nn.Linear(inputs, rows, bias="bias" in module)
            if "bias" in module:
                layer.bias = module.bias
        # the floating-point modes give bfloat16, whatever the model is in
        layer.weight = weight.astype(dtype)
        return layer

    model.update_modules(tree_map(plain, model.leaf_modules(), is_leaf=nn.Module.is_module))


def config_entries(
    settings: Iterable[tuple[str, dict[str, Any] | None]], default: dict[str, Any]
) -> dict[str, Any]:
    """What config.json says under `quantization`, as MLX and mlx-lm read it.

    Args:
        settings: each module's, None where it is not quantized.
        default: those at the top; only modules that differ from it are listed.
    """
    return {**default, **{path: s for path, s in settings if s and s != default}}
