"""How text decoders are called and what they return, beside transformers; float32.

Tolerances are absolute: 1e-4 on logits of size 1 to 30 and on hidden states, 1e-5 on attention
weights, losses and classifications.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import (
    GraniteForCausalLM,
    GraniteModel,
    Jais2ForCausalLM,
    Jais2Model,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
)
from transformers.loss.loss_utils import ForCausalLMLoss, ForMaskedLMLoss

from mlx_speech.models.loss import causal_lm_loss, cross_entropy

from .random_models import (
    TEXT,
    Pair,
    assert_close,
    assert_logits_match,
    call,
    field_names,
    save_decoder,
    tensor,
    text_ids,
)

WITH_HEAD = {"granite": GraniteForCausalLM, "jais2": Jais2ForCausalLM, "llama": LlamaForCausalLM}
BARE = {"granite": GraniteModel, "jais2": Jais2Model, "llama": LlamaModel}
CLASSIFIER = {"classifier": LlamaForSequenceClassification}
ALL = [*WITH_HEAD.values(), *BARE.values(), *CLASSIFIER.values()]
ROWS, LENGTH = 3, 9


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """By class; attention is not fused in the reference, which has weights only then."""
    pairs: dict[type, Pair] = {}

    def get(model_class: type) -> Pair:
        if model_class not in pairs:
            folder = tmp_path_factory.mktemp(model_class.__name__)
            reference = save_decoder(folder, 41, model_class, num_labels=4)
            reference.set_attn_implementation("eager")
            pairs[model_class] = Pair.load(reference, folder)
        return pairs[model_class]

    return get


@pytest.fixture(params=list(WITH_HEAD))
def decoder(pair, request) -> Pair:
    return pair(WITH_HEAD[request.param])


def padded(side: str) -> np.ndarray:
    mask = np.ones((ROWS, LENGTH), np.int64)
    for row, padding in enumerate((0, 4, 2)):
        mask[row, :padding] = 0
    return {"none": np.ones_like(mask), "left": mask, "right": mask[:, ::-1].copy()}[side]


@pytest.mark.parametrize("model_class", ALL, ids=lambda c: c.__name__)
def test_names_and_order(pair, model_class):
    """The class of an output, its items in their order, and the tuple it can be."""
    ids = text_ids(ROWS, LENGTH)
    flags = {"output_attentions": True, "output_hidden_states": True}
    ours, theirs = call(pair(model_class), ids, **flags)
    assert type(ours).__name__ == type(theirs).__name__
    assert list(ours) == field_names(theirs)
    mx.eval(ours)
    for given, length in (({}, 2), ({"use_cache": False}, 1), (flags, 4)):
        ours, theirs = call(pair(model_class), ids, return_dict=False, **given)
        assert type(ours) is tuple
        assert len(ours) == len(theirs) == length
        assert_close(ours[0], theirs[0], 1e-4)


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_attentions(decoder, side):
    """Every layer's weights, hidden states, logits and the loss, through a cache as well."""
    ids, mask = text_ids(ROWS, LENGTH), padded(side)
    real = mask.astype(bool)
    flags = {"output_attentions": True, "output_hidden_states": True}
    inputs = {"attention_mask": mask, "labels": np.where(real, ids, -100)}
    ours, theirs = call(decoder, ids, **inputs, **flags)
    assert len(ours.attentions) == len(theirs.attentions) == 2
    for found, expected in zip(ours.attentions, theirs.attentions, strict=True):
        assert found.shape == expected.shape == (ROWS, 4, LENGTH, LENGTH)
        rows = np.array(found).swapaxes(1, 2)[real]
        assert_close(mx.array(rows), expected.transpose(1, 2)[tensor(real)], 1e-5)
    for found, expected in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_close(mx.array(np.array(found)[real]), expected[tensor(real)], 1e-4)
    assert_logits_match(mx.array(np.array(ours.logits)[real]), theirs.logits[tensor(real)])
    if side != "left":  # where a padding position is asked for the first token
        assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=1e-5)
    more = {"attention_mask": np.concatenate([mask, np.ones((ROWS, 2), int)], axis=1), **flags}
    outputs = []
    for model, kind, before in (
        (decoder.ours, mx.array, ours),
        (decoder.reference, tensor, theirs),
    ):
        given = {k: kind(v) if isinstance(v, np.ndarray) else v for k, v in more.items()}
        with torch.no_grad():
            past = before.past_key_values
            outputs.append(model(kind(text_ids(ROWS, 2, 5)), past_key_values=past, **given))
    ours, theirs = outputs
    assert_logits_match(ours.logits, theirs.logits)
    for found, expected in zip(ours.attentions, theirs.attentions, strict=True):
        assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_itself(decoder, side):
    """Every position as in the reference's fused attention, what is padding too: with padding on
    the left, the loss asks it for the first token."""
    ids, mask = text_ids(ROWS, LENGTH), padded(side)
    labels = np.where(mask == 1, ids, -100)
    decoder.reference.set_attn_implementation("sdpa")
    try:
        flags = {"output_hidden_states": True}
        ours, theirs = call(decoder, ids, attention_mask=mask, labels=labels, **flags)
    finally:
        decoder.reference.set_attn_implementation("eager")
    assert_logits_match(ours.logits, theirs.logits)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=1e-5)
    for found, expected in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_close(found, expected, 1e-4)


