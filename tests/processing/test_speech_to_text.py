"""Speech2Text's features, tokenizer and processor, against what the reference made of them."""

from __future__ import annotations

import json
import random
import shutil
import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, ROOT, edit_json, find_recording

from mlx_speech import (
    AudioError,
    CheckpointError,
    InputError,
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
    Speech2TextProcessor,
    Speech2TextTokenizer,
    UnsupportedOptionError,
    load_audio,
)
from mlx_speech.generation import StreamingDetokenizer
from mlx_speech.processing import kaldi_fbank as fbank

TINY_S2T = ROOT / "examples" / "tiny-s2t"
REFERENCE = json.loads((DATA / "reference" / "tiny_s2t_reference.json").read_text())
GOLDEN = dict(np.load(DATA / "reference" / "tiny_s2t_golden.npz"))


@pytest.fixture(scope="module")
def processor() -> Speech2TextProcessor:
    return Speech2TextProcessor.from_pretrained(TINY_S2T)


@pytest.fixture
def tokenizer() -> Speech2TextTokenizer:
    return Speech2TextTokenizer.from_pretrained(TINY_S2T)


@pytest.fixture
def s2t_copy(tmp_path) -> Path:
    """A copy of the checkpoint without its weights, to be damaged."""
    ignore = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(TINY_S2T, tmp_path / "checkpoint", ignore=ignore))


def noise(length: int, seed: int = 0) -> mx.array:
    rng = np.random.default_rng(seed)
    return mx.array(rng.normal(0, 0.1, length).astype(np.float32))


