"""The tokenizer that a checkpoint needs, whatever its kind."""

from typing import Any, NoReturn

from ..checkpoint.hub import resolve_checkpoint, take_hub_options
from .base_tokenizer import BaseTokenizer
from .llama_tokenizer import LlamaTokenizer
from .parakeet_tokenizer import PARAKEET_CLASSES, ParakeetTokenizer
from .speech_to_text_tokenizer import SPM_FILE, Speech2TextTokenizer
from .tokenizer import Tokenizer
from .tokenizer_files import JSON_FILE, LLAMA_CLASSES, read_tokenizer_config


class AutoTokenizer:
    """By the name under which transformers' examples import it."""

    def __init__(self) -> NoReturn:
        raise TypeError("AutoTokenizer is not made, but read: AutoTokenizer.from_pretrained(…)")

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path, **options: Any) -> BaseTokenizer:
        """Read the tokenizer of a local folder or a Hugging Face repository: a
        `Speech2TextTokenizer`, a `LlamaTokenizer`, a `ParakeetTokenizer`, or else a `Tokenizer`.

        Args and errors are those of `from_pretrained` of these.
        """
        hub = take_hub_options(options)
        folder = resolve_checkpoint(pretrained_model_name_or_path, weights=False, **hub)
        has_json = (folder / JSON_FILE).is_file()
        kind: type[Speech2TextTokenizer] | type[Tokenizer] = Tokenizer
        if not has_json and (folder / SPM_FILE).is_file():
            kind = Speech2TextTokenizer
        else:
            named = read_tokenizer_config(folder).get("tokenizer_class")
            if named in LLAMA_CLASSES:
                kind = LlamaTokenizer
            elif named in PARAKEET_CLASSES:
                kind = ParakeetTokenizer
        tokenizer = kind.from_pretrained(folder, **options)
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return tokenizer
