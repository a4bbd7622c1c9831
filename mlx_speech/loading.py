"""The registry of families, and `load`: a path or repository id -> model and processor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .checkpoint.folder import read_json
from .checkpoint.hub import resolve_adapter, resolve_checkpoint, take_hub_options
from .errors import CheckpointError

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass(frozen=True)
class Architecture:
    """The classes that serve one model_type, as `module:name`, so that listing imports nothing.

    models: what a checkpoint's `architectures` may name; the first where it does not say.
    processor: turns text and audio into the model's inputs and its tokens back into text; of
        text-only models the tokenizer.
    transcription: for speech models, what differs in transcribing with them; see
        `mlx_speech.transcription.family`.
    """

    models: tuple[str, ...]
    processor: str = ".processing.tokenizer:Tokenizer"
    transcription: str | None = None

    @property
    def model_names(self) -> list[str]:
        """Names of the model classes."""
        return [model.partition(":")[2] for model in self.models]

    def model_class(self, name: str | None = None) -> Any:
        """The model class of that name, or the first; its `config_class` is the configuration."""
        named = dict(zip(self.model_names, self.models, strict=True))
        return _imported(named.get(name or "", self.models[0]))

    @property
    def processor_class(self) -> Any:
        return _imported(self.processor)

    @property
    def is_speech(self) -> bool:
        """Whether recordings can be transcribed with it."""
        return self.transcription is not None

    @property
    def transcription_class(self) -> Any:
        return _imported(self.transcription or "")


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module, __package__), name)


def _family(module: str, models: list[str], *speech: str) -> Architecture:
    """The row of a family of this package, whose modules have one name.

    speech: the classes in `processing` and in `transcription`, if there are some.
    """
    folders = zip(("processing", "transcription"), speech, strict=False)
    places = [f".{folder}.{module}:{name}" for folder, name in folders]
    return Architecture(tuple(f".models.{module}:{name}" for name in models), *places)


_GRANITE_SPEECH = ("GraniteSpeechProcessor", "GraniteSpeechTranscription")
_GRANITE_SPEECH_NAR = _family(
    "granite_speech_nar",
    ["GraniteSpeechNarForCTC"],
    "GraniteSpeechNarProcessor",
    "GraniteSpeechNarTranscription",
)
_SPEECH2TEXT = ("Speech2TextProcessor", "Speech2TextTranscription")
#: `model_type` of config.json -> the family
ARCHITECTURES = {
    "granite": _family("granite", ["GraniteForCausalLM", "GraniteModel"]),
    "granite_speech": _family(
        "granite_speech", ["GraniteSpeechForConditionalGeneration"], *_GRANITE_SPEECH
    ),
    "granite_speech_nar": _GRANITE_SPEECH_NAR,
    "granite_speech_plus": _family(
        "granite_speech", ["GraniteSpeechPlusForConditionalGeneration"], *_GRANITE_SPEECH
    ),
    "granite_speech5_ctc": _family(
        "granite_speech5",
        ["GraniteSpeech5ForCTC"],
        *("GraniteSpeech5Processor", "GraniteSpeech5Transcription"),
    ),
    "jais2": _family("jais2", ["Jais2ForCausalLM", "Jais2Model"]),
    "llama": _family("llama", ["LlamaForCausalLM", "LlamaForSequenceClassification", "LlamaModel"]),
    "nle": _GRANITE_SPEECH_NAR,
    "speech_to_text": _family(
        "speech_to_text", ["Speech2TextForConditionalGeneration", "Speech2TextModel"], *_SPEECH2TEXT
    ),
}


def architecture(model_type: str | None) -> Architecture:
    """The classes for a `model_type`.

    Raises:
        CheckpointError: it is not supported; the message lists those that are.
    """
    try:
        return ARCHITECTURES[model_type]  # type: ignore[index]
    except (KeyError, TypeError):  # TypeError: a list or an object
        raise CheckpointError(
            f"model_type {model_type!r} is not supported; supported are {', '.join(ARCHITECTURES)}"
        ) from None


def model_class(config: dict[str, Any]) -> Any:
    """The model class for a checkpoint's config.json.

    Raises:
        CheckpointError: its model_type is not supported.
    """
    stated = config.get("architectures")
    name = stated[0] if isinstance(stated, list) and stated else None
    return architecture(config.get("model_type")).model_class(name)


def load(
    path_or_repo: str | os.PathLike,
    *,
    revision: str | None = None,
    dtype: mx.Dtype | str | None = None,
    adapter: str | os.PathLike | None = None,
    tensor_group: mx.distributed.Group | None = None,
    progress: bool = True,
) -> tuple[Any, Any]:
    """Load a model and what turns text and audio into its inputs.

    Args:
        path_or_repo: a folder in the Hugging Face layout, or a repository id `owner/name`.
        revision: branch, tag or commit of the repository.
        dtype: floating type to compute in, or its name; see
            `mlx_speech.checkpoint.options.LoadingOptions`.
        adapter: folder or repository of a LoRA adapter in peft's format, which is put over the
            model, and over the checkpoint's own adapter; it is on and off with that.
        tensor_group: the ranks that share the layers of the decoder, of which this one reads its
            part: each calls `load`, or all but one `load_shard`.
        progress: show a progress bar while downloading, on standard error.

    Returns:
        `(model, processor)`; for a text-only model the processor is its tokenizer.

    Raises:
        HubError: the repository cannot be had.
        CheckpointError: the folder is incomplete, malformed, or of an unsupported kind; the adapter
            is, or is for another model.
        InputError: there is no such type.
        UnsupportedOptionError: the ranks cannot share the layers; says how many can, or which
            models.
    """
    if adapter is not None:  # before the model, which is larger
        adapter = resolve_adapter(adapter, progress=progress)
    folder = resolve_checkpoint(path_or_repo, revision=revision, progress=progress)
    model = load_model(folder, dtype=dtype, adapter=adapter, tensor_group=tensor_group)
    row = architecture(model.config.model_type)
    return model, row.processor_class.from_pretrained(folder, name=str(path_or_repo))


def load_shard(
    path_or_repo: str | os.PathLike,
    tensor_group: mx.distributed.Group,
    *,
    revision: str | None = None,
    dtype: mx.Dtype | str | None = None,
    adapter: str | os.PathLike | None = None,
    progress: bool = True,
) -> Any:
    """Load what a rank needs that does nothing but follow another one, which has the whole model:
    its part of the layers of the decoder. Arguments and errors are those of `load`.

    Returns:
        A `DecoderModel` without embeddings and final norm, for its `run_stack`.
    """
    from .checkpoint.options import LoadingOptions
    from .checkpoint.weights import load_layers

    if adapter is not None:
        adapter = resolve_adapter(adapter, progress=progress)
    folder = resolve_checkpoint(path_or_repo, revision=revision, progress=progress)
    stored = read_json(folder)
    options = LoadingOptions(dtype=dtype, adapter=adapter, tensor_group=tensor_group)
    return load_layers(folder, stored, model_class(stored), options)


def load_model(path_or_repo: str | os.PathLike, **options: Any) -> Any:
    """Load a model alone, of the class that its config.json names; options and errors are those of
    `PretrainedModel.from_pretrained`."""
    hub = take_hub_options(dict(options))
    folder = resolve_checkpoint(path_or_repo, **hub)
    options = {name: value for name, value in options.items() if name not in hub}
    return model_class(read_json(folder)).from_pretrained(folder, **options)
