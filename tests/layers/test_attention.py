"""Every attention that the released checkpoints send meets the rules of MLX's fused kernels.

The models are built at their real sizes and traced, not computed: MLX is lazy, so this costs
nothing, and no GPU is needed.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech.errors import InputError
from mlx_speech.generation import speculative
from mlx_speech.layers import attention
from mlx_speech.models.granite_speech import (
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
)
from mlx_speech.models.granite_speech5 import GraniteSpeech5CTCConfig, GraniteSpeech5ForCTC
from mlx_speech.models.speech_to_text.layers import Speech2TextConfig
from mlx_speech.models.speech_to_text.model import Speech2TextForConditionalGeneration

ENCODER = {"num_layers": 16, "hidden_dim": 1024, "num_heads": 8, "dim_head": 128}
PROJECTOR = {
    "hidden_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "cross_attention_frequency": 1,
    "encoder_hidden_size": 1024,
}
GRANITE_2B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "vocab_size": 49160,
}
GRANITE_8B = {**GRANITE_2B, "hidden_size": 4096, "intermediate_size": 12800}
GRANITE_1B = {
    **GRANITE_2B,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "vocab_size": 100353,
}
PLUS = {
    "encoder_config": {**ENCODER, "output_dim": 348, "cat_hidden_layers": [3]},
    "projector_config": {**PROJECTOR, "encoder_hidden_size": 2048},
}
#: sizes of facts that are public: the repositories' config.json files
CHECKPOINTS = {
    "granite-speech-3.2-8b": {"text_config": GRANITE_8B, "encoder_config": {"num_layers": 10}},
    "granite-speech-3.3-2b": {"text_config": GRANITE_2B},
    "granite-speech-3.3-8b": {"text_config": GRANITE_8B},
    "granite-4.0-1b-speech": {"text_config": GRANITE_1B},
    "granite-speech-4.1-2b-plus": {"text_config": GRANITE_1B, **PLUS},
}
SPEECH_TO_TEXT = {
    "s2t-small": {},
    "s2t-medium": {"d_model": 512, "encoder_attention_heads": 8, "decoder_attention_heads": 8},
    "s2t-large": {
        "d_model": 1024,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "decoder_ffn_dim": 4096,
    },
}


def fused(queries, keys, mask) -> bool:
    """Whether a recorded call is."""
    (_, heads, num_queries, head_dim), (_, kv_heads, num_keys, _) = queries, keys
    return attention.is_fused(num_queries, num_keys, heads, kv_heads, head_dim, mask == "causal")


@pytest.fixture
def sent(monkeypatch):
    """Records the attention calls instead of making them."""
    calls = []

    def record(queries, keys, values, *, scale, mask=None):
        assert keys.shape[:3] == values.shape[:3]
        if isinstance(mask, mx.array):
            mx.broadcast_shapes(mask.shape, (*queries.shape[:3], keys.shape[2]))
            assert mask.dtype in (mx.bool_, queries.dtype)
            mask = "array"
        calls.append((queries.shape, keys.shape, mask))
        return queries

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", record)
    return calls


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("recordings", [1, 3])
def test_released_checkpoints(sent, name, recordings):
    config = GraniteSpeechConfig.from_dict(
        {
            "encoder_config": ENCODER,
            "projector_config": PROJECTOR,
            "audio_token_index": 49155,
            **CHECKPOINTS[name],
        }
    )
    model = GraniteSpeechForConditionalGeneration(config).eval()
    model.set_dtype(mx.bfloat16)
    # 27 s: the last block of 200 frames is not full, the last window of 15 neither
    features = mx.zeros((recordings, 1357, 160))
    lengths = mx.array([1357, 900, 10][:recordings]) if recordings > 1 else None
    model.get_audio_features(features, lengths)
    encoder_calls = list(sent)
    sent.clear()
    padding = [0, 40, 80][:recordings]
    cache = model.make_cache(padding)
    decoder = model.language_model
    decoder.prefill(mx.zeros((recordings, 300), mx.int32), cache)
    decoder.step(mx.zeros((recordings, 1), mx.int32), cache)
    for layer in cache:
        layer.reorder(mx.repeat(mx.arange(recordings), 4))
    decoder.step(mx.zeros((recordings * 4, 1), mx.int32), cache)

    layers = config.encoder_config.num_layers
    assert len(encoder_calls) == layers + 4
    assert encoder_calls[0][0] == (7 * recordings, 8, 200, 128)
    text = config.text_config
    assert len(sent) == 3 * text.num_hidden_layers
    assert {k[1] for _, k, _ in sent} == {text.num_key_value_heads}  # never tiled
    assert {m for _, _, m in sent} == ({"array"} if recordings > 1 else {"causal", None})
    for call in [*encoder_calls, *sent]:
        assert fused(*call), call


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_drafts_of_released_checkpoints(sent, name, rows):
    """The first block with the prompt, and then as many tokens as are checked at once, or as few as
    a draft still has, of rows of different lengths."""
    text_config = CHECKPOINTS[name]["text_config"] | {"num_hidden_layers": 2}
    given = {**CHECKPOINTS[name], "text_config": text_config, "audio_token_index": 49155}
    given = {"encoder_config": ENCODER, "projector_config": PROJECTOR} | given
    model = GraniteSpeechForConditionalGeneration(GraniteSpeechConfig.from_dict(given)).eval()
    model.set_dtype(mx.bfloat16)
    decoder, cache, prompt = model.language_model, model.make_cache(), 300
    first = speculative.FED_WITH_PROMPT
    few = rows <= speculative.FEW_ROWS
    most = speculative.FED_TOKENS if few else speculative.FED_TOKENS_OF_MANY_ROWS
    ends = [prompt - 20 * row for row in range(rows)]
    kept = [[end - 1 + place for place in range(first)] for end in ends]
    tokens = mx.zeros((rows, prompt + first - 1), mx.int32)
    assert decoder.prefill(tokens, cache, logits_to_keep=kept).shape[:2] == (rows, first)
    for layer in cache:
        layer.trim_rows([row % 8 for row in range(rows)])
    for count in range(most, 0, -1):
        decoder.step(mx.zeros((rows, count), mx.int32), cache)
    queries = [shape[2] for shape, _, _ in sent[::2]]
    assert queries == [prompt + first - 1, *range(most, 0, -1)]
    assert {keys[1] for _, keys, _ in sent} == {text_config["num_key_value_heads"]}
    assert {mask for _, _, mask in sent[2:]} == ({"array"} if rows > 1 else {"causal", None})
    for call in sent:
        assert fused(*call), call


@pytest.mark.parametrize("recordings", [1, 3])
def test_turboctc(sent, recordings):
    """Of 27 s the last attention block is not full at any of the three rates."""
    model = GraniteSpeech5ForCTC(GraniteSpeech5CTCConfig()).eval()
    model.set_dtype(mx.bfloat16)
    lengths = mx.array([1357, 900, 10][:recordings])
    mask = mx.arange(1357) < lengths[:, None] if recordings > 1 else None
    model(mx.zeros((recordings, 1357, 320)), mask)
    blocks = [11, 6, *[3] * 14]
    assert [queries for queries, _, _ in sent] == [(n * recordings, 8, 128, 128) for n in blocks]
    assert {mask for _, _, mask in sent} == {"array"}
    for call in sent:
        assert fused(*call), call


@pytest.mark.parametrize("name", SPEECH_TO_TEXT)
@pytest.mark.parametrize("recordings", [1, 3])
def test_speech_to_text(sent, name, recordings):
    """Beams are queries of one recording: its keys are neither tiled nor too few."""
    config = Speech2TextConfig(**SPEECH_TO_TEXT[name])
    model = Speech2TextForConditionalGeneration(config).eval()
    model.set_dtype(mx.bfloat16)
    lengths = mx.array([2701, 900, 33][:recordings])
    mask = mx.arange(2701) < lengths[:, None]
    cache = model.make_cache()
    features = {"input_features": mx.zeros((recordings, 2701, 80)), "attention_mask": mask}
    model.prefill(mx.full((recordings, 2), 2), cache, **features)
    model.step(mx.full((recordings, 1), 2), cache)
    for layer in cache:
        layer.reorder(mx.repeat(mx.arange(recordings), 5))
    model.step(mx.full((recordings * 5, 1), 2), cache)

    heads, batch, frames = config.encoder_attention_heads, recordings, 676
    padding = "array" if recordings > 1 else None
    assert sent[:12] == [((batch, heads, frames, 64), (batch, heads, frames, 64), padding)] * 12
    own, cross = sent[12::2], sent[13::2]
    assert [mask for _, _, mask in own] == ["causal"] * 6 + [None] * 12
    assert {keys for _, keys, _ in cross} == {(batch, heads, frames, 64)}
    assert {mask for _, _, mask in cross} == {padding}
    assert [q for q, _, _ in cross[::6]] == [(batch, heads, n, 64) for n in (2, 1, 5)]
    for call in sent:
        assert fused(*call), call


#: queries, keys, heads, KV heads, head size, causal -> fused; as MLX 0.32 decides
KERNELS = [
    ((200, 200, 8, 8, 128, False), True),  # an encoder's block
    ((300, 300, 16, 4, 128, True), True),
    ((300, 200, 16, 4, 128, True), False),
    ((300, 200, 16, 4, 128, False), True),
    *[((9, 90, 8, 8, size, False), True) for size in (64, 72, 80, 96, 128)],
    *[((9, 90, 8, 8, size, False), False) for size in (32, 48, 112, 256)],
    *[((8, 90, 8, 8, size, False), True) for size in (64, 96, 128)],
    *[((8, 90, 8, 8, size, False), False) for size in (32, 72, 80, 112)],
    ((1, 1, 32, 1, 128, False), True),
    ((1, 1, 33, 1, 128, False), False),
    ((8, 90, 16, 4, 128, True), True),
    ((8, 90, 32, 4, 128, True), False),
    ((5, 90, 32, 4, 128, True), False),
    ((4, 90, 32, 4, 128, True), True),
    ((9, 90, 32, 4, 128, True), True),
    ((4, 4, 8, 8, 64, False), True),
    ((4, 3, 8, 8, 64, False), False),
]


@pytest.mark.parametrize(("shape", "expected"), KERNELS)
def test_which_shapes_are_fused(shape, expected):
    assert attention.is_fused(*shape) is expected


def test_attention_has_one_door():
    """Nothing else in the package calls MLX's attention."""
    from pathlib import Path

    package = Path(attention.__file__).parent.parent
    sources = {p.name: p.read_text() for p in package.rglob("*.py")}
    assert [n for n, s in sources.items() if "fast.scaled_dot_product_attention(" in s] == [
        "attention.py"
    ]


