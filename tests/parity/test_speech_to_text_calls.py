"""How Speech2Text is called and what it returns, beside transformers; float32.

Tolerances are absolute: 1e-4 on logits of size 1 to 30 and on hidden states, 1e-5 on attention
weights and losses.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import Speech2TextConfig, Speech2TextForConditionalGeneration, Speech2TextModel
from transformers.modeling_outputs import BaseModelOutput

from mlx_speech.models.speech_to_text.outputs import BaseModelOutput as OurOutput

from .random_models import (
    Pair,
    assert_close,
    assert_logits_match,
    call,
    features,
    field_names,
    randomize,
    tensor,
    text_ids,
)
from .test_speech_to_text import SMALL, VOCAB, WIDTH

CLASSES = [Speech2TextModel, Speech2TextForConditionalGeneration]
FLAGS = {"output_attentions": True, "output_hidden_states": True}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """By class, the same weights in both."""
    config = Speech2TextConfig(**SMALL)
    whole = Speech2TextForConditionalGeneration(config).eval()
    randomize(whole, 31)
    made = {}
    for model_class in CLASSES:
        folder = tmp_path_factory.mktemp(model_class.__name__)
        reference = whole if model_class is not Speech2TextModel else whole.model
        reference.save_pretrained(folder)
        made[model_class] = Pair.load(reference, folder)
    return made


@pytest.fixture
def pair(pairs) -> Pair:
    return pairs[Speech2TextForConditionalGeneration]


X = features(2, 21, WIDTH)
IDS = text_ids(2, 7, vocab=VOCAB)


@pytest.mark.parametrize("model_class", CLASSES, ids=lambda c: c.__name__)
def test_names_and_order(pairs, model_class):
    """Arguments by position, the class of an output, its items in their order, and the tuple it
    can be."""
    given = X, np.ones(X.shape[:2], np.int64), IDS, np.ones_like(IDS)
    for more, length in (({}, 3), ({"use_cache": False}, 2), (FLAGS, 8)):
        ours, theirs = call(pairs[model_class], *given, **more)
        assert type(ours).__name__ == type(theirs).__name__
        assert list(ours) == field_names(theirs)
        assert len(ours) == length
        ours, theirs = call(pairs[model_class], *given, return_dict=False, **more)
        assert type(ours) is tuple
        assert len(ours) == len(theirs) == length
        assert_close(ours[0], theirs[0], 1e-4)
    for encoder in (pairs[model_class].ours.get_encoder(), pairs[model_class].ours.get_encoder()):
        assert len(encoder(mx.array(X), return_dict=False, **FLAGS)) == 3


def test_loss_comes_first(pair):
    labels = np.where(IDS % 5 == 0, -100, IDS)
    ours, theirs = call(pair, X, labels=labels, return_dict=False)
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=1e-5)
    assert_logits_match(ours[1], theirs[1])


@pytest.mark.parametrize("again", ["input_features", "encoder_outputs", "nothing"])
def test_steps_with_the_cache_that_came_back(pair, again):
    """The recording may be given again or not: what counts is what the cache holds."""
    mask = np.ones(X.shape[:2], np.int64)
    mask[1, -5:] = 0
    x = np.where(mask[..., None], X, 0)
    whole = pair.ours(mx.array(x), mx.array(mask), mx.array(IDS)).logits
    output = pair.ours(mx.array(x), mx.array(mask), mx.array(IDS[:, :3]))
    pieces = [output.logits]
    for step in range(3, 7):
        given = {
            "input_features": {"input_features": mx.array(x), "attention_mask": mx.array(mask)},
            "encoder_outputs": {"encoder_outputs": (output.encoder_last_hidden_state,)},
            "nothing": {},
        }[again]
        output = pair.ours(
            **given,
            decoder_input_ids=mx.array(IDS[:, step : step + 1]),
            past_key_values=output.past_key_values,
            cache_position=mx.array([step]),
        )
        pieces.append(output.logits)
    assert_close(mx.concatenate(pieces, axis=1), tensor(np.array(whole)), 1e-4)


@pytest.mark.parametrize("boolean", [True, False])
def test_masks_of_four_axes(pair, boolean):
    """Where each position of the decoder may look; a boolean one is as one that is added."""
    allowed = np.tril(np.random.default_rng(3).random((2, 1, 7, 7)) < 0.6) | np.eye(7, dtype=bool)
    added = np.where(allowed, 0, -1e9).astype(np.float32)
    with torch.no_grad():
        expected = pair.reference(tensor(X), None, tensor(IDS), tensor(added)).logits
    mask = mx.array(allowed if boolean else added)
    assert_logits_match(pair.ours(mx.array(X), None, mx.array(IDS), mask).logits, expected)


@pytest.mark.parametrize("model_class", CLASSES, ids=lambda c: c.__name__)
def test_encoder_outputs_of_every_kind(pairs, model_class):
    """An output, the reference's too, or a tuple of one to three."""
    pair = pairs[model_class]
    inputs = {"decoder_input_ids": IDS, "attention_mask": np.ones(X.shape[:2], np.int64)}
    encoded = pair.ours.get_encoder()(mx.array(X), **FLAGS)
    _, theirs = call(pair, X, **inputs, **FLAGS)
    named = {name: mx.array(IDS) if "ids" in name else mx.array(v) for name, v in inputs.items()}
    foreign = BaseModelOutput(last_hidden_state=theirs.encoder_last_hidden_state)
    kinds = [encoded, encoded.to_tuple(), encoded[:1], [*encoded[:2]], foreign]
    kinds += [OurOutput(last_hidden_state=encoded[0])]
    for kind in kinds:
        found = pair.ours(encoder_outputs=kind, **named)
        assert_close(found[0], theirs[0], 1e-4)
    assert len(pair.ours(encoder_outputs=encoded[:2], **named).encoder_hidden_states) == 3


def test_foreign_arrays(pair):
    """Those of NumPy and torch are taken as they are."""
    mask = np.ones(X.shape[:2], np.int64)
    expected = pair.ours(mx.array(X), mx.array(mask), labels=mx.array(IDS))
    for kind in (np.asarray, tensor):
        found = pair.ours(kind(X), kind(mask), kind(IDS), kind(np.ones_like(IDS)))
        assert found.logits.shape == expected.logits.shape
        found = pair.ours(kind(X), kind(mask), labels=kind(IDS))
        assert mx.array_equal(found.logits, expected.logits).item()


@torch.no_grad()
def test_decoder_alone(pair):
    """`get_decoder` takes what the reference's takes."""
    frames = pair.reference.model.encoder(tensor(X)).last_hidden_state
    mask = np.ones(frames.shape[:2], np.int64)
    mask[1, -2:] = 0
    ids = tensor(IDS)
    decoder = pair.reference.model.decoder
    theirs = decoder(ids, None, frames, tensor(mask), **FLAGS)
    given = mx.array(IDS), None, mx.array(frames.numpy()), mx.array(mask)
    ours = pair.ours.get_decoder()(*given, **FLAGS)
    assert type(ours).__name__ == type(theirs).__name__
    assert list(ours) == field_names(theirs)
    for name in ("hidden_states", "attentions", "cross_attentions"):
        for found, expected in zip(ours[name], theirs[name], strict=True):
            assert_close(found, expected, 1e-4)
