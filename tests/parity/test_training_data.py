"""Prompts and targets as IBM's notebook for fine-tuning Granite Speech makes them with
transformers' processor: `input_ids` of the prompt, the ids of the text and its end behind them, and
labels of -100 at all but these."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
import torch
import transformers

import mlx_speech
from mlx_speech.training.data import load_data
from mlx_speech.training.options import FineTuneOptions

AUDIO = Path(__file__).parents[1] / "data" / "audio"
NAMES = ["espeak_01.flac", "flite_08.flac", "festival_12.flac"]
TEXTS = ["add apples and milk to the shopping list", "Déjà vu, “naïve” – 42%!", "  a  b  "]
PROMPT = "can you transcribe the speech into a written format?"


@pytest.fixture
def dataset(tmp_path, tiny_folder):
    rows = [
        {"audio": str(AUDIO / name), "text": text, "prompt": prompt}
        for name, text, prompt in zip(NAMES, TEXTS, [None, "write it down: ", None], strict=True)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model, processor = mlx_speech.load(tiny_folder, dtype=mx.float32)
    options = FineTuneOptions(adapter_path=str(tmp_path / "adapters"))
    return load_data(tmp_path, model, processor, options).train


def test_ids_and_labels(dataset, tiny_folder):
    processor = transformers.AutoProcessor.from_pretrained(tiny_folder)
    tokenizer = processor.tokenizer
    batch = dataset.batch(range(3))
    for row, (name, text) in enumerate(zip(NAMES, TEXTS, strict=True)):
        instruction = dataset.examples[row].row.prompt or PROMPT
        chat = [{"role": "user", "content": f"<|audio|>{instruction}"}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        wave = torch.tensor(mlx_speech.load_audio(AUDIO / name).tolist())
        prompts = processor([prompt], wave[None], return_tensors="pt", padding=True)
        # the space around a text is no part of it
        targets = tokenizer([text.strip() + tokenizer.eos_token], return_tensors="pt")
        expected = torch.cat([prompts["input_ids"], targets["input_ids"]], dim=1)[0]
        ignored = torch.full_like(prompts["input_ids"], -100)
        labels = torch.cat([ignored, targets["input_ids"]], dim=1)[0]
        size = len(expected)
        assert batch.input_ids[row, :size].tolist() == expected.tolist()
        assert batch.labels[row].tolist()[:size] == labels.tolist()
        assert set(batch.labels[row].tolist()[size:]) <= {-100}
        audio_tokens = (batch.audio_positions[row] >= 0).sum().item()
        assert (
            audio_tokens
            == (expected == processor.tokenizer.convert_tokens_to_ids("<|audio|>")).sum()
        )
        frames = batch.lengths[row].item()
        assert frames == prompts["input_features"].shape[1]


def test_states(dataset, tiny_folder):
    """What the frozen encoder of the reference gives, which in its notebook runs in each step."""
    reference = transformers.GraniteSpeechForConditionalGeneration.from_pretrained(
        tiny_folder, dtype=torch.float32
    ).eval()
    processor = transformers.AutoProcessor.from_pretrained(tiny_folder)
    for row, name in enumerate(NAMES[:1]):
        wave = torch.tensor(mlx_speech.load_audio(AUDIO / name).tolist())
        features = processor(["<|audio|>"], wave[None], return_tensors="pt")["input_features"]
        with torch.no_grad():
            encoder = getattr(reference, "model", reference).encoder
            states = encoder(features).last_hidden_state[0]
        found = torch.tensor(dataset.audio(row).tolist())
        torch.testing.assert_close(found, states, atol=2e-5, rtol=0)
