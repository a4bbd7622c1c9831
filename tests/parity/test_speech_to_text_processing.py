"""Speech2Text's features against torchaudio's Kaldi filter banks and transformers' extractor, its
tokenizer and processor against transformers'.

torchaudio computes in the type of its input. Its float64 is the reference; its float32, which is
what transformers runs, rounds: by 1e-6 on average, but by 1e-3 in the quietest bins of speech, and
by up to 1 far below a loud tone or in the empty half of the spectrum of 8 kHz audio.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soxr
import torch
import torchaudio.compliance.kaldi
from transformers import Speech2TextFeatureExtractor as ReferenceExtractor
from transformers import Speech2TextProcessor as ReferenceProcessor
from transformers import Speech2TextTokenizer as ReferenceTokenizer

from mlx_speech import (
    InputError,
    Speech2TextFeatureExtractor,
    Speech2TextProcessor,
    Speech2TextTokenizer,
    load_audio,
)
from mlx_speech.processing.kaldi_fbank import fbank

ROOT = Path(__file__).parents[2]
TINY_S2T = ROOT / "examples" / "tiny-s2t"
RECORDINGS = sorted((ROOT / "tests" / "data" / "audio").glob("*_*.flac"))


def speech(name: str = "espeak_04.flac") -> np.ndarray:
    return np.array(load_audio(ROOT / "tests" / "data" / "audio" / name))


def in_16_bits(signal: np.ndarray) -> np.ndarray:
    return np.clip(np.round(signal * 32768), -32768, 32767) / 32768


def at_8_khz_once(signal: np.ndarray) -> np.ndarray:
    return soxr.resample(soxr.resample(signal, 16000, 8000), 8000, 16000)


def signal(kind: str, length: int = 40000) -> np.ndarray:
    rng = np.random.default_rng(length)
    noise = rng.normal(0, 1, length)
    time = np.arange(length) / 16000
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    return {
        "noise": lambda: 0.1 * noise,
        "noise, clipped": lambda: np.clip(3 * noise, -1, 1),
        "noise, beyond one": lambda: 50 * noise,
        "noise, near silence": lambda: 1e-6 * noise,
        "noise, last bit": lambda: in_16_bits(3e-5 * noise),
        "noise, offset": lambda: 0.7 + 0.01 * noise,
        "click": lambda: np.eye(1, length, length // 2)[0],
        "silence": lambda: np.zeros(length),
        "half silent": lambda: in_16_bits(0.1 * noise * (time > time[-1] / 2)),
        "speech": lambda: speech(),
        "speech, clipped": lambda: np.clip(20 * speech(), -1, 1),
        "speech, near silence": lambda: in_16_bits(1e-3 * speech()),
        "speech, 8 kHz": lambda: at_8_khz_once(speech()),
        "speech, 8 kHz in 16 bits": lambda: in_16_bits(at_8_khz_once(speech())),
        "tone": lambda: tone,
        "tone in 16 bits": lambda: in_16_bits(tone),
        "offset, near silence": lambda: 0.7 + 1e-5 * noise,
    }[kind]().astype(np.float32)


KINDS = ["noise", "noise, clipped", "noise, beyond one", "noise, near silence", "noise, last bit"]
KINDS += ["noise, offset", "click", "silence", "half silent", "speech", "speech, clipped"]
KINDS += ["speech, near silence", "speech, 8 kHz in 16 bits"]
#: of which float32 makes a good deal of noise
ROUNDED = ["speech, 8 kHz", "tone", "tone in 16 bits", "offset, near silence"]


def kaldi(samples: np.ndarray, dtype=torch.float64, rate: float = 16000, mels: int = 80):
    return torchaudio.compliance.kaldi.fbank(
        torch.tensor(samples).to(dtype)[None] * 2**15,
        num_mel_bins=mels,
        sample_frequency=float(rate),
    ).numpy()


def differences(first, second) -> np.ndarray:
    first, second = np.array(first), np.array(second)
    assert first.shape == second.shape
    return np.abs(first - second)


class TestFilterBanks:
    @pytest.mark.parametrize("kind", KINDS + ROUNDED)
    def test_kaldi_in_float64(self, kind):
        samples = signal(kind)
        difference = differences(fbank(mx.array(samples)), kaldi(samples))
        assert difference.max() <= 3e-4
        assert difference.mean() <= 2e-6

    @pytest.mark.parametrize("kind", KINDS + ROUNDED)
    def test_kaldi_in_float32(self, kind):
        """No further away than its own rounding."""
        samples = signal(kind)
        coarse = kaldi(samples, torch.float32)
        own_error = differences(coarse, kaldi(samples))
        difference = differences(fbank(mx.array(samples)), coarse)
        assert difference.max() <= own_error.max() + 3e-4
        assert difference.mean() <= own_error.mean() + 2e-6
        assert (difference.mean() <= 1e-4) == (kind in KINDS)

    @pytest.mark.parametrize("file", RECORDINGS, ids=lambda file: file.stem)
    def test_recordings(self, file):
        samples = speech(file.name)
        ours = fbank(mx.array(samples))
        assert differences(ours, kaldi(samples)).max() <= 3e-4
        assert differences(ours, kaldi(samples, torch.float32)).mean() <= 1e-4

    @pytest.mark.parametrize("length", [400, 401, 559, 560, 561, 719, 720, 16000, 16079, 16080])
    def test_lengths(self, length):
        samples = signal("noise", length)
        assert differences(fbank(mx.array(samples)), kaldi(samples)).max() <= 3e-4

    @pytest.mark.parametrize("rate", [8000, 11025, 12345, 16000, 22050, 44100, 48000])
    @pytest.mark.parametrize("mels", [4, 23, 40, 80])
    def test_other_rates_and_filters(self, rate, mels):
        samples = signal("noise", 2 * rate)
        ours = fbank(mx.array(samples), rate, mels)
        assert differences(ours, kaldi(samples, rate=rate, mels=mels)).max() <= 5e-4


class ExactExtractor(ReferenceExtractor):
    """transformers' extractor, computing in float64."""

    def _extract_fbank_features(self, waveform):
        return super()._extract_fbank_features(waveform.astype(np.float64))


