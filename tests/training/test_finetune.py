"""Fine-tuning from beginning to end, on four recordings that say something new."""

from __future__ import annotations

import json
import signal
from itertools import islice
from threading import Thread

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import DATA, TINY
from mlx.utils import tree_flatten

from mlx_speech import load, transcribe
from mlx_speech.errors import CheckpointError, InputError
from mlx_speech.layers.lora import replace_module
from mlx_speech.training.batches import iterate_batches
from mlx_speech.training.finetune import finetune
from mlx_speech.training.options import FineTuneOptions
from mlx_speech.training.reports import FineTuneCallback
from mlx_speech.training.state import STATE_FILE
from mlx_speech.training.trainable import Trainable, loss, loss_inputs

from .runs import TEXTS, Told, arrays, fresh, read_data, run

LAYERS = "language_model.model.layers"


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory):
    return read_data(tmp_path_factory.mktemp("data"), *tiny)


@pytest.fixture(scope="module")
def data_with_letters(tiny, tmp_path_factory):
    return read_data(tmp_path_factory.mktemp("data"), *tiny, train_ctc_head=True)


@pytest.mark.slow
def test_it_learns(data, tmp_path, capsys):
    """What is said in four recordings, in a few steps; and what is told of that."""
    schedule = {"name": "linear_schedule", "arguments": [1e-3, 5e-4, 20], "warmup": 2}
    options = {"batch_size": 4, "lora_scale": 2.0, "lr_schedule": schedule, "iters": 22}
    options |= {"steps_per_report": 4, "steps_per_eval": 10, "save_every": 8}
    options["optimizer_config"] = {"bias_correction": False}  # for larger first steps
    model, told, result = run(data, tmp_path, **options)
    assert [r.step for r in told.losses] == [4, 8, 12, 16, 20, 22]
    assert told.losses[0].loss > 1.2
    assert told.losses[-1].loss < 0.05
    assert result.train_loss == told.losses[-1].loss
    assert [r.step for r in told.validations] == [0, 10, 20, 22]
    first, last = told.validations[0], told.validations[-1]
    assert first.words == last.words == sum(len(TEXTS[n].split()) for n in list(TEXTS)[1:3])
    assert (first.word_error_rate > 90, last.word_error_rate) == (True, 0)
    assert (first.loss > 1.5, last.loss < 0.05) == (True, True)
    assert tuple(told.validations) == result.validations
    assert told.progress[:2] == [(0, 1), (1, 1)]
    assert told.saved == [8, 16, 22]
    assert (result.steps, result.stopped, result.adapter_path) == (22, False, tmp_path)
    assert told.losses[0].learning_rate == pytest.approx(1e-3, rel=0.05)
    assert told.losses[-1].learning_rate < 6e-4
    assert [r.seconds_left > 0 for r in told.losses] == [True] * 5 + [False]
    assert all(r.tokens_per_second > 0 and r.peak_memory > 1e6 for r in told.losses)
    trained = Trainable(fresh()[0], FineTuneOptions()).weights()
    assert result.trained_parameters == sum(value.size for value in trained.values())
    assert capsys.readouterr() == ("", "")
    names = {"adapter_config.json", "adapter_model.safetensors", STATE_FILE}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert not any(module.training for module in model.modules())
    # what was written does what was trained
    adapted = load(TINY, dtype=mx.float32, adapter=tmp_path)
    for name, text in TEXTS.items():
        assert transcribe(DATA / "audio" / name, adapted).text == text


@pytest.mark.parametrize(
    ("options", "starts"),
    [
        ({}, ("projector.",)),
        ({"fine_tune_type": "full", "num_layers": 1}, ("projector.", f"{LAYERS}.3.")),
        ({"fine_tune_type": "projector", "train_ctc_head": True}, ("projector.", "encoder.out.")),
    ],
)
def test_what_is_frozen_does_not_move(data, data_with_letters, tmp_path, options, starts):
    """By one bit, in five steps, the convolutions that BatchNorms are folded into included; and
    all that is trained does."""
    before = arrays(dict(tree_flatten(fresh()[0].parameters())))
    chosen = data_with_letters if "train_ctc_head" in options else data
    model = run(chosen, tmp_path, iters=5, optimizer="adamw", **options)[0]
    if not options:
        terms = {p: m for p, m in model.named_modules() if p.endswith(("q_proj", "v_proj"))}
        assert len(terms) == 8
        for path, layer in terms.items():
            assert mx.abs(layer.lora_b).max().item() > 0
            replace_module(model, path, layer.linear)
    after = arrays(dict(tree_flatten(model.parameters())))
    assert after.keys() == before.keys()
    frozen = {n for n in before if not n.startswith(starts) or ".lora_" in n}
    assert len(frozen) > 100
    for name, value in before.items():
        same = np.array_equal(value.view(np.uint8), after[name].view(np.uint8))
        assert same == (name in frozen), name