def heads(count: int, length: int, seed: int) -> mx.array:
    return mx.random.normal((2, count, length, 64), key=mx.random.key(seed))


ADDED = mx.random.normal((2, 4, 5, 7), key=mx.random.key(9))
MASKS = {"none": None, "causal": "causal", "boolean": ADDED > -0.5, "added": ADDED}


@pytest.mark.parametrize("name", MASKS)
def test_unfused_is_the_same(name):
    """Weights of every query head, of which two share a key head; they sum to 1."""
    given = heads(4, 5, 1), heads(2, 7, 2), heads(2, 7, 3)
    options = {"scale": 0.2, "mask": MASKS[name]}
    weights: list[mx.array] = []
    found = attention.scaled_dot_product_attention(*given, **options, weights=weights)
    expected = attention.scaled_dot_product_attention(*given, **options)
    assert mx.abs(found - expected).max().item() < 1e-5
    assert [w.shape for w in weights] == [(2, 4, 5, 7)]
    assert mx.abs(weights[0].sum(axis=-1) - 1).max().item() < 1e-5
    quantized = [
        attention.Quantized(*mx.quantize(part, 32, 8), group_size=32, bits=8) for part in given[1:]
    ]
    close = attention.scaled_dot_product_attention(given[0], *quantized, **options, weights=weights)
    assert mx.abs(close - expected).max().item() < 0.05
    assert mx.abs(weights[1] - weights[0]).max().item() < 0.05


