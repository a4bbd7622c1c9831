"""What every model configuration shares: reading Hugging Face's `config.json` into a dataclass."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

from ..checkpoint.folder import read_json
from ..checkpoint.hub import resolve_checkpoint
from ..errors import CheckpointError

DERIVED: Any = None  #: default of a field that `__post_init__` works out from the others


@dataclass(kw_only=True)
class PretrainedConfig:
    """Base of the configurations.

    Fields are those of the transformers documentation. What a file holds beyond them is kept in
    `extra` and written back by `to_dict`, so that nothing is lost when a checkpoint is saved.

    Attributes:
        other_types: further values of `model_type` that are the same thing.
        aliases: other names under which the same value is documented, e.g. `audio_token_id`.
    """

    model_type: ClassVar[str]
    other_types: ClassVar[tuple[str, ...]] = ()
    aliases: ClassVar[dict[str, str]] = {}

    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Build a configuration from the parsed JSON of a checkpoint.

        Raises:
            CheckpointError: a value has the wrong type or contradicts another one.
        """
        defaults = {f.name: f.default for f in fields(cls) if f.name != "extra"}
        extra = {cls.aliases.get(key, key): value for key, value in data.items()}
        known = {name: extra.pop(name) for name in list(extra) if name in defaults}
        model_type = extra.pop("model_type", cls.model_type)
        try:
            if model_type not in (cls.model_type, *cls.other_types):
                raise ValueError(f"model_type {model_type!r} where {cls.model_type!r} is supported")
            hints = get_type_hints(cls)
            for name, value in known.items():
                given = value is not None or defaults[name] is not None
                if given and not _fits(value, hints[name]):
                    raise TypeError(f"{name} is {value!r}")
            return cls(**known, extra=extra)
        except (TypeError, ValueError, KeyError, ArithmeticError) as error:
            raise CheckpointError(f"config.json: bad {cls.__name__}: {error}") from error

    @classmethod
    def from_pretrained(cls, path_or_repo, *, revision: str | None = None) -> Self:
        """Read the configuration of a local folder or a Hugging Face repository."""
        folder = resolve_checkpoint(path_or_repo, revision=revision, weights=False)
        return cls.from_dict(read_json(folder))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as it stands in a checkpoint's `config.json`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        extra = values.pop("extra")
        nested = {k: v.to_dict() for k, v in values.items() if isinstance(v, PretrainedConfig)}
        return {"model_type": self.model_type, **values, **nested, **extra}

    def __getattr__(self, name: str):
        # only reached when there is no such attribute
        if name not in type(self).aliases:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}")
        return getattr(self, type(self).aliases[name])

    def _check_choice(self, name: str, choices: Collection[str]) -> None:
        """Raises `ValueError` where a field has none of these values."""
        if getattr(self, name) not in choices:
            raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(choices)}")

    def _check_multiple(self, name: str, divisor: str) -> None:
        """Raises `ValueError` where a field is not a multiple of another one."""
        value, unit = getattr(self, name), getattr(self, divisor)
        if value % unit:
            raise ValueError(f"{name} {value} is not a multiple of {divisor} {unit}")


def _fits(value, hint) -> bool:
    """Whether a value from JSON is of an annotated type; what lists and objects hold aside."""
    if isinstance(hint, UnionType):
        return any(_fits(value, member) for member in get_args(hint))
    kind = get_origin(hint) or hint
    if issubclass(kind, PretrainedConfig):
        return isinstance(value, kind | dict)
    return isinstance(value, int | float if kind is float else kind)
