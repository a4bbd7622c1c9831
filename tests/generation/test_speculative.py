"""Speculative decoding: the answers of greedy search, in fewer steps of the model."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_decoder
from mlx.utils import tree_map

from mlx_speech import InputError
from mlx_speech.generation import prefill

PROMPT = mx.array(np.random.default_rng(4).integers(5, 61, (1, 9)))
PROMPTS = mx.array(np.random.default_rng(5).integers(5, 61, (8, 9)))
OPTIONS = {"max_new_tokens": 60, "eos_token_id": []}


def disturbed(model, amount: float):
    """A draft model that agrees with `model` now and then."""
    draft = random_decoder()
    noise = mx.random.key(9)
    draft.update(
        tree_map(lambda w: w + amount * mx.random.normal(w.shape, key=noise), model.parameters())
    )
    return draft


def count_steps(model, monkeypatch) -> list[int]:
    """Lengths of what is fed to a model from now on."""
    fed, call = [], type(model.model).run_layers

    def counted(self, x, *inputs):
        if self is model.model:
            fed.append(x.shape[1])
        return call(self, x, *inputs)

    monkeypatch.setattr(type(model.model), "run_layers", counted)
    return fed


@pytest.mark.parametrize("num_draft_tokens", [1, 3, 6])
@pytest.mark.parametrize("amount", [0.0, 0.02, 0.05, 1.0])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.4}], ids=str)
def test_same_answer(options, amount, num_draft_tokens):
    """Tokens and log-probabilities, with a draft that is always, sometimes or hardly right."""
    model = random_decoder()
    draft = disturbed(model, amount)
    options = OPTIONS | options
    plain = list(prefill(model, PROMPT, **options, streaming=True).steps())
    drafted = list(
        prefill(
            model,
            PROMPT,
            draft_model=draft,
            num_draft_tokens=num_draft_tokens,
            **options,
            streaming=True,
        ).steps()
    )
    assert [s.tokens for s in drafted] == [s.tokens for s in plain]
    assert len(plain) == 60
    assert len({s.tokens[0] for s in plain}) > 5
    np.testing.assert_allclose(
        [s.logprobs[0] for s in drafted], [s.logprobs[0] for s in plain], atol=1e-4
    )


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 9])
def test_limit_and_end(limit):
    """The limit holds anywhere within what was proposed, and so does an end."""
    model = random_decoder()
    options = OPTIONS | {"max_new_tokens": limit}
    plain = model.generate(PROMPT, **options)
    assert model.generate(PROMPT, draft_model=model, **options).tolist() == plain.tolist()
    options = OPTIONS | {"eos_token_id": plain[0, -1].item()}
    plain = model.generate(PROMPT, **options)
    assert model.generate(PROMPT, draft_model=model, **options).tolist() == plain.tolist()
    assert plain.shape[1] <= 9 + limit


def test_fewer_steps(monkeypatch):
    """A draft that is always right: one step for four tokens, and nothing is fed twice."""
    model, draft = random_decoder(), random_decoder()
    fed = count_steps(model, monkeypatch)
    model.generate(PROMPT, draft_model=draft, **OPTIONS)
    assert fed == [12] + [4] * 14
    monkeypatch.undo()
    drafted = count_steps(draft, monkeypatch)
    model.generate(PROMPT, draft_model=draft, **OPTIONS)
    # what was right is fed together with the token after it
    assert drafted == [9, 1, 1] + [2, 1, 1] * 14


@pytest.mark.parametrize("num_draft_tokens", [1, 4, 7])
def test_cache_ends_with_the_answer(num_draft_tokens):
    """What was right beyond the end is forgotten: the conversation goes on as without a draft."""
    model = random_decoder()
    whole = model.generate(PROMPT, **OPTIONS)[0].tolist()
    for end in (10, 12, 13, 16):
        cache = model.make_cache()
        options = OPTIONS | {"eos_token_id": whole[end], "num_draft_tokens": num_draft_tokens}
        answer = model.generate(PROMPT, past_key_values=cache, draft_model=model, **options)
        assert cache[0].length in (answer.shape[1], answer.shape[1] - 1)
        more = mx.concatenate([answer, mx.array([[7, 8, 9]])], axis=1)
        expected = model.generate(more, max_new_tokens=9)
        assert model.generate(more, max_new_tokens=9, past_key_values=cache).tolist() == (
            expected.tolist()
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "do not go together"),
        ({"temperature": 1.0}, "without sampling"),
        ({"max_kv_size": 8}, "no max_kv_size"),
        ({"max_kv_size": 40}, "no max_kv_size"),
        ({"draft_model": random_decoder(vocab_size=60)}, "knows 60 tokens, the model 61"),
    ],
)
def test_impossible(options, message):
    model = random_decoder()
    with pytest.raises(InputError, match=message):
        model.generate(PROMPT, **({"draft_model": model} | OPTIONS | options))


def test_one_prompt_at_a_time():
    model = random_decoder()
    with pytest.raises(InputError, match="one prompt at a time"):
        model.generate(mx.concatenate([PROMPT, PROMPT]), draft_model=model, **OPTIONS)


def count_calls(prompt_length: int, seen: list):
    """A processor that keeps the histories it is asked about."""

    def process(ids, scores):
        seen.append(ids[0, prompt_length:].tolist())
        return scores

    return process


def test_processors_see_what_was_proposed_and_nothing_else():
    """Not what fills the rows of a batch, nor a row that has ended."""
    model, prompts = random_decoder(), PROMPTS[:2]
    options = OPTIONS | {"max_new_tokens": 12}
    long, short = model.generate(prompts, **options)[:, 9:].tolist()
    seen: list[list[int]] = []
    model.generate(
        prompts,
        drafts=[long, short[:2]],
        stopping_criteria=lambda ids, _: ids.shape[1] == 12 and ids[0, 0] == prompts[1, 0],
        logits_processor=count_calls(9, seen),
        num_draft_tokens=7,
        **options,
    )
    assert sorted(seen) == sorted([*(long[:i] for i in range(12)), *(short[:i] for i in range(3))])
