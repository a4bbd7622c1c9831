"""peft's adapter_config.json: which modules of a model have a low-rank adapter, of which rank and
scale, and which were trained as a whole."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from ..errors import CheckpointError, InputError
from ..fields import Range, fit_fields
from .patterns import Patterns

#: what low-rank sums on layers of the model, and whole modules, do not express
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
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
    expressions for the end of the name. `modules_to_save`, which were trained as a whole, are named
    by how their names end, be it within a part of them.

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
    modules_to_save: list[str] | None = None
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
            CheckpointError: the adapter is of a kind that low-rank sums and whole modules do not
                express, or a value makes no sense.
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

    def saves(self, module: str) -> bool:
        """Whether the module of that name was trained as a whole."""
        return module.endswith(tuple(self.modules_to_save or ()))

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
