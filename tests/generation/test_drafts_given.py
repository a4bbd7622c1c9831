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
from mlx_speech.generation import prefill
from mlx_speech.layers.lora import LoRALinear
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
            i for last in [ids[-1].item()] for i in range(5, 61) if (i + last + row) % 3
        ]
    },
    "own": {"logits_processor": [repelled]},
    "suppressed": {"suppress_tokens": [31, 42], "renormalize_logits": True},
    "in-steps": {"prefill_step_size": 4},
    "kv-bits": {"kv_bits": 8, "kv_group_size": 32},
}


@pytest.mark.parametrize("rows", [1, 8])
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


class TestPasses:
    """How much of the model's work drafts save, which nothing else would tell."""

    @staticmethod
    def statistics(drafts, count, monkeypatch, rows=slice(1), **options):
        """Of each row, and how many positions each pass fed."""
        model, fed = random_decoder(), []
        run_layers = type(model.model).run_layers

        def counted(self, x, *inputs):
            fed.append(x.shape[1])
            return run_layers(self, x, *inputs)

        monkeypatch.setattr(type(model.model), "run_layers", counted)
        options = OPTIONS | {"attention_mask": PADDED["attention_mask"][rows]} | options
        run = prefill(model, PROMPTS[rows], drafts=drafts, num_draft_tokens=count, **options)
        run.rows()
        monkeypatch.undo()
        return [vars(answer.statistics) for answer in run.speculation.answers], fed

    @pytest.fixture
    def answers(self) -> list[list[int]]:
        return random_decoder().generate(PROMPTS, **PADDED, **OPTIONS)[:, 9:].tolist()

    @pytest.mark.parametrize(
        ("count", "passes"), [(1, 12), (3, 6), (7, 3), (15, 2), (31, 1), (None, 1)]
    )
    def test_right(self, answers, count, passes, monkeypatch):
        """Each gives what was proposed and one token more, the first with the prompt."""
        (found,), fed = self.statistics([answers[0]], count, monkeypatch)
        right = 24 - passes
        assert found == {"drafted": right, "accepted": right, "passes": passes, "tokens": 24}
        assert sum(fed) == 9 + right + passes - 1
        assert len(fed) == passes

    def test_all_wrong(self, answers, monkeypatch):
        wrong = drafts_of(answers[0])[2]
        (found,), fed = self.statistics([wrong], 3, monkeypatch)
        assert found == {"drafted": 21 * 3 + 2 + 1, "accepted": 0, "passes": 24, "tokens": 24}
        assert fed == [12, *[4] * 20, 3, 2, 1]

    def test_empty(self, monkeypatch):
        (found,), fed = self.statistics([[]], 3, monkeypatch)
        assert found == {"drafted": 0, "accepted": 0, "passes": 24, "tokens": 24}
        assert fed == [9] + [1] * 23

    def test_a_wrong_token(self, answers, monkeypatch):
        """The token in its place comes from the model, and the rest of the draft is right."""
        draft = [*answers[0][:10], 9, *answers[0][11:]]
        (found,), fed = self.statistics([draft], 7, monkeypatch)
        # 8 tokens, 2 and one instead of the third, 8, 5
        assert found == {"drafted": 7 + 7 + 7 + 4, "accepted": 20, "passes": 4, "tokens": 24}
        assert fed == [16, 8, 8, 5]

    def test_an_end_within_what_is_right(self, answers, monkeypatch):
        end = answers[0][12]
        assert end not in answers[0][:12]
        (found,), _ = self.statistics([answers[0]], 7, monkeypatch, eos_token_id=end)
        assert found == {"drafted": 14, "accepted": 12, "passes": 2, "tokens": 13}

    def test_rows_go_on_independently(self, answers, monkeypatch):
        """None waits for another, and none is fed what only another has."""
        drafts = [answers[0], [], answers[2][:12]]
        found, fed = self.statistics(drafts, 7, monkeypatch, slice(3))
        assert [row["passes"] for row in found[:2]] == [3, 24]
        assert len(fed) == 24
        for row, draft in enumerate(drafts):
            alone, _ = self.statistics([draft], 7, monkeypatch, slice(row, row + 1))
            assert found[row] == alone[0]

    @pytest.mark.parametrize(("rows", "fed"), [(1, [31, 15]), (2, [31, 15]), (3, [31, 7])])
    def test_how_many_where_nothing_is_said(self, rows, fed, monkeypatch):
        """With the prompt more than after it, and fewer of many rows."""
        options = OPTIONS | {"max_new_tokens": 90}
        drafts = random_decoder().generate(PROMPTS[:rows], **options)[:, 9:].tolist()
        _, found = self.statistics(
            drafts, None, monkeypatch, slice(rows), attention_mask=None, max_new_tokens=90
        )
        assert found[:3] == [9 + fed[0], 1 + fed[1], 1 + fed[1]]


