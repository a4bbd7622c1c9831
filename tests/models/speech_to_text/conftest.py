"""The bundled checkpoint, and recordings that the reference was given."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, TINY_S2T

from mlx_speech import (
    Speech2TextForConditionalGeneration,
)
from mlx_speech.loading import load_model


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(DATA / "reference" / "tiny_s2t_golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def model() -> Speech2TextForConditionalGeneration:
    return load_model(TINY_S2T, dtype=mx.float32)


@pytest.fixture(scope="module")
def recordings(golden) -> list[mx.array]:
    """Features of the three, (1, frames, 80): 149, 162 and 171 frames."""
    features = [mx.array(golden[f"{i}.input_features"])[None] for i in range(3)]
    mx.eval(features)  # another thread can only use what is
    return features
