"""Granite Speech stage by stage against transformers, float32.

Tolerances are absolute: 1e-4 on logits of size 1 to 30 and on hidden states of the same size.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch

from .random_models import (
    AUDIO,
    ENCODER,
    SPEECH_CASES,
    assert_close,
    assert_logits_match,
    features,
    frame_counts,
    speech_ids,
    tensor,
    text_ids,
)

pytestmark = pytest.mark.filterwarnings("error")
SIZES = [
    pytest.param(name, size, id=f"{name}-{size[0]}x{size[1]}")
    for name, case in SPEECH_CASES.items()
    for size in frame_counts((ENCODER | case.encoder)["context_size"])
]
CASES = list(SPEECH_CASES)
LORA_CASES = [name for name, case in SPEECH_CASES.items() if case.lora]


def audio_tokens(pair, frames: int) -> int:
    config = pair.ours.config
    return -(-frames // config.window_size) * (config.window_size // config.downsample_rate)


def inputs(pair, batch: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """(input_ids, input_features), one recording a row."""
    x = features(batch, frames, pair.ours.config.encoder_config.input_dim)
    return speech_ids(batch, audio_tokens(pair, frames), seed=frames), x


@pytest.fixture
def pair(speech_pair, name):
    """The case's models, with the reference's adapter on."""
    pair = speech_pair(name)
    if pair.has_adapter:
        pair.reference.enable_adapters()
    return pair


@pytest.mark.parametrize(("name", "size"), SIZES)
@torch.no_grad()
def test_encoder_and_projector(pair, name, size):
    """Hidden states within 1e-4, projected audio within 1e-4."""
    x = features(*size, pair.ours.config.encoder_config.input_dim)
    encoded = pair.reference.model.encoder(tensor(x)).last_hidden_state
    projected = pair.reference.model.projector(encoded)
    if not any("encoder" in n and "lora_" in n for n, _ in pair.reference.named_parameters()):
        ours = pair.ours.encoder(mx.array(x))
        assert_close(ours.last_hidden_state, encoded, 1e-4)
        assert_close(pair.ours.get_audio_features(mx.array(x)).pooler_output, projected, 1e-4)
    output = pair.ours(mx.array(inputs(pair, *size)[0]), input_features=mx.array(x))
    assert_close(output.audio_hidden_states, projected, 1e-4)


@pytest.mark.parametrize("name", [n for n in CASES if n != "lora-also-in-encoder"])
@torch.no_grad()
def test_ctc_logits(pair, name):
    """The character head on the last block's output, within 1e-4."""
    config = pair.ours.config.encoder_config
    x = features(3, 2 * config.context_size + 3, config.input_dim)
    hidden = pair.reference.model.encoder(tensor(x)).last_hidden_state[..., -config.hidden_dim :]
    reference = pair.reference.model.encoder.out(hidden)
    assert reference.abs().max() > 1.0
    assert_close(pair.ours.encoder(mx.array(x)).ctc_logits, reference, 1e-4)


@pytest.mark.parametrize(("name", "size"), SIZES)
@torch.no_grad()
def test_logits(pair, name, size):
    """All positions' logits for a prompt with audio, adapter on, within 1e-4."""
    ids, x = inputs(pair, *size)
    reference = pair.reference(input_ids=tensor(ids), input_features=tensor(x)).logits
    ours = pair.ours(mx.array(ids), input_features=mx.array(x))
    assert_logits_match(ours.logits, reference)
    last = pair.ours(mx.array(ids), input_features=mx.array(x), logits_to_keep=1)
    assert_logits_match(last.logits, reference[:, -1:])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_text_only_logits(pair, name):
    """Logits without audio, hence without adapter, within 1e-4."""
    if pair.has_adapter:
        pair.reference.disable_adapters()
    ids = text_ids(3, 20)
    reference = pair.reference(input_ids=tensor(ids)).logits
    assert_logits_match(pair.ours(mx.array(ids)).logits, reference)


