"""The Conformer against the same written in NumPy, and what its CTC head says."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import DATA, speech_inputs
from mlx.utils import tree_flatten, tree_map

from mlx_speech.models.conformer import DepthwiseConv, _sum_of_shifts
from mlx_speech.models.granite_speech.encoder import (
    GraniteSpeechCTCEncoder,
    GraniteSpeechEncoderConfig,
    sanitize_encoder,
)

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


CONTEXT, HEADS, FARTHEST, KERNEL = 4, 2, 6, 5


def encoder(**options) -> GraniteSpeechCTCEncoder:
    """A small one with random weights, those of norms and biases included."""
    sizes = {"input_dim": 6, "hidden_dim": 8, "feedforward_mult": 2, "output_dim": 7}
    sizes |= {"num_layers": 2, "num_heads": HEADS, "conv_kernel_size": KERNEL}
    sizes |= {"context_size": CONTEXT, "max_pos_emb": FARTHEST}
    config = GraniteSpeechEncoderConfig(**(sizes | options))
    made = GraniteSpeechCTCEncoder(config).eval()
    keys = iter(mx.random.split(mx.random.key(5), 200))
    made.update(
        tree_map(lambda p: 0.5 * mx.random.normal(p.shape, key=next(keys)), made.parameters())
    )
    return made


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


class Reference:
    """The encoder in float64, over one recording at a time, frame by frame where that is plain."""

    def __init__(self, made: GraniteSpeechCTCEncoder):
        self.w = {name: np.array(w, np.float64) for name, w in tree_flatten(made.parameters())}
        self.layers = len(made.layers)

    def linear(self, name, x):
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0)

    def norm(self, name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def feed_forward(self, name, x):
        inner = self.linear(f"{name}.up_proj", self.norm(f"{name}.pre_norm", x))
        return self.linear(f"{name}.down_proj", inner * sigmoid(inner))

    def attention(self, name, x):
        """Each frame looks at those of its block, at a distance that has a vector of its own."""
        x = self.norm(f"{name}.pre_norm", x)
        queries = self.linear(f"{name}.to_q", x).reshape(len(x), HEADS, -1)
        keys, values = np.split(self.linear(f"{name}.to_kv", x), 2, axis=-1)
        keys, values = (t.reshape(len(x), HEADS, -1) for t in (keys, values))
        distances = self.w[f"{name}.rel_pos_emb.weight"]
        out = np.zeros_like(queries)
        for i in range(len(x)):
            block = range(i // CONTEXT * CONTEXT, min(len(x), (i // CONTEXT + 1) * CONTEXT))
            for head in range(HEADS):
                near = np.array([keys[j, head] + distances[FARTHEST + i - j] for j in block])
                scores = near @ queries[i, head] / np.sqrt(near.shape[1])
                out[i, head] = softmax(scores) @ values[block.start : block.stop, head]
        return self.linear(f"{name}.to_out", out.reshape(len(x), -1))

    def convolution(self, name, x):
        inner = self.linear(f"{name}.up_conv", self.norm(f"{name}.norm", x))
        value, gate = np.split(inner, 2, axis=-1)
        padded = np.pad(value * sigmoid(gate), ((KERNEL // 2, KERNEL // 2), (0, 0)))
        kernel = self.w[f"{name}.depth_conv.weight"][..., 0]
        mixed = np.array([(padded[t : t + KERNEL] * kernel.T).sum(axis=0) for t in range(len(x))])
        mixed = mixed + self.w[f"{name}.depth_conv.bias"]
        return self.linear(f"{name}.down_conv", mixed * sigmoid(mixed))

    def __call__(self, frames):
        """All states, the embedded input first, the probability of anything but the blank at mid
        depth, and the logits of the CTC head."""
        x, non_blank = self.linear("input_linear", frames), np.ones(len(frames))
        states = [x]
        for number in range(1, self.layers + 1):
            name = f"layers.{number - 1}"
            x = x + self.feed_forward(f"{name}.ff1", x) / 2
            x = x + self.attention(f"{name}.attn", x)
            x = x + self.convolution(f"{name}.conv", x)
            x = x + self.feed_forward(f"{name}.ff2", x) / 2
            x = self.norm(f"{name}.post_norm", x)
            if number == self.layers // 2:
                posteriors = softmax(self.linear("out", x))
                x, non_blank = x + self.linear("out_mid", posteriors), 1 - posteriors[:, 0]
            states.append(x)
        return states, non_blank, self.linear("out", x)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_equal_to_numpy(layers, length):
    made = encoder(num_layers=layers)
    frames = np.random.default_rng(length).normal(size=(2, length, 6))
    found = made(mx.array(frames.astype(np.float32)))
    for row, own in enumerate(frames):
        states, non_blank, logits = Reference(made)(own)
        np.testing.assert_allclose(found.non_blank[row], non_blank, atol=1e-6)
        np.testing.assert_allclose(found.last_hidden_state[row], states[-1], atol=2e-5)
        np.testing.assert_allclose(found.ctc_logits[row], logits, atol=2e-5)


def test_recordings_of_a_batch_are_as_alone():
    """Whatever is in the padding."""
    made, lengths = encoder(), [11, 1, 6]
    frames = np.random.default_rng(0).normal(size=(3, 11, 6)).astype(np.float32)
    output = made(mx.array(frames), mx.array(lengths))
    found = output.last_hidden_state
    for row, (own, length) in enumerate(zip(frames, lengths, strict=True)):
        states, non_blank, _ = Reference(made)(own[:length])
        np.testing.assert_allclose(found[row, :length], states[-1], atol=2e-5)
        np.testing.assert_allclose(output.non_blank[row, :length], non_blank, atol=1e-6)
        assert not found[row, length:].any().item()
        assert not output.non_blank[row, length:].any().item()


def test_states_of_other_blocks_come_first():
    made = encoder(num_layers=3, cat_hidden_layers=[0, 2])
    frames = np.random.default_rng(1).normal(size=(1, 6, 6))
    found = made(mx.array(frames.astype(np.float32))).last_hidden_state[0]
    states, _, _ = Reference(made)(frames[0])
    expected = np.concatenate([states[0], states[2], states[3]], axis=-1)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert made.config.output_size == expected.shape[-1]


@pytest.mark.parametrize("layout", ["torch", "mlx"])
def test_batch_norm_becomes_part_of_the_convolution(layout):
    rng, channels = np.random.default_rng(2), 3
    kernel = rng.normal(size=(channels, 1, KERNEL)).astype(np.float32)
    gain, shift, mean = rng.normal(size=(3, channels)).astype(np.float32)
    variance = np.array([1e-4, 0.5, 2], np.float32)  # little and much beside the epsilon
    stored = {"depth_conv.conv.weight": kernel if layout == "torch" else kernel.swapaxes(1, 2)}
    norm = {"weight": gain, "bias": shift, "running_mean": mean, "running_var": variance}
    stored |= {f"batch_norm.{part}": value for part, value in norm.items()}
    prefix = "encoder.layers.0.conv."
    weights = {prefix + name: mx.array(value) for name, value in stored.items()}
    made = sanitize_encoder(weights, "encoder.")
    assert sorted(made) == [prefix + "depth_conv.bias", prefix + "depth_conv.weight"]
    conv = DepthwiseConv(channels, KERNEL)
    conv.weight, conv.bias = made[prefix + "depth_conv.weight"], made[prefix + "depth_conv.bias"]
    x = rng.normal(size=(9, channels)).astype(np.float32)
    expected = np.stack(
        [np.convolve(x[:, c], kernel[c, 0, ::-1], "same") for c in range(channels)], axis=-1
    )
    expected = (expected - mean) / np.sqrt(variance + 1e-5) * gain + shift
    np.testing.assert_allclose(conv(mx.array(x)[None])[0], expected, atol=1e-5)
    assert sanitize_encoder(made, "encoder.").keys() == made.keys()


def test_dropout_acts_in_training(monkeypatch):
    """In each of its places, six in a block, and only then."""
    x = mx.random.normal((1, 9, 6), key=mx.random.key(1))
    expected = encoder()(x).last_hidden_state
    assert mx.array_equal(encoder(dropout=0.0).train()(x).last_hidden_state, expected).item()
    trained, called = encoder(dropout=0.5).train(), []
    original = nn.Dropout.__call__
    monkeypatch.setattr(nn.Dropout, "__call__", lambda *a: called.append(1) or original(*a))
    assert not mx.allclose(trained(x).last_hidden_state, expected).item()
    assert len(called) == 6 * len(trained.layers)
    assert mx.array_equal(trained.eval()(x).last_hidden_state, expected).item()