@pytest.mark.parametrize("options", [{}, {"kv_bits": 8, "kv_group_size": 32}], ids=str)
@pytest.mark.parametrize("turn", [0, 4, 9])
def test_the_cache_of_each_row(turn, options):
    """Is that of the row alone, though rows end at different times and accept other numbers."""
    model = random_decoder(head_dim=32)
    options = OPTIONS | {"eos_token_id": [10, 42, 8], "pad_token_id": 2} | options
    plain = model.generate(PROMPTS, **PADDED, **options)[:, 9:].tolist()
    drafts = mixed_drafts(plain, turn)
    run = prefill(model, PROMPTS, drafts=drafts, num_draft_tokens=7, **PADDED, **options)
    answers = [row.tokens for row in run.rows()]
    assert len({*map(len, answers)}) > 3
    alike = {name: options[name] for name in options.keys() & set(model.cache_options)}
    for row, answer in enumerate(answers):
        ids = PROMPTS[row, 9 - PADDED["attention_mask"][row].sum().item() :].tolist()
        ids = mx.array([[*ids, *answer[:-1]]])
        alone = model.make_cache(**alike)
        model.prefill(ids, alone)
        for layer, expected in zip(run.cache, alone, strict=True):
            assert layer.row_lengths[row] == ids.shape[1]
            for found, part in zip(layer.stored(), expected.stored(), strict=True):
                if part.dtype == mx.float32:  # not the bits, which may fall to either side
                    difference = mx.abs(found[row, :, : ids.shape[1]] - part[0])
                    assert difference.max().item() < 1e-5


@pytest.fixture(scope="module")
def greedy():
    """A model, and what it answers to each prompt: (row of `PROMPTS`, ids without padding)."""
    model = random_decoder()
    options = OPTIONS | {"eos_token_id": [10, 42, 8], "pad_token_id": 2}
    return model, options, model.generate(PROMPTS, **PADDED, **options).tolist()


EDITS = st.lists(
    st.tuples(st.integers(0, 24), st.integers(0, 3), st.lists(st.integers(-2, 64), max_size=4)),
    max_size=4,
)


