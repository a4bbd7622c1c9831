"""Original and converted weights over the same recordings: what the conversion cost.

The models are loaded one after the other, so that memory holds one of them. What the original
computes waits in temporary files for the others: mostly 4 bytes for each entry of the vocabulary
and each position of a text, which is 100 MB for a minute of speech with Granite Speech.
"""

import gc
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

import mlx.core as mx

from mlx_speech.audio import Recording, load_audio, open_recording
from mlx_speech.checkpoint.folder import SEPARATE_WEIGHTS, read_json, weight_files
from mlx_speech.checkpoint.hub import resolve_checkpoint
from mlx_speech.checkpoint.shards import save_tensors
from mlx_speech.errors import AudioError, UnsupportedOptionError
from mlx_speech.files import errors_about
from mlx_speech.loading import architecture, load
from mlx_speech.profiling.machine import device_name
from mlx_speech.transcription.pipeline import prepare, transcribe
from mlx_speech.transcription.word_errors import word_error_rate, word_errors

_LOGITS = "logits"  #: the last of the stages that are compared


def bundled_recordings() -> list[Path]:
    """Short English recordings that come with the package."""
    return sorted((Path(__file__).parent / "recordings").glob("*.flac"))


@dataclass
class Difference:
    """How far the converted model is from the original, over one recording or several.

    words: of the original's transcript; errors: the converted one's, against it.
    squares: of each stage, in the order in which they are computed, the squared norms of the
        difference and of the original's output.
    divergence: KL divergence of the distributions that the logits give, in nats, summed over
        `positions` along the original's output.
    """

    words: int = 0
    errors: int = 0
    squares: dict[str, tuple[float, float]] = field(default_factory=dict)
    divergence: float = 0.0
    positions: int = 0

    def add(self, other: Self) -> None:
        """Take in what was found elsewhere."""
        self.words += other.words
        self.errors += other.errors
        self.divergence += other.divergence
        self.positions += other.positions
        for stage, (difference, norm) in other.squares.items():
            so_far = self.squares.get(stage, (0.0, 0.0))
            self.squares[stage] = so_far[0] + difference, so_far[1] + norm

    @property
    def wer(self) -> float:
        """Word error rate in per cent, the original's transcript being the reference."""
        return word_error_rate(self.errors, self.words)

    @property
    def kl(self) -> float:
        """KL divergence from the original's distribution, in nats a position."""
        return self.divergence / max(self.positions, 1)

    def relative_error(self, stage: str) -> float | None:
        """Norm of the difference over that of the original; None if there is no such stage."""
        if stage not in self.squares:
            return None
        difference, norm = self.squares[stage]
        return math.sqrt(difference / norm) if norm else math.sqrt(difference)


@dataclass
class RecordingCheck:
    """One recording, its transcript by each model, and how far apart they are."""

    name: str
    original: str
    converted: str
    difference: Difference


@dataclass
class Loaded:
    """A checkpoint: bytes of its weights on disk, and how long it took to load, in seconds."""

    size: int
    load_seconds: float


@dataclass
class CheckReport:
    """What `check` found, and on what machine."""

    original: Loaded
    converted: Loaded
    recordings: list[RecordingCheck]
    machine: str

    @property
    def total(self) -> Difference:
        """All recordings together."""
        total = Difference()
        for recording in self.recordings:
            total.add(recording.difference)
        return total


def check_recordings(
    original: str | os.PathLike, recordings: Sequence[str | os.PathLike], revision: str | None
) -> None:
    """Refuse a check that cannot be done, before any work is done for it.

    Raises:
        AudioError: there is no such file, or it is no recording.
        UnsupportedOptionError: the checkpoint is of a model for text alone.
    """
    folder = resolve_checkpoint(original, revision=revision, weights=False)
    model_type = read_json(folder).get("model_type")
    if not architecture(model_type).is_speech:
        raise UnsupportedOptionError(
            f"a check compares transcripts, and a {model_type} model is not a speech model; "
            "convert it without a check"
        )
    for recording in recordings:
        if not (Path(recording).is_file() or Path(recording).is_dir()):
            raise AudioError(f"{os.fspath(recording)}: no such file to check with")
        load_audio(recording)


