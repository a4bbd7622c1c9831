"""The bundled checkpoint as a Plus variant that transcribes as it does: its encoder exports another
layer, which the projector gives no weight."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
from conftest import TINY, edit_json

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}

#: it was trained without a system message, or a space behind the audio
TEMPLATE = """\
{%- for message in messages if message['role'] != 'system' %}
{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' }}
{{- message['content'] | replace('<|audio|> ', '<|audio|>') + '<|end_of_text|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_of_role|>assistant<|end_of_role|>' + (prefix_text or '') }}
{%- endif %}
"""


def make_plus(folder: Path, layout: str = "B", **text_config) -> Path:
    """Write it.

    Args:
        layout: of the tensors' names: A, that of released files, B, that of transformers >= 5 in
            memory, or C, that of the update of October 2026.
        text_config: changes there.
    """
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*processor_config.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    config = json.loads((TINY / "config.json").read_text())
    edit_json(
        folder / "config.json",
        model_type="granite_speech_plus",
        architectures=["GraniteSpeechPlusForConditionalGeneration"],
        encoder_config={
            **config["encoder_config"],
            "model_type": "granite_speech_plus_encoder",
            "cat_hidden_layers": [3],
        },
        projector_config={**config["projector_config"], "encoder_hidden_size": 256},
        text_config={**config["text_config"], **text_config},
    )
    weights = {}
    for name, value in mx.load(str(TINY / "model.safetensors")).items():
        if ".crossattention.attention.key.w" in name or ".crossattention.attention.value.w" in name:
            value = mx.concatenate([mx.zeros_like(value), value], axis=1)
        weights[_named(name, layout)] = value
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


def _named(name: str, layout: str) -> str:
    if layout == "B":
        return f"model.{name.replace('language_model.model.', 'language_model.', 1)}"
    if layout == "C":
        return name.replace("language_model.model.", "language_model.model.model.", 1)
    return name
