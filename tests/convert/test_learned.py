"""Quantization that learns from recordings: how close it comes over others, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import adapters
import mlx.core as mx
import numpy as np
import pytest
import soundfile
from conftest import TINY, find_recording
from mlx_lm.tuner.losses import kl_div_loss

from convert import Conversion, awq, convert, dwq, gptq
from convert.blocks import Decoder
from convert.calibration import calibrate
from mlx_speech import load_audio
from mlx_speech.checkpoint.quantization import resolve_quantization
from mlx_speech.layers.lora import LoRALinear, use_adapter
from mlx_speech.loading import load, load_model

LONG = find_recording("synthetic/long.flac")
CALIBRATION = sorted(LONG.parent.glob("[ef]*_*.flac"))[::2]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Conversion]:
    """The bundled model by each method, from short recordings."""
    folder, found = tmp_path_factory.mktemp("learned"), {}
    recordings: dict[str, list[Any]] = {"rtn": [], "awq": CALIBRATION[:1]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(awq, "_GRID", 2)
        patch.setattr(dwq, "_STEPS", 24)
        for method in ("rtn", "awq", "gptq", "dwq", "dynamic"):
            learning = {"method": method, "calibration": recordings.get(method, CALIBRATION)}
            (found[method],) = convert(TINY, folder / method, quantize=True, **learning)
    return found


@pytest.fixture(scope="module")
def losses(results, tmp_path_factory) -> dict[str, float]:
    """How far the distributions of each are from the original's, along sentences that were not
    learned from. `check` would give as much, and take longer: it transcribes with each."""
    recording = tmp_path_factory.mktemp("sentences") / "four.wav"
    soundfile.write(recording, np.array(load_audio(LONG))[: round(14.5 * 16000)], 16000)
    utterances = calibrate(TINY, [recording], features=True).utterances

    def given(folder: Path) -> mx.array:
        model = load_model(folder, dtype=mx.float32)  # several times faster than bfloat16 here
        return mx.concatenate([utterance.logits(model)[0] for utterance in utterances])

    original = given(TINY)
    return {
        method: kl_div_loss(given(results[method].folder), original).mean().item()
        for method in ("rtn", "gptq", "dwq", "dynamic")
    }


@pytest.mark.slow
@pytest.mark.parametrize(("method", "share"), [("gptq", 0.6), ("dwq", 0.55), ("dynamic", 0.5)])
def test_closer_than_rounding_to_nearest(results, losses, method, share):
    """At the same size, and over others than it learned from."""
    assert results[method].plan.after <= results["rtn"].plan.after
    assert losses[method] < share * losses["rtn"]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "least"), [("awq", 8), ("gptq", 4 * 7), ("dwq", 4 * 7)])
def test_stored_as_what_is_rounded(results, method, least):
    """Same settings, other values in the decoder's linear layers and in no other part."""
    folders = [results[name].folder for name in ("rtn", method)]
    configs = [json.loads((folder / "config.json").read_text()) for folder in folders]
    assert configs[0].pop("converted_by") == configs[1].pop("converted_by")
    assert configs[0] == configs[1]
    rounded, learned = (mx.load(str(next(folder.glob("model*.safetensors")))) for folder in folders)
    other = {name for name in rounded if not mx.array_equal(rounded[name], learned[name])}
    assert all(name.startswith("language_model.") for name in other)
    assert len([name for name in other if name.endswith("_proj.weight")]) >= least
    load_model(folders[1])


@pytest.mark.slow
def test_only_awq_changes_the_adapter(results):
    def stored(method: str) -> bytes:
        return (results[method].folder / "adapter_model.safetensors").read_bytes()

    kept = (TINY / "adapter_model.safetensors").read_bytes()
    assert stored("gptq") == stored("dwq") == stored("dynamic") == kept
    before, after = (
        mx.load(str(folder / "adapter_model.safetensors"))
        for folder in (TINY, results["awq"].folder)
    )
    assert {n: (a.shape, a.dtype) for n, a in before.items()} == {
        n: (a.shape, a.dtype) for n, a in after.items()
    }
    other = [name for name in before if not mx.array_equal(before[name], after[name])]
    assert other
    assert all(".lora_A." in name for name in other)


def test_a_model_without_an_adapter(tmp_path, monkeypatch):
    monkeypatch.setattr(awq, "_GRID", 2)
    (tmp_path / "model").mkdir()
    for file in TINY.iterdir():
        if "adapter" not in file.name:
            (tmp_path / "model" / file.name).symlink_to(file)
    config = json.loads((TINY / "config.json").read_text()) | {"has_lora_adapter": False}
    (tmp_path / "model" / "config.json").unlink()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    how = {"quantize": True, "method": "awq", "calibration": CALIBRATION[:1]}
    convert(tmp_path / "model", tmp_path / "out", **how)
    assert not list((tmp_path / "out").glob("adapter*"))
    load_model(tmp_path / "out")


