"""The strategies, over models small enough to check by hand."""

from __future__ import annotations

import itertools
import math
import random

import mlx.core as mx
import numpy as np
import pytest
from conftest import speech_inputs
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from mlx_speech import ContextLengthError, GenerationConfig, InputError
from mlx_speech.generation import StreamingDetokenizer, beam, prefill
from mlx_speech.generation.beam import beam_search
from mlx_speech.generation.sampling import make_sampler, truncate
from mlx_speech.generation.search import search
from mlx_speech.layers.cache import KVCache, reorder_latest
from mlx_speech.processing import Tokenizer

EOS = 0


class MarkovModel:
    """Each token's successors have fixed logits; the cache holds the tokens that were fed."""

    def __init__(self, vocab_size: int, seed: int):
        rng = np.random.default_rng(seed)
        self.table = mx.array(rng.normal(size=(vocab_size, vocab_size)).astype(np.float32) * 2)
        self.cache = [KVCache()]
        self.steps = 0

    def feed(self, tokens: mx.array) -> mx.array:
        self.steps += 1
        keys = tokens.astype(mx.float32).reshape(len(tokens), 1, 1, 1)
        self.cache[0].update_and_fetch(keys, keys)
        return self.table[tokens]

    def start(self, prompt: mx.array) -> mx.array:
        return self.feed(prompt)[:, -1]

    def history(self) -> list[list[int]]:
        cache = self.cache[0]
        return cache.state[0][:, 0, : cache.length, 0].astype(mx.int32).tolist()


def run_search(model: MarkovModel, prompt: list[int], config: GenerationConfig):
    prompt = mx.array(prompt)[:, None]
    return list(search(model.start(prompt), model.feed, config, prompt))


class TestSearch:
    def test_greedy_follows_the_likeliest(self):
        model = MarkovModel(7, seed=1)
        steps = run_search(model, [3], GenerationConfig(max_new_tokens=5))
        token, table = 3, np.array(model.table)
        for step in steps:
            logits = table[token]
            token = int(logits.argmax())
            assert step.tokens == [token]
            expected = logits[token] - math.log(np.exp(logits).sum())
            assert step.logprobs[0] == pytest.approx(expected, abs=1e-5)
        assert len(steps) == 5

    def test_next_step_is_dispatched_before_the_last_is_read(self, monkeypatch):
        dispatched = []
        monkeypatch.setattr(mx, "async_eval", lambda *arrays: dispatched.append(len(arrays)))
        model = MarkovModel(7, seed=1)
        prompt = mx.array([[3]])
        steps = search(model.start(prompt), model.feed, GenerationConfig(max_new_tokens=3), prompt)
        next(steps)
        assert len(dispatched) == 2
        assert model.steps == 2
        next(steps)
        next(steps)
        assert model.steps == 3  # nothing is computed beyond the last token

    def test_rows_end_on_any_eos_and_are_filled(self):
        model = MarkovModel(4, seed=0)
        model.table = mx.array([[0, 9, 0, 0], [0, 0, 9, 0], [0, 0, 0, 9], [9, 0, 0, 0.0]])
        config = GenerationConfig(max_new_tokens=9, eos_token_id=[2, 0], pad_token_id=77)
        steps = run_search(model, [3, 2, 1], config)
        assert [s.tokens for s in steps] == [[0, 3, 2], [77, 0, 77]]
        assert [s.ended for s in steps] == [[False] * 3, [True, False, True]]

    def test_seed_repeats_and_differs(self):
        def draw(seed):
            config = GenerationConfig(max_new_tokens=20, temperature=1.5, seed=seed)
            return [s.tokens for s in run_search(MarkovModel(50, seed=1), [3, 4], config)]

        assert draw(7) == draw(7)
        assert draw(7) != draw(8)
        assert draw(None) != draw(None)

    def test_sampling_follows_the_distribution(self):
        probabilities = mx.array([0.5, 0.3, 0.15, 0.05])
        logits = mx.broadcast_to(mx.log(probabilities), (20000, 4))
        drawn = make_sampler(GenerationConfig(temperature=1.0, seed=3))(logits)
        counts = np.bincount(np.array(drawn), minlength=4) / 20000
        np.testing.assert_allclose(counts, probabilities, atol=0.015)

    @pytest.mark.parametrize(
        ("options", "kept"),
        [
            ({"top_k": 2}, [0, 1]),
            ({"top_p": 0.79}, [0, 1]),
            ({"top_p": 0.81}, [0, 1, 2]),
            ({"top_p": 0.01}, [0]),
            ({"min_p": 0.25}, [0, 1, 2]),
            ({"top_k": 3, "min_p": 0.5}, [0, 1]),
        ],
    )
    def test_truncation(self, options, kept):
        logits = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
        left = np.isfinite(
            np.array(truncate(logits, GenerationConfig(do_sample=True, **options))[0])
        )
        assert np.flatnonzero(left).tolist() == kept

    def test_temperature_sharpens_before_truncation(self):
        logits = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
        config = GenerationConfig(temperature=0.25, top_p=0.85)
        assert np.isfinite(np.array(truncate(logits, config))).sum() == 1

    def test_repetition_penalty(self):
        model = MarkovModel(3, seed=0)
        model.table = mx.array([[2.0, 1.9, -5.0]] * 3)
        plain = run_search(model, [0], GenerationConfig(max_new_tokens=3))
        assert [s.tokens[0] for s in plain] == [0, 0, 0]
        config = GenerationConfig(max_new_tokens=3, repetition_penalty=1.5)
        penalised = run_search(model, [0], config)
        assert [s.tokens[0] for s in penalised] == [1, 0, 0]


