"""A step of fine-tuning against torch, float32: the loss, and the gradient of every tensor that is
trained, the norm of the difference within 1e-4 of its norm. Torch computes it row by row, with
transformers' whole model, in training mode but for what is frozen.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from mlx_lm.tuner import trainer
from peft import LoraConfig
from torch.nn import functional as F  # noqa: N812

from mlx_speech.training.batches import Batch
from mlx_speech.training.finetune import make_optimizer
from mlx_speech.training.options import FineTuneOptions
from mlx_speech.training.trainable import Trainable, loss, loss_inputs

from .random_models import (
    AUDIO,
    PAD,
    SPEECH_CASES,
    Pair,
    edit_config,
    features,
    save_speech,
    tensor,
    text_ids,
)

pytestmark = pytest.mark.filterwarnings("error", "ignore:Already found a `peft_config`:UserWarning")

TOLERANCE = 1e-4
SCALE, RANK = 1.5, 3
FRAMES, ANSWERS = (31, 8, 17), (6, 9, 4)
#: without dropout, which is random
CASES = {
    name: replace(
        SPEECH_CASES[name],
        projector=SPEECH_CASES[name].projector
        | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    )
    for name in (
        *("three-layers-untied", "two-layers-untied-lora"),
        *("plus-input-and-middle", "plus-middle-lora"),
    )
}
DIVIDED = ("three-layers-untied", "plus-middle-lora")  #: as the released models' logits are
KINDS = {
    "projector": {"fine_tune_type": "projector"},
    "lora": {"lora_rank": RANK, "lora_scale": SCALE},
    "full": {"fine_tune_type": "full", "num_layers": 1},
    "lora-ctc": {"lora_rank": RANK, "lora_scale": SCALE, "num_layers": 1, "train_ctc_head": True}
    | {"lora_keys": ["o_proj", "mlp.down_proj"]},
    "projector-ctc": {"fine_tune_type": "projector", "train_ctc_head": True},
}


class Rows:
    """A batch, and the same for torch row by row."""

    def __init__(self, pair: Pair, with_features: bool, seed: int = 0):
        config = pair.ours.config
        width, labels = config.encoder_config.input_dim, config.encoder_config.output_dim
        window, tokens = config.window_size, config.window_size // config.downsample_rate
        rng = np.random.default_rng(seed)
        self.features = [features(1, frames, width, seed)[0] for frames in FRAMES]
        self.ids, self.labels, positions, self.letters = [], [], [], []
        for row, (frames, answer) in enumerate(zip(FRAMES, ANSWERS, strict=True)):
            count = -(-frames // window) * tokens
            before, after = text_ids(1, 3, seed + row)[0], text_ids(1, 4 + row, seed + row + 9)[0]
            answered = text_ids(1, answer, seed + row + 18)[0]
            prompt = [*before, *[AUDIO] * count, *after]
            self.ids.append(np.array([*prompt, *answered]))
            self.labels.append(np.array([*[-100] * len(prompt), *answered]))
            positions.append([*[-1] * 3, *range(count), *[-1] * (len(after) + answer)])
            self.letters.append(rng.integers(1, labels, min(4, frames // 3)))
        audio = self.features
        if not with_features:
            encoded = [pair.ours.encoder(mx.array(x[None])).last_hidden_state[0] for x in audio]
            audio = [np.array(states) for states in encoded]
        self.batch = Batch(
            _padded(self.ids, PAD),
            _padded(self.labels, -100),
            _padded(positions, -1),
            mx.array(np.stack([np.pad(x, ((0, 40 - len(x)), (0, 0))) for x in audio])),
            mx.array(FRAMES),
            _padded(self.letters, -100) if with_features else mx.zeros((3, 0), mx.int32),
        )

    def torch_loss(self, model, scaling: float, with_ctc: bool) -> torch.Tensor:
        total, of_letters = torch.zeros(()), torch.zeros(())
        for ids, labels, x, letters in zip(
            self.ids, self.labels, self.features, self.letters, strict=True
        ):
            inputs = {"input_ids": tensor(ids[None]), "input_features": tensor(x[None])}
            logits = model(**inputs).logits[0] / scaling
            total = total + F.cross_entropy(logits[:-1], tensor(labels[1:]), reduction="sum")
            if with_ctc:
                encoder = model.model.encoder
                states = encoder(tensor(x[None])).last_hidden_state
                logits = encoder.out(states[..., -encoder.config.hidden_dim :])
                logprobs = logits.log_softmax(-1).transpose(0, 1)
                sizes = [torch.tensor([len(each)]) for each in (x, letters)]
                of_letters = of_letters + F.ctc_loss(logprobs, tensor(letters[None]), *sizes)
        return total / sum(ANSWERS) + of_letters / len(FRAMES)


def _padded(rows, fill: int) -> mx.array:
    length = max(map(len, rows)) + 3
    return mx.array([[*map(int, row), *[fill] * (length - len(row))] for row in rows])


@pytest.fixture(autouse=True)
def uncompiled():
    """On a CPU MLX compiles with the system's compiler, which takes longer than the tests."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """By the name of a case: the folder of its model, and transformers' model."""
    saved = {}

    def get(name: str):
        if name not in saved:
            folder = tmp_path_factory.mktemp(name)
            saved[name] = folder, save_speech(CASES[name], folder)
            if name in DIVIDED:
                edit_config(folder, transformers_version="4.57.1")
        return saved[name]

    return get


@contextmanager
def prepared(folders, name: str, **options):
    """A pair of models, ours prepared for training as a `Trainable`, the reference likewise; and
    transformers' names of what is trained by ours."""
    folder, reference = folders(name)
    pair = Pair.load(reference, folder)
    chosen = FineTuneOptions(**options)
    before = Rows(pair, chosen.train_ctc_head)
    trainable = Trainable(pair.ours, chosen)
    rng = np.random.default_rng(3)
    drawn = {
        key: mx.array(rng.normal(0, 0.3, value.shape).astype(np.float32))
        for key, value in trainable.weights().items()
        if ".lora_" in key
    }
    pair.ours.load_weights(list(drawn.items()), strict=False)
    if trainable.trained.terms:
        paths = [reference_name(pair, path) for path in trainable.trained.terms]
        config = LoraConfig(r=RANK, lora_alpha=SCALE * RANK, target_modules=paths)
        reference.add_adapter(config, adapter_name="trained")
        reference.set_adapter(["default", "trained"] if pair.has_adapter else ["trained"])
    names, kept = {}, {}
    try:
        reference.requires_grad_(False)
        parameters = dict(reference.named_parameters())
        plain = {key.replace(".base_layer.", "."): key for key in parameters}
        for key, value in trainable.weights().items():
            theirs = plain[reference_name(pair, key)]
            names[key] = theirs
            parameter = parameters[theirs]
            kept[parameter] = parameter.detach().clone()
            parameter.requires_grad_(True).grad = None
            if key in drawn:
                parameter.data.copy_(tensor(np.array(value)).T)
        reference.train()
        reference.model.encoder.eval()
        yield pair, trainable, reference, names, before
    finally:
        for parameter, value in kept.items():
            parameter.data.copy_(value)
        if trainable.trained.terms:
            reference.delete_adapter("trained")
            if pair.has_adapter:
                reference.set_adapter("default")
        reference.eval()


