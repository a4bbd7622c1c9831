"""Arguments of generation as callers of other libraries have them, and what is none."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import mlx_speech
from mlx_speech import (
    ChatSession,
    InputError,
    UnsupportedOptionError,
    load_prompt_cache,
    save_prompt_cache,
)


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
        ({"attention_mask": [[1, 1]]}, "attention_mask is .*, but must be an array"),
        (
            {"prompt_progress_callback": 5},
            "prompt_progress_callback is 5, but must be a function",
        ),
        ({"prefill_step_size": 0.5}, "prefill_step_size is 0.5, but must be an integer"),
    ],
    ids=str,
)
def test_what_is_no_argument(tiny, options, message):
    with pytest.raises(InputError, match=message):
        mlx_speech.generate(*tiny, "hi", **options)


def test_pairs_that_do_not_go_together(tiny, tiny_s2t):
    model, _ = tiny
    for processor in (tiny_s2t[1], None, "processor"):
        with pytest.raises(InputError, match="does not serve a model that answers texts"):
            mlx_speech.generate(model, processor, "hi")
        with pytest.raises(InputError, match="does not serve a model that answers texts"):
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
