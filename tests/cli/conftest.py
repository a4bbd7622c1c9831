"""Transcribing without a model, for what a command line does around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_speech import AudioError
from mlx_speech.transcription import pipeline
from mlx_speech.transcription.transcript import Segment, Transcript


@pytest.fixture
def transcribed(cli, monkeypatch, tmp_path):
    """Every recording says its own path, in two segments; which were transcribed, and with what.
    Where "bad" is in the path, it is damaged. The current folder is an empty one."""
    calls = []

    def transcribe(source, model, **options):
        calls.append((source, options))
        if "bad" in source:
            raise AudioError(f"{source} is damaged")
        options["progress"](5.0, 10.0)
        texts = [f"first of {source}", f"second of {source}"]
        segments = [Segment(5.0 * i, 5.0 * i + 4, text, [1], -0.1) for i, text in enumerate(texts)]
        return Transcript(" ".join(texts), None, 10.0, segments)

    monkeypatch.setattr("mlx_speech.loading.load", lambda name, **options: (_Model, None))
    monkeypatch.setattr(pipeline, "transcribe", transcribe)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return calls


class _Model:
    folder = Path()
