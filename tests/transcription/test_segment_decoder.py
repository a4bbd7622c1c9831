"""From segments to texts: budgets, batches and further attempts."""

from __future__ import annotations

import mlx.core as mx
import pytest
from conftest import DATA

from mlx_speech import load_audio, stream_transcribe, transcribe
from mlx_speech.generation.repetition import LEAST_TOKENS
from mlx_speech.transcription import segment_decoder as decoding

GATE = DATA / "audio" / "espeak_05.flac"
LONGER = DATA / "audio" / "espeak_03.flac"


class Stuck:
    """A processor of logits that makes the first so many attempts say one token for ever, as a
    model does that has lost its way."""

    def __init__(self, attempts: int):
        self.attempts, self.begun, self.length = attempts, 0, 10**9

    def __call__(self, tokens: mx.array, scores: mx.array) -> mx.array:
        if tokens.shape[1] < self.length:
            self.begun += 1
        self.length = tokens.shape[1]
        if self.begun > self.attempts:
            return scores
        return mx.where(mx.arange(scores.shape[-1]) == 100, 1e4, scores)


class TestLoops:
    @pytest.mark.parametrize("attempts", [1, 2])
    def test_another_attempt(self, tiny, attempts):
        """With beams, then with a penalty."""
        stuck = Stuck(attempts)
        transcript = transcribe(GATE, tiny, logits_processor=stuck, draft=False)
        (segment,) = transcript.segments
        assert stuck.begun == attempts + 1
        # the penalty costs something where it was not needed
        assert segment.text.startswith("four six seven eight")
        assert segment.retried
        assert not segment.truncated

    def test_attempts_that_loop_as_well(self, tiny):
        """The loop is told once, and that the text was cut off."""
        transcript = transcribe(GATE, tiny, logits_processor=Stuck(9), draft=False)
        (segment,) = transcript.segments
        assert segment.tokens == [100]
        assert segment.truncated
        assert segment.retried

    def test_streaming_ends_it(self, tiny):
        """What is out cannot be taken back, but it need not go on."""
        deltas = list(stream_transcribe(GATE, tiny, logits_processor=Stuck(9), draft=False))
        segment = deltas[-1].segment
        assert segment.tokens == [100] * LEAST_TOKENS
        assert segment.truncated
        assert "".join(delta.text for delta in deltas) == segment.text

    def test_the_first_attempts_draft_is_told(self, tiny):
        def stuck(tokens, scores):
            return mx.where(mx.arange(scores.shape[-1]) == 100, 1e4, scores)

        (segment,) = transcribe(GATE, tiny, logits_processor=stuck).segments
        assert segment.retried
        assert segment.drafts.tokens > 20

    def test_no_loop_is_left_alone(self, tiny):
        (segment,) = transcribe(GATE, tiny).segments
        assert not segment.retried


class TestBudget:
    """How many tokens the text of a segment may have."""

    @pytest.fixture(autouse=True)
    def endless(self, monkeypatch):
        """A limit of one token a second, in which no sentence is finished."""
        monkeypatch.setattr(decoding, "TOKENS_PER_SECOND", 1)
        monkeypatch.setattr(decoding, "TOKENS_OVERHEAD", 0)

    @pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
    def test_follows_from_its_own_length(self, tiny, options):
        """Also in a batch with longer ones."""
        audio = mx.concatenate([load_audio(GATE), mx.zeros(32000), load_audio(LONGER)])
        together, alone = (
            transcribe(audio, tiny, sampling_rate=16000, batch_size=size, **options)
            for size in (2, 1)
        )
        first, second = together.segments
        assert together == alone
        assert first.truncated
        assert second.truncated
        assert len(first.tokens) < len(second.tokens)

    def test_of_the_whole(self, tiny):
        """Prompts of a batch are padded to the longest, which takes no room from the others."""
        audio = mx.concatenate([load_audio(GATE), mx.zeros(32000), load_audio(LONGER)])
        together, alone = (
            transcribe(audio, tiny, sampling_rate=16000, batch_size=size, max_length=89)
            for size in (2, 1)
        )
        assert together == alone
        assert [len(segment.tokens) for segment in together.segments] == [5, 3]
        assert [segment.truncated for segment in together.segments] == [False, True]

    def test_can_be_given(self, tiny):
        (segment,) = transcribe(GATE, tiny, max_new_tokens=3).segments
        assert len(segment.tokens) == 3
        assert segment.truncated
