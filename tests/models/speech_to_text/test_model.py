"""Speech2Text: the bundled checkpoint against the reference, batches, caches, dtypes, errors."""

from __future__ import annotations

import json
import threading

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import DATA, TINY_S2T, edit_json, output_dtypes

from mlx_speech import (
    InputError,
    Speech2TextModel,
)
from mlx_speech.generation import prefill
from mlx_speech.generation.config import GenerationConfig
from mlx_speech.layers.cache import CrossAttentionCache
from mlx_speech.loading import load_model
from mlx_speech.models.speech_to_text.layers import Attention

REFERENCE = json.loads((DATA / "reference" / "tiny_s2t_reference.json").read_text())
FRENCH = REFERENCE["lang_code_to_id"]["fr"]
#: how the reference was asked
ASKED = {
    "en_greedy": {"num_beams": 1},
    "en_beam5": {},  # what generation_config.json says
    "fr_greedy": {"num_beams": 1, "forced_bos_token_id": FRENCH},
    "fr_beam5": {"forced_bos_token_id": FRENCH},
}


def padded(recordings: list[mx.array]) -> dict[str, mx.array]:
    """One batch, with noise in the padding that must not matter."""
    longest = max(r.shape[1] for r in recordings) + 3
    rows = [
        mx.concatenate([r[0], 5 * mx.random.normal((longest - r.shape[1], 80))]) for r in recordings
    ]
    mask = [[1] * r.shape[1] + [0] * (longest - r.shape[1]) for r in recordings]
    return {"input_features": mx.stack(rows), "attention_mask": mx.array(mask)}


def difference(a, b) -> float:
    return np.abs(np.array(a, np.float32) - np.array(b, np.float32)).max()


class TestGolden:
    @pytest.mark.parametrize("index", range(3))
    def test_encoder_and_logits(self, model, golden, recordings, index):
        """Values reach 4 in the encoder and 10 in the logits."""
        encoded = model.model.encoder(recordings[index]).last_hidden_state
        ids = mx.array(golden[f"{index}.decoder_ids"])[None]
        logits = model(recordings[index], decoder_input_ids=ids).logits
        assert difference(encoded[0], golden[f"{index}.encoder"]) < 1e-4
        assert difference(logits[0], golden[f"{index}.logits"]) < 1e-4

    @pytest.mark.parametrize("key", ASKED)
    @pytest.mark.parametrize("index", range(3))
    def test_token_ids(self, model, golden, recordings, index, key):
        expected = REFERENCE["files"][str(golden[f"{index}.file"])][key]["ids"]
        assert model.generate(recordings[index], **ASKED[key])[0].tolist() == expected

    def test_all_of_it_in_one_batch(self, model, golden, recordings):
        files = [str(golden[f"{i}.file"]) for i in range(3)]
        for key, options in ASKED.items():
            rows = model.generate(**padded(recordings), **options).tolist()
            for row, file in zip(rows, files, strict=True):
                expected = REFERENCE["files"][file][key]["ids"]
                assert row[: len(expected)] == expected
                assert set(row[len(expected) :]) <= {1}


