"""What replies in a conversation: a model of this package, or any that mlx-lm loads."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import mlx.core as mx
from mlx.utils import tree_flatten

from ..checkpoint.folder import read_json
from ..checkpoint.hub import resolve_checkpoint
from ..checkpoint.quantization import check_quant_method
from ..errors import CheckpointError, InputError, UnsupportedOptionError
from ..files import replacing
from ..generation.checks import check_generates
from ..generation.prompt_cache import fingerprint, load_prompt_cache, save_prompt_cache
from ..generation.protocols import GenerativeModel, TextTokenizer
from ..generation.text import text_tokenizer
from ..loading import ARCHITECTURES, load
from ..models.base import PretrainedModel
from .mlx_lm_model import MlxLmCache, MlxLmModel, MlxLmTokenizer, load_mlx_lm

_FORMAT = "mlx_speech conversation of an mlx-lm model 1"
#: speech models whose decoder is a whole language model
_CHATTING_SPEECH = ("granite_speech",)
#: files of tokenizers that mlx-lm reads beside ours
_TOKENIZER_FILES = ("*.tiktoken", "*.txt", "*.jsonl")


class ChatModel(Protocol):
    """What replies in a conversation.

    model, tokenizer: what replies are generated with.
    """

    model: GenerativeModel
    tokenizer: TextTokenizer

    def check(self, options: dict[str, Any]) -> None:
        """Raises `UnsupportedOptionError` for an option of replies that it cannot honour."""

    def save(
        self,
        path: str | os.PathLike,
        cache: Sequence[Any],
        metadata: dict[str, str],
        *,
        overwrite: bool,
    ) -> None:
        """Write a cache of `model.make_cache` to a file, whole or not at all.

        Raises:
            InputError: the file cannot be written, or there is one that may not be replaced.
        """

    def load(self, path: str | os.PathLike) -> tuple[Sequence[Any], dict[str, str]]:
        """Read what `save` wrote: the cache and the metadata.

        Raises:
            CheckpointError: the file is none of `save`'s, or of another model.
            InputError: there is no such file.
        """


class OwnChatModel:
    """A model of this package, as `ChatModel` says.

    Raises:
        InputError: the checkpoint has no chat template.
        UnsupportedOptionError: the model generates nothing.
    """

    def __init__(self, model: GenerativeModel, processor: Any):
        self.model, self.tokenizer = model, chat_tokenizer(model, processor)

    def check(self, options: dict[str, Any]) -> None:
        """All options hold."""

    def save(
        self,
        path: str | os.PathLike,
        cache: Sequence[Any],
        metadata: dict[str, str],
        *,
        overwrite: bool,
    ) -> None:
        """See `save_prompt_cache`."""
        save_prompt_cache(path, cache, self.model, metadata=metadata, overwrite=overwrite)

    def load(self, path: str | os.PathLike) -> tuple[Sequence[Any], dict[str, str]]:
        """See `load_prompt_cache`."""
        return load_prompt_cache(path, self.model)


class MlxLmChatModel:
    """A model of mlx-lm, as `ChatModel` says.

    Args:
        model, tokenizer: what `mlx_lm.load` returned.
        folder: of the checkpoint, where it is known.

    Raises:
        InputError: the checkpoint has no chat template.
    """

    def __init__(self, model: Any, tokenizer: Any, folder: Path | None = None):
        self.model: Any = MlxLmModel(model, tokenizer, folder)
        self.tokenizer: TextTokenizer = MlxLmTokenizer(tokenizer)
        check_template(self.tokenizer)

    def check(self, options: dict[str, Any]) -> None:
        """There is nothing that checks drafts."""
        if options.get("draft_model") is not None:
            message = "{draft_model} is for models of this package; mlx-lm runs this one"
            raise UnsupportedOptionError.about(message, option="draft_model")

    def save(
        self,
        path: str | os.PathLike,
        cache: Sequence[MlxLmCache],
        metadata: dict[str, str],
        *,
        overwrite: bool,
    ) -> None:
        """A prompt cache of mlx-lm, with what tells whether it is whole and of this model."""
        from mlx_lm.models.cache import save_prompt_cache

        (whole,) = cache
        told = {
            "format": _FORMAT,
            "model": fingerprint(self.model),
            "options": json.dumps(whole.options),
            "length": str(whole.length),
            **metadata,
        }
        told["digest"] = _digest(whole.layers, told)
        try:
            with replacing(Path(path), overwrite=overwrite) as new, open(new, "wb") as opened:
                file: Any = opened  # to a name, an ending would be added
                save_prompt_cache(file, whole.layers, told)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error

    def load(self, path: str | os.PathLike) -> tuple[list[MlxLmCache], dict[str, str]]:
        """As `save` wrote it; nobody else's files are read."""
        from mlx_lm.models.cache import load_prompt_cache

        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        try:
            with TemporaryDirectory() as folder:
                link = Path(folder, "cache.safetensors")  # of which it tells the format
                link.symlink_to(Path(path).resolve())
                layers, told = load_prompt_cache(str(link), return_metadata=True)
                mx.eval([layer.state for layer in layers])
            if told["format"] != _FORMAT:
                raise CheckpointError(f"{path}: written by another version of this program")
            if told["model"] != fingerprint(self.model):
                raise CheckpointError(f"{path}: belongs to another model than this one")
            if told.pop("digest") != _digest(layers, told):
                raise CheckpointError(f"{path}: is damaged")
            (whole,) = self.model.make_cache(**json.loads(told["options"]))
            whole.layers, whole.length = layers, int(told["length"])
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            message = f"{path}: not a conversation with a model of mlx-lm"
            raise CheckpointError(message) from error
        return [whole], told


