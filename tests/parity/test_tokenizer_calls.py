"""Options of calls, special tokens and saved files of tokenizers, beside transformers'."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import chat_templates as chats
import pytest
import small_tokenizers as small
import transformers
from conftest import TINY_S2T
from tokenizers import AddedToken

from mlx_speech import (
    LlamaTokenizer,
    LlamaTokenizerFast,
    Speech2TextTokenizer,
    Tokenizer,
)

from .tokenizer_pairs import MAKERS, PAIRS, TEXTS, Pair, assert_same, plain, read


@pytest.fixture(params=MAKERS)
def folder(request, tmp_path) -> Path:
    return MAKERS[request.param](tmp_path / request.param)


@pytest.fixture
def pair(folder) -> Pair:
    pair = read(folder)
    if pair.reference.pad_token is None:
        pair.reference.pad_token = pair.ours.pad_token = pair.reference.eos_token
    return pair


CALLS = (
    {},
    {"padding": True},
    {"padding": "longest", "pad_to_multiple_of": 8},
    {"padding": "max_length", "max_length": 50, "truncation": True},
    {"padding": "max_length", "max_length": 12, "truncation": "only_first"},
    {"max_length": 9},
    {"max_length": 9, "truncation": True, "padding": True, "padding_side": "right"},
    {"max_length": 16, "truncation": True, "padding": True, "pad_to_multiple_of": 8},
    {"truncation": True, "padding": "max_length"},
    {"max_length": 7, "padding": True, "truncation": "do_not_truncate", "verbose": False},
    {"padding": "do_not_pad", "add_special_tokens": False},
    {"return_token_type_ids": True, "return_special_tokens_mask": True, "padding": True},
    {"return_attention_mask": False, "return_length": True, "max_length": 9, "truncation": True},
)


@pytest.mark.parametrize("side", ["left", "right"])
def test_calls(pair, side):
    """Each option, of one text, of several and of pairs."""
    reference, ours = pair
    reference.truncation_side = ours.truncation_side = side
    for options in CALLS:
        if options.get("padding") is True and "max_length" in options:
            options = {**options, "verbose": False}
        of_one = options.get("truncation") == "only_first"  # which of a pair may be too short
        pairs = () if of_one else ((TEXTS[0], PAIRS[0]), (TEXTS, PAIRS))
        for arguments in ((TEXTS[0],), (TEXTS,), *pairs):
            expected = reference(*arguments, **options)
            batch = ours(*arguments, return_tensors=None, **options)
            assert plain(batch) == plain(expected), options
            assert ours.encode(*arguments, **options) == reference.encode(*arguments, **options)


def test_arrays(pair):
    """The shapes and values of return_tensors, whatever library it names."""
    for options in ({"padding": True}, {"padding": "max_length", "max_length": 40}):
        expected = plain(pair.reference(TEXTS, truncation=True, return_tensors="np", **options))
        for kind in ("mlx", "np", "pt"):
            batch = pair.ours(TEXTS, truncation=True, return_tensors=kind, **options)
            assert plain(batch) == expected
    one = pair.reference(TEXTS[0], return_tensors="np")
    assert plain(pair.ours(TEXTS[0])) == plain(one)
    assert pair.ours.encode(TEXTS[0], return_tensors="pt").tolist() == one["input_ids"].tolist()


def test_words(pair):
    words = [text.split() for text in TEXTS]
    others = [text.split() for text in PAIRS]
    for arguments in ((words[0],), (words,), (words[0], others[0]), (words, others)):
        options = {"is_split_into_words": True, "max_length": 12, "truncation": True}
        expected = pair.reference(*arguments, **options)
        assert plain(pair.ours(*arguments, return_tensors=None, **options)) == plain(expected)
    both = list(zip(TEXTS, PAIRS, strict=True))
    assert plain(pair.ours(both, return_tensors=None)) == plain(pair.reference(both))


@pytest.mark.parametrize("strategy", ["only_first", "only_second", "longest_first"])
def test_what_is_cut_off(pair, strategy):
    reference, ours = pair
    options = {"truncation": strategy, "return_overflowing_tokens": True, "stride": 2}
    pairs = {"only_first": [(TEXTS[0],), (TEXTS[0], "one")], "only_second": [("one", TEXTS[0])]}
    for arguments in pairs.get(strategy, [(TEXTS[0],)]):
        for length in (12, 16):
            expected = reference(*arguments, max_length=length, **options)
            batch = ours(*arguments, max_length=length, return_tensors=None, **options)
            assert plain(batch) == plain(expected)
    if ours.is_fast:
        options |= {"max_length": 12, "padding": True, "return_offsets_mapping": True}
        texts = pairs.get(strategy, [(TEXTS[0],)])[0]
        arguments = [[text] * 3 for text in texts]
        expected = reference(*arguments, return_tensors="np", **options)
        assert plain(ours(*arguments, **options)) == plain(expected)


def test_targets(pair):
    options = {"max_length": 20, "max_target_length": 8, "truncation": True, "padding": True}
    expected = plain(pair.reference(TEXTS, text_target=PAIRS, **options))
    assert plain(pair.ours(TEXTS, text_target=PAIRS, return_tensors=None, **options)) == expected
    expected = plain(pair.reference(text_target=PAIRS, padding=True))
    assert plain(pair.ours(text_target=PAIRS)) == expected


def test_where_tokens_stand(pair):
    """Words and characters of tokens."""
    if not pair.ours.is_fast:
        return
    options = {"padding": True, "return_tensors": "np", "return_offsets_mapping": True}
    expected, batch = pair.reference(TEXTS, PAIRS, **options), pair.ours(TEXTS, PAIRS, **options)
    assert plain(batch) == plain(expected)
    assert batch.n_sequences == expected.n_sequences == 2
    for row in (0, 3):
        for name in ("tokens", "word_ids", "sequence_ids"):
            assert getattr(batch, name)(row) == getattr(expected, name)(row)
        assert batch[row].offsets == expected[row].offsets
        for index in range(1, 20):
            for name in ("token_to_chars", "token_to_word", "token_to_sequence"):
                assert getattr(batch, name)(row, index) == getattr(expected, name)(row, index)
            for name in ("char_to_token", "char_to_word"):
                for sequence in (0, 1):
                    assert getattr(batch, name)(row, index, sequence) == getattr(expected, name)(
                        row, index, sequence
                    )
        word = batch.token_to_word(row, batch.char_to_token(row, 0))
        assert batch.word_to_tokens(row, word) == expected.word_to_tokens(row, word)
        assert batch.word_to_chars(row, word) == expected.word_to_chars(row, word)


def test_pad(pair):
    reference, ours = pair
    rows = reference(TEXTS, return_special_tokens_mask=True, return_token_type_ids=True)
    for options in (
        {},
        {"padding": "max_length", "max_length": 300},
        {"pad_to_multiple_of": 16, "padding_side": "right"},
        {"return_attention_mask": False},
        {"padding": False},
    ):
        if not options.get(
            "return_attention_mask", True
        ):  # the reference does not fill up this one
            del rows["attention_mask"]
        expected = plain(reference.pad(dict(rows), **options))
        assert plain(ours.pad(dict(rows), return_tensors=None, **options)) == expected
        listed = [{"input_ids": row} for row in rows["input_ids"]]
        expected = plain(reference.pad(listed, **options))
        assert plain(ours.pad(listed, return_tensors=None, **options)) == expected
    single = {"input_ids": rows["input_ids"][0]}
    options = {"padding": "max_length", "max_length": 300}
    expected = plain(reference.pad(dict(single), **options))
    assert plain(ours.pad(dict(single), **options)) == expected


def test_tokens(pair):
    reference, ours = pair
    for text in TEXTS:
        tokens = reference.tokenize(text)
        assert ours.tokenize(text) == tokens
        assert ours.convert_tokens_to_string(tokens) == reference.convert_tokens_to_string(tokens)
        ids = reference(text)["input_ids"]
        assert ours.convert_tokens_to_ids(tokens) == reference.convert_tokens_to_ids(tokens)
        for skip in (True, False):
            expected = reference.convert_ids_to_tokens(ids, skip_special_tokens=skip)
            assert ours.convert_ids_to_tokens(ids, skip_special_tokens=skip) == expected
        assert ours.convert_ids_to_tokens(ids[0]) == reference.convert_ids_to_tokens(ids[0])
        assert ours.convert_tokens_to_ids(tokens[0]) == reference.convert_tokens_to_ids(tokens[0])
        assert ours.get_special_tokens_mask(
            ids, already_has_special_tokens=True
        ) == reference.get_special_tokens_mask(ids, already_has_special_tokens=True)


def test_around_texts(pair):
    """What a call puts around them is what the methods say."""
    reference, ours = pair
    options = {"return_special_tokens_mask": True, "return_token_type_ids": True}
    first, second = (reference.encode(t, add_special_tokens=False) for t in (TEXTS[0], PAIRS[0]))
    for texts, ids in (((TEXTS[0],), (first,)), ((TEXTS[0], PAIRS[0]), (first, second))):
        batch = reference(*texts, **options)
        assert ours.build_inputs_with_special_tokens(*ids) == batch["input_ids"]
        assert ours.get_special_tokens_mask(*ids) == batch["special_tokens_mask"]
        assert ours.create_token_type_ids_from_sequences(*ids) == batch["token_type_ids"]
        several = len(ids) > 1
        count = reference.num_special_tokens_to_add(several)
        assert ours.num_special_tokens_to_add(several) == count


def test_attributes(folder):
    assert_same(*read(folder))
    options = {"model_max_length": 17, "truncation_side": "left", "padding_side": "right"}
    options |= {"model_input_names": ["input_ids"], "pad_token": "<unk>"}
    pair = read(folder, **options)
    assert_same(*pair)
    asked = {"truncation": True, "padding": "max_length"}
    assert plain(pair.ours(TEXTS, **asked)) == plain(pair.reference(TEXTS, **asked))


def test_new_tokens(folder):
    """Of both kinds, given as text and as AddedToken."""
    reference, ours = read(folder)
    wide = AddedToken("<wide>", lstrip=True, rstrip=True)
    for tokens, special in (("<new>", False), (["<x>", wide], True), (["<x>", "<new>"], False)):
        expected = reference.add_tokens(tokens, special_tokens=special)
        assert ours.add_tokens(tokens, special_tokens=special) == expected
    assert_same(reference, ours)
    filler = AddedToken("<pad>", lstrip=True, special=True, normalized=False)
    for named in (
        {"pad_token": filler, "mask_token": "<mask>"},
        {"additional_special_tokens": ["<y>", AddedToken("<z>", single_word=True)]},
        {"extra_special_tokens": ["<q>"]},
    ):
        assert ours.add_special_tokens(dict(named)) == reference.add_special_tokens(dict(named))
        assert_same(reference, ours)
    more = {"extra_special_tokens": ["<q>", "<r>"]}
    assert ours.add_special_tokens(
        more, replace_extra_special_tokens=False
    ) == reference.add_special_tokens(dict(more), replace_extra_special_tokens=False)
    assert_same(reference, ours)
    reference.pad_token_id = ours.pad_token_id = 4
    assert ours.pad_token == reference.pad_token
    reference.eos_token = ours.eos_token = AddedToken("<r>")
    assert ours.eos_token_id == reference.eos_token_id


def test_tokens_when_loading(folder):
    filler = AddedToken("<pad>", lstrip=True, special=True, normalized=False)
    assert_same(*read(folder, pad_token=filler, mask_token=AddedToken("<mask>", special=True)))


@pytest.mark.parametrize("changed", [False, True])
def test_saved_by_us(folder, tmp_path, changed):
    """Both read what ours writes, as the reference read what it was made of."""
    (folder / "chat_template.jinja").write_text(chats.JAIS2)
    reference, ours = read(folder)
    if changed:
        for tokenizer in (reference, ours):
            tokenizer.add_special_tokens({"pad_token": AddedToken("<pad>", lstrip=True)})
            tokenizer.add_tokens(["<new>", AddedToken("<wide>", lstrip=True, rstrip=True)])
    files = ours.save_pretrained(tmp_path / "saved")
    assert isinstance(files, tuple)
    assert sorted(files) == sorted(str(f) for f in (tmp_path / "saved").iterdir())
    shutil.copy(folder / "config.json", tmp_path / "saved")
    again = read(tmp_path / "saved")
    assert type(again.reference) is type(reference)
    for tokenizer in again:
        assert_same(reference, tokenizer)
    if ours.is_fast:
        assert again.reference.chat_template == again.ours.chat_template == chats.JAIS2


@pytest.mark.parametrize("changed", [False, True])
def test_saved_by_the_reference(folder, tmp_path, changed):
    reference, _ = read(folder)
    if changed:
        reference.add_special_tokens({"pad_token": AddedToken("<pad>", lstrip=True)})
        reference.add_tokens(["<new>", AddedToken("<wide>", lstrip=True, rstrip=True)])
    reference.save_pretrained(tmp_path / "saved")
    shutil.copy(folder / "config.json", tmp_path / "saved")
    assert_same(*read(tmp_path / "saved"))


def test_several_templates_are_saved(tmp_path):
    named = [{"name": n, "template": n} for n in ("default", "tool_use", "rag")]
    ours = Tokenizer.from_pretrained(small.gpt2(tmp_path / "made", chat_template=named))
    for jinja in (True, False):
        ours.save_pretrained(tmp_path / str(jinja), save_jinja_files=jinja)
        for tokenizer in read(tmp_path / str(jinja)):
            assert tokenizer.chat_template == {n["name"]: n["template"] for n in named}


def test_vocabulary_files(tmp_path):
    """What save_vocabulary writes makes the tokenizer again."""
    ours = LlamaTokenizer.from_pretrained(small.llama(tmp_path / "made"))
    (tmp_path / "vocab").mkdir()
    (file,) = ours.save_vocabulary(str(tmp_path / "vocab"), filename_prefix="some")
    assert Path(file).name == "some-tokenizer.model"
    reference = transformers.LlamaTokenizer.from_pretrained(tmp_path / "made", add_bos_token=True)
    for again in (LlamaTokenizer(file), LlamaTokenizer(vocab_file=file)):
        assert again.get_vocab() == reference.get_vocab()
        assert [again.encode(text) for text in TEXTS] == [reference.encode(t) for t in TEXTS]
    json_file = ours.save_pretrained(tmp_path / "json", legacy_format=False)[0]
    again = LlamaTokenizerFast(tokenizer_file=json_file)
    assert [again.encode(text) for text in TEXTS] == [reference.encode(t) for t in TEXTS]
    s2t = Speech2TextTokenizer.from_pretrained(TINY_S2T)
    files = s2t.save_vocabulary(str(tmp_path / "vocab"))
    expected = transformers.Speech2TextTokenizer(*files, lang_codes="mustc", tgt_lang="fr")
    again = Speech2TextTokenizer(*files, lang_codes="mustc", tgt_lang="fr")
    assert_same(expected, again)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"legacy": True},
        {"add_prefix_space": False, "add_eos_token": True},
        {"bos_token": AddedToken("<s>", special=True), "pad_token": "<pad>"},
        {"unk_token": "the", "eos_token": "<end>", "use_default_system_prompt": True},
    ],
    ids=str,
)
def test_llama_of_a_vocabulary(tmp_path, options):
    made = transformers.LlamaTokenizer.from_pretrained(small.llama(tmp_path / "made"))
    model = json.loads(made.backend_tokenizer.to_str())["model"]
    vocab, merges = model["vocab"], [tuple(merge) for merge in model["merges"]]
    options = {"add_bos_token": True, **options}
    reference = transformers.LlamaTokenizer(vocab=dict(vocab), merges=merges, **options)
    assert_same(reference, LlamaTokenizer(vocab, merges, **options))
    listed = sorted(vocab, key=vocab.get)
    joined = [" ".join(merge) for merge in merges]
    assert_same(reference, LlamaTokenizer(vocab=listed, merges=joined, **options))
    files = made.backend_tokenizer.model.save(str(tmp_path))
    assert_same(reference, LlamaTokenizer(*files, **options))


def test_llama_of_nothing():
    reference, ours = transformers.LlamaTokenizer(add_bos_token=True), LlamaTokenizer()
    assert ours.get_vocab() == reference.get_vocab()
    assert ours.special_tokens_map == reference.special_tokens_map
    assert ours.encode("") == reference.encode("")


def test_prepared_ids():
    pair = read(TINY_S2T)
    ids = pair.reference.encode(TEXTS[0], add_special_tokens=False)
    for options in (
        {},
        {"pair_ids": ids[:5], "return_token_type_ids": True},
        {"max_length": 10, "truncation": True, "return_overflowing_tokens": True, "stride": 2},
        {"max_length": 200, "padding": "max_length", "return_special_tokens_mask": True},
        {"add_special_tokens": False, "return_length": True},
    ):
        expected = pair.reference.prepare_for_model(list(ids), **options)
        assert plain(pair.ours.prepare_for_model(ids, **options)) == plain(expected)


def test_target_language_tokens():
    reference, ours = read(TINY_S2T)
    for tokenizer in (reference, ours):
        tokenizer.set_tgt_lang_special_tokens("de")
    assert (ours.prefix_tokens, ours.tgt_lang) == (reference.prefix_tokens, reference.tgt_lang)
    assert ours.encode("set") == reference.encode("set")


MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<a>{% generation %}{{ m.content }}"
    "</a>{% endgeneration %}\n{% else %}<u>{{ m.content | trim }}</u>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def test_encoded_conversations(tmp_path):
    """Of one conversation and of several, with each option."""
    folder = small.gpt2(tmp_path / "made", chat_template=MARKED)
    reference, ours = read(folder)
    several = [chats.CHAT, chats.CHAT[:2], chats.CHAT[:1]]
    for options in (
        {},
        {"add_generation_prompt": True},
        {"padding": True, "return_tensors": "np"},
        {"truncation": True, "max_length": 30, "return_assistant_tokens_mask": True},
        {"return_assistant_tokens_mask": True, "padding": True, "return_tensors": "np"},
        {"tokenizer_kwargs": {"return_offsets_mapping": True}},
        {"continue_final_message": True},
        {"return_dict": False},
        {"tokenize": False},
    ):
        for conversation in (chats.CHAT, chats.CHAT[:2], several):
            expected = reference.apply_chat_template(conversation, **options)
            lists = {"return_tensors": None, **options}
            got = ours.apply_chat_template(conversation, **lists)
            same = plain(got) == plain(expected) if hasattr(got, "items") else got == expected
            assert same, options
    template = ours.get_chat_template()
    assert template == reference.get_chat_template() == MARKED
    parts = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b c ", "note": "d"},
    ]
    options = {"continue_final_message": "note", "tokenize": False}
    options["chat_template"] = "{% for m in messages %}{{ m.content }} {{ m.note }}.{% endfor %}"
    expected = reference.apply_chat_template(parts, **options)
    assert ours.apply_chat_template(parts, **options) == expected


def test_cleaned_up_texts():
    reference, ours = read(TINY_S2T)
    tokens = [" i", " 'm", " ,", " do", " n't", " .", " '", " a", " '", " ?", " he", " 's", " !"]
    for tokenizer in (reference, ours):
        tokenizer.add_tokens(tokens)
    ids = reference.convert_tokens_to_ids(tokens)
    assert reference.decode(ids) == "i 'm , do n't . ' a ' ? he 's !"
    for asked in (True, False, None):
        options = {"clean_up_tokenization_spaces": asked, "skip_special_tokens": True}
        assert ours.decode(ids, **options) == reference.decode(ids, **options)
        assert ours.batch_decode([ids], **options) == reference.batch_decode([ids], **options)
