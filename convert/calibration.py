"""Recordings that a quantizer learns from: what the original model makes of them, and transcribes.

mlx-lm's quantizers call a model with batches of token ids, and take the logits. Here a batch is the
number of an utterance, and the logits are those of its text, behind the prompt with the audio in it
(`CalibratedModel`): nothing is padded, and nothing but the text counts.
"""

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_speech.audio import open_recording
from mlx_speech.errors import AudioError
from mlx_speech.loading import load
from mlx_speech.transcription.pipeline import prepare

from .check import bundled_recordings

Progress = Callable[[str], None]  #: told what is done next


class Utterance(NamedTuple):
    """A chunk of a recording.

    input_ids: (1, length), the prompt and the text behind it, without its end token.
    audio: what the model gets of it, `input_features` or `audio_features`, and their name.
    texts: positions of which the logits are those of the text and its end: so many last ones.
    """

    input_ids: mx.array
    audio: dict[str, mx.array]
    texts: int

    def embeddings(self, model: Any) -> mx.array:
        """(1, length, hidden_size), the audio written over its tokens."""
        return model.embed_prompt(self.input_ids, **self.audio)[0]

    def logits(self, model: Any) -> mx.array:
        """(1, texts, vocabulary) along the text, with the adapter on."""
        kept = {"use_cache": False, "logits_to_keep": self.texts, "return_dict": True}
        return model(self.input_ids, **self.audio, **kept).logits


@dataclass
class Calibration:
    """Utterances, and how many recordings of how many seconds they are of."""

    utterances: list[Utterance] = field(default_factory=list)
    recordings: int = 0
    seconds: float = 0.0


def check_calibration(recordings: Sequence[str | os.PathLike]) -> None:
    """Refuse recordings that cannot be read, before any work is done for them.

    Raises:
        AudioError: there is no such file, or it is no recording.
    """
    for recording in recordings:
        if not (Path(recording).is_file() or Path(recording).is_dir()):
            raise AudioError(f"{os.fspath(recording)}: no such file to calibrate with")
        open_recording(recording).close()


def calibrate(
    folder: Path,
    recordings: Sequence[str | os.PathLike],
    *,
    adapter: Path | None = None,
    features: bool = False,
    progress: Progress = lambda doing: None,
) -> Calibration:
    """Transcribe recordings with a folder's model, whose texts are what a quantizer aims at.

    The whole model is in memory for it, and afterwards none of it.

    Args:
        recordings: files; by default the bundled ones.
        adapter: that is put over the folder's model.
        features: keep features of audio, for the encoder, and not what the projector makes of them.

    Raises:
        AudioError: a recording cannot be read, or nobody speaks in it.
    """
    model, processor = load(folder, adapter=adapter)
    found = Calibration()
    for file in [Path(recording) for recording in recordings] or bundled_recordings():
        progress(f"transcribing {file.name}")
        before = len(found.utterances)
        job = prepare(file, (model, processor))
        with job.recording as recording:
            found.recordings += 1
            found.seconds += recording.duration
            rate = recording.sampling_rate
            for decoded in job.decoder.decode(job.chunks, batch_size=1):
                for chunk, segments in decoded:
                    tokens = [token for segment in segments for token in segment.tokens]
                    end = chunk.begin + chunk.duration
                    samples = recording.read(round(chunk.begin * rate), round(end * rate))
                    inputs = processor.speech_inputs(samples)
                    found.utterances.append(_utterance(model, inputs, tokens, features))
                mx.clear_cache()
        if len(found.utterances) == before:
            raise AudioError(f"{file}: no speech found to calibrate with; leave it out")
    return found


def _utterance(model: Any, inputs: Any, tokens: list[int], features: bool) -> Utterance:
    prompt, given = inputs["input_ids"], inputs["input_features"]
    ids = mx.concatenate([prompt, mx.array([tokens], prompt.dtype)], axis=1)
    audio = {"input_features": given}
    if not features:
        audio = {"audio_features": model.get_audio_features(given, return_dict=True).pooler_output}
    mx.eval(ids, audio)
    return Utterance(ids, audio, len(tokens) + 1)


class CalibratedModel(nn.Module):
    """A speech model as mlx-lm's functions call a text model.

    Args:
        model: run over utterances.
        calibration: `model(batch)` gives the logits of the utterance whose number stands in it.
    """

    def __init__(self, model: nn.Module, calibration: Calibration):
        super().__init__()
        self.model = model
        self.calibration = calibration
        self._shown: frozenset[str] | None = None

    def __call__(self, batch: mx.array) -> mx.array:
        return self.calibration.utterances[batch[0, 0].item()].logits(self.model)

    def show(self, paths: Iterable[str]) -> None:
        """Have only these modules of the model found in it."""
        self._shown = frozenset(f"model.{path}" for path in paths)

    def leaf_modules(self) -> dict[str, Any]:
        """See `nn.Module`."""
        return shown_modules(super().leaf_modules(), self._shown)

    def train(self, mode: bool = True) -> nn.Module:
        """Nothing: dropout is for models that learn weights, and is some in some configurations."""
        return self

    @property
    def numbers(self) -> mx.array:
        """(utterances, 1), each one's number: data to be cut into batches of one."""
        return mx.arange(len(self.calibration.utterances))[:, None]


def shown_modules(leaves: dict[str, Any], shown: Collection[str] | None) -> dict[str, Any]:
    """Those of a tree of modules that have these names; all where there are none."""
    if shown is None:
        return leaves
    found = tree_flatten(leaves, is_leaf=nn.Module.is_module)
    return tree_unflatten([leaf for leaf in found if leaf[0] in shown])