def test_resumed_training_is_what_it_would_have_been(data, tmp_path):
    """Step by step, with dropout and gradients that are accumulated; asked to stop at any time."""
    options = {
        "iters": 10,
        "batch_size": 1,
        "grad_accumulation_steps": 2,
        "steps_per_eval": 4,
        "save_every": 100,
        "lora_dropout": 0.2,
        "optimizer": "adamw",
        "lr_schedule": {"name": "cosine_decay", "arguments": [1e-3, 10], "warmup": 3},
    }
    _, whole, expected = run(data, tmp_path / "whole", **options)
    asked = iter([False] * 5)
    folder = tmp_path / "parts"
    stop = lambda: next(asked, True)  # noqa: E731
    _, first, result = run(data, folder, stop=stop, **options)
    assert result.stopped
    assert 0 < result.steps < 10
    assert result.steps % 2 == 0
    assert first.saved == [result.steps]
    _, second, result = run(data, folder, resume=True, **options)
    assert (result.steps, result.stopped) == (10, False)
    losses = [report.loss for report in first.losses + second.losses]
    np.testing.assert_allclose(losses, [report.loss for report in whole.losses], rtol=1e-6)
    rates = [report.learning_rate for report in first.losses + second.losses]
    assert rates == [report.learning_rate for report in whole.losses]
    assert len(set(rates)) == 5
    measured = [(v.step, v.loss, v.word_error_rate) for v in result.validations]
    assert measured == [(v.step, v.loss, v.word_error_rate) for v in expected.validations]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (8, 160, 0.2)
    assert (config["base_model_name_or_path"], config["revision"]) == (str(TINY), None)
    tensors = [mx.load(str(tmp_path / each / STATE_FILE)) for each in ("whole", "parts")]
    assert tensors[0].keys() == tensors[1].keys()
    for name, value in tensors[0].items():
        np.testing.assert_allclose(np.array(tensors[1][name]), np.array(value), rtol=1e-6)


def test_what_cannot_be_resumed(data, tmp_path):
    """One line each, and nothing is changed."""
    options = {"iters": 2, "fine_tune_type": "projector", "steps_per_eval": 100, "val_batches": 1}
    with pytest.raises(InputError, match="has no training in it to go on with; leave out resume"):
        run(data, tmp_path, resume=True, **options)
    run(data, tmp_path, **options)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="has training in it already; resume goes on with it"):
        run(data, tmp_path, **options)
    with pytest.raises(InputError, match="iters is 2, but must be at least 3"):
        run(data, tmp_path, resume=True, **options)
    more = {**options, "iters": 4, "resume": True}
    for name, value in (("learning_rate", 1e-3), ("batch_size", 1), ("seed", 1), ("num_layers", 0)):
        changed = {**more, name: value}
        if name == "num_layers":  # said or not, it is the same
            continue
        with pytest.raises(InputError, match=f"^{name} is {value}, but was .* resume goes on"):
            run(data, tmp_path, **changed)
    fewer = data._replace(train=data.valid)
    with pytest.raises(InputError, match=r"^number of rows is 2, but was 4 in"):
        run(fewer, tmp_path, **more)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    whole = (tmp_path / STATE_FILE).read_bytes()
    for damaged in (whole[:-100], whole[:50], b"", whole.replace(b"validations", b"validatoins")):
        (tmp_path / STATE_FILE).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{STATE_FILE} is damaged"):
            run(data, tmp_path, **more)
    (tmp_path / STATE_FILE).write_bytes(whole)
    assert run(data, tmp_path, **more)[2].steps == 4


