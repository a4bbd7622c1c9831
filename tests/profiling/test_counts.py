"""Bytes and operations, against counts by hand."""

from __future__ import annotations

import json
import math

import mlx.core as mx
import pytest
from adapters import adapter
from conftest import ROOT, TINY, random_decoder

from mlx_speech.checkpoint.quantization import quantize_as_requested
from mlx_speech.loading import load_model
from mlx_speech.profiling.counts import decoder_bits, decoding_bytes, encoder_flops, weight_bytes

TINY_S2T = ROOT / "examples" / "tiny-s2t"
FRAMES = 120


def file_sizes(folder, *names: str) -> dict[str, int]:
    """How many numbers the tensors of safetensors files have."""
    found = {}
    for name in names:
        data = (folder / name).read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        header.pop("__metadata__", None)
        found |= {key: math.prod(value["shape"]) for key, value in header.items()}
    return found


class TestBytes:
    def test_tied_with_an_adapter(self):
        """All of the decoder's tensors: the table is the head, and the adapter is on."""
        sizes = file_sizes(TINY, "model.safetensors", "adapter_model.safetensors")
        numbers = sum(size for name, size in sizes.items() if "language_model." in name)
        assert numbers > 500_000
        model = load_model(TINY, dtype=mx.float32)
        assert decoding_bytes(model) == 4 * numbers
        assert decoding_bytes(load_model(TINY, dtype=mx.bfloat16)) == 2 * numbers

    def test_whole_modules_of_an_adapter_in_place_of_the_bases(self, tmp_path):
        model = load_model(TINY, dtype=mx.float32)
        before = decoding_bytes(model)
        layer = "language_model.model.layers.3"
        adapter(tmp_path, model, saved=[layer])
        terms = 4 * sum(
            size
            for name, size in file_sizes(TINY, "adapter_model.safetensors").items()
            if ".layers.3." in name
        )
        # which are in the weights of the whole layer
        model = load_model(TINY, dtype=mx.float32, adapter=tmp_path)
        assert decoding_bytes(model) == before - terms

    def test_untied(self):
        """The head, and not the table."""
        model = random_decoder(num_hidden_layers=3)
        attention, mlp, norms = 2 * 32 * 32 + 2 * 32 * 16, 3 * 32 * 48, 2 * 32
        numbers = 3 * (attention + mlp + norms) + 32 + 61 * 32
        assert decoding_bytes(model) == 4 * numbers
        assert weight_bytes(model) == 4 * (numbers + 61 * 32)

    def test_encoder_decoder(self):
        """Without what is computed of the recording once."""
        sizes = file_sizes(TINY_S2T, "model.safetensors")
        read = [
            size
            for name, size in sizes.items()
            if name.startswith("model.decoder.")
            and ".encoder_attn.k_proj." not in name
            and ".encoder_attn.v_proj." not in name
        ]
        assert decoding_bytes(load_model(TINY_S2T, dtype=mx.float32)) == 4 * sum(read)

    @pytest.mark.parametrize("bits", [8, 4])
    def test_quantized(self, bits):
        """Groups of 64 weights have a scale and a bias, of 4 bytes each."""
        model = random_decoder(hidden_size=64, intermediate_size=128, num_hidden_layers=1)
        quantize_as_requested(model, {"bits": bits})
        matrices = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 61 * 64
        assert decoding_bytes(model) == matrices * bits // 8 + matrices // 64 * 8 + 3 * 64 * 4
        assert decoder_bits(model) == bits


def test_bits():
    assert decoder_bits(load_model(TINY, dtype=mx.bfloat16)) == 16
    assert decoder_bits(load_model(TINY, dtype=mx.float32)) == 32
    model = load_model(TINY, dtype=mx.float32)
    quantize_as_requested(model, {"bits": 4})
    assert decoder_bits(model) == 4  # though the encoder has 8


def granite_flops(config) -> int:
    """Of `FRAMES` frames; attention works on whole blocks of them."""
    dim, heads = config.hidden_dim, config.num_heads * config.dim_head
    context = config.context_size
    padded = -(-FRAMES // context) * context
    feed_forward = 2 * FRAMES * dim * 4 * dim * 2
    projections = padded * dim * 3 * heads + FRAMES * heads * dim
    distances, scores, values = (padded * heads * n for n in (2 * context - 1, context, context))
    convolution = FRAMES * dim * (4 * dim) + FRAMES * 2 * dim * dim
    if mx.default_device().type == mx.DeviceType.gpu:
        convolution += FRAMES * 2 * dim * config.conv_kernel_size
    layer = feed_forward + projections + distances + scores + values + convolution
    ends = FRAMES * config.input_dim * dim + 2 * FRAMES * dim * config.output_dim
    return 2 * (config.num_layers * layer + ends)


def speech_to_text_flops(config) -> int:
    """Of `FRAMES` frames, which two convolutions quarter."""
    dim, channels, half, quarter = config.d_model, config.conv_channels, FRAMES // 2, FRAMES // 4
    first, second = config.conv_kernel_sizes
    convolutions = half * channels * first * config.num_features
    convolutions += quarter * 2 * dim * second * channels // 2
    projections, scores = 4 * quarter * dim * dim, 2 * quarter * quarter * dim
    feed_forward = 2 * quarter * dim * config.encoder_ffn_dim
    layers = config.encoder_layers * (projections + scores + feed_forward)
    return 2 * (convolutions + layers)


class TestOperations:
    @pytest.mark.parametrize("bits", [None, 8])
    def test_granite_speech(self, bits):
        model = load_model(TINY, dtype=mx.float32)
        if bits:
            quantize_as_requested(model, {"bits": bits})
        features = mx.zeros((1, FRAMES, 160))
        assert encoder_flops(model, features) == granite_flops(model.config.encoder_config)

    def test_speech_to_text(self):
        model = load_model(TINY_S2T, dtype=mx.float32)
        features = mx.zeros((1, FRAMES, model.config.num_features))
        assert encoder_flops(model, features) == speech_to_text_flops(model.config)
