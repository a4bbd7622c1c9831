"""Batches of rows of different lengths, and in which order they come."""

from __future__ import annotations

from itertools import islice

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech import load_audio
from mlx_speech.training.batches import Batch, iterate_batches
from mlx_speech.transcription.ctc import CTCVocabulary

from .conftest import NAMES, TEXTS, write_jsonl


def all_rows(folder) -> None:
    """`train.jsonl` with all recordings, some with prompts of their own."""
    prompts = {NAMES[0]: "write this down, word for word", NAMES[2]: "words?"}
    rows = [{"audio": n, "text": TEXTS[n], "prompt": prompts.get(n)} for n in NAMES]
    write_jsonl(folder / "train.jsonl", rows)


class FakeDataset:
    """Of rows with these lengths; a batch is the rows in it."""

    def __init__(self, lengths):
        self.lengths, self.counted = lengths, []

    def __len__(self):
        return len(self.lengths)

    def num_tokens(self, index):
        return self.lengths[index]

    def batch(self, indices, random, *, counted):
        self.counted.append(counted)
        return list(indices), random.random()


class Ranks:
    def __init__(self, rank, size):
        self.rank, self.size = lambda: rank, lambda: size


def rows_of(batches) -> list[list[int]]:
    return [rows for rows, _ in batches]