def check(
    original: str | os.PathLike,
    converted: Sequence[str | os.PathLike],
    recordings: Sequence[str | os.PathLike] = (),
    *,
    revision: str | None = None,
    adapter: str | os.PathLike | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> list[CheckReport]:
    """Run a checkpoint and conversions of it over recordings, and measure how far apart they are.

    Args:
        original: folder or repository of the weights that were converted.
        converted: folders of what became of them.
        recordings: files to transcribe; by default the bundled ones.
        revision: of the original's repository.
        adapter: that was put over the original before it was converted.
        progress: told what is done next.

    Returns:
        A report for each conversion.

    Raises:
        AudioError: a recording cannot be read.
        CheckpointError: a checkpoint cannot be loaded.
        OSError: there is no room for the temporary files.
        UnsupportedOptionError: they are not speech models.
    """
    files = [Path(file) for file in recordings] or bundled_recordings()
    check_recordings(original, files, revision)
    with tempfile.TemporaryDirectory(prefix="mlx-speech-check-") as scratch:
        stems = [Path(scratch, f"{number}-") for number in range(len(files))]
        runner = ModelRunner(original, revision, progress, adapter)
        size_before = runner.loaded
        references = [runner.record(file, stem) for file, stem in zip(files, stems, strict=True)]
        reports = []
        for folder in converted:
            # a model's modules refer to each other: it goes only when they are looked for
            del runner
            gc.collect()
            mx.clear_cache()
            runner = ModelRunner(folder, None, progress)
            compared = [
                runner.compare(file, stem, *reference)
                for file, stem, reference in zip(files, stems, references, strict=True)
            ]
            reports.append(CheckReport(size_before, runner.loaded, compared, machine()))
    return reports


def machine() -> str:
    """What MLX computes on, and its version."""
    return f"{device_name()}, MLX {mx.__version__}"


class ReferenceSegment(NamedTuple):
    """What the original model transcribed from one second of a recording to another."""

    begin: float
    end: float
    tokens: list[int]


class ModelRunner:
    """A checkpoint, loaded, run over recordings."""

    def __init__(
        self,
        source: str | os.PathLike,
        revision: str | None,
        progress: Callable[[str], None],
        adapter: str | os.PathLike | None = None,
    ):
        folder = resolve_checkpoint(source, revision=revision)
        self._progress = lambda doing: progress(f"{os.fspath(source)}: {doing}")
        self._progress("loading")
        start_s = time.perf_counter()
        self._model = load(folder, adapter=adapter)
        self.loaded = Loaded(weights_size(folder), time.perf_counter() - start_s)

    def record(self, file: Path, stem: Path) -> tuple[str, list[ReferenceSegment]]:
        """Transcribe; write each segment's stages to a file. The text, and its segments."""
        self._progress(f"transcribing {file.name}")
        job = prepare(file, self._model)
        segments, references = [], []
        with job.recording:
            for decoded in job.decoder.decode(job.chunks, batch_size=1):
                for chunk, said in decoded:
                    segments += said
                    tokens = [token for segment in said for token in segment.tokens]
                    end = chunk.begin + chunk.duration
                    references.append(ReferenceSegment(chunk.begin, end, tokens))
                mx.clear_cache()
            for number, stages in enumerate(self._stages(job.recording, references)):
                kept = Path(f"{stem}{number}.safetensors")
                with errors_about(kept):
                    save_tensors(kept, stages)
            return job.transcript(segments).text, references

    def compare(
        self, file: Path, stem: Path, original: str, references: list[ReferenceSegment]
    ) -> RecordingCheck:
        """The same, compared with what the original's `record` gave and wrote."""
        self._progress(f"transcribing {file.name}")
        converted = transcribe(file, self._model).text
        difference = Difference(len(original.split()), word_errors(original, converted))
        with open_recording(file) as recording:
            for number, stages in enumerate(self._stages(recording, references)):
                difference.add(differences(mx.load(f"{stem}{number}.safetensors"), stages))
                mx.clear_cache()
        return RecordingCheck(file.name, original, converted, difference)

    def _stages(
        self, recording: Recording, references: list[ReferenceSegment]
    ) -> Iterator[dict[str, mx.array]]:
        """Of each segment: what the stages give, and the logits along its tokens; in float32."""
        model, processor = self._model
        for begin, end, tokens in references:
            rate = recording.sampling_rate
            inputs = processor.speech_inputs(recording.read(round(begin * rate), round(end * rate)))
            stages = dict(model.audio_stages(inputs["input_features"]))
            stages[_LOGITS] = model.logits_along(inputs, tokens)
            yield {name: value.astype(mx.float32) for name, value in stages.items()}


def differences(original: dict[str, mx.array], converted: dict[str, mx.array]) -> Difference:
    """How far apart two models' stages are, of the same recording and along the same tokens."""
    pairs = [(name, original[name], value) for name, value in converted.items()]
    squares = {name: (mx.sum((a - b) ** 2).item(), mx.sum(a**2).item()) for name, a, b in pairs}
    before, after = original[_LOGITS], converted[_LOGITS]
    divergence = mx.sum(divergences(before, after)).item()
    return Difference(squares=squares, divergence=divergence, positions=before.shape[1])


def divergences(before: mx.array, after: mx.array) -> mx.array:
    """KL divergence of distributions from others, by their logits: (…, vocabulary) -> (…), nats.

    As p (e^d - 1 - d), where d = log q - log p: that is no less than 0 for any entry, and has the
    same sum as -p d, whose rounding errors are as large as what close distributions differ by.
    """
    log_p, log_q = (x - mx.logsumexp(x, axis=-1, keepdims=True) for x in (before, after))
    p, q, d = mx.exp(log_p), mx.exp(log_q), log_q - log_p
    # far apart, e^d may be too large for a float
    terms = mx.where(d < 1, p * (mx.expm1(mx.minimum(d, 1)) - d), q - p - p * d)
    return mx.sum(mx.maximum(terms, 0), axis=-1)


def weights_size(folder: Path) -> int:
    """Bytes of the weights that `load` reads from a folder, those in separate files included."""
    names = [*weight_files(folder), *({*SEPARATE_WEIGHTS} & {*os.listdir(folder)})]
    return sum((folder / name).stat().st_size for name in names)
