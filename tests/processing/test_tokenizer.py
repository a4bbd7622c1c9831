"""Tokenizers of every kind, without transformers."""

from __future__ import annotations

import json
from pathlib import Path

import chat_templates as chats
import mlx.core as mx
import numpy as np
import pytest
import small_tokenizers as small
from conftest import edit_json, random_decoder
from mlx.utils import tree_flatten
from tokenizers import AddedToken

from mlx_speech import (
    CheckpointError,
    InputError,
    LlamaTokenizer,
    Tokenizer,
    UnsupportedOptionError,
    generate,
    load,
)
from mlx_speech.generation.streaming import StreamingDetokenizer

TEXTS = small.random_texts(300, seed=7)
GOLDEN = json.loads(small.GOLDEN.read_text(encoding="utf-8"))
KINDS = {"llama": small.llama, "llama3": small.llama3, "gpt2": small.gpt2}


class TestEveryKind:
    def test_streamed_pieces_are_the_text(self, tokenizer):
        for text in TEXTS:
            ids = tokenizer.encode(text)
            stream = StreamingDetokenizer(tokenizer)
            pieces = [*map(stream.add, ids), stream.finish()]
            assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True).strip()

    @pytest.mark.parametrize("text", ["\ud83d", "a\udc69b", "fine until\ud800"])
    def test_lone_surrogates(self, tokenizer, text):
        with pytest.raises(InputError, match=r"lone surrogate, '\\ud.*', at position"):
            tokenizer.encode(text)
        with pytest.raises(InputError, match="lone surrogate"):
            tokenizer(["fine", text])

    @pytest.mark.parametrize("text", [None, b"bytes", 7, ["a", None]])
    def test_what_is_no_text(self, tokenizer, text):
        with pytest.raises(InputError, match="only text can be encoded, not"):
            tokenizer(text)

    def test_nothing(self, tokenizer):
        with pytest.raises(InputError, match="at least one text"):
            tokenizer([])
        assert tokenizer.decode([], skip_special_tokens=True) == ""
        assert tokenizer("").input_ids.shape[0] == 1

    def test_ids_in_any_form(self, tokenizer):
        ids = tokenizer.encode("left and right")
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert text == "left and right"
        for form in (mx.array(ids), np.array(ids), tuple(ids), list(mx.array(ids))):
            assert tokenizer.decode(form, skip_special_tokens=True) == text
        for rows in ([ids, ids], mx.array([ids, ids]), [mx.array(ids), ids]):
            assert (
                tokenizer.decode(rows, skip_special_tokens=True)
                == tokenizer.batch_decode(rows, skip_special_tokens=True)
                == [text] * 2
            )
        assert tokenizer.decode(ids[-1], skip_special_tokens=True) == tokenizer.decode(
            ids[-1:], skip_special_tokens=True
        )

    def test_what_is_no_id(self, tokenizer):
        with pytest.raises(InputError, match="not token ids: -100 to 3"):
            tokenizer.decode([3, -100], skip_special_tokens=True)

    def test_spaces_are_not_cleaned_up(self, tokenizer):
        ids = tokenizer.encode("one , two .")
        assert (
            tokenizer.decode(ids, clean_up_tokenization_spaces=False, skip_special_tokens=True)
            == "one , two ."
        )
        with pytest.warns(UserWarning, match="clean_up_tokenization_spaces has no effect"):
            text = tokenizer.decode(
                ids, clean_up_tokenization_spaces=True, skip_special_tokens=True
            )
        assert text == "one , two ."

    def test_tokens_and_ids(self, tokenizer):
        ids = tokenizer.encode("the end")
        tokens = tokenizer.convert_ids_to_tokens(ids)
        assert tokenizer.convert_tokens_to_ids(tokens) == ids
        assert [tokenizer.get_vocab()[token] for token in tokens] == ids
        assert tokenizer.convert_tokens_to_ids("no such token") == tokenizer.unk_token_id
        assert tokenizer.convert_ids_to_tokens([len(tokenizer)]) == [None]


