"""Processors as transformers has them: conversations with recordings, arguments, files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import mlx_speech

from .test_feature_extractors import close, signal

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = {
    "GraniteSpeechProcessor": EXAMPLES / "tiny-granite-speech",
    "Speech2TextProcessor": EXAMPLES / "tiny-s2t",
}
AUDIO = Path(__file__).parents[1] / "data" / "audio"
#: one that knows parts; those of the released models, and the bundled one, know strings only
PARTS = (
    "{% for m in messages %}<|start_of_role|>{{ m['role'] }}<|end_of_role|>"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'audio' %}<|audio|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)


def pair(name: str, folder: Path | None = None):
    folder = folder or FOLDERS[name]
    kinds = (getattr(module, name) for module in (mlx_speech, transformers))
    return tuple(kind.from_pretrained(folder) for kind in kinds)


@pytest.fixture(scope="module")
def granite():
    return pair("GraniteSpeechProcessor")


@pytest.fixture(scope="module")
def s2t():
    return pair("Speech2TextProcessor")


def equal(ours, expected, tolerance: float = 2e-3) -> None:
    """The same names and values; features within the tolerance."""
    others = {"feature_lengths"}
    assert ours.keys() - others == expected.keys()
    for name, value in expected.items():
        close(ours[name], value, tolerance if "features" in name else 0)


def message(*parts, role: str = "user") -> dict:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "audio", **(part if isinstance(part, dict) else {"audio": part})}
        for part in parts
    ]
    return {"role": role, "content": content}


FLAC = str(AUDIO / "espeak_04.flac")
CONVERSATIONS = {
    "array": [message(signal(9000), "Transcribe the following audio:")],
    "path": [message(FLAC, "transcribe")],
    "under path": [message({"path": FLAC}, "transcribe")],
    "under url, which may be a path": [message({"url": FLAC}, "transcribe")],
    "two": [message("first", signal(9000), "then", signal(9000), "compare")],
    "turns": [
        {"role": "system", "content": "You are helpful."},
        message(signal(8000), "transcribe"),
        {"role": "assistant", "content": "unlock the gate"},
        message("and this?", signal(8000)),
    ],
    "batch": [[message(signal(8000), "one")], [message("a rather longer text", signal(8000))]],
    "batch, one with text alone": [[message("say something")], [message(signal(8000), "hear")]],
    "text alone": [message("what is the capital of France?")],
    "strings": [{"role": "user", "content": "hello"}],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
class TestConversations:
    def test_a_template_that_knows_parts(self, granite, name, add_generation_prompt):
        options = {"chat_template": PARTS, "add_generation_prompt": add_generation_prompt}
        texts = [p.apply_chat_template(CONVERSATIONS[name], **options) for p in granite]
        assert texts[0] == texts[1]
        options |= {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        equal(*(p.apply_chat_template(CONVERSATIONS[name], **options) for p in granite), 1e-4)
        options["return_dict"] = False
        ids = [p.apply_chat_template(CONVERSATIONS[name], **options) for p in granite]
        assert ids[0].tolist() == ids[1].tolist()

    def test_a_template_that_knows_strings(self, granite, name, add_generation_prompt):
        """The same, as if it knew parts; the reference fails, or drops the recordings."""
        ours, reference = granite
        options = {"tokenize": True, "add_generation_prompt": add_generation_prompt}
        found = ours.apply_chat_template(CONVERSATIONS[name], **options)
        options |= {"chat_template": PARTS, "return_dict": True, "return_tensors": "pt"}
        equal(found, reference.apply_chat_template(CONVERSATIONS[name], **options), 1e-4)


@pytest.mark.parametrize("how", ["beside", "processor_kwargs", "audio_kwargs"])
def test_options_of_the_call(granite, how):
    """Lengths of the text, and the rate that the recordings have."""
    options = {"padding": "max_length", "max_length": 120}
    given = {
        "beside": options,
        "processor_kwargs": {"processor_kwargs": options},
        "audio_kwargs": {
            "processor_kwargs": {"text_kwargs": options, "audio_kwargs": {"sampling_rate": 16000}}
        },
    }[how]
    common = {"chat_template": PARTS, "tokenize": True, "return_dict": True}
    conversation = CONVERSATIONS["array"]
    equal(
        *(
            p.apply_chat_template(conversation, return_tensors="pt", **common, **given)
            for p in granite
        ),
        1e-4,
    )


CALLS = {
    "device": {"device": "cpu"},
    "padding to a length": {"padding": "max_length", "max_length": 120},
    "multiple": {"pad_to_multiple_of": 64},
    "of the text": {"text_kwargs": {"padding": "max_length", "max_length": 120}},
    "of the audio": {"audio_kwargs": {"device": "cpu"}},
    "of both": {"common_kwargs": {"return_tensors": "pt"}},
    "no mask": {"return_attention_mask": False},
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", ["numpy", "torch", "of one channel", "nested"])
def test_granite_speech(granite, name, kind):
    samples = signal(9000)
    audio = {
        "numpy": [samples, samples],
        "torch": [torch.from_numpy(samples)] * 2,
        "of one channel": [torch.from_numpy(samples)[None]] * 2,
        "nested": [[samples], [samples]],
    }[kind]
    texts = ["<|audio|>can you transcribe the speech?", "and this: <|audio|>"]
    tensors = {} if "common_kwargs" in CALLS[name] else {"return_tensors": "pt"}
    equal(*(p(texts, audio, **tensors, **CALLS[name]) for p in granite), 1e-4)
    equal(*(p(text=texts, audio=audio, **tensors, **CALLS[name]) for p in granite), 1e-4)


@pytest.mark.parametrize("source", ["path", "paths"])
def test_files(granite, source):
    audio, text = {"path": (FLAC, "<|audio|>"), "paths": ([FLAC, FLAC], "<|audio|><|audio|>")}[
        source
    ]
    equal(*(p(text, audio, return_tensors="pt") for p in granite), 1e-4)


def test_model_card(granite):
    """The example of the released models' cards."""
    wav = torch.from_numpy(signal(9000))[None]
    chat = [
        {"role": "system", "content": "You are Granite."},
        {
            "role": "user",
            "content": "<|audio|>can you transcribe the speech?",
        },
    ]
    inputs = []
    for processor in granite:
        tokenizer = processor.tokenizer
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs.append(processor(prompt, wav, device="cpu", return_tensors="pt"))
    equal(*inputs, 1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": True},
        {"padding": "max_length", "max_length": 120},
        {"padding": "max_length", "max_length": 70, "truncation": True},
        {"padding": True, "pad_to_multiple_of": 16},
    ],
    ids=str,
)
def test_speech_to_text(s2t, options):
    """With keywords for both parts."""
    audio, texts = [signal(9000), signal(16000)], ["set the light", "zero"]
    options = {"sampling_rate": 16000, "return_tensors": "pt", **options}
    equal(*(p(audio, **options) for p in s2t))
    equal(*(p(audio=audio, text=texts, **options) for p in s2t))
    del options["sampling_rate"]
    equal(*(p(text=texts, **options) for p in s2t))


