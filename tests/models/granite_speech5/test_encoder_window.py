"""The encoder over audio that is still coming in."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import turboctc

from mlx_speech import load

#: frames of features that make an attention block of the last block
BLOCK = turboctc.ENCODER["context_size"] * 4


def test_windows(tmp_path):
    model, _ = load(turboctc.write(tmp_path), dtype=mx.float32)
    features = mx.random.normal((3 * BLOCK + 10, 320), key=mx.random.key(1))
    whole = model.encode_stream().push(features, last=True)
    window, halos = model.encode_window(features, places=[0, BLOCK, 2 * BLOCK])
    np.testing.assert_allclose(window, whole, atol=1e-5)
    for place, before in zip((0, BLOCK, 2 * BLOCK), halos, strict=True):
        window, _ = model.encode_window(features[place:], before)
        np.testing.assert_allclose(window, whole[:, place // 4 :], atol=1e-5)
    window, _ = model.encode_window(features[BLOCK:])
    assert mx.abs(window - whole[:, BLOCK // 4 :]).max() > 0.01