@pytest.mark.parametrize("kind", ["llama3", "gpt2"])
def test_bytes_come_back(kind, tmp_path):
    tokenizer = Tokenizer.from_pretrained(KINDS[kind](tmp_path))
    for text in TEXTS:
        if "<gap>" not in text:  # which eats the spaces around it
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.decode(ids, skip_special_tokens=False) == text


class TestLlama:
    @pytest.mark.parametrize("options", small.LLAMA_SETTINGS, ids=str)
    def test_as_in_transformers(self, tmp_path, options):
        tokenizer = LlamaTokenizer.from_pretrained(small.llama(tmp_path, **options))
        cases = [case for case in GOLDEN["encodings"] if case["options"] == options]
        assert len(cases) == len(small.GOLDEN_TEXTS)
        for case in cases:
            assert tokenizer.encode(case["text"]) == case["ids"]
            assert tokenizer.decode(case["ids"], skip_special_tokens=False) == case["decoded"]
            assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["plain"]

    def test_the_space_before_the_first_word(self, llama):
        ids = llama.encode("the lazy dog")
        assert llama.convert_ids_to_tokens(ids)[:2] == ["<s>", "▁the"]
        assert llama.decode(ids, skip_special_tokens=True) == "the lazy dog"
        assert llama.decode(ids[2:], skip_special_tokens=True) == "lazy dog"
        assert llama.decode(llama.encode("  the"), skip_special_tokens=True) == " the"

    def test_bytes_of_rare_characters(self, llama):
        ids = llama.encode("ß", add_special_tokens=False)
        assert llama.convert_ids_to_tokens(ids) == ["▁", "<0xC3>", "<0x9F>"]
        assert llama.decode(ids, skip_special_tokens=True) == "ß"
        assert llama.decode(ids[:2], skip_special_tokens=True) == "�"

    def test_special_tokens_within_a_text(self, llama):
        ids = llama.encode("the</s>o<s> <gap>o")
        tokens = ["<s>", "▁the", "</s>", "o", "<s>", "▁", "<gap>", "o"]
        assert llama.convert_ids_to_tokens(ids) == tokens
        assert llama.decode(ids, skip_special_tokens=True) == "theo <gap>o"

    def test_names_and_ids(self, llama):
        assert (llama.unk_token_id, llama.bos_token_id, llama.eos_token_id) == (0, 1, 2)
        assert (llama.bos_token, llama.eos_token, llama.unk_token) == ("<s>", "</s>", "<unk>")
        assert llama.pad_token is None
        assert llama.pad_token_id is None
        assert len(llama) == 640
        assert llama.padding_side == "left"

    def test_the_file_alone(self, tmp_path):
        """bos is put before a text, as the documentation says of what no setting tells."""
        folder = small.llama(tmp_path)
        (folder / "tokenizer_config.json").unlink()
        for kind in (Tokenizer, LlamaTokenizer):
            tokenizer = kind.from_pretrained(folder)
            tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("the</s>o"))
            assert tokens == ["<s>", "▁the", "</s>", "o"]

    def test_json_comes_first(self, tmp_path):
        folder = small.llama3(tmp_path)
        (folder / "tokenizer.model").write_bytes(small.LLAMA_MODEL.read_bytes())
        for kind in (Tokenizer, LlamaTokenizer):
            assert kind.from_pretrained(folder).bos_token == "<|begin_of_text|>"
            assert len(kind.from_pretrained(folder)) == 505

    def test_vocabulary_of_a_json(self, tmp_path):
        """What calls itself Llama's, and does not encode bytes, is used as tokenizer.model is."""
        llama = LlamaTokenizer.from_pretrained(small.llama(tmp_path / "model"))
        ids = llama.encode("the dog")
        llama.backend.pre_tokenizer = None
        folder = small.save(
            tmp_path / "json", "llama", llama.backend, tokenizer_class="LlamaTokenizerFast"
        )
        assert Tokenizer.from_pretrained(folder).encode("the dog") == ids
        edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
        assert LlamaTokenizer.from_pretrained(folder).encode("the dog") == ids
        assert Tokenizer.from_pretrained(folder).encode("the dog") != ids

    def test_unknown_characters_where_there_are_no_bytes(self, tmp_path):
        pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("▁", 1), ("a", 1), ("▁a", 1)]
        folder = small.llama(tmp_path)
        (folder / "tokenizer.model").write_bytes(small.sentencepiece_file(pieces))
        tokenizer = LlamaTokenizer.from_pretrained(folder)
        assert tokenizer.encode("aßa a") == [1, 5, 0, 4, 5]


