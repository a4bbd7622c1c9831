"""Low-rank adapters (https://arxiv.org/abs/2106.09685) that can be switched per call.

The format is peft's: adapter_config.json beside adapter_model.safetensors. The base weights are
left alone; an adapted layer adds its low-rank term, or does not, as `use_adapter` says around it
and else as its model does by default.
"""

import re
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import compress
from typing import Annotated, Any, Protocol, Self

import mlx.core as mx
import mlx.nn as nn

from ..errors import CheckpointError, InputError
from ..fields import Range, fit_fields
from .patterns import Patterns

# per context, hence per thread: two callers of one model do not see each other's choice
_adapter_in_use: ContextVar[bool | None] = ContextVar("adapter_in_use", default=None)


@contextmanager
def use_adapter(enabled: bool):
    """Within it, adapted layers that are called apply their adapter, or do not."""
    token = _adapter_in_use.set(enabled)
    try:
        yield
    finally:
        _adapter_in_use.reset(token)


class AdaptableModel(Protocol):
    """What an adapter is put over: a model that knows its names in each layout of checkpoints."""

    adapter_by_default: bool

    def named_modules(self) -> list[tuple[str, nn.Module]]: ...

    def rename(self, name: str) -> str: ...

    def checkpoint_names(self, name: str) -> tuple[str, ...]: ...


class LoRALinear(nn.Module):
    """A linear layer with a switchable low-rank term: `scale * x A^T B^T`.

    Args:
        adapter: what the term is part of.
        name: of the layer in the adapter's file.
        on: whether the term is added where nothing is said.
    """

    def __init__(
        self,
        base: nn.Module,
        lora_a: mx.array,
        lora_b: mx.array,
        adapter: "LoraConfig",
        name: str,
        on: bool,
    ):
        super().__init__()
        self.base, self.lora_a, self.lora_b = base, lora_a, lora_b
        self.adapter, self.name = adapter, name
        self.scale, self.on_by_default = adapter.scale(name), on

    def __call__(self, x: mx.array) -> mx.array:
        out = self.base(x)
        chosen = _adapter_in_use.get()
        if self.on_by_default if chosen is None else chosen:
            out = out + self.scale * ((x @ self.lora_a.T) @ self.lora_b.T)
        return out


#: what a low-rank sum on layers of the model does not express
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
#: layers that "all-linear" leaves out: heads, and what is a convolution in the checkpoint
_NOT_LINEAR = ("lm_head", "score", "out_llm", "up_conv", "down_conv")


Rank = Annotated[int, Range(1, 2**16)]
Alpha = Annotated[float, Range(1e-6, 1e6)]


@dataclass
class LoraConfig:
    """What counts of peft's adapter_config.json.

    Modules are named by a regular expression for the whole name or by a list of the names' ends,
    and in the latter case may be limited to `layers_to_transform`. Keys of the patterns are regular
    expressions for the end of the name.

    Raises:
        InputError: a value has the wrong type, or makes no sense.
    """

    r: Rank = 8
    lora_alpha: Alpha = 8
    rank_pattern: dict[str, Rank] = field(default_factory=dict)
    alpha_pattern: dict[str, Alpha] = field(default_factory=dict)
    use_rslora: bool = False
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    stored: dict[str, Any] = field(default_factory=dict, repr=False)  #: all of the file

    def __post_init__(self):
        fit_fields(self)
        self._patterns = Patterns()
        for name in ("rank_pattern", "alpha_pattern"):
            for pattern in getattr(self, name):
                self._check_part(name, pattern, _end(pattern))
        for name in ("target_modules", "exclude_modules"):
            if isinstance(pattern := getattr(self, name), str):
                self._patterns.check(name, pattern)
        for pattern in _listed(self.layers_pattern):
            self._check_part("layers_pattern", pattern, _numbered(pattern))

    def _check_part(self, name: str, pattern: str, whole: str) -> None:
        """Of an expression that becomes part of another one: `)(` is none, whatever is around."""
        self._patterns.check(name, pattern)
        self._patterns.check(name, whole)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read adapter_config.json.

        Raises:
            CheckpointError: the adapter is of a kind that a low-rank sum does not express, or a
                value makes no sense.
        """
        kind = data.get("peft_type", "LORA")
        refused = [f"peft_type {kind!r}"] if kind != "LORA" else []
        refused += [option for option in _UNSUPPORTED if data.get(option)]
        if refused:
            raise CheckpointError(f"adapter_config.json: {refused[0]} is not supported")
        if data.get("bias", "none") != "none":
            raise CheckpointError("adapter_config.json: trained biases are not supported")
        names = cls.__dataclass_fields__.keys() - {"stored"}
        known = {k: v for k, v in data.items() if k in names and v is not None}
        try:
            return cls(**known, stored=data)
        except InputError as error:
            raise CheckpointError(f"adapter_config.json: {error}") from None

    def rank(self, module: str) -> int:
        """Rank of the adapter on the module of that name."""
        return self._match("rank_pattern", module, self.r)

    def scale(self, module: str) -> float:
        """Factor on the low-rank term: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA."""
        rank = self.rank(module)
        alpha = self._match("alpha_pattern", module, self.lora_alpha)
        return alpha / (rank**0.5 if self.use_rslora else rank)

    def adapts(self, module: str) -> bool:
        """Whether the linear layer of that name has an adapter; None of `target_modules` says
        nothing."""
        if self._names("exclude_modules", module) or not self._names("target_modules", module):
            return False
        layers = _listed(self.layers_to_transform)
        if isinstance(self.target_modules, str) or not layers:
            return True
        for pattern in _listed(self.layers_pattern or r"[^.]*"):
            if match := self._patterns.match("layers_pattern", _numbered(pattern), module):
                return int(match.groups()[-1]) in layers
        return False

    def _match(self, name: str, module: str, default: Any) -> Any:
        """The value of the first pattern that a module's name has."""
        for pattern, value in getattr(self, name).items():
            if self._patterns.match(name, _end(pattern), module):
                return value
        return default

    def _names(self, name: str, module: str) -> bool:
        """Whether a module is among those that a regular expression or a list of ends names."""
        modules = getattr(self, name)
        if not isinstance(modules, str):
            return any(f".{module}".endswith(f".{end}") for end in modules or ())
        if modules.lower() == "all-linear":
            return not module.endswith(_NOT_LINEAR)
        return self._patterns.match(name, modules, module) is not None


