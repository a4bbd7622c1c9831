"""TurboCTC against transformers: features, labels, loss, texts and files, float32.

Tolerances are absolute: 1e-4 on logits of size 1 to 30 and on features of the same size.
"""

from __future__ import annotations

import json
import random

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
import turboctc
from transformers import GraniteSpeech5CTCConfig as ReferenceConfig
from transformers import GraniteSpeech5FeatureExtractor as ReferenceExtractor
from transformers import GraniteSpeech5ForCTC as ReferenceModel
from transformers import GraniteSpeech5Processor as ReferenceProcessor

from mlx_speech import (
    AutoTokenizer,
    GraniteSpeech5FeatureExtractor,
    GraniteSpeech5ForCTC,
    GraniteSpeech5Processor,
    ParakeetTokenizer,
)

from .random_models import Pair, assert_close, assert_logits_match, call, randomize, tensor

LENGTHS = (4, 5, 7, 16, 17, 31, 32, 33, 50, 63, 64, 65, 129, 300)
SMALL = {**turboctc.ENCODER, "vocab_size": 60, "num_mel_bins": 10}
#: what differs from `SMALL`
CASES = {
    "as released": {},
    "one block": {"num_hidden_layers": 1, "subsample_layers": [0]},
    "no subsampling": {"num_hidden_layers": 2, "subsample_layers": []},
    "late subsampling, no biases": {"subsample_layers": [3, 1], "attention_bias": False},
    "wide heads": {"head_dim": 12, "conv_kernel_size": 15, "conv_expansion_factor": 1},
    "odd blocks": {"context_size": 7, "num_hidden_layers": 5, "hidden_act": "gelu"},
}
WIDTH = 4 * SMALL["num_mel_bins"]


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory):
    pairs: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in pairs:
            folder = tmp_path_factory.mktemp("turboctc")
            encoder = {**SMALL, **CASES[name]}
            config = ReferenceConfig(vocab_size=SMALL["vocab_size"], encoder_config=encoder)
            reference = ReferenceModel(config).eval()
            randomize(reference, seed=len(pairs))
            reference.save_pretrained(folder)
            pairs[name] = Pair.load(reference, folder)
        return pairs[name]

    return get


def batch(*lengths: int) -> tuple[np.ndarray, np.ndarray]:
    """Recordings with anything at all after the shorter ones, and their mask."""
    longest = max(lengths)
    x = np.stack([turboctc.features(longest, WIDTH, seed=n) for n in range(len(lengths))])
    return x, (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int64)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", LENGTHS)
def test_logits_and_labels(pair_of, name, length):
    pair = pair_of(name)
    x = turboctc.features(length, WIDTH)[None]
    ours, reference = call(pair, x)
    assert_logits_match(ours.logits, reference.logits)
    ids = pair.reference.generate(tensor(x)).tolist()
    assert pair.ours.generate(mx.array(x)).tolist() == ids


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("lengths", [(300, 7, 129), (50, 64, 33), (17, 17, 16)])
def test_batches(pair_of, name, lengths):
    pair = pair_of(name)
    x, mask = batch(*lengths)
    ours, reference = call(pair, x, attention_mask=mask)
    factor = pair.ours.config.encoder_config.subsampling
    for row, length in enumerate(lengths):
        end = length // factor
        assert_logits_match(ours.logits[row, :end], reference.logits[row, :end])
    ids = pair.reference.generate(tensor(x), attention_mask=tensor(mask))
    assert pair.ours.generate(mx.array(x), mx.array(mask)).tolist() == ids.tolist()
    encoded = pair.reference.encoder(tensor(x), attention_mask=tensor(mask)).attention_mask
    found = pair.ours.encoder(mx.array(x), mx.array(mask)).attention_mask
    assert found.tolist() == encoded.tolist()


@pytest.mark.parametrize("name", CASES)
def test_hidden_states(pair_of, name):
    ours, reference = call(pair_of(name), turboctc.features(50, WIDTH)[None])
    assert ours.hidden_states is None
    x = turboctc.features(50, WIDTH)[None]
    ours, reference = call(pair_of(name), x, output_hidden_states=True)
    for found, expected in zip(ours.hidden_states, reference.hidden_states, strict=True):
        assert_close(found, expected, 1e-4)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("zero_infinity", [True, False])
def test_loss_and_its_gradient(pair_of, reduction, zero_infinity):
    pair = pair_of("as released")
    for model in (pair.ours, pair.reference):
        model.config.ctc_loss_reduction = reduction
        model.config.ctc_zero_infinity = zero_infinity
    x, mask = batch(129, 300, 64, 7)
    labels = np.array([[5, 5, 6, 0], [1, -100, 2, -100], [0, 0, 0, 0], [9, 3, 3, 3]])
    ours, reference = call(pair, x, attention_mask=mask, labels=labels)
    assert np.isinf(np.array(ours.loss)).any() == (not zero_infinity)
    assert np.array(ours.loss) == pytest.approx(reference.loss.numpy(), rel=1e-5)


