"""Speculative decoding: the answers of greedy search, in fewer steps of the model."""

from __future__ import annotations

import weakref

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_decoder
from mlx.utils import tree_map

from mlx_speech import InputError
from mlx_speech.generation import prefill, speculative

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


def check_cache(model, cache, row, ids):
    """A row of a cache holds these ids and no more, as if they had been fed alone."""
    alone = model.make_cache()
    model.prefill(ids, alone)
    for layer, expected in zip(cache, alone, strict=True):
        assert layer.row_lengths[row] == ids.shape[1]
        for found, part in zip(layer.stored(), expected.stored(), strict=True):
            assert mx.abs(found[row, :, : ids.shape[1]] - part[0]).max().item() < 1e-5


@pytest.mark.parametrize("amount", [0.0, 0.02, 0.05, 1.0])
@pytest.mark.parametrize(
    ("options", "num_draft_tokens"),
    [({}, 1), ({}, 6), ({"repetition_penalty": 1.4}, 3)],
    ids=str,
)
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
        ({"kv_bits": 8, "quantized_kv_start": 9}, "quantized_kv_start and drafts do not go"),
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


class TestAcceptance:
    """`draft_acceptance`: a proposed token that is likely enough is kept."""

    def test_of_the_scaled_probability(self):
        """A draft is kept up to the first token below the threshold."""
        model, draft = random_decoder(), [9, 21, 30, 8, 40, 52]
        ids = mx.concatenate([PROMPT, mx.array([draft])], axis=1)
        options = {"max_new_tokens": 7, "eos_token_id": [], "drafts": [draft]}

        class Scaled(type(model)):
            logits_temperature = 8.0

        model.__class__ = Scaled
        likely = mx.softmax(model(ids).logits[0, 8:-1] / 8.0, axis=-1)
        likely = likely[mx.arange(6), mx.array(draft)].tolist()
        for least in (0.999 * min(likely), 1.001 * min(likely), 0.999 * max(likely), 1.0):
            kept = next((i for i in range(6) if likely[i] < least), 6)
            answer = model.generate(PROMPT, draft_acceptance=least, **options)[0, 9:].tolist()
            assert answer[:kept] == draft[:kept]
            assert answer[kept] == mx.argmax(model(ids[:, : 9 + kept]).logits[0, -1]).item()

    @pytest.mark.parametrize("num_draft_tokens", [None, 1, 7, 31])
    def test_ends_of_the_range(self, num_draft_tokens):
        """Everything that is known, also where a block ends, or what greedy search gives."""
        model = random_decoder()
        options = OPTIONS | {"num_draft_tokens": num_draft_tokens}
        drafts = np.random.default_rng(1).integers(5, 61, (3, 40)).tolist()
        drafts[1][20] = 61
        options["drafts"] = drafts
        every = model.generate(PROMPTS[:3], draft_acceptance=1e-30, **options)
        assert every[0, 9:49].tolist() == drafts[0]
        assert every[1, 9:29].tolist() == drafts[1][:20]
        none = model.generate(PROMPTS[:3], draft_acceptance=1.0, **options)
        assert none.tolist() == model.generate(PROMPTS[:3], **OPTIONS).tolist()

    def test_what_is_forbidden_is_not_kept(self):
        model, draft = random_decoder(), [9, 21, 30, 8, 40, 52]
        options = OPTIONS | {"drafts": [draft], "draft_acceptance": 1e-30}
        answer = model.generate(PROMPT, suppress_tokens=[30], **options)[0, 9:].tolist()
        assert answer[:2] == draft[:2]
        assert 30 not in answer


