"""The Conformer: its convolution, and what its CTC head says."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from conftest import DATA, speech_inputs

from mlx_speech.models.granite_speech.encoder import DepthwiseConv, _sum_of_shifts

REFERENCE = json.loads((DATA / "reference" / "tiny_granite_reference.json").read_text())


RECORDINGS = sorted(REFERENCE["files"])


def difference(a: mx.array, b: mx.array) -> float:
    return mx.abs(a.astype(mx.float32) - b.astype(mx.float32)).max().item()


@pytest.mark.parametrize("kernel_size", [1, 4, 15])
def test_depthwise_convolution_is_the_same_on_every_device(kernel_size):
    """The fused sum that a CPU takes against the convolution that a GPU takes."""
    mx.random.seed(0)
    conv = DepthwiseConv(6, kernel_size)
    conv.weight = mx.random.normal(conv.weight.shape)
    conv.bias = mx.random.normal(conv.bias.shape)
    x = mx.random.normal((2, 9, 6))
    left = kernel_size // 2
    padded = mx.pad(x, ((0, 0), (left, kernel_size - 1 - left), (0, 0)))
    expected = mx.conv1d(padded, conv.weight, groups=6) + conv.bias
    assert difference(conv(x), expected) < 1e-5
    assert difference(_sum_of_shifts(padded, conv.weight, conv.bias), expected) < 1e-5


@pytest.mark.parametrize("name", RECORDINGS)
def test_ctc_head(tiny, name):
    """Greedy text of the character head: ids are character codes, 0 is the blank."""
    model, processor = tiny
    inputs = speech_inputs(processor, name)
    ids = mx.argmax(model.encoder(inputs["input_features"]).ctc_logits[0], axis=-1).tolist()
    kept = [i for previous, i in zip([0, *ids], ids, strict=False) if i not in (0, previous)]
    assert "".join(map(chr, kept)).strip() == REFERENCE["files"][name]["ctc"]
