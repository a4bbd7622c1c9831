"""Speech2Text against transformers, over random small models.

Tolerances are absolute: 1e-4 on the encoder's output and on logits of size 1 to 30, float32.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import Speech2TextConfig, Speech2TextForConditionalGeneration

from mlx_speech.generation.api import prefill
from mlx_speech.loading import load_model

from .random_models import (
    Pair,
    assert_close,
    assert_logits_match,
    edit_config,
    features,
    randomize,
    tensor,
    text_ids,
)

VOCAB, WIDTH = 61, 12
#: end tokens, so many that some are met
SEVERAL = [2, *range(40, 48)]
SMALL = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_layers": 2,
    "decoder_ffn_dim": 40,
    "decoder_attention_heads": 4,
    "input_feat_per_channel": WIDTH,
    "conv_channels": 24,
    "max_source_positions": 900,
    "max_target_positions": 64,
}


@dataclass(frozen=True)
class Case:
    """What a model differs in from the small one above; a small head makes beams compete."""

    seed: int
    config: dict[str, Any] = field(default_factory=dict)
    head: float = 1.0


CASES = {
    "two-convs-relu-tied": Case(1),
    "one-conv-gelu": Case(
        2,
        {"num_conv_layers": 1, "conv_kernel_sizes": (3,), "activation_function": "gelu"}
        | {"tie_word_embeddings": False},
    ),
    "three-convs-silu-unscaled": Case(
        3,
        {"num_conv_layers": 3, "conv_kernel_sizes": (3, 5, 7), "activation_function": "silu"}
        | {"scale_embedding": False, "encoder_layers": 1, "decoder_layers": 3},
    ),
    "kernels-of-one-and-nine": Case(
        4,
        {"conv_kernel_sizes": (1, 9), "decoder_attention_heads": 2, "encoder_attention_heads": 8}
        | {"scale_embedding": False, "tie_word_embeddings": False},
    ),
    "two-channels-wide": Case(
        5,
        {"input_channels": 2, "d_model": 48, "conv_channels": 10, "conv_kernel_sizes": (7, 3)}
        | {"encoder_layers": 4, "encoder_attention_heads": 6},
    ),
    "padding-is-zero": Case(6, {"pad_token_id": 0, "bos_token_id": 1, "decoder_start_token_id": 4}),
    "padding-is-three": Case(
        7, {"pad_token_id": 3, "num_conv_layers": 1, "conv_kernel_sizes": [5]}
    ),
}


#: models whose answers vary, and end at different lengths
GENERATORS = {
    "generates-untied": Case(9, {"tie_word_embeddings": False}, head=0.4),
    "generates-tied": Case(10, {"num_conv_layers": 1, "conv_kernel_sizes": [3]}, head=0.25),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """By the name of a case: transformers' model and ours, loaded from what it saved."""
    made: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in made:
            case, folder = (CASES | GENERATORS)[name], tmp_path_factory.mktemp(name)
            reference = Speech2TextForConditionalGeneration(
                Speech2TextConfig(**(SMALL | case.config))
            ).eval()
            randomize(reference, case.seed)
            reference.lm_head.weight.data *= case.head
            reference.save_pretrained(folder)
            made[name] = Pair.load(reference, folder)
        return made[name]

    return get


@pytest.fixture(params=CASES)
def pair(request, pairs) -> Pair:
    return pairs(request.param)


def recording(pair: Pair, batch: int, frames: int, seed: int = 0) -> np.ndarray:
    """Features of normalised size."""
    return 2 * features(batch, frames, pair.ours.config.num_features, seed)


def prompts(pair: Pair, batch: int, length: int, seed: int = 0) -> np.ndarray:
    ids = text_ids(batch, length, seed, VOCAB)
    ids[:, 0] = pair.ours.config.decoder_start_token_id
    return ids


def as_alone(pair: Pair, rows: list[np.ndarray], noise: float = 0.0) -> dict[str, np.ndarray]:
    """A padded batch; padding of the given size."""
    longest = max(map(len, rows))
    rng = np.random.default_rng(5)
    x = noise * rng.normal(size=(len(rows), longest, rows[0].shape[-1])).astype(np.float32)
    mask = np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        x[i, : len(row)], mask[i, : len(row)] = row, 1
    return {"input_features": x, "attention_mask": mask}


