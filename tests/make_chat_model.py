"""Writes data/chat-model: a small random Qwen3, of a family that only mlx-lm runs, and what
transformers makes of a conversation with it.

Needs what `make parity` installs: `.venv/bin/python tests/make_chat_model.py`. Weights are stored
in bfloat16, to take little room; everything is computed in float32.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

FOLDER = Path(__file__).parent / "data" / "chat-model"
#: what is said in the golden conversation, and what the tokenizer is trained on
TURNS = ("turn on the kitchen light", "good night", "how many seconds are in a day?")
CORPUS = [*TURNS, "system user assistant\n", "the kitchen light is on.", "sleep well.", "be brief"]
LETTERS = "abcdefghijklmnopqrstuvwxyz.,?!'0123456789"
NEW_TOKENS = 24
#: as that of Qwen3: what was thought is left out of the replies before
TEMPLATE = """\
{%- for message in messages %}{%- set content = message['content'] %}
{%- if message['role'] == 'assistant' %}
{%- set content = content.split('</think>')[-1] %}{%- endif %}
{{- '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>' + '\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    trainer = trainers.BpeTrainer(vocab_size=96, special_tokens=special, show_progress=False)
    backend.train_from_iterator([LETTERS, *CORPUS * 3], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )


def model(vocab_size: int, seed: int = 25) -> Qwen3ForCausalLM:
    """With weights large enough that it neither repeats itself nor ends at once."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    made = Qwen3ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in made.parameters():
            drawn = torch.randn(value.shape, generator=generator)
            value.copy_(
                1 + 0.2 * drawn if value.ndim == 1 else 1.5 * drawn / value.shape[-1] ** 0.5
            )
    # two ends, as released models have them
    made.generation_config.eos_token_id = [2, 0]
    return made.to(torch.bfloat16)


@torch.no_grad()
def conversation(
    made: Qwen3ForCausalLM, text: PreTrainedTokenizerFast, **options: float
) -> list[dict]:
    """Greedy replies, each to the whole conversation before it."""
    messages, turns = [], []
    for said in TURNS:
        messages.append({"role": "user", "content": said})
        prompt = text.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = text(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        output = made.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, **options)
        new = output[0, ids.shape[1] :].tolist()
        ended = new[-1] in made.generation_config.eos_token_id
        reply = text.decode(new[: len(new) - ended], clean_up_tokenization_spaces=False).strip()
        messages.append({"role": "assistant", "content": reply})
        turns.append({"said": said, "prompt": prompt, "ids": new, "reply": reply})
    return turns


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    text = tokenizer()
    made = model(len(text))
    made.save_pretrained(FOLDER)
    text.save_pretrained(FOLDER)
    # the vocabulary is most of the file, and needs no white space
    file = FOLDER / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()), ensure_ascii=False))
    turns = conversation(Qwen3ForCausalLM.from_pretrained(FOLDER, dtype=torch.float32), text)
    golden = json.dumps({"new_tokens": NEW_TOKENS, "turns": turns}, indent=1, ensure_ascii=False)
    (FOLDER / "golden.json").write_text(golden + "\n")


if __name__ == "__main__":
    main()