def test_by_position(decoder):
    """Every argument that the reference takes by position."""
    ids, mask = text_ids(ROWS, LENGTH), padded("right")
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    labels = np.where(mask == 1, ids, -100)
    ours, theirs = call(decoder, ids, mask, positions, None, None, labels, False)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=1e-5)
    assert ours.past_key_values is theirs.past_key_values is None
    embeds = np.random.default_rng(3).normal(0, 0.4, (2, 5, TEXT["hidden_size"]))
    embeds = embeds.astype(np.float32)
    ours, theirs = call(decoder, None, None, None, None, embeds, None, True, 2)
    assert_logits_match(ours.logits, theirs.logits)
    assert ours.past_key_values[0].length == theirs.past_key_values.get_seq_length() == 5


def test_use_cache(decoder):
    """A cache comes back by default, goes on, and can be declined by call or configuration."""
    ids = text_ids(ROWS, LENGTH)
    whole, _ = call(decoder, ids)
    first = decoder.ours(mx.array(ids[:, :6]))
    second = decoder.ours(mx.array(ids[:, 6:]), past_key_values=first.past_key_values)
    assert second.past_key_values is first.past_key_values
    assert np.abs(np.array(second.logits - whole.logits[:, 6:])).max() < 1e-4
    # a cache that is given is used whatever is said
    given = decoder.ours.make_cache()
    output = decoder.ours(mx.array(ids), past_key_values=given, use_cache=False)
    assert output.past_key_values is given
    assert given[0].length == LENGTH
    config = decoder.ours.config
    config.use_cache = False
    try:
        assert decoder.ours(mx.array(ids)).past_key_values is None
        assert len(decoder.ours(mx.array(ids), use_cache=True).past_key_values) == 2
    finally:
        config.use_cache = True


def test_flags_of_the_configuration(decoder):
    names = ("output_attentions", "output_hidden_states")
    ids = text_ids(1, 4)
    for model in (decoder.ours, decoder.reference):
        for name in names:
            setattr(model.config, name, True)
    try:
        ours, theirs = call(decoder, ids)
        assert list(ours) == field_names(theirs)
        assert {"attentions", "hidden_states"} <= ours.keys()
        ours, theirs = call(decoder, ids, output_attentions=False)
        assert list(ours) == field_names(theirs) == ["logits", "past_key_values", "hidden_states"]
        decoder.ours.config.return_dict = False  # the reference itself fails then
        assert len(decoder.ours(mx.array(ids))) == 4
    finally:
        for model in (decoder.ours, decoder.reference):
            model.config.return_dict = True
            for name in names:
                setattr(model.config, name, False)


KEPT = {
    "number": 3,
    "more than there are": 50,
    "indices": np.array([0, 4, 4, 8]),
    "from the end": np.array([-1, -9]),
    "none": np.array([], np.int64),
    "by row": np.array([[0, 1], [5, 8], [2, 2]]),
    "booleans": np.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % 4 == 1,
}


@pytest.mark.parametrize("name", KEPT)
def test_logits_to_keep(decoder, name):
    ours, theirs = call(decoder, text_ids(ROWS, LENGTH), logits_to_keep=KEPT[name])
    assert ours.logits.shape == theirs.logits.shape
    if ours.logits.size:
        assert_logits_match(ours.logits, theirs.logits)


def test_logits_to_keep_of_a_list(decoder):
    ours, theirs = call(decoder, text_ids(ROWS, LENGTH), logits_to_keep=[1, 7])
    assert_logits_match(ours.logits, theirs.logits)


@pytest.mark.parametrize("items", [7, np.array(11)])
def test_num_items_in_batch(decoder, items):
    ids = text_ids(ROWS, LENGTH)
    labels = np.where(np.arange(LENGTH) < 3, -100, ids)
    ours, theirs = call(decoder, ids, labels=labels, num_items_in_batch=items)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    mean, _ = call(decoder, ids, labels=labels)
    assert abs(mean.loss.item() - ours.loss.item()) > 0.1


