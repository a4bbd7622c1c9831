"""Rotary positions against the formula, for each rule of frequencies."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech.errors import CheckpointError, InputError
from mlx_speech.layers.rope import RotaryEmbedding, normalize_rope_parameters

DIM, MAXIMUM, BASE = 16, 64, 10000.0
PLAIN = BASE ** -(np.arange(0, DIM, 2) / DIM)
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def embedding(rope_type: str = "default", **parameters) -> RotaryEmbedding:
    parameters = {"rope_type": rope_type, **parameters}
    return RotaryEmbedding(DIM, normalize_rope_parameters(parameters, BASE, None), MAXIMUM)


def rotated(x: np.ndarray, positions: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Dimensions i and i + d/2 as a complex number, turned by position times frequency i."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * positions[..., None] * frequencies)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def states(batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, 3, length, DIM)).astype(np.float32)


def llama3() -> np.ndarray:
    """As the authors write it: by wavelength, in three cases."""
    found = []
    for frequency in PLAIN:
        wavelength = 2 * math.pi / frequency
        if wavelength < 32 / 4:
            found.append(frequency)
        elif wavelength > 32 / 1:
            found.append(frequency / 8)
        else:
            smooth = (32 / wavelength - 1) / (4 - 1)
            found.append((1 - smooth) * frequency / 8 + smooth * frequency)
    return np.array(found)


LISTS = {"short_factor": [1.0] * 7 + [2.0], "long_factor": [2.0] * 8}
RULES = {
    "default": ({}, PLAIN, 1.0),
    "linear": ({"factor": 4.0}, PLAIN / 4, 1.0),
    "dynamic": ({"factor": 2.0}, PLAIN, 1.0),  # within the maximum
    "llama3": (LLAMA3, llama3(), 1.0),
    "longrope": (
        {**LISTS, "original_max_position_embeddings": 32},
        PLAIN / np.array(LISTS["short_factor"]),
        math.sqrt(1 + math.log(2) / math.log(32)),
    ),
}


@pytest.mark.parametrize("rope_type", RULES)
@pytest.mark.parametrize("start", [0, 5])
def test_each_rule(rope_type, start):
    parameters, frequencies, factor = RULES[rope_type]
    x = states(2, 6)
    found = embedding(rope_type, **parameters).rotation(start, 6)(mx.array(x))
    expected = rotated(factor * x, np.arange(start, start + 6), frequencies)
    np.testing.assert_allclose(np.array(found), expected, atol=2e-5)


def yarn(factor: float, original: int, fast: float, slow: float) -> np.ndarray:
    """As the paper writes it: a dimension that turns more than `fast` times in the original context
    keeps its frequency, one that turns less than `slow` times is stretched, linear in between."""

    def dimension(turns):
        return DIM * math.log(original / (2 * math.pi * turns)) / (2 * math.log(BASE))

    low, high = max(math.floor(dimension(fast)), 0), min(math.ceil(dimension(slow)), DIM - 1)
    found = []
    for index, frequency in enumerate(PLAIN):
        stretched = min(max((index - low) / (high - low), 0), 1)
        found.append(frequency * (1 - stretched) + frequency / factor * stretched)
    return np.array(found)


@pytest.mark.parametrize("start", [0, 9])
@pytest.mark.parametrize(
    ("parameters", "frequencies", "scale"),
    [
        (
            {"factor": 4.0, "original_max_position_embeddings": 4096},
            yarn(4, 4096, 32, 1),
            0.1 * math.log(4) + 1,
        ),
        (
            {"factor": 4.0, "original_max_position_embeddings": 4096}
            | {"beta_fast": 64, "beta_slow": 2, "attention_factor": 0.5},
            yarn(4, 4096, 64, 2),
            0.5,
        ),
        (
            {"factor": 4.0, "original_max_position_embeddings": 4096}
            | {"mscale": 1.0, "mscale_all_dim": 0.5},
            yarn(4, 4096, 32, 1),
            (0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1),
        ),
        # as many times longer as the model's maximum says
        ({"original_max_position_embeddings": 16}, yarn(4, 16, 32, 1), 0.1 * math.log(4) + 1),
    ],
    ids=["plain", "betas", "mscale", "no-factor"],
)
def test_yarn(parameters, frequencies, scale, start):
    x = states(2, 6)
    found = embedding("yarn", **parameters).rotation(start, 6)(mx.array(x))
    expected = rotated(scale * x, np.arange(start, start + 6), frequencies)
    np.testing.assert_allclose(np.array(found), expected, atol=2e-5)


@pytest.mark.parametrize("length", [32, 33])
def test_longrope_takes_the_long_list_beyond_the_original_context(length):
    x = states(1, length)
    rope = embedding("longrope", original_max_position_embeddings=32, **LISTS)
    found = rope.rotation(0, length)(mx.array(x))
    factors = LISTS["long_factor" if length > 32 else "short_factor"]
    scale = math.sqrt(1 + math.log(2) / math.log(32))
    expected = rotated(scale * x, np.arange(length), PLAIN / np.array(factors))
    np.testing.assert_allclose(np.array(found), expected, atol=5e-5)


@pytest.mark.parametrize(
    ("rope_type", "parameters"),
    [("dynamic", {"factor": 2.0}), ("longrope", {"original_max_position_embeddings": 32, **LISTS})],
)
def test_each_row_is_as_long_as_it_is(rope_type, parameters):
    """Where frequencies depend on the length, those of one row are not another's."""
    x, rope = mx.array(states(3, 4)), embedding(rope_type, **parameters)
    starts = [0, 96, 20]
    together = rope.rotation(mx.array(starts), 4)(x)
    for row, start in enumerate(starts):
        alone = rope.rotation(start, 4)(x[row : row + 1])
        assert mx.array_equal(together[row : row + 1], alone)
    longest = rope.rotation(mx.array([96]), 4)(x[:1])
    assert mx.abs(together[:1] - longest).max().item() > 0.01