def ours(inputs: dict[str, np.ndarray]) -> dict[str, mx.array]:
    return {name: mx.array(value) for name, value in inputs.items()}


def theirs(inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: tensor(value) for name, value in inputs.items()}


@pytest.mark.parametrize("with_mask", [False, True])
@torch.no_grad()
def test_lengths(pair, with_mask):
    """Encoder and logits within 1e-4 at every length around the subsampler's steps."""
    for frames in [*range(1, 13), 16, 17, 31, 100]:
        inputs = {"input_features": recording(pair, 2, frames)}
        if with_mask:
            inputs["attention_mask"] = np.ones((2, frames), np.int64)
        inputs["decoder_input_ids"] = prompts(pair, 2, 7, seed=frames)
        reference = pair.reference(**theirs(inputs))
        found = pair.ours(**ours(inputs))
        assert_close(found.encoder_last_hidden_state, reference.encoder_last_hidden_state, 1e-4)
        assert reference.encoder_last_hidden_state.abs().max() > 0.5
        assert_logits_match(found.logits, reference.logits)


@torch.no_grad()
def test_recordings_of_different_lengths(pair):
    """In our padded batch, whatever the padding holds, each recording gets what transformers gives
    it alone: encoder and logits within 1e-4."""
    rows = [recording(pair, 1, n, seed=n)[0] for n in (23, 1, 40, 9, 12)]
    inputs = as_alone(pair, rows, noise=3.0)
    ids = prompts(pair, len(rows), 6)
    output = pair.ours(**ours(inputs), decoder_input_ids=mx.array(ids))
    for i, row in enumerate(rows):
        alone = {"input_features": row[None], "attention_mask": np.ones((1, len(row)), np.int64)}
        reference = pair.reference(**theirs(alone), decoder_input_ids=tensor(ids[i : i + 1]))
        expected = reference.encoder_last_hidden_state[0]
        assert_close(output.encoder_last_hidden_state[i, : len(expected)], expected, 1e-4)
        assert_logits_match(output.logits[i], reference.logits[0])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_where_the_batches_of_transformers_differ(pairs, name):
    """With one convolution and zeros as padding its batch is what each recording gives alone, and
    ours within 1e-4. With more, the first one's bias sounds from the padding into the second."""
    pair = pairs(name)
    rows = [recording(pair, 1, n, seed=n)[0] for n in (24, 40, 13)]
    inputs = as_alone(pair, rows)
    found = pair.ours.model.encoder(**ours(inputs)).last_hidden_state
    expected = pair.reference.model.encoder(**theirs(inputs)).last_hidden_state
    conv = pair.ours.model.encoder.conv
    frames = [conv.subsampled(mx.ones((1, len(row)))).shape[1] for row in rows]
    differences = [
        np.abs(np.array(found[i, :n]) - expected[i, :n].numpy()).max() for i, n in enumerate(frames)
    ]
    assert differences[1] <= 1e-4  # the longest has no padding
    if pair.ours.config.num_conv_layers == 1:
        assert max(differences) <= 1e-4
    else:
        assert max(differences) > 1e-3


@torch.no_grad()
def test_hidden_states_and_attentions(pair):
    """Every layer's, encoder's and decoder's, within 1e-4 (1e-5 for weights)."""
    inputs = {
        "input_features": recording(pair, 2, 29),
        "decoder_input_ids": prompts(pair, 2, 8),
    }
    options = {"output_hidden_states": True, "output_attentions": True}
    reference = pair.reference(**theirs(inputs), **options)
    found = pair.ours(**ours(inputs), **options)
    for name, tolerance in {
        "encoder_hidden_states": 1e-4,
        "decoder_hidden_states": 1e-4,
        "encoder_attentions": 1e-5,
        "decoder_attentions": 1e-5,
        "cross_attentions": 1e-5,
    }.items():
        layers, expected = getattr(found, name), getattr(reference, name)
        assert len(layers) == len(expected) > 0
        for one, other in zip(layers, expected, strict=True):
            assert_close(one, other, tolerance)
    assert_logits_match(found.logits, reference.logits)


