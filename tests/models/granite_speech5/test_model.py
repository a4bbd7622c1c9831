"""Checkpoints of TurboCTC, strictly loaded and saved; its options, and its loss."""

from __future__ import annotations

import itertools
import json
import re

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import turboctc
from mlx.utils import tree_flatten

from mlx_speech import (
    AutoModel,
    AutoModelForCTC,
    CheckpointError,
    GraniteSpeech5CTCConfig,
    GraniteSpeech5EncoderConfig,
    GraniteSpeech5ForCTC,
    InputError,
    UnsupportedOptionError,
    load,
)
from mlx_speech.models.loss import ctc_loss


def features(frames: int = 50) -> mx.array:
    return mx.array(turboctc.features(frames))[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return turboctc.write(tmp_path_factory.mktemp("turboctc"))


class TestLoading:
    def test_a_folder_as_the_repository_is(self, folder):
        """BatchNorm in float32 beside bfloat16, no tensor of the head, files of an older class."""
        names = mx.load(str(folder / "model.safetensors"))
        assert not any(name.startswith("ctc_head") for name in names)
        model, processor = load(folder)
        assert isinstance(model, GraniteSpeech5ForCTC)
        assert (processor.feature_extractor.num_mel_bins, processor.sampling_rate) == (80, 16000)
        # a block has 33 tensors and a counter; a bias takes the place of its BatchNorm's four
        assert len(tree_flatten(model.parameters())) == 4 * 30 + 6
        assert type(AutoModelForCTC.from_pretrained(folder)) is type(model)
        assert type(AutoModel.from_pretrained(folder)) is type(model)
        assert model.can_generate()

    def test_released_numbers_of_tensors(self):
        encoder = {**turboctc.ENCODER, "num_hidden_layers": 16}
        names = turboctc.shapes(encoder)
        kinds = [
            "counter" if n.endswith("_tracked") else "running" if ".running_" in n else "weight"
            for n in names
        ]
        assert [kinds.count(kind) for kind in ("weight", "running", "counter")] == [502, 32, 16]

    @pytest.mark.parametrize(
        ("name", "array", "told"),
        [
            ("encoder.layers.3.self_attn.q_proj.weight", None, "self_attn.q_proj.weight"),
            ("encoder.layers.2.conv.norm.running_var", None, "conv.norm.running_var"),
            ("encoder.layers.2.conv.norm.running_var", np.ones(3), "conv.norm.running_var (3,"),
            ("encoder.layers.0.conv.depthwise_conv.weight", None, "depthwise_conv.weight"),
            ("encoder.layers.0.conv.depthwise_conv.weight", np.ones((32, 7)), "depthwise_conv"),
            ("encoder.layers.1.self_attn.rel_pos_emb.weight", np.ones((3, 8)), "rel_pos_emb"),
            ("encoder.out_mid.weight", np.ones((16, 299)), "encoder.out_mid.weight"),
            ("encoder.out.weight", None, "encoder.out.weight"),
            ("encoder.layers.4.norm_out.weight", np.ones(16), "encoder.layers.4.norm_out.weight"),
            ("decoder.weight", np.ones(16), "decoder.weight"),
        ],
    )
    def test_damage_is_named(self, tmp_path, name, array, told):
        values = turboctc.tensors(turboctc.ENCODER)
        if array is None:
            del values[name]
        else:
            values[name] = array.astype(np.float32)
        with pytest.raises(CheckpointError, match=re.escape(told)) as caught:
            load(turboctc.write(tmp_path, values))
        assert "\n" not in str(caught.value)

    def test_layouts_of_other_programs(self, folder, tmp_path):
        """Kernels as MLX has them, and the head stored though it is tied."""
        values = turboctc.tensors(turboctc.ENCODER)
        expected = load(turboctc.write(tmp_path, values))[0](features()).logits
        for name in [n for n in values if n.endswith("depthwise_conv.weight")]:
            values[name] = values[name].swapaxes(1, 2)
        for part in ("weight", "bias"):
            values[f"ctc_head.{part}"] = values[f"encoder.out.{part}"]
        found = load(turboctc.write(tmp_path, values))[0]
        assert "ctc_head" not in found
        assert mx.array_equal(found(features()).logits, expected)

    def test_a_head_of_its_own(self, tmp_path):
        values = turboctc.tensors(turboctc.ENCODER)
        values["ctc_head.weight"] = values["encoder.out.weight"] + 1
        values["ctc_head.bias"] = values["encoder.out.bias"]
        turboctc.write(tmp_path, values, mx.float32)
        data = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**data, "tie_word_embeddings": False}))
        model = load(tmp_path)[0]
        hidden = model.encoder(features()).last_hidden_state
        expected = hidden @ model.ctc_head.weight.T + model.ctc_head.bias
        assert mx.abs(model(features()).logits - expected).max().item() < 1e-4
        assert mx.abs(model(features()).logits - model.encoder.out(hidden)).max().item() > 0.1

    def test_saved_and_read_again(self, folder, tmp_path):
        model, processor = load(folder)
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        names = mx.load(str(tmp_path / "model.safetensors"))
        assert {n: v.shape for n, v in names.items()} == turboctc.shapes(turboctc.ENCODER)
        again, same = load(tmp_path)
        assert mx.abs(again(features()).logits - model(features()).logits).max().item() < 1e-5
        assert same.feature_extractor == processor.feature_extractor

    @pytest.mark.parametrize("mixed", ["num_mel_bins", "pad_token"])
    def test_the_processor_of_another_model(self, folder, tmp_path, mixed):
        turboctc.write(tmp_path)
        if mixed == "num_mel_bins":
            features = {"feature_extractor": {**turboctc.FEATURES, "num_mel_bins": 40}}
            (tmp_path / "processor_config.json").write_text(json.dumps(features))
        else:
            settings = {"tokenizer_class": "ParakeetTokenizer", "pad_token": "e"}
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        with pytest.raises(CheckpointError, match=f"{mixed}.* for the processor, but"):
            load(tmp_path)


