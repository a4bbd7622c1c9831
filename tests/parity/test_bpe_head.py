"""The encoder's BPE head against the same computed on transformers' encoder, which lacks it."""

from __future__ import annotations

import mlx.core as mx
import pytest
import torch
import transformers
from conftest import find_recording
from safetensors.torch import load_file

from mlx_speech import load_audio

from .random_models import assert_close, tensor

RECORDINGS = ["espeak_00", "espeak_04", "festival_13", "flite_08"]


@pytest.fixture(scope="module")
def reference(tiny_folder):
    loaded = transformers.GraniteSpeechForConditionalGeneration.from_pretrained(
        tiny_folder, dtype=torch.float32
    )
    return loaded.model.encoder.eval()


@pytest.fixture(scope="module")
def head(tiny_folder):
    tensors = load_file(tiny_folder / "out_llm.safetensors")
    return [tensors[name].float() for name in ("weight", "bias")]


@pytest.mark.parametrize("name", RECORDINGS)
@torch.no_grad()
def test_pooled_frames_and_labels(reference, head, tiny, name):
    """Weights of frames within 1e-5, logits of up to 30 within 1e-3, and the same labels."""
    model, processor = tiny
    features = processor.audio_processor.log_mel(
        load_audio(find_recording(f"synthetic/{name}.flac"))
    )
    middle = []
    # a copy: what self-conditioning adds is added in place
    hook = reference.layers[reference.config.num_layers // 2 - 1].register_forward_hook(
        lambda layer, inputs, output: middle.append(output.clone())
    )
    frames = reference(tensor(features)[None]).last_hidden_state[0]
    hook.remove()
    weights = 1 - reference.out(middle[0][0]).softmax(-1)[:, 0]
    padding = -len(frames) % 4
    groups = torch.nn.functional.pad(frames, (0, 0, 0, padding)).reshape(-1, 4, frames.shape[-1])
    shares = torch.nn.functional.pad(weights, (0, padding)).reshape(-1, 4, 1)
    pooled = (groups * shares / (shares.sum(1, keepdim=True) + 1e-8)).sum(1)
    expected = torch.nn.functional.linear(pooled, *head)

    ours = model.encoder(features[None])
    logits = model.bpe_logits(ours.last_hidden_state, ours.non_blank)[0]
    assert_close(ours.non_blank[0], weights, 1e-5)
    # where all are blanks, to the last digit of a float32, it is rounding that weighs them
    spoken = shares.sum((1, 2)) > 0.01
    assert spoken.sum() > 10
    assert_close(logits[mx.array(spoken.nonzero()[:, 0].numpy())], expected[spoken], 1e-3)
    labels = mx.argmax(logits, axis=-1).tolist()
    assert labels == expected.argmax(-1).tolist()
    assert len(set(labels)) > 3