@pytest.mark.parametrize("factor", [1e19, 1e43])
def test_loss_that_is_not_finite(data, tmp_path, factor):
    """Nor weights, before there is a loss of them: ends training; what was saved before stays."""
    options = {"iters": 9, "fine_tune_type": "projector", "save_every": 1, "steps_per_eval": 100}
    options |= {"optimizer": "sgd", "val_batches": 0}
    rate = {"name": "step_decay", "arguments": [1e-4, factor, 2]}
    with pytest.raises(
        InputError, match=r"not finite at step [0-9]: lower learning_rate"
    ) as raised:
        run(data._replace(valid=None), tmp_path, lr_schedule=rate, **options)
    state, metadata = mx.load(str(tmp_path / STATE_FILE), return_metadata=True)
    step = json.loads(metadata["training"])["step"]
    assert step >= 1
    assert f"what step {step} left is saved in {tmp_path}" in str(raised.value)
    assert all(mx.isfinite(v).all().item() for n, v in state.items() if n.startswith("weights."))
    load(TINY, adapter=tmp_path)


def test_no_step_is_left_behind_the_last_update(data, tmp_path):
    """So that whatever is saved has all of its gradients in it, and can be resumed exactly."""
    options = {"fine_tune_type": "projector", "grad_accumulation_steps": 2, "val_batches": 0}
    with pytest.raises(InputError, match=r"^iters is 1, but must be at least 2"):
        run(data, tmp_path, iters=1, **options)
    _, first, result = run(data, tmp_path, iters=3, save_every=1, **options)
    assert (result.steps, first.saved, result.validations) == (2, [2], ())
    assert [(r.step, r.iters) for r in first.losses] == [(1, 2), (2, 2)]
    with pytest.raises(InputError, match=r"^iters is 3, but must be at least 4"):
        run(data, tmp_path, iters=3, resume=True, **options)
    assert run(data, tmp_path, iters=5, resume=True, **options)[2].steps == 4


def test_accumulated_gradients_are_a_mean(data, tmp_path, monkeypatch):
    """Of two batches, whose losses are means themselves; an update takes it as one gradient."""
    monkeypatch.setattr(Trainable, "train", lambda self, mode=True: nn.Module.train(self, False))
    options = {"fine_tune_type": "projector", "optimizer": "sgd", "learning_rate": 0.1, "iters": 2}
    trained = run(data, tmp_path, grad_accumulation_steps=2, **options)[0]
    prepared = Trainable(fresh()[0], FineTuneOptions(fine_tune_type="projector"))
    batches = islice(iterate_batches(data.train, 2, 2048, loop=True, seed=0), 2)
    trees = [
        nn.value_and_grad(prepared, loss)(prepared, *loss_inputs(batch))[1] for batch in batches
    ]
    one, two = (dict(tree_flatten(tree)) for tree in trees)
    after = dict(tree_flatten(trained.parameters()))
    for name, before in prepared.weights().items():
        step = 0.05 * (one[f"model.{name}"] + two[f"model.{name}"])
        np.testing.assert_allclose(np.array(after[name]), np.array(before - step), atol=1e-6)
        assert mx.abs(step).max().item() > (0 if name.endswith("key.bias") else 1e-5)


def test_a_seed_of_ones_own(data, tmp_path, monkeypatch):
    """Recordings come in another order."""
    monkeypatch.setattr(Trainable, "train", lambda self, mode=True: nn.Module.train(self, False))
    options = {"fine_tune_type": "projector", "learning_rate": 1e-12, "iters": 4, "batch_size": 1}
    losses = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        told = run(data._replace(valid=None), folder, seed=seed, **options)[1]
        losses.append([report.loss for report in told.losses])
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert sorted(losses[0]) == pytest.approx(sorted(losses[1]), rel=1e-3)


def test_a_callback_and_a_stop_of_ones_own(data, tmp_path):
    """Asked to stop before the first step, it does nothing; other threads have no Ctrl-C."""
    results = []
    options = {"iters": 4, "fine_tune_type": "projector"}
    thread = Thread(
        target=lambda: results.append(run(data, tmp_path, stop=lambda: True, **options))
    )
    thread.start()
    thread.join()
    _, told, result = results[0]
    assert (result.steps, result.stopped, result.train_loss) == (0, True, None)
    assert told.losses == told.validations == told.saved == []
    assert [*tmp_path.iterdir()] == []


