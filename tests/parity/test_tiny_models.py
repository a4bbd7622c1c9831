"""The tiny Granite Speech NAR and TurboCTC beside the reference: every bundled
recording, float32."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import tiny_nar
import torch
from conftest import DATA
from make_tiny_reference import LONGEST_SECONDS, NAR, TURBOCTC, TurboCTC
from tiny_training import held_out
from torch_nar import collapse

from mlx_speech import load

from .random_models import assert_close

RECORDINGS = held_out()


def recorded(name: str) -> list[dict]:
    return json.loads((DATA / "reference" / f"tiny_{name}_reference.json").read_text())


@torch.no_grad()
def test_turboctc():
    """Features, and logits of up to 26, within 1e-4; the same labels of all frames, and texts."""
    reference = TurboCTC()
    model, processor = load(TURBOCTC, dtype=mx.float32)
    for recording, entry in zip(RECORDINGS, recorded("turboctc"), strict=True):
        assert reference(recording.wave).items() <= entry.items()
        expected = reference.processor(recording.wave, sampling_rate=16000, return_tensors="pt")
        inputs = processor(mx.array(recording.wave))
        assert_close(inputs["input_features"], expected["input_features"], 1e-4)
        assert_close(model(**inputs).logits, reference.model(**expected).logits, 1e-4)
        labels = reference.model.generate(**expected).tolist()
        assert model.generate(**inputs).tolist() == labels
        assert processor.batch_decode(labels) == reference.processor.batch_decode(labels)


@torch.no_grad()
def test_nar(tmp_path):
    """Features, and what the encoder, its head and the editor make of the reference's, within 1e-4;
    the same tokens in the end."""
    reference = NAR()
    model, processor = load(tiny_nar.checkpoint(tmp_path), dtype=mx.float32)
    short = [r for r in RECORDINGS if len(r.wave) <= LONGEST_SECONDS * 16000]
    for recording, entry in zip(short, recorded("nar"), strict=True):
        assert reference(recording.wave).items() <= entry.items()
        wave = torch.from_numpy(recording.wave)[None]
        features = processor(mx.array(recording.wave))["input_features"]
        expected = reference.model.features(wave)
        assert_close(features, expected, 1e-4)
        output = model(mx.array(expected.numpy()))
        encoded = output.encoder_output
        scores, states = reference.model.listen(wave)
        assert_close(encoded.last_hidden_state, torch.cat(states, -1), 1e-4)
        drafted = model.bpe_logits(encoded.last_hidden_state, encoded.non_blank)[0]
        # in silence the weights of what is pooled are little more than what rounding leaves
        frames = (encoded.non_blank[0, 4 * n :][:4] for n in range(len(drafted)))
        spoken = np.array([[weights.max().item() > 0.5] for weights in frames])
        assert_close(drafted * mx.array(spoken), scores[0] * torch.tensor(spoken), 1e-4)
        (edited,) = reference.model.edit(states, [collapse(scores[0])])
        assert_close(output.logits[0], edited, 1e-4)
        assert model.generate(features)[0].tolist() == entry["ids"]