@settings(max_examples=80, deadline=None)
@given(
    edits=st.lists(EDITS, min_size=1, max_size=5),
    first=st.integers(0, 7),
    count=st.integers(1, 40) | st.none(),
)
def test_any_draft(greedy, edits, first, count):
    """A right one of each row with some tokens left out and some put in."""
    model, options, plain = greedy
    rows = [(first + number) % 8 for number in range(len(edits))]
    drafts = []
    for row, changes in zip(rows, edits, strict=True):
        draft = plain[row][9:]
        for place, left_out, put_in in changes:
            draft[place : place + left_out] = put_in
        drafts.append(draft)
    mask = PADDED["attention_mask"][mx.array(rows)]
    found = model.generate(
        PROMPTS[mx.array(rows)],
        attention_mask=mask,
        drafts=drafts,
        num_draft_tokens=count,
        **options,
    ).tolist()
    for row, answer in zip(rows, found, strict=True):
        assert answer == plain[row][: len(answer)]
        assert {*plain[row][len(answer) :]} <= {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drafts": [[5]]}, "there are 1 drafts, but 2 prompts"),
        ({"drafts": []}, "there are 0 drafts, but 2 prompts"),
        ({"drafts": [[5], [6], [7]]}, "there are 3 drafts, but 2 prompts"),
        ({"drafts": 5}, "drafts is 5, but must be"),
        ({"drafts": "ab"}, "drafts is 'ab', but must be"),
        ({"drafts": [5, 6]}, r"drafts is \[5, 6\], but must be"),
        ({"drafts": [[5.5], [6]]}, r"drafts is \[\[5.5\], \[6\]\], but must be"),
        ({"drafts": [["a"], []]}, "drafts is .* but must be"),
        ({"drafts": [None, []]}, "drafts is .* but must be"),
        ({"drafts": mx.full((2, 3), 0.5)}, "drafts is .* but must be"),
        ({"drafts": mx.zeros((2, 3, 1), mx.int32)}, "drafts is .* but must be"),
        ({"num_beams": 2}, "num_beams and drafts do not go together"),
        ({"temperature": 0.5}, "checked without sampling"),
        ({"do_sample": True}, "checked without sampling"),
        ({"draft_model": random_decoder()}, "drafts and a draft model do not go together"),
        ({"draft_past_key_values": random_decoder().make_cache()}, "are of a draft_model"),
        ({"max_kv_size": 50}, "keeps everything: no max_kv_size"),
        ({"past_key_values": random_decoder().make_cache([1, 0])}, "without left_padding"),
        ({"num_draft_tokens": 0}, "num_draft_tokens is 0"),
        ({"draft_acceptance": 0}, "draft_acceptance is 0"),
        ({"draft_acceptance": 1.1}, "draft_acceptance is 1.1"),
    ],
)
def test_impossible(options, message):
    with pytest.raises(InputError, match=message):
        random_decoder().generate(PROMPTS[:2], **({"drafts": [[5], [6]]} | OPTIONS | options))


def test_acceptance_without_drafts():
    with pytest.raises(InputError, match="draft_acceptance is for drafts; give drafts or a draft_"):
        random_decoder().generate(PROMPTS[:2], draft_acceptance=0.5, **OPTIONS)


def test_drafts_continue_ids():
    model = random_decoder()
    embeds = model.model.embed(PROMPTS[:1])
    with pytest.raises(InputError, match="drafts continue ids; leave inputs_embeds out"):
        model.generate(inputs_embeds=embeds, drafts=[[5]])


def test_drafts_are_for_decoders(tiny_s2t):
    model, processor = tiny_s2t
    inputs = processor(np.zeros(16000, np.float32), sampling_rate=16000, return_tensors="mlx")
    with pytest.raises(InputError, match="drafts are for models that are a decoder"):
        model.generate(**inputs, drafts=[[5]], num_beams=1)


@pytest.mark.parametrize("kind", [list, tuple, np.array, mx.array])
def test_kinds_of_drafts(kind):
    """Lists, or an array with something that is no id behind the shorter ones."""
    model = random_decoder()
    plain = model.generate(PROMPTS[:2], **OPTIONS)
    drafts = plain[:, 9:].tolist()
    drafts[1][5:] = [-1] * 19
    found = model.generate(PROMPTS[:2], drafts=kind(drafts), **OPTIONS)
    assert found.tolist() == plain.tolist()


def test_an_adapted_head():
    model = random_decoder()
    a, b = mx.random.normal((2, 32)), mx.random.normal((61, 2))
    model.lm_head = LoRALinear(model.lm_head, a, b, 0.5, on=True)
    plain = model.generate(PROMPTS[:2], **OPTIONS)
    found = model.generate(PROMPTS[:2], drafts=plain[:, 9:], **OPTIONS)
    assert found.tolist() == plain.tolist()
