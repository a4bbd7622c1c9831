"""What is trained of a model, and what is frozen."""

from __future__ import annotations

import shutil

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from adapters import FIRST_QUERIES, adapter
from conftest import TINY, edit_json
from mlx.utils import tree_flatten

from mlx_speech.errors import InputError, UnsupportedOptionError
from mlx_speech.layers.lora import LoRALinear
from mlx_speech.loading import load_model
from mlx_speech.models.loss import causal_lm_loss
from mlx_speech.training.batches import iterate_batches
from mlx_speech.training.options import FineTuneOptions
from mlx_speech.training.trainable import (
    Trainable,
    check_trainable,
    loss,
    loss_inputs,
    restored_layers,
)

from .runs import arrays, fresh, read_data

LAYERS = "language_model.model.layers"


@pytest.fixture(scope="module")
def batches(tiny, tmp_path_factory):
    """By whether the CTC head is trained: the recordings in two batches."""
    found = {}

    def get(train_ctc_head: bool):
        if train_ctc_head not in found:
            folder = tmp_path_factory.mktemp("data")
            data = read_data(folder, *tiny, train_ctc_head=train_ctc_head)
            found[train_ctc_head] = list(iterate_batches(data.train, 2, 2048))
        return found[train_ctc_head]

    return get


def trainable(**options) -> Trainable:
    return Trainable(fresh()[0], FineTuneOptions(**options))


def gradients(prepared: Trainable, batch) -> tuple[float, dict[str, mx.array]]:
    mx.random.seed(5)
    (value, _), tree = nn.value_and_grad(prepared, loss)(prepared, *loss_inputs(batch))
    return value.item(), dict(tree_flatten(tree))


@pytest.mark.parametrize(
    ("options", "starts"),
    [
        ({"fine_tune_type": "projector"}, ["projector."]),
        ({"fine_tune_type": "full", "num_layers": 1}, ["projector.", f"{LAYERS}.3."]),
        ({"fine_tune_type": "full"}, ["projector.", f"{LAYERS}."]),
        (
            {"num_layers": 2, "train_ctc_head": True},
            [
                *("projector.", "encoder.out."),
                *(f"{LAYERS}.{i}.self_attn.{n}_proj.lora_" for i in (2, 3) for n in "qv"),
            ],
        ),
        (
            {"num_layers": 1, "lora_keys": ["o_proj", "mlp.down_proj"]},
            [
                *("projector.", f"{LAYERS}.3.self_attn.o_proj.lora_"),
                f"{LAYERS}.3.mlp.down_proj.lora_",
            ],
        ),
    ],
)
def test_what_is_trained(options, starts):
    """All of it and nothing else; in a model that has an adapter that is not."""
    model = fresh()[0]
    before = {name for name, _ in tree_flatten(model.parameters())}
    prepared = Trainable(model, FineTuneOptions(**options))
    trained = prepared.weights().keys()
    terms = {name for name in trained if ".lora_" in name}
    assert {s for s in starts if any(n.startswith(s) for n in trained)} == set(starts)
    assert all(name.startswith(tuple(starts)) for name in trained)
    if options.get("fine_tune_type") == "full":
        adapted = [module for module in model.modules() if isinstance(module, LoRALinear)]
        assert adapted
        assert not terms
        expected = {n for n in before if n.startswith(tuple(starts)) and ".lora_" not in n}
        assert trained == expected
    paths = prepared.low_rank_terms().keys()
    assert {f"{path}.lora_{which}" for path in paths for which in "ab"} == terms
    frozen = {name for name, _ in tree_flatten(model.parameters())} - trained
    whole = trained - terms
    assert {n.replace("_proj.linear.", "_proj.") for n in frozen} == before - whole


