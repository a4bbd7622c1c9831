"""The files of a tokenizer -> its settings, and an object of the tokenizers library that works."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict

from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as Backend

from ..checkpoint.folder import read_json
from ..errors import CheckpointError, MlxSpeechError
from ..fields import fit_items
from .sentencepiece_model import read_sentencepiece
from .settings import read_settings

Token = str | dict  #: its text, or that as "content" with its flags


class TokenizerSettings(TypedDict):
    """What is read of tokenizer_config.json and special_tokens_map.json."""

    bos_token: Token | None
    eos_token: Token | None
    unk_token: Token | None
    pad_token: Token | None
    added_tokens_decoder: dict | None
    additional_special_tokens: list[Token] | None
    extra_special_tokens: list[Token] | dict | None
    add_bos_token: bool | None
    add_eos_token: bool | None
    add_prefix_space: bool | None
    legacy: bool | None
    split_special_tokens: bool | None
    padding_side: Literal["left", "right"] | None
    do_lower_case: bool | None
    do_upper_case: bool | None
    tgt_lang: str | None
    lang_codes: str | None
    sp_model_kwargs: dict | None


JSON_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
#: in the order in which new ones get their ids
SPECIAL_TOKENS = [f"{n}_token" for n in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
_MOST_GROWTH = 1000  # of a text; those in use replace a character by one or two
_LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def read_tokenizer(
    folder: Path, options: dict[str, Any], *, llama: bool = False
) -> tuple[Backend, dict[str, Any]]:
    """What encodes and decodes, from tokenizer.json or else tokenizer.model, and its settings.

    Args:
        options: settings that are to differ from those of the folder.
        llama: whether the tokenizer is known to be Llama 2's; else the settings say it.

    Raises:
        CheckpointError: neither file is there, or a file is malformed.
    """
    try:
        config = read_tokenizer_config(folder)
        file = folder / JSON_FILE
        from_json = file.is_file()
        if from_json:
            # which says itself what is put around a text; these are for tokenizer.model
            config.pop("add_bos_token", None)
            config.pop("add_eos_token", None)
            kind = config.get("tokenizer_class")
            llama = llama or kind in ("LlamaTokenizer", "LlamaTokenizerFast")
            # some of Llama 3 say so, too, but encode bytes as GPT-2's: the file says all about it
            llama = llama and b'"ByteLevel"' not in file.read_bytes()
        elif not (folder / SENTENCEPIECE_FILE).is_file():
            raise CheckpointError(f"{folder}: no {JSON_FILE} and no {SENTENCEPIECE_FILE} here")
        if llama or not from_json:
            config = {**_LLAMA_TOKENS, **config}
        if not from_json and config["bos_token"] is not None:
            config.setdefault("add_bos_token", True)
        config |= fit_items(TokenizerSettings, options)
        if not from_json:
            backend = _as_llama(read_sentencepiece(folder / SENTENCEPIECE_FILE), config)
        elif llama:
            backend = _as_llama(read_json(folder, JSON_FILE), config)
        else:
            with panics_as_errors():
                backend = Backend.from_file(str(file))
            check_growth(backend)
        if backend.padding is not None:
            config.setdefault("pad_token", backend.padding["pad_token"])
        _add_tokens(backend, config)
        return backend, config
    except MlxSpeechError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise CheckpointError(f"{folder}: not a readable tokenizer: {error}") from error


def check_growth(backend: Backend) -> None:
    """Refuse replacements, one after the other, that make a short text fill the memory.

    Raises:
        CheckpointError: there are some.
    """
    for part in ("normalizer", "decoder"):
        component = getattr(backend, part)
        if component is not None and _growth(json.loads(component.__getstate__())) > _MOST_GROWTH:
            raise CheckpointError(
                f"the {part} of {JSON_FILE} makes texts more than {_MOST_GROWTH} times as long"
            )


def _growth(part: dict[str, Any]) -> float:
    """How many times as long a text may become in a normalizer or decoder."""
    if steps := part.get("normalizers") or part.get("decoders"):
        return math.prod(map(_growth, steps))
    # a Prepend, or what of a Replace may stand instead of one character, or before it
    added = part.get("prepend") or part.get("content") or ""
    replaced = part.get("pattern", {}).get("String", "")
    return max(len(added) / len(replaced) if replaced else 1 + len(added), 1)


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Around the tokenizers library: where it gives up, that is the fault of a tokenizer.json, such
    as a pattern that it tries to match in too many ways.

    Raises:
        CheckpointError: so it does.
    """
    try:
        yield
    except BaseException as error:  # its panics are no Exception, and cannot be imported
        if type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"the tokenizer of the checkpoint fails: {error}") from error


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, and what older checkpoints keep beside it, in one dictionary.

    Raises:
        CheckpointError: a file is malformed, or a value of another type.
    """
    config = read_settings(folder, "tokenizer_config.json", TokenizerSettings)
    if config.get("added_tokens_decoder") is None:
        config |= read_settings(folder, "special_tokens_map.json", TokenizerSettings)
        special = {content_of(t) for t in (*named_tokens(config).values(), *further_tokens(config))}
        config["added_tokens_decoder"] = {
            token_id: {"content": text, "special": text in special}
            for text, token_id in read_json(folder, "added_tokens.json", required=False).items()
        }
    return config


def named_tokens(config: dict[str, Any]) -> dict[str, str | dict[str, Any]]:
    """The special tokens that have a name: `pad_token`, or a checkpoint's own `audio_token`."""
    named = {name: config.get(name) for name in SPECIAL_TOKENS}
    named |= {name: token for name, token in config.items() if name.endswith("_token")}
    if isinstance(further := config.get("extra_special_tokens"), dict):
        named |= further
    return {name: token for name, token in named.items() if isinstance(token, (str, dict))}


