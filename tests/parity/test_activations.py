"""Activations beside those that transformers has under the same names."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from mlx_speech.layers.activations import ACTIVATIONS


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values(name):
    x = np.linspace(-8, 8, 2001, dtype=np.float32)
    expected = ACT2FN[name](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[name](mx.array(x)), expected, atol=2e-6)