class TestConfig:
    def test_defaults_are_the_released_ones(self):
        config = GraniteSpeech5CTCConfig()
        encoder = config.encoder_config
        assert (config.vocab_size, config.pad_token_id, encoder.num_hidden_layers) == (16384, 0, 16)
        assert (encoder.hidden_size, encoder.head_dim, encoder.intermediate_size) == (
            1024,
            128,
            4096,
        )
        assert (encoder.context_size, encoder.conv_kernel_size) == (128, 7)
        assert (encoder.subsample_layers, encoder.input_size, encoder.subsampling) == (
            [0, 1],
            320,
            4,
        )

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("context_size", 600),
            ("conv_kernel_size", 6),
            ("subsample_layers", [0, 16]),
            ("subsample_layers", [1, 1]),
            ("num_key_value_heads", 4),
            ("hidden_act", "tanhh"),
            ("num_attention_heads", 3),
        ],
    )
    def test_what_makes_no_sense(self, name, value):
        with pytest.raises(InputError, match=name if name != "num_attention_heads" else "multiple"):
            GraniteSpeech5EncoderConfig(**{name: value})

    def test_deviation_of_new_weights(self):
        """The encoder's, whatever else a file says, as in transformers."""
        data = {"initializer_range": 0.5, "encoder_config": {"initializer_range": 0.25}}
        config = GraniteSpeech5CTCConfig.from_dict(data)
        assert config.initializer_range == config.to_dict()["initializer_range"] == 0.25
        config.update({"initializer_range": 0.1})
        assert config.initializer_range == 0.1

    def test_parts_that_do_not_fit(self):
        with pytest.raises(InputError, match="vocab_size"):
            GraniteSpeech5CTCConfig(vocab_size=9)
        with pytest.raises(InputError, match="pad_token_id"):
            GraniteSpeech5CTCConfig(pad_token_id=16384)
        with pytest.raises(UnsupportedOptionError, match="encoder_config"):
            GraniteSpeech5CTCConfig(encoder_config=GraniteSpeech5CTCConfig())