def test_modules_that_are_trained_are_in_training_mode():
    prepared = trainable(fine_tune_type="full", num_layers=1, train_ctc_head=True)
    for mode in (True, False):
        prepared.train(mode)
        modules = prepared.model.named_modules()
        starts = ("projector", "encoder.out", f"{LAYERS}.3")
        on = {n for n, m in modules if m.training}
        expected = {n for n, _ in modules if f"{n}.".startswith(tuple(f"{s}." for s in starts))}
        assert on == (expected if mode else set())
    prepared = trainable(num_layers=1, lora_dropout=0.5)
    ends = {n for n, m in prepared.model.named_modules() if m.training and "projector" not in n}
    names = {f"{LAYERS}.3.self_attn.{n}_proj.dropout" for n in "qv"}
    assert ends == names


@pytest.mark.parametrize("train_ctc_head", [False, True])
def test_dropout_is_random_and_only_in_training(batches, train_ctc_head):
    prepared = trainable(train_ctc_head=train_ctc_head, num_layers=1)
    batch = batches(train_ctc_head)[0]
    values = {loss(prepared, *loss_inputs(batch))[0].item() for _ in range(3)}
    assert len(values) == 3
    prepared.eval()
    assert len({loss(prepared, *loss_inputs(batch))[0].item() for _ in range(2)}) == 1


def test_loss_is_that_of_the_models_own_call(batches):
    """With logits as its decoder scales them; the batch is what the labels that count in its rows
    are together."""
    model = fresh()[0]
    prepared = Trainable(model, FineTuneOptions(num_layers=1)).eval()
    batch = batches(False)[0]
    total = count = 0
    for ids, labels, places, audio, length in zip(*batch[:5], strict=True):
        end = int((mx.arange(len(labels)) * (labels >= 0)).max().item()) + 1
        features = model.project(audio[None, : length.item()])
        assert features.shape[1] == (places >= 0).sum().item()
        output = model(ids[None, :end], audio_features=features)
        number = (labels >= 0).sum().item()
        logits = output.logits / model.config.text_config.logits_scaling
        total += causal_lm_loss(logits, labels[None, :end]).item() * number
        count += number
    value, counted = loss(prepared, *loss_inputs(batch))
    assert counted.item() == count
    assert value.item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("train_ctc_head", [False, True])
def test_nothing_waits_for_values(batches, train_ctc_head):
    """A step is compiled: while it is traced, there are none."""
    prepared = trainable(train_ctc_head=train_ctc_head, num_layers=1)

    @mx.compile
    def step(*inputs):
        return nn.value_and_grad(prepared, loss)(prepared, *inputs)

    state = arrays(prepared.weights())
    step(*loss_inputs(batches(train_ctc_head)[0]))
    prepared.model.load_weights([(k, mx.array(v)) for k, v in state.items()], strict=False)