def _listed(value: Any) -> list:
    """A setting that is a list or the only element of one."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _end(pattern: str) -> str:
    """peft's rule: a pattern is a regular expression for the end of the module's name."""
    return rf"(?:.*\.)?(?:{pattern})"


def _numbered(pattern: str) -> str:
    """For the name of what is in a layer, whose number is the last group."""
    return rf"(?:.*?\.)?(?:{pattern})\.([0-9]+)\..*"


def apply_adapter(
    model: AdaptableModel, config: LoraConfig, weights: dict[str, mx.array], dtype: mx.Dtype
) -> None:
    """Wrap the layers that an adapter names.

    Args:
        weights: `<module>.lora_A.weight` (rank, in) and `<module>.lora_B.weight` (out, rank), under
            the names of the adapter's file, which are also what the patterns in `config` are about.
        dtype: what the model computes in.

    Raises:
        CheckpointError: tensors are missing or superfluous (lists the first ones), have another
            shape, or name no layer of the model.
    """
    modules = dict(model.named_modules())
    pairs: dict[str, dict[str, mx.array]] = {}
    for name, value in weights.items():
        match = re.fullmatch(r"(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        if match is None:
            raise CheckpointError(f"adapter_model.safetensors: unexpected tensor {name}")
        pairs.setdefault(match[1], {})[match[2]] = value.astype(dtype)
    if not pairs:
        raise CheckpointError("adapter_model.safetensors: no tensors in it")
    for name, pair in pairs.items():
        path = model.rename(name)
        base = modules.get(path)
        if not isinstance(base, nn.Linear | nn.QuantizedLinear):
            raise CheckpointError(f"adapter_model.safetensors: {name} is no layer of this model")
        if pair.keys() != {"A", "B"}:
            raise CheckpointError(f"adapter_model.safetensors: {name} lacks lora_A or lora_B")
        a, b, rank = pair["A"], pair["B"], config.rank(name)
        outputs, inputs = base.weight.shape
        if isinstance(base, nn.QuantizedLinear):
            inputs = inputs * 32 // base.bits
        if (a.shape, b.shape) != ((rank, inputs), (outputs, rank)):
            raise CheckpointError(
                f"adapter_model.safetensors: {name} has shapes {a.shape} and {b.shape}, expected "
                f"{(rank, inputs)} and {(outputs, rank)}"
            )
        parent, _, leaf = path.rpartition(".")
        adapted = LoRALinear(base, a, b, config, name, model.adapter_by_default)
        setattr(modules[parent], leaf, adapted)
    if config.target_modules is not None:
        check_targets(model, config, modules, {model.rename(name) for name in pairs})


def check_targets(
    model: AdaptableModel, config: LoraConfig, modules: dict[str, nn.Module], found: set[str]
) -> None:
    """Check that an adapter is on all modules that its configuration names, and on no others.

    Raises:
        CheckpointError: it is not; lists the first ones.
    """
    linear = [p for p, m in modules.items() if isinstance(m, nn.Linear | nn.QuantizedLinear)]
    layouts = zip(*(model.checkpoint_names(path) for path in linear), strict=True)
    # in which layout the configuration names them is not said, and its file may have another one
    candidates = [set(compress(linear, map(config.adapts, names))) for names in layouts]
    expected = max(candidates, key=lambda paths: (len(paths & found), -len(paths)))
    problems = {
        "modules of target_modules are missing": sorted(expected - found),
        "modules are not among target_modules": sorted(found - expected),
    }
    for what, names in problems.items():
        if names:
            first = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise CheckpointError(f"adapter_model.safetensors: {len(names)} {what}: {first}")
