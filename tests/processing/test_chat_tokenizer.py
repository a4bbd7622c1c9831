"""Conversations encoded, continued and masked."""

from __future__ import annotations

import pytest
import small_tokenizers as small

from mlx_speech import InputError, Tokenizer, UnsupportedOptionError

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content | trim }}]{% else %}"
    "{% generation %}{{ m.content }}.{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)
CHAT = [{"role": "user", "content": "the dog"}, {"role": "assistant", "content": "sleeps"}]


@pytest.fixture
def tokenizer(tmp_path) -> Tokenizer:
    return Tokenizer.from_pretrained(small.gpt2(tmp_path, chat_template=TEMPLATE))


def test_encodes_by_default(tokenizer):
    batch = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)
    assert tokenizer.decode(batch.input_ids[0], skip_special_tokens=True) == "[the dog]sleeps.>"
    ids = tokenizer.apply_chat_template(CHAT, return_dict=False, return_tensors=None)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "[the dog]sleeps."


def test_several(tokenizer):
    chats = [CHAT, CHAT[:1]]
    prompts = ["[the dog]sleeps.", "[the dog]"]
    assert tokenizer.apply_chat_template(chats, tokenize=False) == prompts
    batch = tokenizer.apply_chat_template(chats, padding=True)
    assert batch.input_ids.shape[0] == 2
    assert tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True) == prompts


def test_what_the_assistant_says(tokenizer):
    batch = tokenizer.apply_chat_template([CHAT, CHAT * 2], return_assistant_tokens_mask=True)
    for row, mask, said in zip(
        batch.input_ids.tolist(), batch.assistant_masks.tolist(), (1, 2), strict=True
    ):
        spoken = [token for token, of_it in zip(row, mask, strict=True) if of_it]
        assert tokenizer.decode(spoken, skip_special_tokens=True) == "sleeps." * said


def test_a_message_goes_on(tokenizer):
    options = {"continue_final_message": True, "tokenize": False}
    assert tokenizer.apply_chat_template(CHAT, **options) == "[the dog]sleeps"
    asked = [{"role": "user", "content": [{"type": "text", "text": "the dog "}]}]
    template = "{% for m in messages %}[{{ m.content[0].text | trim }}]{% endfor %}"
    assert tokenizer.apply_chat_template(asked, chat_template=template, **options) == "[the dog"
    for chat in ([{"role": "user"}], [{"role": "user", "content": []}], "a", []):
        with pytest.raises(InputError, match="continue_final_message: the last message has no"):
            tokenizer.apply_chat_template(chat, **options)
    with pytest.raises(InputError, match="the template leaves out the last message's text"):
        tokenizer.apply_chat_template(CHAT, chat_template="{{ messages[0].content }}", **options)


def test_refused(tokenizer):
    for other in ("add_generation_prompt", "return_assistant_tokens_mask"):
        with pytest.raises(InputError, match=r"continue_final_message .* does not go with"):
            tokenizer.apply_chat_template(CHAT, continue_final_message=True, **{other: True})
    with pytest.raises(InputError, match="needs tokenize=True and return_dict=True"):
        tokenizer.apply_chat_template(CHAT, tokenize=False, return_assistant_tokens_mask=True)
    with pytest.raises(UnsupportedOptionError, match="support sanitize_control_tokens"):
        tokenizer.apply_chat_template(CHAT, sanitize_control_tokens=True)


def test_get_chat_template(tokenizer):
    assert tokenizer.get_chat_template() == TEMPLATE
    assert tokenizer.get_chat_template("{{ 1 }}") == "{{ 1 }}"
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        tokenizer.get_chat_template()
