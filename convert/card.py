"""The model card of a conversion: README.md, with the metadata that the Hub reads at its top."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_speech import __version__
from mlx_speech.checkpoint.card import licence, link_to, own_tags, source_metadata
from mlx_speech.checkpoint.folder import read_json
from mlx_speech.checkpoint.weights import ADAPTER_CONFIG
from mlx_speech.loading import architecture

from .plan import Conversion, Plan, size

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from .check import CheckReport

#: what of the source's metadata is true of the conversion as well; results of evaluations are not
_CARRIED = ("language", "license", "license_name", "license_link", "datasets", "pipeline_tag")
_TAG = "mlx"

_SPEECH = """\
import mlx_speech
model = mlx_speech.load("{name}")
print(mlx_speech.transcribe("talk.m4a", model).text)
"""
_TEXT = """\
import mlx_speech
model, tokenizer = mlx_speech.load("{name}")
print(mlx_speech.generate(model, tokenizer, "Once upon a time", max_new_tokens=100))
"""


def model_card(
    conversion: Conversion,
    source: Path,
    *,
    name: str | None = None,
    report: CheckReport | None = None,
) -> ModelCard:
    """Describe a conversion.

    Args:
        conversion: what was converted.
        source: folder of what it was made from; its card, if there is one, gives the licence, the
            languages and tags.
        name: repository that it will be in; by default it goes by its folder.
        report: what a check of it found.
    """
    from huggingface_hub import ModelCard, ModelCardData

    speech = architecture(read_json(source).get("model_type")).is_speech
    metadata = source_metadata(source)
    carried = {key: metadata[key] for key in _CARRIED if metadata.get(key)}
    # of a folder that is not the Hub's nobody knows the repository; what that was made from stays
    known = "/" in conversion.source
    base_model = conversion.source if known else metadata.get("base_model")
    if known and conversion.bits is not None:
        carried["base_model_relation"] = "quantized"
    task = "automatic-speech-recognition" if speech else "text-generation"
    about = {"base_model": base_model, "library_name": "mlx", "tags": [*own_tags(metadata), _TAG]}
    data = ModelCardData(**{"pipeline_tag": task, **carried, **about})
    name, link = name or conversion.folder.name, link_to(conversion.source)
    parts = [
        f"# {name.rpartition('/')[2]}",
        f"{link}, converted to [MLX](https://github.com/ml-explore/mlx) by mlx_speech "
        f"{__version__}.",
        "## How to run it",
        f"```python\n{(_SPEECH if speech else _TEXT).format(name=name)}```",
        "## What is in it",
        *_weights(conversion, (source / ADAPTER_CONFIG).is_file()),
        *(_check(report) if report is not None else []),
        "## Licence",
        licence(metadata, link),
    ]
    text = "\n\n".join(parts)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def _weights(conversion: Conversion, adapted: bool) -> list[str]:
    """What was quantized how, and what that came to."""
    plan = conversion.plan
    lines = ["| part | stored as | before | after |", "|---|---|---:|---:|"]
    for part, rows in plan.parts().items():
        lines.append(f"| {part} | {_stored(rows)} | {size(rows.before)} | {size(rows.after)} |")
    lines.append(f"| **all** | | {size(plan.before)} | {size(plan.after)} |")
    paragraphs = ["\n".join(lines)]
    if conversion.bits is not None:
        how = "" if conversion.recipe is None else f" by the recipe `{conversion.recipe}`"
        paragraphs.append(f"Quantized{how}; what is not, such as norms, is in {conversion.dtype}.")
    if conversion.learned is not None:
        paragraphs.append(f"Method: {conversion.learned}.")
    if plan.notes:
        paragraphs.append("\n".join(f"- {note}" for note in plan.notes))
    if adapted and conversion.fused_adapter is None:
        awq = conversion.learned is not None and conversion.learned.method == "awq"
        how = "made for the weights as they are now" if awq else "as it was"
        text = f"The LoRA adapter lies beside the weights, {how}, and is on where there is audio."
        paragraphs.append(text)
    if conversion.fused_adapter is not None:
        paragraphs.append(_fused(conversion.fused_adapter))
    return paragraphs


def _fused(adapter: dict[str, Any]) -> str:
    """Whose low-rank terms and whole modules are in the weights."""
    if "name" not in adapter:
        return (
            "The LoRA adapter is part of the weights: this model transcribes and translates as the "
            "original does, but does not answer texts as the original does with its adapter off."
        )
    own = ", over the original's own adapter" if "over" in adapter else ""
    whole = ", ".join(f"`{name}`" for name in adapter.get("modules_to_save") or ())
    replaced = f" Modules that it replaces as a whole: {whole}." if whole else ""
    return (
        f"The adapter `{adapter['name']}` is part of the weights{own}: this model transcribes and "
        f"translates as the original does with it on.{replaced}"
    )


def _stored(part: Plan) -> str:
    """How a part's bytes are stored, the most common way first; single layers do not count."""
    counts: dict[str, int] = {}
    for row in part.rows:
        if row.settings is None:
            kind = row.dtype
        else:
            mode = "" if row.settings["mode"] == "affine" else f" ({row.settings['mode']})"
            kind = f"{row.settings['bits']} bits{mode}, groups of {row.settings['group_size']}"
        counts[kind] = counts.get(kind, 0) + row.after
    shares = {kind: 100 * nbytes / part.after for kind, nbytes in counts.items()}
    kinds = sorted((k for k in shares if shares[k] >= 1), key=lambda k: -shares[k])
    return "; ".join(f"{kind} ({shares[kind]:.0f} %)" for kind in kinds)


def _check(report: CheckReport) -> list[str]:
    from .report import check_markdown

    return [
        "## How close it is",
        "Measured against the original: word error rate of the transcripts, the original's being "
        "the reference; relative error of what each stage computes, the logits along the "
        "original's transcript; KL divergence of the distributions that these give, in nats. On a "
        f"{report.machine}.",
        check_markdown(report),
    ]
