"""The text decoders of every family against transformers, float32.

Tolerances are absolute: 1e-4 on logits of size 1 to 30, 1e-5 on losses and classifications.
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
    PreTrainedTokenizerFast,
)

import mlx_speech
from mlx_speech.processing.tokenizer import Tokenizer

from .random_models import (
    PAD,
    TEXT,
    Pair,
    assert_close,
    assert_logits_match,
    edit_config,
    save_decoder,
    tensor,
    text_ids,
)
from .ropes import ROPES

FAMILIES = {"granite": GraniteForCausalLM, "jais2": Jais2ForCausalLM, "llama": LlamaForCausalLM}
SHAPES = {
    "one-head-each": {"num_key_value_heads": 8, "num_attention_heads": 8},
    "gqa-2": {"num_key_value_heads": 4, "num_attention_heads": 8},
    "gqa-4": {"num_key_value_heads": 2, "num_attention_heads": 8},
    "gqa-8-one-layer": {
        "num_key_value_heads": 1,
        "num_attention_heads": 8,
        "num_hidden_layers": 1,
    },
    "no-biases": {"attention_bias": False, "mlp_bias": False},
    "biases-tied": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "wide-heads": {"head_dim": 20, "num_key_value_heads": 4},
    "five-layers": {"num_hidden_layers": 5, "hidden_size": 24, "num_key_value_heads": None},
}
LONG = 70
# beyond what the model was made for, and its original length
SHORT_CONTEXT = {"max_position_embeddings": 48}


def make_pair(tmp_path, model_class, seed=21, **options) -> Pair:
    return Pair.load(save_decoder(tmp_path, seed, model_class, **options), tmp_path)


@torch.no_grad()
def compare_logits(pair: Pair, length=17):
    """Compares those of a whole; returns ours in parts through the cache, and the reference's."""
    ids = text_ids(2, length)
    reference = pair.reference(input_ids=tensor(ids)).logits
    assert_logits_match(pair.ours(mx.array(ids)).logits, reference)
    cache = pair.ours.make_cache()
    parts = np.split(ids, [length // 2, length - 1], axis=1)
    ours = [pair.ours(mx.array(part), past_key_values=cache).logits for part in parts]
    return ours, reference


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits(family, name, tmp_path):
    """All positions' logits, uncached and cached."""
    ours, reference = compare_logits(make_pair(tmp_path, FAMILIES[family], **SHAPES[name]))
    assert_logits_match(mx.concatenate(ours, axis=1), reference)


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_rope(family, name, tmp_path):
    """70 positions where the model was made for 48, and for fewer originally."""
    options = SHORT_CONTEXT | {"rope_parameters": dict(ROPES[name])}
    pair = make_pair(tmp_path, FAMILIES[family], **options)
    ours, reference = compare_logits(pair, LONG)
    if name != "dynamic" and not name.startswith("longrope"):
        # those two rotate cached keys as the length at that time demanded
        assert_logits_match(mx.concatenate(ours, axis=1), reference)


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_rope_of_older_configurations(name, tmp_path):
    """`rope_theta` beside `rope_scaling` with `type`."""
    rope = ROPES[name]
    options = SHORT_CONTEXT | {"rope_parameters": dict(rope)}
    reference = save_decoder(tmp_path, 22, LlamaForCausalLM, **options)
    scaling = {k: v for k, v in rope.items() if k not in ("rope_theta", "rope_type")}
    scaling["type"] = rope["rope_type"]
    edit_config(tmp_path, rope_parameters=None, rope_theta=100.0, rope_scaling=scaling)
    compare_logits(Pair.load(reference, tmp_path), LONG)


@pytest.mark.parametrize("name", ROPES)
def test_growing_past_the_original_length(name, tmp_path):
    """64 greedy tokens that start before it: the same ids, the last logits within 1e-4."""
    options = SHORT_CONTEXT | {"rope_parameters": dict(ROPES[name]), "eos_token_id": None}
    pair = make_pair(tmp_path, LlamaForCausalLM, seed=23, **options)
    if name in ("default", "longrope-attention-factor", "yarn-attention-factor"):
        # they are made for fewer: transformers warns, we need to be told
        with pytest.raises(mlx_speech.ContextLengthError):
            pair.ours.generate(mx.array(text_ids(2, 7)), max_new_tokens=64)
        pair.ours.config.max_position_embeddings = 1000
    ids = text_ids(2, 7)
    greedy = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": PAD}
    reference = pair.reference.generate(
        tensor(ids), return_dict_in_generate=True, output_logits=True, **greedy
    )
    ours = pair.ours.generate(mx.array(ids), max_new_tokens=64, pad_token_id=PAD)
    assert ours.tolist() == reference.sequences.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_position_ids(family, tmp_path):
    """Positions of one's own, for all rows and for each, as in a padded or a packed batch."""
    pair = make_pair(tmp_path, FAMILIES[family])
    ids = text_ids(2, 9)
    each = np.array([[0, 0, 0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 0, 1, 2, 3, 4]])
    for positions in (each, each[1:], each[:1] + 40):
        options = {"position_ids": tensor(positions)}
        reference = pair.reference(input_ids=tensor(ids), **options).logits
        ours = pair.ours(mx.array(ids), position_ids=mx.array(positions)).logits
        assert_logits_match(ours, reference)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_loss_and_hidden_states(family, padding, tmp_path):
    """Loss within 1e-5, every layer's hidden states within 1e-4 at real tokens; `logits_to_keep`
    and embeddings given instead of ids."""
    pair = make_pair(tmp_path, FAMILIES[family], num_hidden_layers=3)
    ids = text_ids(3, 17)
    mask, labels = np.ones_like(ids), ids.copy()
    labels[:, :4] = -100
    if padding == "left":
        mask[1, :3] = 0
    elif padding == "right":
        mask[1, -3:], labels[1, -3:] = 0, -100
    inputs = {"attention_mask": mask, "labels": labels}
    reference = pair.reference(
        input_ids=tensor(ids),
        output_hidden_states=True,
        **{k: tensor(v) for k, v in inputs.items()},
    )
    ours = pair.ours(
        mx.array(ids), output_hidden_states=True, **{k: mx.array(v) for k, v in inputs.items()}
    )
    real = mask.astype(bool)
    assert ours.loss.item() == pytest.approx(reference.loss.item(), rel=1e-5)
    assert_logits_match(mx.array(np.array(ours.logits)[real]), reference.logits[tensor(real)])
    assert len(ours.hidden_states) == len(reference.hidden_states) == 4
    for state, expected in zip(ours.hidden_states, reference.hidden_states, strict=True):
        assert_close(mx.array(np.array(state)[real]), expected[tensor(real)], 1e-4)
    last = pair.ours(mx.array(ids), attention_mask=mx.array(mask), logits_to_keep=2).logits
    assert np.abs(np.array(last - ours.logits[:, -2:])).max() < 1e-5
    embeds = pair.reference.get_input_embeddings()(tensor(ids))
    by_embeds = pair.ours(
        inputs_embeds=mx.array(embeds.numpy()), attention_mask=mx.array(mask)
    ).logits
    assert np.abs(np.array(by_embeds - ours.logits)).max() < 1e-5


@pytest.mark.parametrize("model_class", [GraniteModel, Jais2Model, LlamaModel])
@torch.no_grad()
def test_without_a_head(model_class, tmp_path):
    """The bare model, from its own checkpoint and from one with a head."""
    pair = make_pair(tmp_path / "bare", model_class)
    ids = text_ids(2, 11)
    reference = pair.reference(input_ids=tensor(ids)).last_hidden_state
    assert_logits_match(pair.ours(mx.array(ids)).last_hidden_state, reference)
    family = model_class.__name__.removesuffix("Model").lower()
    whole = save_decoder(tmp_path / "whole", 31, FAMILIES[family])
    bare = type(pair.ours).from_pretrained(tmp_path / "whole")
    reference = whole.base_model(input_ids=tensor(ids)).last_hidden_state
    assert_logits_match(bare(mx.array(ids)).last_hidden_state, reference)


def padded_batch(vocab: int):
    ids = text_ids(3, 9, seed=2, vocab=vocab)
    mask = np.ones_like(ids)
    for row, padding in enumerate((0, 5, 2)):
        mask[row, :padding] = 0
    return ids, mask


@pytest.mark.parametrize("strategy", ["greedy", "beam-4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_generation(family, strategy, tmp_path):
    """64 tokens of a left-padded batch: the same ids as transformers', and as one at a time."""
    # flat enough that the answers wander and beams compete
    options = {"vocab_size": 40, "eos_token_id": [0, 5]}
    if family == "granite":
        options |= {"embedding_multiplier": 3.0, "residual_multiplier": 0.6, "logits_scaling": 8.0}
    pair = make_pair(tmp_path, FAMILIES[family], seed=18, **options)
    ids, mask = padded_batch(40)
    common = {"max_new_tokens": 64, "num_beams": 4 if strategy == "beam-4" else 1}
    reference = pair.reference.generate(
        tensor(ids), attention_mask=tensor(mask), do_sample=False, pad_token_id=PAD, **common
    )
    ours = pair.ours.generate(
        mx.array(ids), attention_mask=mx.array(mask), pad_token_id=PAD, **common
    )
    width = ours.shape[1]
    assert ours.tolist() == reference[:, :width].tolist()
    assert set(reference[:, width:].flatten().tolist()) <= {PAD}
    for row, padding in enumerate((0, 5, 2)):
        alone = pair.ours.generate(mx.array(ids[row : row + 1, padding:]), **common)
        end = padding + alone.shape[1]
        assert alone.tolist()[0] == ours[row, padding:end].tolist()
        assert set(ours[row, end:].tolist()) <= {PAD}


CLASSIFICATIONS = {
    "regression": ({"num_labels": 1}, [0.3, -1.2, 2.0]),
    "single": ({"num_labels": 4}, [3, 0, 2]),
    "multi": ({"num_labels": 3}, [[1.0, 0, 1], [0, 0, 1], [0, 1, 0]]),
    "said-multi-regression": (
        {"num_labels": 2, "problem_type": "regression"},
        [[0.1, 0.2], [1.0, -1.0], [0.4, 3.0]],
    ),
}


@pytest.mark.parametrize("name", CLASSIFICATIONS)
@pytest.mark.parametrize("side", ["left", "right", "none"])
@torch.no_grad()
def test_classification(name, side, tmp_path):
    """Logits and loss within 1e-5, rows padded on either side."""
    options, labels = CLASSIFICATIONS[name]
    reference = save_decoder(tmp_path, 25, LlamaForSequenceClassification, **options)
    pair = Pair.load(reference, tmp_path)
    ids = text_ids(3, 12)
    if side != "none":
        for row, padding in enumerate((3, 0, 6)):
            ids[row, slice(padding) if side == "left" else slice(12 - padding, 12)] = PAD
    mask = (ids != PAD).astype(np.int64)
    ours = pair.ours(mx.array(ids), attention_mask=mx.array(mask), labels=mx.array(labels))
    # transformers remembers what it took the labels for
    pair.reference.config.problem_type = options.get("problem_type")
    expected = pair.reference(tensor(ids), attention_mask=tensor(mask), labels=torch.tensor(labels))
    assert_close(ours.logits, expected.logits, 1e-5)
    assert expected.logits.abs().max() > 0.3
    assert ours.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)


@torch.no_grad()
def test_classification_without_padding_or_ids(tmp_path):
    """One row without pad_token_id; embeddings, of which the last position counts."""
    options = {"pad_token_id": None, "num_labels": 3}
    pair = make_pair(tmp_path, LlamaForSequenceClassification, **options)
    ids = text_ids(1, 8)
    assert_close(pair.ours(mx.array(ids)).logits, pair.reference(tensor(ids)).logits, 1e-5)
    x = np.random.default_rng(3).normal(0, 0.4, (1, 9, TEXT["hidden_size"])).astype(np.float32)
    expected = pair.reference(inputs_embeds=tensor(x)).logits
    assert_close(pair.ours(inputs_embeds=mx.array(x)).logits, expected, 1e-5)


def test_jais2_without_a_rotary_base_warns(tmp_path):
    save_decoder(tmp_path, 26, Jais2ForCausalLM, rope_parameters={"rope_type": "default"})
    edit_config(tmp_path, rope_parameters=None)
    with pytest.warns(UserWarning, match="names no rope_theta; taking 10000, where"):
        Pair.load(None, tmp_path)


def test_stop_strings(tiny_folder, tmp_path):
    """The same ids up to the token that completes a string."""
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tiny_folder / "tokenizer.json"))
    ours = Tokenizer.from_pretrained(tiny_folder)
    options = {"vocab_size": len(theirs), "eos_token_id": None, "tie_word_embeddings": False}
    pair = make_pair(tmp_path, LlamaForCausalLM, seed=5, **options)
    ids = text_ids(1, 6, vocab=len(theirs))
    common = {"max_new_tokens": 24, "pad_token_id": PAD}
    whole = pair.ours.generate(mx.array(ids), **common)[0, 6:].tolist()
    text, lengths = ours.decode(whole), set()
    for start in range(0, len(text) - 3, 3):
        stop = text[start : start + 3]
        if not stop.isascii():  # halves of characters, which are no text
            continue
        common["stop_strings"] = [stop, "zzz"]
        expected = pair.reference.generate(tensor(ids), tokenizer=theirs, do_sample=False, **common)
        answer = pair.ours.generate(mx.array(ids), tokenizer=ours, **common)
        assert answer.tolist() == expected.tolist()
        lengths.add(answer.shape[1])
    assert len(lengths) > 4
