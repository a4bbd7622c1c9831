"""Tokenizers and chat templates beside transformers'."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import NamedTuple

import chat_templates as chats
import pytest
import small_tokenizers as small
import transformers
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, processors
from transformers import AutoTokenizer

from mlx_speech import CheckpointError, InputError, LlamaTokenizer, Tokenizer
from mlx_speech.generation.streaming import StreamingDetokenizer

TEXTS = small.random_texts(1000)


def old_llama_json(folder: Path, **config) -> Path:
    """Llama 2's own tokenizer.json: a normalizer for the spaces, and a template for bos."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(small.LLAMA_MODEL.read_bytes())
    vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    merges = [
        (piece.piece[:cut], piece.piece[cut:])
        for piece in proto.pieces
        for cut in range(1, len(piece.piece))
        if piece.piece[:cut] in vocab and piece.piece[cut:] in vocab
    ]
    backend = Backend(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A"], special_tokens=[("<s>", 1)]
    )
    settings = {"tokenizer_class": "LlamaTokenizerFast", "legacy": False, **small.SPECIAL}
    return small.save(folder, "llama", backend, **settings | config)


def old_files(folder: Path) -> Path:
    """Settings spread over three files, as before `added_tokens_decoder`."""
    token = {"lstrip": False, "rstrip": False, "normalized": True, "single_word": False}
    small.llama(folder, unk_token={"__type": "AddedToken", "content": "<unk>", **token})
    special = {"bos_token": {"content": "<s>", **token}, "pad_token": "<pad>"}
    small.write_json(folder / "special_tokens_map.json", special)
    small.write_json(folder / "added_tokens.json", {"[INST]": 640, "<pad>": 641})
    return folder


def added_tokens(folder: Path) -> Path:
    """Tokens that only tokenizer_config.json knows, one of them eating its spaces."""
    flags = {"normalized": False, "single_word": False}
    wide = {"content": "[INST]", "lstrip": True, "rstrip": True, "special": False, **flags}
    pad = {"content": "<pad>", "lstrip": False, "rstrip": False, "special": False, **flags}
    return small.llama3(
        folder,
        added_tokens_decoder={"505": wide, "506": pad},
        pad_token="<pad>",
        extra_special_tokens=["<<SYS>>"],
        audio_token="<|audio|>",
    )


FOLDERS = {
    "llama": small.llama,
    "llama-legacy-eos": lambda f: small.llama(f, legacy=True, add_eos_token=True),
    "llama-no-prefix": lambda f: small.llama(f, add_prefix_space=False, legacy=None),
    "llama-pad": lambda f: small.llama(f, pad_token="<pad>", add_bos_token=False),
    "llama-old-files": old_files,
    "llama-json": old_llama_json,
    "llama-json-legacy": lambda f: old_llama_json(f, legacy=True, add_eos_token=True),
    "llama-json-as-it-is": lambda f: old_llama_json(f, tokenizer_class="PreTrainedTokenizerFast"),
    "llama3": small.llama3,
    "llama3-called-llama": lambda f: small.llama3(f, tokenizer_class="LlamaTokenizer"),
    "llama3-added-tokens": added_tokens,
    "llama3-split": lambda f: small.llama3(f, split_special_tokens=True),
    "gpt2": small.gpt2,
    "gpt2-granite": lambda f: small.gpt2(f, "granite", tokenizer_class="GPT2Tokenizer"),
    "tiny-granite": lambda f: shutil.copytree(
        Path(__file__).parents[2] / "examples" / "tiny-granite-speech", f
    ),
}


class Pair(NamedTuple):
    reference: transformers.PreTrainedTokenizerBase
    ours: Tokenizer


@pytest.fixture(scope="module", params=FOLDERS)
def pair(request, tmp_path_factory) -> Pair:
    folder = FOLDERS[request.param](tmp_path_factory.mktemp("tokenizers") / request.param)
    return Pair(AutoTokenizer.from_pretrained(folder), Tokenizer.from_pretrained(folder))