def _digest(layers: Sequence[Any], told: dict[str, str]) -> str:
    """Of all that is in the caches of a model, and beside them."""
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, value in tree_flatten([layer.state for layer in layers]):
        if isinstance(value, mx.array):
            digest.update(f"{name} {value.dtype} {value.shape}".encode())
            digest.update(memoryview(mx.contiguous(value.reshape(-1)).view(mx.uint8)))
        else:
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def as_chat_model(given: Any) -> ChatModel:
    """What replies, however it is given.

    Args:
        given: a folder or a repository; what `load_chat_model` made of one; or what
            `mlx_speech.load` or `mlx_lm.load` returned.

    Raises:
        CheckpointError: see `load_chat_model`.
        InputError: it is something else, or the checkpoint has no chat template.
        UnsupportedOptionError: the model generates nothing.
    """
    if isinstance(given, OwnChatModel | MlxLmChatModel):
        return given
    if isinstance(given, str | os.PathLike):
        return load_chat_model(given)
    if isinstance(given, tuple | list) and len(given) == 2:
        model, tokenizer = given
        if isinstance(model, PretrainedModel):
            return OwnChatModel(model, tokenizer)
        from mlx_lm.tokenizer_utils import TokenizerWrapper

        if isinstance(tokenizer, TokenizerWrapper):
            return MlxLmChatModel(model, tokenizer)
    rule = "a folder, a repository, or what mlx_speech.load or mlx_lm.load returned"
    raise InputError.must_be("chat_model", given, rule)


def load_chat_model(
    path_or_repo: str | os.PathLike, *, dtype: mx.Dtype | str | None = None, progress: bool = True
) -> ChatModel:
    """Load what is to reply: here where this package has the architecture and can read the
    quantization, else with mlx-lm.

    Args:
        path_or_repo, dtype, progress: as for `mlx_speech.load`.

    Raises:
        HubError: the repository cannot be had.
        CheckpointError: the folder is incomplete or malformed, or neither knows its kind.
        InputError: the checkpoint has no chat template, or there is no such type.
        UnsupportedOptionError: it is a model that does not chat.
    """
    folder = resolve_checkpoint(path_or_repo, also=_TOKENIZER_FILES, progress=progress)
    name, config = str(path_or_repo), read_json(folder)
    model_type = config.get("model_type")
    row = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if row is not None and row.is_speech and model_type not in _CHATTING_SPEECH:
        message = f"{name} is a speech model ({model_type}), which does not chat; name a text model"
        raise UnsupportedOptionError(message)
    try:
        if row is not None and _readable(config):
            return OwnChatModel(*load(folder, dtype=dtype))
        return MlxLmChatModel(*load_mlx_lm(folder, name, dtype), folder)
    except InputError as error:  # there are two models that it may be about
        raise InputError(f"{name}: {error}") from error


def _readable(config: dict[str, Any]) -> bool:
    """Whether a checkpoint is quantized in a way that this package reads, or not at all."""
    try:
        check_quant_method(config)
    except CheckpointError:
        return False
    return True


def chat_tokenizer(model: GenerativeModel, processor: Any) -> TextTokenizer:
    """The tokenizer that knows the form in which a model takes conversations.

    Raises:
        InputError: the checkpoint has no chat template.
        UnsupportedOptionError: the model generates nothing.
    """
    check_generates(model)
    tokenizer = text_tokenizer(processor)
    check_template(tokenizer)
    return tokenizer


def check_template(tokenizer: Any) -> None:
    """Raises `InputError` where a tokenizer has no chat template."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError("this checkpoint has no chat template, so it cannot chat")