def test_a_model_with_a_sentencepiece_file(tmp_path):
    """Loaded, prompted and streamed from as any other."""
    folder = small.llama(tmp_path, chat_template=chats.LLAMA2)
    model = random_decoder(vocab_size=640)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    small.write_json(folder / "config.json", model.config.to_dict())
    model, tokenizer = load(folder)
    prompt = tokenizer.apply_chat_template(chats.CHAT[:1], tokenize=False)
    assert prompt == "<s>[INST] مرحبا، كيف حالك؟ [/INST]"
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    output = model.generate(mx.array([ids]), max_new_tokens=8)
    text = generate(model, tokenizer, chats.CHAT[:1], max_new_tokens=8)
    assert text.strip() == tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True).strip()


class TestAround:
    """The tokens that encoding puts around a text."""

    def test_template_of_a_json(self, tmp_path):
        """The settings are for tokenizer.model; a tokenizer.json has its own."""
        folder = small.llama3(tmp_path, add_bos_token=False, add_eos_token=True)
        tokenizer = Tokenizer.from_pretrained(folder)
        assert (tokenizer.add_bos_token, tokenizer.add_eos_token) == (True, False)
        assert tokenizer.encode("")[:1] == [tokenizer.bos_token_id]
        tokenizer.add_eos_token = True
        assert tokenizer.encode("") == [tokenizer.bos_token_id, tokenizer.eos_token_id]
        tokenizer.add_bos_token = False
        assert tokenizer.encode("") == [tokenizer.eos_token_id]
        assert tokenizer.encode("", add_special_tokens=False) == []

    def test_options(self, tmp_path):
        folder = small.llama(tmp_path)
        tokenizer = Tokenizer.from_pretrained(folder, add_bos_token=False, add_eos_token=True)
        assert tokenizer.encode("") == [2]
        assert Tokenizer.from_pretrained(folder, bos_token="</s>").encode("") == [2]
        assert Tokenizer.from_pretrained(folder, padding_side="right").padding_side == "right"
        with pytest.raises(InputError, match="no option max_len, but add_bos_token"):
            Tokenizer.from_pretrained(folder, max_len=5)

    def test_another_token_later(self, llama):
        llama.add_eos_token = True
        llama.bos_token = "</s>"
        llama.eos_token = "<s>"
        assert llama.encode("") == [2, 1]

    def test_a_token_that_is_not_set(self, tmp_path):
        tokenizer = Tokenizer.from_pretrained(small.gpt2(tmp_path, bos_token=None))
        with pytest.raises(InputError, match="no bos_token that it could add"):
            tokenizer.add_bos_token = True
        assert not tokenizer.add_bos_token
        tokenizer.add_eos_token = True
        assert tokenizer.encode("") == [tokenizer.eos_token_id]
        tokenizer.eos_token = None
        assert tokenizer.encode("") == []

    def test_lengths_of_the_training_are_forgotten(self, tmp_path):
        folder = small.gpt2(tmp_path, pad_token=None)
        tokenizer = Tokenizer.from_pretrained(folder)
        ids = tokenizer.encode("one two three four")
        tokenizer.backend.enable_truncation(2)
        tokenizer.backend.enable_padding(length=99)
        tokenizer.backend.save(str(folder / "tokenizer.json"))
        assert Tokenizer.from_pretrained(folder).encode("one two three four") == ids


