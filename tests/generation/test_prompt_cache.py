"""Prompt caches in files: what goes on from them, and what is refused."""

from __future__ import annotations

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from conftest import DECODERS, random_decoder, speech_inputs

from mlx_speech import (
    CheckpointError,
    InputError,
    LlamaForCausalLM,
    load_prompt_cache,
    save_prompt_cache,
)

CACHES = [{}, {"max_kv_size": 11}, {"max_kv_size": 40}, {"kv_bits": 8, "kv_group_size": 32}]


class TestFiles:
    @pytest.mark.parametrize("options", CACHES, ids=str)
    @pytest.mark.parametrize("length", [5, 30])
    def test_goes_on_as_before(self, options, length, tmp_path):
        model = random_decoder(head_dim=32)
        ids = mx.array(np.random.default_rng(1).integers(5, 61, (1, length + 6)))
        cache = model.make_cache(**options)
        model(ids[:, :length], past_key_values=cache)
        save_prompt_cache(tmp_path / "cache", cache, model, metadata={"who": "é"})
        loaded, metadata = load_prompt_cache(tmp_path / "cache", model)
        assert metadata == {"who": "é"}
        for part in (ids[:, length:-1], ids[:, -1:]):
            expected = model(part, past_key_values=cache).logits
            assert mx.array_equal(model(part, past_key_values=loaded).logits, expected).item()
        assert [p.name for p in tmp_path.iterdir()] == ["cache"]

    def test_generation_goes_on(self, tmp_path):
        """The whole prompt is given; only what the cache lacks is fed."""
        model = random_decoder()
        ids = mx.array(np.random.default_rng(3).integers(5, 61, (1, 12)))
        expected = model.generate(ids, max_new_tokens=5)
        cache = model.make_cache()
        model(ids[:, :9], past_key_values=cache)
        save_prompt_cache(tmp_path / "cache", cache, model)
        loaded, _ = load_prompt_cache(tmp_path / "cache", model)
        fed = []
        answer = model.generate(
            ids,
            max_new_tokens=5,
            past_key_values=loaded,
            prompt_progress_callback=lambda *done: fed.append(done),
        )
        assert answer.tolist() == expected.tolist()
        assert fed == [(3, 3)]
        with pytest.raises(InputError, match="holds 16 positions already"):
            model.generate(ids, past_key_values=loaded)

    def test_of_the_same_model_by_another_name(self, tmp_path):
        """A checkpoint may lie elsewhere, and be said relative to another place."""
        folders = DECODERS / "llama", tmp_path / "moved"
        shutil.copytree(*folders)
        model, moved = map(LlamaForCausalLM.from_pretrained, folders)
        cache = model.make_cache()
        model(mx.array([[5, 6]]), past_key_values=cache)
        save_prompt_cache(tmp_path / "cache", cache, model)
        loaded, _ = load_prompt_cache(tmp_path / "cache", moved)
        assert loaded[0].length == 2

    def test_the_adapter_stays_on(self, tiny, tmp_path):
        """After audio that is in the cache alone."""
        model, processor = tiny
        inputs = speech_inputs(processor, "synthetic/flite_11.flac")
        more = {"max_new_tokens": 3, "eos_token_id": [], "return_dict_in_generate": True}
        output = model.generate(**inputs, **more)
        save_prompt_cache(tmp_path / "cache", output.past_key_values, model)
        loaded, _ = load_prompt_cache(tmp_path / "cache", model)
        ids = mx.concatenate([output.sequences, mx.array([[5, 6]])], axis=1)
        caches = loaded, output.past_key_values
        found, expected = (
            model.generate(ids, cache=each, output_logits=True, **more) for each in caches
        )
        assert mx.array_equal(found.logits[0], expected.logits[0]).item()

    def test_other_model(self, tmp_path):
        """Same shape, other weights: refused."""
        model = random_decoder()
        cache = model.make_cache()
        model(mx.array([[5, 6]]), past_key_values=cache)
        save_prompt_cache(tmp_path / "cache", cache, model)
        for other in (random_decoder(seed=2), random_decoder(num_hidden_layers=1)):
            with pytest.raises(CheckpointError, match="belongs to another model"):
                load_prompt_cache(tmp_path / "cache", other)

    def test_empty(self, tmp_path):
        model = random_decoder()
        save_prompt_cache(tmp_path / "cache", model.make_cache(), model)
        loaded, _ = load_prompt_cache(tmp_path / "cache", model)
        assert [(layer.length, layer.state) for layer in loaded] == [(0, [])] * len(loaded)

    @pytest.mark.parametrize("lost", ["format", "model", "kind", "settings", "length", "metadata"])
    def test_short_header(self, tmp_path, lost):
        self.refused(tmp_path, lambda header, arrays: header.pop(lost) and None)

    @pytest.mark.parametrize(
        "odd",
        [
            {"kind": "Cache"},
            {"kind": ["KVCache"]},
            {"kind": "RotatingKVCache", "settings": {"max_size": 2, "keep": 4}},
            {"kind": "RotatingKVCache", "settings": {"max_size": "2", "keep": 0}},
            {"kind": "QuantizedKVCache"},
            {"settings": {"bits": 4}},
            {"settings": None},
            {"length": 3},
            {"length": "2"},
            {"length": 0},
            {"metadata": None},
            {"metadata": 5},
        ],
        ids=str,
    )
    def test_odd_header(self, tmp_path, odd):
        self.refused(tmp_path, lambda header, arrays: header.update(odd))

    @pytest.mark.parametrize("header", ["[]", "null", '"format"', "5", "{"])
    def test_header_of_another_kind(self, tmp_path, header):
        self.refused(tmp_path, lambda _, arrays: header)

    @pytest.mark.parametrize(
        "change",
        [
            lambda arrays: arrays.pop("0.0"),
            lambda arrays: arrays.update(another=mx.zeros(2)),
            lambda arrays: [arrays.pop("0.0"), arrays.pop("1.0")],
            lambda arrays: arrays.update({"0.2": arrays["0.0"], "1.2": arrays["0.0"]}),
            lambda arrays: arrays.update({"2.0": arrays.pop("1.0")}),
            lambda arrays: arrays.update({"1.1": mx.zeros(2)}),
            lambda arrays: arrays.update({"1.1": arrays["1.1"] * float("nan")}),
            lambda arrays: [arrays.clear(), arrays.update(a=mx.zeros(2))],
        ],
    )
    def test_other_arrays(self, tmp_path, change):
        def changed(header, arrays) -> None:
            change(arrays)

        self.refused(tmp_path, changed)

    @staticmethod
    def refused(folder, change):
        """A sound file of two positions, but for a change of its header or arrays; where `change`
        returns a text, that is the header."""
        model, path = random_decoder(), str(folder / "cache.safetensors")
        cache = model.make_cache()
        model(mx.array([[5, 6]]), past_key_values=cache)
        save_prompt_cache(path, cache, model)
        arrays, told = mx.load(path, return_metadata=True)
        mx.eval(arrays)
        header = json.loads(told["prompt_cache"])
        text = change(header, arrays) or json.dumps(header)
        mx.save_safetensors(path, arrays, {"prompt_cache": text})
        with pytest.raises(CheckpointError, match="not a prompt cache"):
            load_prompt_cache(path, model)

    def test_bad_files(self, tmp_path):
        model = random_decoder()
        with pytest.raises(InputError, match="no such file"):
            load_prompt_cache(tmp_path / "none", model)
        (tmp_path / "text").write_text("hello" * 9)
        mx.save_safetensors(str(tmp_path / "other.safetensors"), {"a": mx.zeros(2)})
        for name in ("text", "other.safetensors"):
            with pytest.raises(CheckpointError, match="not a prompt cache"):
                load_prompt_cache(tmp_path / name, model)
        header = {"prompt_cache": json.dumps({"format": "0"})}
        mx.save_safetensors(str(tmp_path / "old.safetensors"), {"a": mx.zeros(2)}, header)
        with pytest.raises(CheckpointError, match="another version"):
            load_prompt_cache(tmp_path / "old.safetensors", model)
        cache = model.make_cache()
        model(mx.array([[5, 6]]), past_key_values=cache)
        save_prompt_cache(tmp_path / "whole", cache, model)
        whole = (tmp_path / "whole").read_bytes()
        for size in (0, 7, 100, len(whole) - 1):
            (tmp_path / "cut").write_bytes(whole[:size])
            with pytest.raises(CheckpointError, match="not a prompt cache"):
                load_prompt_cache(tmp_path / "cut", model)
        with pytest.raises(InputError, match="cannot be written"):
            save_prompt_cache(tmp_path / "no" / "folder", cache, model)
        padded = model.make_cache([1, 0])
        with pytest.raises(InputError, match="different lengths"):
            save_prompt_cache(tmp_path / "cache", padded, model)