class TestBatch:
    def test_rows(self, tiny, read, folder):
        """Each as the processor and the tokenizer make it, and padding behind it."""
        model, processor = tiny
        all_rows(folder)
        dataset = read(folder).train
        batch = dataset.batch(range(len(NAMES)))
        assert [array.dtype for array in batch] == [mx.int32] * 3 + [mx.float32] + [mx.int32] * 2
        size = max(map(dataset.num_tokens, range(len(NAMES))))
        assert batch.input_ids.shape == batch.labels.shape == batch.audio_positions.shape
        assert batch.input_ids.shape[1] == -(-size // 32) * 32
        assert batch.audio.shape == (len(NAMES), 240, model.encoder.config.hidden_dim)
        assert batch.letters.shape == (len(NAMES), 0)
        for row, example in enumerate(dataset.examples):
            states = dataset.audio(row)
            projected = model.project(states[None])[0]
            prompt = processor.audio_inputs([projected], example.prompt)["input_ids"][0].tolist()
            text = example.row.text + processor.tokenizer.eos_token
            target = processor.tokenizer(text)["input_ids"][0].tolist()
            padding = batch.input_ids.shape[1] - len(prompt) - len(target)
            pad = processor.tokenizer.pad_token_id
            assert batch.input_ids[row].tolist() == [*prompt, *target, *[pad] * padding]
            ignored = [-100] * len(prompt), [-100] * padding
            assert batch.labels[row].tolist() == [*ignored[0], *target, *ignored[1]]
            is_audio = np.array(batch.input_ids[row]) == processor.audio_token_id
            positions = np.array(batch.audio_positions[row])
            assert positions[is_audio].tolist() == list(range(len(projected)))
            assert (positions[~is_audio] == -1).all()
            length = batch.lengths[row].item()
            assert mx.array_equal(batch.audio[row, :length], states)
            assert not batch.audio[row, length:].any()
        prompts = [example.prompt for example in dataset.examples]
        assert "word for word" in prompts[0]
        assert prompts[1] == processor.speech_prompt(
            "can you transcribe the speech into a written format?"
        )

    def test_what_the_model_writes(self, tiny, read, folder):
        """Its own greedy ids are the target that its text becomes."""
        model, processor = tiny
        all_rows(folder)
        for example in read(folder).train.examples[3:]:
            samples = load_audio(example.row.audio.path)
            inputs = processor.speech_inputs(samples)
            output = model.generate(**inputs, max_new_tokens=60)
            answer = output[0, inputs["input_ids"].shape[1] :].tolist()
            assert processor.decode(answer, skip_special_tokens=True) == example.row.text
            assert answer == list(example.target_ids)

    def test_letters(self, tiny, read, folder):
        """Of the CTC head; then there are features, and no states."""
        _, processor = tiny
        texts = {NAMES[0]: "Don't say “Café”, 4 times!", NAMES[1]: "unlock the gate"}
        write_jsonl(folder / "train.jsonl", [{"audio": n, "text": t} for n, t in texts.items()])
        data = read(folder, train_ctc_head=True)
        batch = data.train.batch([0, 1])
        vocabulary = CTCVocabulary.of_head(256)
        expected = ["dont say café times", "unlock the gate"]
        for row, text in enumerate(expected):
            labels = batch.letters[row].tolist()
            assert vocabulary.decode(labels[: len(text)], skip_special_tokens=True) == text
            assert labels[len(text) :] == [-100] * (32 - len(text))
            features = processor.audio_processor.log_mel(load_audio(folder / NAMES[row]))
            length = batch.lengths[row].item()
            assert mx.array_equal(batch.audio[row, :length], features)
            assert not batch.audio[row, length:].any()
        assert batch.audio.shape[2] == 160
        assert data.valid.batch([0]).letters.size

    def test_letters_that_do_not_fit(self, read, folder):
        rows = [{"audio": NAMES[1], "text": t} for t in ("xy" * 38, "x" * 39, "xy" * 37, "12")]
        write_jsonl(folder / "train.jsonl", rows)
        data = read(folder, train_ctc_head=True, skip_bad=True)
        assert data.left_out == (
            "train.jsonl:1: its 75 frames are too few for the 76 letters of its text",
            # between two of the same there is a blank
            "train.jsonl:2: its 75 frames are too few for the 39 letters of its text",
            "train.jsonl:4: the text has no letters that the CTC head knows",
        )
        assert [example.frames for example in data.train.examples] == [75]

    def test_speeds(self, read, folder, encoded):
        data = read(folder, speed_perturbation=True)
        assert [example.speed for example in data.train.examples] == [0.9, 1.0, 1.1] * 4
        assert [example.speed for example in data.valid.examples] == [1.0]
        batch = data.train.batch([0, 1, 2])
        assert batch.lengths.tolist() == [e.frames for e in data.train.examples[:3]]
        assert batch.lengths.tolist() == [139, 125, 113]
        again = read(folder, speed_perturbation=True).train.batch([0, 1, 2])
        assert mx.array_equal(again.audio, batch.audio)
        assert len(encoded) == 3

    def test_speeds_that_would_be_too_long(self, read, folder):
        data = read(folder, speed_perturbation=True, max_seq_length=87)
        assert [example.speed for example in data.train.examples[:3]] == [1.0, 1.1, 0.9]

    def test_masks(self, tiny, read, folder, encoded, tmp_path):
        """Anew each time, by what is drawn; never of what is validated with."""
        data = read(folder, spec_augment=True)
        data.train.fill_cache()
        assert encoded == []
        one, two, other = (data.train.batch([0], np.random.default_rng(s)) for s in (1, 1, 2))
        assert mx.array_equal(one.audio, two.audio)
        assert not mx.array_equal(one.audio, other.audio)
        assert not list(tmp_path.glob("adapters/cache/*.safetensors"))
        plain = read(folder)
        assert mx.array_equal(
            data.valid.batch([0], np.random.default_rng(1)).audio, plain.valid.batch([0]).audio
        )
        assert len(list(tmp_path.glob("adapters/cache/*.safetensors"))) == 1


class TestOrder:
    def test_every_row_once_an_epoch(self):
        lengths = [30, 10, 20, 60, 50, 40, 70]
        batches = rows_of(iterate_batches(FakeDataset(lengths), 3, 2048))
        assert sorted(row for batch in batches for row in batch) == list(range(7))
        # neighbours by length, the longest apart
        assert sorted(batches) == sorted([[1, 2, 0], [5, 4, 3], [6]])

    def test_fewer_rows_than_a_batch(self):
        assert rows_of(iterate_batches(FakeDataset([3, 1, 2]), 8, 2048)) == [[1, 2, 0]]

    def test_another_order_in_each_epoch(self):
        dataset = FakeDataset(range(20))
        found = rows_of(islice(iterate_batches(dataset, 2, 2048, loop=True, seed=3), 40))
        epochs = [found[at : at + 10] for at in range(0, 40, 10)]
        assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
        assert len({str(epoch) for epoch in epochs}) == 4
        drawn = islice(iterate_batches(dataset, 2, 2048, loop=True, seed=3), 40)
        assert len({number for _, number in drawn}) == 40
        assert rows_of(islice(iterate_batches(dataset, 2, 2048, True, 3), 40)) == found
        assert rows_of(islice(iterate_batches(dataset, 2, 2048, True, 4), 40)) != found

    def test_a_validation_is_always_the_same(self):
        dataset = FakeDataset(range(20))
        one, two = (list(iterate_batches(dataset, 2, 2048)) for _ in range(2))
        assert one == two
        assert rows_of(one) != sorted(rows_of(one))  # not the shortest first

    @pytest.mark.parametrize("start", [1, 9, 10, 23])
    def test_going_on(self, start):
        dataset = FakeDataset(range(20))
        options = {"loop": True, "seed": 1}
        whole = list(islice(iterate_batches(dataset, 2, 2048, **options), 30))
        rest = islice(iterate_batches(dataset, 2, 2048, **options, start=start), 30 - start)
        assert list(rest) == whole[start:]

    def test_a_validation_begins_at_its_beginning(self):
        dataset = FakeDataset(range(6))
        expected = list(iterate_batches(dataset, 2, 2048))
        assert list(iterate_batches(dataset, 2, 2048, start=2)) == expected

    @pytest.mark.parametrize("rows", [8, 9, 10])
    def test_several_processes(self, rows):
        """Together they have what one would have; all have the same number of batches."""
        dataset = FakeDataset(range(rows))
        alone = rows_of(iterate_batches(dataset, 4, 2048))
        shares = [
            rows_of(iterate_batches(dataset, 4, 2048, comm_group=Ranks(r, 2))) for r in (0, 1)
        ]
        for whole, *parts in zip(alone, *shares, strict=True):
            assert all(parts)
            assert {row for part in parts for row in part} == set(whole)

    def test_as_mlx_lm_asks_for_them(self, read, folder):
        """Its `evaluate` and `train` call it by these names, and spread what comes."""
        all_rows(folder)
        dataset = read(folder).train
        given = {"dataset": dataset, "batch_size": 2, "max_seq_length": 2048}
        batches = list(iterate_batches(**given, comm_group=mx.distributed.init()))
        assert all(isinstance(batch, Batch) for batch in batches)
        assert sorted(len(batch.lengths) for batch in batches) == [1, 2, 2]
        looping = iterate_batches(**given, loop=True, comm_group=mx.distributed.init())
        first = next(iter(looping))
        same = [mx.array_equal(one, two) for one, two in zip(first, batches[0], strict=True)]
        assert all(same)
