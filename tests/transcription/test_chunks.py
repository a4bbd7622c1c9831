"""From recordings to segments: where the two listeners cut them, by CTC head and by energy."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, chunks_of

from mlx_speech import load_audio, transcribe
from mlx_speech.audio import open_recording
from mlx_speech.transcription.chunks import AudioChunk, ChunkOptions, why_empty
from mlx_speech.transcription.preparation import speech_family

RATE = 16000
MANIFEST = {
    entry["file"]: entry
    for entry in map(json.loads, (DATA / "audio" / "manifest.jsonl").read_text().splitlines())
}
SENTENCES = [name for name in MANIFEST if name.startswith(("espeak", "flite", "festival"))]


@pytest.fixture(scope="module", params=["ctc", "energy"])
def model(request):
    """(model, processor) of one that listens by its CTC head, and of one by energy."""
    return request.getfixturevalue("tiny" if request.param == "ctc" else "tiny_s2t")


def recording(name: str) -> np.ndarray:
    return np.array(load_audio(DATA / "audio" / name))


def listen(model, samples: np.ndarray, **cutting) -> list[AudioChunk]:
    with open_recording(mx.array(samples), RATE, RATE) as opened:
        return list(chunks_of(speech_family(*model), opened, ChunkOptions(**cutting)))


def loud(samples: np.ndarray) -> tuple[float, float]:
    """From when to when, in seconds, frames are less than 45 dB below the loudest."""
    frames = samples[: samples.size // 320 * 320].reshape(-1, 320)
    power = np.square(frames).mean(axis=1)
    (where,) = np.nonzero(power > power.max() / 10**4.5)
    return where[0] / 50, (where[-1] + 1) / 50


def check(heard: AudioChunk, start: float, end: float) -> None:
    """All of the speech from `start` to `end` is in it, and its times are true."""
    assert abs(heard.start - start) <= 0.25
    assert heard.end >= end - 0.25  # and later, where the voice fades slowly
    assert heard.begin <= start
    assert end <= heard.begin + heard.duration


def joined(parts: list[np.ndarray], pause: float) -> np.ndarray:
    """Parts with so many seconds between."""
    silence = np.zeros(int(pause * RATE), np.float32)
    return np.concatenate([sound for part in parts for sound in (part, silence)][:-1])


def over_noise(samples: np.ndarray, decibels: float, seed: int = 0) -> np.ndarray:
    """A recording and two seconds around it over white noise that it is so much louder than."""
    noise = np.random.default_rng(seed).normal(size=samples.size + 4 * RATE)
    scale = np.sqrt(np.square(samples).mean() / 10 ** (decibels / 10))
    return (np.pad(samples, 2 * RATE) + scale * noise).astype(np.float32)


class TestLongRecording:
    """24 sentences with pauses; each is one segment, and its times are true to 0.3 s."""

    @pytest.mark.parametrize("min_silence", [0.3, 0.4, 0.5, 1.0])
    def test_sentences(self, model, min_silence):
        samples = recording("long.flac")
        found = listen(model, samples, chunk_duration=9, min_silence=min_silence)
        times = [(start, end) for start, end, _ in MANIFEST["long.flac"]["segments"]]
        assert len(found) == len(times)
        for heard, (start, end) in zip(found, times, strict=True):
            assert abs(heard.start - start) <= 0.3
            assert abs(heard.end - end) <= 0.3
            first, last = loud(samples[round(start * RATE) : round(end * RATE)])
            check(heard, start + first, start + last)


class TestPauses:
    @pytest.mark.parametrize("pause", [0.45, 0.6, 1.0])
    def test_each_ends_a_segment(self, model, pause):
        """Of 0.4 s, whatever the sentences before and after it are."""
        parts = [recording(name) for name in [*SENTENCES, SENTENCES[0]]]
        found = listen(model, joined(parts, pause), chunk_duration=9, min_silence=0.4)
        starts = np.cumsum([0, *(part.size / RATE + pause for part in parts[:-1])])
        assert len(found) == len(parts)
        for heard, start, part in zip(found, starts, parts, strict=True):
            check(heard, *(start + edge for edge in loud(part)))
            assert heard.end <= start + part.size / RATE + 0.2

    def test_shorter_ones_do_not(self, model):
        parts = [recording(name) for name in SENTENCES[:2]]
        assert len(listen(model, joined(parts, 0.6), min_silence=0.4)) == 2
        assert len(listen(model, joined(parts, 0.6), min_silence=1.2)) == 1


class TestQuietWord:
    @pytest.mark.parametrize("noise", [None, 40])
    def test_is_found_after_a_loud_sentence(self, model, noise):
        """20 dB quieter, 0.6 s after it."""
        sentence, word = recording("espeak_01.flac"), recording("espeak_06.flac")
        word = word * np.float32(0.1 * np.abs(sentence).max() / np.abs(word).max())
        samples = joined([sentence, word], 0.6)
        start = sentence.size / RATE + 0.6
        start, end = (start + edge for edge in loud(word))
        if noise:
            samples, start, end = over_noise(samples, noise), start + 2, end + 2
        found = listen(model, samples)
        assert found[-1].begin <= start
        assert found[-1].begin + found[-1].duration >= end
        assert abs(found[-1].end - end) <= 0.25

    def test_is_written(self, tiny):
        texts = [MANIFEST[f"espeak_{k}.flac"]["text"] for k in ("01", "06")]
        sentence, word = recording("espeak_01.flac"), recording("espeak_06.flac") * np.float32(0.1)
        samples = mx.array(joined([sentence, word], 0.6))
        transcript = transcribe(samples, tiny, sampling_rate=RATE)
        assert transcript.text == " ".join(texts)


class TestNoise:
    @pytest.mark.parametrize("decibels", [10, 5, 0])
    @pytest.mark.parametrize("name", ["espeak_04.flac", "flite_09.flac", "festival_13.flac"])
    def test_speech_over_it_is_one_segment(self, tiny, name, decibels):
        """What the CTC head hears is not taken away since the energy hears little of it."""
        samples = recording(name)
        (heard,) = listen(tiny, over_noise(samples, decibels), min_silence=0.4)
        assert abs(heard.start - 2) <= 0.5
        assert abs(heard.end - 2 - samples.size / RATE) <= 0.5


def test_why_a_sample_has_no_text():
    assert why_empty(1 / RATE, 0.0, 0) == "it lasts 0.0625 ms, too short for speech"
    assert why_empty(0.02, 0.5, 0) == "it lasts 20 ms, too short for speech"
