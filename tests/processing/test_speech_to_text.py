"""Speech2Text's processor: recordings and texts, alone and together."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, TINY_S2T, find_recording

from mlx_speech import (
    InputError,
    Speech2TextForConditionalGeneration,
    Speech2TextProcessor,
    UnsupportedOptionError,
    load_audio,
)

REFERENCE = json.loads((DATA / "reference" / "tiny_s2t_reference.json").read_text())


@pytest.fixture(scope="module")
def processor() -> Speech2TextProcessor:
    return Speech2TextProcessor.from_pretrained(TINY_S2T)


def noise(length: int, seed: int = 0) -> mx.array:
    rng = np.random.default_rng(seed)
    return mx.array(rng.normal(0, 0.1, length).astype(np.float32))


class TestProcessor:
    def test_audio(self, processor):
        inputs = processor([noise(16000), noise(800)], sampling_rate=16000)
        assert sorted(inputs) == ["attention_mask", "input_features"]
        assert inputs["input_features"].shape == (2, 98, 80)

    def test_text(self, processor):
        inputs = processor(text="set")
        assert inputs["input_ids"].tolist() == [[5, 48, 16, 2]]

    def test_both(self, processor):
        inputs = processor(noise(16000), text="set")
        assert sorted(inputs) == ["attention_mask", "input_features", "labels"]
        assert inputs["labels"].tolist() == [[5, 48, 16, 2]]

    def test_arguments_by_position(self, processor):
        """Those of the feature extractor, and of the tokenizer's `decode`."""
        found = processor([noise(16000)], "max_length", 120, return_tensors="np")
        assert found.attention_mask.sum().item() == 98
        assert found.input_features.shape == (1, 120, 80)
        assert processor.decode([5, 48, 16, 2], True) == "set"
        assert processor.batch_decode([[5, 48, 16, 2]], True) == ["set"]
        with pytest.raises(InputError, match="padding is 'set', but must be True, False"):
            processor(noise(16000), "set")

    def test_neither(self, processor):
        with pytest.raises(InputError, match="give audio, text or both"):
            processor()

    def test_sampling_rate_is_checked(self, processor):
        with pytest.raises(InputError, match="44100"):
            processor(noise(9999), sampling_rate=44100)

    def test_items_are_attributes(self, processor):
        inputs = processor(noise(16000), text="set")
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
        expected = processor(recordings, text=texts)
        separate = (
            processor(recordings, text=texts, **options),
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
            return processor(audio, text=None if part == "audio" else texts, **options)

        assert len(process(lengths=(800, 800), padding=False)) >= 2
        with pytest.raises(InputError, match="differ in length"):
            process(padding=False)
        with pytest.raises(UnsupportedOptionError, match=r"return_tensors='tf'.*MLX"):
            process(return_tensors="tf")

    def test_labels_may_differ_though_recordings_do_not(self, processor):
        with pytest.raises(InputError, match="input_ids are no numbers, or differ in length"):
            processor([noise(800), noise(800)], text=["a", "set the"], padding=False)

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
        assert processor.decode(mx.array([2, 5, 48, 16, 2]), skip_special_tokens=True) == "set"
        assert processor.decode([5, 48, 16], skip_special_tokens=False) == "<lang:fr> set"
        assert processor.batch_decode([[48, 16], []], skip_special_tokens=True) == ["set", ""]

    def test_options_of_both_parts(self, processor):
        """Each gets those that it knows; dictionaries are for one of them, or for both."""
        audio, text = noise(16000), "set the light"
        expected = processor(audio, text=text, sampling_rate=16000, return_attention_mask=False)
        assert list(expected) == ["input_features", "labels"]
        for options in (
            {"audio_kwargs": {"sampling_rate": 16000}, "return_attention_mask": False},
            {"common_kwargs": {"return_attention_mask": False}, "text_kwargs": {}},
            {"audio_kwargs": {"return_attention_mask": False}},
        ):
            assert processor(audio, text=text, **options).keys() == expected.keys()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"colour": "red"}, "colour is no option of a recording, and no text is given"),
            ({"audio_kwargs": {"colour": "red"}}, "a recording has no option colour, but dither|p"),
            ({"audio_kwargs": {"raw_speech": [0.5]}}, "a recording has no option raw_speech"),
            ({"audio_kwargs": 5}, "audio_kwargs is 5"),
            (
                {"sampling_rate": 16000, "audio_kwargs": {"sampling_rate": 16000}},
                "sampling_rate is given twice: in audio_kwargs, and outside of it",
            ),
        ],
        ids=str,
    )
    def test_options_of_neither(self, processor, options, message):
        with pytest.raises(InputError, match=f"^{message}"):
            processor(noise(16000), **options)

    def test_old_names(self, processor):
        assert processor(raw_speech=noise(800)).keys() == {"input_features", "attention_mask"}
        with processor.as_target_processor():
            assert processor("set").input_ids.tolist() == [[5, 48, 16, 2]]
        assert "input_features" in processor(noise(800))

    def test_no_chat_template(self, processor):
        assert processor.chat_template is None
        with pytest.raises(UnsupportedOptionError, match="have no chat template"):
            processor.apply_chat_template([{"role": "user", "content": "set"}], tokenize=True)

    def test_parts(self, processor):
        assert processor.audio_processor is processor.feature_extractor
        assert processor.sampling_rate == 16000
        with pytest.raises(InputError, match="made of a Speech2TextFeatureExtractor and"):
            Speech2TextProcessor(processor.tokenizer, processor.feature_extractor)

    def test_a_folder_without_a_model(self, processor, s2t_copy):
        """What save_pretrained writes is enough; how long a recording may be is the model's."""
        assert processor.max_seconds == 30.0
        (s2t_copy / "config.json").unlink()
        alone = Speech2TextProcessor.from_pretrained(s2t_copy, tgt_lang="de", padding_value=1.0)
        assert alone.max_seconds is None
        assert alone.tokenizer.tgt_lang == "de"
        assert alone.feature_extractor.padding_value == 1.0