class TestBeams:
    @pytest.mark.parametrize("seed", range(5))
    def test_wide_beam_finds_the_best_of_all(self, seed):
        vocab, limit = 4, 4
        model = MarkovModel(vocab, seed)
        table = np.array(model.table)
        logprobs = table - np.log(np.exp(table).sum(-1, keepdims=True))

        def score(tokens):
            pairs = itertools.pairwise([2, *tokens])
            return sum(logprobs[a, b] for a, b in pairs) / len(tokens)

        answers = [
            [*body, EOS] for n in range(limit) for body in itertools.product([1, 2, 3], repeat=n)
        ] + [list(body) for body in itertools.product([1, 2, 3], repeat=limit)]
        config = GenerationConfig(
            num_beams=64, max_new_tokens=limit, eos_token_id=EOS, early_stopping="never"
        )
        prompt = mx.array([[2]])
        (found,) = beam_search(model.start(prompt), model.feed, model.cache, config, prompt)
        assert found.tokens == max(answers, key=score)
        assert found.score == pytest.approx(score(found.tokens), abs=1e-5)
        assert sum(found.logprobs) / len(found.tokens) == pytest.approx(found.score, abs=1e-5)

    def test_cache_follows_the_beams(self):
        model = MarkovModel(9, seed=5)
        fed = []

        def step(tokens):
            logits = model.feed(tokens)
            fed.append(model.history())
            return logits

        config = GenerationConfig(num_beams=3, max_new_tokens=6)
        prompt = mx.array([[2], [4]])
        rows = beam_search(model.start(prompt), step, model.cache, config, prompt)
        final = fed[-1]
        assert [row[0] for row in final] == [2, 2, 2, 4, 4, 4]
        # the winner without its last token is what one of its row's beams had been fed
        for row, hypotheses in zip(rows, (final[:3], final[3:]), strict=True):
            assert row.tokens[:-1] in [h[1:] for h in hypotheses]

    def test_only_what_changes_is_copied(self, monkeypatch):
        """Positions before are the same in the rows that trade places, and one more is not."""
        counts, spared = [], []

        def spy(cache, rows, count):
            for stored in cache[0].stored():
                same = mx.all(stored == stored[rows], axis=(0, 1, 3)).tolist()
                assert all(same[:-count])
                assert not same[-count]
            counts.append(count)
            spared.append(len(same) - count)
            reorder_latest(cache, rows, count)

        monkeypatch.setattr(beam, "reorder_latest", spy)
        model = MarkovModel(9, seed=5)
        prompt = mx.array([[2], [4]])
        config = GenerationConfig(num_beams=3, max_new_tokens=12)
        beam_search(model.start(prompt), model.feed, model.cache, config, prompt)
        assert 1 < len(counts) < model.steps
        assert min(counts) > 0
        assert max(spared) > 3

    def test_batch_equals_single(self):
        config = GenerationConfig(num_beams=3, max_new_tokens=8, eos_token_id=EOS)
        prompts = [1, 2, 3, 4]
        model = MarkovModel(6, seed=11)
        batch = mx.array(prompts)[:, None]
        together = beam_search(model.start(batch), model.feed, model.cache, config, batch)
        for prompt, row in zip(prompts, together, strict=True):
            model = MarkovModel(6, seed=11)
            single = mx.array([[prompt]])
            (alone,) = beam_search(model.start(single), model.feed, model.cache, config, single)
            assert alone.tokens == row.tokens
        assert len({len(row.tokens) for row in together}) > 1

    def test_length_penalty_prefers_longer(self):
        def length(penalty):
            model = MarkovModel(3, seed=0)
            model.table = mx.log(mx.array([[0.4, 0.3, 0.3], [0.45, 0.5, 0.05], [0.4, 0.3, 0.3]]))
            config = GenerationConfig(
                num_beams=4, max_new_tokens=6, eos_token_id=EOS, length_penalty=penalty
            )
            prompt = mx.array([[1]])
            (row,) = beam_search(model.start(prompt), model.feed, model.cache, config, prompt)
            return len(row.tokens)

        assert length(0.0) < length(2.0)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_new_tokens": 0}, "max_new_tokens is 0"),
            ({"temperature": -1.0}, "temperature is -1"),
            ({"top_p": 0.0}, "top_p is 0"),
            ({"num_beams": 0}, "num_beams is 0"),
            ({"early_stopping": "often"}, "early_stopping is 'often'"),
            ({"temperature": 0.5, "num_beams": 2}, "do not go together"),
            ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5, but must be an integer"),
            ({"temperature": "hot"}, "temperature is 'hot', but must be a number"),
            ({"seed": -1}, "seed is -1"),
            ({"seed": 2**64}, "seed is 18446744073709551616"),
            ({"top_p": 0.9}, "top_p shapes what is sampled"),
            ({"min_p": 0.1, "temperature": 0.0}, "min_p shapes what is sampled"),
            ({"stop_strings": ["x", ""]}, "empty stop string"),
            ({"stop_strings": "x\udcff"}, "lone surrogate"),
        ],
    )
    def test_impossible_ones(self, options, message):
        with pytest.raises(InputError, match=message):
            GenerationConfig(**options)

    def test_unknown_ones_are_named(self, tiny):
        model, processor = tiny
        with pytest.raises(InputError, match="no argument num_return_sequences, penalty_alpha"):
            model.generate(**processor("hi"), num_return_sequences=2, penalty_alpha=0.6)

    def test_context_length(self, tiny):
        model, _processor = tiny
        with pytest.raises(ContextLengthError, match=r"2 tokens and 1100 .* context of 1024"):
            model.generate(mx.array([[5, 6]]), max_new_tokens=1100)

    def test_beams_do_not_stream(self, tiny):
        model, _processor = tiny
        with pytest.raises(InputError, match="num_beams cannot stream"):
            prefill(model, mx.array([[5]]), num_beams=2, streaming=True).steps()

    def test_sampling_with_a_seed_on_the_model(self, tiny):
        model, processor = tiny
        inputs = speech_inputs(processor, "synthetic/short.wav")

        def draw(seed):
            return model.generate(
                **inputs, temperature=30.0, top_k=50, max_new_tokens=12, seed=seed
            ).tolist()

        assert draw(1) == draw(1)
        assert draw(1) != draw(2)


