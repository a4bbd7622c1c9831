"""The Plus variant: its tensors' names, what its folders lack, and the positions of its update."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from conftest import find_recording
from small_plus import YARN, make_plus

from mlx_speech import GraniteSpeechPlusForConditionalGeneration, load, transcribe
from mlx_speech.layers.rope import RotaryEmbedding
from mlx_speech.models.granite import GraniteConfig
from mlx_speech.processing.prompts import GRANITE_4_1_PLUS

GATE = "synthetic/flite_08.flac"
#: of the update of granite-speech-4.1-2b-plus and of granite-speech-5.0-2b, from transformers 5.23
FREQUENCIES = {0: 1.0, 10: 0.237137, 20: 0.0562341, 21: 0.0472920, 33: 0.00541228}
FREQUENCIES |= {40: 0.00133789, 45: 4.29403e-4, 46: 3.33380e-4, 63: 2.88695e-5}


@pytest.mark.parametrize("layout", ["A", "B", "C"])
def test_layouts_without_head_and_preprocessor_file(tmp_path, tiny, layout):
    model, processor = load(make_plus(tmp_path / "plus", layout), dtype=mx.float32)
    assert isinstance(model, GraniteSpeechPlusForConditionalGeneration)
    assert model.config.tie_word_embeddings
    assert processor.prompts is GRANITE_4_1_PLUS
    hidden = model.encoder(mx.ones((1, 40, 160))).last_hidden_state
    assert hidden.shape == (1, 40, 256)
    plain = tiny[0].encoder(mx.ones((1, 40, 160))).last_hidden_state
    assert mx.allclose(hidden[..., 128:], plain, atol=1e-5).item()
    assert mx.allclose(model.project(hidden), tiny[0].project(plain), atol=1e-4).item()
    words = transcribe(find_recording(GATE), (model, processor)).text
    assert words == transcribe(find_recording(GATE), tiny).text


@pytest.mark.parametrize(
    "stated",
    [
        {"rope_parameters": {**YARN, "rope_theta": 10000.0}},
        {"rope_parameters": YARN, "rope_theta": 10000.0},
        {"rope_scaling": YARN, "rope_theta": 10000.0},
        {"rope_scaling": {**YARN, "type": "yarn"}},
    ],
)
def test_yarn_of_the_update(stated):
    config = GraniteConfig(
        hidden_size=2048, num_attention_heads=16, max_position_embeddings=16384, **stated
    )
    assert config.rope_parameters["rope_theta"] == 10000.0
    rope = RotaryEmbedding(config.head_dim, config.rope_parameters, config.max_position_embeddings)
    assert rope.context_length == 16384
    # the rotation of (1, 0) by one position is (cos, sin) of the frequency, times the factor
    x = mx.concatenate([mx.ones((1, 1, 1, 64)), mx.zeros((1, 1, 1, 64))], axis=-1)
    cos, sin = np.array(rope.rotation(1, 1)(x)).reshape(2, 64)
    found = np.arctan2(sin, cos)
    for index, frequency in FREQUENCIES.items():
        assert found[index] == pytest.approx(frequency, rel=1e-5)
    assert np.hypot(cos, sin) == pytest.approx(1.13862944, rel=1e-5)


def test_a_checkpoint_says_so_flat(tmp_path):
    """As 5.0 has it, with the old number of positions or the new one."""
    folder = make_plus(tmp_path / "plus", rope_parameters=None, rope_scaling=YARN)
    assert load(folder)[0].context_length == 16384