class TestPadding:
    def test_added_pad_token(self, tokenizer):
        size = len(tokenizer)
        assert not tokenizer.is_open(size)
        assert tokenizer.add_special_tokens({"pad_token": "<filler>"}) == 1
        assert (len(tokenizer), tokenizer.pad_token_id) == (size + 1, size)
        assert tokenizer.is_open(size)
        ids = tokenizer.encode("one<filler>two", add_special_tokens=False)
        assert ids.count(size) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == "onetwo"
        assert tokenizer.decode(ids, skip_special_tokens=False) == "one<filler>two"
        assert tokenizer.add_special_tokens({"extra_special_tokens": ["<x>", "<y>"]}) == 2
        assert tokenizer.pad_token == "<filler>"

    def test_names(self, llama):
        with pytest.raises(InputError, match="is called padding, but bos_token"):
            llama.add_special_tokens({"padding": "<pad>"})
        for token in (None, 3, "", "\ud800"):
            with pytest.raises(InputError, match=r"have to be text|lone surrogate"):
                llama.add_special_tokens({"pad_token": token})
        with pytest.raises(InputError, match=r'add_special_tokens\({"pad_token": "<pad>"}\)'):
            llama.pad_token = "<pad>"
        llama.pad_token = llama.eos_token
        assert llama.pad_token_id == 2
        llama.pad_token = None
        assert llama.pad_token_id is None

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_batch(self, llama, side):
        llama.add_special_tokens({"pad_token": "<pad>"})
        llama.padding_side = side
        long, short = llama.encode("the lazy dog"), llama.encode("dog")
        missing = len(long) - len(short)
        added, zeros = [640] * missing, [0] * missing
        filled = added + short if side == "left" else short + added
        mask = zeros + [1] * len(short) if side == "left" else [1] * len(short) + zeros
        batch = llama(["the lazy dog", "dog"], padding=True, return_tensors="mlx")
        assert batch.input_ids.tolist() == [long, filled]
        assert batch["attention_mask"].tolist() == [[1] * len(long), mask]
        assert batch.input_ids.dtype == mx.int32
        assert llama.batch_decode(batch.input_ids, skip_special_tokens=True) == [
            "the lazy dog",
            "dog",
        ]
        again = llama.pad([{"input_ids": long}, {"input_ids": mx.array(short)}])
        assert again.input_ids.tolist() == [long, filled]
        holes = {"input_ids": [long, short], "attention_mask": [[0] * len(long), [1] * len(short)]}
        assert llama.pad(holes).attention_mask.tolist() == [[0] * len(long), mask]

    def test_another_token_stands_in(self, llama):
        batch = llama(["the lazy dog", "dog"])
        assert batch.input_ids[1, 0].item() == 2
        assert batch.attention_mask[1, 0].item() == 0

    def test_what_is_not_there(self, llama):
        with pytest.raises(InputError, match="differ in length"):
            llama(["the lazy dog", "dog"], padding=False)
        assert llama(["dog", "dog"], padding=False).input_ids.shape[0] == 2
        with pytest.raises(InputError, match="padding is 'most', but must be true or false or"):
            llama("dog", padding="most")
        with pytest.raises(UnsupportedOptionError, match=r"return_tensors='tf'.*MLX"):
            llama("dog", return_tensors="tf")
        with pytest.raises(AttributeError, match="no token_type_ids here, but input_ids"):
            llama("dog").token_type_ids  # noqa: B018
        llama.padding_side = "top"
        with pytest.raises(InputError, match="'top'"):
            llama("dog")


