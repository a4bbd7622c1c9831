"""A model of mlx-lm as one that generates here: its architecture, weights, tokenizer and caches,
and the strategies of `generation` over them, so that options mean the same for every model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

from ..checkpoint.folder import read_json, weight_files
from ..checkpoint.options import LoadingOptions
from ..errors import CheckpointError, InputError, UnsupportedOptionError
from ..fields import fitted
from ..generation.config import Count, GenerationConfig
from ..layers.cache import CACHE_OPTIONS, make_cache
from ..layers.token_ids import check_token_ids
from ..models.causal_lm import PREFILL_OPTIONS, PREFILL_STEP_SIZE

_KEEP = 4  #: first positions that a cache of `max_kv_size` keeps, as in mlx-lm
_UNKNOWN = 2**31 - 1  #: length of a cache that was interrupted while it was changed
_ENDLESS = 2**31 - 1  #: context of a model that names no limit, such as a recurrent one
#: where an architecture's configuration may have the length of its context
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length")
#: in the names of architectures that do not write
_WRITES_NO_TEXT = ("Classification", "MaskedLM", "QuestionAnswering", "MultipleChoice")
#: what opens the answer in the harmony format of OpenAI, whose template refuses the rest of a reply
_HARMONY, _HARMONY_ANSWER = "<|channel|>", "<|channel|>final<|message|>"


def load_mlx_lm(folder: Path, name: str, dtype: mx.Dtype | str | None = None) -> tuple[Any, Any]:
    """What `mlx_lm.load` returns for a checkpoint's folder: the model and its tokenizer.

    Args:
        name: what to call it in a message.
        dtype: floating type to compute in, see `LoadingOptions`.

    Raises:
        CheckpointError: mlx-lm cannot load it.
        InputError: there is no such type.
    """
    chosen = LoadingOptions(dtype=dtype).chosen_dtype(None)
    for architecture in fitted("architectures", read_json(folder).get("architectures") or [], list):
        if any(end in str(architecture) for end in _WRITES_NO_TEXT):
            raise CheckpointError(f"{name}: a {architecture} writes no text")
    if not any(file.endswith(".safetensors") for file in weight_files(folder)):
        raise CheckpointError(f"{name}: mlx-lm reads safetensors only, and here are none")
    try:
        from mlx_lm.utils import load

        with _silent_transformers():
            # else it would be asked, on standard input, whether code of the checkpoint may run
            model, tokenizer = load(str(folder), {"trust_remote_code": False}, lazy=True)[:2]
        if chosen is not None:
            model.update(_cast(model, chosen))
        mx.eval(model.parameters())
    # of whichever of the libraries that read the files; where it lacks a package, mlx-lm would exit
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{name}: mlx-lm cannot load it: {reason}") from error
    return model, tokenizer


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Within it, transformers does not say that it has no model of a family, as only its tokenizer
    is wanted."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _cast(model: Any, dtype: mx.Dtype) -> Any:
    """Parameters in another floating type, but for those that the model wants to be left alone."""
    wanted = getattr(model, "cast_predicate", lambda path: True)

    def cast(path: str, array: mx.array) -> mx.array:
        floating = mx.issubdtype(array.dtype, mx.floating)
        return array.astype(dtype) if floating and wanted(path) else array

    return tree_map_with_path(cast, model.parameters())


class MlxLmTokenizer:
    """A `TokenizerWrapper` of mlx-lm as a `TextTokenizer`.

    As with mlx-lm, special tokens stay in texts: by them a template tells what a model thought from
    what it answered.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        # bytes of rare characters: a run of them is given up where one fits no character
        self._open_tokens = {vocabulary.get(f"<0x{byte:02X}>") for byte in range(256)}

    @property
    def chat_template(self) -> Any:
        """None where there is none; mlx-lm has some of its own."""
        return self._tokenizer.has_chat_template or None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, ids: Any, *, skip_special_tokens: bool = False) -> str:
        """The text of ids, with all special tokens."""
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def is_open(self, token: int) -> bool:
        """Whether a token after this one may yet change the text, see `StreamingDetokenizer`."""
        return token in self._open_tokens

    def apply_chat_template(
        self,
        conversation: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        tokenize: bool = False,
    ) -> str:
        """The prompt for a conversation, as text.

        Raises:
            InputError: the template refuses it, or fails.
        """
        try:
            return self._tokenizer.apply_chat_template(
                [_without_analysis(message) for message in conversation],
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except Exception as error:  # a template is a program, and may fail in any way
            raise InputError(f"the chat template refuses these messages: {error}") from error


def _without_analysis(message: dict[str, Any]) -> dict[str, Any]:
    """A reply in the harmony format without its other channels; any other message as it is."""
    text = message["content"]
    if message["role"] != "assistant" or _HARMONY not in text:
        return message
    _, found, answer = text.rpartition(_HARMONY_ANSWER)
    return {**message, "content": answer if found else ""}


class MlxLmCache:
    """The caches of all layers of an mlx-lm model, as one `LayerCache`.

    Args:
        layers: mlx-lm's.
        options: they were made with.
        quantize: called with them after each step.

    Attributes:
        length: positions that went in; `_UNKNOWN` where that was interrupted, which no trimming
            mends.
    """

    padded = False

    def __init__(
        self, layers: list[Any], options: dict[str, Any], quantize: Callable[[list[Any]], None]
    ):
        self.layers, self.options, self._quantize = layers, options, quantize
        self.length = 0
        self.max_size: int | None = options.get("max_kv_size")

    @property
    def state(self) -> list[mx.array]:
        """All arrays."""
        leaves = (leaf for _, leaf in tree_flatten([layer.state for layer in self.layers]))
        return [leaf for leaf in leaves if isinstance(leaf, mx.array)]

    def feed(self, model: Callable[..., mx.array], tokens: mx.array) -> mx.array:
        """Logits of the tokens after each of some (1, n), which go in."""
        length, self.length = self.length, _UNKNOWN
        logits = model(tokens, cache=self.layers)
        self._quantize(self.layers)
        self.length = length + tokens.shape[1]
        return logits

    def is_trimmable(self) -> bool:
        """Whether any number of positions can be forgotten again: not what is recurrent, nor where
        a window has moved on."""
        return self.length != _UNKNOWN and all(
            layer.is_trimmable() and not getattr(layer, "start_position", 0)
            for layer in self.layers
        )

    def trim(self, count: int) -> int:
        """Forget the last `count` positions; returns how many could be forgotten."""
        if not count or not self.is_trimmable():
            return 0
        length, self.length = self.length, _UNKNOWN
        if not all(layer.trim(count) == count for layer in self.layers):
            return 0
        self.length = length - count
        return count

    def reorder(self, rows: mx.array) -> NoReturn:
        """There is one row only."""
        raise UnsupportedOptionError("a model of mlx-lm gives one answer at a time")

    def __copy__(self) -> NoReturn:
        """A copy is for rows that are reordered, and would share what is in the layers."""
        self.reorder(mx.array([0]))


@dataclass(frozen=True)
class MlxLmConfig:
    """What generation asks of a configuration.

    max_position_embeddings: positions that the model was made for.
    """

    model_type: str
    vocab_size: int
    max_position_embeddings: int

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)