class TestNearTies:
    """Logits in half precision, which several tokens at once get rounded otherwise."""

    @pytest.fixture
    def model(self, monkeypatch):
        """The noise is up to a unit in the last place, of all tokens but the first."""
        model, noise = random_decoder(), np.random.default_rng(0)
        exact = type(model).logits

        def rounded(self, states):
            logits = exact(self, states).astype(mx.bfloat16)
            shift = (
                mx.array(noise.integers(-1, 2, logits.shape))
                * (mx.arange(states.shape[1]) > 0)[:, None]
            )
            return logits + (shift * mx.abs(logits) * mx.finfo(mx.bfloat16).eps).astype(mx.bfloat16)

        monkeypatch.setattr(type(model), "logits", rounded)
        return model

    @pytest.mark.parametrize("ulps", [4, 0])
    def test_a_step_of_one_row_decides(self, model, monkeypatch, ulps):
        """Without it answers are others."""
        monkeypatch.setattr(speculative, "TIE_ULPS", ulps)
        plain = model.generate(PROMPTS, **OPTIONS)
        found = model.generate(PROMPTS, drafts=plain[:, 9:], **OPTIONS)
        assert (found.tolist() == plain.tolist()) == (ulps == 4)

    @pytest.mark.parametrize(
        "options",
        [{"renormalize_logits": True, "suppress_tokens": [2]}, {"repetition_penalty": 1.1}],
        ids=str,
    )
    def test_whatever_changes_the_scores(self, model, options):
        """It is logits that are rounded; scores may be near zero."""
        model.lm_head.weight *= 5
        options = OPTIONS | {"num_draft_tokens": 31, "max_new_tokens": 200} | options
        plain = model.generate(PROMPTS, **options)
        found = model.generate(PROMPTS, drafts=plain[:, 9:], **options)
        assert found.tolist() == plain.tolist()

    @pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}], ids=str)
    def test_every_choice(self, monkeypatch, options):
        """Where all are as good as tied, each is decided by itself, and the cache is right."""
        monkeypatch.setattr(speculative, "TIE_ULPS", 1e9)
        model, options = random_decoder(), OPTIONS | {"max_new_tokens": 9} | options
        plain = model.generate(PROMPTS[:3], **options)
        asked = options | {"drafts": plain[:, 9:].tolist()}
        run = prefill(model, PROMPTS[:3], **asked)
        assert run.sequences(run.rows()).tolist() == plain.tolist()
        for row, answer in enumerate(run.speculation.answers):
            # that of the prompt is the first token's own
            assert answer.statistics.passes == 9
            check_cache(model, run.cache, row, plain[row : row + 1, :17])


ROPE = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 3.0}
BATCHES = {
    "plain": ({}, {}),
    "kv-bits": ({"head_dim": 32}, {"kv_bits": 8, "kv_group_size": 32}),
    "dynamic-rope": ({"rope_parameters": ROPE, "max_position_embeddings": 12}, {}),
    "repetition-penalty": ({}, {"repetition_penalty": 1.3}),
}


@pytest.mark.parametrize("name", BATCHES)
def test_rows_leave_and_others_come(name):
    """Continuous batching: an answer that has ended makes room for the next prompt, at any time."""
    sizes, options = BATCHES[name]
    model = random_decoder(**sizes)
    options = OPTIONS | {"max_new_tokens": 30, "eos_token_id": [26, 42, 8, 7]} | options
    prompts = [PROMPTS[row : row + 1, row % 5 :] for row in range(8)]
    plain = [model.generate(prompt, **options)[0, prompt.shape[1] :] for prompt in prompts]
    plain = [answer.tolist() for answer in plain]
    drafts = [[*answer[: 2 + row], 9, *answer[3 + row :]] for row, answer in enumerate(plain)]

    def begin(row):
        draft = [drafts[row]]
        return prefill(model, prompts[row], drafts=draft, num_draft_tokens=3, **options).speculation

    batch, waiting, ended, most = begin(0), [*range(1, 8)], [], 0
    while batch.answers:
        while waiting and len(batch.answers) < 3:
            batch.extend(begin(waiting.pop(0)))
        most = max(most, len(batch.answers))
        for row, answer in enumerate(batch.answers):
            ids = mx.array([answer.prompt[0].tolist() + answer.tokens[:-1]])
            if name == "plain":
                check_cache(model, batch.cache, row, ids)
        ended += batch.take_ended()
        if batch.answers:
            batch.advance()
        elif waiting:
            batch.extend(begin(waiting.pop(0)))
    assert most == 3
    assert len({*map(len, plain)}) > 3
    assert [a.tokens for a in ended] != plain  # the shortest is the first to leave
    assert sorted(a.tokens for a in ended) == sorted(plain)
    assert sum(a.statistics.accepted for a in ended) > len(plain)


def test_what_a_batch_has_taken_in_is_not_kept_twice():
    model = random_decoder()
    batch, other = (prefill(model, PROMPT, drafts=[[9, 7]], **OPTIONS) for _ in range(2))
    layers = [weakref.ref(layer) for layer in other.cache]
    batch.speculation.extend(other.speculation)
    assert len(other.speculation.answers) == 1
    assert not any(layer() for layer in layers)


def test_logits_of_a_draft_are_not_kept():
    model = random_decoder(vocab_size=20_000)
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    run = prefill(model, PROMPT, drafts=[[7] * 40], **OPTIONS)
    mx.synchronize()
    held = mx.get_active_memory() - before
    assert held < 2 * run.logits.nbytes + sum(p.nbytes for c in run.cache for p in c.state)


def test_a_lower_limit():
    """Set after the first pass, which may have given more."""
    model = random_decoder()
    whole = model.generate(PROMPT, **OPTIONS)[0, 9:].tolist()
    for limit in (1, 4, 8, 9, 20):
        options = OPTIONS | {"drafts": [whole], "num_draft_tokens": 7}
        batch = prefill(model, PROMPT, **options).speculation
        batch.answers[0].shorten(limit)
        while not batch.answers[0].ended:
            batch.advance()
        assert batch.answers[0].tokens == whole[:limit]
        assert len(batch.answers[0].logprobs) == limit
