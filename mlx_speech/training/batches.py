"""Recordings and their texts -> batches of arrays."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..models.loss import IGNORED
from .augmentation import spec_augment
from .encoded_audio import AudioEncoder
from .examples import Example
from .ranks import Ranks

#: lengths are rounded up to multiples, so that a compiled step sees few shapes: tokens as in
#: mlx-lm, and windows of the projector
_TOKENS, _WINDOWS = 32, 8


class Batch(NamedTuple):
    """Several recordings with what is to be written about them, padded on the right.

    input_ids: (rows, length) prompt, with an audio token for each of the recording's, text, end.
    labels: (rows, length) the same, and -100 where there is no loss: prompt, audio and padding.
    audio_positions: (rows, length) which of the recording's audio tokens stands there; -1 at text.
    audio: (rows, frames, size) what the encoder made of the recordings, zero behind their ends; or,
        where the encoder is run in each step, their features.
    lengths: (rows,) frames of each.
    letters: (rows, n) labels of the CTC head, -100 behind their ends; n is 0 where it is not
        trained.
    """

    input_ids: mx.array
    labels: mx.array
    audio_positions: mx.array
    audio: mx.array
    lengths: mx.array
    letters: mx.array


class RecordingDataset:
    """Examples and their audio.

    Args:
        encoder: gives the audio.
        processor: of the model.
        encoded: whether a batch has the encoder's states, and not features.
        masked: whether features are masked, anew each time (see `spec_augment`).
        ranks: that train together.
        batch_size: that they will train with, all together.

    Attributes:
        examples: in the order of their rows; of a recording that is perturbed there are several.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        encoder: AudioEncoder,
        processor: Any,
        *,
        encoded: bool = True,
        masked: bool = False,
        ranks: Ranks | None = None,
        batch_size: int = 1,
    ):
        self.examples = list(examples)
        self._encoder, self._encoded, self._masked = encoder, encoded, masked
        self._ranks, self._batch_size = ranks or Ranks(None), batch_size
        self._audio_id, tokenizer = processor.audio_token_id, processor.tokenizer
        pad = tokenizer.pad_token_id
        self._pad_id = tokenizer.eos_token_id if pad is None else pad

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def num_tokens(self, index: int) -> int:
        """Of prompt, audio and text."""
        example = self.examples[index]
        audio = self._encoder.num_audio_tokens(example.frames)
        return len(example.prompt_ids) - 1 + audio + len(example.target_ids)

    @property
    def cached(self) -> list[Example]:
        """Those of which the encoder always gives the same, which is therefore kept."""
        return self.examples if self._encoded and not self._masked else []

    def fill_cache(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Encode what batches will need, as far as there is room to keep it; of several ranks, each
        what its own will.

        Args:
            progress: called with how many recordings are done, and of how many.
        """
        ranks = self._ranks
        shares = shared_rows(self, self._batch_size, ranks.rank, ranks.size)
        needed = sorted({row for rows, _ in shares for row in rows}) if self.cached else []
        self._encoder.fill_cache([self.examples[row] for row in needed], ranks, progress)

    def audio(self, index: int, random: np.random.Generator | None = None) -> mx.array:
        """What a batch has of one example, without padding: (frames, size).

        Args:
            random: what masks are drawn from, if there are to be some.
        """
        example = self.examples[index]
        if self.cached:
            return self._encoder.states(example)
        features = self._encoder.features(example)
        if self._masked and random is not None:
            features = spec_augment(features, random)
        return self._encoder.encode(features) if self._encoded else features

    def batch(
        self,
        indices: Sequence[int],
        random: np.random.Generator | None = None,
        *,
        counted: bool = True,
    ) -> Batch:
        """Some of the examples.

        Args:
            random: as of `audio`.
            counted: whether there is to be a loss of them.
        """
        audio = [self.audio(index, random) for index in indices]
        lengths = [len(each) for each in audio]
        examples = [self.examples[index] for index in indices]
        rows = [self._ids(each, size) for each, size in zip(examples, lengths, strict=True)]
        ids, labels, positions = map(list, zip(*rows, strict=True))
        letters = [each.letters for each in examples]
        if not counted:
            labels = [[IGNORED] * len(row) for row in labels]
            letters = [(IGNORED,) * len(row) for row in letters]
        frames = _rounded_up(max(lengths), _WINDOWS * self._encoder.window_size)
        return Batch(
            _padded(ids, self._pad_id),
            _padded(labels, IGNORED),
            _padded(positions, -1),
            mx.stack([mx.pad(each, [(0, frames - len(each)), (0, 0)]) for each in audio]),
            mx.array(lengths),
            _padded(letters, IGNORED),
        )

    def _ids(self, example: Example, frames: int) -> tuple[list[int], list[int], list[int]]:
        """A row of `input_ids`, `labels` and `audio_positions`."""
        tokens = self._encoder.num_audio_tokens(frames)
        at = example.prompt_ids.index(self._audio_id)
        before, after = example.prompt_ids[:at], example.prompt_ids[at + 1 :]
        target = example.target_ids
        ids = [*before, *[self._audio_id] * tokens, *after, *target]
        labels = [*[IGNORED] * (len(ids) - len(target)), *target]
        positions = [*[-1] * at, *range(tokens), *[-1] * (len(after) + len(target))]
        return ids, labels, positions


def shared_rows(
    dataset: RecordingDataset, batch_size: int, rank: int, size: int
) -> list[tuple[list[int], bool]]:
    """What a rank has of each batch, which is of rows of about the same length, and whether that
    counts: where a batch is too small for all, the rank that has none of it takes part in the step
    with a row of another.

    Args:
        size: number of ranks.
    """
    order = sorted(range(len(dataset)), key=dataset.num_tokens)
    whole = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [(batch[rank::size] or batch[:1], rank < len(batch)) for batch in whole]


def iterate_batches(
    dataset: RecordingDataset,
    batch_size: int,
    max_seq_length: int,
    loop: bool = False,
    seed: int | None = None,
    comm_group: Any = None,
    *,
    start: int = 0,
) -> Iterator[Batch]:
    """Batches of recordings of about the same length, as mlx-lm's trainer asks for them.

    Which recordings stand together is always the same; the order of the batches is another in each
    epoch. All recordings are in one of them: the last is smaller, where they do not come out even.

    Args:
        max_seq_length: longer examples have been refused already.
        loop: go on for ever, epoch after epoch.
        seed: of the order, and of masks; by default 0.
        comm_group: several ranks, each of which gets its share of each batch (see `shared_rows`).
        start: with `loop`, go on behind so many batches, as if they had been there.
    """
    rank, size = (0, 1) if comm_group is None else (comm_group.rank(), comm_group.size())
    batches = shared_rows(dataset, batch_size, rank, size)
    seed, number = seed or 0, start if loop else 0
    while loop or number < len(batches):
        epoch, place = divmod(number, len(batches))
        if place == 0 or number == start:
            permutation = np.random.default_rng([seed, epoch]).permutation(len(batches))
        random = np.random.default_rng([seed, number, rank])
        rows, counted = batches[permutation[place]]
        yield dataset.batch(rows, random, counted=counted)
        number += 1


def _padded(rows: Sequence[Sequence[int]], fill: int) -> mx.array:
    """(rows, length) integers, the length rounded up."""
    length = _rounded_up(max(map(len, rows)), _TOKENS)
    filled = np.full((len(rows), length), fill, np.int32)
    for row, values in zip(filled, rows, strict=True):
        row[: len(values)] = values
    return mx.array(filled)


def _rounded_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