def test_mlx_lm_is_left_as_it_was(data, tmp_path):
    from mlx_lm.tuner import trainer

    layer = type(fresh()[0].language_model.model.layers[0])
    before = trainer.TrainUI, layer.__call__, signal.getsignal(signal.SIGINT)
    options = {"iters": 2, "grad_checkpoint": True, "steps_per_eval": 1}
    _, told, _ = run(data, tmp_path, **options)
    assert len(told.validations) == 3
    assert before == (trainer.TrainUI, layer.__call__, signal.getsignal(signal.SIGINT))
    assert compiles()


def compiles() -> bool:
    """Whether `mx.compile` does anything."""
    traced = []
    function = mx.compile(lambda x: traced.append(x) or x)
    for _ in range(2):
        function(mx.array(1))
    return len(traced) == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_compiled_on_a_cpu(data, tmp_path, enabled):
    """That would take minutes; whoever has turned it off keeps it so."""
    found = []

    def stop() -> bool:
        found.append(compiles())
        return len(found) > 1

    if not enabled:
        mx.disable_compile()
    try:
        run(data._replace(valid=None), tmp_path, stop=stop, fine_tune_type="projector")
        assert compiles() == enabled
    finally:
        mx.enable_compile()
    assert set(found) == {mx.default_device().type != mx.DeviceType.cpu and enabled}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_schedule": {"name": "no_such", "arguments": [1]}}, "^lr_schedule is .*mlx_lm.lora"),
        ({"lr_schedule": {"name": "cosine_decay"}}, "^lr_schedule is "),
        ({"lr_schedule": {"name": "cosine_decay", "arguments": [1]}}, "^lr_schedule is "),
        ({"optimizer_config": {"momentum": 1}}, "^optimizer_config is .*mlx.optimizers.Adam "),
    ],
)
def test_optimizers_that_there_are_not(data, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        run(data, tmp_path, iters=1, **options)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("optimizer", ["adam", "muon", "adafactor"])
def test_optimizers(data, tmp_path, optimizer):
    """Each of them lowers the loss, and goes on where it was."""
    options = {"optimizer": optimizer, "learning_rate": 1e-3, "val_batches": 1, "num_layers": 1}
    _, first, _ = run(data, tmp_path, iters=3, **options)
    _, second, result = run(data, tmp_path, iters=6, resume=True, **options)
    assert result.steps == 6
    assert second.validations[-1].loss < first.validations[0].loss


def test_interrupt(data, tmp_path):
    """Ctrl-C ends after an update, with all of it saved."""

    class Interrupting(Told):
        def on_train_loss_report(self, report):
            if report.step == 3:
                signal.raise_signal(signal.SIGINT)

    options = FineTuneOptions(
        fine_tune_type="projector",
        iters=100000,
        batch_size=2,
        grad_accumulation_steps=2,
        steps_per_report=1,
        adapter_path=str(tmp_path),
    )
    handler = signal.getsignal(signal.SIGINT)
    result = finetune(*fresh(), data.train, data.valid, options, callback=Interrupting())
    assert (result.steps, result.stopped) == (4, True)
    assert signal.getsignal(signal.SIGINT) is handler
    names = {"adapter_config.json", "adapter_model.safetensors", STATE_FILE}
    assert {path.name for path in tmp_path.iterdir()} == names
    _, metadata = mx.load(str(tmp_path / STATE_FILE), return_metadata=True)
    assert json.loads(metadata["training"])["step"] == 4
    load(TINY, adapter=tmp_path)


def test_a_second_interrupt_ends_it_at_once(data, tmp_path):
    class Impatient(FineTuneCallback):
        def on_train_loss_report(self, report):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    path = str(tmp_path)
    options = FineTuneOptions(fine_tune_type="projector", adapter_path=path, steps_per_report=1)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        finetune(*fresh(), data.train, None, options, callback=Impatient())
    assert signal.getsignal(signal.SIGINT) is handler
    assert [*tmp_path.iterdir()] == []
