"""Speech2Text: what is refused, and how."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from conftest import DATA, edit_json

from mlx_speech import (
    CheckpointError,
    ContextLengthError,
    InputError,
    UnsupportedOptionError,
)
from mlx_speech.generation import prefill
from mlx_speech.loading import load_model

REFERENCE = json.loads((DATA / "reference" / "tiny_s2t_reference.json").read_text())
FRENCH = REFERENCE["lang_code_to_id"]["fr"]


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"input_features": None}, "give input_features or encoder_outputs"),
            ({"encoder_outputs": (mx.zeros((1, 4, 128)),)}, "give a recording once"),
            ({"decoder_input_ids": None}, "exactly one of decoder_input_ids and decoder_inputs_em"),
            ({"decoder_inputs_embeds": mx.zeros((1, 1, 128))}, "exactly one of decoder_input_ids"),
            ({"decoder_input_ids": mx.array([[2], [2]])}, "input has 2 rows, .* recordings need 1"),
            (
                {"input_features": mx.zeros((1, 9, 40))},
                r"\(1, 9, 40\), but .*recordings, frames, 80",
            ),
            ({"input_features": mx.zeros((9, 80))}, r"are \(9, 80\), but must be"),
            ({"input_features": mx.zeros((1, 0, 80))}, r"are \(1, 0, 80\), but must be"),
            ({"input_features": mx.zeros((1, 3001, 80))}, "3001 frames is longer than the 3000"),
            (
                {"attention_mask": mx.ones((1, 7))},
                r"is \(1, 7\), but input_features are \(1, 9, 80",
            ),
            ({"attention_mask": mx.array([[0, 0, 1, 1, 1, 1, 1, 1, 1]])}, "pad .* at their end"),
            ({"attention_mask": mx.zeros((1, 9))}, "without any frame"),
        ],
    )
    def test_inputs(self, model, changes, message):
        inputs = {"input_features": mx.zeros((1, 9, 80)), "decoder_input_ids": mx.array([[2]])}
        with pytest.raises(InputError, match=message):
            model(**{**inputs, **changes})

    def test_mask_that_does_not_belong_to_the_encoder_outputs(self, model):
        inputs = {"encoder_outputs": (mx.zeros((1, 4, 128)),), "decoder_input_ids": mx.array([[2]])}
        assert model(**inputs, attention_mask=mx.ones((1, 13))).logits.shape == (1, 1, 320)
        with pytest.raises(InputError, match=r"\(1, 17\), which does not belong to .*\(1, 4, 128"):
            model(**inputs, attention_mask=mx.ones((1, 17)))

    def test_a_recording_for_a_cache_that_has_one(self, model, recordings):
        cache = model.make_cache()
        inputs = {"decoder_input_ids": mx.array([[2]]), "past_key_values": cache}
        model(recordings[0], **inputs)
        with pytest.raises(InputError, match=r"hold recordings of \(1, 38\) frames, .*\(1, 41\)"):
            model(recordings[1], **inputs)

    def test_padding_counts_for_no_limit(self, model):
        features, mask = mx.zeros((1, 3004, 80)), mx.arange(3004)[None] < 3000
        assert model.model.encoder(features, mask).last_hidden_state.shape == (1, 751, 128)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"max_new_tokens": 256}, ContextLengthError, "1 tokens and 256 new .* context of 256"),
            ({"max_new_tokens": 256}, ContextLengthError, "bounds the answer$"),
            ({"past_key_values": [5]}, UnsupportedOptionError, "is for a call of the model"),
            ({"max_length": 1}, InputError, "max_length is 1, but the prompt alone has 1"),
            ({"labels": mx.array([[2]])}, InputError, "generate has no argument labels"),
            ({"input_ids": mx.array([[9999]])}, InputError, "decoder_input_ids hold 9999"),
            ({"decoder_input_ids": mx.array([[-1]])}, InputError, "decoder_input_ids hold -1"),
            ({"decoder_input_ids": [[2]]}, InputError, "decoder_input_ids are list"),
            ({"decoder_input_ids": mx.array([[2]] * 2)}, InputError, "have 2 rows, for 1 recordin"),
            ({"decoder_start_token_id": 9999}, InputError, "decoder_start_token_id hold 9999"),
            ({"decoder_start_token_id": [2, 2]}, InputError, "has 2 ids, for 1 recordings"),
            ({"output_attentions": True}, UnsupportedOptionError, "output_attentions=True is not"),
            (
                {"input_features": mx.zeros((9, 80))},
                InputError,
                r"input_features is \(9, 80\)",
            ),
            ({"forced_bos_token_id": 320}, InputError, "is 320, but the vocabulary has 320 tokens"),
            ({"input_features": None}, InputError, "needs input_features or encoder_outputs"),
        ],
    )
    def test_generation(self, model, recordings, options, error, message):
        with pytest.raises(error, match=message):
            model.generate(**{"input_features": recordings[0], **options})

    def test_options_for_other_models(self, tiny):
        granite, processor = tiny
        with pytest.raises(InputError, match="forced_bos_token_id is for models with an encoder"):
            granite.generate(**processor("hi"), forced_bos_token_id=5)
        with pytest.raises(InputError, match="generate needs input_ids"):
            prefill(granite, streaming=True, bos_token_id=None).steps()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"conv_kernel_sizes": [5]}, "but must be as many as num_conv_layers, 2"),
            ({"conv_kernel_sizes": [5, 4]}, r"conv_kernel_sizes is \[5, 4\], but must be odd"),
            ({"encoder_attention_heads": 3}, "must be a multiple of encoder_attention_heads, 3"),
            ({"decoder_attention_heads": 5}, "must be a multiple of decoder_attention_heads, 5"),
            (
                {"activation_function": "maxout"},
                "activation_function is 'maxout', but must be one of",
            ),
            (
                {"d_model": 33, "encoder_attention_heads": 3},
                "d_model is 33, but must be (even|a mul)",
            ),
            ({"pad_token_id": 10**6}, "pad_token_id is 1000000, but must be below vocab_size"),
            ({"model_type": "speech_to_text_2"}, "'speech_to_text_2' is not supported"),
        ],
    )
    def test_config(self, s2t_copy, changes, message):
        edit_json(s2t_copy / "config.json", **changes)
        with pytest.raises(CheckpointError, match=message):
            load_model(s2t_copy)
