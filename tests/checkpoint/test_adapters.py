"""Adapters with whole modules, over a model and over its own adapter: read, switched, written."""

from __future__ import annotations

import json
import re

import mlx.core as mx
import mlx.nn as nn
import pytest
from adapters import FIRST_QUERIES, LAST_LAYER, LORA, SAVED, adapter, fuse, terms, train
from conftest import DATA, DECODERS, TINY, TINY_S2T, edit_json, find_recording
from mlx.utils import tree_flatten
from repositories import REPO

from mlx_speech import transcribe
from mlx_speech.checkpoint.adapters import fuse_adapters, remove_adapters
from mlx_speech.checkpoint.hub import resolve_adapter
from mlx_speech.errors import CheckpointError, HubError
from mlx_speech.layers.lora import LoRALinear, SavedModule, use_adapter
from mlx_speech.loading import load, load_model

RECORDING = "synthetic/flite_08.flac"
TEXT = mx.array([[2, 59, 40, 12]])
PROJECTOR = "base_model.model.model.projector."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TINY_TURBOCTC = DATA / "tiny-turboctc"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Folder of the bundled checkpoint without its adapter."""
    folder = tmp_path_factory.mktemp("plain") / "plain"
    folder.mkdir()
    for file in TINY.iterdir():
        if not file.name.startswith("adapter_") and file.name != "config.json":
            (folder / file.name).symlink_to(file)
    (folder / "config.json").write_bytes((TINY / "config.json").read_bytes())
    edit_json(folder / "config.json", has_lora_adapter=False)
    return folder


@pytest.fixture(scope="module")
def inputs():
    """A short sound in a prompt."""
    features = mx.random.normal((1, 30, 160), key=mx.random.key(0))
    return {"input_ids": mx.array([[2, 89, *([4] * 6), 90]]), "input_features": features}


@pytest.fixture(scope="module")
def written(plain, tmp_path_factory):
    """An adapter of low-rank terms and whole modules, and the model that does the same."""
    model, folder = load_model(plain, dtype=mx.float32), tmp_path_factory.mktemp("adapter")
    train(model, SAVED)
    adapter(folder, model, LORA, SAVED)
    fuse(model, terms(model, LORA))
    return folder, model


def close(a: mx.array, b: mx.array, tolerance: float = 1e-4) -> bool:
    """Relative to the largest."""
    return (mx.abs(a - b).max() <= tolerance * mx.abs(b).max()).item()


def parameters(model) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


class TestOverAModel:
    def test_does_what_the_trained_model_does(self, plain, written, inputs):
        folder, trained = written
        model = load_model(plain, dtype=mx.float32, adapter=folder)
        found, expected = model(**inputs), trained(**inputs)
        assert close(found.logits, expected.logits)
        # no term is before it: the very same
        assert mx.array_equal(found.audio_hidden_states, expected.audio_hidden_states).item()
        assert not close(found.logits, load_model(plain, dtype=mx.float32)(**inputs).logits, 0.1)

    def test_switched_off_it_is_the_base_bit_for_bit(self, plain, written, inputs):
        model = load_model(plain, dtype=mx.float32, adapter=written[0])
        base = load_model(plain, dtype=mx.float32)
        found, expected = model(**inputs, adapter=False), base(**inputs)
        assert mx.array_equal(found.logits, expected.logits).item()
        assert mx.array_equal(found.audio_hidden_states, expected.audio_hidden_states).item()
        # texts are answered without it
        assert mx.array_equal(model(TEXT).logits, base(TEXT).logits).item()
        assert not mx.array_equal(model(TEXT, adapter=True).logits, base(TEXT).logits).item()

    def test_every_way_to_the_audio_is_with_it(self, plain, written, inputs):
        """The heads and the projector, at once, as a stream and in a window of what comes in."""
        folder, trained = written
        model = load_model(plain, dtype=mx.float32, adapter=folder)
        features = inputs["input_features"]
        expected = trained.get_audio_features(features)
        found = model.get_audio_features(features)
        assert mx.array_equal(found.pooler_output, expected.pooler_output).item()
        assert mx.array_equal(found.ctc_logits, expected.ctc_logits).item()
        with use_adapter(False):
            assert not close(model.get_audio_features(features).ctc_logits, found.ctc_logits, 0.01)
        hidden = expected.last_hidden_state
        assert mx.array_equal(model.project(hidden), expected.pooler_output).item()
        stages = dict(model.audio_stages(features))
        assert mx.array_equal(stages["projector"], expected.pooler_output).item()
        streamed = model.encode_stream().push(features[0], last=True)
        assert close(streamed.ctc_logits, expected.ctc_logits)
        windowed, _ = model.encode_window(features[0])
        assert close(windowed.ctc_logits, trained.encode_window(features[0])[0].ctc_logits, 1e-6)

    def test_the_head_of_tokens_too(self, plain, inputs, tmp_path):
        trained = load_model(plain, dtype=mx.float32)
        before = trained.get_audio_features(inputs["input_features"])
        expected = trained.bpe_logits(before.last_hidden_state, before.non_blank)
        train(trained, ["encoder.out_llm"])
        model = load_model(plain, dtype=mx.float32, adapter=adapter(
            tmp_path, trained, saved=["encoder.out_llm"]
        ))  # fmt: skip
        found = model.bpe_logits(before.last_hidden_state, before.non_blank)
        assert model.has_bpe_head
        assert not close(found, expected, 0.01)
        same = trained.bpe_logits(before.last_hidden_state, before.non_blank)
        assert mx.array_equal(found, same).item()

    def test_attributes_are_those_of_the_module(self, plain, written):
        model = load_model(plain, dtype=mx.float32, adapter=written[0])
        assert isinstance(model.projector, SavedModule)
        assert model.projector.window_size == model.config.window_size
        with use_adapter(True):
            trained = model.projector.linear.weight
        assert not mx.array_equal(model.projector.linear.weight, trained).item()
        with pytest.raises(AttributeError, match="no_such_thing"):
            _ = model.projector.no_such_thing

    def test_is_in_evaluation_mode(self, plain, written):
        model = load_model(plain, dtype=mx.float32, adapter=written[0])
        assert not any(module.training for module in model.modules())

    def test_low_rank_terms_alone_and_whole_modules_alone(self, plain, inputs, tmp_path):
        base = load_model(plain, dtype=mx.float32)
        model = load_model(plain, dtype=mx.float32, adapter=adapter(tmp_path / "a", base, LORA))
        fuse(base, terms(base, LORA))
        assert close(model(**inputs).logits, base(**inputs).logits)
        train(base, ["projector"])
        adapter(tmp_path / "b", base, saved=["projector"])
        model = load_model(plain, dtype=mx.float32, adapter=tmp_path / "b")
        assert not any(isinstance(module, LoRALinear) for module in model.modules())
        expected = base(**inputs).audio_hidden_states
        assert mx.array_equal(model(**inputs).audio_hidden_states, expected).item()

    def test_of_a_text_model(self, tmp_path):
        base = load_model(DECODERS / "llama", dtype=mx.float32)
        before = base(TEXT).logits
        names = ["model.layers.0.self_attn.q_proj"], ["model.layers.1"]
        train(base, names[1])
        adapter(tmp_path, base, *names)
        fuse(base, terms(base, names[0]))
        model = load_model(DECODERS / "llama", dtype=mx.float32, adapter=tmp_path)
        # there is no recording that would switch it on
        assert close(model(TEXT).logits, base(TEXT).logits)
        with use_adapter(False):
            assert mx.array_equal(model(TEXT).logits, before).item()

    def test_of_a_quantized_model(self, plain, written, inputs):
        """Whole modules stay as they are, over quantized ones."""
        options = {"dtype": mx.float32, "quantization_config": {"bits": 8}}
        model = load_model(plain, **options, adapter=written[0])
        base = load_model(plain, **options)
        assert isinstance(model.projector.base.linear, nn.QuantizedLinear)
        assert type(model.projector.saved.linear) is nn.Linear
        assert close(model(**inputs).logits, written[1](**inputs).logits, 0.05)
        assert mx.array_equal(model(**inputs, adapter=False).logits, base(**inputs).logits).item()


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    """A second adapter over the bundled one, and the model that does what both do."""
    folder, model = tmp_path_factory.mktemp("second"), load_model(TINY, dtype=mx.float32)
    train(model, ["projector"])
    adapter(folder, model, LORA, ["projector"])
    lora = terms(model, LORA)
    fuse_adapters(model)
    fuse(model, lora)
    return folder, model


class TestOverAnotherAdapter:
    def test_both_are_added(self, stacked, inputs, tiny):
        folder, both = stacked
        model = load_model(TINY, dtype=mx.float32, adapter=folder)
        found = model(**inputs).logits
        assert close(found, both(**inputs).logits)
        assert not close(found, tiny[0](**inputs).logits, 0.1)

    def test_both_are_off(self, stacked, inputs, tiny):
        model = load_model(TINY, dtype=mx.float32, adapter=stacked[0])
        found, expected = (m(**inputs, adapter=False) for m in (model, tiny[0]))
        assert mx.array_equal(found.logits, expected.logits).item()
        assert mx.array_equal(found.audio_hidden_states, expected.audio_hidden_states).item()

    def test_what_was_under_a_layer_that_is_saved_whole_is_in_it(self, inputs, tmp_path):
        model = load_model(TINY, dtype=mx.float32)
        expected = model(**inputs).logits
        adapter(tmp_path, model, saved=[LAST_LAYER])
        stored = mx.load(str(tmp_path / "adapter_model.safetensors"))
        assert not any("lora" in name or "base" in name.partition(".model.")[2] for name in stored)
        again = load_model(TINY, dtype=mx.float32, adapter=tmp_path)
        assert close(again(**inputs).logits, expected)
        # over the base without its adapter, that layer alone has it
        last = dict(again.named_modules())[LAST_LAYER].saved.self_attn.q_proj
        assert type(last) is nn.Linear

    def test_a_third_over_the_first_two(self, stacked, inputs, tmp_path):
        """Of low-rank terms and a whole module within one that stands in for another already."""
        first = load_model(TINY, dtype=mx.float32, adapter=stacked[0])
        first.save_pretrained(tmp_path / "two")
        two = load_model(tmp_path / "two", dtype=mx.float32)
        inner = ["projector.linear", FIRST_QUERIES]
        adapter(tmp_path / "third", two, inner, ["encoder.out"], rank=2, scale=0.7, seed=9)
        three = load_model(tmp_path / "two", dtype=mx.float32, adapter=tmp_path / "third")
        lora = terms(two, inner, rank=2, seed=9)
        fuse_adapters(two)
        fuse(two, lora, scale=0.7)
        assert close(three(**inputs).logits, two(**inputs).logits)
        off = three(**inputs, adapter=False).logits
        remove_adapters(three)
        assert mx.array_equal(off, three(**inputs).logits).item()


class TestSaving:
    @pytest.mark.parametrize("base", ["plain", "bundled"])
    @pytest.mark.parametrize("bits", [None, 8])
    def test_gives_the_same_numbers(self, base, bits, plain, written, inputs, tmp_path):
        """Scales of 2 and 1.5 have a ratio that rounds, hence not the very same."""
        options = {"dtype": mx.float32}
        if bits:
            options["quantization_config"] = {"bits": bits}
        folder = plain if base == "plain" else TINY
        model = load_model(folder, adapter=written[0], **options)
        model.save_pretrained(tmp_path)
        again = load_model(tmp_path, dtype=mx.float32)
        assert again.config.has_lora_adapter
        for on in (True, False):
            found, expected = (m(**inputs, adapter=on) for m in (again, model))
            assert mx.array_equal(found.logits, expected.logits).item()
        assert parameters(again).keys() == parameters(model).keys()

    def test_the_base_is_written_as_it_is_without(self, plain, written, tmp_path):
        load_model(plain, dtype="auto", adapter=written[0]).save_pretrained(tmp_path / "with")
        load_model(plain, dtype="auto").save_pretrained(tmp_path / "without")
        both = [mx.load(str(tmp_path / name / "model.safetensors")) for name in ("with", "without")]
        assert both[0].keys() == both[1].keys()
        assert all(mx.array_equal(both[0][name], value) for name, value in both[1].items())

    def test_one_that_was_read_alone_is_written_as_it_was(self, tmp_path):
        load_model(TINY, dtype="auto").save_pretrained(tmp_path)
        found, stored = (mx.load(str(folder / WEIGHTS)) for folder in (tmp_path, TINY))
        assert {name.removeprefix("base_model.model.") for name in found} == stored.keys()
        found, stored = (json.loads((f / CONFIG).read_text()) for f in (tmp_path, TINY))
        assert found == stored


class TestFusing:
    def test_is_the_model_with_it_on(self, written, inputs):
        model = load_model(TINY, dtype=mx.float32, adapter=written[0])
        expected = model(**inputs).logits
        fuse_adapters(model)
        assert not any(isinstance(m, LoRALinear | SavedModule) for m in model.modules())
        assert close(model(**inputs, adapter=False).logits, expected)

    def test_removing_is_the_model_with_it_off(self, written, inputs):
        model = load_model(TINY, dtype=mx.float32, adapter=written[0])
        expected = model(**inputs, adapter=False).logits
        remove_adapters(model)
        assert mx.array_equal(model(**inputs, adapter=True).logits, expected).item()


class TestTranscripts:
    def test_are_those_of_the_trained_model(self, plain, tmp_path):
        """By the decoder and by the head alone; one whose heads detect nothing silences it."""
        model, processor = load(plain, dtype=mx.float32)
        train(model, ["projector"], step=0.01)
        for head in (model.encoder.out, model.encoder.out_llm):
            head.weight = head.weight * 0
            head.bias = 5.0 * (mx.arange(len(head.bias)) == 0)
        adapter(tmp_path, model, saved=["projector", "encoder.out", "encoder.out_llm"])
        adapted = load(plain, dtype=mx.float32, adapter=tmp_path)
        path = find_recording(RECORDING)
        expected = transcribe(path, (model, processor)).text
        assert transcribe(path, adapted).text == expected
        assert transcribe(path, adapted, ctc_only=True).text == ""
        assert transcribe(path, load(plain, dtype=mx.float32), ctc_only=True).text != ""


def without(name: str):
    return lambda tensors: {k: v for k, v in tensors.items() if not k.endswith(name)}


class TestErrors:
    @pytest.fixture
    def folder(self, written, tmp_path):
        for name in (CONFIG, WEIGHTS):
            (tmp_path / name).write_bytes((written[0] / name).read_bytes())
        return tmp_path

    def refused(self, plain, folder) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_model(plain, adapter=folder)
        assert str(folder) in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize(
        ("saved", "message"),
        [
            (5, "modules_to_save is 5, but must be a list"),
            (["projector"], "11 tensors are of no module of this model that the adapter may have"),
            ("add out_mid", "2 tensors are missing: encoder.out_mid.bias, encoder.out_mid.weight"),
            ("add layers.3", "tensors are missing: encoder.layers.3."),
            ("add embed_tokens", "has the embeddings, which are the head as well: not supported"),
            ("add q_proj", "1 modules are not among target_modules: .*layers.0.self_attn.q_proj"),
        ],
    )
    def test_modules_that_are_not_there(self, plain, folder, saved, message):
        if isinstance(saved, str):
            stored = json.loads((folder / CONFIG).read_text())["modules_to_save"]
            saved = [*stored, saved.removeprefix("add ")]
        edit_json(folder / CONFIG, modules_to_save=saved)
        assert re.search(message, self.refused(plain, folder))

    def test_a_name_of_no_module_is_passed_over_as_in_peft(self, plain, folder):
        """It adds such names by itself to the adapters of classifiers."""
        stored = json.loads((folder / CONFIG).read_text())["modules_to_save"]
        edit_json(folder / CONFIG, modules_to_save=[*stored, "classifier"])
        load_model(plain, adapter=folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (without("projector.query"), "1 tensors are missing: projector.query"),
            (
                lambda t: t | {f"{PROJECTOR}extra.weight": mx.zeros(2)},
                "1 tensors are not part of this model: projector.extra.weight",
            ),
            (
                lambda t: t | {f"{PROJECTOR}linear.bias": mx.zeros(5)},
                "1 tensors are of the wrong shape: projector.linear.bias (5,) instead of (128,)",
            ),
            (
                lambda t: t | {f"{PROJECTOR}linear.bias": mx.zeros(128, mx.int32)},
                "linear.bias is stored as I32",
            ),
            (
                lambda t: t | {f"{PROJECTOR}linear.bias": mx.full((128,), mx.nan)},
                "projector.saved.linear.bias has values that are NaN",
            ),
            (without("q_proj.lora_A.weight"), "q_proj lacks lora_A or lora_B"),
            (without("projector.query"), "it was made for owner/base"),
        ],
    )
    def test_tensors_that_do_not_fit(self, plain, folder, change, message):
        tensors = {name: value + 0 for name, value in mx.load(str(folder / WEIGHTS)).items()}
        mx.eval(tensors)
        mx.save_safetensors(str(folder / WEIGHTS), change(tensors))
        if "NaN" in message:
            with pytest.raises(CheckpointError, match=message):
                load_model(plain, adapter=folder)
        else:
            assert message in self.refused(plain, folder)

    def test_files_that_are_not_there(self, plain, folder):
        (folder / WEIGHTS).rename(folder / "adapters.safetensors")
        message = self.refused(plain, folder)
        assert "an adapter of mlx-lm's own kind, in adapters.safetensors" in message
        (folder / "adapters.safetensors").unlink()
        assert "adapter_model.safetensors is missing" in self.refused(plain, folder)
        (folder / CONFIG).unlink()
        assert "no adapter_config.json here" in self.refused(plain, folder)
        assert "no such folder" in self.refused(plain, folder / "none")

    @pytest.mark.parametrize("other", [TINY_S2T, DECODERS / "llama", TINY_TURBOCTC])
    def test_of_another_model(self, other, folder):
        message = self.refused(other, folder)
        assert message.endswith("; it was made for owner/base")
        assert "\n" not in message

    def test_one_of_low_rank_terms_for_another_model(self, folder):
        tensors = mx.load(str(TINY / WEIGHTS))
        wide = {name: mx.pad(value, [(0, 1), (0, 1)]) for name, value in tensors.items()}
        mx.save_safetensors(str(folder / WEIGHTS), wide)
        edit_json(folder / CONFIG, r=33, target_modules=["q_proj", "v_proj"], modules_to_save=None)
        assert "has shapes (33, " in self.refused(TINY, folder)


class TestFromTheHub:
    FILES = ("config.json", CONFIG, WEIGHTS, "README.md", "tokenizer.json", "optimizer.safetensors")

    def test_its_two_files_are_fetched(self, hub, publish, plain, written, inputs):
        files = dict.fromkeys(self.FILES, b"{}")
        files |= {name: (written[0] / name).read_bytes() for name in (CONFIG, WEIGHTS)}
        publish(files)
        model, _ = load(plain, dtype=mx.float32, adapter=REPO, progress=False)
        assert hub.fetched() == sorted([CONFIG, WEIGHTS])
        assert close(model(**inputs).logits, written[1](**inputs).logits)

    def test_a_revision_is_the_models(self, hub, publish):
        publish(dict.fromkeys((CONFIG, WEIGHTS), b"{}"))
        folder = resolve_adapter(REPO, revision="v2", progress=False)
        assert (folder / WEIGHTS).read_bytes() == b"{}"

    def test_what_is_no_adapter(self, hub, publish, plain):
        publish({"config.json": b"{}", "model.safetensors": b""})
        with pytest.raises(CheckpointError, match=f"{REPO} is no adapter of peft: it holds no"):
            load(plain, adapter=REPO, progress=False)
        with pytest.raises(HubError, match="no such repository"):
            load_model(plain, adapter="owner/none")
        with pytest.raises(CheckpointError, match="an adapter is named by text or a path"):
            load_model(plain, adapter=5)
