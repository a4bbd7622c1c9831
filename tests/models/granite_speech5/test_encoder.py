"""The encoder and its head against golden arrays, alone and in batches, whole and part by part."""

from __future__ import annotations

import gc

import mlx.core as mx
import numpy as np
import pytest
import turboctc
from conftest import DATA, output_dtypes
from mlx.utils import tree_map

from mlx_speech import (
    GraniteSpeech5CTCConfig,
    GraniteSpeech5ForCTC,
    InputError,
    UnsupportedOptionError,
)
from mlx_speech.models.conformer import DepthwiseConv, FrameMask, _sum_of_shifts
from mlx_speech.models.granite_speech5.encoder import Attention

GOLDEN = dict(np.load(DATA / "reference" / "turboctc.npz"))
LENGTHS = [int(name.split()[1]) for name in GOLDEN if name.startswith("logits")]
WIDTH = 4 * turboctc.SMALL["num_mel_bins"]


def made(values=None, dtype=mx.float32, **changes) -> GraniteSpeech5ForCTC:
    """A model with the golden arrays' weights, where nothing is changed."""
    data = turboctc.config(**{**turboctc.SMALL, **changes})
    model = GraniteSpeech5ForCTC(GraniteSpeech5CTCConfig.from_dict(data)).eval()
    drawn = values or turboctc.tensors(data["encoder_config"])
    stored = {n: mx.array(v) for n, v in drawn.items() if not n.endswith("_tracked")}
    model.load_weights(list(model.sanitize(stored, model.config).items()))
    model.update(tree_map(lambda w: w.astype(dtype), model.parameters()))
    return model


@pytest.fixture(scope="module")
def model() -> GraniteSpeech5ForCTC:
    return made()


def features(frames: int, seed: int = 0) -> mx.array:
    return mx.array(turboctc.features(frames, WIDTH, seed))


def gap(a: mx.array, b: mx.array) -> float:
    assert a.shape == b.shape
    return mx.abs(a - b).max().item() if a.size else 0.0


def in_parts(model, x: mx.array, size: int) -> mx.array:
    """Logits of a recording that comes in parts of a size."""
    stream = model.encode_stream()
    starts = range(0, max(1, len(x)), size)
    parts = [stream.push(x[i : i + size], last=i == starts[-1]) for i in starts]
    return model.logits(mx.concatenate(parts, axis=1))


@pytest.mark.parametrize("length", LENGTHS)
def test_golden_logits(model, length):
    logits = model(features(length)[None]).logits
    expected = GOLDEN[f"logits {length}"]
    assert 1 < np.abs(expected).max() < 30
    assert gap(logits[0], mx.array(expected)) < 1e-4
    (ids,) = model.generate(features(length)[None]).tolist()
    assert ids == expected.argmax(-1).tolist()


@pytest.mark.parametrize("length", [1, 2, 3])
def test_less_than_a_frame_is_nothing(model, length):
    assert model(features(length)[None]).logits.shape == (1, 0, 30)
    assert model.generate(features(length)[None]).shape == (1, 0)
    assert in_parts(model, features(length), 2).shape == (1, 0, 30)


