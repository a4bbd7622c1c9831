"""The model against what the reference said, and its parts against the same written in NumPy."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, output_dtypes
from hypothesis import given
from hypothesis import strategies as st
from nar_models import BLANK, CONFIG, ENCODER, PROJECTOR, TEXT, small, tensors

from mlx_speech import CheckpointError, GraniteSpeechNarConfig, GraniteSpeechNarForCTC, InputError
from mlx_speech.layers.attention import is_fused, recorded_shapes
from mlx_speech.layers.ctc import collapsed
from mlx_speech.loading import load_model

WIDTH = ENCODER["input_dim"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(small(tmp_path_factory.mktemp("small") / "model"), dtype=mx.float32)


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "reference" / "nar_golden.npz") as arrays:
        return dict(arrays)


def features(*lengths: int) -> tuple[mx.array, mx.array]:
    """A padded batch, with numbers at the padding, and its lengths."""
    rng = np.random.default_rng(sum(lengths))
    x = rng.normal(0.3, 0.8, (len(lengths), max(lengths), WIDTH)).astype(np.float32)
    return mx.array(x), mx.array(lengths)


class TestReference:
    """See tests/make_nar_reference.py."""

    @pytest.mark.parametrize("length", [23, 47])
    def test_every_stage(self, model, golden, length):
        x = mx.array(golden[f"{length}.input_features"].astype(np.float32))[None]
        output = model(x)
        expected = {name: golden[f"{length}.{name}"] for name in ("encoder", "audio", "logits")}
        states = output.encoder_output.last_hidden_state[0]
        np.testing.assert_allclose(states, expected["encoder"], atol=1e-5)
        np.testing.assert_allclose(output.audio_hidden_states[0], expected["audio"], atol=1e-5)
        draft = golden[f"{length}.draft"].tolist()
        assert len(draft) > 1
        assert output.input_ids[0].tolist() == model.slots(draft)
        np.testing.assert_allclose(output.logits[0], expected["logits"], atol=1e-4)
        assert model.generate(x)[0].tolist() == golden[f"{length}.ids"].tolist()

    def test_there_is_something_to_edit(self, golden):
        assert golden["47.draft"].tolist() != golden["47.ids"].tolist()
        assert len(set(golden["47.ids"].tolist())) > 3


class TestBatch:
    LENGTHS = (47, 11, 75, 3, 30)

    def test_recordings_are_as_alone(self, model):
        """Whatever is in the padding, and however long the others' drafts are."""
        x, lengths = features(*self.LENGTHS)
        output = model(x, lengths)
        for row, length in enumerate(self.LENGTHS):
            alone = model(x[row : row + 1, :length])
            slots = alone.slot_lengths.item()
            assert output.slot_lengths[row].item() == slots
            found = output.input_ids[row].tolist()
            assert found[:slots] == alone.input_ids[0].tolist()
            assert set(found[slots:]) <= {BLANK}
            difference = mx.abs(output.logits[row, :slots] - alone.logits[0])
            assert difference.max().item() < 5e-5  # of up to 12
            assert not output.logits[row, slots:].any().item()
            rows = length // 5
            found = output.audio_hidden_states[row, :rows] - alone.audio_hidden_states[0]
            assert rows == 0 or mx.abs(found).max().item() < 1e-5
        assert len(set(output.slot_lengths.tolist())) > 2

    def test_generated_ids_are_as_alone(self, model):
        x, lengths = features(*self.LENGTHS)
        found = model.generate(x, lengths).tolist()
        alone = [model.generate(x[i : i + 1, :n])[0].tolist() for i, n in enumerate(self.LENGTHS)]
        longest = max(map(len, alone))
        padded = [ids + [TEXT["pad_token_id"]] * (longest - len(ids)) for ids in alone]
        assert found == padded

    def test_the_audio_counts(self, model):
        """Slots look at the audio, both ways at each other, and not at another recording's."""
        audio = [mx.random.normal((n, 32), key=mx.random.key(n)) for n in (9, 4)]
        drafts = [[5, 9, 12], [7]]
        logits = [model.language_model.logits(s) for s in model.edit(audio, drafts)]

        def changed(audio, drafts) -> list[list[bool]]:
            other = [model.language_model.logits(s) for s in model.edit(audio, drafts)]
            return [
                (mx.abs(a - b).max(axis=1) > 1e-4).tolist()
                for a, b in zip(logits, other, strict=True)
            ]

        assert changed([audio[0] + 1, audio[1]], drafts) == [[True] * 8, [False] * 8]
        assert changed(audio, [drafts[0], [8]]) == [[False] * 8, [True] * 8]
        assert changed(audio, [[5, 9, 13], [7]]) == [[True] * 8, [False] * 8]

    def test_where_positions_count(self, model):
        """The same audio and draft one place on say something else."""
        audio = mx.random.normal((6, 32), key=mx.random.key(6))
        (found,) = model.edit([audio], [[5, 9]])
        (moved,) = model.edit([mx.concatenate([audio, mx.zeros((1, 32))])], [[5, 9]])
        assert mx.abs(found - moved).max().item() > 0.01


