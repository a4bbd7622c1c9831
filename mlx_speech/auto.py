"""`AutoModelForCausalLM` and its like: the class that a checkpoint is of, by the registry."""

from typing import Any, ClassVar

from .checkpoint.folder import read_json
from .checkpoint.hub import resolve_checkpoint, take_hub_options
from .errors import UnsupportedOptionError
from .loading import architecture
from .models.config import PretrainedConfig


def _config_of(path_or_repo: Any, options: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's config.json, or nothing where there is none, as beside a tokenizer alone."""
    hub = take_hub_options(dict(options))
    return read_json(resolve_checkpoint(path_or_repo, weights=False, **hub), required=False)


class AutoConfig:
    """The configuration of a checkpoint of any supported family."""

    @staticmethod
    def from_pretrained(path_or_repo, **options: Any) -> Any:
        """As `PretrainedConfig.from_pretrained`."""
        row = architecture(_config_of(path_or_repo, options).get("model_type"))
        return row.model_class().config_class.from_pretrained(path_or_repo, **options)

    @staticmethod
    def for_model(model_type: str, **values: Any) -> PretrainedConfig:
        """A configuration of that family, with its defaults where no value is given."""
        return architecture(model_type).model_class().config_class(**values)


class _AutoModel:
    """Base of the classes that find a model's class; `suffix` ends the names of those they find."""

    suffix: ClassVar[str]

    @classmethod
    def from_pretrained(cls, path_or_repo, **options: Any) -> Any:
        """Load a checkpoint, as `PretrainedModel.from_pretrained` of the class that it is of.

        Raises:
            UnsupportedOptionError: its family has no such class.
        """
        config = options.get("config") or _config_of(path_or_repo, options)
        model_type = config["model_type"] if isinstance(config, dict) else config.model_type
        return cls._model_class(model_type).from_pretrained(path_or_repo, **options)

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> Any:
        """A model with random weights."""
        return cls._model_class(config.model_type)(config)

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
    """A model that writes what it hears."""

    suffix = "ForConditionalGeneration"


class AutoModelForSequenceClassification(_AutoModel):
    """A classifier of texts."""

    suffix = "ForSequenceClassification"


class AutoProcessor:
    """What makes a model's inputs: a speech model's processor, or a text model's tokenizer."""

    @staticmethod
    def from_pretrained(path_or_repo, **options: Any) -> Any:
        """As `from_pretrained` of the class that it is."""
        row = architecture(_config_of(path_or_repo, options).get("model_type"))
        return row.processor_class.from_pretrained(path_or_repo, **options)


class AutoFeatureExtractor:
    """What computes the features that a speech model takes."""

    @staticmethod
    def from_pretrained(path_or_repo, **options: Any) -> Any:
        """As `FeatureExtractor.from_pretrained` of the class that it is.

        Raises:
            UnsupportedOptionError: the model takes no audio.
        """
        model_type = _config_of(path_or_repo, options).get("model_type")
        row = architecture(model_type)
        if not row.is_speech:
            raise UnsupportedOptionError(f"{path_or_repo}: a {model_type} model takes no audio")
        return row.processor_class.extractor_class.from_pretrained(path_or_repo, **options)