OPTIONS = {
    "defaults": {},
    "means alone": {"normalize_vars": False},
    "deviations alone": {"normalize_means": False},
    "neither": {"normalize_means": False, "normalize_vars": False},
    "not at all": {"do_ceptral_normalize": False},
    "padding value": {"padding_value": -1.5},
    "8 kHz": {"sampling_rate": 8000, "num_mel_bins": 40, "feature_size": 40},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_extractor(name):
    """A batch of mixed lengths, normalised; three frames deviate little and become hundreds."""
    reference = ExactExtractor(**OPTIONS[name])
    ours = Speech2TextFeatureExtractor.from_dict(reference.to_dict())
    batch = [signal("noise", n) for n in (9000, 40000, 720)] + [signal("speech")]
    rate = reference.sampling_rate
    got = ours(batch, sampling_rate=rate)
    expected = reference(batch, padding=True, return_tensors="np", sampling_rate=rate)
    assert got["attention_mask"].tolist() == expected["attention_mask"].tolist()
    difference = differences(got["input_features"], expected["input_features"])
    assert (difference <= 5e-4 + 1e-5 * np.abs(expected["input_features"])).all()
    assert difference.mean() <= 5e-6


@pytest.mark.parametrize("file", RECORDINGS, ids=lambda file: file.stem)
def test_extractor_on_recordings(file):
    samples = speech(file.name)
    got = Speech2TextFeatureExtractor()(samples)["input_features"]
    options = {"sampling_rate": 16000, "return_tensors": "np"}
    exact = ExactExtractor()(samples, **options)["input_features"]
    assert differences(got, exact).max() <= 1e-4
    coarse = ReferenceExtractor()(samples, **options)["input_features"]
    assert differences(got, coarse).max() <= 2e-3
    assert differences(got, coarse).mean() <= 1e-5


SNIPPETS = [
    "set the kitchen light",
    "Turn OFF the Fan!",
    "Zéro degrés, à l'ÉTÉ où garçon naïve œuvre",
    "مرحبا بالعالم ١٢٣",
    "日本語のテスト",
    "👩\u200d👩\u200d👧 🇩🇪 🙂",
    "ΑΣ ς Straße İstanbul ǅ ﬁ ŉ ½²",
    *("<s>", "</s>", "<unk>", "<pad>", "<lang:fr>", "<lang:de>", "<lang:xx>", "<lang:", ">"),
    *(" ", "  ", "\t", "\n", "\u00a0", "\u200b", "\u3000", "é", "e\u0301", "▁", "\x00", "\ufffd"),
]


def random_text(rng: random.Random) -> str:
    """Snippets, their parts, and characters from everywhere."""
    parts = []
    for _ in range(rng.randrange(7)):
        snippet = rng.choice(SNIPPETS)
        cut = rng.randrange(len(snippet) + 1)
        anywhere = chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))
        upper = snippet if "<" in snippet else snippet.upper()
        parts.append(rng.choice([snippet, snippet[:cut], snippet[cut:], upper, anywhere]))
    return "".join(parts)


