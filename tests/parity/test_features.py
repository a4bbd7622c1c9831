"""Features, prompts and chat templates against transformers' feature extractor and processor.

Features are between about -1 and 2.5; the tolerance is 1e-4, absolute.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import GraniteSpeechFeatureExtractor as ReferenceExtractor
from transformers import GraniteSpeechProcessor as ReferenceProcessor

from mlx_speech.processing.granite_speech import GraniteSpeechProcessor
from mlx_speech.processing.log_mel import GraniteSpeechFeatureExtractor

LENGTHS = [257, 319, 320, 321, 400, 479, 480, 511, 512, 1600, 1601, 4799, 4800, 4801, 9599, 16000]
LENGTHS += [16159, 16160, 33333, 48000, 50000]


def signal(kind: str, length: int) -> np.ndarray:
    rng = np.random.default_rng(length)
    noise = rng.normal(0, 1, length)
    time = np.arange(length) / 16000
    chirp = np.sin(2 * np.pi * (200 + 2000 * time) * time)
    return {
        "noise": 0.1 * noise,
        "chirp": 0.5 * chirp + 0.001 * noise,
        "quiet": 1e-6 * noise,
        "silent": np.zeros(length),
        "loud": np.clip(3 * noise, -1, 1),
        "beyond-one": 10 * noise,
        "offset": 0.7 + 0.01 * noise,
        "click": np.eye(1, length, length // 2)[0],
    }[kind].astype(np.float32)


@pytest.fixture(scope="module")
def extractors():
    return GraniteSpeechFeatureExtractor(), ReferenceExtractor()


@pytest.fixture(scope="module")
def exact():
    """The reference in double precision: in single, where it is quiet beside what is loud, its own
    rounding is as large as the tolerance, and another on other processors."""
    reference = ReferenceExtractor()
    reference.mel_filters.double()
    return lambda audio: reference(torch.from_numpy(audio).double())


def compare(ours: dict, expected: dict) -> None:
    """Features within 1e-4, the rest equal."""
    reference = expected["input_features"].numpy()
    assert ours["input_features"].shape == reference.shape
    assert np.abs(np.array(ours["input_features"]) - reference).max() <= 1e-4
    assert ours["audio_embed_sizes"] == list(expected["audio_embed_sizes"])
    mask = expected["input_features_mask"].tolist()
    assert ours["input_features_mask"].tolist() == mask


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["noise", "chirp"])
def test_lengths(extractors, exact, kind, length):
    """Every parity of samples, mel frames and windows."""
    audio = signal(kind, length)
    compare(extractors[0](audio), exact(audio))


@pytest.mark.parametrize("length", [1000, 12345])
@pytest.mark.parametrize("kind", ["quiet", "silent", "loud", "beyond-one", "offset", "click"])
def test_kinds(extractors, kind, length):
    """Signals at the ends of the range."""
    audio = signal(kind, length)
    compare(extractors[0](audio), extractors[1](audio))


def test_equal_lengths_in_a_batch(extractors):
    """A (recordings, samples) array; each recording has its own maximum."""
    audio = np.stack([signal(kind, 8001) for kind in ("noise", "quiet", "offset")])
    compare(extractors[0](audio), extractors[1](audio))
    compare(extractors[0](list(audio)), extractors[1](list(audio)))


def test_different_lengths_in_a_batch(extractors):
    """Each recording gets what transformers gives it alone, zeros behind; sizes and mask equal.

    transformers pads the samples, so that its maximum and last frames are others.
    """
    audio = [signal("noise", length) for length in (16000, 5000, 30001)]
    ours, batch = extractors[0](audio), extractors[1](audio)
    assert ours["audio_embed_sizes"] == list(batch["audio_embed_sizes"])
    assert ours["input_features_mask"].tolist() == batch["input_features_mask"].tolist()
    assert ours["input_features"].shape == tuple(batch["input_features"].shape)
    for row, one in enumerate(audio):
        alone = extractors[1](one)["input_features"][0].numpy()
        assert ours["feature_lengths"][row].item() == len(alone)
        got = np.array(ours["input_features"][row])
        assert np.abs(got[: len(alone)] - alone).max() <= 1e-4
        assert (got[len(alone) :] == 0).all()


@pytest.mark.parametrize(
    "options",
    [
        {"n_mels": 40},
        {"n_fft": 400, "win_length": 400},
        {"hop_length": 200, "win_length": 320},
        {"n_fft": 1024, "win_length": 511},
        {"sampling_rate": 8000},
    ],
    ids=str,
)
def test_other_options(options):
    """Other windows, hops and filters, within 1e-4."""
    reference = ReferenceExtractor(**options, projector_window_size=12, projector_downsample_rate=4)
    ours = GraniteSpeechFeatureExtractor.from_dict(reference.to_dict())
    audio = signal("noise", 9999)
    compare(ours(audio), reference(audio))


@pytest.mark.parametrize("window", [(15, 5), (12, 4), (10, 2), (7, 7)])
def test_audio_token_counts(window):
    """The number of audio tokens for every length up to 20000 samples in odd steps."""
    options = {"projector_window_size": window[0], "projector_downsample_rate": window[1]}
    ours, reference = GraniteSpeechFeatureExtractor(**options), ReferenceExtractor(**options)
    lengths = range(257, 20000, 37)
    expected = reference._get_num_audio_features(lengths)
    assert [ours.num_audio_tokens((n // 160 + 1) // 2) for n in lengths] == expected


@pytest.fixture(scope="module")
def processors(tiny_folder):
    return (
        GraniteSpeechProcessor.from_pretrained(tiny_folder),
        ReferenceProcessor.from_pretrained(tiny_folder),
    )


PROMPTS = {
    "one": (["<|audio|>can you transcribe the speech?"], [9000]),
    "audio-last": (["transcribe this: <|audio|>"], [4801]),
    "two-in-one-prompt": (["first <|audio|> then <|audio|> compare them"], [16000, 16000]),
    "different-lengths": (["a <|audio|>b<|audio|>c<|audio|>"], [3000, 20000, 9999]),
    "batch": (["<|audio|>short", "<|audio|>a rather longer instruction"], [8000, 24000]),
    "mixed-batch": (["no audio here", "<|audio|> and <|audio|>", "<|audio|>"], [999, 5000, 7000]),
    "text-only": (["what is the capital of France?"], []),
    "text-batch": (["hello", "a somewhat longer text, with punctuation: é ß 你好 🙂", ""], []),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_processor(processors, name):
    """The same ids and masks; features of single recordings within 1e-4."""
    ours, reference = processors
    text, lengths = PROMPTS[name]
    audio = [signal("noise", length) for length in lengths]
    got = ours(text, audio or None)
    expected = reference(text, audio or None, return_tensors="pt")
    assert got["input_ids"].tolist() == expected["input_ids"].tolist()
    assert got["attention_mask"].tolist() == expected["attention_mask"].tolist()
    assert ("input_features" in got) == bool(lengths)
    if lengths:
        mask = expected["input_features_mask"].tolist()
        assert got["input_features_mask"].tolist() == mask
        assert got["input_features"].shape == tuple(expected["input_features"].shape)
    if len(set(lengths)) == 1:
        difference = np.array(got["input_features"]) - expected["input_features"].numpy()
        assert np.abs(difference).max() <= 1e-4


CHATS = {
    "user": [{"role": "user", "content": "<|audio|>can you transcribe the speech?"}],
    "system": [
        {"role": "system", "content": "You are helpful.\n"},
        {"role": "user", "content": "  hello  "},
    ],
    "turns": [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three <|audio|> é 你好"},
    ],
}


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("name", CHATS)
def test_chat_template(processors, name, add_generation_prompt):
    """The same text, and the same ids."""
    ours, reference = processors
    options = {"add_generation_prompt": add_generation_prompt}
    got = ours.apply_chat_template(CHATS[name], **options)
    tokenizer = reference.tokenizer
    assert got == tokenizer.apply_chat_template(CHATS[name], tokenize=False, **options)
    assert ours.tokenizer.encode(got) == tokenizer(got)["input_ids"]


def test_decoding(processors):
    """The same text for every id, and for random sequences, with and without special tokens."""
    ours, reference = processors
    rng = np.random.default_rng(5)
    sequences = [[i] for i in range(512)] + rng.integers(0, 512, (50, 20)).tolist()
    for ids in sequences:
        for skip in (True, False):
            expected = reference.tokenizer.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
            assert ours.decode(ids, skip_special_tokens=skip) == expected


def test_mlx_arrays(extractors):
    """A recording may also be an MLX array."""
    audio = signal("chirp", 7777)
    compare(extractors[0](mx.array(audio)), extractors[1](audio))
