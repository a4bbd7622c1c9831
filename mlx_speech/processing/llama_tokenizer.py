"""Llama 2's tokenizer, from its vocabulary."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers.models import BPE

from ..checkpoint.folder import read_json
from ..errors import CheckpointError, InputError, UnsupportedOptionError
from ..fields import fitted
from .tokenizer import Tokenizer, check_options
from .tokenizer_files import build_tokenizer

Vocab = Mapping[str, int] | Sequence[str] | str | os.PathLike
Merges = Sequence[tuple[str, str] | str] | str | os.PathLike


def _setting(name: str, default: bool, doc: str) -> Any:
    return property(lambda self: self.config.get(name, default), doc=doc)


class LlamaTokenizer(Tokenizer):
    """A tokenizer that works as Llama 2's.

    A text begins with a space that decoding takes away again, and what has no token is spelt in
    UTF-8 bytes. With `legacy` a space is also put after each special token within a text.

    `from_pretrained` reads tokenizer.json or the sentencepiece file tokenizer.model.
    `Tokenizer.from_pretrained` does the same for folders that name this class or have
    tokenizer.model alone.

    Args:
        vocab: ids by token, or the tokens in the order of their ids; or the path of a vocab.json,
            or as `vocab_file`. Without one there are the three special tokens.
        merges: pairs of tokens that merge, the first ones first; or the path of a merges.txt.
        vocab_file, tokenizer_file: path of a tokenizer.model, or of a tokenizer.json.
        unk_token, bos_token, eos_token, pad_token: special tokens; new ones are added.
        add_bos_token, add_eos_token: whether encoding puts these around a text. By default the
            first, unless a tokenizer.json says it.
        legacy: the older way with spaces.
        add_prefix_space: whether a text begins with a space; so it does by default.
        use_default_system_prompt: kept, without effect, as in transformers.
        sp_model_kwargs: options of sentencepiece; there can be none.
        options: further settings, as in `from_pretrained`.

    Raises:
        CheckpointError: a file is missing or malformed.
        InputError: there is no such option, or one is of another type.
    """

    _llama = True

    legacy = _setting("legacy", False, "Whether a space is put after each special token.")
    add_prefix_space = _setting("add_prefix_space", True, "Whether a text begins with a space.")
    use_default_system_prompt = _setting("use_default_system_prompt", False, "Without effect.")

    def __init__(
        self,
        vocab: Vocab | None = None,
        merges: Merges | None = None,
        clean_up_tokenization_spaces: bool = False,
        unk_token: str | AddedToken = "<unk>",
        bos_token: str | AddedToken | None = "<s>",
        eos_token: str | AddedToken | None = "</s>",
        use_default_system_prompt: bool = False,
        legacy: bool | None = None,
        add_prefix_space: bool | None = None,
        *,
        vocab_file: str | os.PathLike | None = None,
        tokenizer_file: str | os.PathLike | None = None,
        pad_token: str | AddedToken | None = None,
        add_bos_token: bool | None = None,
        add_eos_token: bool | None = None,
        spaces_between_special_tokens: bool = False,
        sp_model_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ):
        if sp_model_kwargs:
            what = "sp_model_kwargs: Llama's tokenizer takes the pieces of the sentencepiece file"
            raise UnsupportedOptionError(f"{what}, and does not sample; leave it out")
        options |= {
            **{"unk_token": unk_token, "bos_token": bos_token, "eos_token": eos_token},
            **{"pad_token": pad_token, "add_bos_token": add_bos_token},
            **{"add_eos_token": add_eos_token, "legacy": legacy},
            "add_prefix_space": add_prefix_space,
            "clean_up_tokenization_spaces": clean_up_tokenization_spaces,
            "use_default_system_prompt": use_default_system_prompt,
            "spaces_between_special_tokens": spaces_between_special_tokens,
        }
        named = ("bos_token", "eos_token")  # these may be told not to be
        settings = {n: value for n, value in options.items() if value is not None or n in named}
        settings = check_options(settings)
        chat_template = settings.pop("chat_template", None)
        if isinstance(vocab, str | os.PathLike) and str(vocab).endswith(".model"):
            vocab, vocab_file = None, vocab
        file = tokenizer_file if tokenizer_file is not None else vocab_file
        if file is not None:
            source: Any = Path(file)
            if not source.is_file():
                raise CheckpointError(f"{source}: no such file, and the tokenizer needs it")
        else:
            if vocab is None:
                special = (unk_token, bos_token, eos_token)
                vocab = list(dict.fromkeys(str(token) for token in special if token is not None))
            source = {"model": _model(vocab, merges, str(unk_token))}
        backend, config = build_tokenizer(source, settings, llama=True)
        super().__init__(backend, config, chat_template)
        if vocab_file is not None:
            self.vocab_file = Path(vocab_file)


def _model(vocab: Vocab, merges: Merges | None, unk_token: str) -> dict[str, Any]:
    """The model of a tokenizer.json."""
    if isinstance(vocab, str | os.PathLike):
        ids, pairs = _read_files(Path(vocab), merges)
    else:
        if not isinstance(vocab, Mapping):
            vocab = {token: i for i, token in enumerate(fitted("vocab", vocab, list[str]))}
        ids = fitted("vocab", dict(vocab), dict[str, int])
        if isinstance(merges, str | os.PathLike):
            raise InputError("merges is a path: then vocab has to be the path of a vocab.json")
        pairs = fitted("merges", merges or [], list)
        pairs = [m.split(" ") if isinstance(m, str) else m for m in pairs]
    return {
        **{"vocab": ids, "merges": fitted("merges", pairs, list[list[str]])},
        "unk_token": unk_token if unk_token in ids else None,
    }


def _read_files(vocab: Path, merges: Any) -> tuple[dict[str, int], list]:
    if merges is None or not isinstance(merges, str | os.PathLike):
        return read_json(vocab.parent, vocab.name), list(merges or ())
    try:
        return BPE.read_file(str(vocab), os.fspath(merges))
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise CheckpointError(
            f"{vocab}: not a readable vocabulary with {merges}: {error}"
        ) from error


LlamaTokenizerFast = LlamaTokenizer  #: there is only the one that the tokenizers library makes
