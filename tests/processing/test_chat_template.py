"""Chat templates, without transformers."""

from __future__ import annotations

import json

import chat_templates as chats
import mlx.core as mx
import pytest
import small_tokenizers as small

from mlx_speech import (
    CheckpointError,
    InputError,
    LlamaTokenizer,
    Tokenizer,
)

GOLDEN = json.loads(small.GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture
def llama(tmp_path) -> LlamaTokenizer:
    return LlamaTokenizer.from_pretrained(small.llama(tmp_path))


def prompt_of(tokenizer, conversation, **options) -> str:
    return tokenizer.apply_chat_template(conversation, tokenize=False, **options)


class TestChatTemplates:
    @pytest.mark.parametrize("case", GOLDEN["prompts"], ids=lambda case: case["template"])
    def test_as_in_transformers(self, tmp_path, case):
        template = chats.TEMPLATES[case["template"]]
        tokenizer = Tokenizer.from_pretrained(small.llama(tmp_path, chat_template=template))
        messages = chats.GOLDEN_CHATS[case["chat"]]
        options = {"add_generation_prompt": False, **chats.GOLDEN_OPTIONS[case["options"]]}
        assert prompt_of(tokenizer, messages, **options) == case["prompt"]

    def test_jais2(self, tmp_path):
        tokenizer = Tokenizer.from_pretrained(small.gpt2(tmp_path, chat_template=chats.JAIS2))
        messages = [{"role": "user", "content": "مرحبا"}]
        assert prompt_of(tokenizer, messages, add_generation_prompt=True) == (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>مرحبا<|eot_id|>"
            "<|start_header_id|>ai<|end_header_id|>"
        )

    def test_ids_have_one_bos(self, tmp_path):
        tokenizer = Tokenizer.from_pretrained(small.llama3(tmp_path, chat_template=chats.LLAMA3))
        options = {"date_string": "1 Jan 2026"}
        batch = tokenizer.apply_chat_template(chats.CHAT, **options)
        assert batch.input_ids.shape == batch.attention_mask.shape
        bos = tokenizer.bos_token_id
        assert batch.input_ids[0].tolist().count(bos) == 1
        ids = tokenizer.apply_chat_template(
            chats.CHAT, return_dict=False, return_tensors="mlx", **options
        )
        assert mx.array_equal(ids, batch.input_ids)
        prompt = prompt_of(tokenizer, chats.CHAT, **options)
        assert tokenizer.decode(ids[0], skip_special_tokens=False) == prompt

    def test_refusals(self, tmp_path):
        tokenizer = Tokenizer.from_pretrained(small.llama(tmp_path, chat_template=chats.LLAMA2))
        with pytest.raises(InputError, match="Roles must alternate"):
            tokenizer.apply_chat_template(chats.CHAT[:1] * 2)

    @pytest.mark.parametrize("messages", [[], ["hello"], "hello", [[]], [["hello"]]])
    def test_what_is_no_chat(self, tmp_path, messages):
        tokenizer = Tokenizer.from_pretrained(small.llama(tmp_path, chat_template=chats.JAIS2))
        with pytest.raises(InputError, match="one or more messages"):
            tokenizer.apply_chat_template(messages)

    def test_plain_data_alone(self, tmp_path):
        tokenizer = Tokenizer.from_pretrained(small.llama(tmp_path, chat_template=chats.GRANITE))
        with pytest.raises(InputError, match="plain data"):
            tokenizer.apply_chat_template([{"role": "user", "content": mx.array(1)}])
        with pytest.raises(InputError, match="plain data"):
            tokenizer.apply_chat_template(chats.CHAT, tools=[len])
        with pytest.raises(CheckpointError, match="the chat template fails"):
            tokenizer.apply_chat_template([{"role": "user", "content": ["a", "b"]}])

    def test_several(self, tmp_path):
        named = [{"name": "rag", "template": "with {{ documents[0].text }}"}]
        folder = small.llama(tmp_path, chat_template=named)
        tokenizer = Tokenizer.from_pretrained(folder)
        with pytest.raises(InputError, match=r"none is the default: .* one of rag"):
            tokenizer.apply_chat_template(chats.CHAT)
        (folder / "additional_chat_templates").mkdir()
        for name, text in {"tool_use": "tools", "default": "plain", "rag": "documents"}.items():
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)
            (folder / "additional_chat_templates" / f"._{name}.jinja").write_bytes(b"\0\5\xff")
        tokenizer = Tokenizer.from_pretrained(folder)
        assert prompt_of(tokenizer, chats.CHAT) == "plain"
        assert prompt_of(tokenizer, chats.CHAT, tools=chats.TOOLS) == "tools"
        assert prompt_of(tokenizer, chats.CHAT, chat_template="rag") == "documents"
        assert prompt_of(tokenizer, chats.CHAT, chat_template="{{ 2 * 3 }}") == "6"

    def test_none(self, llama):
        with pytest.raises(InputError, match="no chat template; give the prompt as plain text"):
            llama.apply_chat_template(chats.CHAT)

    @pytest.mark.parametrize("template", ["{% if %}", "{{ messages", "{{ nothing.at.all }}"])
    def test_broken(self, tmp_path, template):
        tokenizer = Tokenizer.from_pretrained(small.llama(tmp_path, chat_template=template))
        with pytest.raises(CheckpointError, match="the chat template fails"):
            tokenizer.apply_chat_template(chats.CHAT)

    def test_malformed_list(self, tmp_path):
        folder = small.llama(tmp_path, chat_template=[{"template": "x"}])
        with pytest.raises(CheckpointError, match=r"no readable chat template"):
            Tokenizer.from_pretrained(folder)
