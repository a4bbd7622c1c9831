"""What every model configuration shares: reading Hugging Face's `config.json` into a dataclass."""

import copy
import json
import os
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_type_hints

import mlx.core as mx

from ..checkpoint.folder import read_json
from ..checkpoint.hub import HubOptions, resolve_checkpoint, take_hub_options
from ..checkpoint.saving import Saveable, write_text
from ..errors import CheckpointError, InputError, UnsupportedOptionError
from ..fields import Range, fit_fields, fitted
from ..layers.sharding import ShardingGroup, check_even

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
Probability = Annotated[float, Range(0, 0.999)]  #: of dropping an element in training
Deviation = Annotated[float, Range(0, 1)]  #: of weights that are drawn
Scale = Annotated[float, Range(1e-6, 1e6)]  #: of scores, states or logits

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
#: families of the decoders whose layers can be shared out, or that have one
_SHARED = "Granite, Granite Speech, Llama and Jais 2"
#: of all kinds of configurations
_COMMON_ALIASES = {"torch_dtype": "dtype", "_name_or_path": "name_or_path"}


def read_config(path_or_repo: Any, hub: HubOptions) -> dict[str, Any]:
    """The config.json of a folder or a repository; or a file of any name."""
    if isinstance(path_or_repo, str | os.PathLike) and os.path.isfile(path_or_repo):
        return read_json(Path(path_or_repo).parent, os.path.basename(path_or_repo))
    return read_json(resolve_checkpoint(path_or_repo, weights=False, **hub))


class _KeepsUnknown(type):
    """Keywords that are no fields are attributes of a configuration all the same."""

    def __call__(cls: Any, *unnamed: Any, **values: Any) -> Any:
        if unnamed:
            raise InputError(f"a {cls.__name__} takes values by their names only")
        values = {cls.field_name(name): value for name, value in values.items()}
        names = {f.name for f in fields(cls) if f.init}
        unknown = {name: values.pop(name) for name in values.keys() - names}
        config = super().__call__(**values)
        for name, value in unknown.items():
            setter = getattr(getattr(cls, name, None), "fset", None)
            if setter is not None:
                setter(config, value)
            else:  # not an attribute: what a file says could hide a method
                config.extra[name] = value
        return config


