"""How Granite Speech is called and what it returns, beside transformers; float32.

Tolerances are absolute: 1e-4 on logits of size 1 to 30 and on hidden states, 1e-5 on attention
weights and losses.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch

from .random_models import (
    AUDIO,
    SPEECH_CASES,
    Pair,
    assert_close,
    assert_logits_match,
    call,
    features,
    field_names,
    save_speech,
    speech_ids,
    tensor,
    text_ids,
)

ROWS, FRAMES, TOKENS = 2, 23, 6
FLAGS = {"output_attentions": True, "output_hidden_states": True}
PLAIN, LORA, PLUS = "three-layers-untied", "two-layers-untied-lora", "plus-input-and-middle"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """By the name of a case; attention is not fused in the reference's decoder, which has weights
    only then."""
    made: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            reference = save_speech(SPEECH_CASES[name], folder)
            reference.model.language_model.set_attn_implementation("eager")
            made[name] = Pair.load(reference, folder)
        return made[name]

    return get


@pytest.fixture(params=[PLAIN, LORA, PLUS])
def pair(pairs, request) -> Pair:
    return pairs(request.param)


def recordings(pair: Pair, frames: int = FRAMES) -> np.ndarray:
    return features(ROWS, frames, pair.ours.config.encoder_config.input_dim)


def prompts(pair: Pair, frames: int = FRAMES) -> np.ndarray:
    config = pair.ours.config
    windows = -(-frames // config.window_size)
    return speech_ids(ROWS, windows * (config.window_size // config.downsample_rate), seed=3)


def test_names_and_order(pair):
    """Arguments by position, the items in their order, and the tuple they can be."""
    given = prompts(pair), recordings(pair), None, np.ones_like(prompts(pair))
    ours, theirs = call(pair, *given, labels=prompts(pair), **FLAGS)
    assert list(ours) == field_names(theirs)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert_close(ours["logits"], theirs["logits"], 1e-4)
    assert_close(ours[1], theirs[1], 1e-4)
    for more, length in (({}, 3), ({"use_cache": False}, 2), (FLAGS, 5)):
        ours, theirs = call(pair, *given, return_dict=False, **more)
        assert type(ours) is tuple
        assert len(ours) == len(theirs) == length
        assert_close(ours[0], theirs[0], 1e-4)
        assert_close(ours[-1], theirs[-1], 1e-4)


def test_hidden_states_and_attentions(pair):
    """Every layer's of the decoder."""
    ours, theirs = call(pair, prompts(pair), recordings(pair), **FLAGS)
    for name, tolerance in (("hidden_states", 1e-4), ("attentions", 1e-5)):
        assert len(ours[name]) == len(theirs[name]) > 1
        for found, expected in zip(ours[name], theirs[name], strict=True):
            assert_close(found, expected, tolerance)
    assert_close(ours.audio_hidden_states, theirs.audio_hidden_states, 1e-4)


def test_steps_with_the_cache_that_came_back(pair):
    """Only the first call brings audio; the adapter, once on, stays on for its cache. Masks, losses
    and positions of later calls count what is cached."""
    ids, x = prompts(pair), recordings(pair)
    mask = np.ones_like(ids)
    mask[0, :2] = 0
    ours, theirs = call(pair, ids, x, attention_mask=mask)
    for step in range(3):
        more = text_ids(ROWS, 3, seed=step)
        mask = np.concatenate([mask, np.ones_like(more)], axis=1)
        inputs = {"attention_mask": mask, "labels": more, "logits_to_keep": 0}
        with torch.no_grad():
            theirs = pair.reference(
                tensor(more),
                past_key_values=theirs.past_key_values,
                **{k: tensor(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items()},
            )
        cached = mask.shape[1] - 3
        ours = pair.ours(
            mx.array(more),
            past_key_values=ours.past_key_values,
            cache_position=mx.arange(cached, cached + 3),
            **{k: mx.array(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items()},
        )
        assert_logits_match(ours.logits, theirs.logits)
        assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)


@pytest.mark.parametrize("keep", [1, 4, np.array([2, 0, -1])], ids=str)
def test_logits_to_keep(pair, keep):
    ours, theirs = call(pair, prompts(pair), recordings(pair), logits_to_keep=keep)
    assert_logits_match(ours.logits, theirs.logits)


def test_loss_of_the_logits_to_keep(pair):
    ids = prompts(pair)
    inputs = {"attention_mask": np.ones_like(ids), "labels": ids[:, -4:].copy()}
    ours, theirs = call(pair, ids, recordings(pair), logits_to_keep=4, **inputs)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)


@torch.no_grad()
def test_embeddings_instead_of_ids(pair):
    """With the audio merged into them, by the method that does it."""
    ids, x = prompts(pair), recordings(pair)
    audio = pair.reference.get_audio_features(tensor(x)).pooler_output
    tokens = audio.shape[1]
    mask = np.ones((ROWS, tokens), bool)
    mask[1, -2:] = False
    ids[1][np.flatnonzero(ids[1] == AUDIO)[-2:]] = AUDIO + 1
    merge = pair.reference.model.get_merged_audio_embeddings
    expected = merge(tensor(ids), audio, tensor(mask))
    given = mx.array(ids), mx.array(audio.numpy()), mx.array(mask)
    embeds = pair.ours.get_merged_audio_embeddings(*given)
    assert_close(embeds, expected, 1e-5)
    reference = pair.reference(inputs_embeds=expected).logits
    assert_logits_match(pair.ours(inputs_embeds=embeds, adapter=True).logits, reference)


@torch.no_grad()
def test_audio_features_and_the_states_of_the_encoder(pair):
    """Also in the first block's input and where the CTC posteriors were added."""
    x = recordings(pair, 2 * pair.ours.config.encoder_config.context_size + 1)
    theirs = pair.reference.get_audio_features(tensor(x), output_hidden_states=True)
    ours = pair.ours.get_audio_features(mx.array(x), output_hidden_states=True)
    assert_close(ours.pooler_output, theirs.pooler_output, 1e-4)
    assert len(ours.hidden_states) == len(theirs.hidden_states) > 2
    for found, expected in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_close(found, expected, 1e-4)
    encoder = pair.reference.model.encoder(tensor(x), return_dict=False)
    assert_close(pair.ours.encoder(mx.array(x), return_dict=False)[0], encoder[0], 1e-4)


@pytest.mark.parametrize("name", [PLAIN, LORA])
def test_foreign_arrays(pairs, name):
    """Those of NumPy and torch are taken as they are."""
    pair = pairs(name)
    ids, x = prompts(pair), recordings(pair)
    expected = pair.ours(mx.array(ids), mx.array(x), labels=mx.array(ids))
    for kind in (np.asarray, tensor):
        mask = kind(np.ones_like(ids))
        found = pair.ours(kind(ids), kind(x), attention_mask=mask, labels=kind(ids))
        assert mx.array_equal(found.logits, expected.logits).item()
        assert found.loss.item() == pytest.approx(expected.loss.item())