@torch.no_grad()
def test_loss(pair):
    """Within 1e-5 relative; labels shifted right, some of them ignored."""
    inputs = {"input_features": recording(pair, 3, 18)}
    labels = text_ids(3, 9, seed=4, vocab=VOCAB)
    labels[0, 6:], labels[2, 2] = -100, -100
    inputs["labels"] = labels
    reference, found = pair.reference(**theirs(inputs)), pair.ours(**ours(inputs))
    assert found.loss.item() == pytest.approx(reference.loss.item(), rel=1e-5)
    assert_logits_match(found.logits, reference.logits)


@pytest.mark.parametrize("padding", ["left", "right", "unmasked"])
@torch.no_grad()
def test_padding_of_the_decoder(pair, padding):
    """Padding tokens have no position; masked or not, logits of the others are within 1e-4."""
    ids, mask = prompts(pair, 2, 10), np.ones((2, 10), np.int64)
    masked = {"left": slice(0, 3), "right": slice(7, 10), "unmasked": slice(4, 6)}[padding]
    ids[1, masked] = pair.ours.config.pad_token_id
    inputs = {"input_features": recording(pair, 2, 21), "decoder_input_ids": ids}
    if padding != "unmasked":
        mask[1, masked] = 0
        inputs["decoder_attention_mask"] = mask
    reference, found = pair.reference(**theirs(inputs)), pair.ours(**ours(inputs))
    real = mask.astype(bool)
    assert_logits_match(mx.array(np.array(found.logits)[real]), reference.logits[tensor(real)])


@torch.no_grad()
def test_cached_steps(pair):
    """Logits through a cache, in pieces, are those of transformers in one pass."""
    ids = prompts(pair, 2, 12)
    ids[0, 5] = pair.ours.config.pad_token_id  # counts for the positions of what comes later
    inputs = as_alone(pair, [recording(pair, 1, n)[0] for n in (30, 30)])
    past, expected, found = None, [], []
    cache = pair.ours.make_cache()
    given = ours(inputs)
    for part in np.split(ids, [4, 5, 6, 7, 11], axis=1):
        reference = pair.reference(
            **theirs(inputs), decoder_input_ids=tensor(part), past_key_values=past, use_cache=True
        )
        past = reference.past_key_values
        expected.append(reference.logits)
        output = pair.ours(**given, decoder_input_ids=mx.array(part), past_key_values=cache)
        found.append(output.logits)
        given = {}
    assert_logits_match(mx.concatenate(found, axis=1), torch.cat(expected, dim=1))


@torch.no_grad()
def test_long_recording(pair):
    """All of `max_source_positions`, encoder within 1e-4."""
    x = recording(pair, 1, 900)
    reference = pair.reference.model.encoder(tensor(x)).last_hidden_state
    assert_close(pair.ours.model.encoder(mx.array(x)).last_hidden_state, reference, 1e-4)