class TestFeatures:
    @pytest.mark.parametrize("index", range(3))
    def test_golden(self, processor, index):
        """All are within -4 and 4. The reference's float32 transform rounds the quietest bins."""
        inputs = processor(load_audio(find_recording(str(GOLDEN[f"{index}.file"]))))
        expected = GOLDEN[f"{index}.input_features"]
        difference = np.abs(np.array(inputs["input_features"][0]) - expected)
        assert difference.max() <= 1e-3
        assert difference.mean() <= 1e-6
        assert inputs["attention_mask"].tolist() == [[1] * len(expected)]

    def test_a_tone_in_closed_form(self):
        """A frame of a cosine on bin 32 has, there and in its neighbours, what theory says."""
        amplitude, bin_32 = 0.25, 1000.0
        time = np.arange(400) / 16000
        signal = (amplitude * np.cos(2 * np.pi * bin_32 * time)).astype(np.float32)
        got = np.array(fbank.fbank(mx.array(signal))[0])
        frame = signal.astype(np.float64) * 32768
        frame = frame - frame.mean()
        emphasised = np.array([frame[n] - 0.97 * frame[max(n - 1, 0)] for n in range(400)])
        povey = np.array([0.5 - 0.5 * np.cos(2 * np.pi * n / 399) for n in range(400)]) ** 0.85
        power = np.abs(np.fft.fft(emphasised * povey, 512)[:256]) ** 2
        mel = 1127 * np.log(1 + np.arange(256) * 31.25 / 700)
        low, high = (1127 * np.log(1 + hertz / 700) for hertz in (20, 8000))
        edges = np.linspace(low, high, 82)
        expected = [np.log(power @ np.interp(mel, edges[m : m + 3], [0, 1, 0])) for m in range(80)]
        np.testing.assert_allclose(got, expected, rtol=0, atol=5e-4)
        assert got.argmax() == np.abs(edges[1:-1] - mel[32]).argmin()

    @pytest.mark.parametrize(
        ("samples", "frames"), [(400, 1), (559, 1), (560, 2), (16000, 98), (16079, 98), (16080, 99)]
    )
    def test_only_whole_frames_count(self, samples, frames):
        features = Speech2TextFeatureExtractor()(noise(samples))
        assert features["input_features"].shape == (1, frames, 80)
        assert features["attention_mask"].shape == (1, frames)

    @pytest.mark.parametrize("samples", [0, 1, 399])
    def test_too_short(self, samples):
        with pytest.raises(AudioError, match=f"of {samples} samples .* at least 400 .*25 ms"):
            Speech2TextFeatureExtractor()(mx.zeros(samples))

    def test_mean_and_deviation(self):
        features = np.array(Speech2TextFeatureExtractor()(noise(50000))["input_features"][0])
        np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-5)

    @pytest.mark.parametrize("means", [True, False])
    @pytest.mark.parametrize("deviations", [True, False])
    def test_what_is_normalised(self, means, deviations):
        raw = np.array(fbank.fbank(noise(9999)), np.float64)
        extractor = Speech2TextFeatureExtractor(normalize_means=means, normalize_vars=deviations)
        expected = raw - raw.mean(axis=0) * means
        expected = expected / raw.std(axis=0) if deviations else expected
        got = extractor(noise(9999))["input_features"][0]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)

    def test_without_normalisation(self):
        extractor = Speech2TextFeatureExtractor(do_ceptral_normalize=False)
        assert mx.array_equal(extractor(noise(9999))["input_features"][0], fbank.fbank(noise(9999)))

    @pytest.mark.parametrize("samples", [400, 16000, 700000])
    def test_silence_is_zero(self, samples):
        """Nothing to divide by; the logarithm's floor itself is not exact in binary."""
        raw = fbank.fbank(mx.zeros(samples))
        assert mx.allclose(raw, mx.array(np.log(np.finfo(np.float32).eps))).item()
        assert not Speech2TextFeatureExtractor()(mx.zeros(samples))["input_features"].any().item()

    def test_a_constant_without_subtracted_means_is_left(self):
        extractor = Speech2TextFeatureExtractor(normalize_means=False)
        features = extractor(mx.zeros(16000))["input_features"][0]
        assert mx.array_equal(features, fbank.fbank(mx.zeros(16000)))

    def test_a_batch_gives_what_single_recordings_give(self):
        extractor = Speech2TextFeatureExtractor(padding_value=-7.0)
        recordings = [noise(16000), mx.zeros(400), noise(30001, seed=1) * 1e-3, noise(700)]
        batch = extractor(recordings)
        assert batch["attention_mask"].dtype == mx.int32
        assert batch["input_features"].dtype == mx.float32
        for row, recording in enumerate(recordings):
            alone = extractor(recording)["input_features"][0]
            assert batch["attention_mask"][row].tolist() == [1] * len(alone) + [0] * (
                186 - len(alone)
            )
            assert mx.array_equal(batch["input_features"][row, : len(alone)], alone)
            assert (batch["input_features"][row, len(alone) :] == -7).all().item()

    def test_chunks_give_what_the_whole_gives(self, monkeypatch):
        recording = noise(100_000)
        whole = Speech2TextFeatureExtractor()(recording)["input_features"]
        for frames in (1, 7, 200, 622, 623):
            monkeypatch.setattr(fbank, "CHUNK_FRAMES", frames)
            chunked = Speech2TextFeatureExtractor()(recording)["input_features"]
            assert mx.abs(chunked - whole).max().item() <= 1e-6

    def test_memory_beyond_the_result_does_not_grow(self):
        def working_memory(seconds: int) -> int:
            recording = mx.zeros(16000 * seconds)
            mx.eval(recording)
            mx.clear_cache()
            mx.reset_peak_memory()
            before = mx.get_active_memory()
            features = fbank.fbank(recording)
            mx.eval(features)
            return mx.get_peak_memory() - before - 2 * features.nbytes

        assert working_memory(164) <= 1.1 * working_memory(41)

    def test_in_another_thread(self):
        results = []

        def work():
            features = Speech2TextFeatureExtractor()(noise(9999))["input_features"]
            results.append(features.tolist())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        work()
        assert results[0] == results[1]

    def test_dither(self, monkeypatch):
        """Noise of that deviation, the same for the same seed, for a batch and alone."""
        extractor = Speech2TextFeatureExtractor(dither=4.0, do_ceptral_normalize=False)
        first = extractor(mx.zeros(90000), seed=3)["input_features"]
        assert mx.array_equal(first, extractor(mx.zeros(90000), seed=3)["input_features"])
        assert not mx.allclose(first, extractor(mx.zeros(90000), seed=4)["input_features"]).item()
        batch = extractor([noise(400), mx.zeros(90000)], seed=3)["input_features"]
        assert mx.array_equal(batch[1], first[0])
        loud = Speech2TextFeatureExtractor(dither=40.0, do_ceptral_normalize=False)
        louder = loud(mx.zeros(90000), seed=3)["input_features"] - first
        assert mx.allclose(louder, mx.array(2 * np.log(10)), atol=1e-4).item()
        mx.random.seed(0)
        unseeded = extractor(mx.zeros(90000))["input_features"]
        assert not mx.array_equal(unseeded, extractor(mx.zeros(90000))["input_features"])
        mx.random.seed(0)
        assert mx.array_equal(unseeded, extractor(mx.zeros(90000))["input_features"])
        monkeypatch.setattr(fbank, "CHUNK_FRAMES", 100)
        chunked = extractor(mx.zeros(90000), seed=3)["input_features"][0]
        # every frame has noise of its own
        assert len({tuple(frame) for frame in chunked.tolist()}) == len(chunked)

    def test_sampling_rate_is_checked(self):
        extractor = Speech2TextFeatureExtractor()
        extractor(noise(999), sampling_rate=16000)
        with pytest.raises(InputError, match=r"rate of 8000 Hz, .* 16000 Hz: resample"):
            extractor(noise(999), sampling_rate=8000)

    def test_what_is_no_audio(self):
        extractor = Speech2TextFeatureExtractor()
        with pytest.raises(AudioError, match="int16"):
            extractor(np.zeros(1000, np.int16))
        with pytest.raises(AudioError, match="not mono"):
            extractor([mx.zeros((2, 1000))])
        with pytest.raises(InputError, match="no audio"):
            extractor([])

    def test_options_of_a_checkpoint(self, s2t_copy):
        """From either file; processor_config.json counts."""
        options = {"sampling_rate": 8000, "num_mel_bins": 40, "normalize_vars": False}
        edit_json(s2t_copy / "preprocessor_config.json", feature_size=40, **options)
        assert Speech2TextFeatureExtractor.from_pretrained(s2t_copy).sampling_rate == 16000
        (s2t_copy / "processor_config.json").unlink()
        extractor = Speech2TextFeatureExtractor.from_pretrained(s2t_copy)
        assert {name: getattr(extractor, name) for name in options} == options
        assert extractor.do_ceptral_normalize
        assert extractor(noise(8000), 8000)["input_features"].shape == (1, 98, 40)