def test_gradient_checkpointing_changes_no_gradient(batches):
    from mlx_lm.tuner.trainer import grad_checkpoint

    prepared = trainable()
    rng = np.random.default_rng(0)
    drawn = {
        name: mx.array(rng.normal(0, 0.1, value.shape).astype(np.float32))
        for name, value in prepared.weights().items()
        if name.endswith("lora_b")
    }
    prepared.model.load_weights(list(drawn.items()), strict=False)
    prepared.eval()
    batch = batches(False)[0]
    value, expected = gradients(prepared, batch)
    kind = type(prepared.layers[0])
    call = kind.__call__
    with restored_layers(prepared):
        grad_checkpoint(prepared.layers[0])
        assert kind.__call__ is not call
        again, found = gradients(prepared, batch)
    assert kind.__call__ is call
    assert again == pytest.approx(value, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert mx.abs(found[name] - gradient).max().item() <= 1e-5 * mx.abs(gradient).max().item()


def test_what_is_trained_is_kept_in_float32(batches):
    model = fresh()[0].to(mx.bfloat16)
    prepared = Trainable(model, FineTuneOptions(train_ctc_head=True))
    assert {value.dtype for value in prepared.weights().values()} == {mx.float32}
    frozen = dict(tree_flatten(model.parameters())).keys() - prepared.weights().keys()
    parameters = dict(tree_flatten(model.parameters()))
    assert {parameters[name].dtype for name in frozen} == {mx.bfloat16}
    value, found = gradients(prepared, batches(True)[0])
    assert np.isfinite(value)
    assert {gradient.dtype for gradient in found.values()} == {mx.float32}


@pytest.mark.parametrize("fine_tune_type", ["lora", "full"])
def test_quantized_model(batches, fine_tune_type):
    """Low-rank terms stand over quantized layers; what is trained whole is dequantized."""
    model = fresh()[0]
    nn.quantize(model.language_model, group_size=32, bits=4)
    nn.quantize(model.projector, group_size=32, bits=8)
    prepared = Trainable(model, FineTuneOptions(fine_tune_type=fine_tune_type, num_layers=1))
    quantized = {n for n, m in model.named_modules() if isinstance(m, nn.QuantizedLinear)}
    assert not any(name.startswith("projector") for name in quantized)
    inside = any(name.startswith(f"{LAYERS}.3") for name in quantized)
    assert inside == (fine_tune_type == "lora")
    assert any(name.startswith(f"{LAYERS}.2") for name in quantized)
    _, found = gradients(prepared, batches(False)[0])
    assert {name.removeprefix("model.") for name in found} == prepared.weights().keys()
    assert all(mx.isfinite(gradient).all().item() for gradient in found.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_keys": ["q_proj", "qkv"]}, "lora_keys is 'qkv', but must be ends of .*q_proj"),
        ({"lora_keys": []}, "lora_keys is "),
        ({"lora_keys": ["base"]}, "lora_keys is 'base'"),
        ({"num_layers": 5}, "num_layers is 5, but must be within 1 and 4"),
        ({"num_layers": 0}, "num_layers is 0, but must be within 1 and 4"),
        ({"num_layers": 9, "fine_tune_type": "full"}, "num_layers is 9"),
        ({"num_layers": 2, "fine_tune_type": "projector"}, "num_layers is 2, but must be 0"),
    ],
)
def test_layers_that_are_not_there(options, message):
    with pytest.raises(InputError, match=message):
        trainable(**options)


def test_layers_that_are_computed_twice_have_no_dropout():
    """The second time it would be another, and gradients those of another loss."""
    with pytest.raises(InputError, match="leave out lora_dropout"):
        trainable(grad_checkpoint=True, lora_dropout=0.1)
    model = fresh()[0]
    model.config.text_config.attention_dropout = 0.1
    with pytest.raises(InputError, match="grad_checkpoint computes layers twice"):
        Trainable(model, FineTuneOptions(fine_tune_type="full", grad_checkpoint=True))
    Trainable(model, FineTuneOptions(grad_checkpoint=True))


def test_a_model_that_was_trained_before(tmp_path):
    """What is trained over it would do something else over the model alone."""
    model = fresh()[0]
    adapter(tmp_path / "terms", model, lora=[FIRST_QUERIES])
    adapter(tmp_path / "whole", model, saved=["projector"])
    plain = tmp_path / "plain"
    shutil.copytree(TINY, plain, ignore=shutil.ignore_patterns("adapter_*"))
    edit_json(plain / "config.json", has_lora_adapter=False)
    Trainable(load_model(plain), FineTuneOptions())
    for base in (TINY, plain):
        for kind in ("terms", "whole"):
            with pytest.raises(UnsupportedOptionError, match="load it without"):
                Trainable(load_model(base, adapter=tmp_path / kind), FineTuneOptions())


def test_other_families():
    for model_type in ("granite_speech", "granite_speech_plus"):
        check_trainable(model_type)
    for model_type in ("granite", "llama"):
        with pytest.raises(UnsupportedOptionError, match=r"mlx_lm\.lora --train trains it"):
            check_trainable(model_type)
    with pytest.raises(UnsupportedOptionError, match=r"mlx_lm\.lora, which has no such model"):
        check_trainable("jais2")
    for model_type in ("speech_to_text", "granite_speech_nar", "nle", "granite_speech5_ctc", None):
        with pytest.raises(UnsupportedOptionError, match="granite_speech and granite_speech_plus"):
            check_trainable(model_type)