BY_LENGTH = {
    "dynamic": {"factor": 2.0},
    "longrope": {"original_max_position_embeddings": 67, **LISTS},
}


@pytest.mark.parametrize("rope_type", BY_LENGTH)
@pytest.mark.parametrize("starts", [[60], [66, 66, 66], [63, 40, 80]], ids=str)
def test_tokens_behind_a_prompt_are_as_long_as_if_they_came_alone(rope_type, starts):
    """Beside those of the prompt, whose length applies to all of it; each row's is its own."""
    rope, prompts = embedding(rope_type, **BY_LENGTH[rope_type]), [65, 66, 64][: len(starts)]
    x = mx.array(states(len(starts), 9))
    start = starts[0] if len({*starts}) == 1 else mx.array(starts)
    found = rope.rotation(start, 9, mx.array(prompts))(x)
    for row, (first, prompt) in enumerate(zip(starts, prompts, strict=True)):
        for token in range(9):
            length = max(prompt, first + token + 1)
            alone = rope.rotation(length - 1, 1)  # with the frequencies of this length
            if length == prompt:
                alone = rope.rotation(first + token, prompt - first - token)
            expected = alone(x[row : row + 1, :, token : token + 1])
            assert mx.array_equal(found[row : row + 1, :, token : token + 1], expected).item()
    assert mx.abs(found - rope.rotation(start, 9)(x)).max().item() > 1e-3  # all that long


def test_dynamic_beyond_the_maximum_grows_its_base():
    x = states(1, 100)
    found = embedding("dynamic", factor=2.0).rotation(0, 100)(mx.array(x))
    base = BASE * (2 * 100 / MAXIMUM - 1) ** (DIM / (DIM - 2))
    frequencies = base ** -(np.arange(0, DIM, 2) / DIM)
    np.testing.assert_allclose(np.array(found), rotated(x, np.arange(100), frequencies), atol=2e-4)


