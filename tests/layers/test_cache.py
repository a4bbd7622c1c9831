"""The key-value caches, against attention over everything that was ever put in."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_decoder

from mlx_speech import InputError
from mlx_speech.layers.attention import scaled_dot_product_attention
from mlx_speech.layers.cache import (
    KVCache,
    LatestPositions,
    QuantizedKVCache,
    RotatingKVCache,
    make_cache,
)

PARTS = [[1] * 20, [3, 1, 1, 5, 2, 1, 1, 6], [14, 1, 1, 1, 1, 2], [2, 18], [20]]


class TestGrowing:
    def test_grows_in_steps(self):
        cache = KVCache()
        capacities = []
        for position in range(600):
            new = mx.full((1, 1, 1, 2), position, mx.float32)
            keys, _ = cache.update_and_fetch(new, new)
            assert keys.shape[2] == position + 1
            capacities.append(cache.state[0].shape[2])
        assert sorted(set(capacities)) == [256, 512, 768]
        assert keys[0, 0, :, 0].tolist() == list(range(600))

    def test_prompt_longer_than_a_step(self):
        cache = KVCache()
        long = mx.random.normal((1, 2, 300, 4))
        keys, values = cache.update_and_fetch(long, long)
        assert mx.array_equal(keys, long).item()
        assert mx.array_equal(values, long).item()
        assert cache.state[0].shape[2] == 512

    def test_reorder_changes_rows_and_their_number(self):
        cache = KVCache(left_padding=[2, 0])
        new = mx.arange(2).reshape(2, 1, 1, 1) * mx.ones((2, 1, 3, 1))
        cache.update_and_fetch(new, new)
        cache.reorder(mx.array([1, 0, 1]))
        assert cache.state[0][:, 0, 0, 0].tolist() == [1, 0, 1]
        assert cache.offset.tolist() == [3, 1, 3]

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"kv_bits": 8},
            {"kv_bits": 8, "quantized_kv_start": 9},
            {"kv_bits": 8, "quantized_kv_start": 8},
            {"max_kv_size": 9},
            {"max_kv_size": 8},
            {"max_kv_size": 7},
        ],
    )
    @pytest.mark.parametrize("step", [4, 256])
    def test_reorder_of_the_latest_positions(self, options, step, monkeypatch):
        """As that of all, where the others are the same in all rows; also when a position was
        appended meanwhile that made it grow, be quantized or forget its oldest one."""
        monkeypatch.setattr(KVCache, "step", step)
        ours, whole = (make_cache(1, **options)[0] for _ in range(2))
        prompt = mx.repeat(mx.random.normal((1, 2, 6, 64)), 3, axis=0)
        new = mx.random.normal((3, 2, 2, 64))
        for cache in (ours, whole):
            for part in (prompt, new[:, :, :1], new[:, :, 1:]):
                cache.update_and_fetch(part, part + 1)
        latest = LatestPositions([ours], 2)
        latest.reorder(mx.array([1, 1, 2]))
        ours.update_and_fetch(new[:, :, :1], new[:, :, :1])
        rows = mx.array([2, 0, 0])
        latest.reorder(rows)
        whole.reorder(rows)
        for _ in range(2):
            assert ours.length == whole.length
            for found, expected in zip(ours.stored(), whole.stored(), strict=True):
                assert mx.array_equal(found, expected).item()
            for cache in (ours, whole):
                cache.update_and_fetch(new[:, :, :1], new[:, :, :1])

    def test_reorder_of_the_latest_positions_copies_no_others(self):
        cache = KVCache()
        large = mx.zeros((4, 2, 2000, 64))
        cache.update_and_fetch(large, large)
        mx.eval(cache.state)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        latest = LatestPositions([cache], 3)
        mx.synchronize()
        latest.reorder(mx.array([1, 0, 2, 2]))
        mx.eval(cache.state)
        assert mx.get_peak_memory() - before < large.nbytes / 4

    def test_padding_is_masked_and_attends_to_itself(self):
        cache = KVCache(left_padding=[2, 0])
        assert cache.make_mask(3)[:, 0].tolist() == [
            [[True, False, False], [False, True, False], [False, False, True]],
            [[True, False, False], [True, True, False], [True, True, True]],
        ]

    def test_no_mask_without_padding(self):
        assert KVCache([0, 0]).make_mask(1) is None
        assert KVCache().make_mask(4) == "causal"
        assert KVCache([0, 0]).offset == 0

    def test_trim(self):
        cache = KVCache()
        new = mx.arange(5).reshape(1, 1, 5, 1).astype(mx.float32)
        cache.update_and_fetch(new, new)
        assert cache.trim(2) == 2
        keys, _ = cache.update_and_fetch(new[:, :, :1] + 9, new[:, :, :1])
        assert keys.flatten().tolist() == [0, 1, 2, 9]
        assert cache.trim(9) == 4
        assert cache.length == 0


def attend(cache, parts: list[int], seed: int = 0, key_heads: int = 2) -> tuple[np.ndarray, ...]:
    """Random queries, keys and values, and attention as a cache gives it, part by part."""
    rng = np.random.default_rng(seed)
    length = sum(parts)
    q = rng.normal(size=(2, 4, length, 32)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, key_heads, length, 32)).astype(np.float32)
    outputs, start = [], 0
    for count in parts:
        part = [mx.array(a[:, :, start : start + count]) for a in (q, k, v)]
        mask = cache.make_mask(count)
        keys, values = cache.update_and_fetch(*part[1:])
        outputs.append(
            scaled_dot_product_attention(part[0], keys, values, scale=32**-0.5, mask=mask)
        )
        start += count
    return q, k, v, np.array(mx.concatenate(outputs, axis=2))


def plain_attention(q, k, v, allowed: np.ndarray) -> np.ndarray:
    """Attention in float64, from the formula."""
    k, v = (np.repeat(a, q.shape[1] // a.shape[1], axis=1).astype(np.float64) for a in (k, v))
    scores = q.astype(np.float64) @ k.swapaxes(2, 3) * 32**-0.5
    weights = np.exp(np.where(allowed, scores, -np.inf))
    return weights / weights.sum(axis=-1, keepdims=True) @ v


def dequantized(array: np.ndarray, bits: int) -> np.ndarray:
    parts = mx.quantize(mx.array(array), group_size=32, bits=bits)
    return np.array(mx.dequantize(*parts, group_size=32, bits=bits))


class TestRotating:
    @pytest.mark.parametrize("parts", PARTS, ids=str)
    @pytest.mark.parametrize("max_size", [5, 9, 13, 19, 20, 64])
    def test_attends_to_the_first_and_the_latest(self, parts, max_size):
        """Whatever the parts: the 4 first positions and the latest `max_size - 4`."""
        q, k, v, output = attend(RotatingKVCache(max_size, keep=4), parts)
        query, key = np.arange(20)[:, None], np.arange(20)[None]
        allowed = (key <= query) & ((key > query - (max_size - 4)) | (key < 4))
        np.testing.assert_allclose(output, plain_attention(q, k, v, allowed), atol=2e-6)

    def test_keeps_no_more_than_its_size(self):
        cache = RotatingKVCache(32)
        for count in (50, 1, 1, 7, 1):
            new = mx.zeros((1, 1, count, 4))
            cache.update_and_fetch(new, new)
            assert cache.state[0].shape[2] == 32
        assert cache.offset == 60
        assert not cache.is_trimmable()
        assert cache.trim(3) == 0

    def test_too_small(self):
        with pytest.raises(InputError, match="max_kv_size is 4, but must be above 4"):
            make_cache(1, max_kv_size=4)


class TestQuantized:
    @pytest.mark.parametrize("parts", PARTS, ids=str)
    @pytest.mark.parametrize(("bits", "start"), [(4, 0), (8, 0), (8, 6), (4, 100)])
    def test_attends_to_what_was_quantized(self, parts, bits, start):
        """Each position as it is rounded; those before the start too, once it is passed."""
        cache = QuantizedKVCache(bits=bits, group_size=32, start=start)
        q, k, v, output = attend(cache, parts)
        expected, position = [], 0
        causal = np.tril(np.ones((20, 20), bool))
        for count in parts:
            end = position + count
            rounded = (dequantized(a, bits) if end > start else a for a in (k, v))
            allowed = causal[position:end, :end]
            now = [a[:, :, :end] for a in rounded]
            expected.append(plain_attention(q[:, :, position:end], *now, allowed))
            position = end
        np.testing.assert_allclose(output, np.concatenate(expected, axis=2), atol=1e-5)

    def test_eight_bits_are_near(self):
        q, k, v, output = attend(QuantizedKVCache(bits=8, group_size=32), [20])
        near = plain_attention(q, k, v, np.tril(np.ones((20, 20), bool)))
        assert 1e-4 < np.abs(output - near).max() < 0.05

    def test_padding(self):
        """A padded row gives what it gives alone."""
        q, k, v, output = attend(QuantizedKVCache([5, 0], bits=8, group_size=32), [12, 1, 7])
        allowed = np.tril(np.ones((20, 20), bool)) & (np.arange(20) >= 5)
        rounded = [dequantized(a, 8) for a in (k, v)]
        expected = plain_attention(
            q[:1], *(a[:1] for a in rounded), allowed | np.eye(20, dtype=bool)
        )
        np.testing.assert_allclose(output[:1, :, 5:], expected[:, :, 5:], atol=1e-5)

    @pytest.mark.parametrize("lengths", [[6, 3, 5], [6, 6, 6]], ids=str)
    def test_rows_of_different_lengths_become_quantized_where_they_are(self, lengths):
        """Each holds what it would hold alone, at its own places."""
        cache = QuantizedKVCache(bits=8, group_size=32, start=8)
        first, more = (mx.random.normal((3, 2, n, 32), key=mx.random.key(n)) for n in (6, 4))
        cache.update_and_fetch(first, first + 1)
        cache.trim_rows([6 - length for length in lengths])
        assert len(cache.state) == 2
        cache.update_and_fetch(more, more + 1)
        assert cache.row_lengths == [length + 4 for length in lengths]
        for row, length in enumerate(lengths):
            alone = mx.concatenate([first[row, :, :length], more[row]], axis=1)
            expected = [*mx.quantize(alone, 32, 8), *mx.quantize(alone + 1, 32, 8)]
            for found, part in zip(cache.stored(), expected, strict=True):
                assert mx.array_equal(found[row, :, : length + 4], part).item()

    def test_smaller(self):
        plain, quantized = KVCache(), QuantizedKVCache(bits=4, group_size=64)
        new = mx.random.normal((1, 2, 256, 128)).astype(mx.bfloat16)
        for cache in (plain, quantized):
            cache.update_and_fetch(new, new)
        ratio = sum(a.nbytes for a in plain.state) / sum(a.nbytes for a in quantized.state)
        assert ratio == pytest.approx(16 / 4.5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kv_bits": 3}, "kv_bits is 3, but must be 4 or 8"),
            ({"kv_bits": 4, "kv_group_size": 0}, "kv_group_size is 0, but must be 32 or 64 or 128"),
            ({"kv_bits": 4, "kv_group_size": 16}, "kv_group_size is 16"),
            ({"kv_bits": 4, "max_kv_size": 9}, "do not go together"),
            ({"left_padding": [1, 0], "max_kv_size": 9}, "equally long"),
        ],
    )
    def test_impossible_options(self, options, message):
        with pytest.raises(InputError, match=message):
            make_cache(2, **options)

    def test_group_size_that_does_not_fit(self):
        with pytest.raises(InputError, match="kv_group_size 64 does not divide"):
            random_decoder().generate(mx.array([[5, 6]]), kv_bits=4)


CACHES = [{}, {"max_kv_size": 11}, {"max_kv_size": 40}, {"kv_bits": 8, "kv_group_size": 32}]


@pytest.mark.parametrize("options", CACHES, ids=str)
def test_cached_equals_uncached(options):
    """Logits of a model token by token and at once, for the caches that are exact."""
    model = random_decoder(head_dim=32)
    ids = mx.array(np.random.default_rng(1).integers(5, 61, (2, 30)))
    reference = model(ids).logits
    cache = model.make_cache(**options)
    parts = [
        model(part, past_key_values=cache).logits for part in mx.split(ids, [9, 10, 11, 25], 1)
    ]
    difference = mx.abs(mx.concatenate(parts, axis=1) - reference).max().item()
    exact = options in ({}, {"max_kv_size": 40})
    assert difference < 1e-5 if exact else difference > 1e-4


LONG = [1.5, 2.0, 3.0, 5.0]
ROPES = {
    "default": {"rope_type": "default"},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 3.0},
    "longrope": {"rope_type": "longrope", "rope_theta": 100.0, "factor": 4.0}
    | {"short_factor": [1.0] * 4, "long_factor": LONG, "original_max_position_embeddings": 12},
}


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_rows_are_as_long_as_they_are(rope):
    """A short prompt beside a long one is rotated as if alone."""
    model = random_decoder(rope_parameters=ROPES[rope], max_position_embeddings=12)
    ids = mx.array(np.random.default_rng(2).integers(5, 61, (2, 20)))
    cache = model.make_cache([11, 0])
    logits = model.prefill(ids, cache, prefill_step_size=7)[:, -1]
    for row, padding in enumerate((11, 0)):
        alone = model(ids[row : row + 1, padding:]).logits[0, -1]
        assert mx.abs(logits[row] - alone).max().item() < 1e-5


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
@pytest.mark.parametrize("num_draft_tokens", [1, 3, 15])
def test_a_draft_is_as_long_as_greedy_search_finds_it(rope, num_draft_tokens):
    """Tokens that are checked together are rotated as if each came alone, behind prompts of
    different lengths; scores are of the size that they have there."""
    model = random_decoder(rope_parameters=ROPES[rope], max_position_embeddings=100)
    model.model.rope.parameters["max_position_embeddings"] = 12
    ids = mx.array(np.random.default_rng(2).integers(5, 61, (3, 14)))
    options = {
        "attention_mask": mx.arange(14) >= mx.array([5, 9, 0])[:, None],
        "max_new_tokens": 40,
        "eos_token_id": [],
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    plain = model.generate(ids, **options)
    drafts = plain.sequences[:, 14:].tolist()
    drafts[0][5], drafts[1] = 7, drafts[1][3:]
    found = model.generate(ids, drafts=drafts, num_draft_tokens=num_draft_tokens, **options)
    assert found.sequences.tolist() == plain.sequences.tolist()
    for ours, logits in zip(found.logits, plain.logits, strict=True):
        assert mx.abs(ours - logits).max().item() < 1e-4


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("step", [1, 3, 7, 8, 100])
def test_prompt_in_steps(step, rope):
    """A prompt that is fed in parts gives the same answer, and tells how far it is: a draft that is
    checked with its last part is none of it."""
    model = random_decoder(rope_parameters=ROPES[rope], max_position_embeddings=12)
    if rope == "default":
        model.config.max_position_embeddings = 100
    ids = mx.array(np.random.default_rng(2).integers(5, 61, (1, 16)))
    expected = model.generate(ids, max_new_tokens=8)
    draft = expected[:, 16:].tolist()
    for drafts in ({}, {"drafts": draft}, {"drafts": [[5, *draft[0]]]}):
        told = []
        answer = model.generate(
            ids,
            max_new_tokens=8,
            prefill_step_size=step,
            prompt_progress_callback=lambda done, total, told=told: told.append((done, total)),
            **drafts,
        )
        assert answer.tolist() == expected.tolist()
        assert told == [(min(end, 16), 16) for end in range(step, 16 + step, step)]


def test_steps_of_nothing():
    with pytest.raises(InputError, match="prefill_step_size is 0, but must be an integer"):
        random_decoder().generate(mx.array([[5, 6]]), prefill_step_size=0)
