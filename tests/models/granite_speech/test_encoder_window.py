"""The encoder over audio that is still coming in."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from conftest import find_recording
from small_plus import make_plus

from mlx_speech import load, load_audio

BLOCK = 50


@pytest.fixture(scope="module", params=["tiny", "plus"])
def encoded(request, tmp_path_factory):
    """A model, the features of a recording, and what the encoder makes of these."""
    if request.param == "tiny":
        model, processor = request.getfixturevalue("tiny")
    else:
        folder = make_plus(tmp_path_factory.mktemp("window") / "plus")
        model, processor = load(folder, dtype=mx.float32)
    samples = load_audio(find_recording("synthetic/espeak_04.flac"))
    features = processor.audio_processor.log_mel(samples)
    return model, features, model.encode_stream().push(features, last=True)


def difference(window, whole, frames: slice) -> float:
    """The greatest between hidden states, relative to the greatest of these."""
    hidden = whole.last_hidden_state[0, frames]
    others = window.last_hidden_state[0, : len(hidden)]
    return (mx.abs(others - hidden).max() / mx.abs(hidden).max()).item()


def test_the_whole(encoded):
    model, features, whole = encoded
    window, halos = model.encode_window(features)
    assert difference(window, whole, slice(None)) < 1e-5
    np.testing.assert_allclose(window.non_blank, whole.non_blank, atol=1e-4)
    np.testing.assert_allclose(window.ctc_logits, whole.ctc_logits, atol=1e-3)
    assert halos == []


def test_it_goes_on_where_another_was(encoded):
    """With what is before a place, the rest is as if all had been encoded."""
    model, features, whole = encoded
    _, halos = model.encode_window(features, places=[0, BLOCK, 3 * BLOCK])
    for place, before in zip((0, BLOCK, 3 * BLOCK), halos, strict=True):
        window, _ = model.encode_window(features[place:], before)
        assert difference(window, whole, slice(place, None)) < 1e-5
    # and the other way round: nothing is like it
    window, _ = model.encode_window(features[BLOCK:])
    assert difference(window, whole, slice(BLOCK, None)) > 0.01


def test_places_of_a_window_that_goes_on(encoded):
    model, features, whole = encoded
    _, (first,) = model.encode_window(features, places=[BLOCK])
    _, (second,) = model.encode_window(features[BLOCK:], first, [BLOCK])
    window, _ = model.encode_window(features[2 * BLOCK :], second)
    assert difference(window, whole, slice(2 * BLOCK, None)) < 1e-5


def test_what_comes_after_changes_little_far_before_it(encoded):
    model, features, whole = encoded
    window, _ = model.encode_window(features[: 3 * BLOCK])
    assert difference(window, whole, slice(0, BLOCK)) < 0.02
    assert difference(window, whole, slice(0, 3 * BLOCK)) > 0.05