@pytest.mark.parametrize("rope_type", ["default", "dynamic"])
def test_parts_of_a_prompt_are_the_whole(rope_type):
    rope = embedding(rope_type, **({"factor": 2.0} if rope_type == "dynamic" else {}))
    x = mx.array(states(1, 90))
    whole = rope.rotation(0, 90)(x)
    first = rope.rotation(0, 50, mx.array([90]))(x[:, :, :50])
    second = rope.rotation(50, 40, mx.array([90]))(x[:, :, 50:])
    assert mx.abs(mx.concatenate([first, second], axis=2) - whole).max().item() <= 2e-5


def test_a_position_for_each_row_and_for_each_token():
    x = states(3, 4)
    rope = embedding()
    starts = np.array([0, 7, 2])
    expected = rotated(x, (starts[:, None] + np.arange(4))[:, None], PLAIN)
    by_row = rope.rotation(mx.array(starts), 4)(mx.array(x))
    np.testing.assert_allclose(np.array(by_row), expected, atol=2e-5)
    each = np.array([[3, 1, 4, 1], [5, 9, 2, 6], [5, 3, 5, 8]])
    by_token = rope.rotation(mx.array(each), 4)(mx.array(x))
    np.testing.assert_allclose(np.array(by_token), rotated(x, each[:, None], PLAIN), atol=2e-5)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rope_type": "spiral"}, "rope_type 'spiral' is not supported; supported are default"),
        ({"rope_type": "linear"}, "rope_parameters lack 'factor'"),
        ({"rope_type": "dynamic", "factor": None}, "make no sense together"),
        (
            {"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4},
            "make no sense together",
        ),
        ({"partial_rotary_factor": 0.5}, "heads are rotated whole"),
        (
            {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
            "1 factors for 8 frequencies",
        ),
    ],
)
def test_refused(parameters, message):
    with pytest.raises(CheckpointError, match=message):
        embedding(**parameters)


def test_both_forms_of_a_configuration():
    old = normalize_rope_parameters(None, 5e5, {"type": "linear", "factor": 2.0})
    new = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    assert old == new == normalize_rope_parameters(new, None, None)
    assert normalize_rope_parameters(None, None, None)["rope_theta"] == 10000.0


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("factor", 0, "a finite number, at least 1e-06 and at most 1e.06$"),
        ("factor", "2", "a finite number"),
        ("rope_theta", 1, "a finite number, above 1 and at most 1e.12"),
        ("rope_theta", None, "a finite number"),
        ("long_factor", [1.0, float("nan")], "a list in which each is a finite number"),
        ("original_max_position_embeddings", 2.5, "an integer"),
    ],
)
def test_parameters_out_of_range(name, value, rule):
    with pytest.raises(InputError, match=f"rope_parameters.{name} is .*must be {rule}"):
        normalize_rope_parameters({name: value}, None, None)


@pytest.mark.parametrize(
    ("rope_type", "parameters", "length"),
    [
        ("default", {}, MAXIMUM),
        ("default", {"factor": 4.0}, MAXIMUM),
        ("linear", {"factor": 4.0}, 4 * MAXIMUM),
        ("llama3", LLAMA3, 8 * 32),
        ("llama3", LLAMA3 | {"original_max_position_embeddings": 4}, MAXIMUM),
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ("yarn", {"factor": 1.5}, 96),
        ("longrope", LISTS | {"original_max_position_embeddings": 32}, MAXIMUM),
        ("longrope", LISTS | {"original_max_position_embeddings": 32, "factor": 4.0}, 128),
        ("dynamic", {"factor": 1.0}, 2**31 - 1),
    ],
)
def test_positions_that_a_rule_is_made_for(rope_type, parameters, length):
    assert embedding(rope_type, **parameters).context_length == length