class TestBatch:
    def test_each_recording_gives_what_it_gives_alone(self, model, recordings):
        batch = padded(recordings)
        together = model.model.encoder(**batch).last_hidden_state
        ids = mx.array([[2, 19, 136, 94]])
        logits = model(**batch, decoder_input_ids=mx.repeat(ids, 3, axis=0)).logits
        for row, features in enumerate(recordings):
            alone = model.model.encoder(features).last_hidden_state[0]
            assert difference(together[row, : len(alone)], alone) < 1e-5
            alone = model(features, decoder_input_ids=ids).logits[0]
            assert difference(logits[row], alone) < 1e-5

    def test_a_mask_of_ones_is_no_mask(self, model, recordings):
        mask = mx.ones(recordings[0].shape[:2], mx.int32)
        encode = model.model.encoder
        found, expected = encode(recordings[0], mask), encode(recordings[0])
        assert mx.array_equal(found.last_hidden_state, expected.last_hidden_state).item()

    @pytest.mark.parametrize("frames", range(1, 13))
    def test_lengths_around_the_subsampler_steps(self, model, recordings, frames):
        """Beside a recording of 13 frames, each short one gives what it gives alone."""
        short, long = recordings[0][:, :frames], recordings[1][:, :13]
        encoded = model.model.encoder(**padded([short, long])).last_hidden_state
        for row, features in enumerate((short, long)):
            alone = model.model.encoder(features).last_hidden_state[0]
            count = ((features.shape[1] - 1) // 2) // 2 + 1
            assert alone.shape == (count, 128)
            assert difference(encoded[row, :count], alone) < 1e-5


class TestCache:
    def test_steps_equal_one_pass(self, model, golden, recordings):
        ids = mx.array(golden["0.decoder_ids"])[None]
        whole = model(recordings[0], decoder_input_ids=ids).logits
        cache = model.make_cache()
        first = model(recordings[0], decoder_input_ids=ids[:, :4], past_key_values=cache)
        assert first.past_key_values is cache
        pieces = [first.logits]
        for start, end in ((4, 5), (5, 8), (8, ids.shape[1])):
            # only what the decoder is fed: the cache holds the recording
            part = ids[:, start:end]
            pieces.append(model(decoder_input_ids=part, past_key_values=cache).logits)
        assert difference(mx.concatenate(pieces, axis=1), whole) < 1e-4
        assert [layer.trim(3) for layer in cache] == [3] * len(cache)
        again = model(decoder_input_ids=ids[:, -3:], past_key_values=cache).logits
        assert difference(again, whole[:, -3:]) < 1e-4

    def test_the_recording_is_encoded_once(self, model, recordings, monkeypatch):
        """Cross-attention keys and values are computed once in a whole beam search."""
        called = []
        original = Attention.keys_values

        def spy(attention, x):
            called.append(attention)
            return original(attention, x)

        monkeypatch.setattr(Attention, "keys_values", spy)
        model.generate(recordings[0], max_new_tokens=6)
        counts = [
            sum(a is layer.encoder_attn for a in called) for layer in model.model.decoder.layers
        ]
        assert counts == [1, 1, 1]
        assert len(called) > 20

    def test_beams_share_one_row_and_copy_nothing(self, model, recordings, monkeypatch):
        """Five beams attend to the one row of keys and values that was there before them."""
        cache = model.make_cache()
        monkeypatch.setattr(type(model), "make_cache", lambda *_: cache)
        same = []
        original = CrossAttentionCache.reorder

        def spy(cross, *args):
            before = [k for pair in cross.layers for k in pair]
            original(cross, *args)
            after = [k for pair in cross.layers for k in pair]
            same.append(all(x is y for x, y in zip(before, after, strict=True)))

        monkeypatch.setattr(CrossAttentionCache, "reorder", spy)
        model.generate(recordings[2], num_beams=5)
        assert same == [True]
        assert cache[0].state[0].shape[0] == cache[-1].num_rows == 5
        assert {k.shape for pair in cache[-1].layers for k in pair} == {(1, 4, 43, 32)}

    @pytest.mark.parametrize(
        ("rows", "left", "rows_each"),
        [
            ([0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 2], 3),  # beams of each recording
            ([0, 1, 2], [0, 1, 2], 1),
            ([0, 0, 2, 2], [0, 2], 2),  # a recording is done
            ([2, 1, 0], [2, 1, 0], 1),
            ([0, 0, 1], [0, 0, 1], 1),
        ],
    )
    def test_rows_move_between_recordings(self, rows, left, rows_each):
        cross = filled_cross_cache()
        cross.reorder(mx.array(rows))
        assert cross.rows_per_recording == rows_each
        assert cross.num_rows == len(rows)
        for keys, values in cross.layers:
            assert keys[:, 0, 0, 0].tolist() == left
            assert values[:, 0, 0, 0].tolist() == [10 * i for i in left]
        assert cross.mask[:, 0, 0, 1].tolist() == [i != 1 for i in left]

    def test_rows_move_between_and_within_groups(self):
        cross = filled_cross_cache()
        cross.reorder(mx.repeat(mx.arange(3), 2))
        before = cross.layers[0][0]
        cross.reorder(mx.array([1, 0, 2, 2, 5, 4]))
        assert cross.layers[0][0] is before
        cross.reorder(mx.array([4, 4, 1, 0]))
        assert cross.layers[0][0][:, 0, 0, 0].tolist() == [2, 0]
        assert cross.rows_per_recording == 2


def filled_cross_cache() -> CrossAttentionCache:
    """Three recordings of two frames, the second of them with one of padding."""
    cross = CrossAttentionCache()
    keys = mx.arange(3).reshape(3, 1, 1, 1) * mx.ones((3, 2, 2, 4))
    mask = mx.array([[True, True], [True, False], [True, True]])[:, None, None]
    cross.fill([(keys, 10 * keys)], mask)
    return cross


class TestGeneration:
    def test_streaming_gives_the_greedy_ids(self, model, recordings):
        steps = prefill(model, input_features=recordings[0], num_beams=1, streaming=True).steps()
        expected = model.generate(recordings[0], num_beams=1)[0, 1:].tolist()
        assert [step.tokens[0] for step in steps] == expected

    def test_sampling_with_a_seed(self, model, recordings):
        def draw(seed):
            options = {"num_beams": 1, "temperature": 20.0, "max_new_tokens": 12, "seed": seed}
            return model.generate(recordings[0], forced_bos_token_id=9, **options).tolist()[0]

        assert draw(1) == draw(1) != draw(2)
        assert draw(1)[:2] == draw(2)[:2] == [2, 9]

    @pytest.mark.parametrize("num_beams", [1, 5])
    def test_max_length_counts_the_starting_token(self, model, recordings, num_beams):
        def length(**options):
            return model.generate(recordings[0], num_beams=num_beams, **options).shape[1]

        assert length(max_length=4) == length(max_new_tokens=3) == 4
        prompt = mx.array([[2, 5]])
        assert length(max_length=4, decoder_input_ids=prompt) == 4
        with pytest.raises(InputError, match="max_length is 2, but the prompt alone has 2 tokens"):
            length(max_length=2, decoder_input_ids=prompt)

    def test_a_prompt_instead_of_a_forced_token(self, model, recordings):
        expected = model.generate(recordings[0], forced_bos_token_id=FRENCH).tolist()
        for prompt in ([[2, FRENCH]], [[FRENCH]]):
            found = model.generate(recordings[0], decoder_input_ids=mx.array(prompt))
            assert found.tolist() == expected
        started = model.generate(recordings[0], decoder_start_token_id=FRENCH, max_new_tokens=1)
        assert started[0, 0].item() == FRENCH

    @pytest.mark.parametrize("as_tuple", [True, False])
    def test_from_encoder_outputs(self, model, recordings, as_tuple):
        batch = padded(recordings[:2])
        encoded = model.model.encoder(**batch)
        given = (encoded.last_hidden_state,) if as_tuple else encoded
        mask = batch["attention_mask"]
        found = model.generate(encoder_outputs=given, attention_mask=mask)
        assert found.tolist() == model.generate(**batch).tolist()

    def test_a_second_thread(self, model, recordings):
        results = []

        def work():
            for m in (model, load_model(TINY_S2T)):
                results.append(m.generate(recordings[2])[0].tolist())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert results == [[2, 36, 44, 31, 31, 2]] * 2

    def test_options_of_the_checkpoint(self, model):
        config = model.generation_config
        assert (config.num_beams, config.max_length, config.early_stopping) == (5, 200, True)
        assert (config.decoder_start_token_id, config.eos_token_id) == (2, 2)
        assert config.limited(1).max_new_tokens == 199
        assert config.overridden(max_new_tokens=7).limited(1).max_new_tokens == 7
        shorter = GenerationConfig(max_new_tokens=9).overridden(max_length=5)
        assert shorter.limited(2).max_new_tokens == 3
        assert GenerationConfig().limited(2).max_new_tokens == 200
        with pytest.raises(InputError, match="not both"):
            config.overridden(max_new_tokens=7, max_length=8)

    def test_options_of_an_old_repository(self, s2t_copy):
        """Where there is no generation_config.json they stand in config.json."""
        (s2t_copy / "generation_config.json").unlink()
        edit_json(s2t_copy / "config.json", num_beams=3, max_length=50, early_stopping=True)
        config = load_model(s2t_copy).generation_config
        assert (config.num_beams, config.max_length, config.early_stopping) == (3, 50, True)
        assert (config.decoder_start_token_id, config.eos_token_id) == (2, 2)


class TestOutputs:
    def test_hidden_states_and_attentions(self, model, recordings):
        ids = mx.array([[2, 5, 96], [2, 19, 136]])
        batch = padded([recordings[0], recordings[1][:, :80]])
        plain = model(**batch, decoder_input_ids=ids)
        assert plain.encoder_attentions is plain.cross_attentions is None
        assert plain.decoder_hidden_states is None
        output = model(
            **batch, decoder_input_ids=ids, output_hidden_states=True, output_attentions=True
        )
        assert difference(output.logits, plain.logits) < 1e-5
        assert len(output.encoder_hidden_states) == 7
        assert len(output.decoder_hidden_states) == 4
        assert output.encoder_hidden_states[-1] is output.encoder_last_hidden_state
        shapes = {
            "encoder_attentions": (6, (2, 4, 38, 38)),
            "decoder_attentions": (3, (2, 4, 3, 3)),
            "cross_attentions": (3, (2, 4, 3, 38)),
        }
        for name, (count, shape) in shapes.items():
            layers = getattr(output, name)
            assert [w.shape for w in layers] == [shape] * count
            assert all(difference(w.sum(axis=-1), 1) < 1e-5 for w in layers)
        # 80 frames are 20: nobody looks behind them, nor ahead
        assert output.encoder_attentions[2][1, :, :20, 20:].max().item() == 0
        assert output.cross_attentions[2][1, ..., 20:].max().item() == 0
        assert mx.triu(output.decoder_attentions[2], 1).max().item() == 0

    def test_attentions_of_beams(self, model, recordings):
        """Each beam's own, though they attend as queries of one row."""
        cache = model.make_cache()
        model(recordings[0], decoder_input_ids=mx.array([[2]]), past_key_values=cache)
        for layer in cache:
            layer.reorder(mx.array([0, 0, 0]))
        ids = mx.array([[5, 96], [19, 136], [36, 44]])
        output = model(decoder_input_ids=ids, past_key_values=cache, output_attentions=True)
        for row in range(3):
            whole = mx.concatenate([mx.array([[2]]), ids[row : row + 1]], axis=1)
            alone = model(recordings[0], decoder_input_ids=whole, output_attentions=True)
            assert difference(output.logits[row], alone.logits[0, 1:]) < 1e-4
            for name in ("cross_attentions", "decoder_attentions"):
                for found, expected in zip(
                    getattr(output, name), getattr(alone, name), strict=True
                ):
                    assert difference(found[row], expected[0, :, 1:]) < 1e-5

    def test_loss(self, model, recordings):
        """Mean over the labels that are not -100; the decoder is fed them one place later."""
        labels = mx.array([[19, 136, 94, 2], [36, 2, -100, -100]])
        batch = padded(recordings[:2])
        output = model(**batch, labels=labels)
        fed = mx.array([[2, 19, 136, 94], [2, 36, 2, 1]])
        logits = model(**batch, decoder_input_ids=fed).logits
        assert difference(output.logits, logits) < 1e-5
        losses = nn.losses.cross_entropy(logits, mx.maximum(labels, 0))
        expected = (losses[0].sum() + losses[1, :2].sum()).item() / 6
        assert output.loss.item() == pytest.approx(expected, rel=1e-5)
        given = model(**batch, decoder_input_ids=fed, labels=labels)
        assert given.loss.item() == pytest.approx(expected, rel=1e-5)

    def test_embeddings_instead_of_ids(self, model, recordings):
        ids = mx.array([[2, 19, 136]])
        embeds = model.model.decoder.embed_tokens(ids) * 128**0.5
        found = model(recordings[0], decoder_inputs_embeds=embeds).logits
        assert difference(found, model(recordings[0], decoder_input_ids=ids).logits) < 1e-5

    def test_the_model_without_its_head(self, model, recordings):
        headless = Speech2TextModel.from_pretrained(TINY_S2T, dtype=mx.float32)
        ids = mx.array([[2, 19, 136]])
        hidden = headless(recordings[0], decoder_input_ids=ids).last_hidden_state
        logits = model(recordings[0], decoder_input_ids=ids).logits
        assert difference(hidden @ model.model.decoder.embed_tokens.weight.T, logits) < 1e-5


class TestDtype:
    @pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
    def test_half_precision_stays(self, recordings, monkeypatch, dtype):
        """One stray float32 array would promote everything behind it."""
        model = load_model(TINY_S2T, dtype=dtype)
        outputs = output_dtypes(model, monkeypatch)
        output = model(
            **padded(recordings),
            decoder_input_ids=mx.full((3, 4), 7),
            output_hidden_states=True,
            output_attentions=True,
        )
        assert {name for name, _ in outputs} >= {"ConvSubsampler", "EncoderLayer", "DecoderLayer"}
        assert {(n, d) for n, d in outputs if d != dtype} == set()
        tensors = [*output.encoder_hidden_states, *output.cross_attentions, output.logits]
        assert {t.dtype for t in tensors} == {dtype}
        cache = model.make_cache()
        model(recordings[0], decoder_input_ids=mx.array([[2]]), past_key_values=cache)
        assert {c.state[0].dtype for c in cache[:-1]} == {dtype}
        assert {k.dtype for pair in cache[-1].layers for k in pair} == {dtype}

    def test_bfloat16_gives_the_same_words(self, recordings):
        model = load_model(TINY_S2T, dtype=mx.bfloat16)
        assert model.generate(recordings[2])[0].tolist() == [2, 36, 44, 31, 31, 2]

    def test_float16_overflow_is_clamped(self, recordings):
        """As in transformers, only in the encoder and only in float16."""
        model = load_model(TINY_S2T, dtype=mx.float16)
        layer = model.model.encoder.layers[0]
        layer.fc2.bias = mx.full((128,), 60000, mx.float16)
        x = mx.full((1, 3, 128), 30000, mx.float16)
        assert mx.all(layer(x, None, None) == 64504).item()
        layer.fc2.bias = mx.full((128,), -60000, mx.float16)
        assert mx.all(layer(-x, None, None) == -64504).item()
        layer.set_dtype(mx.float32)
        assert (layer(-x.astype(mx.float32), None, None).min() < -80000).item()
        encoded = model.model.encoder(recordings[0]).last_hidden_state
        assert mx.all(mx.isfinite(encoded)).item()