def test_dropout():
    """A share of the weights is zero, and the others make up for it in the mean."""
    queries, keys, values = heads(2, 200, 1), heads(2, 200, 2), heads(2, 200, 3)
    whole, left = [], []
    common = {"scale": 0.1}
    attention.scaled_dot_product_attention(queries, keys, values, **common, weights=whole)
    found = attention.scaled_dot_product_attention(
        queries, keys, values, **common, dropout=0.25, weights=left
    )
    kept = left[0] != 0
    assert kept.mean().item() == pytest.approx(0.75, abs=0.01)
    assert mx.abs(mx.where(kept, left[0] * 0.75 - whole[0], 0)).max().item() < 1e-6
    assert mx.abs(found - left[0] @ values).max().item() < 1e-5


def test_a_callers_mask():
    """Of two axes, causal; of four, as it is, in a type that half precision can hold."""
    shape = (2, 4, 2, 3)
    padding = np.array([[0, 0, 1], [1, 1, 0]])
    mask, seen = attention.decoder_mask(padding, shape, mx.float32)
    assert mask[:, 0].tolist() == [
        [[False, True, False], [False, False, True]],  # padding before a text attends to itself
        [[True, True, False], [True, True, False]],
    ]
    assert seen[:, 0, :, 0].tolist() == [[False, True], [True, True]]
    given = heads(4, 2, 1), heads(2, 3, 2), heads(2, 3, 3)
    both = attention.AttentionMask(mask, seen)
    found = attention.scaled_dot_product_attention(*given, scale=0.1, mask=both)
    assert (mx.abs(found).sum(axis=-1) > 0)[:, 0].tolist() == [[False, True], [True, True]]
    added = mx.full((1, 1, 2, 3), np.finfo(np.float32).min)
    half = attention.decoder_mask(added, shape, mx.float16)
    assert half.dtype == mx.float16
    assert mx.isfinite(half).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((2, 2)), r"x is \(2, 2\), but must be an array \(2, 3\), the cached positions"),
        (np.ones((1, 3)), r"x is \(1, 3\)"),
        ([[1, 1, 1]], "x is list"),
        (np.ones((2, 3, 2, 3)), r"or \(2, 4, 2, 3\)"),
        (np.ones((1, 1, 2, 3), int), "x of 4 axes is mlx.core.int64, but must be boolean or of"),
    ],
)
def test_masks_that_do_not_fit(mask, message):
    with pytest.raises(InputError, match=message):
        attention.decoder_mask(mask, (2, 4, 2, 3), mx.float32, "x")
