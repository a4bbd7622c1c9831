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
    sep_token: Token | None
    pad_token: Token | None
    cls_token: Token | None
    mask_token: Token | None
    added_tokens_decoder: dict | None
    additional_special_tokens: list[Token] | None
    extra_special_tokens: list[Token] | dict | None
    add_bos_token: bool | None
    add_eos_token: bool | None
    add_prefix_space: bool | None
    legacy: bool | None
    split_special_tokens: bool | None
    padding_side: Literal["left", "right"] | None
    truncation_side: Literal["left", "right"] | None
    model_max_length: int | None
    model_input_names: list[str] | None
    clean_up_tokenization_spaces: bool | None
    spaces_between_special_tokens: bool | None
    use_default_system_prompt: bool | None
    do_lower_case: bool | None
    do_upper_case: bool | None
    tgt_lang: str | None
    lang_codes: str | None
    sp_model_kwargs: dict | None


JSON_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
#: in the order in which new ones get their ids
SPECIAL_TOKENS = [f"{n}_token" for n in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
#: the special tokens without a name, as they are called now and were before
FURTHER_TOKENS = ("extra_special_tokens", "additional_special_tokens")
_MOST_GROWTH = 1000  # of a text; those in use replace a character by one or two
LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
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
    with _as_checkpoint_errors(folder):
        config = read_tokenizer_config(folder)
        file = folder / JSON_FILE
        if file.is_file():
            # which says itself what is put around a text; these are for tokenizer.model
            config.pop("add_bos_token", None)
            config.pop("add_eos_token", None)
            llama = llama or config.get("tokenizer_class") in LLAMA_CLASSES
        else:
            file, llama = folder / SENTENCEPIECE_FILE, True
            for name in ("bos_token", "eos_token"):
                if options.get(name, "") is None:  # what is not to be is not put around a text
                    config.pop(f"add_{name}", None)
            if not file.is_file():
                raise CheckpointError(f"{folder}: no {JSON_FILE} and no {SENTENCEPIECE_FILE} here")
    return build_tokenizer(file, config | options, llama=llama)


def build_tokenizer(
    source: Path | dict[str, Any], config: dict[str, Any], *, llama: bool
) -> tuple[Backend, dict[str, Any]]:
    """What encodes and decodes, and its settings with those that follow.

    Args:
        source: a tokenizer.json, a tokenizer.model, or what a tokenizer.json has of a Llama 2's.
        config: settings.
        llama: whether it works as Llama 2's, unless it encodes bytes.

    Raises:
        CheckpointError: it is malformed.
    """
    with _as_checkpoint_errors(source if isinstance(source, Path) else "vocab"):
        data, from_json = source, isinstance(source, Path) and source.suffix != ".model"
        if isinstance(source, Path) and not from_json:
            data = read_sentencepiece(source)
            found = [token["content"] for token in data["added_tokens"]]
            config = {FURTHER_TOKENS[0]: found, **config}
        elif isinstance(source, Path) and llama:
            # some of Llama 3 say so, too, but encode bytes as GPT-2's: the file says all about it
            llama = b'"ByteLevel"' not in source.read_bytes()
            data = read_json(source.parent, source.name) if llama else source
        if isinstance(data, dict):
            config = {**_LLAMA_TOKENS, **config, "tokenizer_class": LLAMA_CLASSES[0]}
            backend = _as_llama(data, config)
        else:
            with panics_as_errors():
                backend = Backend.from_file(str(data))
            check_growth(backend)
        if not from_json and config["bos_token"] is not None:
            config.setdefault("add_bos_token", True)
        if backend.padding is not None:
            config.setdefault("pad_token", backend.padding["pad_token"])
        _add_tokens(backend, config)
        return backend, config


@contextmanager
def _as_checkpoint_errors(place: Path | str) -> Iterator[None]:
    try:
        yield
    except MlxSpeechError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise CheckpointError(f"{place}: not a readable tokenizer: {error}") from error


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
    if isinstance(further := config.get(FURTHER_TOKENS[0]), dict):
        named |= further
    return {name: token for name, token in named.items() if isinstance(token, (str, dict))}


def further_tokens(config: dict[str, Any]) -> list[str | dict[str, Any]]:
    """The special tokens without a name."""
    further: Any = next((config[name] for name in FURTHER_TOKENS if config.get(name)), [])
    return [] if isinstance(further, dict) else further


def plain_token(token: str | AddedToken | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """A special token as configurations have it."""
    if not isinstance(token, AddedToken):
        return token
    was_special = token.special
    token.special = True  # what it does not say of itself follows from this
    state = token.__getstate__()
    token.special = was_special
    return state


def plain_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Settings that a caller gives, as configurations have them.

    Raises:
        InputError: one is of another type.
    """
    new, old = FURTHER_TOKENS
    plain = {name: plain_token(value) for name, value in options.items()}
    if old in plain:
        plain[new] = plain.pop(old) or plain.get(new)
    for name in {new, "added_tokens_decoder"} & plain.keys():
        if isinstance(tokens := plain[name], dict):
            states = (
                (k, t.__getstate__() if isinstance(t, AddedToken) else t) for k, t in tokens.items()
            )
            plain[name] = dict(states)
        elif isinstance(tokens, list | tuple):
            plain[name] = [plain_token(token) for token in tokens]
    return fit_items(TokenizerSettings, plain)


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
    listed = [added_token(decoder[token_id]) for token_id in sorted(decoder, key=int)]
    present = backend.get_added_tokens_decoder().values()
    same = {repr(token) for token in present}
    added = [token for token in listed if repr(token) not in same]
    named = [added_token(token) for token in named_tokens(config).values()]
    known = {token.content for token in (*present, *added)}
    for token in (*named, *map(added_token, further_tokens(config))):
        if token.content not in known:
            added.append(token)
            known.add(token.content)
    names = {token.content for token in named}
    for token in added:
        token.special = token.special or token.content in names
    backend.add_tokens(added)


def added_token(token: str | dict[str, Any]) -> AddedToken:
    """A token of a configuration, as the tokenizers library has it."""
    if isinstance(token, str):
        return AddedToken(token, special=True)
    return AddedToken(**{name: value for name, value in token.items() if name != "__type"})