class MlxLmModel:
    """A model of mlx-lm as a `GenerativeModel`.

    Args:
        model, tokenizer: what `mlx_lm.load` returned.
        folder: of the checkpoint, where it is known: for what its config.json and its
            generation_config.json tell.
    """

    main_input_name: ClassVar[str] = "input_ids"
    cache_options: ClassVar[tuple[str, ...]] = CACHE_OPTIONS
    generation_inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", *PREFILL_OPTIONS)
    logits_temperature = 1.0

    def __init__(self, model: Any, tokenizer: Any, folder: Path | None = None):
        self._model, self.folder = model, folder
        settings = _settings(model, {} if folder is None else read_json(folder))
        self.config = MlxLmConfig(
            model_type=str(settings.get("model_type")),
            vocab_size=settings.get("vocab_size") or len(tokenizer),
            max_position_embeddings=_context_length(settings),
        )
        stored = (
            {} if folder is None else read_json(folder, "generation_config.json", required=False)
        )
        defaults = GenerationConfig.from_checkpoint(stored, {})
        self.generation_config = replace(defaults, eos_token_id=sorted(tokenizer.eos_token_ids))

    def parameters(self) -> dict[str, Any]:
        """The weights."""
        return self._model.parameters()

    @property
    def vocab_size(self) -> int:
        """Ids that a prompt may hold are below it."""
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""
        return self.config.max_position_embeddings

    def is_text_token(self, token: int) -> bool:
        """Whether it can be part of an answer."""
        return 0 <= token < self.vocab_size

    def get_output_embeddings(self) -> None:
        """Known to the architecture only."""

    def prepare_prompt(
        self, inputs: dict[str, Any], config: GenerationConfig
    ) -> tuple[mx.array, None]:
        """Take the ids of one prompt, (1, length), out of the arguments of `generate`."""
        inputs.pop("attention_mask", None)
        return check_token_ids(inputs.pop("input_ids"), self.vocab_size), None

    def make_cache(
        self, left_padding: Sequence[int] | None = None, **options: Any
    ) -> list[MlxLmCache]:
        """An empty cache; options as in `layers.cache.make_cache`.

        Raises:
            InputError: options that do not go together.
            UnsupportedOptionError: one that this model's caches cannot honour, see `cache_options`.
        """
        make_cache(1, left_padding, **options)
        from mlx_lm.generate import maybe_quantize_kv_cache
        from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

        layers = make_prompt_cache(self._model)
        if (size := options.get("max_kv_size")) is not None:
            if any(type(layer) is not KVCache for layer in layers):
                message = "{max_kv_size} is for models whose layers all keep every token, which "
                message += "those of a {kind} do not"
                raise UnsupportedOptionError.about(message, kind=self.config.model_type)
            layers = [RotatingKVCache(size, _KEEP) for _ in layers]
        bits, group_size = options.get("kv_bits"), options.get("kv_group_size", 64)
        start = options.get("quantized_kv_start", 0)
        if bits is not None:
            self._check_quantized_cache(bits, group_size)

        def quantize(layers: list[Any]) -> None:
            maybe_quantize_kv_cache(layers, start, group_size, bits)

        quantize(layers)
        return [MlxLmCache(layers, options, quantize)]

    def _check_quantized_cache(self, bits: int, group_size: int) -> None:
        """Build one step with a quantized cache, without computing it."""
        from mlx_lm.generate import maybe_quantize_kv_cache
        from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache

        layers = make_prompt_cache(self._model)
        try:
            maybe_quantize_kv_cache(layers, 0, group_size, bits)
            if not any(isinstance(layer, QuantizedKVCache) for layer in layers):
                raise ValueError("no layer has keys and values")
            self._model(mx.zeros((1, 1), mx.int32), cache=layers)
        except Exception as error:  # of an architecture that does not know such caches
            message = "{kv_bits} is not for this {kind} model: {reason}"
            raise UnsupportedOptionError.about(
                message, kind=self.config.model_type, reason=error
            ) from error

    def prefill(
        self,
        input_ids: mx.array,
        cache: Sequence[MlxLmCache],
        *,
        prefill_step_size: int = PREFILL_STEP_SIZE,
        prompt_progress_callback: Callable[[int, int], None] | None = None,
    ) -> mx.array:
        """Feed a prompt (1, length); the logits of the token after it, (1, 1, vocab_size).

        All but its last token go in by parts of `prefill_step_size`, of which nothing but the cache
        is computed: a head over a large vocabulary costs more than the rest.
        """
        prefill_step_size = fitted("prefill_step_size", prefill_step_size, Count)
        length = input_ids.shape[1]
        for start in range(0, length - 1, prefill_step_size):
            done = min(start + prefill_step_size, length - 1)
            self.step(input_ids[:, start:done], cache)
            mx.eval([layer.state for layer in cache])
            mx.clear_cache()
            if prompt_progress_callback is not None:
                prompt_progress_callback(done, length)
        logits = self.step(input_ids[:, -1:], cache)
        if prompt_progress_callback is not None:
            mx.eval(logits)
            prompt_progress_callback(length, length)
        return logits

    def step(self, tokens: mx.array, cache: Sequence[MlxLmCache]) -> mx.array:
        """Feed tokens (1, n); the logits after each of them, (1, n, vocab_size)."""
        (whole,) = cache
        return whole.feed(self._model, tokens)


def _settings(model: Any, stored: dict[str, Any]) -> dict[str, Any]:
    """The configuration of an mlx-lm model, that of its text over that of the rest.

    Args:
        stored: config.json, which tells more than what mlx-lm keeps of it.
    """
    found = {**vars(model.args), **stored} if hasattr(model, "args") else stored
    text = found.get("text_config") or {}
    return found | (text if isinstance(text, dict) else vars(text))


def _context_length(settings: dict[str, Any]) -> int:
    lengths = [value for name in _CONTEXT if isinstance(value := settings.get(name), int)]
    scaling = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    trained = scaling.get("original_max_position_embeddings")
    if trained and scaling.get("factor"):
        lengths.append(int(trained * scaling["factor"]))
    return max(lengths, default=_ENDLESS)
