"""`AutoModelForCausalLM` and its like: the class that a checkpoint is of, by the registry."""

from typing import Any, ClassVar

from .checkpoint.folder import read_json
from .checkpoint.hub import resolve_checkpoint, take_hub_options
from .checkpoint.options import LoadingOptions
from .errors import InputError, UnsupportedOptionError
from .loading import ARCHITECTURES, Architecture, architecture
from .models.config import PretrainedConfig, read_config
from .processing.auto_tokenizer import AutoTokenizer
from .processing.processor import Processor


def _model_type(path_or_repo: Any, options: dict[str, Any]) -> Any:
    """What a checkpoint's configuration says that it is."""
    return read_config(path_or_repo, take_hub_options(dict(options))).get("model_type")


def _family_of(path_or_repo: Any, options: dict[str, Any]) -> Architecture | None:
    """The family of a checkpoint; of a processor or a feature extractor that was saved without a
    model that of the class which its file names; None where nothing says it."""
    folder = resolve_checkpoint(path_or_repo, weights=False, **take_hub_options(dict(options)))
    model_type = read_json(folder, required=False).get("model_type")
    if model_type is not None:
        return architecture(model_type)
    files = ("processor_config.json", "preprocessor_config.json")
    settings = [read_json(folder, name, required=False) for name in files]
    parts = [*settings, *(p for s in settings for p in s.values() if isinstance(p, dict))]
    keys = ("processor_class", "feature_extractor_type")
    named = [part.get(key) for part in parts for key in keys]
    for row in ARCHITECTURES.values():
        if row.is_speech:
            kinds = row.processor_class, _extractor_class(row)
            if any(kind is not None and kind.__name__ in named for kind in kinds):
                return row
    return None


def _extractor_class(row: Architecture | None) -> Any:
    """The class of a speech family's feature extractor; None: there is none, or not by itself."""
    if row is None or not row.is_speech or not issubclass(row.processor_class, Processor):
        return None
    return row.processor_class.extractor_class


class _Auto:
    """Base of the classes that find the class of a checkpoint."""

    def __init__(self) -> None:
        name = type(self).__name__
        raise InputError(f"{name} is not made, but read: {name}.from_pretrained(…)")


class AutoConfig(_Auto):
    """The configuration of a checkpoint of any supported family."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path, **options: Any) -> Any:
        """As `PretrainedConfig.from_pretrained`."""
        row = architecture(_model_type(pretrained_model_name_or_path, options))
        kind = row.model_class().config_class
        return kind.from_pretrained(pretrained_model_name_or_path, **options)

    @staticmethod
    def for_model(model_type: str, **values: Any) -> PretrainedConfig:
        """A configuration of that family, with its defaults where no value is given."""
        return architecture(model_type).model_class().config_class(**values)


class _AutoModel(_Auto):
    """Base of the classes that find a model's class; `suffix` ends the names of those they find."""

    suffix: ClassVar[str]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **options: Any) -> Any:
        """Load a checkpoint, as `PretrainedModel.from_pretrained` of the class that it is of.

        Raises:
            UnsupportedOptionError: its family has no such class.
        """
        config = options.get("config")
        if config is None:
            model_type = _model_type(pretrained_model_name_or_path, options)
        else:
            if not isinstance(config, PretrainedConfig):
                config = options["config"] = AutoConfig.from_pretrained(config)
            model_type = config.model_type
        kind = cls._model_class(model_type)
        return kind.from_pretrained(pretrained_model_name_or_path, **options)

    @classmethod
    def from_config(cls, config: PretrainedConfig, **options: Any) -> Any:
        """A model with random weights.

        Args:
            options: `dtype`, and what `LoadingOptions.take` accepts without effect.

        Raises:
            InputError: it is no configuration, or there is no such option.
        """
        if not isinstance(config, PretrainedConfig):
            raise InputError.must_be("config", config, "a configuration")
        take_hub_options(options)
        dtype = LoadingOptions.take(options).dtype
        if options:
            raise InputError(f"from_config has no option {min(options)}")
        model = cls._model_class(config.model_type)(config)
        return model if dtype in (None, "auto") else model.to(dtype)

    @classmethod
    def _model_class(cls, model_type: str) -> Any:
        row = architecture(model_type)
        found = [name for name in row.model_names if name.endswith(cls.suffix)]
        if not found:
            what = f"{cls.__name__} has no class for {model_type}"
            raise UnsupportedOptionError(f"{what}; there is {', '.join(row.model_names)}")
        return row.model_class(found[0])


class AutoModel(_AutoModel):
    """A model without a head; Granite Speech, which has none, as a whole."""

    suffix = "Model"

    @classmethod
    def _model_class(cls, model_type: str) -> Any:
        row = architecture(model_type)
        bare = [name for name in row.model_names if name.endswith(cls.suffix)]
        return row.model_class(*bare[:1])


class AutoModelForCausalLM(_AutoModel):
    """A text decoder with a language model's head."""

    suffix = "ForCausalLM"


class AutoModelForSpeechSeq2Seq(_AutoModel):
    """A model that transcribes or translates speech."""

    suffix = "ForConditionalGeneration"


class AutoModelForCTC(_AutoModel):
    """A model that transcribes with labels for frames or slots."""

    suffix = "ForCTC"


class AutoModelForMultimodalLM(AutoModelForSpeechSeq2Seq):
    """The same, by the name that the Hub's pages of Granite Speech have for it."""


class AutoModelForSequenceClassification(_AutoModel):
    """A classifier of texts."""

    suffix = "ForSequenceClassification"


class AutoProcessor(_Auto):
    """What makes a model's inputs: a speech model's processor, or a text model's tokenizer."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path, **options: Any) -> Any:
        """As `from_pretrained` of the class that it is."""
        row = _family_of(pretrained_model_name_or_path, options)
        kind = AutoTokenizer if row is None or not row.is_speech else row.processor_class
        return kind.from_pretrained(pretrained_model_name_or_path, **options)


class AutoFeatureExtractor(_Auto):
    """What computes the features that a speech model takes."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path, **options: Any) -> Any:
        """As `FeatureExtractor.from_pretrained` of the class that it is.

        Raises:
            UnsupportedOptionError: the model takes no audio.
        """
        kind = _extractor_class(_family_of(pretrained_model_name_or_path, options))
        if kind is None:
            what = "has no feature extractor, as a speech model or its processor would"
            raise UnsupportedOptionError(f"{pretrained_model_name_or_path}: {what}")
        return kind.from_pretrained(pretrained_model_name_or_path, **options)