def test_ids(pair):
    """Of 1,000 texts, with the tokens around a text and without."""
    for text in TEXTS:
        for special in (True, False):
            expected = pair.reference.encode(text, add_special_tokens=special)
            assert pair.ours.encode(text, add_special_tokens=special) == expected, text


def test_texts(pair):
    """Of the ids of 1,000 texts and 1,000 rows of random ids, special tokens kept and left out."""
    rng = random.Random(1)
    rows = [rng.choices(range(len(pair.reference)), k=rng.randrange(40)) for _ in range(1000)]
    for ids in [*rows, *map(pair.reference.encode, TEXTS)]:
        for skip in (True, False):
            expected = pair.reference.decode(ids, skip_special_tokens=skip)
            assert pair.ours.decode(ids, skip_special_tokens=skip) == expected


def test_names(pair):
    assert len(pair.ours) == len(pair.reference)
    assert pair.ours.get_vocab() == pair.reference.get_vocab()
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        assert getattr(pair.ours, name) == getattr(pair.reference, name)
        assert getattr(pair.ours, f"{name}_id") == getattr(pair.reference, f"{name}_id")
    special = pair.reference.special_tokens_map
    assert {name: pair.ours.special_token(name) for name in special} == special


def test_streams(pair):
    """The pieces are together what decoding gives."""
    rng = random.Random(2)
    rows = [rng.choices(range(len(pair.ours)), k=rng.randrange(60)) for _ in range(200)]
    for ids in [*rows, *map(pair.ours.encode, TEXTS[:200])]:
        stream = StreamingDetokenizer(pair.ours)
        text = "".join([*map(stream.add, ids), stream.finish()])
        assert text == pair.reference.decode(ids, skip_special_tokens=True).strip()


def test_lone_surrogates(pair):
    for text in ("\ud800", "ok\udfff", "\udc00\ud800"):
        with pytest.raises(TypeError):
            pair.reference.encode(text)
        with pytest.raises(InputError, match="lone surrogate"):
            pair.ours.encode(text)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches(pair, side):
    reference, ours = pair
    if reference.pad_token is None:
        reference.pad_token, ours.pad_token = reference.eos_token, ours.eos_token
    reference.padding_side = ours.padding_side = side
    expected = reference(TEXTS[:20], padding=True)
    batch = ours(TEXTS[:20])
    assert batch.input_ids.tolist() == expected["input_ids"]
    assert batch.attention_mask.tolist() == expected["attention_mask"]
    for skip in (True, False):
        options = {"skip_special_tokens": skip}
        texts = reference.batch_decode(expected["input_ids"], **options)
        assert ours.batch_decode(batch.input_ids, **options) == texts


def test_added_pad_token(tmp_path):
    """As the notes on Llama 2 say."""
    for make in (small.llama, small.llama3, small.gpt2):
        folder = make(tmp_path / make.__name__)
        reference, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_pretrained(folder)
        for tokens in ({"pad_token": "<pad>"}, {"pad_token": "<s>", "eos_token": "the"}):
            assert ours.add_special_tokens(tokens) == reference.add_special_tokens(tokens)
            assert ours.pad_token_id == reference.pad_token_id
            assert len(ours) == len(reference)
            ids = reference.encode("the end<pad>of the<s>line")
            assert ours.encode("the end<pad>of the<s>line") == ids
            expected = reference.decode(ids, skip_special_tokens=True)
            assert ours.decode(ids, skip_special_tokens=True) == expected


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("add_eos", [True, False])
def test_bos_and_eos(tmp_path, add_bos, add_eos):
    options = {"add_bos_token": add_bos, "add_eos_token": add_eos}
    for make in (small.llama, small.llama3, small.gpt2):
        folder = make(tmp_path / make.__name__)
        reference = AutoTokenizer.from_pretrained(folder, **options)
        ours = Tokenizer.from_pretrained(folder, **options)
        assert ours.encode("one two") == reference.encode("one two")
        for tokenizer in (reference, ours):
            tokenizer.add_bos_token, tokenizer.add_eos_token = not add_bos, True
        assert ours.encode("one two") == reference.encode("one two")