class TestGenerate:
    def test_labels_are_not_collapsed(self, folder):
        model = load(folder)[0]
        output = model.generate(features(200), return_dict_in_generate=True)
        assert mx.array_equal(output.sequences, mx.argmax(output.logits, axis=-1))
        assert output.sequences.shape == (1, 50)
        assert output.hidden_states is None

    @pytest.mark.parametrize("option", ["num_beams", "max_new_tokens", "temperature"])
    def test_options_of_decoders_are_refused(self, folder, option):
        with pytest.raises(UnsupportedOptionError, match=option):
            load(folder)[0].generate(features(), **{option: 2})


class TestLoss:
    def by_hand(self, logits, labels, frames):
        """Of all paths: each that collapses to the labels."""
        logits = np.array(logits, np.float64)[:frames]
        probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        total = 0.0
        for path in itertools.product(range(logits.shape[1]), repeat=frames):
            said = [label for label, _ in itertools.groupby(path) if label != 0]
            if said == labels:
                total += np.prod(probabilities[np.arange(frames), path])
        return -np.log(total) if total else np.inf

    ROWS = ([1, 1], [2], [], [1, 2, 1, 2], [2, 2, 2])
    FRAMES = (4, 1, 3, 4, 4)

    @pytest.fixture
    def case(self):
        logits = mx.random.normal((5, 4, 3), key=mx.random.key(0))
        # what does not count stands anywhere
        labels = [[-100, 1, 0, 1], [2, 0, 0, 0], [-100] * 4, [1, 2, 1, 2], [2, -100, 2, 2]]
        return logits, mx.array(labels), mx.array(self.FRAMES)

    def test_all_paths(self, case):
        expected = [self.by_hand(*row) for row in zip(case[0], self.ROWS, self.FRAMES, strict=True)]
        assert expected[-1] == np.inf
        losses = ctc_loss(*case, blank=0, reduction="none")
        assert losses.tolist() == pytest.approx(expected, rel=1e-5)
        finite = [0.0 if loss == np.inf else loss for loss in expected]
        losses = ctc_loss(*case, blank=0, reduction="none", zero_infinity=True)
        assert losses.tolist() == pytest.approx(finite, rel=1e-5)
        total = ctc_loss(*case, blank=0, reduction="sum", zero_infinity=True).item()
        assert total == pytest.approx(sum(finite), rel=1e-5)
        means = [loss / max(1, len(row)) for loss, row in zip(finite, self.ROWS, strict=True)]
        mean = ctc_loss(*case, blank=0, zero_infinity=True).item()
        assert mean == pytest.approx(np.mean(means), rel=1e-5)

    def test_its_gradient_is_that_of_differences(self, case):
        logits, *others = case

        def loss(x):
            return ctc_loss(x, *others, blank=0, zero_infinity=True)

        gradient = mx.grad(loss)(logits)
        assert mx.isfinite(gradient).all()
        for place in ((0, 1, 1), (1, 0, 2), (2, 2, 0), (3, 3, 1)):
            step = mx.zeros(logits.shape)
            step[place] = 1e-2
            slope = (loss(logits + step) - loss(logits - step)).item() / 2e-2
            assert gradient[place].item() == pytest.approx(slope, abs=1e-3)
        # beyond a recording, and of what is too short for its labels, there is none
        assert not gradient[1, 1:].any()
        assert not gradient[4].any()

    def test_of_the_model(self, folder):
        model = load(folder)[0]
        mask = mx.arange(50) < mx.array([50, 30])[:, None]
        x, labels = mx.concatenate([features(), features()]), mx.array([[5, 6, 6], [7, 0, -100]])
        output = model(x, mask, labels)
        rows = [
            model(x[i : i + 1, :n], labels=labels[i : i + 1]).loss for i, n in ((0, 50), (1, 30))
        ]
        assert output.loss.item() == pytest.approx(sum(r.item() for r in rows) / 2, rel=1e-4)
        loss, _ = nn.value_and_grad(model, lambda m: m(x, mask, labels).loss)(model)
        assert loss.item() == pytest.approx(output.loss.item(), rel=1e-5)

    @pytest.mark.parametrize("labels", [[[300]], [[-1]], [[1], [2]]])
    def test_labels_that_are_none(self, folder, labels):
        with pytest.raises(InputError, match="labels"):
            load(folder)[0](features(), labels=mx.array(labels))
