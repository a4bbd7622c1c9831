"""Speech2Text: configurations and tensors of all ages."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from conftest import DATA, TINY_S2T
from mlx.utils import tree_flatten

from mlx_speech import (
    CheckpointError,
    Speech2TextConfig,
    Speech2TextForConditionalGeneration,
)
from mlx_speech.checkpoint.weights import read_weights
from mlx_speech.loading import load_model

REFERENCE = json.loads((DATA / "reference" / "tiny_s2t_reference.json").read_text())
FRENCH = REFERENCE["lang_code_to_id"]["fr"]


class TestLoading:
    def test_documented_defaults(self):
        config = Speech2TextConfig()
        assert (config.vocab_size, config.d_model, config.encoder_layers) == (10000, 256, 12)
        assert (config.decoder_layers, config.conv_channels) == (6, 1024)
        assert list(config.conv_kernel_sizes) == [5, 5]
        assert (config.max_source_positions, config.max_target_positions) == (6000, 1024)
        assert (config.decoder_start_token_id, config.pad_token_id) == (2, 1)
        assert config.scale_embedding
        assert config.tie_word_embeddings
        assert (config.hidden_size, config.num_hidden_layers) == (256, 12)
        # what facebook/s2t-small-librispeech-asr has
        tensors = tree_flatten(Speech2TextForConditionalGeneration(config).parameters())
        assert len(tensors) == 357
        assert sum(value.size for _, value in tensors) == 29_536_256

    def test_sanitize_is_pure_and_idempotent(self, model):
        stored = read_weights(TINY_S2T, {})
        names = dict(stored)
        names["model.encoder.embed_positions.weights"] = mx.zeros((3002, 128))
        names["model.decoder.embed_positions.weights"] = mx.zeros((258, 128))
        names["lm_head.weight"] = names["model.decoder.embed_tokens.weight"]
        given = dict(names)
        once = model.sanitize(names, model.config)
        assert names.keys() == given.keys()
        assert all(names[k] is given[k] for k in names)
        assert once.keys() == stored.keys()
        kernels = [f"model.encoder.conv.conv_layers.{i}.weight" for i in range(2)]
        assert [stored[k].shape for k in kernels] == [(256, 80, 5), (256, 128, 5)]
        assert [once[k].shape for k in kernels] == [(256, 5, 80), (256, 5, 128)]
        again = model.sanitize(once, model.config)
        assert again.keys() == once.keys()
        assert all(again[k] is once[k] for k in once)

    def test_an_old_file_with_computed_and_tied_tensors(self, s2t_copy, recordings):
        file = s2t_copy / "model.safetensors"
        weights = {k: v + 0 for k, v in mx.load(str(file)).items()}
        mx.eval(weights)
        weights["lm_head.weight"] = weights["model.decoder.embed_tokens.weight"]
        # were they taken, they would do harm
        weights["model.encoder.embed_positions.weights"] = mx.zeros((3002, 128))
        mx.save_safetensors(str(file), weights)
        model = load_model(s2t_copy)
        assert model.generate(recordings[2])[0].tolist() == [2, 36, 44, 31, 31, 2]
        weights["lm_head.weight"] = mx.zeros((320, 128))
        mx.save_safetensors(str(file), weights)
        with pytest.warns(UserWarning, match=r"model\.decoder\.embed_tokens\.weight differ"):
            untied = load_model(s2t_copy)
        assert not untied.config.tie_word_embeddings
        assert untied(recordings[2], decoder_input_ids=mx.array([[2]])).logits.max().item() == 0

    def test_saved_in_this_layout(self, s2t_copy, model, recordings):
        weights = dict(tree_flatten(model.parameters()))
        mx.save_safetensors(str(s2t_copy / "model.safetensors"), weights)
        again = load_model(s2t_copy)
        assert again.generate(recordings[2])[0].tolist() == [2, 36, 44, 31, 31, 2]

    def test_missing_tensors_are_listed(self, s2t_copy):
        file = s2t_copy / "model.safetensors"
        weights = {k: v + 0 for k, v in mx.load(str(file)).items() if "layers.1.fc1" not in k}
        mx.eval(weights)
        mx.save_safetensors(str(file), weights)
        with pytest.raises(CheckpointError, match=r"4 tensors missing: .*decoder\.layers\.1\.fc1"):
            load_model(s2t_copy)

    def test_from_pretrained(self):
        model = Speech2TextForConditionalGeneration.from_pretrained(TINY_S2T)
        assert model.dtype == mx.float32  # on a CPU
        config = Speech2TextConfig.from_pretrained(TINY_S2T)
        assert config == model.config
        assert Speech2TextConfig.from_dict(config.to_dict()) == config