@dataclass(kw_only=True)
class PretrainedConfig(Saveable, metaclass=_KeepsUnknown):
    """Base of the configurations.

    Fields are those of the transformers documentation; their annotations say what values make
    sense. What a file or a caller gives beyond them is kept in `extra`, is an attribute as well,
    and is written back by `to_dict`, so that nothing is lost when a checkpoint is saved.

    Args:
        output_hidden_states, output_attentions, return_dict: what the models return where a call
            does not say it.
        dtype: floating type of the checkpoint's weights, by its name.
        architectures: names of the model classes that the checkpoint is of.
        chunk_size_feed_forward: kept, and changes nothing: it would only save memory in training.
        id2label: names of a classifier's labels by their indices; by default LABEL_0 and LABEL_1.
        label2id: the inverse, where it is given or follows from `num_labels`.
        num_labels: how many labels there are, in place of their names.
        problem_type: what the labels are; unset, they tell by themselves.
        name_or_path: what the configuration was read from.

    Attributes:
        other_types: further values of `model_type` that are the same thing.
        aliases: other names under which the same value is documented, e.g. `audio_token_id`.
        part_of_config: where a configuration of a whole model has this one as a part.

    Raises:
        InputError: a value has the wrong type, makes no sense, or contradicts another one.
    """

    model_type: ClassVar[str]
    other_types: ClassVar[tuple[str, ...]] = ()
    aliases: ClassVar[dict[str, str]] = {}
    part_of_config: ClassVar[str | None] = None

    output_hidden_states: bool = False
    output_attentions: bool = False
    return_dict: bool = True
    dtype: str | None = None
    architectures: list[str] | None = None
    is_encoder_decoder: bool = False
    chunk_size_feed_forward: int = 0
    id2label: dict | None = None
    label2id: dict | None = None
    problem_type: str | None = None
    transformers_version: str | None = None
    name_or_path: str = field(default="", compare=False)
    extra: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        for option in fields(PretrainedConfig):
            if option.default is not MISSING and getattr(self, option.name) is None:
                setattr(self, option.name, option.default)
        if self.dtype is not None:  # MLX's or PyTorch's, as well as its name
            self.dtype = str(self.dtype).rpartition(".")[2]
        fit_fields(self)
        if self.id2label is None:
            self.num_labels = 2
        else:
            self.id2label = {_index(key): label for key, label in self.id2label.items()}
        if self.problem_type is not None:
            self._check_choice("problem_type", PROBLEM_TYPES)

    @property
    def num_labels(self) -> int:
        """How many labels a classifier tells apart; setting another number renames them."""
        return len(self.id2label or ())

    @num_labels.setter
    def num_labels(self, number: int) -> None:
        number = fitted("num_labels", number, VocabSize)
        if self.id2label is None or number != self.num_labels:
            self.id2label = {index: f"LABEL_{index}" for index in range(number)}
            self.label2id = {label: index for index, label in self.id2label.items()}

    @classmethod
    def field_name(cls, name: str) -> str:
        """The field that is meant by a name, which may be one of the `aliases`."""
        return cls.aliases.get(name) or _COMMON_ALIASES.get(name, name)

    @classmethod
    def from_dict(cls, data: dict[str, Any], place: str = "config.json: ") -> Self:
        """Build a configuration from the parsed JSON of a checkpoint.

        Args:
            place: what is before the names of fields in a message.

        Raises:
            CheckpointError: a value has the wrong type, makes no sense, or contradicts another one.
        """
        values = dict(data)
        model_type = values.pop("model_type", cls.model_type)
        if model_type not in (cls.model_type, *cls.other_types):
            raise CheckpointError(
                f"{place}model_type {model_type!r} where {cls.model_type!r} is supported"
            )
        try:
            return cls(**values)
        except InputError as error:  # its names are the file's, not options that a user gave
            raise CheckpointError(f"{place}{error}") from None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *, return_unused_kwargs: bool = False, **options: Any
    ) -> Any:
        """Read the configuration of a local folder or a Hugging Face repository, or a file.

        Args:
            return_unused_kwargs: return the options that there are no fields for, too.
            options: those of `HubOptions`, and fields that are to differ from the checkpoint's.

        Raises:
            InputError: an option is neither, and not to be returned.
        """
        data = read_config(pretrained_model_name_or_path, take_hub_options(options))
        if cls.part_of_config in data and data.get("model_type") != cls.model_type:
            data = fitted(str(cls.part_of_config), data[cls.part_of_config], dict)
        names = {*(f.name for f in fields(cls)), *data, "num_labels"} - {"extra"}
        changes = {name: options[name] for name in options if cls.field_name(name) in names}
        unused = {name: value for name, value in options.items() if name not in changes}
        if unused and not return_unused_kwargs:
            raise InputError(f"a {cls.__name__} has no {', '.join(sorted(unused))}")
        config = cls.from_dict({**data, **changes})
        config.name_or_path = str(pretrained_model_name_or_path)
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> Self:
        """Read a configuration from a file of any name."""
        path = Path(json_file)
        return cls.from_dict(read_json(path.parent, path.name), f"{path.name}: ")

    def to_dict(self) -> dict[str, Any]:
        """All values, as they may stand in a checkpoint's `config.json`."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        nested = {k: v.to_dict() for k, v in values.items() if isinstance(v, PretrainedConfig)}
        values = copy.deepcopy({**self.extra, **values, **nested})
        name = values.pop("name_or_path")
        return {**values, "_name_or_path": name, "model_type": self.model_type}

    def to_diff_dict(self) -> dict[str, Any]:
        """`to_dict` without the values that every kind of configuration has by default."""
        common = PretrainedConfig()
        own = type(self).__dataclass_fields__
        usual = {
            f.name: getattr(common, f.name)
            for f in fields(common)
            if own[f.name].default == f.default
        }
        nested = {k: v for k, v in vars(self).items() if isinstance(v, PretrainedConfig)}
        return {
            name: nested[name].to_diff_dict() if name in nested else value
            for name, value in self.to_dict().items()
            if name != "_name_or_path" and value != usual.get(name, MISSING)
        }

    def to_json_string(self, use_diff: bool = True) -> str:
        """`to_diff_dict`, or else `to_dict`, as JSON."""
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True) -> None:
        """Write `to_json_string` to a file.

        Raises:
            CheckpointError: it cannot be written.
        """
        write_text(json_file_path, self.to_json_string(use_diff))

    def update(self, config_dict: dict[str, Any]) -> None:
        """Set attributes; they are not checked."""
        for name, value in config_dict.items():
            setattr(self, name, value)

    def get_text_config(
        self, decoder: bool | None = None, encoder: bool | None = None
    ) -> "PretrainedConfig":
        """The configuration of the text decoder, which is this one where there is no other; both
        arguments change nothing."""
        return getattr(self, "text_config", self)

    def shard_counts(self) -> dict[str, int]:
        """What ranks that share the layers of the decoder share out: as in "KV heads" -> how many.

        Raises:
            UnsupportedOptionError: there is no such decoder.
        """
        decoder = self.get_text_config()
        if decoder is self:
            raise UnsupportedOptionError(
                f"a {self.model_type} model has no decoder whose layers several processes could "
                f"share: tensor parallelism is for models of {_SHARED}"
            )
        return decoder.shard_counts()

    def check_sharding(self, size: int) -> None:
        """Check that so many ranks can share the layers of the decoder.

        Raises:
            UnsupportedOptionError: they cannot; says how many can, or which models.
        """
        check_even(self.shard_counts(), size, self.get_text_config().model_type)

    def sharding(self, group: mx.distributed.Group) -> ShardingGroup | None:
        """How the ranks of a group share the layers; None where there is but one.

        Raises:
            UnsupportedOptionError: see `check_sharding`.
        """
        counts, whose = self.shard_counts(), self.get_text_config().model_type
        return None if group.size() == 1 else ShardingGroup(group, counts, whose)

    def _write_files(self, folder: Path) -> None:
        self.to_json_file(folder / "config.json")

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

    def __getattr__(self, name: str) -> Any:
        # only reached when there is no such attribute
        own, extra = self.field_name(name), vars(self).get("extra", {})
        if own != name and own in vars(self):
            return getattr(self, own)
        if name not in extra:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}")
        return extra[name]

    def __setattr__(self, name: str, value: Any) -> None:
        name = self.field_name(name)
        if name in self.__dataclass_fields__ or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            self.extra[name] = value

    def _check_choice(self, name: str, choices: Collection[str]) -> None:
        """Raises `InputError` where a field has none of these values."""
        if getattr(self, name) not in choices:
            raise InputError.must_be(name, getattr(self, name), f"one of {', '.join(choices)}")

    def _check_multiple(self, name: str, divisor: str) -> None:
        """Raises `InputError` where a field is not a multiple of another one."""
        value, unit = getattr(self, name), getattr(self, divisor)
        if value % unit:
            raise InputError.must_be(name, value, f"a multiple of {divisor}, {unit}")


def initial_std(config: Any) -> float:
    """Standard deviation of new weights; of a part whose configuration says nothing, 0.02."""
    std: Any = getattr(config, "initializer_range", None)
    return std or getattr(config, "init_std", 0.02)


def _index(key: Any) -> int:
    """A key of `id2label`, which JSON has as text."""
    try:
        return int(key)
    except (TypeError, ValueError):
        raise InputError.must_be("id2label", {key: ...}, "a dict whose keys are integers") from None
