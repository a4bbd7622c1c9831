"""Low-rank adapters: the sum, the switch, and what does not fit."""

from __future__ import annotations

import threading

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_speech.checkpoint.adapters import apply_adapter
from mlx_speech.errors import CheckpointError
from mlx_speech.layers.lora import LoRALinear, use_adapter
from mlx_speech.layers.lora_config import LoraConfig


class Model(nn.Module):
    adapter_by_default, config, tied_embeddings = False, None, "embed_tokens."

    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(6, 4), nn.Linear(6, 4)

    def rename(self, name):
        return name

    def checkpoint_names(self, name):
        return (name,)

    def sanitize(self, weights, config):
        return weights


def tensors(*modules: str, rank: int = 2) -> dict[str, mx.array]:
    keys = iter(mx.random.split(mx.random.key(3), 2 * len(modules)))
    return {
        f"{module}.lora_{part}.weight": mx.random.normal(shape, key=next(keys))
        for module in modules
        for part, shape in (("A", (rank, 6)), ("B", (4, rank)))
    }


def adapted(weights: dict[str, mx.array] | None = None, **config) -> Model:
    model = Model()
    settings = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
    apply_adapter(model, LoraConfig.from_dict(settings), weights or tensors("q_proj"), mx.float32)
    return model


X = mx.random.normal((3, 6), key=mx.random.key(1))


def test_the_low_rank_sum_is_added_and_only_when_it_is_on():
    weights = tensors("q_proj")
    model = adapted(weights)
    plain = model.q_proj.base(X)
    delta = 4.0 * (weights["q_proj.lora_B.weight"] @ weights["q_proj.lora_A.weight"])
    assert mx.array_equal(model.q_proj(X), plain)
    with use_adapter(True):
        assert mx.allclose(model.q_proj(X), plain + X @ delta.T, atol=1e-5)
        assert not mx.allclose(model.q_proj(X), plain)
        with use_adapter(False):
            assert mx.array_equal(model.q_proj(X), plain)
    assert not isinstance(model.v_proj, LoRALinear)


def test_the_switch_is_the_threads_own():
    model, found = adapted(), []
    plain = model.q_proj(X)
    mx.eval(plain)

    def other():
        found.append(mx.array_equal(model.q_proj(X), plain).item())
        mx.clear_streams()

    with use_adapter(True):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert found == [True]


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 8 / 2),
        ({"use_rslora": True}, 8 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 3}}, 3 / 2),
        ({"alpha_pattern": {"v_proj": 3}}, 8 / 2),
        ({"r": 7, "rank_pattern": {"q_pr.j": 2}}, 8 / 2),
    ],
)
def test_scale(config, scale):
    assert adapted(**config).q_proj.scale == pytest.approx(scale)


@pytest.mark.parametrize(
    ("weights", "config", "message"),
    [
        ({"q_proj.weight": mx.zeros((4, 6))}, {}, "of no module .* may have: q_proj.weight"),
        (tensors("k_proj"), {}, "k_proj is no layer of this model"),
        (tensors("q_proj", rank=3), {}, "has shapes"),
        (tensors("q_proj", "v_proj"), {}, "1 modules are not among target_modules: v_proj"),
        (tensors("q_proj"), {"target_modules": ["q_proj", "v_proj"]}, "missing: v_proj"),
        (
            {"q_proj.lora_A.weight": mx.zeros((2, 6))},
            {},
            "q_proj lacks lora_A or lora_B",
        ),
    ],
)
def test_what_does_not_fit(weights, config, message):
    with pytest.raises(CheckpointError, match=message):
        adapted(weights, **config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"bias": "all"}, "trained biases are not supported"),
        ({"r": 0}, r"adapter_config\.json: r is 0, but must be an integer, at least 1"),
        ({"r": 10**9}, "r is 1000000000, but must be an integer"),
        (
            {"lora_alpha": float("nan")},
            "lora_alpha is nan, but must be a finite number, at least 1e",
        ),
        ({"rank_pattern": {"q": -1}}, r"rank_pattern is .*an object in which each is an integer"),
        ({"alpha_pattern": ["q"]}, "alpha_pattern is"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform is"),
        ({"target_modules": ["q_proj", 5]}, "target_modules is"),
        (
            {"target_modules": "("},
            r"adapter_config\.json: target_modules is '\(', but must be",
        ),
        ({"exclude_modules": "("}, "exclude_modules is"),
        ({"layers_pattern": ["("]}, "layers_pattern is"),
        ({"layers_pattern": ")("}, "layers_pattern is"),
        ({"rank_pattern": {"(": 1}}, "rank_pattern is"),
        ({"rank_pattern": {")(": 1}}, "rank_pattern is"),
        ({"alpha_pattern": {"x)|(?:y": 1}}, "alpha_pattern is"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern is"),
    ],
)
def test_other_kinds(config, message):
    with pytest.raises(CheckpointError, match=message):
        LoraConfig.from_dict(config)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"target_modules": ["q_proj"]}, {"a.layers.0.q_proj", "a.layers.1.q_proj"}),
        ({"target_modules": ["layers.1.q_proj"]}, {"a.layers.1.q_proj"}),
        ({"target_modules": r".*\.0\..*"}, {"a.layers.0.q_proj", "a.layers.0.mlp"}),
        (
            {"target_modules": "all-linear", "exclude_modules": ["mlp"]},
            {"a.layers.0.q_proj", "a.layers.1.q_proj"},
        ),
        (
            {"target_modules": ["q_proj", "mlp"], "layers_to_transform": 0},
            {"a.layers.0.q_proj", "a.layers.0.mlp"},
        ),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, {"a.layers.1.q_proj"}),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "blocks"},
            set(),
        ),
        (
            {"target_modules": ["mlp"], "layers_to_transform": [1.0], "layers_pattern": "(l)ayers"},
            {"a.layers.1.mlp"},
        ),
        (
            {"target_modules": ["mlp"], "layers_to_transform": 1, "layers_pattern": "h|layers"},
            {"a.layers.1.mlp"},
        ),
    ],
    ids=[
        "ends",
        "longer-end",
        "pattern",
        "all",
        "layer",
        "layers",
        "other-layers",
        "group",
        "either",
    ],
)
def test_modules_that_are_named(config, names):
    modules = [f"a.layers.{i}.{name}" for i in (0, 1) for name in ("q_proj", "mlp")]
    settings = LoraConfig.from_dict(config)
    assert {name for name in [*modules, "lm_head", "out_llm"] if settings.adapts(name)} == names


def test_over_a_quantized_layer():
    """Its shape is that of what it stands for."""
    model = Model()
    model.q_proj = nn.Linear(64, 4).to_quantized(group_size=64, bits=4)
    a, b = (
        mx.random.normal((2, 64), key=mx.random.key(5)),
        tensors("q_proj")["q_proj.lora_B.weight"],
    )
    weights = {"q_proj.lora_A.weight": a, "q_proj.lora_B.weight": b}
    config = LoraConfig.from_dict({"r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]})
    apply_adapter(model, config, weights, mx.float32)
    x = mx.random.normal((3, 64), key=mx.random.key(6))
    with use_adapter(True):
        assert mx.allclose(model.q_proj(x), model.q_proj.base(x) + 4 * (x @ a.T @ b.T), atol=1e-4)
