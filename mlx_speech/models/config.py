"""What every model configuration shares: reading Hugging Face's `config.json` into a dataclass."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Self, get_type_hints

from ..checkpoint.folder import read_json
from ..checkpoint.hub import resolve_checkpoint
from ..errors import CheckpointError, InputError
from ..fields import Range, fit_fields

DERIVED: Any = None  #: default of a field that `__post_init__` works out from the others

# What is larger is no model, but a slip. An MLX array can have as many as 2**31 - 1 rows, and so
# twice a width times a factor, or times the layers, is still one.
Width = Annotated[int, Range(1, 2**18)]  #: of hidden states, and of what they become on the way
Factor = Annotated[int, Range(1, 2**10)]  #: of a width: heads, or how many times as wide
LayerCount = Annotated[int, Range(1, 2**12)]  #: also bounded by the tensors, see `check_layers`
VocabSize = Annotated[int, Range(1, 2**24)]
Frames = Annotated[int, Range(1, 2**20)]  #: of a window, a kernel, a table of positions
Positions = Annotated[int, Range(1, 2**31 - 1)]  #: that a model was made for
VocabIndex = Annotated[int, Range(0, 2**24 - 1)]  #: the id of a token that there has to be
Epsilon = Annotated[float, Range(1e-30, 1)]  #: of a norm
Scale = Annotated[float, Range(1e-6, 1e6)]  #: of scores, states or logits


@dataclass(kw_only=True)
class PretrainedConfig:
    """Base of the configurations.

    Fields are those of the transformers documentation; their annotations say what values make
    sense. What a file holds beyond them is kept in `extra` and written back by `to_dict`, so that
    nothing is lost when a checkpoint is saved.

    Attributes:
        other_types: further values of `model_type` that are the same thing.
        aliases: other names under which the same value is documented, e.g. `audio_token_id`.

    Raises:
        InputError: a value has the wrong type, makes no sense, or contradicts another one.
    """

    model_type: ClassVar[str]
    other_types: ClassVar[tuple[str, ...]] = ()
    aliases: ClassVar[dict[str, str]] = {}

    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        fit_fields(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], place: str = "config.json: ") -> Self:
        """Build a configuration from the parsed JSON of a checkpoint.

        Args:
            place: what is before the names of fields in a message.

        Raises:
            CheckpointError: a value has the wrong type, makes no sense, or contradicts another one.
        """
        names = {f.name for f in fields(cls)} - {"extra"}
        extra = {cls.aliases.get(key, key): value for key, value in data.items()}
        known = {name: extra.pop(name) for name in names & extra.keys()}
        model_type = extra.pop("model_type", cls.model_type)
        if model_type not in (cls.model_type, *cls.other_types):
            raise CheckpointError(
                f"{place}model_type {model_type!r} where {cls.model_type!r} is supported"
            )
        try:
            return cls(**known, extra=extra)
        except InputError as error:  # its names are the file's, not options that a user gave
            raise CheckpointError(f"{place}{error}") from None

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

    def check_layers(self, num_tensors: int, place: str = "config.json: ") -> None:
        """Refuse more layers than the tensors of a checkpoint could be of, before they are built.

        Raises:
            CheckpointError: there are more.
        """
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            if isinstance(value, PretrainedConfig):
                value.check_layers(num_tensors, f"{place}{name}.")
            elif hint == LayerCount and value > num_tensors:
                raise CheckpointError(
                    f"{place}{name} is {value}, but the weights are {num_tensors} tensors in all"
                )

    def __getattr__(self, name: str):
        # only reached when there is no such attribute
        if name not in type(self).aliases:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}")
        return getattr(self, type(self).aliases[name])

    def _check_choice(self, name: str, choices: Collection[str]) -> None:
        """Raises `InputError` where a field has none of these values."""
        if getattr(self, name) not in choices:
            raise InputError.must_be(name, getattr(self, name), f"one of {', '.join(choices)}")

    def _check_multiple(self, name: str, divisor: str) -> None:
        """Raises `InputError` where a field is not a multiple of another one."""
        value, unit = getattr(self, name), getattr(self, divisor)
        if value % unit:
            raise InputError.must_be(name, value, f"a multiple of {divisor}, {unit}")