def test_sentencepiece_itself(tmp_path):
    """The ids of the sentencepiece library, but for the space before a text that has one."""
    processor = SentencePieceProcessor(model_file=str(small.LLAMA_MODEL))
    ours = LlamaTokenizer.from_pretrained(small.llama(tmp_path), add_bos_token=False)
    apart = ("<s>", "</s>", "<unk>")
    texts = [t for t in TEXTS if not t.startswith((" ", "▁", "<gap>"))]
    texts = [text for text in texts if not any(token in text for token in apart)]
    assert len(texts) > 500
    for text in texts:
        assert ours.encode(text) == processor.encode(text)


CONVERSATIONS = (chats.CHAT, chats.SYSTEM_CHAT, chats.CALL_CHAT, chats.CHAT[:1])
VARIABLES = (
    {},
    {"add_generation_prompt": True},
    {"tools": chats.TOOLS},
    {"documents": chats.DOCUMENTS, "add_generation_prompt": True},
    {"tools": chats.TOOLS, "documents": chats.DOCUMENTS},
    {"thinking": True, "controls": {"length": "long", "é": [1.5, None]}},
    {"date_string": "1 Jan 2026", "bos_token": "<other>"},
)


@pytest.mark.parametrize("name", chats.TEMPLATES)
def test_chat_templates(name, tmp_path):
    """The same prompt, or both refuse; the same ids of it."""
    folder = small.gpt2(tmp_path, chat_template=chats.TEMPLATES[name])
    reference, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    prompts = set()
    for messages in CONVERSATIONS:
        for variables in VARIABLES:
            options = {"add_generation_prompt": False, **variables}
            try:
                expected = reference.apply_chat_template(messages, tokenize=False, **options)
            except Exception:
                with pytest.raises((InputError, CheckpointError)):
                    ours.apply_chat_template(messages, **options)
                continue
            assert ours.apply_chat_template(messages, tokenize=False, **options) == expected
            ids = reference.apply_chat_template(messages, **options)["input_ids"]
            batch = ours.apply_chat_template(messages, **options)
            assert batch.input_ids.tolist() == [ids]
            prompts.add(expected)
    assert len(prompts) > 3


@pytest.mark.parametrize("place", ["one", "list", "file", "folder", "file-and-folder"])
def test_places_of_templates(place, tmp_path):
    named = {"default": "{{ 'd' + messages[0].content }}", "tool_use": "tools", "rag": "documents"}
    configured = {
        "one": named["default"],
        "list": [{"name": n, "template": t} for n, t in named.items()],
    }
    folder = small.gpt2(tmp_path, chat_template=configured.get(place, "not this one"))
    if "file" in place:
        (folder / "chat_template.jinja").write_text(named["default"])
    if "folder" in place:
        (folder / "additional_chat_templates").mkdir()
        for name in named.keys() - ({"default"} if "file" in place else set()):
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(named[name])
    reference, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    options = [{}, {"tools": chats.TOOLS}, {"chat_template": "{{ 1 + 1 }}"}]
    if place not in ("one", "file"):
        options.append({"chat_template": "rag"})
    for option in options:
        expected = reference.apply_chat_template(chats.CHAT, tokenize=False, **option)
        assert ours.apply_chat_template(chats.CHAT, tokenize=False, **option) == expected


def test_the_cases_differ(tmp_path):
    """That the texts above tell the ways of Llama's tokenizers apart."""
    names = [name for name in FOLDERS if name.startswith("llama-")]
    names.remove("llama-json")  # what the sentencepiece file gives, and old files, too
    found = set()
    for name in names:
        tokenizer = Tokenizer.from_pretrained(FOLDERS[name](tmp_path / name))
        found.add(json.dumps([tokenizer.encode(text) for text in TEXTS]))
    assert len(found) == len(names)