def compare_generation(pair: Pair, rows: list[np.ndarray], **options) -> list[list[int]]:
    """Generates on both sides, ours in one batch and transformers one by one: the same ids, with
    beams the same scores within 1e-4."""
    options = {"max_length": 24, "num_beams": 1} | options
    batch = ours(as_alone(pair, rows))
    found = pair.ours.generate(**batch, **options).tolist()
    hypotheses = prefill(pair.ours, **batch, **options).rows()
    for i, row in enumerate(rows):
        reference = pair.reference.generate(
            tensor(row[None]),
            attention_mask=torch.ones(1, len(row), dtype=torch.int64),
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        expected = reference.sequences[0].tolist()
        pad = pair.ours.config.pad_token_id
        assert found[i][: len(expected)] == expected
        assert set(found[i][len(expected) :]) <= {pad}
        if options["num_beams"] > 1:
            assert hypotheses[i].score == pytest.approx(reference.sequences_scores.item(), abs=1e-4)
    return found


@pytest.fixture(params=GENERATORS)
def generator(request, pairs) -> Pair:
    return pairs(request.param)


def three(pair: Pair) -> list[np.ndarray]:
    """Recordings of different lengths."""
    return [recording(pair, 1, n, seed=n)[0] for n in (33, 8, 50)]


@torch.no_grad()
def test_greedy_and_beams_of_every_shape(pair):
    """The same ids."""
    compare_generation(pair, three(pair))
    compare_generation(pair, three(pair), num_beams=3, forced_bos_token_id=7)


@pytest.mark.parametrize("forced", [None, 7])
@pytest.mark.parametrize("penalty", [1.0, 1.4])
@torch.no_grad()
def test_greedy(generator, forced, penalty):
    """The same ids."""
    compare_generation(
        generator,
        three(generator),
        forced_bos_token_id=forced,
        repetition_penalty=penalty,
        eos_token_id=SEVERAL,
    )


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("num_beams", [2, 3, 5])
@pytest.mark.parametrize("forced", [None, 7])
@torch.no_grad()
def test_beam_search(generator, num_beams, length_penalty, forced):
    """The same ids and scores, with and without a forced first token; what counts for the length
    penalty is what is generated, the forced token too, but not the starting one."""
    compare_generation(
        generator,
        three(generator),
        num_beams=num_beams,
        length_penalty=length_penalty,
        forced_bos_token_id=forced,
        early_stopping=True,
        eos_token_id=SEVERAL,
    )


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@torch.no_grad()
def test_early_stopping(generator, early_stopping):
    """The same ids, with one end token, several, and a penalty beside the forced token."""
    for options in (
        {"eos_token_id": 2},
        {"eos_token_id": SEVERAL, "num_beams": 4},
        {"repetition_penalty": 1.2, "forced_bos_token_id": 9},
        {"forced_bos_token_id": 2},
    ):
        options = {"num_beams": 5, "early_stopping": early_stopping} | options
        compare_generation(generator, three(generator), **options)


@pytest.mark.parametrize("num_beams", [1, 3])
@torch.no_grad()
def test_first_tokens_that_are_given(generator, num_beams):
    """A prompt, with and without the starting token, and another starting token."""
    batch = as_alone(generator, three(generator)[:1])
    for prompt in ([[2, 9, 11]], [[9, 11]]):
        options = {"num_beams": num_beams, "max_length": 14, "forced_bos_token_id": 30}
        ids = np.array(prompt)
        found = generator.ours.generate(**ours(batch), decoder_input_ids=mx.array(ids), **options)
        reference = generator.reference.generate(
            **theirs(batch), decoder_input_ids=tensor(ids), do_sample=False, **options
        )
        assert found.tolist() == reference.tolist()
    compare_generation(generator, three(generator), num_beams=num_beams, decoder_start_token_id=13)


def test_the_options_matter(generator):
    """That the grids above hold cases in which each option changes the answer."""
    batch = ours(as_alone(generator, three(generator)))
    common = {"max_length": 24, "eos_token_id": SEVERAL, "num_beams": 5, "early_stopping": True}

    def answer(**options):
        return generator.ours.generate(**batch, **{**common, **options}).tolist()

    plain = answer()
    assert len({tuple(row) for row in plain}) == 3
    assert len({next(n for n, i in enumerate(row) if n and i in SEVERAL) for row in plain}) == 3
    assert plain != answer(num_beams=1)
    assert answer(num_beams=2) != answer(num_beams=1)
    assert answer(length_penalty=-0.5) != answer(length_penalty=2.0)
    assert [row[1:] for row in plain] != [row[2:] for row in answer(forced_bos_token_id=7)]
    assert plain != answer(early_stopping="never", length_penalty=2.0)


@torch.no_grad()
def test_options_of_old_repositories(pairs, tmp_path):
    """Without generation_config.json its options stand in config.json: the same ids."""
    pair = pairs("two-convs-relu-tied")
    pair.reference.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    edit_config(tmp_path, num_beams=4, max_length=11, early_stopping=True, length_penalty=0.4)
    assert json.loads((tmp_path / "config.json").read_text())["is_encoder_decoder"]
    reference = Speech2TextForConditionalGeneration.from_pretrained(tmp_path).eval()
    old = Pair(reference, load_model(tmp_path, dtype=mx.float32), tmp_path)
    assert reference.generation_config.num_beams == old.ours.generation_config.num_beams == 4
    x = recording(pair, 1, 44, seed=3)
    expected = reference.generate(tensor(x)).tolist()
    assert old.ours.generate(mx.array(x)).tolist() == expected
    assert len(expected[0]) <= 11
