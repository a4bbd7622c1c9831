"""What every model configuration shares: reading Hugging Face's `config.json` into a dataclass."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from ..checkpoint.folder import read_json
from ..checkpoint.hub import resolve_checkpoint
from ..errors import CheckpointError


@dataclass(kw_only=True)
class PretrainedConfig:
    """Base of the configurations.

    Fields are those of the transformers documentation. What a file holds beyond them is kept in
    `extra` and written back by `to_dict`, so that nothing is lost when a checkpoint is saved.
    """

    model_type: ClassVar[str]
    # further types that are the same thing
    other_types: ClassVar[tuple[str, ...]] = ()
    # other names under which the same value is documented, e.g. `audio_token_id`
    aliases: ClassVar[dict[str, str]] = {}

    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_dict(cls, data: dict[str, Any]):
        """Build a configuration from the parsed JSON of a checkpoint.

        Raises:
            CheckpointError: a value has the wrong type or contradicts another one.
        """
        names = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        known: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for key, value in data.items():
            key = cls.aliases.get(key, key)
            (known if key in names else extra)[key] = value
        model_type = extra.pop("model_type", cls.model_type)
        try:
            if model_type not in (cls.model_type, *cls.other_types):
                raise ValueError(f"model_type {model_type!r} where {cls.model_type!r} is supported")
            hints = get_type_hints(cls)
            for name, value in known.items():
                if not _fits(value, hints[name]):
                    raise TypeError(f"{name} is {value!r}")
            return cls(**known, extra=extra)
        except (TypeError, ValueError, KeyError, ArithmeticError) as error:
            raise CheckpointError(f"config.json: bad {cls.__name__}: {error}") from error

    @classmethod
    def from_pretrained(cls, path_or_repo, *, revision: str | None = None):
        """Read the configuration of a local folder or a Hugging Face repository."""
        folder = resolve_checkpoint(path_or_repo, revision=revision, weights=False)
        return cls.from_dict(read_json(folder))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as it stands in a checkpoint's `config.json`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        extra = values.pop("extra")
        nested = {k: v.to_dict() for k, v in values.items() if isinstance(v, PretrainedConfig)}
        return {"model_type": self.model_type, **values, **nested, **extra}

    def __getattr__(self, name: str):
        # only reached when there is no such attribute
        target = type(self).aliases.get(name)
        if target is None:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}")
        return getattr(self, target)


def _fits(value, hint) -> bool:
    """Whether a value from JSON is of an annotated type; what lists and objects hold aside."""
    if isinstance(hint, UnionType):
        return any(_fits(value, member) for member in get_args(hint))
    return isinstance(value, int | float if hint is float else get_origin(hint) or hint)


def as_config(value, cls):
    """A nested configuration given as a dict, as an instance, or left out."""
    if value is None:
        return cls()
    return cls.from_dict(value) if isinstance(value, dict) else value