def byte_tokenizer() -> Tokenizer:
    """A byte-level tokenizer whose tokens are single bytes, so that characters span several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    return Tokenizer(backend, {})


def byte_fallback_tokenizer() -> Tokenizer:
    """As Llama 2's: marked spaces, the first of them lost, and bytes for rare characters."""
    pieces = ["▁", "a", "▁a", "▁▁", ".", "é", "�", "\n"]
    vocab = [*(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    model = models.BPE({p: i for i, p in enumerate(vocab)}, [], byte_fallback=True)
    backend = Backend(model)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend, {})


class TestStreaming:
    @pytest.mark.parametrize(
        "text",
        [
            "plain words",
            "  spaced   out  ",
            "Grüße aus Köln",
            "日本語のテスト",
            "👩‍👩‍👧 family 🇩🇪 é",
            "\n a\n",
            "",
        ],
    )
    def test_pieces_make_the_text(self, text):
        tokenizer = byte_tokenizer()
        ids = tokenizer.encode(text)
        stream = StreamingDetokenizer(tokenizer)
        pieces = [*(stream.add(i) for i in ids), stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids).strip() == text.strip()
        assert not any("\ufffd" in piece for piece in pieces)

    def test_a_character_appears_with_its_last_byte(self):
        tokenizer = byte_tokenizer()
        stream = StreamingDetokenizer(tokenizer)
        assert [stream.add(i) for i in tokenizer.encode("aé")] == ["a", "", "é"]

    def test_special_tokens_are_silent(self):
        tokenizer = byte_tokenizer()
        ids = [*tokenizer.encode("ab"), tokenizer.backend.token_to_id("<|end|>")]
        stream = StreamingDetokenizer(tokenizer)
        assert [stream.add(i) for i in ids] == ["a", "b", ""]
        assert stream.finish() == ""

    def test_any_bytes_at_all(self):
        """Sequences that are no valid text, as a model may sample them."""
        tokenizer = byte_tokenizer()
        rng = random.Random(0)
        for _ in range(300):
            ids = [rng.randrange(256) for _ in range(rng.randrange(1, 24))]
            stream = StreamingDetokenizer(tokenizer)
            text = "".join([*(stream.add(i) for i in ids), stream.finish()])
            assert text == tokenizer.decode(ids).strip()

    def test_any_pieces_and_bytes_at_all(self):
        """One invalid byte makes the bytes before it invalid too, and some of them were text."""
        tokenizer = byte_fallback_tokenizer()
        rng = random.Random(1)
        bytes_of_text = [*"ß日".encode(), *"👩".encode(), 0x20, 0x41, 0xFF]
        for _ in range(2000):
            pool = rng.choice([bytes_of_text, range(256, 266), [*bytes_of_text, *range(256, 266)]])
            ids = rng.choices(pool, k=rng.randrange(1, 30))
            stream = StreamingDetokenizer(tokenizer)
            text = "".join([*(stream.add(i) for i in ids), stream.finish()])
            assert text == tokenizer.decode(ids).strip()

    def test_bytes_wait_for_the_end_of_their_run(self):
        tokenizer = byte_fallback_tokenizer()
        stream = StreamingDetokenizer(tokenizer)
        ids = [257, *"é".encode(), 265, 260]
        assert [stream.add(i) for i in ids] == ["a", "", "", "", "é."]

    def test_a_step_decodes_few_tokens(self):
        tokenizer = byte_fallback_tokenizer()
        stream = StreamingDetokenizer(tokenizer)
        lengths = []
        decode = stream._decode
        stream._decode = lambda ids: lengths.append(len(ids)) or decode(ids)
        for _ in range(500):
            stream.add(258)
        assert max(lengths) == 2
        assert stream.text == "a" + " a" * 499

    def test_a_tokenizer_that_only_decodes(self):
        class Words:
            def decode(self, ids):
                return " ".join(["one", "two", "three"][i] for i in ids)

        stream = StreamingDetokenizer(Words())
        assert [stream.add(i) for i in (2, 0, 0)] == ["three", " one", " one"]
        assert stream.finish() == ""

    def test_with_the_tiny_tokenizer(self, tiny, reference):
        _, processor = tiny
        for entry in reference["files"].values():
            stream = StreamingDetokenizer(processor.tokenizer)
            pieces = [*(stream.add(i) for i in entry["french_ids"]), stream.finish()]
            assert "".join(pieces) == entry["french"].strip()