class TestSaving:
    @pytest.mark.parametrize("kind", KINDS)
    def test_round_trip(self, kind, tmp_path):
        folder = KINDS[kind](tmp_path / "made", chat_template=chats.JAIS2, model_max_length=77)
        tokenizer = Tokenizer.from_pretrained(folder, padding_side="right")
        filler = AddedToken("<filler>", lstrip=True)
        tokenizer.add_special_tokens({"pad_token": filler, "extra_special_tokens": ["<x>"]})
        tokenizer.add_tokens("<new>")
        tokenizer.add_eos_token = True
        files = tokenizer.save_pretrained(tmp_path / "saved")
        names = ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
        if kind == "llama":
            names.insert(2, "tokenizer.model")
        assert [Path(file).name for file in files] == names
        again = Tokenizer.from_pretrained(tmp_path / "saved")
        for text in TEXTS[:100]:
            ids = tokenizer.encode(f"{text} <filler><x><new>")
            assert again.encode(f"{text} <filler><x><new>") == ids
            assert again.decode(ids, skip_special_tokens=True) == tokenizer.decode(
                ids, skip_special_tokens=True
            )
        assert again.special_tokens_map == tokenizer.special_tokens_map
        assert again.extra_special_tokens == ["<x>"]
        assert (again.padding_side, again.model_max_length) == ("right", 77)
        assert again.chat_template == chats.JAIS2
        assert again.added_tokens_decoder[tokenizer.pad_token_id].lstrip

    def test_options(self, tmp_path):
        made = small.llama(tmp_path / "made", chat_template=[{"name": "a", "template": "{{ 1 }}"}])
        tokenizer = Tokenizer.from_pretrained(made)
        files = tokenizer.save_pretrained(tmp_path / "saved", False, "my", save_jinja_files=False)
        names = ["my-tokenizer.json", "my-tokenizer_config.json"]
        assert [Path(file).name for file in files] == names
        config = json.loads(Path(files[1]).read_text())
        assert config["chat_template"] == [{"name": "a", "template": "{{ 1 }}"}]
        tokenizer.save_pretrained(tmp_path / "jinja")
        templates = tmp_path / "jinja" / "additional_chat_templates"
        assert (templates / "a.jinja").read_text() == "{{ 1 }}"
        assert Tokenizer.from_pretrained(tmp_path / "jinja").chat_template == {"a": "{{ 1 }}"}
        json_alone = Tokenizer.from_pretrained(small.gpt2(tmp_path / "gpt2"))
        with pytest.raises(UnsupportedOptionError, match=r"read from no tokenizer\.model"):
            json_alone.save_pretrained(tmp_path / "no", legacy_format=True)
        with pytest.raises(InputError, match="no option format, but legacy_format"):
            tokenizer.save_pretrained(tmp_path / "no", format="x")
        tokenizer.chat_template = {"../out": "x"}
        with pytest.raises(InputError, match=r"cannot be saved by the name '\.\./out'"):
            tokenizer.save_pretrained(tmp_path / "no")
        assert not (tmp_path / "no").exists() or not list((tmp_path / "no").iterdir())

    def test_settings_of_a_file(self, tmp_path):
        """Whatever a file says of spaces, they are as they are; only who asks is told."""
        settings = {"spaces_between_special_tokens": True, "tokenizer_class": None}
        folder = small.gpt2(tmp_path / "made", **settings)
        tokenizer = Tokenizer.from_pretrained(folder)
        tokenizer.save_pretrained(tmp_path / "saved")
        config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        with pytest.raises(UnsupportedOptionError, match="spaces_between_special_tokens=True"):
            Tokenizer.from_pretrained(folder, spaces_between_special_tokens=True)

    def test_vocabulary(self, llama, tmp_path):
        (file,) = llama.save_vocabulary(tmp_path, "my")
        assert Path(file).name == "my-tokenizer.model"
        assert Path(file).read_bytes() == small.LLAMA_MODEL.read_bytes()
        gpt2 = Tokenizer.from_pretrained(small.gpt2(tmp_path / "gpt2"))
        files = gpt2.save_vocabulary(tmp_path)
        assert [Path(file).name for file in files] == ["vocab.json", "merges.txt"]
        with pytest.raises(CheckpointError, match="cannot be written to"):
            llama.save_vocabulary(tmp_path / "nowhere")
