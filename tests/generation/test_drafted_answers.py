"""Drafts given to `generate`: whatever they are, the answers are those of greedy search."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import DECODERS, random_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech import InputError, save_prompt_cache
from mlx_speech.loading import load_model

PROMPTS = mx.array(np.random.default_rng(5).integers(5, 61, (8, 9)))
#: prompts of 9, 4, 7 … tokens
PADDED = {"attention_mask": mx.arange(9) >= mx.array([0, 5, 2, 8, 0, 3, 1, 6])[:, None]}
OPTIONS = {"max_new_tokens": 24, "eos_token_id": []}


def drafts_of(answer: list[int], end: int = 0) -> list[list[int]]:
    """Right ones and wrong ones of every kind, of an answer."""
    return [
        answer,
        [],
        [(token + 7) % 50 + 5 for token in answer],  # all wrong
        answer[3:],
        [9, 9, *answer],
        answer[:5] * 5,
        answer * 10,
        [*answer[:4], -1, *answer[4:]],
        [*answer[:4], 10**6, *answer[4:]],
        [*answer[:6], end, *answer[6:]],
        [9 if place % 5 == 4 else token for place, token in enumerate(answer)],
        [token for place, token in enumerate(answer) if place % 4],
    ]


def mixed_drafts(rows: list[list[int]], turn: int, end: int = 0) -> list[list[int]]:
    """Of each row another kind."""
    return [drafts_of(row, end)[(turn + i) % 12] for i, row in enumerate(rows)]


def quantized(bits: int):
    model = random_decoder(hidden_size=64, intermediate_size=128)
    nn.quantize(model, group_size=64, bits=bits)
    return model


MODELS = {
    "llama": random_decoder,
    "one-kv-head": lambda: random_decoder(num_key_value_heads=1, num_hidden_layers=1),
    **{name: lambda name=name: load_model(DECODERS / name) for name in ("granite", "jais2")},
    "4-bit": lambda: quantized(4),
    "8-bit": lambda: quantized(8),
}


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("name", MODELS)
def test_same_as_greedy_search(name, rows):
    """Of prompts of different lengths, with drafts of every kind and blocks of every size."""
    model = MODELS[name]()
    options = OPTIONS | {"attention_mask": PADDED["attention_mask"][:rows]}
    if name == "jais2":
        options["repetition_penalty"] = 1.5  # it says one token for ever
    plain = model.generate(PROMPTS[:rows], **options).tolist()
    assert max(len({*row[9:]}) for row in plain) > 5
    for turn, count in enumerate([None, 1, 3, 7, 15, 31] * (2 if rows == 1 else 1)):
        drafts = mixed_drafts([row[9:] for row in plain], turn)
        options["num_draft_tokens"] = count
        assert model.generate(PROMPTS[:rows], drafts=drafts, **options).tolist() == plain, drafts


class Recorder:
    """A streamer that keeps what it gets."""

    def __init__(self):
        self.parts: list = []

    def put(self, value):
        self.parts.append(value.tolist())

    def end(self):
        self.parts.append("end")


class Letters:
    """A tokenizer of which each token is a letter."""

    def decode(self, ids, *, skip_special_tokens=True):
        return "".join(chr(97 + i) for i in ids)


def repelled(ids, scores):
    """A processor of a caller's, pure: the last token and the next one do not come."""
    token = mx.arange(scores.shape[-1])
    return mx.where((token == ids[:, -1:]) | (token == ids[:, -1:] + 1), -1e9, scores)


ENDING = {
    "eos": {"eos_token_id": [10, 42, 8]},
    "eos-late": {"eos_token_id": [10, 42, 8], "min_new_tokens": 11},
    "stop-string": {"stop_strings": [Letters().decode([33, 47])], "tokenizer": Letters()},
    "criterion": {"stopping_criteria": lambda ids, _: ids[:, -1] % 7 == 0},
    "max-length": {"max_new_tokens": None, "max_length": 21},
    "forced-eos": {"forced_eos_token_id": 3},
}
SHAPING = {
    "repetition-penalty": {"repetition_penalty": 1.3},
    "no-repeat-ngram": {"no_repeat_ngram_size": 2},
    "bad-words": {"bad_words_ids": [[31], [33, 47], [58, 25, 25]]},
    "allowed": {
        "prefix_allowed_tokens_fn": lambda row, ids: [
            i for i in range(5, 61) if (i + ids[-1].item() + row) % 3
        ]
    },
    "own": {"logits_processor": [repelled]},
    "suppressed": {"suppress_tokens": [31, 42], "renormalize_logits": True},
    "in-steps": {"prefill_step_size": 4},
    "kv-bits": {"kv_bits": 8, "kv_group_size": 32},
}


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("name", [*ENDING, *SHAPING])
def test_options(name, rows):
    """What ends answers, and what changes scores; unlike the answers without."""
    model = random_decoder(head_dim=32)
    options = OPTIONS | {"attention_mask": PADDED["attention_mask"][:rows], "pad_token_id": 2}
    without = model.generate(PROMPTS[:rows], **options).tolist()
    options |= (ENDING | SHAPING)[name]
    plain = model.generate(PROMPTS[:rows], **options).tolist()
    assert plain != without or name in ("in-steps", "kv-bits")
    for turn, count in enumerate([None, 3, 15] if rows > 1 else [None, 1, 3, 7, 15, 31] * 2):
        drafts = mixed_drafts([row[9:] for row in plain], turn, end=42)
        drafts[0] = without[0][9:] if turn == 2 else drafts[0]
        found = model.generate(PROMPTS[:rows], drafts=drafts, num_draft_tokens=count, **options)
        assert found.tolist() == plain, drafts


