"""The code examples of transformers' documentation, of Granite Speech (v4.56.2 and v5.0.0rc1),
Llama 2, Jais 2 and Speech2Text.

Each is written once and run with either package: on small checkpoints in place of those of the Hub,
with recordings of tests/data in place of data sets, and without what transformers would need torch
or accelerate for. What both return is the same.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from conftest import DATA, TINY, TINY_S2T
from small_tokenizers import llama

import mlx_speech
from mlx_speech import InputError, UnsupportedOptionError, load_audio

PACKAGES = (transformers, mlx_speech)
INSTRUCTION = "can you transcribe the speech into a written format?"


def loading(package: ModuleType) -> dict[str, Any]:
    """What the examples give `from_pretrained`; transformers would need accelerate for it."""
    if package is transformers:
        return {"dtype": torch.float32}
    return {"attn_implementation": "sdpa", "device_map": "auto", "dtype": mx.float32}


def tensor(package: ModuleType, values: Any) -> Any:
    return torch.tensor(values) if package is transformers else mx.array(values)


def numbers(value: Any) -> np.ndarray:
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.array(value)


def recording(name: str = "espeak_00") -> dict[str, Any]:
    """As data sets give one."""
    samples = np.array(load_audio(DATA / "audio" / f"{name}.flac"))
    return {"array": samples, "sampling_rate": 16000}


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """By the name of a family: a random model of it, with a tokenizer."""
    folders = {}

    def get(family: str):
        if family not in folders:
            folder = folders[family] = llama(tmp_path_factory.mktemp(family))
            size = len(transformers.AutoTokenizer.from_pretrained(folder))
            shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
            shape |= {"num_attention_heads": 4, "vocab_size": size, "initializer_range": 0.5}
            shape |= {"bos_token_id": 1, "eos_token_id": 2}
            torch.manual_seed(3)
            config = getattr(transformers, f"{family}Config")(**shape)
            getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
        return folders[family]

    return get


class TestGraniteSpeech:
    def test_config(self):
        """A model of the documented defaults is made, without anything in memory."""
        for package in PACKAGES:
            configuration = package.GraniteSpeechEncoderConfig(num_layers=1, hidden_dim=32)
            assert package.GraniteSpeechCTCEncoder(configuration).config is configuration
        configuration = mlx_speech.GraniteSpeechConfig()
        model = mlx_speech.GraniteSpeechForConditionalGeneration(configuration)
        configuration = model.config
        assert configuration.text_config.hidden_size == 4096

    def test_basic_transcription_needs_a_prompt(self):
        """The example of v5.0.0rc1 gives recordings alone, which generates nothing there either."""
        model = mlx_speech.GraniteSpeechForConditionalGeneration.from_pretrained(
            TINY, torch_dtype=mx.float32, device_map="auto"
        )
        processor = mlx_speech.GraniteSpeechProcessor.from_pretrained(TINY)
        assert processor.feature_extractor.sampling_rate == 16000
        audio = recording()["array"]
        inputs = processor(audio=audio, return_tensors="pt").to(model.device)
        with pytest.raises(InputError, match=r"processor\(text, audio\)"):
            model.generate(**inputs, max_new_tokens=256)

    def test_prompt(self):
        """As on the cards of the models."""

        def example(package):
            model = package.AutoModelForSpeechSeq2Seq.from_pretrained(TINY, **loading(package))
            processor = package.AutoProcessor.from_pretrained(TINY)
            tokenizer = processor.tokenizer
            wav = tensor(package, recording()["array"])[None]
            chat = [
                {"role": "system", "content": "You are Granite, developed by IBM."},
                {"role": "user", "content": f"<|audio|>{INSTRUCTION}"},
            ]
            prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            device = "cpu"
            model_inputs = processor(prompt, wav, device=device, return_tensors="pt").to(device)
            model_outputs = model.generate(
                **model_inputs, max_new_tokens=64, do_sample=False, num_beams=1
            )
            num_input_tokens = model_inputs["input_ids"].shape[-1]
            new_tokens = model_outputs[:, num_input_tokens:]
            return prompt, tokenizer.batch_decode(
                new_tokens, add_special_tokens=False, skip_special_tokens=True
            )

        expected, found = map(example, PACKAGES)
        assert found == expected

    @pytest.mark.parametrize("audio", ["array", "data set", "path"])
    def test_chat_template(self, audio):
        """Its own parts are more than the checkpoints' templates know; so the reference is given
        the text that they stand for."""
        path = DATA / "audio" / "espeak_00.flac"
        given = {"array": recording()["array"], "data set": recording(), "path": str(path)}[audio]
        model = mlx_speech.GraniteSpeechForConditionalGeneration.from_pretrained(
            TINY, torch_dtype=mx.float32, device_map="auto"
        )
        processor = mlx_speech.GraniteSpeechProcessor.from_pretrained(TINY)
        conversation = [
            {
                "role": "user",
                "content": [
                    {"type": "audio", "audio": given},
                    {"type": "text", "text": INSTRUCTION},
                ],
            }
        ]
        inputs = processor.apply_chat_template(conversation, tokenize=True, return_tensors="pt")
        generated_ids = model.generate(**inputs.to(model.device), max_new_tokens=64)
        output_text = processor.batch_decode(generated_ids, skip_special_tokens=True)[0]
        reference = transformers.GraniteSpeechProcessor.from_pretrained(TINY)
        prompt = reference.tokenizer.apply_chat_template(
            [{"role": "user", "content": f"<|audio|>{INSTRUCTION}"}], tokenize=False
        )
        expected = reference(prompt, torch.tensor(recording()["array"]), return_tensors="pt")
        assert inputs.input_ids.tolist() == expected.input_ids.tolist()
        assert inputs.attention_mask.tolist() == expected.attention_mask.tolist()
        features = expected.input_features.numpy()
        np.testing.assert_allclose(np.array(inputs.input_features), features, atol=1e-4)
        model_of_reference = transformers.GraniteSpeechForConditionalGeneration.from_pretrained(
            TINY, dtype=torch.float32
        )
        ids = model_of_reference.generate(**expected, max_new_tokens=64, do_sample=False)
        assert output_text == reference.batch_decode(ids, skip_special_tokens=True)[0]

    def test_batch(self):
        names = ("espeak_00", "espeak_00", "espeak_00")  # of one length: see the table in README

        def example(package):
            model = package.GraniteSpeechForConditionalGeneration.from_pretrained(
                TINY, **loading(package)
            )
            processor = package.GraniteSpeechProcessor.from_pretrained(TINY)
            samples = [recording(name)["array"] for name in names]
            prompts = [f"<|audio|>{INSTRUCTION}"] * len(samples)
            inputs = processor(text=prompts, audio=samples, return_tensors="pt", padding=True)
            generated_ids = model.generate(
                **inputs.to(model.device), max_new_tokens=64, do_sample=False
            )
            return processor.batch_decode(generated_ids, skip_special_tokens=True)

        expected, found = map(example, PACKAGES)
        assert found == expected


class TestLlama2:
    def test_config(self):
        for package in PACKAGES:
            configuration = package.LlamaConfig(hidden_size=64, num_hidden_layers=1)
            configuration = package.LlamaModel(configuration).config
            assert (configuration.hidden_size, configuration.vocab_size) == (64, 32000)

    def test_auto_model(self, text_folder):
        folder = text_folder("Llama")

        def example(package):
            tokenizer = package.AutoTokenizer.from_pretrained(folder)
            model = package.AutoModelForCausalLM.from_pretrained(folder, **loading(package))
            text = "Plants create energy through a process known as"
            input_ids = tokenizer(text, return_tensors="pt").to(model.device)
            output = model.generate(**input_ids, max_new_tokens=20)
            return tokenizer.decode(output[0], skip_special_tokens=True)

        expected, found = map(example, PACKAGES)
        assert found == expected

    def test_static_cache(self, text_folder):
        tokenizer = mlx_speech.AutoTokenizer.from_pretrained(text_folder("Llama"))
        model = mlx_speech.AutoModelForCausalLM.from_pretrained(text_folder("Llama"))
        input_ids = tokenizer("Plants", return_tensors="pt")
        with pytest.raises(UnsupportedOptionError, match="cache_implementation"):
            model.generate(**input_ids, cache_implementation="static")

    def test_quantization(self, text_folder):
        """To 4 bits as it is loaded; torchao's object says the same in attributes."""
        tokenizer = mlx_speech.AutoTokenizer.from_pretrained(text_folder("Llama"))
        model = mlx_speech.AutoModelForCausalLM.from_pretrained(
            text_folder("Llama"),
            device_map="auto",
            quantization_config={"bits": 4, "group_size": 32},
        )
        assert type(model.model.layers[0].mlp.up_proj).__name__ == "QuantizedLinear"
        text = "Plants create energy through a process known as"
        input_ids = tokenizer(text, return_tensors="pt").to(model.device)
        output = model.generate(**input_ids, max_new_tokens=20)
        assert tokenizer.decode(output[0], skip_special_tokens=True).startswith(text)

    def test_flash_attention(self, text_folder):
        with pytest.raises(UnsupportedOptionError, match="flash_attention_2"):
            mlx_speech.AutoModelForCausalLM.from_pretrained(
                text_folder("Llama"), attn_implementation="flash_attention_2"
            )

    def test_generate(self, text_folder):
        folder = text_folder("Llama")

        def example(package):
            model = package.LlamaForCausalLM.from_pretrained(folder)
            tokenizer = package.AutoTokenizer.from_pretrained(folder)
            prompt = "Hey, are you conscious? Can you talk to me?"
            inputs = tokenizer(prompt, return_tensors="pt")
            generate_ids = model.generate(inputs.input_ids, max_length=60)
            return tokenizer.batch_decode(
                generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )[0]

        expected, found = map(example, PACKAGES)
        assert found == expected

    def test_tokenizer(self, text_folder):
        def example(package):
            tokenizer = package.LlamaTokenizer.from_pretrained(text_folder("Llama"))
            fast = package.LlamaTokenizerFast.from_pretrained(text_folder("Llama"))
            text = "Hello this is a test"
            return tokenizer.encode(text), fast.encode(text), fast.decode(fast.encode(text))

        expected, found = map(example, PACKAGES)
        assert found == expected

    def test_padding_token(self, text_folder):
        """A padding token, its row in the embeddings, and its id in the configuration."""

        def example(package):
            tokenizer = package.AutoTokenizer.from_pretrained(text_folder("Llama"))
            model = package.LlamaForCausalLM.from_pretrained(text_folder("Llama"))
            added = tokenizer.add_special_tokens({"pad_token": "<pad>"})
            model.resize_token_embeddings(len(tokenizer))
            model.config.pad_token_id = tokenizer.pad_token_id
            batch = tokenizer(["Hey", "Hey, are you there?"], padding=True, return_tensors="pt")
            rows = numbers(batch["attention_mask"]).sum(axis=1).tolist()
            return added, len(tokenizer), model.config.pad_token_id, rows

        expected, found = map(example, PACKAGES)
        assert found == expected


