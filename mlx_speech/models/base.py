"""What every model class offers beside its own call: loading, sizes, generation."""

import warnings
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoint.folder import ADAPTER_CONFIG, SEPARATE_WEIGHTS, read_json
from ..checkpoint.hub import resolve_adapter, resolve_checkpoint, take_hub_options
from ..checkpoint.model_files import QUANTIZATION, write_model
from ..checkpoint.options import LoadingOptions, floating_dtype, is_device
from ..checkpoint.saving import Saveable
from ..checkpoint.shards import INDEX
from ..checkpoint.weights import HEADS, cast, load_weights
from ..errors import CheckpointError, InputError, UnsupportedOptionError
from ..fields import fitted
from ..generation import GenerationConfig, generate
from ..generation.api import prefill
from ..generation.checks import padding_mask
from ..generation.config import Count
from ..layers.lora_config import LoraConfig
from ..layers.token_ids import check_array, check_token_ids
from .config import PretrainedConfig, initial_std
from .sharding import Shardable


class PretrainedModel(Saveable, Shardable, nn.Module):
    """Base of the model classes.

    A subclass names its `config_class` and says in `sanitize` how a checkpoint's tensor names and
    layouts become its own. To be generated from it also has `make_cache`, `prefill`, whose
    arguments are its `generation_inputs`, and `step` (see `CausalLM`).

    Attributes:
        adapter_by_default: whether a LoRA adapter is on where nothing is said; a model that
            switches says it each time.
        main_input_name: of the argument that `generate` takes as `inputs`.
        cache_options: what `make_cache` takes beside the padding.
        generation_inputs: what `prepare_prompt` and `prefill` take beside the options of
            generation.
        base_model_prefix: how all names begin but those of the head; empty where there is no head,
            None where there is always the same.
        computed_tensors: how names of tensors end that checkpoints may hold and models compute.
        separate_files: safetensors files beside a checkpoint's shards that hold part of the model
            if they are there, and how the names of what is in them begin in the model.
        tied_head: how the head's names begin, which may be stored though it is tied to the
            embeddings; None if there is none.
        tied_embeddings: how the names of those begin.
        adapter_config: of the one adapter that was read and is over it; None if there is none, or
            another over the first.
        folder: where the checkpoint lies; in the Hub's cache it is named after the commit.
    """

    replaced_files = (
        *("model.safetensors", "model-?????-of-?????.safetensors", INDEX),
        *(ADAPTER_CONFIG, *SEPARATE_WEIGHTS),
    )
    config_class: ClassVar[type[PretrainedConfig]]
    adapter_by_default: ClassVar[bool] = True
    main_input_name: ClassVar[str] = "input_ids"
    cache_options: ClassVar[tuple[str, ...]] = ()
    generation_inputs: ClassVar[tuple[str, ...]] = ()
    base_model_prefix: ClassVar[str | None] = None
    computed_tensors: ClassVar[tuple[str, ...]] = ("rotary_emb.inv_freq", "position_ids")
    separate_files: ClassVar[dict[str, str]] = {}
    tied_head: ClassVar[str | None] = "lm_head."
    tied_embeddings: ClassVar[str] = "model.embed_tokens."

    config: Any
    adapter_config: LoraConfig | None = None
    folder: Path | None = None
    _generation_config: GenerationConfig | None = None

    def __init__(self, config: Any):
        super().__init__()
        if not isinstance(config, self.config_class):
            name, found = type(self).__name__, type(config).__name__
            what = f"a {name} is made from a {self.config_class.__name__}, not from a {found}"
            raise InputError(f"{what}; {name}.from_pretrained reads a checkpoint")
        self.config = config

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *, config: Any = None, **options: Any):
        """Load a model from a local folder or a Hugging Face repository.

        Args:
            pretrained_model_name_or_path: a folder in the Hugging Face layout, or a repository id
                `owner/name`.
            config: a configuration, or where one is, in place of the checkpoint's.
            options: of `HubOptions`, such as `revision`; of `LoadingOptions`, such as `dtype` and
                `adapter`, which may be a repository, too, in its default branch; and fields of the
                configuration that are to have other values, such as `num_labels`.
                `device_map` and `attn_implementation` may say what is so in any case.

        Raises:
            HubError: the repository cannot be had.
            CheckpointError: the folder is incomplete, malformed, or holds another kind of model.
            InputError: there is no such option, or its value makes no sense.
            UnsupportedOptionError: MLX cannot do what was asked for.
        """
        hub, loading = take_hub_options(options), LoadingOptions.take(options)
        if loading.adapter is not None:
            loading = replace(loading, adapter=resolve_adapter(loading.adapter, **hub))
        folder = resolve_checkpoint(pretrained_model_name_or_path, **hub)
        stored = read_json(folder)
        model_type = stored.get("model_type")
        for candidate in (cls, *cls.__subclasses__()):
            kind = candidate.config_class
            if model_type in (kind.model_type, *kind.other_types):
                data = _configured(kind, stored, config, options)
                model = load_weights(folder, data, candidate, loading)
                model.config.name_or_path = str(pretrained_model_name_or_path)
                return model
        raise CheckpointError(f"{folder}: holds a {model_type} model, not a {cls.__name__}")

    def _write_files(self, folder: Path, max_shard_size: int | str = "50GB") -> None:
        """See `Saveable`.

        Args:
            max_shard_size: most bytes of tensors in a file, as a number or as in "5GB".
        """
        if self.sharding_group is not None:
            raise UnsupportedOptionError(
                "this process has a part of the model only; load it in one process to save it"
            )
        write_model(self, folder, max_shard_size)

    @staticmethod
    def rename(name: str) -> str:
        """A checkpoint's name of a tensor or module, as this model has it."""
        return name

    @staticmethod
    def checkpoint_names(name: str) -> tuple[str, ...]:
        """What checkpoints call a tensor or module, in each layout: the inverse of `rename`. The
        last is transformers' own, in memory."""
        return (name,)

    @classmethod
    def sanitize(cls, weights: dict[str, mx.array], config) -> dict[str, mx.array]:
        """A checkpoint's tensors under this model's names and layouts, without those that are
        computed; pure and idempotent.

        A head that is said to be tied to the embeddings is one with them, also where only the head
        is stored. As in transformers, it stays where its values are others.
        """
        own = cls._prefixed({cls.rename(name): value for name, value in weights.items()})
        stored = {k: v for k, v in own.items() if not k.endswith(cls.computed_tensors)}
        if not getattr(config, "tie_word_embeddings", False) or cls.tied_head is None:
            return stored
        head, table = cls.tied_head, cls.tied_embeddings
        tied = {k: table + k.removeprefix(head) for k in stored if k.startswith(head)}
        if not all(mx.array_equal(stored[k], stored.get(t, stored[k])) for k, t in tied.items()):
            return stored
        return {tied.get(name, name): value for name, value in stored.items()}

    @classmethod
    def _prefixed(cls, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """The tensors of a model with any head, or none, under the names of one with this."""
        prefix = cls.base_model_prefix
        if prefix == "":
            kept = {k: v for k, v in weights.items() if not k.startswith(HEADS)}
            return {k.removeprefix("model."): v for k, v in kept.items()}
        if prefix is None or any(name.startswith(prefix) for name in weights):
            return weights
        return {k if k.startswith(HEADS) else prefix + k: v for k, v in weights.items()}

    @classmethod
    def to_checkpoint(cls, weights: dict[str, mx.array], config) -> dict[str, mx.array]:
        """This model's tensors, all of some of its modules, under transformers' names and in its
        layouts: the inverse of `sanitize`."""
        return weights

    @classmethod
    def infer_config_from_weights(cls, config, weights: dict[str, mx.array]) -> None:
        """Settle from the sanitized tensors what the configuration left open, or has wrong."""
        head, tied = cls.tied_head, getattr(config, "tie_word_embeddings", False)
        if tied and head is not None and any(name.startswith(head) for name in weights):
            config.tie_word_embeddings = False
            warnings.warn(
                f"config.json says tie_word_embeddings, but {head}weight and "
                f"{cls.tied_embeddings}weight differ; both are used, as in transformers",
                stacklevel=2,
            )

    def add_stored_layers(self, weights: dict[str, mx.array]) -> None:
        """Make the layers that only some checkpoints have, where the sanitized tensors are there;
        a model that is made from a configuration has none of them."""

    @property
    def dtype(self) -> mx.Dtype:
        """The floating type that the model computes in."""
        types = (leaf.dtype for _, leaf in tree_flatten(self.parameters()))
        return next(dtype for dtype in types if mx.issubdtype(dtype, mx.floating))

    @property
    def device(self) -> mx.Device:
        """Where MLX computes; memory is one for all devices."""
        return mx.default_device()

    def to(self, *places: Any, dtype: Any = None, device: Any = None) -> Self:
        """Cast the model to a floating type; a device changes nothing.

        Args:
            places: a type, by itself or its name, and a device, in any order.

        Raises:
            InputError: one is neither.
        """
        for value in (*places, dtype, device):
            chosen = floating_dtype(value)
            if chosen is not None:
                cast(self, chosen)
            elif value is not None and not is_device(value):
                raise InputError(f"to takes a floating type or a device, but not {value!r}")
        return self

    @property
    def name_or_path(self) -> str:
        """Where its configuration was read from."""
        return self.config.name_or_path

    def can_generate(self) -> bool:
        """Whether it has a head that `generate` works with."""
        return bool(self.generation_inputs)

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many numbers are in the tensors; `only_trainable` leaves out what is frozen."""
        tensors = self.trainable_parameters() if only_trainable else self.parameters()
        return sum(array.size for _, array in tree_flatten(tensors))

    def get_input_embeddings(self) -> nn.Embedding:
        """The embeddings of tokens."""
        return self._module(self.tied_embeddings)

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Have other embeddings of tokens."""
        path, _, name = f".{self.tied_embeddings}".removesuffix(".").rpartition(".")
        setattr(self._module(path[1:]) if path else self, name, value)

    def get_output_embeddings(self) -> nn.Linear | nn.Embedding | None:
        """The head that gives the probabilities of tokens, which may be the embeddings; None where
        there is none."""
        if self.tied_head is None:
            return None
        return self._module(
            self.tied_embeddings if self.config.tie_word_embeddings else self.tied_head
        )

    def _module(self, prefix: str) -> Any:
        return attrgetter(prefix.removesuffix("."))(self)

    @property
    def vocab_size(self) -> int:
        """Ids that a prompt may hold are below it."""
        return self.config.vocab_size

    def is_text_token(self, token: int) -> bool:
        """Whether it can be part of an answer."""
        return 0 <= token < self.vocab_size

    @property
    def logits_temperature(self) -> float:
        """What logits are still to be divided by for the probabilities that the model was trained
        to give."""
        return 1.0

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
        *,
        padding_idx: int | None = None,
    ) -> nn.Embedding:
        """Make room for tokens that were added to the tokenizer, or less.

        Rows are kept, new ones come at the end. Updates the configuration's `vocab_size`, and
        `pad_token_id` if that is given.

        Args:
            new_num_tokens: rows to have, as in `len(tokenizer)`; by default as many as there are.
            pad_to_multiple_of: have more of them, up to the next multiple of this.
            mean_resizing: new rows are the mean of the old, which changes the probabilities of the
                old tokens least (Hewitt, "Initializing New Word Embeddings for Pretrained Language
                Models", 2021); else they are drawn as those of a new model are.
            padding_idx: id of the padding token; its embedding becomes zero.

        Returns:
            The embeddings, with weights (rows, hidden_size).

        Raises:
            InputError: there are to be no rows, or none for `padding_idx`.
            UnsupportedOptionError: the model is quantized, or has an adapter there.
        """
        config = getattr(self.config, "text_config", self.config)
        if new_num_tokens is None:
            new_num_tokens = config.vocab_size
        if pad_to_multiple_of is not None:
            new_num_tokens += -new_num_tokens % fitted(
                "pad_to_multiple_of", pad_to_multiple_of, Count
            )
        if new_num_tokens < 1:
            raise InputError(f"a model cannot have embeddings of {new_num_tokens} tokens")
        if padding_idx is not None and not 0 <= padding_idx < new_num_tokens:
            raise InputError(f"padding_idx {padding_idx} is not one of {new_num_tokens} tokens")
        named = {name.rpartition(".")[2]: module for name, module in self.named_modules()}
        tables = [named[name] for name in ("embed_tokens", "lm_head") if name in named]
        mean_resizing = fitted("mean_resizing", mean_resizing, bool)
        for table in tables:
            if not isinstance(table, nn.Embedding | nn.Linear):
                raise UnsupportedOptionError(
                    f"a {type(table).__name__} cannot be resized: do it before the model is "
                    "quantized or adapted"
                )
        for table in tables:
            rows, added = table.weight, max(new_num_tokens - len(table.weight), 0)
            if mean_resizing:
                mean = rows.astype(mx.float32).mean(axis=0, keepdims=True)
                new = mx.repeat(mean, added, axis=0)
            else:
                new = mx.random.normal((added, rows.shape[1]), scale=initial_std(config))
            table.weight = mx.concatenate([rows[:new_num_tokens], new.astype(rows.dtype)])
        config.vocab_size = new_num_tokens
        if padding_idx is not None:
            tables[0].weight[padding_idx] = 0
            config.pad_token_id = padding_idx
        return tables[0]

    def prepare_prompt(
        self, inputs: dict[str, Any], config: GenerationConfig
    ) -> tuple[mx.array, mx.array | None]:
        """Take what is to be continued out of the arguments of `generate`.

        Args:
            inputs: the arguments, without the options; what is left is for `prefill`.
            config: the options.

        Returns:
            Token ids (rows, length) and their attention mask, if there is one.

        Raises:
            InputError: there is no prompt, or an option is for other models.
        """
        for option in ("decoder_start_token_id", "forced_bos_token_id"):
            if getattr(config, option) is not None:
                raise InputError(f"{option} is for models with an encoder and a decoder")
        ids, embeds = inputs.pop("input_ids", None), inputs.get("inputs_embeds")
        mask = inputs.pop("attention_mask", None)
        if embeds is not None:
            size = getattr(self.config, "text_config", self.config).hidden_size
            check_array(embeds, "inputs_embeds", mx.floating, ("batch", "length", size))
            if ids is None:
                return mx.zeros((len(embeds), 0), mx.int32), mask
        elif ids is None:
            if config.bos_token_id is None:
                raise InputError("generate needs input_ids")
            ids = mx.array([[config.bos_token_id]])
        ids = check_token_ids(ids, self.vocab_size)
        if embeds is not None and embeds.shape[:2] != ids.shape:
            raise InputError(f"inputs_embeds are {embeds.shape}, but input_ids {ids.shape}")
        return ids, padding_mask(ids, config) if mask is None and embeds is None else mask

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The same as calling the model."""
        return self(*args, **kwargs)

    @property
    def generation_config(self) -> GenerationConfig:
        """Defaults of `generate`, from the checkpoint's generation_config.json, or else from the
        configuration; options may be assigned."""
        if self._generation_config is None:
            self._generation_config = GenerationConfig.from_model_config(self.config)
        return self._generation_config

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        self._generation_config = config

    def logits_along(self, inputs: dict[str, Any], tokens: list[int]) -> mx.array:
        """What a model of speech says at each position of a text that is known, and behind it.

        Args:
            inputs: of `generate`, for one recording.
            tokens: ids of what it has written of this.

        Returns:
            (1, positions, vocab_size).
        """
        run = prefill(self, **inputs, max_new_tokens=len(tokens) + 1)
        logits = [run.logits[:, None]]
        if tokens:
            logits.append(run.step(mx.array([tokens], run.prompt.dtype)))
        return mx.concatenate(logits, axis=1)

    def generate(
        self,
        inputs: mx.array | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Token ids that continue `inputs`, the `main_input_name`; see
        `mlx_speech.generation.generate`."""
        return generate(self, inputs, generation_config, **kwargs)


def _configured(
    kind: type[PretrainedConfig], stored: dict[str, Any], config: Any, changes: dict[str, Any]
) -> dict[str, Any]:
    """The config.json that a model is made from.

    Args:
        stored: the checkpoint's.
        config: a configuration in its place, or where one is; None if there is none.
        changes: fields that are to have other values.

    Raises:
        InputError: a change is of no field.
    """
    data = stored
    if config is not None:
        if not isinstance(config, PretrainedConfig):
            config = kind.from_pretrained(config)
        # what the tensors are is for their own config.json to say
        told = {name: stored[name] for name in ("architectures", *QUANTIZATION) if name in stored}
        data = config.to_dict() | told
    if not changes:
        return data
    known = kind.from_dict(data)
    for name, value in changes.items():
        if not (hasattr(known, name) or name in known.extra):
            raise InputError(
                f"{name} is no option of from_pretrained, and no field of {kind.__name__}"
            )
        if isinstance(getattr(known, name, None), PretrainedConfig) and isinstance(value, dict):
            changes = {**changes, name: {**data.get(name, {}), **value}}
    return data | changes