def test_transformers_reads_what_is_saved(pair_of, tmp_path):
    pair = pair_of("as released")
    pair.ours.save_pretrained(tmp_path)
    again, told = ReferenceModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    x = tensor(turboctc.features(50, WIDTH)[None])
    with torch.no_grad():
        gap = again.eval()(x).logits - pair.reference(x).logits
    assert gap.abs().max() < 1e-4


@pytest.mark.parametrize(
    "options",
    [{}, {"num_mel_bins": 20, "delta_win_length": 7, "logmel_floor_db": 1.0}, {"hop_length": 100}],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
def test_features(options):
    theirs, ours = ReferenceExtractor(**options), GraniteSpeech5FeatureExtractor(**options)
    sizes = (257, 319, 320, 321, 479, 480, 481, 639, 640, 641, 1599, 1600, 1601, 4801, 16160, 33333)
    for size in sizes:
        wave = turboctc.waveform(size)
        reference = theirs(wave, sampling_rate=16000, return_tensors="pt")
        found = ours(wave)
        assert_close(found.input_features, reference["input_features"], 1e-4)
        assert found.attention_mask.tolist() == reference["attention_mask"].tolist()


@pytest.fixture(params=turboctc.TOKENIZERS)
def tokenizer_folder(request, tmp_path):
    turboctc.write_tokenizer(tmp_path, request.param)
    return tmp_path


def test_texts_of_labels(tokenizer_folder):
    """Random labels: runs, blanks, special tokens, parts of characters."""
    theirs = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    ours = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert (type(theirs).__name__, type(ours)) == ("ParakeetTokenizer", ParakeetTokenizer)
    assert ours.pad_token_id == theirs.pad_token_id == 0
    drawn = random.Random(1)
    rows = []
    for _ in range(400):
        row = [drawn.choice([0, drawn.randrange(len(ours))]) for _ in range(drawn.randrange(12))]
        rows.append([label for label in row for _ in range(drawn.randrange(1, 3))])
    for skip in (False, True):
        for grouped in (False, True):
            options = {"skip_special_tokens": skip, "group_tokens": grouped}
            expected = [theirs.decode(row, **options) for row in rows]
            assert [ours.decode(row, **options) for row in rows] == expected
            assert ours.batch_decode(rows, **options) == expected
    for text in turboctc.SENTENCES:
        assert ours(text, return_tensors=None)["input_ids"] == theirs(text)["input_ids"]


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
def test_processors(tokenizer_folder, tmp_path):
    """Each reads what the other one wrote; recordings and texts are the same inputs."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    theirs = ReferenceProcessor(ReferenceExtractor(), tokenizer)
    theirs.save_pretrained(tokenizer_folder)
    ours = GraniteSpeech5Processor.from_pretrained(tokenizer_folder)
    ours.save_pretrained(tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "processor_config.json").read_text())
    assert written == json.loads((tokenizer_folder / "processor_config.json").read_text())
    theirs = ReferenceProcessor.from_pretrained(tmp_path / "ours")
    waves, texts = [turboctc.waveform(n) for n in (9000, 9000)], list(turboctc.SENTENCES[:2])
    options = {"sampling_rate": 16000, "padding": True, "return_tensors": "pt"}
    expected, found = (each(waves, text=texts, **options) for each in (theirs, ours))
    assert expected.keys() == found.keys()
    assert_close(found.input_features, expected["input_features"], 1e-4)
    for name in ("attention_mask", "labels"):
        assert found[name].tolist() == expected[name].tolist()
    assert ours.model_input_names == theirs.model_input_names


def test_the_models_own_example(tmp_path):
    """From samples to a text, as on the model's page."""
    turboctc.write(tmp_path, dtype=mx.float32)
    reference = ReferenceModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    theirs = transformers.AutoProcessor.from_pretrained(tmp_path)
    model = GraniteSpeech5ForCTC.from_pretrained(tmp_path)
    ours = GraniteSpeech5Processor.from_pretrained(tmp_path)
    wave = turboctc.waveform(50001)
    inputs = theirs(wave, sampling_rate=16000, return_tensors="pt")
    expected = theirs.batch_decode(reference.generate(**inputs), skip_special_tokens=True)
    found = ours.batch_decode(model.generate(**ours(wave)), skip_special_tokens=True)
    assert found == expected
    assert found[0]
