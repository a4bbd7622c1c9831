"""Arguments of generation as callers of other libraries have them, and what is none."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_decoder

import mlx_speech
from mlx_speech import (
    ChatSession,
    InputError,
    UnsupportedOptionError,
    load_prompt_cache,
    save_prompt_cache,
)

IDS = mx.array([[5, 6]])


@pytest.mark.parametrize(
    "kind", [np.array, mx.array, tuple, lambda ids: [np.int64(i) for i in ids]]
)
def test_ids_of_any_kind(tiny, kind):
    model, processor = tiny
    ids = processor.tokenizer.encode("turn on the light")
    expected = mlx_speech.generate(model, processor, ids, max_new_tokens=np.int64(4))
    assert mlx_speech.generate(model, processor, kind(ids), max_new_tokens=4) == expected


def test_arrays_of_other_libraries(tiny):
    """Of any layout and byte order."""
    model, processor = tiny
    inputs = processor("<|audio|>what?", mx.zeros(16000))
    expected = model.generate(**inputs, max_new_tokens=3).tolist()
    arrays = {name: np.array(value) for name, value in inputs.items()}
    arrays["input_ids"] = arrays["input_ids"].astype(">i8")
    arrays["input_features"] = np.asfortranarray(arrays["input_features"])
    assert model.generate(**arrays, max_new_tokens=3).tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"past_key_values": 5}, "past_key_values is 5, but must be what make_cache returned"),
        ({"past_key_values": [5]}, r"past_key_values is \[5\], but must be what make_cache"),
        (
            {"logits_processor": [5]},
            r"logits_processor is \[5\], but must be one or more functions",
        ),
        ({"tokenizer": 5, "stop_strings": "x"}, "tokenizer is 5, but must be what decodes"),
        (
            {"logits_processor": lambda ids, scores: scores[:, 1:]},
            r"what logits_processor <lambda> returned is \(1, 511\), but must be scores \(1, 512\)",
        ),
        (
            {"logits_processor": lambda ids, scores: None, "num_beams": 2},
            "what logits_processor <lambda> returned is 'NoneType', but must be scores",
        ),
        ({"stopping_criteria": 5}, "stopping_criteria is 5, but must be one or more functions"),
        (
            {"stopping_criteria": lambda ids, scores: [True, False]},
            "what a stopping criterion returned is .*, but must be true or false, or an array",
        ),
        ({"prefix_allowed_tokens_fn": 5}, "prefix_allowed_tokens_fn is 5, but must be a function"),
        (
            {"prefix_allowed_tokens_fn": lambda prompt, ids: [512]},
            r"what prefix_allowed_tokens_fn returned is \[512\], .* at most 511",
        ),
        ({"prefix_allowed_tokens_fn": lambda prompt, ids: []}, "allows no token at all"),
        ({"suppress_tokens": [512]}, "suppress_tokens is 512, but the vocabulary has 512 tokens"),
        ({"bad_words_ids": [[5, -1]]}, "bad_words_ids is -1, but the vocabulary has 512 tokens"),
        ({"bad_words_ids": [[]]}, "bad_words_ids hold an empty sequence"),
        ({"forced_eos_token_id": [5, 600]}, "forced_eos_token_id is 600, but the vocabulary"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2, but greedy search finds one"),
        ({"num_return_sequences": 3, "num_beams": 2}, "num_return_sequences is 3, but"),
        ({"attention_mask": [[1, 1]]}, "attention_mask is .*, but must be an array"),
        ({"attention_mask": mx.ones((1, 99))}, r"attention_mask is \(1, 99\), but the prompt is"),
        (
            {"prompt_progress_callback": 5},
            "prompt_progress_callback is 5, but must be a function",
        ),
        ({"prefill_step_size": 0.5}, "prefill_step_size is 0.5, but must be an integer"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_what_is_no_argument(tiny, options, message):
    with pytest.raises(InputError, match=message):
        mlx_speech.generate(*tiny, "hi", **options)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"inputs": IDS, "input_ids": IDS}, "inputs and input_ids are the same; give one of them"),
        ({"inputs_embeds": mx.zeros((3, 32))}, r"inputs_embeds are \(3, 32\), but must be an"),
        ({"inputs_embeds": mx.zeros((1, 3, 31))}, r"must be an array \(batch, length, 32\)"),
        ({"inputs_embeds": mx.zeros((1, 0, 32))}, r"inputs_embeds are \(1, 0, 32\), but must be"),
        ({"inputs_embeds": mx.zeros((1, 3, 32), mx.int32)}, r"inputs_embeds are .*must be floats"),
        ({"inputs_embeds": [1]}, r"inputs_embeds are list, but must be an array"),
        (
            {"inputs_embeds": mx.zeros((1, 3, 32)), "input_ids": IDS},
            r"inputs_embeds are \(1, 3, 32\), but input_ids \(1, 2\)",
        ),
        ({"bos_token_id": None}, "generate needs input_ids"),
        ({"bos_token_id": 61}, "input_ids hold 61"),
        ({"inputs": IDS, "streamer": 5}, "streamer is 5, but must be an object with put and end"),
        ({"inputs": mx.array([[5, 1, 6]]), "pad_token_id": 1}, "padded on the left; where pad tok"),
    ],
    ids=str,
)
def test_what_is_no_prompt(inputs, message):
    with pytest.raises(InputError, match=message):
        random_decoder().generate(**inputs)


def test_recordings_without_a_prompt(tiny):
    model, processor = tiny
    inputs = processor("<|audio|>what?", mx.zeros(16000))
    features = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    embeds = mx.zeros((1, 3, model.config.text_config.hidden_size))
    for given in (features, {**inputs, "inputs_embeds": embeds}):
        with pytest.raises(InputError, match=r"recordings need input_ids .*processor\(text, audio"):
            model.generate(**given)


def test_what_asks_for_nothing():
    """Arguments that are None, and those for several devices."""
    model = random_decoder()
    nothing = {"synced_gpus": True, "custom_generate": None, "negative_prompt_ids": None}
    expected = model.generate(IDS, max_new_tokens=3)
    assert model.generate(IDS, max_new_tokens=3, **nothing).tolist() == expected.tolist()


def test_pairs_that_do_not_go_together(tiny, tiny_s2t):
    model, _ = tiny
    for processor in (tiny_s2t[1], None, "processor"):
        with pytest.raises(InputError, match="belongs to a model that answers no texts"):
            mlx_speech.generate(model, processor, "hi")
        with pytest.raises(InputError, match="belongs to a model that answers no texts"):
            ChatSession(model, processor)
    for other in (None, tiny):
        with pytest.raises(UnsupportedOptionError, match="generates no text"):
            mlx_speech.generate(other, tiny[1], "hi")


def test_what_cannot_be_saved(tiny, tmp_path):
    model, _ = tiny
    with pytest.raises(InputError, match=r"cache is \[\], but must be what make_cache returned"):
        save_prompt_cache(tmp_path / "cache", [], model)
    with pytest.raises(InputError, match="who is 5, but must be text"):
        save_prompt_cache(tmp_path / "cache", model.make_cache(), model, metadata={"who": 5})
    session = ChatSession(*tiny)
    session.messages.append({"role": "user", "content": object()})
    with pytest.raises(InputError, match="not plain data"):
        session.save(tmp_path / "saved")


def test_what_names_no_file_or_model(tiny, tmp_path):
    model, _ = tiny
    path, cache = tmp_path / "cache", model.make_cache()
    for name in (None, 5, b"cache"):
        with pytest.raises(InputError, match=r"path is .*, but must be text or a path"):
            save_prompt_cache(name, cache, model)
        with pytest.raises(InputError, match=r"path is .*, but must be text or a path"):
            load_prompt_cache(name, model)
    save_prompt_cache(path, cache, model)
    for other in (None, 5, tiny):
        with pytest.raises(UnsupportedOptionError, match="generates no text"):
            save_prompt_cache(path, cache, other)
        with pytest.raises(UnsupportedOptionError, match="generates no text"):
            load_prompt_cache(path, other)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"drafts": [[5, 6]]}], ids=str)
def test_caches_of_other_rows_and_layers(options):
    model, prompt = random_decoder(), mx.array([[5, 6, 7]])
    cache = model.make_cache()
    model(mx.array([[5, 6], [7, 8]]), past_key_values=cache)
    with pytest.raises(InputError, match="past_key_values has 2 rows and 2 heads, but 1 and 2 are"):
        model.generate(prompt, past_key_values=cache, **options)
    with pytest.raises(InputError, match="is a list of 1, but must be a cache of 2 layers"):
        model.generate(prompt, past_key_values=model.make_cache()[:1], **options)