class TestBatch:
    LENGTHS = (129, 1, 5, 33, 64, 7)

    def batch(self) -> tuple[mx.array, mx.array]:
        """Recordings of different lengths, with anything at all after the shorter ones."""
        longest = max(self.LENGTHS)
        rows = [mx.concatenate([features(n, 1), 9 + features(longest, 2)]) for n in self.LENGTHS]
        mask = mx.arange(longest) < mx.array(self.LENGTHS)[:, None]
        return mx.stack([row[:longest] for row in rows]), mask

    def test_each_row_is_what_it_is_alone(self, model):
        """Also one without any frame of its own, and blocks without a single key."""
        x, mask = self.batch()
        logits, ids = model(x, mask).logits, model.generate(x, mask)
        assert mx.isfinite(logits).all()
        for row, length in enumerate(self.LENGTHS):
            alone = x[row : row + 1, :length]
            assert gap(logits[row, : length // 4], model(alone).logits[0]) < 1e-5
            assert ids[row, : length // 4].tolist() == model.generate(alone)[0].tolist()
            assert not ids[row, length // 4 :].any()

    def test_padding_is_finite_in_half_precision(self):
        """Where scores are far below zero, with nothing but padding to look at: behind a block that
        halves the frames, an attention block has such frames and real ones."""
        model = made(dtype=mx.float16)
        for layer in model.encoder.layers:
            attention = layer.self_attn
            attention.k_proj.weight = attention.q_proj.weight
            attention.q_proj.weight = -60 * attention.q_proj.weight
        rows = [features(9), features(90, seed=1)]
        padded = mx.stack([mx.pad(row, [(0, 90 - len(row)), (0, 0)]) for row in rows])
        mask = mx.arange(90) < mx.array([[9], [90]])
        logits = model(padded, mask).logits
        alone = model(rows[0][None]).logits
        assert gap(logits[:1, : alone.shape[1]], alone) < 0.05
        assert mx.isfinite(logits).all()

    def test_the_mask_comes_out_at_the_encoders_rate(self, model):
        x, mask = self.batch()
        out = model.encoder(x, mask).attention_mask
        assert out.sum(axis=1).tolist() == [length // 4 for length in self.LENGTHS]
        assert model.encoder(x).attention_mask.shape == (len(self.LENGTHS), 32)

    def test_no_padding_is_no_mask(self, model):
        x = mx.stack([features(40), features(40, 1)])
        assert mx.array_equal(model(x, mx.ones((2, 40))).logits, model(x).logits)

    def test_padding_on_the_left_is_refused(self, model):
        with pytest.raises(InputError, match="ones and then zeros"):
            model(features(4)[None], mx.array([[0, 1, 1, 1]]))

    @pytest.mark.parametrize("shape", [(1, 5), (2, 4), (4,)])
    def test_another_shape_is_refused(self, model, shape):
        with pytest.raises(InputError, match="attention_mask"):
            model(features(4)[None], mx.ones(shape))


class TestStream:
    @pytest.mark.parametrize("size", [1, 3, 8, 13, 1000])
    def test_parts_of_any_size_give_what_one_call_gives(self, model, size):
        for length in (1, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 34, 63, 64, 65, 66, 67, 128, 203):
            x = features(length)
            assert gap(in_parts(model, x, size), model(x[None]).logits) < 1e-5

    @pytest.mark.parametrize("kernel_size", [1, 3, 15, 31])
    @pytest.mark.parametrize("layers", [[], [0], [1, 2], [3, 0, 1]])
    def test_any_kernel_and_subsampling(self, kernel_size, layers):
        """31 reaches beyond the neighbouring attention block."""
        model = made(conv_kernel_size=kernel_size, subsample_layers=layers)
        for length in (5, 24, 25, 70, 99):
            x = features(length)
            for size in (1, 8, 20):
                assert gap(in_parts(model, x, size), model(x[None]).logits) < 1e-5

    def test_attention_blocks_of_an_odd_size(self):
        model = made(context_size=7)
        for length in (27, 28, 29, 57, 112, 200):
            x = features(length)
            assert gap(in_parts(model, x, 5), model(x[None]).logits) < 1e-5

    def test_no_frames_at_all(self, model):
        assert model.encode_stream().push(features(4)[:0], last=True).shape == (1, 0, 16)

    def test_a_recording_ends_once(self, model):
        stream = model.encode_stream()
        stream.push(features(9), last=True)
        with pytest.raises(ValueError, match="has ended"):
            stream.push(features(9))

    def test_memory_does_not_grow(self):
        """Keeping one block's result would add a fifth."""
        model = made(dtype=mx.bfloat16, hidden_size=32, context_size=64, max_position_embeddings=64)

        def peak(minutes: int) -> int:
            gc.collect()
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            stream = model.encode_stream()
            for _ in range(2 * minutes):
                stream.push(mx.random.normal((1500, WIDTH)))
            assert mx.get_active_memory() - before < 200_000
            return mx.get_peak_memory() - before

        peak(1)
        assert peak(10) <= 1.12 * peak(2)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 4, 7])
def test_depthwise_convolution_with_a_stride(kernel_size, stride):
    """The fused sum that a CPU takes against the convolution that a GPU takes."""
    conv = DepthwiseConv(6, kernel_size, stride)
    conv.weight, conv.bias = mx.random.normal(conv.weight.shape), mx.random.normal((6,))
    for length in (6, 7, 8, 9):
        x = mx.random.normal((2, length, 6))
        padded = mx.pad(x, [(0, 0), conv.halo, (0, 0)])
        expected = mx.conv1d(padded, conv.weight, stride=stride, groups=6) + conv.bias
        expected = expected[:, : length // stride]
        assert gap(conv(x), expected) < 1e-5
        own = _sum_of_shifts(padded, conv.weight, conv.bias, stride)
        assert gap(own[:, : length // stride], expected) < 1e-5


def test_posteriors_of_the_middle_are_heard(model):
    """Also in a stream, though there they are those of other frames at a time."""
    x, before = features(50), model(features(50)[None]).logits
    values = turboctc.tensors(turboctc.config(**turboctc.SMALL)["encoder_config"])
    values["encoder.out_mid.weight"] *= 3
    changed = made(values)
    assert gap(changed(x[None]).logits, before) > 1e-2
    assert gap(changed(x[None]).logits, in_parts(changed, x, 9)) < 1e-5


def test_attention_takes_no_square_of_the_length(model):
    """A block looks at itself alone: what is far away changes nothing, whatever the length."""
    attention = Attention(model.config.encoder_config)
    seen = []
    attention.relative_bias = lambda queries: (
        seen.append(queries.shape) or mx.zeros((*queries.shape[:3], queries.shape[2]))
    )
    attention(mx.random.normal((1, 803, 16)), FrameMask(803, 8, None))
    assert seen == [(101, 2, 8, 8)]


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_stays_half_precision(monkeypatch, dtype):
    """One stray float32 array would promote everything behind it."""
    model, exact = made(dtype=dtype), made()
    outputs = output_dtypes(model, monkeypatch)
    logits = model(features(50)[None]).logits
    assert {"GraniteSpeech5EncoderBlock", "ConvModule"} <= {name for name, _ in outputs}
    assert {found for _, found in outputs} == {logits.dtype} == {dtype}
    assert in_parts(model, features(50), 20).dtype == dtype
    assert gap(logits.astype(mx.float32), exact(features(50)[None]).logits) < 0.5


def test_hidden_states_on_request(model):
    x = features(50)[None]
    output = model(x, output_hidden_states=True)
    assert [h.shape[1] for h in output.hidden_states] == [50, 25, 12, 12, 12]
    assert mx.array_equal(model.logits(output.hidden_states[-1]), output.logits)
    assert model(x).hidden_states is None
    with pytest.raises(UnsupportedOptionError, match="output_attentions"):
        model(x, output_attentions=True)


@pytest.mark.parametrize("shape", [(50, WIDTH), (1, 50, WIDTH + 1), (1, 0, WIDTH)])
def test_other_features_are_refused(model, shape):
    with pytest.raises(InputError, match="input_features"):
        model(mx.zeros(shape))
