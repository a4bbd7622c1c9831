"""Which attention a model asks for, and whether it is fused."""

import mlx.core as mx
from conftest import ROOT, TINY

from mlx_speech.layers.attention import recorded_shapes, scaled_dot_product_attention
from mlx_speech.loading import load_model
from mlx_speech.models.granite_speech import (
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
)
from mlx_speech.profiling.attention import AttentionUse, attention_uses

ENCODER = {"num_layers": 2, "hidden_dim": 256, "num_heads": 2, "context_size": 50}
PROJECTOR = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "cross_attention_frequency": 1,
    "encoder_hidden_size": 256,
}
TEXT = {
    "vocab_size": 100,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


def test_part_by_part():
    """Heads of 64 and 128 are fused, but with 8 query heads per KV head no 5 to 8 queries."""
    parts = {"encoder_config": ENCODER, "projector_config": PROJECTOR, "text_config": TEXT}
    model = GraniteSpeechForConditionalGeneration(GraniteSpeechConfig.from_dict(parts)).eval()

    def decode():
        cache = model.make_cache()
        model.prefill(mx.zeros((1, 20), mx.int32), cache)
        for length in (1, 1, 7, 9):
            model.step(mx.zeros((1, length), mx.int32), cache)

    assert attention_uses(model, mx.zeros((1, 120, 160)), decode) == [
        AttentionUse("encoder", 50, 50, 50, 2, 2, 128, causal=False, fused=True),
        AttentionUse("projector", 3, 3, 15, 2, 2, 64, causal=False, fused=True),
        AttentionUse("decoder", 20, 20, 20, 16, 2, 64, causal=True, fused=True),
        AttentionUse("decoder", 9, 38, 38, 16, 2, 64, causal=True, fused=True),
        AttentionUse("decoder", 7, 29, 29, 16, 2, 64, causal=True, fused=False),
        AttentionUse("decoder", 1, 21, 22, 16, 2, 64, causal=False, fused=True),
    ]


def test_what_is_not_fused():
    """The bundled model has heads of 32."""
    uses = attention_uses(load_model(TINY), mx.zeros((1, 120, 160)), lambda: None)
    assert [(use.part, use.head_dim, use.fused) for use in uses] == [
        ("encoder", 32, False),
        ("projector", 32, False),
    ]


def test_an_encoder_that_decoding_calls_again_is_told_once():
    model = load_model(ROOT / "examples" / "tiny-s2t")
    features = mx.zeros((1, 120, model.config.num_features))

    def decode():
        model.generate(features, max_new_tokens=3, num_beams=1)

    parts = [use.part for use in attention_uses(model, features, decode)]
    assert parts.count("encoder") == 1
    assert "decoder" in parts


def test_recorded_only_within():
    array = mx.zeros((1, 4, 3, 64))
    with recorded_shapes() as shapes:
        scaled_dot_product_attention(array, array[:, :2], array[:, :2], scale=1.0)
    scaled_dot_product_attention(array, array, array, scale=1.0, mask="causal")
    assert shapes == [(3, 3, 4, 2, 64, False)]