class TestJais2:
    def test_config(self):
        for package in PACKAGES:
            configuration = package.Jais2Config(hidden_size=52, num_hidden_layers=1)
            configuration = package.Jais2Model(configuration).config
            assert configuration.eos_token_id == 150024

    @pytest.mark.filterwarnings("ignore:config.json of this Jais 2 checkpoint:UserWarning")
    def test_generate(self, text_folder):
        folder = text_folder("Jais2")

        def example(package):
            model = package.Jais2ForCausalLM.from_pretrained(folder)
            tokenizer = package.AutoTokenizer.from_pretrained(folder)
            inputs = tokenizer("Hey, are you conscious? Can you talk to me?", return_tensors="pt")
            generate_ids = model.generate(inputs.input_ids, max_length=60)
            return tokenizer.batch_decode(
                generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )[0]

        expected, found = map(example, PACKAGES)
        assert found == expected


class TestSpeech2Text:
    def test_config(self):
        for package in PACKAGES:
            model = package.Speech2TextModel(package.Speech2TextConfig(d_model=32))
            assert model.config.d_model == model.config.hidden_size == 32

    def test_transcription(self):
        def example(package):
            model = package.Speech2TextForConditionalGeneration.from_pretrained(
                TINY_S2T, **loading(package)
            )
            processor = package.Speech2TextProcessor.from_pretrained(TINY_S2T)
            audio = recording()
            inputs = processor(
                audio["array"], sampling_rate=audio["sampling_rate"], return_tensors="pt"
            )
            generated_ids = model.generate(
                inputs["input_features"], attention_mask=inputs["attention_mask"]
            )
            return processor.batch_decode(generated_ids, skip_special_tokens=True)

        expected, found = map(example, PACKAGES)
        assert found == expected
        assert found[0]

    def test_translation(self):
        def example(package):
            model = package.Speech2TextForConditionalGeneration.from_pretrained(
                TINY_S2T, **loading(package)
            )
            processor = package.Speech2TextProcessor.from_pretrained(TINY_S2T)
            audio = recording()
            inputs = processor(
                audio["array"], sampling_rate=audio["sampling_rate"], return_tensors="pt"
            )
            generated_ids = model.generate(
                inputs["input_features"],
                attention_mask=inputs["attention_mask"],
                forced_bos_token_id=processor.tokenizer.lang_code_to_id["fr"],
            )
            return processor.batch_decode(generated_ids, skip_special_tokens=True)

        expected, found = map(example, PACKAGES)
        assert found == expected
        assert found[0]

    def test_forward(self):
        """Of `Speech2TextModel`, whose features come from an `AutoFeatureExtractor`."""

        def example(package):
            model = package.Speech2TextModel.from_pretrained(TINY_S2T, **loading(package))
            feature_extractor = package.AutoFeatureExtractor.from_pretrained(TINY_S2T)
            audio = recording()
            inputs = feature_extractor(
                audio["array"], sampling_rate=audio["sampling_rate"], return_tensors="pt"
            )
            decoder_input_ids = tensor(package, [[1, 1]]) * model.config.decoder_start_token_id
            output = model(inputs.input_features, decoder_input_ids=decoder_input_ids)
            return numbers(output.last_hidden_state)

        expected, found = map(example, PACKAGES)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-4)

    def test_generate_from_inputs(self):
        def example(package):
            model = package.Speech2TextForConditionalGeneration.from_pretrained(
                TINY_S2T, **loading(package)
            )
            processor = package.Speech2TextProcessor.from_pretrained(TINY_S2T)
            audio = recording("flite_07")
            inputs = processor(
                audio["array"], sampling_rate=audio["sampling_rate"], return_tensors="pt"
            )
            generated_ids = model.generate(inputs=inputs.input_features)
            return processor.batch_decode(generated_ids, skip_special_tokens=True)[0]

        expected, found = map(example, PACKAGES)
        assert found == expected