@pytest.mark.parametrize("name", FOLDERS)
class TestParts:
    def test_names(self, name):
        ours, reference = pair(name)
        assert ours.model_input_names == reference.model_input_names
        assert ours.chat_template == reference.chat_template
        assert {key: ours.to_dict()[key] for key in reference.to_dict()}.keys() == (
            reference.to_dict().keys()
        )

    def test_decoding(self, name):
        rows = np.random.default_rng(0).integers(5, 300, (3, 12))
        ours, reference = pair(name)
        for skip in (True, False):
            options = {"skip_special_tokens": skip}
            for ids in (rows.tolist(), torch.from_numpy(rows), rows):
                assert ours.decode(ids, **options) == reference.decode(ids, **options)
                assert ours.batch_decode(ids, **options) == reference.batch_decode(ids, **options)
            assert ours.decode(rows[0], **options) == reference.decode(rows[0], **options)

    @pytest.mark.parametrize("writer", ["ours", "the reference"])
    def test_saving(self, name, writer, tmp_path):
        """What one writes both read, without a config.json, with equal results."""
        original = dict(zip(("ours", "the reference"), pair(name), strict=True))
        original[writer].save_pretrained(tmp_path)
        assert not (tmp_path / "config.json").exists()
        audio, text = signal(9000), "set the light"
        text = f"<|audio|>{text}" if "Granite" in name else text
        options = {"audio": audio, "text": text, "return_tensors": "pt"}
        options |= {} if "Granite" in name else {"sampling_rate": 16000}
        for kind, read in zip(("ours", "the reference"), pair(name, tmp_path), strict=True):
            equal(read(**options), original["the reference"](**options))
            assert read.chat_template == original[kind].chat_template
            ids = read.tokenizer(text)["input_ids"]
            assert (
                np.array(ids).tolist()
                == np.array(original[kind].tokenizer(text)["input_ids"]).tolist()
            )

    def test_the_automatic_class(self, name, tmp_path):
        ours, reference = pair(name)
        ours.save_pretrained(tmp_path)
        assert type(transformers.AutoProcessor.from_pretrained(tmp_path)) is type(reference)

    def test_options_of_reading(self, name):
        """For the feature extractor and the tokenizer."""
        options = {"padding_value": 0.5, "pad_token": "<unk>"}
        options |= {"pad_token": "<|end_of_text|>"} if "Granite" in name else {"dither": 1.0}
        ours, reference = (
            getattr(module, name).from_pretrained(FOLDERS[name], **options)
            for module in (mlx_speech, transformers)
        )
        key = "audio_processor" if "Granite" in name else "feature_extractor"
        expected = reference.to_dict()[key]
        assert {each: ours.to_dict()[key][each] for each in expected} == expected
        assert ours.tokenizer.pad_token == reference.tokenizer.pad_token


