"""What a model is measured with."""

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from mlx_speech.audio import load_audio
from mlx_speech.profiling import sample
from mlx_speech.profiling.sample import bundled_recordings, joined_sample


def test_bundled_recordings_have_speech_in_them():
    recordings = bundled_recordings()
    assert len(recordings) == 4
    assert all(1 < len(load_audio(path)) / 16000 < 10 for path in recordings)


@pytest.fixture
def recordings(tmp_path, monkeypatch) -> list[str]:
    """Of 2 s, 0.5 s and 2 s, in each of which all samples are alike; 3 s are wanted."""
    monkeypatch.setattr(sample, "SAMPLE_SECONDS", 3)
    paths = [str(tmp_path / f"{number}.wav") for number in range(3)]
    for path, seconds, level in zip(paths, (2, 0.5, 2), (0.25, 0.5, -0.25), strict=True):
        soundfile.write(path, np.full(int(16000 * seconds), level), 16000)
    return paths


def levels(samples: mx.array) -> list[float]:
    """That of each quarter of a second."""
    assert mx.max(mx.abs(samples - samples[2000])[:3000]).item() == 0
    return samples[2000::4000].tolist()


def test_joined_and_cut(recordings):
    assert levels(joined_sample(recordings)) == [0.25] * 8 + [0.5] * 2 + [-0.25] * 2


def test_repeated(recordings):
    assert levels(joined_sample(recordings[1:2])) == [0.5] * 12
    assert levels(joined_sample(recordings[:1])) == [0.25] * 12


def test_no_more_is_read_than_is_wanted(recordings, tmp_path):
    assert len(joined_sample([*recordings, str(tmp_path / "nowhere.wav")])) == 48000