def test_a_further_adapter_is_learned_with(tmp_path, monkeypatch):
    """What goes into the decoder comes from the projector that it will have."""
    model = load_model(TINY, dtype=mx.float32)
    adapters.train(model, ["projector"], step=0.01)
    further = adapters.adapter(tmp_path / "further", model, saved=["projector"])
    found = []
    monkeypatch.setattr(gptq, "quantize", lambda decoder, progress: found.extend(decoder.inputs()))
    how = {"quantize": True, "method": "gptq", "calibration": CALIBRATION[:1]}
    convert(TINY, tmp_path / "out", fuse_adapter=True, adapter=further, **how)
    model, processor = load(TINY, adapter=further)
    inputs = processor.speech_inputs(load_audio(CALIBRATION[0]))
    prompt = inputs["input_ids"]
    embedded = model.embed_prompt(prompt, input_features=inputs["input_features"])[0]
    embedded = model.language_model.model.embedding_scale * embedded
    assert_close(found[0][:, : prompt.shape[1]], embedded)


@pytest.mark.slow
def test_what_it_took_is_told(results):
    learned = results["gptq"].learned
    assert learned.recordings == len(CALIBRATION)
    assert learned.seconds > 0
    # the decoder alone is not in memory as a whole twice, nor is the rest beside it
    assert learned.peak_memory < 60e6
    card = (results["gptq"].folder / "README.md").read_text()
    assert f"Method: {learned}." in card
    assert "gptq, learned from 8 recordings of 23 s, in " in card
    assert "the weights, as it was, and" in card
    card = (results["awq"].folder / "README.md").read_text()
    assert "the weights, made for the weights as they are now, and" in card
    assert "Method" not in (results["rtn"].folder / "README.md").read_text()


@pytest.mark.slow
def test_dynamic_chooses_in_all_parts(results):
    result = results["dynamic"]
    assert result.recipe == "dynamic"
    assert {8} < {*result.plan.parts()["decoder"].bits()} == {4, 8}
    # what recipes leave alone stays as it is
    kept = {row.path for row in results["rtn"].plan.rows if row.settings is None}
    assert {row.path for row in result.plan.rows if row.settings is None} == kept
    model = load_model(result.folder)
    for row in result.plan.rows:
        if row.settings is not None:
            module = dict(model.named_modules())
            found = module.get(f"{row.path}.base", module[row.path])
            assert found.bits == row.settings["bits"]


@pytest.fixture
def decoder():
    """The bundled model in float32, its decoder as the quantizers call it, and what goes in."""
    model = load_model(TINY, dtype=mx.float32)
    utterances = calibrate(TINY, CALIBRATION[:1]).utterances
    return model, Decoder(model, utterances, resolve_quantization(model, bits=4)), utterances[0]


def logits(model, utterance, adapter: bool) -> mx.array:
    options = {"adapter": adapter, "use_cache": False}
    return model(utterance.input_ids, **utterance.audio, **options).logits


def assert_close(found: mx.array, expected: mx.array) -> None:
    assert mx.max(mx.abs(found - expected)) < 1e-5 * mx.max(mx.abs(expected))


def test_blocks_of_mlx_lm_are_the_layers(decoder):
    model, layers, utterance = decoder
    (states,) = layers.inputs()
    with use_adapter(True):
        for block in layers.blocks:
            states = block(states, mask="causal")
    states = model.language_model.model.norm(states)
    layers.restore()
    expected = logits(model, utterance, adapter=True)
    assert_close(model.language_model.logits(states), expected)


def test_scaled_weights_do_what_they_did(decoder):
    """Norms divided, weights multiplied, the adapter with them: with it and without."""
    from mlx_lm.quant.awq import ScaleConfig, apply_scale, submodule_from_key

    model, layers, utterance = decoder
    layers.restore()
    expected = [logits(model, utterance, adapter) for adapter in (True, False)]
    layers = Decoder(model, [utterance], resolve_quantization(model, bits=4))
    put_back = [awq._AdaptedLinear.replace(block) for block in layers.blocks]
    mx.random.seed(0)
    for block in layers.blocks:
        for config in awq._scales(ScaleConfig, awq._adapted(block)):
            place = block[config.block] if config.block else block
            scaled = [submodule_from_key(place, name) for name in config.layers]
            factors = mx.exp(mx.random.normal(scaled[0].weight.shape[-1:]))
            apply_scale(submodule_from_key(block, config.prev), scaled, factors)
    for restore in put_back:
        restore()
    layers.restore()
    adapted = model.language_model.model.layers[0].self_attn.q_proj
    assert isinstance(adapted, LoRALinear)
    original = load_model(TINY, dtype=mx.float32).language_model.model.layers[0].self_attn.q_proj
    assert not mx.allclose(adapted.lora_a, original.lora_a, rtol=0.1)
    for wanted, adapter in zip(expected, (True, False), strict=True):
        assert_close(logits(model, utterance, adapter), wanted)


def test_an_adapter_between_two_layers_is_left_alone():
    """Its inner part has no row to divide; the others go on."""
    from mlx_lm.quant.awq import ScaleConfig

    found = awq._scales(ScaleConfig, frozenset({"mlp.down_proj", "self_attn.v_proj"}))
    layers = [config.layers for config in found]
    assert layers == [
        ["q_proj", "k_proj", "v_proj.base", "v_proj.low_rank"],
        ["gate_proj", "up_proj"],
    ]


@pytest.mark.slow
def test_mlx_lm_is_left_as_it_was(results):
    """With its bars, for who else uses it."""
    import tqdm
    from mlx_lm.quant import awq, dwq, dynamic_quant, gptq

    assert {m.tqdm for m in (awq, dwq, gptq, dynamic_quant)} == {tqdm.tqdm}
