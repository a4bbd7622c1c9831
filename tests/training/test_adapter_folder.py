"""The folder that fine-tuning writes."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import pytest
from adapters import FIRST_QUERIES, LAST_LAYER, LAYERS, LORA, adapter, terms
from conftest import TINY

from mlx_speech.checkpoint.adapters import remove_adapters
from mlx_speech.checkpoint.weights import cast
from mlx_speech.errors import CheckpointError, InputError
from mlx_speech.layers.lora import replace_module
from mlx_speech.loading import load_model
from mlx_speech.training.adapter_folder import write_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
QUERIES = [f"{LAYERS}.{i}.self_attn.q_proj" for i in range(4)]
START = "base_model.model.model."


@pytest.fixture(scope="module")
def model():
    return load_model(TINY, dtype=mx.bfloat16)


def write(folder, model, **changes):
    about = {"rank": 4, "scale": 1.5, "dropout": 0.05, "saved": [], "base_model": "owner/base"}
    about |= changes if "lora" in changes else {"lora": terms(model, [FIRST_QUERIES]), **changes}
    write_adapter(folder, model, **about)


def stored(folder) -> dict:
    return json.loads((folder / CONFIG).read_text())


def test_in_the_names_of_transformers_and_the_type_of_the_model(model, tmp_path):
    lora = terms(model, LORA)
    write(tmp_path / "new" / "folder", model, lora=lora, saved=["encoder.out"], revision="v1")
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == {CONFIG, WEIGHTS}
    tensors = mx.load(str(folder / WEIGHTS))
    first = f"{START}language_model.layers.0.self_attn.q_proj.lora"
    second = f"{START}language_model.layers.1.mlp.down_proj.lora"
    assert tensors.keys() == {
        *(f"{start}_{part}.weight" for start in (first, second) for part in "AB"),
        *(f"{START}encoder.out.{part}" for part in ("weight", "bias")),
    }
    assert {value.dtype for value in tensors.values()} == {mx.bfloat16}
    a, b = lora[FIRST_QUERIES]
    assert mx.array_equal(tensors[f"{first}_A.weight"], a.T.astype(mx.bfloat16)).item()
    assert mx.array_equal(tensors[f"{first}_B.weight"], b.T.astype(mx.bfloat16)).item()
    found, expected = stored(folder), {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 6,
        "lora_dropout": 0.05,
        "target_modules": [
            "model.language_model.layers.0.self_attn.q_proj",
            "model.language_model.layers.1.mlp.down_proj",
        ],
        "modules_to_save": ["model.encoder.out"],
        "base_model_name_or_path": "owner/base",
        "revision": "v1",
        "bias": "none",
        "inference_mode": True,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("lora", "saved", "targets"),
    [
        (QUERIES + [n.replace("q_proj", "v_proj") for n in QUERIES], [], ["q_proj", "v_proj"]),
        # of all that peft would take: none in the layer that is saved
        (QUERIES[:3], [LAST_LAYER], ["q_proj"]),
        # the encoder's layers have those, too
        (
            [f"{LAYERS}.{i}.mlp.up_proj" for i in range(4)],
            [],
            [f"model.language_model.layers.{i}.mlp.up_proj" for i in range(4)],
        ),
        ([], ["projector"], "dummy-target-modules"),
    ],
)  # fmt: skip
def test_modules_are_named_by_their_ends_where_that_says_enough(
    model, lora, saved, targets, tmp_path
):
    adapter(tmp_path, model, lora, saved)
    assert stored(tmp_path)["target_modules"] == targets


class Trained(nn.Module):
    """As mlx-lm's `LoRALinear`, which a test beside the reference has: importing it takes long."""

    def __init__(self, linear, lora_a, lora_b):
        super().__init__()
        self.linear, self.lora_a, self.lora_b = linear, lora_a, lora_b


@pytest.mark.parametrize("base", [".base", ""], ids=["with-its-own", "plain"])
def test_of_a_model_in_training(base, tmp_path):
    """Its layers are within others, and what is trained may be in another type."""
    model = load_model(TINY, dtype=mx.bfloat16)
    if not base:
        remove_adapters(model)
    lora = terms(model, QUERIES)
    for name in QUERIES:
        layer = dict(model.named_modules())[f"{name}{base}"]
        replace_module(model, f"{name}{base}", Trained(layer, *lora[name]))
    cast(model.projector, mx.float32)
    write(tmp_path, model, lora=lora, saved=["projector"])
    assert stored(tmp_path)["target_modules"] == ["q_proj"]
    tensors = mx.load(str(tmp_path / WEIGHTS))
    assert {value.dtype for value in tensors.values()} == {mx.bfloat16}
    again = load_model(TINY, dtype=mx.bfloat16, adapter=tmp_path)
    found = dict(again.named_modules())[FIRST_QUERIES]
    a, b = lora[FIRST_QUERIES]
    assert mx.array_equal(found.lora_a[-4:], a.T.astype(mx.bfloat16)).item()
    assert mx.allclose(found.scale * found.lora_b[:, -4:], 1.5 * b.T, atol=0.02).item()


def test_an_earlier_one_is_replaced_and_the_rest_stays(model, tmp_path):
    adapter(tmp_path, model, LORA)
    (tmp_path / "log.txt").write_text("mine")
    adapter(tmp_path, model, saved=["projector"])
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, WEIGHTS, "log.txt"}
    assert stored(tmp_path)["modules_to_save"] == ["model.projector"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {}}, "needs low-rank terms or whole modules; there are none"),
        ({"rank": 8}, r"q_proj: lora_a \(128, 4\) and lora_b \(4, 128\) are not of rank 8"),
        ({"saved": ["projectors"]}, "projectors is no module of the model"),
        ({"saved": [f"{LAYERS}.0"]}, "no linear layer outside of what is saved whole"),
        ({"lora": {"projector": (mx.zeros((2, 4)), mx.zeros((4, 2)))}}, "projector is no linear"),
    ],
)
def test_what_does_not_fit(model, changes, message, tmp_path):
    adapter(tmp_path, model, LORA)
    before = (tmp_path / WEIGHTS).read_bytes(), stored(tmp_path)
    with pytest.raises(InputError, match=message):
        write(tmp_path, model, **changes)
    assert ((tmp_path / WEIGHTS).read_bytes(), stored(tmp_path)) == before
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, WEIGHTS}


def test_a_folder_that_cannot_be_written_to(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/folder: cannot be written"):
        write(tmp_path / "file" / "folder", model)
    with pytest.raises(InputError, match="is a file; give the name of a folder"):
        write(tmp_path / "file", model)