@pytest.mark.parametrize("name", LORA_CASES)
@torch.no_grad()
def test_adapter_switch(pair, name):
    """`adapter` overrides the default both ways, within 1e-4; the adapter changes the logits."""
    ids, x = inputs(pair, 1, 17)
    both = []
    for on in (True, False):
        pair.reference.enable_adapters() if on else pair.reference.disable_adapters()
        reference = pair.reference(input_ids=tensor(ids), input_features=tensor(x)).logits
        ours = pair.ours(mx.array(ids), input_features=mx.array(x), adapter=on)
        assert_logits_match(ours.logits, reference)
        plain = text_ids(1, 12)
        reference = pair.reference(input_ids=tensor(plain)).logits
        assert_logits_match(pair.ours(mx.array(plain), adapter=on).logits, reference)
        both.append(reference)
    assert (both[0] - both[1]).abs().max() > 0.1


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", ["two-layers-untied-lora", "five-layers"])
@torch.no_grad()
def test_loss_and_hidden_states(pair, name, padding):
    """Loss within 1e-5 relative, hidden states of the decoder within 1e-4 at real tokens.

    A row's first token has no label: what predicts it is a padding position, which sees nothing.
    """
    ids, x = inputs(pair, 3, 23)
    labels = np.where(ids == AUDIO, -100, ids)
    mask = np.ones_like(ids)
    if padding == "left":
        mask[0, :2], mask[2, :1], labels[:, :3] = 0, 0, -100
    elif padding == "right":
        mask[0, -2:], mask[2, -1:] = 0, 0
    reference = pair.reference(
        input_ids=tensor(ids),
        input_features=tensor(x),
        attention_mask=tensor(mask),
        labels=tensor(labels),
        output_hidden_states=True,
    )
    ours = pair.ours(
        mx.array(ids),
        input_features=mx.array(x),
        attention_mask=mx.array(mask),
        labels=mx.array(labels),
        output_hidden_states=True,
    )
    assert ours.loss.item() == pytest.approx(reference.loss.item(), rel=1e-5)
    real = mask.astype(bool)
    assert_logits_match(mx.array(np.array(ours.logits)[real]), reference.logits[tensor(real)])
    assert len(ours.hidden_states) == len(reference.hidden_states)
    for state, expected in zip(ours.hidden_states, reference.hidden_states, strict=True):
        assert_close(mx.array(np.array(state)[real]), expected[tensor(real)], 1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"num_beams": 2, "repetition_penalty": 1.3}],
    ids=["greedy", "beams", "beams-penalty"],
)
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_generate_from_audio(pair, name, options):
    """The same ids, batch of 2; the cache and the adapter carry over to the later tokens."""
    ids, x = inputs(pair, 2, 37)
    options = {"max_new_tokens": 12} | options
    reference = pair.reference.generate(
        input_ids=tensor(ids),
        input_features=tensor(x),
        attention_mask=torch.ones_like(tensor(ids)),
        do_sample=False,
        **options,
    )
    ours = pair.ours.generate(mx.array(ids), input_features=mx.array(x), **options)
    assert ours.tolist() == reference.tolist()
    assert len(np.unique(reference[:, ids.shape[1] :])) > 3


@pytest.mark.parametrize("name", ["two-layers-untied-lora", "one-layer"])
@torch.no_grad()
def test_generate_from_padded_text(pair, name):
    """The same ids for text prompts of different lengths, padded on the left, adapter off."""
    lengths = (9, 4, 6)
    ids, mask = text_ids(3, 9), np.ones((3, 9), np.int64)
    for row, length in enumerate(lengths):
        ids[row, : 9 - length], mask[row, : 9 - length] = 1, 0
    options = {"max_new_tokens": 14, "eos_token_id": [0, 7, 9]}
    reference = pair.reference.generate(
        input_ids=tensor(ids), attention_mask=tensor(mask), do_sample=False, **options
    )
    ours = pair.ours.generate(mx.array(ids), attention_mask=mx.array(mask), **options)
    assert ours.tolist() == reference.tolist()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_recordings_of_different_lengths(pair, name):
    """In our padded batch each recording gets what transformers gives it alone: projected audio
    within 1e-5 relative to its size (1e-4 where values are large), the same generated ids.

    transformers' own batch lets padding leak, so it is asked one by one.
    """
    config = pair.ours.config
    context = config.encoder_config.context_size
    lengths = (2 * context + 5, 8, context)
    recordings = [
        features(1, length, config.encoder_config.input_dim, seed=i)[0]
        for i, length in enumerate(lengths)
    ]
    prompts = [speech_ids(1, audio_tokens(pair, n), seed=n)[0] for n in lengths]
    x = np.zeros((3, max(lengths), config.encoder_config.input_dim), np.float32)
    ids = np.full((3, max(map(len, prompts))), 1)
    feature_mask = np.zeros((3, audio_tokens(pair, max(lengths))), bool)
    for row, (recording, prompt) in enumerate(zip(recordings, prompts, strict=True)):
        x[row, : len(recording)] = recording
        ids[row, -len(prompt) :] = prompt
        feature_mask[row, : audio_tokens(pair, len(recording))] = True
    batch = {
        "input_features": mx.array(x),
        "input_features_mask": mx.array(feature_mask),
        "feature_lengths": mx.array(lengths),
    }
    options = {"max_new_tokens": 10, "eos_token_id": 7}
    mask = mx.array(np.arange(ids.shape[1])[None] >= [[ids.shape[1] - len(p)] for p in prompts])
    output = pair.ours(mx.array(ids), attention_mask=mask, **batch)
    generated = pair.ours.generate(mx.array(ids), attention_mask=mask, **batch, **options)
    for row, (recording, prompt) in enumerate(zip(recordings, prompts, strict=True)):
        alone = {
            "input_ids": tensor(prompt[None]),
            "input_features": tensor(recording[None]),
            "attention_mask": torch.ones(1, len(prompt), dtype=torch.int64),
        }
        reference = pair.reference(**alone)
        tokens = audio_tokens(pair, len(recording))
        projected = reference.audio_hidden_states[0]
        assert_close(output.audio_hidden_states[row, :tokens], projected, 1e-5)
        assert_logits_match(output.logits[row, -len(prompt) :], reference.logits[0])
        expected = pair.reference.generate(**alone, do_sample=False, **options)[0].tolist()
        got = generated[row, -len(prompt) - (generated.shape[1] - ids.shape[1]) :].tolist()
        assert got[: len(expected)] == expected
        assert set(got[len(expected) :]) <= {1}