class TestTokenizer:
    @pytest.mark.parametrize("name", sorted(REFERENCE["files"]))
    def test_texts_of_the_reference(self, processor, name):
        for answer in REFERENCE["files"][name].values():
            assert processor.decode(answer["ids"]) == answer["text"]

    def test_ids_of_the_reference(self, tokenizer):
        """Where the model wrote the pieces that the tokenizer would: all but a few."""
        answers = [a for entry in REFERENCE["files"].values() for a in entry.values()]
        french = [a for a in answers if a["ids"][1] == 5]
        same = [tokenizer.encode(a["text"]) == a["ids"][1:] for a in french]
        assert len(french) == 46
        assert sum(same) >= 40

    def test_language_ids(self, tokenizer):
        assert tokenizer.lang_code_to_id == REFERENCE["lang_code_to_id"]
        assert tokenizer.language_id("de") == 11
        assert tokenizer.langs == ["pt", "fr", "ru", "nl", "ro", "it", "es", "de"]

    def test_target_language(self, tokenizer):
        assert (tokenizer.tgt_lang, tokenizer.prefix_tokens) == ("fr", [5])
        tokenizer.tgt_lang = "de"
        assert tokenizer.encode("set") == [11, 48, 16, 2]
        other = Speech2TextTokenizer.from_pretrained(TINY_S2T, tgt_lang=None)
        assert other.tgt_lang == "pt"

    def test_unknown_language(self, tokenizer):
        with pytest.raises(UnsupportedOptionError, match=r"'en', but to pt, fr, ru, .*, de$"):
            tokenizer.tgt_lang = "en"
        assert tokenizer.tgt_lang == "fr"
        with pytest.raises(UnsupportedOptionError, match="'en', but to pt"):
            Speech2TextTokenizer.from_pretrained(TINY_S2T, tgt_lang="en")

    def test_one_language(self, s2t_copy):
        edit_json(s2t_copy / "tokenizer_config.json", lang_codes=None, tgt_lang="fr")
        tokenizer = Speech2TextTokenizer.from_pretrained(s2t_copy)
        assert tokenizer.encode("set") == [48, 16, 2]
        assert (tokenizer.tgt_lang, tokenizer.lang_code_to_id) == (None, {})
        with pytest.raises(UnsupportedOptionError, match=r"one language .* 'fr'.*multilingual"):
            tokenizer.language_id("fr")

    def test_unknown_set_of_languages(self, s2t_copy):
        edit_json(s2t_copy / "tokenizer_config.json", lang_codes="covost")
        with pytest.raises(CheckpointError, match="'covost' is not known; known are mustc"):
            Speech2TextTokenizer.from_pretrained(s2t_copy)

    def test_vocabulary_that_differs_about_languages(self, s2t_copy):
        edit_json(s2t_copy / "vocab.json", **{"<lang:fr>": 4, "<lang:pt>": 5})
        with pytest.warns(UserWarning, match=r"vocab.json: .* pt is 4 and 5, fr is 5 and 4; Sent"):
            tokenizer = Speech2TextTokenizer.from_pretrained(s2t_copy)
        assert tokenizer.lang_code_to_id == REFERENCE["lang_code_to_id"]

    def test_ids_come_from_the_vocabulary(self, s2t_copy):
        edit_json(s2t_copy / "vocab.json", **{"▁zero": 34, "▁zéro": 35})
        tokenizer = Speech2TextTokenizer.from_pretrained(s2t_copy)
        assert tokenizer.encode("zero zéro") == [5, 34, 35, 2]
        assert tokenizer.decode([34, 35]) == "zero zéro"

    def test_case(self):
        tokenizer = Speech2TextTokenizer.from_pretrained(
            TINY_S2T, do_lower_case=True, do_upper_case=True
        )
        ids = tokenizer.encode("SET the Kitchen<lang:de> À</s>")
        assert ids == [5, 48, 16, 12, 21, 12, 130, 57, 161, 46, 11, 12, 18, 2, 2]
        assert tokenizer.decode(ids) == "SET THE KITCHEN À"
        assert tokenizer.decode(ids, skip_special_tokens=False) == (
            "<lang:fr> SET THE KITCHEN<lang:de> À</s> </s>"
        )

    def test_without_options_case_matters(self, tokenizer):
        assert tokenizer.encode("Set") == [5, 12, 3, 16, 2]
        assert tokenizer.decode([48, 16]) == "set"

    def test_what_the_vocabulary_lacks(self, tokenizer):
        ids = tokenizer.encode("日 set")
        assert ids == [5, 12, 3, 48, 16, 2]
        assert tokenizer.decode(ids) == "set"
        assert tokenizer.decode([13, 99999, 13, -1]) == "a<unk> a<unk>"

    def test_batches_are_padded_on_the_right(self, tokenizer):
        batch = tokenizer(["set", "set the kitchen"])
        assert batch["input_ids"].tolist() == [
            [5, 48, 16, 2, 1, 1, 1, 1, 1, 1, 1],
            [5, 48, 16, 12, 21, 12, 130, 57, 161, 46, 2],
        ]
        assert batch["attention_mask"].sum(axis=1).tolist() == [4, 11]
        assert batch["attention_mask"][0].tolist() == [1] * 4 + [0] * 7
        assert tokenizer.batch_decode(batch["input_ids"]) == ["set", "set the kitchen"]
        assert tokenizer("set")["input_ids"].tolist() == [[5, 48, 16, 2]]

    def test_half_a_surrogate_pair(self, tokenizer):
        with pytest.raises(InputError, match=r"half of a surrogate pair, '\\ud83d', at char.* 4"):
            tokenizer.encode("set \ud83d")

    def test_properties(self, tokenizer):
        names = ("bos", "pad", "eos", "unk")
        assert [getattr(tokenizer, f"{name}_token_id") for name in names] == [0, 1, 2, 3]
        assert tokenizer.vocab_size == 320
        assert tokenizer.all_special_ids == [0, 2, 3, 1, *range(4, 12)]

    def test_special_tokens_of_older_checkpoints(self, s2t_copy):
        """special_tokens_map.json counts where the newer field is missing."""
        config = s2t_copy / "tokenizer_config.json"
        edit_json(config, added_tokens_decoder=None, extra_special_tokens=None, eos_token=None)
        special = {"eos_token": {"content": "▁six", "lstrip": False}, "unk_token": "▁un"}
        special["additional_special_tokens"] = ["<x>", {"content": "<x>y"}]
        edit_json(s2t_copy / "special_tokens_map.json", **special)
        edit_json(s2t_copy / "vocab.json", **{"<x>": 320, "<x>y": 321})
        tokenizer = Speech2TextTokenizer.from_pretrained(s2t_copy)
        assert tokenizer.encode("set<x>y<x>日") == [5, 48, 16, 321, 320, 12, 19, 17]
        assert tokenizer.decode([320, 13, 19, 321]) == "a"

    @pytest.mark.parametrize("file", ["vocab.json", "sentencepiece.bpe.model"])
    def test_missing_file(self, s2t_copy, file):
        (s2t_copy / file).unlink()
        with pytest.raises(CheckpointError, match=f"no {file} here"):
            Speech2TextTokenizer.from_pretrained(s2t_copy)

    @pytest.mark.parametrize("file", ["vocab.json", "sentencepiece.bpe.model"])
    @pytest.mark.parametrize("content", [b"", b"not what it should be"])
    def test_damaged_file(self, s2t_copy, file, content):
        (s2t_copy / file).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{file}: not .*readable") as caught:
            Speech2TextTokenizer.from_pretrained(s2t_copy)
        assert "\n" not in str(caught.value)

    def test_vocabulary_without_a_special_token(self, s2t_copy):
        edit_json(s2t_copy / "vocab.json", **{"<pad>": None})
        with pytest.raises(CheckpointError, match=r"vocab.json: lacks the special token <pad>"):
            Speech2TextTokenizer.from_pretrained(s2t_copy)


