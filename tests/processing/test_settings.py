"""Values of wrong types in the JSON files of tokenizers and processors: named with their file."""

from __future__ import annotations

import json

import pytest
from conftest import edit_json

from mlx_speech import (
    CheckpointError,
    GraniteSpeechProcessor,
    InputError,
    Speech2TextTokenizer,
    Tokenizer,
)


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        ("tokenizer_config.json", "eos_token", 5, "eos_token is 5, but must be text or an object"),
        ("tokenizer_config.json", "bos_token", ["<s>"], r"bos_token is \['<s>'\]"),
        ("tokenizer_config.json", "padding_side", "up", "padding_side is 'up', but must be 'left'"),
        ("tokenizer_config.json", "add_bos_token", 1, "add_bos_token is 1, but must be true or"),
        ("tokenizer_config.json", "additional_special_tokens", [1], "each is text or an object"),
        ("tokenizer_config.json", "added_tokens_decoder", [], r"added_tokens_decoder is \[\]"),
        ("special_tokens_map.json", "pad_token", 0, "pad_token is 0, but must be text"),
        ("processor_config.json", "audio_token", 5, "audio_token is 5, but must be text"),
        ("processor_config.json", "audio_processor", "x", "audio_processor is 'x'"),
    ],
)
def test_types(tiny_copy, file, field, value, message):
    """Null is nothing, whatever the type."""
    path = tiny_copy / file
    if not path.exists():
        path.write_text("{}")
    if file == "special_tokens_map.json":
        config = json.loads((tiny_copy / "tokenizer_config.json").read_text())
        config.pop("added_tokens_decoder", None)
        (tiny_copy / "tokenizer_config.json").write_text(json.dumps(config))
    path.write_text(json.dumps({**json.loads(path.read_text()), field: None}))
    GraniteSpeechProcessor.from_pretrained(tiny_copy)
    edit_json(path, **{field: value})
    with pytest.raises(CheckpointError, match=f"^{path}: .*{message}"):
        GraniteSpeechProcessor.from_pretrained(tiny_copy)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "\ufeff{}", "null", ""])
@pytest.mark.parametrize(
    "file", ["tokenizer_config.json", "tokenizer.json", "processor_config.json"]
)
def test_what_is_no_json(tiny_copy, file, text):
    (tiny_copy / file).write_text(text)
    with pytest.raises(CheckpointError, match=str(tiny_copy)):
        GraniteSpeechProcessor.from_pretrained(tiny_copy)


def test_options(tiny, s2t_copy):
    """Of a call, which are no file's."""
    with pytest.raises(InputError, match=r"^padding_side is 'up'"):
        Tokenizer.from_pretrained(tiny[0].folder, padding_side="up")
    with pytest.raises(InputError, match=r"^do_lower_case is 'no', but must be true or false"):
        Speech2TextTokenizer.from_pretrained(s2t_copy, do_lower_case="no")
    with pytest.raises(InputError, match=r"no option colour, but .*tgt_lang"):
        Speech2TextTokenizer.from_pretrained(s2t_copy, colour="red")


@pytest.mark.parametrize("index", [-1, 0.5, "7", [1], True, 2**24])
def test_ids_of_a_vocabulary(s2t_copy, index):
    edit_json(s2t_copy / "vocab.json", the=index)
    with pytest.raises(CheckpointError, match=r"vocab.json: 'the' is .*, but must be an integer"):
        Speech2TextTokenizer.from_pretrained(s2t_copy)


@pytest.mark.parametrize("options", [{"nbest_size": "x"}, {"alpha": [], "enable_sampling": True}])
def test_sentencepiece_options(s2t_copy, options):
    edit_json(s2t_copy / "tokenizer_config.json", sp_model_kwargs=options)
    with pytest.raises(CheckpointError, match="not a readable SentencePiece model"):
        Speech2TextTokenizer.from_pretrained(s2t_copy)