def reference_name(pair: Pair, name: str) -> str:
    """Of a tensor or module in transformers' model, without what its adapter adds."""
    name = name.replace(".base.", ".")
    for ours, theirs in (
        (".lora_a", ".lora_A.trained.weight"),
        (".lora_b", ".lora_B.trained.weight"),
    ):
        name = name.replace(ours, theirs)
    return pair.ours.checkpoint_names(name)[-1]


def gradients(trainable: Trainable, batch: Batch) -> tuple[float, dict[str, np.ndarray]]:
    (value, _), tree = nn.value_and_grad(trainable, loss)(trainable, *loss_inputs(batch))
    found = {key.removeprefix("model."): np.array(g) for key, g in tree_flatten(tree)}
    return value.item(), found


def assert_near(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """Tensor by tensor; what is nothing in theory, as the gradient of a bias of keys, is small."""
    assert ours.keys() == theirs.keys()
    largest = max(map(np.linalg.norm, theirs.values()))
    for name, value in theirs.items():
        assert value.shape == ours[name].shape
        norm, difference = np.linalg.norm(value), np.linalg.norm(value - ours[name])
        if name.endswith("key.bias"):
            assert max(norm, difference) < 1e-5 * largest, name
        else:
            assert norm > 1e-6 * largest, name
            assert difference <= TOLERANCE * norm, f"{name}: {difference / norm:.1e}"


def of_torch(reference, names: dict[str, str], what: str = "grad") -> dict[str, np.ndarray]:
    parameters = dict(reference.named_parameters())
    found = {}
    for ours, theirs in names.items():
        value = parameters[theirs].grad if what == "grad" else parameters[theirs].detach()
        found[ours] = (value.T if ".lora_" in ours else value).numpy().copy()
    return found


def expected_names(reference, kind: str) -> set[str]:
    """What is to be trained, among transformers' names."""
    layers = len(reference.model.language_model.layers)
    starts = ["model.projector."]
    if KINDS[kind].get("train_ctc_head"):
        starts.append("model.encoder.out.")
    if kind == "full":
        starts.append(f"model.language_model.layers.{layers - 1}.")
    return {
        name
        for name, _ in reference.named_parameters()
        if (name.startswith(tuple(starts)) and ".lora_" not in name) or ".trained." in name
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients(folders, name, kind):
    with prepared(folders, name, **KINDS[kind]) as (pair, trainable, reference, names, rows):
        assert set(names.values()) == expected_names(reference, kind)
        assert pair.ours.config.logits_divisor == (4.0 if name in DIVIDED else 1.0)
        scaling = pair.ours.config.text_config.logits_scaling
        value, ours = gradients(trainable, rows.batch)
        expected = rows.torch_loss(reference, scaling, trainable.runs_encoder)
        expected.backward()
        assert value == pytest.approx(expected.item(), rel=1e-5)
        assert_near(ours, of_torch(reference, names))


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("name", ["two-layers-untied-lora", "plus-input-and-middle"])
def test_a_step_of_adamw(folders, name, kind, tmp_path):
    """The whole of it: what mlx-lm's trainer makes of the tensors is what torch's AdamW does. Its
    epsilon is large, since what is nothing in theory has a random sign."""
    settings = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1}
    config = {"betas": [0.9, 0.99], "eps": 1e-3, "weight_decay": 0.1, "bias_correction": True}
    options = KINDS[kind] | {"optimizer": "adamw", "optimizer_config": config, "batch_size": 3}
    options |= {"learning_rate": 1e-2, "iters": 2}
    with prepared(folders, name, **options) as (pair, trainable, reference, names, rows):
        before = of_torch(reference, names, "value")
        optimizer = torch.optim.AdamW(
            [p for p in reference.parameters() if p.requires_grad], **settings
        )
        for _ in range(2):
            optimizer.zero_grad()
            rows.torch_loss(
                reference, pair.ours.config.text_config.logits_scaling, False
            ).backward()
            optimizer.step()
        after = of_torch(reference, names, "value")
        trainer.train(
            trainable,
            make_optimizer(trainable.options),
            train_dataset=None,
            args=trainer.TrainingArgs(iters=2, adapter_file=str(tmp_path / "a.safetensors")),
            loss=loss,
            iterate_batches=lambda **_: repeat(loss_inputs(rows.batch)),
        )
        ours = {key: np.array(value) for key, value in trainable.weights().items()}
        moved = {key: value - before[key] for key, value in after.items()}
        for key, value in moved.items():
            difference = np.linalg.norm(ours[key] - after[key])
            assert difference <= 1e-3 * np.linalg.norm(value), key