def further_tokens(config: dict[str, Any]) -> list[str | dict[str, Any]]:
    """The special tokens without a name."""
    further = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    return [] if isinstance(further, dict) else further


def content_of(token: str | dict[str, Any]) -> str:
    """The text of a token as configurations have it.

    Raises:
        CheckpointError: it has none.
    """
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        rule = "must be text, or an object with text as its content"
        raise CheckpointError(f"a token of tokenizer_config.json is {token!r}, but {rule}")
    return content


def _as_llama(data: dict[str, Any], config: dict[str, Any]) -> Backend:
    """What has the vocabulary of a tokenizer.json, and works as Llama 2's: a space is a letter of
    the word behind it, a text begins with one, and what has no token is spelt in bytes."""
    read = data["model"]
    model = {"type": "BPE", "vocab": read["vocab"], "merges": read["merges"]}
    model |= {"unk_token": read.get("unk_token"), "fuse_unk": True, "byte_fallback": True}
    kept = {name: data[name] for name in ("added_tokens", "post_processor") if name in data}
    backend = Backend.from_str(json.dumps({"added_tokens": [], **kept, "model": model}))
    prefix = config.get("add_prefix_space") in (None, True)
    # the older way is a space after every special token
    scheme = "never" if not prefix else "always" if config.get("legacy") else "first"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _add_tokens(backend: Backend, config: dict[str, Any]) -> None:
    """Make the configuration's tokens known to the backend, where they are not or differ."""
    decoder = config.get("added_tokens_decoder") or {}
    listed = [_token(decoder[token_id]) for token_id in sorted(decoder, key=int)]
    present = backend.get_added_tokens_decoder().values()
    same = {repr(token) for token in present}
    added = [token for token in listed if repr(token) not in same]
    named = [_token(token) for token in named_tokens(config).values()]
    known = {token.content for token in (*present, *added)}
    for token in (*named, *map(_token, further_tokens(config))):
        if token.content not in known:
            added.append(token)
            known.add(token.content)
    names = {token.content for token in named}
    for token in added:
        token.special = token.special or token.content in names
    backend.add_tokens(added)


def _token(token: str | dict[str, Any]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    return AddedToken(**{name: value for name, value in token.items() if name != "__type"})