TOKENIZERS = {
    "as it is": {},
    "upper case": {"do_upper_case": True},
    "lower case": {"do_lower_case": True},
    "both": {"do_upper_case": True, "do_lower_case": True},
    "german": {"tgt_lang": "de"},
    "first language": {"tgt_lang": None},
}
SPECIAL = re.compile(r"(<s>|</s>|<unk>|<pad>|<lang:(?:pt|fr|ru|nl|ro|it|es|de)>)")


def lowered(text: str) -> str:
    """As transformers did until its version 5, whose tokenizers forget about do_lower_case."""
    return "".join(p if SPECIAL.fullmatch(p) else p.lower() for p in SPECIAL.split(text))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizer(name):
    """Ids and texts of 1,000 random strings."""
    options = TOKENIZERS[name]
    ours = Speech2TextTokenizer.from_pretrained(TINY_S2T, **options)
    reference = ReferenceTokenizer.from_pretrained(TINY_S2T, **options)
    assert ours.lang_code_to_id == reference.lang_code_to_id
    assert ours.prefix_tokens == reference.prefix_tokens
    assert ours.all_special_ids == reference.all_special_ids
    rng = random.Random(name)
    for text in (random_text(rng) for _ in range(1000)):
        ids = ours.encode(text)
        expected = lowered(text) if options.get("do_lower_case") else text
        assert ids == reference(expected)["input_ids"], text
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == reference.decode(
                ids, skip_special_tokens=skip
            )


@pytest.mark.parametrize("upper", [True, False])
def test_any_ids(upper):
    ours = Speech2TextTokenizer.from_pretrained(TINY_S2T, do_upper_case=upper)
    reference = ReferenceTokenizer.from_pretrained(TINY_S2T, do_upper_case=upper)
    rng = np.random.default_rng(4)
    sequences = [[i] for i in range(325)] + rng.integers(0, 325, (500, 20)).tolist()
    for skip in (True, False):
        options = {"skip_special_tokens": skip}
        assert ours.batch_decode(sequences, **options) == reference.batch_decode(
            sequences, **options
        )


def test_half_a_surrogate_pair():
    """The reference fails with an error of its C++ binding."""
    ours = Speech2TextTokenizer.from_pretrained(TINY_S2T)
    reference = ReferenceTokenizer.from_pretrained(TINY_S2T)
    with pytest.raises(InputError, match="surrogate"):
        ours.encode("a \udc00")
    with pytest.raises((RuntimeError, UnicodeError)):
        reference("a \udc00")


def test_processor():
    ours = Speech2TextProcessor.from_pretrained(TINY_S2T)
    reference = ReferenceProcessor.from_pretrained(TINY_S2T)
    audio, text = [signal("noise", 30000), signal("noise", 9000)], ["set the light", "zero"]
    options = {"padding": True, "return_tensors": "np"}
    both = reference(audio=audio, text=text, sampling_rate=16000, **options)
    got = ours(audio=audio, text=text, sampling_rate=16000)
    assert sorted(got) == sorted(both)
    assert got["labels"].tolist() == both["labels"].tolist()
    assert got["attention_mask"].tolist() == both["attention_mask"].tolist()
    assert differences(got["input_features"], both["input_features"]).mean() <= 1e-5
    alone = reference(text=text, **options)
    assert {k: v.tolist() for k, v in ours(text=text).items()} == {
        k: v.tolist() for k, v in alone.items()
    }
