"""What encoder and decoder of Speech2Text share: positions as fairseq counts them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_speech.models.speech_to_text.layers import SinusoidalPositions


class TestPositions:
    def test_values(self):
        """Position p, frequency i: sin(p / 10000^(i / 3)), then the cosines; padding is zero."""
        table = np.array(SinusoidalPositions(8, 1)(mx.array([[1, 1, 0, 1, 0]])))[0]
        angles = np.array([2, 3, 0, 4, 0])[:, None] / 10000 ** (np.arange(4) / 3)
        expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
        expected[[2, 4]] = 0
        np.testing.assert_allclose(table, expected, atol=1e-6)

    def test_any_length_and_offset(self):
        positions = SinusoidalPositions(64, 1)
        long = positions(mx.ones((1, 7000)))
        assert mx.array_equal(positions(mx.ones((1, 3)), 6997), long[:, -3:]).item()
        angles = np.arange(2.0, 7002.0)[:, None] / 10000 ** (np.arange(32) / 31)
        # float32 has no more
        np.testing.assert_allclose(long[0, :, :32], np.sin(angles), rtol=0, atol=1e-3)
