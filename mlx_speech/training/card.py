"""The card of an adapter: README.md, with the metadata that the Hub reads at its top."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..checkpoint.card import licence, link_to, name_of, own_tags, source_metadata
from ..transcription.frames import FRAMES_PER_SECOND
from .data import TrainingData
from .options import FineTuneOptions
from .reports import FineTuneResult

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

#: what of the base's metadata is true of its adapter as well
_CARRIED = ("language", "license", "license_name", "license_link")
_TAGS = ("lora", "mlx", "mlx-speech")
_TRAINED = {
    "lora": "the projector, and low-rank terms of rank {rank} and scale {scale:g} on {keys} of "
    "{layers} of the decoder",
    "projector": "the projector",
    "full": "the projector, and {layers} of the decoder",
}
_USE = """\
import mlx_speech
model = mlx_speech.load("{base}", adapter="{name}")
print(mlx_speech.transcribe("talk.m4a", model).text)
"""


def adapter_card(
    folder: Path,
    model: Any,
    data_path: Path,
    data: TrainingData,
    options: FineTuneOptions,
    result: FineTuneResult,
) -> ModelCard:
    """Describe an adapter: what was trained how and on what, and what came of it.

    Args:
        folder: of the adapter, whose name the card has.
        model: that was trained.
        data_path: where the data is; the card has its name alone.
    """
    from huggingface_hub import ModelCard, ModelCardData

    source = model.folder
    base = name_of(source)
    metadata = source_metadata(source)
    carried = {key: metadata[key] for key in _CARRIED if metadata.get(key)}
    tags = [*own_tags(metadata), *_TAGS]
    # of a folder that is not the Hub's nobody knows the repository
    known = base if "/" in base else metadata.get("base_model")
    if known:
        carried |= {"base_model": known, "base_model_relation": "adapter"}
    about = ModelCardData(
        library_name="peft",
        pipeline_tag="automatic-speech-recognition",
        tags=list(dict.fromkeys(tags)),
        **carried,
    )
    parts = [
        f"# {folder.resolve().name}",
        f"An adapter for {link_to(base)}, trained by mlx_speech {__version__}. It is in the "
        "format of [peft](https://github.com/huggingface/peft), which reads it as well.",
        "## How to run it",
        f"```python\n{_USE.format(base=base, name=folder.resolve().name)}```",
        "## What it was trained on",
        _data(data_path, data),
        "## How",
        _training(model, options, result),
        "## What came of it",
        _scores(result),
        "## Licence",
        f"{licence(metadata, link_to(base))} What the recordings allow counts as well.",
    ]
    text = "\n\n".join(parts)
    return ModelCard(f"---\n{about.to_yaml()}\n---\n\n{text}\n")


def _data(path: Path, data: TrainingData) -> str:
    sentence = f"`{path.resolve().name}`: {_amount(data.train)}"
    if data.valid is not None:
        sentence += f"; {_amount(data.valid)} to validate with, which were not trained on"
    if data.left_out:
        sentence += f". {len(data.left_out)} rows could not be used"
    return f"{sentence}."


def _amount(dataset: Any) -> str:
    # those at other speeds are not counted
    recordings = [example for example in dataset.examples if example.speed == 1]
    seconds = sum(example.frames for example in recordings) / FRAMES_PER_SECOND
    length = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
    return f"{len(recordings)} recordings, {length}"


def _training(model: Any, options: FineTuneOptions, result: FineTuneResult) -> str:
    count, number = options.layers, model.config.text_config.num_hidden_layers
    every = count < 0 or count >= number
    trained = _TRAINED[options.fine_tune_type].format(
        rank=options.lora_rank,
        scale=options.lora_scale,
        keys=" and ".join(f"`{key}`" for key in options.lora_keys),
        layers="all layers" if every else f"the last {count} layers",
    )
    if options.train_ctc_head:
        trained += ", and the CTC head"
    rate = f"learning rate {options.learning_rate:g}"
    if options.lr_schedule is not None:
        rate = f"schedule `{options.lr_schedule}`"
    steps = f"{result.steps} steps of {options.batch_size} recordings"
    if options.grad_accumulation_steps > 1:
        steps += f", an update every {options.grad_accumulation_steps}"
    more = [
        text
        for text, used in (
            (f"dropout {options.lora_dropout:g}", options.lora_dropout),
            ("SpecAugment", options.spec_augment),
            ("speeds 0.9, 1 and 1.1", options.speed_perturbation),
        )
        if used
    ]
    how = ", ".join([steps, f"{options.optimizer} at {rate}", *more, f"seed {options.seed}"])
    stopped = " It was stopped before its end." if result.stopped else ""
    return (
        f"Trained: {trained}; {result.trained_parameters:,} numbers in all. {how[0].upper()}"
        f"{how[1:]}.{stopped}"
    )


def _scores(result: FineTuneResult) -> str:
    if not result.validations:
        return "There were no recordings to validate with."
    rows = ["| after step | loss | word error rate |", "|---:|---:|---:|"]
    rows += [
        f"| {report.step} | {report.loss:.4f} | {report.word_error_rate:.1f} % |"
        for report in result.validations
    ]
    words = result.validations[-1].words
    table = "\n".join(rows)
    return f"Measured on {words} words of the recordings to validate with:\n\n{table}"