def test_a_model_folder_is_checked(tmp_path):
    folder = shutil.copytree(FOLDERS["GraniteSpeechProcessor"], tmp_path / "model")
    with pytest.raises(mlx_speech.CheckpointError, match="n_mels is 40"):
        mlx_speech.GraniteSpeechProcessor.from_pretrained(folder, n_mels=40)


def test_documented_examples():
    """Of transformers' page about Granite Speech: a conversation with a recording as `datasets`
    gives it, and a batch of prompts with recordings. The reference's own call for a conversation
    lacks `return_dict`, and does not take the recording as it is given."""
    folder = FOLDERS["GraniteSpeechProcessor"]
    found, expected = [], []
    for module, results in ((mlx_speech, found), (transformers, expected)):
        processor = module.GraniteSpeechProcessor.from_pretrained(folder)
        model = module.GraniteSpeechForConditionalGeneration.from_pretrained(folder)
        rate = processor.feature_extractor.sampling_rate if module is mlx_speech else 16000
        audio = {"array": np.array(mlx_speech.load_audio(FLAC)), "sampling_rate": rate}
        given = audio if module is mlx_speech else audio["array"]
        conversation = [
            {
                "role": "user",
                "content": [
                    {"type": "audio", "audio": given},
                    {"type": "text", "text": "Transcribe the following audio:"},
                ],
            }
        ]
        options = {} if module is mlx_speech else {"return_dict": True, "chat_template": PARTS}
        inputs = processor.apply_chat_template(
            conversation, tokenize=True, return_tensors="pt", **options
        ).to("cpu")
        generated_ids = model.generate(**inputs, max_new_tokens=24, do_sample=False, num_beams=1)
        output_text = processor.batch_decode(generated_ids, skip_special_tokens=True)[0]
        results += [generated_ids.tolist(), output_text]
        texts = ["<|audio|>transcribe", "<|audio|>can you transcribe the speech?"]
        inputs = processor(texts, [audio["array"]] * 2, return_tensors="pt", padding=True)
        inputs = inputs.to("cpu")
        generated_ids = model.generate(**inputs, max_new_tokens=24, do_sample=False, num_beams=1)
        results += processor.batch_decode(generated_ids, skip_special_tokens=True)
    assert found == expected
