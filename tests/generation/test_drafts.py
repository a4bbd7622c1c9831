"""What sources of drafts propose, and how they find their place again."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_decoder

from mlx_speech.generation import GenerationConfig
from mlx_speech.generation.drafts import ModelDraft, TextDraft
from mlx_speech.generation.sampling import Sampler

DRAFT = [10, 11, 12, 13, 14, 15, 16, 17]
LOOP = [5, 6, 7, 8, 5, 6, 9, 5, 6, 7, 4]


class TestTextDraft:
    @pytest.mark.parametrize("most", [1, 3, 8, 30])
    def test_begins_at_its_beginning(self, most):
        assert TextDraft(DRAFT).propose([], most).tolist() == DRAFT[:most]

    @pytest.mark.parametrize(
        ("draft", "answer", "expected"),
        [
            (DRAFT, [10, 11, 12], DRAFT[3:]),
            (DRAFT, [99, 11, 12], DRAFT[3:]),  # one in place of another
            (DRAFT, [10, 11, 99, 12], DRAFT[3:]),  # one more
            (DRAFT, [10, 11, 14], DRAFT[5:]),  # two less
            (DRAFT, [3, 4, 5, 6, 10, 11], DRAFT[2:]),
            (DRAFT, [99], DRAFT[1:]),  # found nowhere: in place of the first
            (DRAFT, DRAFT, []),
            (LOOP, [5], LOOP[1:]),  # the first of several places
            (LOOP, [9, 5, 6], LOOP[9:]),  # the place that is longer the same
            (LOOP, [7, 9, 5, 6], LOOP[9:]),
            (LOOP, [0, 0, 6, 9, 5, 6], LOOP[9:]),
            ([1, 2, 3, 7, 0, 9, 2, 3, 7, 8], [9, 2, 3, 7], [8]),  # by four tokens
            # not by five, where four are found before
            ([1, 2, 3, 7, 0, 9, 1, 2, 3, 7, 8], [9, 1, 2, 3, 7], [0, 9, 1, 2, 3, 7, 8]),
            ([], [], []),
            ([], [5], []),
        ],
    )
    def test_place_by_the_latest_tokens(self, draft, answer, expected):
        assert TextDraft(draft).propose(answer, 30).tolist() == expected

    def test_what_was_right_is_behind(self):
        """The same words occur again only further on."""
        draft = TextDraft(LOOP)
        draft.propose([], 5)
        draft.accept(5)
        assert draft.propose([5, 6, 7, 8, 5, 6], 9).tolist() == LOOP[6:]
        draft.accept(2)
        assert draft.propose([5, 6, 7, 8, 5, 6, 9, 5, 5, 6], 9).tolist() == LOOP[9:]

    def test_what_is_only_behind_is_found_there(self):
        """Where the model says a part of the draft again: the last place of several."""
        draft = TextDraft([1, 2, 3, 1, 2, 4, 5, 6])
        draft.propose([], 8)
        draft.accept(7)
        assert draft.propose([1, 2, 3, 1, 2, 4, 5, 1, 2], 3).tolist() == [4, 5, 6]

    def test_whether_more_is_known(self):
        """Behind the latest proposals, not behind those that were right."""
        draft = TextDraft(DRAFT)
        for most, goes_on in [(3, True), (7, True), (8, False), (30, False)]:
            draft.propose([], most)
            assert draft.goes_on is goes_on
        assert not ModelDraft.goes_on

    def test_a_correction_nowhere_in_it_stands_for_one_of_its_tokens(self):
        draft = TextDraft(DRAFT)
        draft.propose([], 3)
        draft.accept(2)
        assert draft.propose([10, 11, 99], 4).tolist() == DRAFT[3:7]

    def test_nothing_right_leaves_the_place(self):
        draft = TextDraft(DRAFT)
        draft.propose([10, 11], 3)
        draft.accept(3)
        for _ in range(2):
            assert draft.propose([10, 11, 12, 13, 14, 99], 2).tolist() == DRAFT[6:]
            draft.accept(0)


class TestModelDraft:
    PROMPT = mx.array(np.random.default_rng(4).integers(5, 61, (1, 9)))

    @pytest.fixture
    def whole(self) -> list[int]:
        """What the model answers by itself."""
        options = {"max_new_tokens": 30, "eos_token_id": []}
        return random_decoder().generate(self.PROMPT, **options)[0, 9:].tolist()

    @pytest.fixture
    def draft(self) -> ModelDraft:
        model = random_decoder()
        self.cache = model.make_cache()
        logits = model.prefill(self.PROMPT, self.cache)[:, -1]
        return ModelDraft(model, logits, self.cache, self.PROMPT, Sampler(GenerationConfig()))

    def test_what_the_model_would_answer(self, draft, whole):
        assert draft.propose([], 4).tolist() == whole[:4]
        draft.accept(4)
        assert draft.propose(whole[:5], 4).tolist() == whole[5:9]
        draft.accept(4)
        assert draft.propose(whole[:9], 1).tolist() == whole[9:10]

    @pytest.mark.parametrize("right", [0, 1, 2, 3])
    def test_what_was_wrong_is_forgotten(self, draft, whole, right):
        """After a correction it goes on as from a prompt that holds it."""
        draft.propose([], 4)
        draft.accept(right)
        assert self.cache[0].length == 9 + right
        answer = [*whole[:right], 60 - whole[right]]
        prompt = mx.concatenate([self.PROMPT, mx.array([answer])], axis=1)
        expected = random_decoder().generate(prompt, max_new_tokens=6, eos_token_id=[])
        assert draft.propose(answer, 6).tolist() == expected[0, len(answer) + 9 :].tolist()

    def test_its_processors(self, whole):
        model = random_decoder()
        cache = model.make_cache()
        logits = model.prefill(self.PROMPT, cache)[:, -1]
        seen = []

        def forbid(history, scores):
            seen.append(history.tolist()[0])
            return mx.where(mx.arange(61) == whole[5], -mx.inf, scores)

        sample = Sampler(GenerationConfig(), [forbid])
        proposed = ModelDraft(model, logits, cache, self.PROMPT, sample).propose([], 6).tolist()
        assert proposed[:5] == whole[:5]
        assert proposed[5] != whole[5]
        prompt = self.PROMPT[0].tolist()
        assert seen == [[*prompt, *proposed[:n]] for n in range(6)]


@pytest.mark.parametrize("end", [1, 2, 3, 5, 6, 8])
def test_a_draft_models_cache_ends_with_the_answer(end):
    """An end within what was right: nothing behind it stays, so that a conversation can go on."""
    model, prompt = random_decoder(), TestModelDraft.PROMPT
    options = {"max_new_tokens": 30, "num_draft_tokens": 6}
    whole = model.generate(prompt, eos_token_id=[], **options)
    cache = model.make_cache()
    answer = model.generate(
        prompt,
        draft_model=model,
        draft_past_key_values=cache,
        stopping_criteria=lambda ids, _: ids.shape[1] == 9 + end,
        eos_token_id=[],
        **options,
    )
    assert answer.tolist() == whole[:, : 9 + end].tolist()
    length = cache[0].length
    assert 9 + end - 7 <= length <= 9 + end
    alone = model.make_cache()
    model.prefill(answer[:, :length], alone)
    for layer, expected in zip(cache, alone, strict=True):
        for found, part in zip(layer.stored(), expected.stored(), strict=True):
            assert mx.abs(found - part).max().item() < 1e-5


def test_a_draft_models_cache_survives_a_pass_without_proposals():
    """The last one, which has room for the model's own choice only."""
    model, cache = random_decoder(), random_decoder().make_cache()
    options = {"max_new_tokens": 8, "num_draft_tokens": 6, "eos_token_id": []}
    model.generate(TestModelDraft.PROMPT, draft_model=model, draft_past_key_values=cache, **options)
    # all right ones but the latest were fed
    assert cache[0].length == 9 + 5