@pytest.mark.parametrize("rows", [1, 4])
def test_scores_and_streaming(rows):
    """Those of greedy search, of rows that end at different times, step by step."""
    model = random_decoder()
    options = OPTIONS | {"attention_mask": PADDED["attention_mask"][:rows], "pad_token_id": 2}
    options |= {"repetition_penalty": 1.3, "eos_token_id": [10, 42, 8]}
    whole = options | {"output_scores": True, "output_logits": True}
    whole["return_dict_in_generate"] = True
    plain = model.generate(PROMPTS[:rows], **whole)
    answers = plain.sequences[:, 9:].tolist()
    ends = [next((i for i, t in enumerate(row, 1) if t in (10, 42, 8)), 24) for row in answers]
    for turn in range(12):
        drafts = mixed_drafts(answers, turn)
        found = model.generate(PROMPTS[:rows], drafts=drafts, num_draft_tokens=5, **whole)
        assert found.sequences.tolist() == plain.sequences.tolist()
        assert len(found.scores) == len(found.logits) == len(plain.scores)
        for kept in ("scores", "logits"):
            for step, (ours, theirs) in enumerate(zip(found[kept], plain[kept], strict=True)):
                going = mx.array([row for row, end in enumerate(ends) if step < end])
                assert mx.abs(ours[going] - theirs[going]).max().item() < 1e-4
    streamed, steps = Recorder(), Recorder()
    model.generate(PROMPTS[:rows], streamer=steps, **options)
    model.generate(PROMPTS[:rows], drafts=drafts, streamer=streamed, **options)
    assert streamed.parts == steps.parts
    assert len(steps.parts) == len(plain.scores) + 2


class TestConversation:
    """A cache of one prompt lives on after a drafted answer."""

    @pytest.mark.parametrize("kind", range(12))
    @pytest.mark.parametrize("end", [42, 55, []], ids=str)
    def test_goes_on(self, kind, end):
        model, cache = random_decoder(), random_decoder().make_cache()
        prompt, options = PROMPTS[:1], OPTIONS | {"eos_token_id": end}
        plain = model.generate(prompt, **options)
        for _ in range(2):
            draft = drafts_of(plain[0, prompt.shape[1] :].tolist())[kind]
            answer = model.generate(prompt, drafts=[draft], past_key_values=cache, **options)
            assert answer.tolist() == plain.tolist()
            assert cache[0].length == answer.shape[1] - 1
            prompt = mx.concatenate([answer, mx.array([[7, 8, 9]])], axis=1)
            plain = model.generate(prompt, **options)

    def test_what_rows_of_different_lengths_hold_cannot_go_on(self, tmp_path):
        model = random_decoder()
        options = OPTIONS | {"drafts": [[], []], "return_dict_in_generate": True}
        mask = PADDED["attention_mask"][:2]
        output = model.generate(PROMPTS[:2], attention_mask=mask, **options)
        cache, ids = output.past_key_values, mx.concatenate([output.sequences, PROMPTS[:2]], axis=1)
        assert cache[0].row_lengths == [9 + 23, 4 + 23]
        for drafts in ({}, {"drafts": [[], []]}):
            with pytest.raises(InputError, match="rows of different lengths, which cannot go on"):
                model.generate(ids, past_key_values=cache, **drafts)
        with pytest.raises(InputError, match="different lengths cannot be saved"):
            save_prompt_cache(tmp_path / "cache", cache, model)

    def test_a_cache_longer_than_the_shortest_prompt(self):
        model = random_decoder()
        cache = model.make_cache()
        model.prefill(PROMPTS[:2, -5:], cache)
        with pytest.raises(
            InputError, match="holds 5 positions already, and the prompt has only 4"
        ):
            model.generate(
                PROMPTS[:2],
                drafts=[[], []],
                past_key_values=cache,
                attention_mask=PADDED["attention_mask"][:2],
            )