class TestProcessor:
    def test_audio(self, processor):
        inputs = processor([noise(16000), noise(800)], sampling_rate=16000)
        assert sorted(inputs) == ["attention_mask", "input_features"]
        assert inputs["input_features"].shape == (2, 98, 80)

    def test_text(self, processor):
        inputs = processor(text="set")
        assert inputs["input_ids"].tolist() == [[5, 48, 16, 2]]

    def test_both(self, processor):
        inputs = processor(noise(16000), "set")
        assert sorted(inputs) == ["attention_mask", "input_features", "labels"]
        assert inputs["labels"].tolist() == [[5, 48, 16, 2]]

    def test_neither(self, processor):
        with pytest.raises(InputError, match="give audio, text or both"):
            processor()

    def test_sampling_rate_is_checked(self, processor):
        with pytest.raises(InputError, match="44100"):
            processor(noise(9999), sampling_rate=44100)

    def test_items_are_attributes(self, processor):
        inputs = processor(noise(16000), "set")
        assert inputs.input_features is inputs["input_features"]
        assert inputs.labels is inputs["labels"]
        assert processor(text="set").input_ids.tolist() == [[5, 48, 16, 2]]
        assert processor.feature_extractor(noise(400)).attention_mask.tolist() == [[1]]
        with pytest.raises(AttributeError, match="no input_ids here, but input_features, att"):
            inputs.input_ids  # noqa: B018

    @pytest.mark.parametrize("padding", [True, "longest"])
    @pytest.mark.parametrize("kind", ["mlx", "pt", "np"])
    def test_arrays(self, processor, kind, padding):
        options = {"return_tensors": kind, "padding": padding}
        recordings, texts = [noise(16000), noise(800)], ["set", "set the kitchen"]
        expected = processor(recordings, texts)
        separate = (
            processor(recordings, texts, **options),
            processor.feature_extractor(recordings, **options),
            {"labels": processor.tokenizer(texts, **options).input_ids},
            {"labels": processor(text=texts, **options).input_ids},
        )
        for result in separate:
            for name, array in result.items():
                assert isinstance(array, mx.array)
                assert mx.array_equal(array, expected[name]).item()

    @pytest.mark.parametrize("part", ["audio", "text", "both", "feature_extractor", "tokenizer"])
    def test_what_arrays_there_are_not(self, processor, part):
        def process(*, lengths=(16000, 800), **options):
            recordings = [noise(length) for length in lengths]
            texts = ["set " * length for length in lengths]
            if part == "feature_extractor":
                return processor.feature_extractor(recordings, **options)
            if part == "tokenizer":
                return processor.tokenizer(texts, **options)
            audio = None if part == "text" else recordings
            return processor(audio, None if part == "audio" else texts, **options)

        assert len(process(lengths=(800, 800), padding=False)) >= 2
        with pytest.raises(InputError, match="differ in length: an array of them needs padding"):
            process(padding=False)
        with pytest.raises(UnsupportedOptionError, match=r"return_tensors='tf'.*MLX"):
            process(return_tensors="tf")
        with pytest.raises(UnsupportedOptionError, match="'max_length'"):
            process(padding="max_length")

    def test_labels_may_differ_though_recordings_do_not(self, processor):
        with pytest.raises(InputError, match="the texts differ in length"):
            processor([noise(800), noise(800)], ["a", "set the"], padding=False)

    @pytest.mark.parametrize("text", [[], ()])
    def test_no_text(self, processor, text):
        for process in (processor.tokenizer, lambda text: processor(text=text)):
            with pytest.raises(InputError, match="nothing to encode: give at least one text"):
                process(text)

    @pytest.mark.parametrize("text", [5, [None], {"a": 1}])
    def test_what_is_no_text(self, processor, text):
        with pytest.raises(InputError, match=r"only text can be encoded, not (int|NoneType|dict)$"):
            processor(text=text)

    def test_documented_example(self):
        """Transformers' own, with another import; the recording is float64, as from `datasets`."""
        model = Speech2TextForConditionalGeneration.from_pretrained(TINY_S2T)
        processor = Speech2TextProcessor.from_pretrained(TINY_S2T)
        name = "synthetic/espeak_03.flac"
        audio = {
            "array": np.array(load_audio(find_recording(name)), np.float64),
            "sampling_rate": 16000,
        }
        inputs = processor(
            audio["array"], sampling_rate=audio["sampling_rate"], return_tensors="pt"
        )
        generated_ids = model.generate(
            inputs["input_features"], attention_mask=inputs["attention_mask"]
        )
        transcription = processor.batch_decode(generated_ids, skip_special_tokens=True)
        assert transcription == [REFERENCE["files"][name]["en_beam5"]["text"]]

        generated_ids = model.generate(
            inputs["input_features"],
            attention_mask=inputs["attention_mask"],
            forced_bos_token_id=processor.tokenizer.lang_code_to_id["fr"],
        )
        translation = processor.batch_decode(generated_ids, skip_special_tokens=True)
        assert translation == [REFERENCE["files"][name]["fr_beam5"]["text"]]

    def test_decoding(self, processor):
        assert processor.decode(mx.array([2, 5, 48, 16, 2])) == "set"
        assert processor.decode([5, 48, 16], skip_special_tokens=False) == "<lang:fr> set"
        assert processor.batch_decode([[48, 16], []]) == ["set", ""]