class TestParts:
    """The projector and the pooling in float64, one frame after the other where that is plain."""

    def test_projector(self, model):
        w = {n: np.array(x, np.float64) for n, x in tensors().items() if n.startswith("projector.")}

        def linear(name, x):
            return x @ w[f"projector.{name}.weight"].T + w[f"projector.{name}.bias"]

        def norm(name, x):
            mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
            x = (x - mean) / np.sqrt(variance + PROJECTOR["layernorm_eps"])
            return x * w[f"projector.{name}.weight"] + w[f"projector.{name}.bias"]

        def attend(name, queries, frames):
            heads = PROJECTOR["num_heads"]
            q, k, v = (
                np.split(linear(f"{name}.{part}_proj", x), heads, axis=-1)
                for part, x in (("q", queries), ("k", frames), ("v", frames))
            )
            out = []
            for head in range(heads):
                scores = q[head] @ k[head].T / np.sqrt(q[head].shape[-1])
                shares = np.exp(scores - scores.max(-1, keepdims=True))
                out.append(shares / shares.sum(-1, keepdims=True) @ v[head])
            return linear(f"{name}.o_proj", np.concatenate(out, axis=-1))

        rng, rows = np.random.default_rng(0), []
        states = rng.normal(size=(37, 3 * 32))
        quarters = np.split(states, 3, axis=-1)
        normed = [norm(f"layer_norms.{i}", quarter) for i, quarter in enumerate(quarters)]
        fused = linear("layer_projector", np.concatenate(normed, axis=-1))
        fused = np.vectorize(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2)(fused)
        fused = np.pad(fused, ((0, -len(fused) % 15), (0, 0)))
        for window in np.split(fused, len(fused) // 15):
            x = w["projector.query"][0] + window.reshape(3, 5, -1).mean(axis=1)
            frames = window + w["projector.window_positions"][0]
            for number in range(PROJECTOR["num_layers"]):
                name = f"qformer.layers.{number}"
                x = x + attend(f"{name}.cross_attention", norm(f"{name}.attn_norm", x), frames)
                inner = linear(f"{name}.mlp.fc1", norm(f"{name}.mlp_norm", x))
                x = x + linear(f"{name}.mlp.fc2", inner / (1 + np.exp(-inner)))
            rows.append(linear("out_linear", norm("out_norm", x)))
        found = model.project(mx.array(states.astype(np.float32))[None])[0]
        expected = np.concatenate(rows)[: 37 // 5] / TEXT["embedding_multiplier"]
        np.testing.assert_allclose(found, expected, atol=1e-5)

    @pytest.mark.parametrize("length", [1, 4, 5, 7, 8])
    def test_labels_of_pooled_frames(self, model, length):
        w = {n: np.array(x, np.float64) for n, x in tensors().items() if ".out_bpe." in n}
        rng = np.random.default_rng(length)
        frames, weights = rng.normal(size=(length, 32)), rng.random(length)
        weights[4:] = [0, 1e-8, 0, 3e-8][: len(weights) - 4]  # hardly anything but blanks
        pooled = [
            (frames[i : i + 4].T * weights[i : i + 4]).sum(1) / max(weights[i : i + 4].sum(), 1e-6)
            for i in range(0, length, 4)
        ]
        expected = np.stack(pooled) @ w["encoder.out_bpe.weight"].T + w["encoder.out_bpe.bias"]
        # the last layer's states are the last of those side by side
        states = np.concatenate([rng.normal(size=(length, 64)), frames], axis=1)
        given = (mx.array(x[None].astype(np.float32)) for x in (states, weights))
        np.testing.assert_allclose(model.bpe_logits(*given)[0], expected, atol=1e-5)

    @pytest.mark.parametrize(
        ("draft", "expected"),
        [
            ([], [0] * 8),
            ([5], [0, 5, 0, 0, 0, 0, 0, 0]),
            ([5, 6, 7], [0, 5, 0, 6, 0, 7, 0, 0]),
            ([5, 5, 6, 7], [0, 5, 0, 5, 0, 6, 0, 7, 0]),
        ],
    )
    def test_slots(self, model, draft, expected):
        assert model.slots(draft) == expected

    @given(st.lists(st.integers(1, 60), max_size=12))
    def test_slots_that_stay_as_they_are_are_the_draft(self, model, draft):
        """Tokens that are said twice included."""
        slots = model.slots(draft)
        assert collapsed(slots, [0.0] * len(slots), BLANK)[0] == draft

    def test_self_conditioning_where_it_is_told(self, tmp_path):
        """Not always at mid depth."""
        found = []
        for layer in (2, 3):
            encoder = {**ENCODER, "self_conditioning_layer": layer}
            made = load_model(small(tmp_path / str(layer), encoder_config=encoder))
            output = made.encoder(features(12)[0], output_hidden_states=True)
            found.append([output.non_blank, *output.hidden_states])
        differs = [mx.abs(a - b).max().item() > 1e-3 for a, b in zip(*found, strict=True)]
        assert differs == [True, False, False, True, True, True]


class TestStream:
    @pytest.mark.parametrize("step", [7, 10, 33])
    def test_parts_are_the_whole(self, model, step):
        x, _ = features(53)
        whole = model.encoder(x)
        stream, parts = model.encode_stream(), []
        for start in range(0, 53, step):
            parts.append(stream.push(x[0, start : start + step], last=start + step >= 53))
        for name in ("last_hidden_state", "non_blank", "ctc_logits"):
            found = mx.concatenate([part[name] for part in parts], axis=1)
            assert mx.abs(found - whole[name]).max().item() < 1e-5


def test_half_precision_stays_so(tmp_path, monkeypatch):
    """Layer by layer, the projector's norms where they are not stored included."""
    made = load_model(small(tmp_path / "model", "transformers"), dtype=mx.bfloat16)
    outputs = output_dtypes(made, monkeypatch)
    output = made(features(33)[0])
    assert output.logits.dtype == output.audio_hidden_states.dtype == mx.bfloat16
    assert {dtype for _, dtype in outputs} == {mx.bfloat16}


def test_released_shapes_are_fused():
    """With as few layers as there can be, and nothing computed."""
    released = {
        "encoder_config": {"num_layers": 2, "bpe_output_dim": 100},
        "text_config": {"hidden_size": 2048, "intermediate_size": 4096, "num_hidden_layers": 1},
        "encoder_layer_indices": [1, -1],
        "projector_config": {"num_layers": 1},
    }
    released["text_config"] |= {"num_attention_heads": 16, "num_key_value_heads": 4}
    released["text_config"] |= {"vocab_size": 100}
    made = GraniteSpeechNarForCTC(GraniteSpeechNarConfig(**released)).eval()
    with recorded_shapes() as shapes:
        encoded = made.encoder(mx.zeros((1, 1247, 160))).last_hidden_state
        audio = made.project(encoded)[0]
        made.edit([audio, audio[:20]], [list(range(3, 90)), []])
    assert [is_fused(*shape) for shape in shapes] == [True] * 4
    assert {(s.heads, s.kv_heads, s.head_dim) for s in shapes} == {
        *((8, 8, 128), (32, 32, 64), (16, 4, 128))
    }


def test_what_is_no_input(model):
    with pytest.raises(InputError, match="input_features are"):
        model(mx.zeros((1, 20, WIDTH + 1)))
    with pytest.raises(InputError, match=r"feature_lengths is \[21\], but must be within 1 and 20"):
        model.generate(mx.zeros((1, 20, WIDTH)), mx.array([21]))
    with pytest.raises(InputError, match="hidden_states are"):
        model.project(mx.zeros((20, 96)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_layer_indices": [2, 1, -1]}, "encoder_layer_indices is .2, 1, -1., but must be"),
        ({"encoder_layer_indices": [-1, 1, 2]}, "in ascending order that end with the last"),
        ({"encoder_layer_indices": [1, 1, -1]}, "layers of 0 to 4 in ascending order"),
        ({"encoder_layer_indices": [1, 2]}, "that end with the last"),
        ({"encoder_layer_indices": [1, 2, 5]}, "layers of 0 to 4"),
        ({"encoder_layer_indices": []}, "that end with the last"),
        ({"encoder_layer_indices": [1, -1]}, r"projector_config.num_encoder_layers is 3, but must"),
        ({"blank_token_id": 61}, "blank_token_id is 61, but must be one of 61 tokens"),
        (
            {"encoder_config": {**ENCODER, "bpe_output_dim": 63}},
            "bpe_output_dim is 63, but must be",
        ),
        (
            {"encoder_config": {**ENCODER, "self_conditioning_layer": 5}},
            "self_conditioning_layer is 5, but must be one of the 4 layers",
        ),
        ({"projector_config": {**PROJECTOR, "hidden_act": "gelu"}}, "hidden_act is 'gelu'"),
        (
            {"encoder_config": {**ENCODER, "initializer_range": "x"}},
            "initializer_range is 'x', but",
        ),
        (
            {"projector_config": {**PROJECTOR, "initializer_range": 2}},
            "initializer_range is 2, but",
        ),
        (
            {"min_edit_sequence_length": 10**9},
            "min_edit_sequence_length is 1000000000, but must be",
        ),
        ({"projector_config": {**PROJECTOR, "encoder_dim": 33}}, "encoder_dim is 33, but must be"),
    ],
)
def test_configurations_that_make_no_sense(changes, message):
    with pytest.raises(CheckpointError, match=message):
        GraniteSpeechNarConfig.from_dict({**CONFIG, **changes})


def test_what_a_configuration_leaves_open():
    config = GraniteSpeechNarConfig()
    assert config.encoder_layer_indices == [4, 8, 12, -1]
    assert config.encoder_config.cat_hidden_layers == [4, 8, 12]
    assert config.encoder_config.self_conditioning_layer == 8
    assert config.encoder_config.bpe_output_dim == config.text_config.vocab_size
    assert config.blank_token_id == config.text_config.eos_token_id
    assert config.projector_config.input_size == 4 * 1024
    assert config.min_edit_sequence_length == 1
    negative = GraniteSpeechNarConfig(encoder_layer_indices=[0, -9, 16])
    assert negative.encoder_config.cat_hidden_layers == [0, 8]
    assert negative.min_edit_sequence_length == 8
