"""What processors share: a feature extractor and a tokenizer, read, called and saved together."""

from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

from ..errors import InputError
from ..fields import fitted
from .base_tokenizer import BaseTokenizer
from .batch import TokenRows
from .chat_template import Templates
from .feature_extractor import FeatureExtractor
from .settings import Settings

CONFIG_FILE = "processor_config.json"
#: keywords of a call that mean the same to both parts, each in its own unit
SHARED_OPTIONS = {
    *("padding", "max_length", "truncation", "pad_to_multiple_of"),
    *("return_attention_mask", "return_tensors"),
}
GROUPS = ("common_kwargs", "text_kwargs", "audio_kwargs")


class Processor(Settings):
    """Base of the processors.

    Args:
        feature_extractor: computes features.
        tokenizer: encodes and decodes texts.

    Raises:
        InputError: one of them is of another kind.
    """

    replaced_files = (*BaseTokenizer.replaced_files, "preprocessor_config.json")
    extractor_class: ClassVar[type[FeatureExtractor]]
    tokenizer_class: ClassVar[type[BaseTokenizer]]

    def __init__(self, feature_extractor: FeatureExtractor, tokenizer: BaseTokenizer):
        parts = ((feature_extractor, self.extractor_class), (tokenizer, self.tokenizer_class))
        for part, kind in parts:
            if not isinstance(part, kind):
                what = f"a {type(self).__name__} is made of a {parts[0][1].__name__} and a "
                raise InputError(f"{what}{parts[1][1].__name__}, not of a {type(part).__name__}")
        self.feature_extractor: Any = feature_extractor
        self.tokenizer: Any = tokenizer

    @classmethod
    def _read_parts(cls, folder: Path, options: dict[str, Any]) -> tuple[Any, Any]:
        """The feature extractor and the tokenizer of a folder; each takes the options it knows."""
        of_features = options.keys() & {*cls.extractor_class.setting_names()} - {"padding_side"}
        others = {name: value for name, value in options.items() if name not in of_features}
        return (
            cls.extractor_class.from_pretrained(folder, **{n: options[n] for n in of_features}),
            cls.tokenizer_class.from_pretrained(folder, **others),  # type: ignore[attr-defined]
        )

    @property
    def audio_processor(self) -> Any:
        """The feature extractor, by the name that it has in Granite Speech."""
        return self.feature_extractor

    @property
    def sampling_rate(self) -> int:
        """Of the recordings, in Hz."""
        return self.feature_extractor.sampling_rate

    @property
    def chat_template(self) -> Templates:
        """The tokenizer's, if it has one; a new one is given to the tokenizer."""
        return getattr(self.tokenizer, "chat_template", None)

    @chat_template.setter
    def chat_template(self, template: Templates) -> None:
        self.tokenizer.chat_template = template

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call returns: of the features, then of the text."""
        return [*self.feature_extractor.model_input_names, *self.tokenizer.model_input_names]

    def decode(self, token_ids: Any, *arguments: Any, **options: Any) -> Any:
        """Text of token ids, or texts of several rows; arguments as for the tokenizer."""
        return self.tokenizer.decode(token_ids, *arguments, **options)

    def batch_decode(self, sequences: TokenRows, *arguments: Any, **options: Any) -> list[str]:
        """Texts of several rows of token ids; arguments as for the tokenizer."""
        return self.tokenizer.batch_decode(sequences, *arguments, **options)

    def to_dict(self) -> dict[str, Any]:
        """What processor_config.json holds: all but the tokenizer."""
        key, features = self.feature_extractor.key, self.feature_extractor.to_dict()
        return {key: features, "processor_class": type(self).__name__}

    def _write_files(self, folder: Path) -> None:  # type: ignore[override]
        self.tokenizer._write_files(folder)
        self.to_json_file(folder / CONFIG_FILE)

    def _split(self, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keywords of a call for the tokenizer, and those for the feature extractor.

        As in transformers each gets those it knows, and `text_kwargs` and `audio_kwargs` are for
        one of them, `common_kwargs` for both.

        Raises:
            InputError: one of these is no dictionary, or has what is given outside of it, too.
        """
        groups = {name: fitted(name, options.get(name) or {}, dict) for name in GROUPS}
        alone = {name: value for name, value in options.items() if name not in GROUPS}
        of_audio = [*signature(self.feature_extractor.__call__).parameters][1:]
        both = {**groups["common_kwargs"], **alone}
        text = {n: v for n, v in both.items() if n in SHARED_OPTIONS or n not in of_audio}
        audio = {n: v for n, v in both.items() if n in of_audio}
        for name, taken in (("text_kwargs", text), ("audio_kwargs", audio)):
            if twice := groups[name].keys() & alone.keys() & taken.keys():
                raise InputError(f"{min(twice)} is given twice: in {name}, and outside of it")
            taken |= groups[name]
        if unknown := audio.keys() - {*of_audio}:
            names = ", ".join(sorted(of_audio))
            raise InputError(f"a recording has no option {min(unknown)}, but {names}")
        return text, audio


def refuse_text_options(options: dict[str, Any]) -> None:
    """Raises `InputError` for options of a text, where there is none."""
    if others := options.keys() - SHARED_OPTIONS:
        raise InputError(f"{min(others)} is no option of a recording, and no text is given")
