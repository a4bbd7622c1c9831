"""What comes back beside the ids; the numbers are compared with transformers' in tests/parity."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_decoder

from mlx_speech import InputError
from mlx_speech.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput

IDS = mx.array([[7, 8, 9], [3, 5, 11]])
ALL = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


class Recorder:
    """A streamer that keeps what it gets."""

    def __init__(self):
        self.parts: list = []

    def put(self, value):
        self.parts.append(value.tolist())

    def end(self):
        self.parts.append("end")


def test_greedy_search():
    model = random_decoder()
    options = {"max_new_tokens": 6, "suppress_tokens": [4], "eos_token_id": []}
    output = model.generate(IDS, **options, **ALL)
    assert isinstance(output, GenerateDecoderOnlyOutput)
    assert output[0].tolist() == model.generate(IDS, **options).tolist()
    steps = mx.stack(output.scores, axis=1)
    assert steps.shape == (2, 6, 61)
    assert mx.argmax(steps, axis=-1).tolist() == output.sequences[:, 3:].tolist()
    assert set(np.array(steps)[..., 4].flatten()) == {-np.inf}
    alone = model(output.sequences).logits[:, 2:-1]
    assert mx.abs(mx.stack(output.logits, axis=1) - alone).max().item() < 1e-4
    assert [layer.length for layer in output.past_key_values] == [8] * len(output.past_key_values)
    assert output.hidden_states is None
    assert list(model.generate(IDS, **options, return_dict_in_generate=True)) == [
        "sequences",
        "past_key_values",
    ]


def test_beam_search():
    """Sums of the scores along `beam_indices`, over the lengths, are those of the answers."""
    model = random_decoder()
    options = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 6}
    options |= {"length_penalty": 0.7, "eos_token_id": []}
    output = model.generate(IDS, **options, **ALL)
    assert isinstance(output, GenerateBeamDecoderOnlyOutput)
    assert output.sequences.shape == (6, 9)
    assert len({tuple(row) for row in output.sequences.tolist()}) == 6
    for row, beams, score in zip(
        output.sequences[:, 3:].tolist(),
        output.beam_indices.tolist(),
        output.sequences_scores.tolist(),
        strict=True,
    ):
        steps = zip(output.scores, beams, row, strict=True)
        total = sum(scores[beam, token].item() for scores, beam, token in steps)
        assert total / 6**0.7 == pytest.approx(score, abs=1e-5)
    best = model.generate(IDS, **options | {"num_return_sequences": 1})
    assert output.sequences[::3].tolist() == best.tolist()


def test_samples_of_padded_prompts():
    """Each is sampled by itself, over the prompt without its padding."""
    model, mask = random_decoder(), mx.array([[0, 1, 1], [1, 1, 1]])
    options = {"do_sample": True, "max_new_tokens": 8, "eos_token_id": [], "seed": 4}
    found = model.generate(
        IDS, attention_mask=mask, num_return_sequences=3, repetition_penalty=1.3, **options
    )
    assert found[:, :3].tolist() == mx.repeat(IDS, 3, axis=0).tolist()
    assert len({tuple(row) for row in found.tolist()}) == 6
    options |= {"top_k": 1, "num_return_sequences": 2}
    cache = model.make_cache()
    model(IDS[1:, :2], past_key_values=cache)
    found = model.generate(IDS[1:], past_key_values=cache, **options)
    assert found.tolist() == model.generate(IDS[1:], **options).tolist()
    assert cache[0].length == 2
    assert len(cache[0].stored()[0]) == 1
    assert model.generate(IDS[1:], cache=cache, **options).tolist() == found.tolist()


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"temperature": 1.0}], ids=str)
@pytest.mark.parametrize("cached", [{}, {"max_kv_size": 6}], ids=str)
def test_rows_of_a_cache_that_a_caller_has_are_left_alone(options, cached):
    """Also where the next position takes the place of the oldest."""
    model, prompt = random_decoder(), mx.arange(5, 14)[None]
    cache = model.make_cache(**cached)
    model(prompt[:, :8], past_key_values=cache)
    before = [mx.array(part) for layer in cache for part in layer.stored()]
    number = 3 if "temperature" in options else 1
    how = {"max_new_tokens": 4, "eos_token_id": [], "num_return_sequences": number, **options}
    model.generate(prompt, past_key_values=cache, **how)
    after = [part for layer in cache for part in layer.stored()]
    assert [layer.length for layer in cache] == [8] * len(cache)
    assert all(mx.array_equal(a, b).item() for a, b in zip(before, after, strict=True))


def test_streamer():
    model, streamer = random_decoder(), Recorder()
    found = model.generate(IDS, streamer=streamer, max_new_tokens=4, eos_token_id=[])
    columns = found[:, 3:].T.tolist()
    assert streamer.parts == [IDS.tolist(), *columns, "end"]
    with pytest.raises(InputError, match="cannot stream"):
        model.generate(IDS, streamer=streamer, num_beams=2)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_criteria(num_beams):
    """They end rows one by one, see scores where these are kept, and time may run out."""
    model, seen = random_decoder(), []

    def at_six(ids, scores):
        seen.append(scores)
        assert scores is None or len(scores) == ids.shape[1] - 3
        return mx.array([row[0] == 7 and len(row) == 6 for row in ids.tolist()])

    options = {"max_new_tokens": 6, "eos_token_id": 60, "pad_token_id": 1, "num_beams": num_beams}
    found = model.generate(IDS, stopping_criteria=at_six, **options).tolist()
    assert found[0][6:] == [1, 1, 1]
    assert 1 not in found[1][3:]
    assert set(seen) == {None}
    model.generate(IDS, stopping_criteria=[at_six], **options, **ALL)
    assert seen[-1][0].shape == (2 * num_beams, 61)
    assert model.generate(IDS, max_time=0.0, **options).shape == (2, 4)


def test_draft_model_records_what_the_model_says():
    model, options = random_decoder(), {"max_new_tokens": 12, "eos_token_id": [], **ALL}
    expected = model.generate(IDS[:1], **options)
    drafted = model.generate(IDS[:1], assistant_model=random_decoder(seed=2), **options)
    assert drafted.sequences.tolist() == expected.sequences.tolist()
    difference = mx.abs(mx.stack(drafted.logits) - mx.stack(expected.logits))
    assert difference.max().item() < 1e-4
    assert drafted.past_key_values[0].length == expected.past_key_values[0].length == 14
