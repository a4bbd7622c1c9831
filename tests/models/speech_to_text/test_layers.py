"""What encoder and decoder of Speech2Text share: positions as fairseq counts them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_speech import Speech2TextConfig, Speech2TextModel
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


class TestDropout:
    """Each rate acts in training, where it leaves something out at random, and only there."""

    def outputs(self, **rates) -> tuple[mx.array, mx.array]:
        """Encoder and decoder of a small model in training; every rate is zero but those given."""
        none = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
        sizes = {"vocab_size": 11, "d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
        sizes |= {"encoder_layers": 2, "decoder_layers": 2, "conv_channels": 4}
        sizes |= {"input_feat_per_channel": 5}
        mx.random.seed(3)
        model = Speech2TextModel(Speech2TextConfig(**sizes | none | rates))
        assert model.training
        x = mx.random.normal((2, 9, 5), key=mx.random.key(1))
        output = model(x, decoder_input_ids=mx.array([[2, 5, 7], [2, 9, 4]]))
        self.again = model(x, decoder_input_ids=mx.array([[2, 5, 7], [2, 9, 4]]))
        model.eval()
        self.evaluated = model(x, decoder_input_ids=mx.array([[2, 5, 7], [2, 9, 4]]))
        return output.encoder_last_hidden_state, output.last_hidden_state

    @pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "activation_dropout"])
    def test_rates(self, rate):
        plain = self.outputs()
        assert mx.array_equal(plain[1], self.again.last_hidden_state).item()
        dropped = self.outputs(**{rate: 0.5})
        assert not mx.allclose(dropped[0], plain[0]).item()
        assert not mx.allclose(dropped[1], plain[1]).item()
        assert not mx.allclose(dropped[1], self.again.last_hidden_state).item()
        assert mx.array_equal(self.evaluated.last_hidden_state, plain[1]).item()

    @pytest.mark.parametrize(
        ("rate", "changed"), [("encoder_layerdrop", 0), ("decoder_layerdrop", 1)]
    )
    def test_layers_are_skipped(self, rate, changed):
        """A rate of one leaves the norm of what went in."""
        plain = self.outputs()
        skipped = self.outputs(**{rate: 1.0})
        assert not mx.allclose(skipped[changed], plain[changed]).item()
        if changed:
            assert mx.array_equal(skipped[0], plain[0]).item()
        assert mx.array_equal(self.evaluated.last_hidden_state, plain[1]).item()

    def test_places(self, monkeypatch):
        """The first layer's input, and of each layer the sublayers and what is between them."""
        called, original = [], nn.Dropout.__call__
        monkeypatch.setattr(nn.Dropout, "__call__", lambda *a: called.append(1) or original(*a))
        self.outputs()
        encoder, decoder = 1 + 2 * 3, 1 + 2 * 4
        assert len(called) == 3 * (encoder + decoder)