def byte_fallback_tokenizer(folder: Path, **options) -> Speech2TextTokenizer:
    """A vocabulary of its own, with bytes for what it lacks."""
    from sentencepiece import SentencePieceTrainer

    lines = (DATA / "reference" / "tiny_s2t_reference.json").read_text().split('"')
    SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in lines if " " in line]),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=400,
        byte_fallback=True,
        minloglevel=2,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
    )
    pieces = (folder / "sentencepiece.bpe.vocab").read_text().split("\n")[:-1]
    vocab = {line.split("\t")[0]: i for i, line in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    return Speech2TextTokenizer.from_pretrained(folder, **options)


class TestStreaming:
    @staticmethod
    def compare(tokenizer, ids: list[int]) -> list[str]:
        stream = StreamingDetokenizer(tokenizer)
        pieces = [*(stream.add(i) for i in ids), stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids)
        return pieces

    @pytest.mark.parametrize("name", sorted(REFERENCE["files"]))
    def test_answers_of_the_reference(self, tokenizer, name):
        for answer in REFERENCE["files"][name].values():
            assert "".join(self.compare(tokenizer, answer["ids"])) == answer["text"]

    def test_words_come_one_by_one(self, tokenizer):
        pieces = self.compare(tokenizer, [2, 5, 48, 16, 12, 21, 13, 2])
        assert pieces == ["", "", "s", "et", "", " the", " a", "", ""]

    @pytest.mark.parametrize("upper", [False, True])
    def test_any_ids_at_all(self, upper):
        """Also unknown ones, special ones in the middle, and nothing but spaces."""
        tokenizer = Speech2TextTokenizer.from_pretrained(TINY_S2T, do_upper_case=upper)
        rng = random.Random(7)
        for _ in range(1500):
            ids = rng.choices([*range(-1, 325), *[12] * 60, *[2, 999] * 20], k=rng.randrange(25))
            self.compare(tokenizer, ids)

    @pytest.mark.parametrize("upper", [False, True])
    def test_bytes(self, tmp_path, upper):
        tokenizer = byte_fallback_tokenizer(tmp_path, do_upper_case=upper)
        text = "set ß日本 👩‍👩‍👧 the ﬁ"
        pieces = self.compare(tokenizer, tokenizer.encode(text))
        whole = "".join(pieces)
        assert "\ufffd" not in whole
        assert ("SET SS日" if upper else "set ß日") in whole
        rng = random.Random(8)
        some_bytes = [tokenizer.encoder[f"<0x{byte:02X}>"] for byte in "é日👩 A".encode()]
        for _ in range(1500):
            pool = rng.choice([range(400), some_bytes, [*some_bytes, *range(390, 400), 2, 12]])
            self.compare(tokenizer, rng.choices(pool, k=rng.randrange(25)))
