"""Rows of data -> what the model is trained on, checked before training begins."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError, UnsupportedOptionError
from ..files import replacing
from ..processing.request import TranscriptionRequest
from ..transcription.ctc import ANY, CTCVocabulary, frames_needed
from .augmentation import samples_at_speed
from .rows import Row

_SILENT_PEAK = 1e-3  #: a recording that has no sample above it (-60 dB) is silent


class Checked(NamedTuple):
    """What is known of a recording that could be read.

    samples: number of them, at the model's rate.
    peak: greatest magnitude.
    """

    samples: int
    peak: float


@dataclass(frozen=True)
class Example:
    """A row that can be trained on.

    digest: of the recording's bytes.
    speed: at which the recording is, 1 unless it is perturbed.
    frames: of its features.
    prompt: what stands before the answer, with one audio token.
    prompt_ids: the same as token ids.
    target_ids: those of the text, and of the end.
    letters: labels of the text for the CTC head, where that is trained.
    """

    row: Row
    digest: str
    speed: float
    frames: int
    prompt: str
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    letters: tuple[int, ...]


class ExampleMaker:
    """Checks rows and tokenizes them.

    Args:
        max_seq_length: tokens of prompt, audio and text together that an example may have; no
            more than the model's context in any case.
        letters: whether the CTC head's labels are needed.
        checked: what is known of recordings by their digest; added to.

    Raises:
        UnsupportedOptionError: nobody knows the labels of the model's CTC head.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        max_seq_length: int,
        letters: bool,
        checked: dict[str, Checked],
    ):
        self._processor, self._extractor = processor, processor.audio_processor
        self._limit = min(max_seq_length, model.context_length)
        self._checked = checked
        self._prompts: dict[TranscriptionRequest, tuple[str, tuple[int, ...]]] = {}
        self._vocabulary: CTCVocabulary | None = None
        if letters:
            size = model.encoder.config.output_dim
            self._vocabulary = CTCVocabulary.of_head(size)
            if self._vocabulary is None:
                message = "{option}: nobody knows what the {size} labels of this CTC head are"
                raise UnsupportedOptionError.about(message, option="train_ctc_head", size=size)

    def __call__(self, row: Row, speeds: tuple[float, ...] = (1.0,)) -> list[Example]:
        """An example for each of `speeds` at which the row is not too long, 1 among them.

        Raises:
            MlxSpeechError: the row cannot be used.
        """
        target_ids = self._target(row.text)
        prompt, prompt_ids = self._prompt(row)
        digest, recording = self.check_audio(row)
        letters = self._letters(row.text)
        found = []
        for speed in speeds:
            samples = samples_at_speed(recording.samples, speed)
            frames = self._extractor.num_frames(samples, ended=True)
            tokens = (
                len(prompt_ids) - 1 + self._extractor.num_audio_tokens(frames) + len(target_ids)
            )
            problem = ""
            if tokens > self._limit:
                seconds = recording.samples / self._extractor.sampling_rate
                problem = f"it is too long: {tokens} tokens of prompt, text and {seconds:.1f} s of "
                problem += f"audio, but there may be {self._limit}"
            elif frames_needed(letters) > frames:
                problem = (
                    f"its {frames} frames are too few for the {len(letters)} letters of its text"
                )
            if not problem:
                ids = prompt_ids, target_ids
                found.append(Example(row, digest, speed, frames, prompt, *ids, letters))
            elif speed == 1:
                raise InputError(problem)
        return found

    def _target(self, text: str) -> tuple[int, ...]:
        tokenizer = self._processor.tokenizer
        ids = tokenizer.encode(text, add_special_tokens=False)
        special = set(ids) & {*tokenizer.all_special_ids, self._processor.audio_token_id}
        if special:
            token = tokenizer.convert_ids_to_tokens(min(special))
            raise InputError(f"the text has {token} in it, which is a special token")
        return *ids, tokenizer.eos_token_id

    def _prompt(self, row: Row) -> tuple[str, tuple[int, ...]]:
        asked = TranscriptionRequest(
            prompt=row.prompt, language=row.language, punctuate=row.punctuate
        )
        if asked not in self._prompts:
            instruction = self._processor.prompts.instruction(asked)
            prompt = self._processor.speech_prompt(instruction)
            ids = tuple(self._processor.tokenizer.encode(prompt))
            if ids.count(self._processor.audio_token_id) != 1:
                token = self._processor.audio_token
                raise InputError(f"the prompt has {token} in it, which stands for the recording")
            self._prompts[asked] = prompt, ids
        return self._prompts[asked]

    def check_audio(self, row: Row) -> tuple[str, Checked]:
        """What is known of the recording of a row, whose digest it is known by; decodes it, if
        nothing is.

        Raises:
            MlxSpeechError: it cannot be used.
        """
        digest = row.audio.digest()
        if digest not in self._checked:
            with row.audio.open(self._extractor.sampling_rate) as recording:
                self._checked[digest] = Checked(recording.size, recording.peak)
        found = self._checked[digest]
        if found.peak < _SILENT_PEAK:
            raise InputError("its audio is silent")
        return digest, found

    def _letters(self, text: str) -> tuple[int, ...]:
        if self._vocabulary is None:
            return ()
        words = [[n for n in self._vocabulary.labels(word) if n != ANY] for word in text.split()]
        space = self._vocabulary.space
        letters = [label for word in words if word for label in (space, *word)][1:]
        if not letters:
            raise InputError("the text has no letters that the CTC head knows")
        return tuple(letters)


@contextmanager
def checked_recordings(file: Path, *, kept: bool = True) -> Iterator[dict[str, Checked]]:
    """What earlier runs found of recordings, by their digests; what is added is kept in `file`, so
    that nothing is decoded twice to be checked.

    Args:
        kept: whether it is.
    """
    checked: dict[str, Checked] = {}
    try:
        for digest, (samples, peak) in json.loads(file.read_text()).items():
            checked[digest] = Checked(int(samples), float(peak))
    except (OSError, ValueError, TypeError, AttributeError):  # none, or damaged: it is made again
        checked = {}
    known = len(checked)
    try:
        yield checked
    finally:
        if kept and len(checked) > known:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(checked))