@pytest.mark.parametrize("ignore_index", [-100, 5])
@pytest.mark.parametrize("items", [None, 4])
def test_losses(ignore_index, items):
    logits = np.random.default_rng(0).normal(0, 3, (2, 6, 11)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 11, (2, 6))
    labels[0, :3] = ignore_index
    options = {"num_items_in_batch": items, "ignore_index": ignore_index}
    for ours, theirs in ((causal_lm_loss, ForCausalLMLoss), (cross_entropy, ForMaskedLMLoss)):
        expected = theirs(tensor(logits), tensor(labels), 11, **options)
        found = ours(mx.array(logits), mx.array(labels), **options)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def masks() -> dict[str, np.ndarray]:
    """Of four axes: a text of two halves, and another pattern for each head."""
    causal = np.tril(np.ones((LENGTH, LENGTH), bool))
    halves = causal & ((np.arange(LENGTH)[:, None] < 4) == (np.arange(LENGTH) < 4))
    drawn = np.random.default_rng(2).random((ROWS, 4, LENGTH, LENGTH)) < 0.6
    drawn[1, :, 3] = False  # attends to nothing; others ahead as well
    one = halves[None, None]
    return {
        "boolean": one,
        "by row": np.repeat(one, ROWS, 0),
        "by head": drawn,
        "infinite": np.where(one, 0, -np.inf).astype(np.float32),
        "smallest": np.where(one, 0, np.finfo(np.float32).min).astype(np.float32),
        "bias": np.random.default_rng(4).normal(0, 2, (ROWS, 4, LENGTH, LENGTH)).astype(np.float32),
    }


@pytest.mark.parametrize("name", masks())
def test_masks_of_four_axes(pair, name):
    """Booleans, of which the reference has them in its fused attention alone, and floats."""
    llama, mask = pair(LlamaForCausalLM), masks()[name]
    ids = text_ids(ROWS, LENGTH)
    llama.reference.set_attn_implementation("sdpa")
    try:
        ours, theirs = call(llama, ids, attention_mask=mask)
    finally:
        llama.reference.set_attn_implementation("eager")
    assert_logits_match(ours.logits, theirs.logits)
    plain, _ = call(llama, ids)
    assert np.abs(np.array(plain.logits - ours.logits)).max() > 0.1
    # unfused, and in parts through a cache
    given = {"attention_mask": mx.array(mask), "output_attentions": True}
    again = llama.ours(mx.array(ids), **given)
    assert np.abs(np.array(again.logits - ours.logits)).max() < 1e-4
    if name != "by head" and name != "bias":
        cache = llama.ours.make_cache()
        for part in (slice(0, 5), slice(5, LENGTH)):
            given = mx.array(mask[:, :, part, : part.stop])
            rest = llama.ours(mx.array(ids[:, part]), attention_mask=given, past_key_values=cache)
        assert np.abs(np.array(rest.logits - ours.logits[:, 5:])).max() < 1e-4


@pytest.mark.parametrize("positions", [[0, 1, 2, 3, 0, 1, 2, 0, 1], [4, 5, 6, 7, 8, 2, 3, 4, 5]])
def test_packed_texts(decoder, positions):
    """Without cache and mask, positions tell where a text begins: none attends to another."""
    ids = text_ids(ROWS, LENGTH)
    positions = np.array([positions])
    for rows in (positions, np.repeat(positions, ROWS, 0)):
        ours, theirs = call(decoder, ids, position_ids=rows, use_cache=False)
        assert_logits_match(ours.logits, theirs.logits)
    cached, theirs = call(decoder, ids, position_ids=np.repeat(positions, ROWS, 0))
    assert_logits_match(cached.logits, theirs.logits)
    assert np.abs(np.array(cached.logits - ours.logits)).max() > 0.1


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, tensor])
def test_arrays_of_others(decoder, kind):
    """NumPy's and torch's arrays are taken as they are."""
    ids, mask = text_ids(ROWS, LENGTH), padded("right")
    labels = np.where(mask == 1, ids, -100)
    ours = decoder.ours(kind(ids), attention_mask=kind(mask), labels=kind(labels))
    expected = decoder.ours(mx.array(ids), attention_mask=mx.array(mask), labels=mx.array(labels))
    assert mx.array_equal(ours.logits, expected.logits)
    assert ours.loss.item() == expected.loss.item()
    embeds = decoder.reference.get_input_embeddings()(tensor(ids))  # with gradients
    by_embeds = decoder.ours(inputs_embeds=embeds, attention_mask=kind(mask))
    assert np.abs(np.array(by_embeds.logits - expected.logits)).max() < 1e-5


LABELS = {
    "classes": ({}, np.array([3, 0, 2])),
    "classes in a column": ({}, np.array([[3], [0], [2]])),
    "some do not count": ({}, np.array([3, -100, 2])),
    "several": ({}, np.array([[1.0, 0, 0, 1]] * 3, np.float32)),
    "targets": ({"problem_type": "regression"}, np.array([[0.5, -2, 0, 1]] * 3, np.float32)),
    "one target": ({"num_labels": 1}, np.array([0.5, -2, 3], np.float32)),
    "one target in a column": ({"num_labels": 1}, np.array([[0.5], [-2], [3]], np.float32)),
}


@pytest.mark.parametrize("name", LABELS)
def test_classification_labels(pair, name, tmp_path):
    options, labels = LABELS[name]
    options = {"num_labels": 4} | options
    reference = save_decoder(tmp_path, 25, LlamaForSequenceClassification, **options)
    ours, theirs = call(
        Pair.load(reference, tmp_path), text_ids(3, 8), labels=labels, use_cache=False
    )
    assert_close(ours.logits, theirs.logits, 1e-5)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=1e-5)
    assert theirs.loss.item() > 0.1
